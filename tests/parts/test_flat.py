"""Weights as one vector."""

import pytest
import torch
from torch import nn

from stillroom.errors import Refused
from stillroom.models.convnet import ConvNet
from stillroom.parts.flat import flat_call, flatten, fresh


def test_a_network_says_the_same_with_its_own_weights_as_a_vector():
    net, x = ConvNet(5, 3, 16, width=8, depth=2), torch.rand(2, 3, 16, 16)
    weights = flatten(net)
    assert len(weights) == sum(p.numel() for p in net.parameters()) and torch.equal(flat_call(net, weights, x), net(x))


def test_other_weights_are_used_and_the_network_s_own_stay():
    net, x = nn.Linear(2, 1), torch.tensor([[1.0, 2.0]])
    before = flatten(net)
    assert flat_call(net, torch.tensor([10.0, 1.0, 0.5]), x).item() == 12.5 and torch.equal(flatten(net), before)


def test_second_derivatives_equal_finite_differences():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(4, 2).double()
    assert torch.autograd.gradgradcheck(lambda w: flat_call(net, w, x).square().sum(), flatten(net).requires_grad_())


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="4 weights for a network of 3"):
        flat_call(nn.Linear(2, 1), torch.zeros(4), torch.zeros(1, 2))


def test_fresh_draws_every_layer_anew_by_the_seed_alone():
    net = ConvNet(5, 3, 16, width=8, depth=2)
    old = flatten(net)
    torch.manual_seed(1)
    first = flatten(fresh(net))
    torch.manual_seed(1)
    assert torch.equal(flatten(fresh(net)), first) and not torch.equal(first, old)


@pytest.mark.parametrize(("net", "named"), [
    (nn.Sequential(nn.Linear(2, 2), nn.ParameterList([torch.zeros(2)])), r"^1 \(ParameterList\)"),
    (nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(4, 1)), r"^1 \(MultiheadAttention\)"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrizations.weight"),
    (nn.ParameterList([torch.zeros(2)]), "^the network")])
def test_weights_that_would_stay_are_refused_and_none_is_drawn(net, named):
    old = flatten(net)
    with pytest.raises(Refused, match=named):
        fresh(net)
    assert torch.equal(flatten(net), old)


def test_what_owns_no_weights_needs_no_initialisation():
    fresh(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2, affine=False), nn.BatchNorm1d(2), nn.PReLU(), nn.Flatten()))
