"""Heads: prototypes, and the network without its classifier."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stillroom.errors import Refused
from stillroom.models.small import cnn
from stillroom.models.vit import ViT
from stillroom.parts.heads import PrototypeHead, headless


@pytest.fixture
def head():
    torch.manual_seed(0)
    return PrototypeHead(6, prototypes=11, hidden=8, bottleneck=4)


def test_prototypes_are_a_weight_normalised_layer_on_a_unit_feature(head):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    last = weight_norm(nn.Linear(4, 11, bias=False))
    with torch.no_grad():
        last.parametrizations.weight.original0.fill_(1)                     # the frozen magnitude g
        last.parametrizations.weight.original1.copy_(head.prototypes)
    torch.testing.assert_close(head(x), last(F.normalize(head.mlp(x), dim=-1)))
    assert head(x).abs().max() <= 1 + 1e-6 and head(x.expand(2, 5, 6)).shape == (2, 5, 11)


def test_the_length_of_a_prototype_does_not_matter(head):
    x = torch.randn(5, 6)
    before = head(x)
    with torch.no_grad():
        head.prototypes *= torch.rand(11, 1) + 0.5
    torch.testing.assert_close(head(x), before)
    head(x).square().sum().backward()
    along = (head.prototypes.grad * head.prototypes).sum(-1)
    torch.testing.assert_close(along, torch.zeros(11), atol=1e-5, rtol=0)


def test_prototypes_that_do_not_learn_give_the_same_and_get_no_gradient(head):
    x = torch.randn(5, 6)
    assert torch.equal(head(x, learn=False), head(x))
    head(x, learn=False).square().sum().backward()
    assert head.prototypes.grad is None and all(p.grad is not None for p in head.mlp.parameters())


def test_sizes_of_the_paper():
    with torch.device("meta"):
        head = PrototypeHead(384)
    assert [tuple(layer.weight.shape) for layer in head.mlp[::2]] == [(2048, 384), (2048, 2048), (256, 2048)]
    assert head.prototypes.shape == (65_536, 256)


def test_headless_takes_the_classifier_out_and_leaves_features_alone():
    x = torch.rand(3, 1, 8, 8)
    net = cnn(width=4).eval()
    want = net[:-1](x)
    body, width = headless(net, x)
    assert body is net and width == 32 and torch.equal(body(x), want)
    again, width = headless(body, x)                                        # ends in features now
    assert again is body and width == 32 and torch.equal(body(x), want)
    vit = ViT(image=8, patch=2, channels=1, dim=16, depth=1, heads=2, classes=3)
    body, width = headless(vit, x)
    assert width == 16 and torch.equal(body(x), vit.encode(x)[:, 0])


def test_headless_leaves_modes_alone_and_refuses_maps():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.Flatten())
    headless(net, torch.rand(2, 1, 4, 4))
    assert net.training and not net[1].training and net[1].num_batches_tracked == 0
    with pytest.raises(Refused, match="one vector a sample"):
        headless(nn.Conv2d(1, 2, 3), torch.rand(2, 1, 4, 4))
