"""Merged weights: by hand and as task vectors, exact where they must be, ties kept, counts copied, strangers refused."""

import copy

import pytest
import torch
from torch import nn

from stillroom.errors import Refused
from stillroom.models.small import cnn
from stillroom.parts.merging import balanced, merged


def family(make, count=3):
    """One network and descendants of it."""
    torch.manual_seed(0)
    first = make()
    nets = [first, *(copy.deepcopy(first) for _ in range(count - 1))]
    with torch.no_grad():
        for net in nets[1:]:
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return nets


def same(a, b):
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(t, b.state_dict()[k]) for k, t in a.state_dict().items())


@pytest.mark.parametrize("alpha, share", [(0.1, 0.5), (0.6, 0.5), (0.35, 0.2)])
def test_it_is_the_two_stages_and_the_task_vectors_of_the_paper(alpha, share):
    base, told, taught = family(lambda: cnn(width=4))
    ours = dict(merged((base, told, taught), balanced(alpha, share)).named_parameters())
    for name, m in base.named_parameters():
        m, i, d = (dict(net.named_parameters())[name].double() for net in (base, told, taught))
        both = share * i + (1 - share) * d
        assert torch.allclose(ours[name].double(), alpha * m + (1 - alpha) * both, atol=1e-6)
        vectors = m + (1 - alpha) * (share * (i - m) + (1 - share) * (d - m))
        assert torch.allclose(ours[name].double(), vectors, atol=1e-6)


def test_weights_of_bai_sum_to_one():
    assert balanced(0.2, 0.25) == pytest.approx((0.2, 0.2, 0.6)) and sum(balanced(0.37, 0.11)) == pytest.approx(1)


def test_limits_are_exact():
    nets = family(lambda: cnn(width=4))
    assert same(merged(nets, balanced(1.0)), nets[0])
    assert same(merged(nets, balanced(0.0, 1.0)), nets[1]) and same(merged(nets, balanced(0.0, 0.0)), nets[2])
    assert same(merged([nets[1]] * 3, balanced(0.1, 0.3)), nets[1])


def test_a_linear_network_says_the_mixture():
    nets = family(lambda: nn.Linear(5, 7))
    x, weights = torch.randn(4, 5), balanced(0.3, 0.6)
    assert torch.allclose(merged(nets, weights)(x), sum(w * net(x) for w, net in zip(weights, nets)), atol=1e-6)


def test_statistics_are_averaged_and_counts_and_masks_are_the_firsts():
    nets = family(lambda: nn.Sequential(nn.BatchNorm1d(3)))
    for n, net in enumerate(nets):
        net[0].num_batches_tracked += n
        net[0].running_mean += n
        net.register_buffer("mask", torch.tensor([n == 0, True]))
    made = merged(nets, (0.5, 0.25, 0.25))
    assert made[0].num_batches_tracked == 0 and made[0].num_batches_tracked.dtype == torch.long
    assert torch.allclose(made[0].running_mean, torch.full((3,), 0.75)) and made.mask.tolist() == [True, True]


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def test_tied_weights_stay_tied():
    nets = family(Tied)
    made = merged(nets, balanced())
    assert made.head.weight is made.embed.weight
    want = sum(w * net.embed.weight for w, net in zip(balanced(), nets))
    assert torch.allclose(made.head.weight, want, atol=1e-6)


def test_parents_stay_and_share_nothing_with_what_is_made():
    nets = family(lambda: cnn(width=4))
    before = copy.deepcopy(nets)
    for p in merged(nets, balanced(1.0)).parameters():
        p.data.zero_()
    assert all(map(same, nets, before))


def test_bf16_is_added_in_fp32():
    nets = [net.bfloat16() for net in family(lambda: nn.Linear(64, 64))]
    made = merged(nets, balanced(0.1))
    want = sum(w * net.weight.double() for w, net in zip(balanced(0.1), nets)).bfloat16()
    assert made.weight.dtype == torch.bfloat16 and (made.weight == want).float().mean() > 0.99


@pytest.mark.parametrize("strangers, words", [
    ((nn.Linear(3, 4), nn.Linear(3, 5)), "weight"), ((nn.Embedding(9, 2), nn.Embedding(10, 2)), "one vocabulary"),
    ((Tied(), Tied(tie=False)), "head.weight"), ((nn.Linear(3, 4), nn.Linear(3, 4, bias=False)), "bias")])
def test_strangers_are_refused(strangers, words):
    with pytest.raises(Refused, match=words):
        merged(strangers, (0.5, 0.5))


def test_weights_that_do_not_sum_to_one_are_refused():
    net = nn.Linear(2, 2)
    for nets, weights in (([net, net], (0.5, 0.6)), ([net], (0.5, 0.5)), ([], ())):
        with pytest.raises(Refused, match="sum to 1"):
            merged(nets, weights)
    with pytest.raises(Refused, match="from 0 to 1"):
        balanced(1.2)
