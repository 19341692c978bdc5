"""Optimisers: who is moved, at what rate, and what is asked for first."""

import pytest
import torch
from torch import nn

from stillroom.parts import optim


def descend(make, steps=5, **named):
    x = torch.tensor([[3.0, -2.0]], requires_grad=True)
    opt = make(x, **named)
    for step in range(steps):
        (x**2).sum().backward()
        assert opt.step(step / steps) is True and x.grad is None
    return x.detach()


def by_hand(make, steps=5):
    x = torch.tensor([[3.0, -2.0]], requires_grad=True)
    opt = make([x])
    for _ in range(steps):
        opt.zero_grad()
        (x**2).sum().backward()
        opt.step()
    return x.detach()


@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda x: optim.sgd(x, lr=0.1, momentum=0.5, decay=0.1), lambda p: torch.optim.SGD(p, 0.1, 0.5, weight_decay=0.1)),
    (lambda x: optim.sgd(x, lr=0.1, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
    (lambda x: optim.adamw(x, lr=0.1, decay=0.2, betas=(0.8, 0.9)),
     lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.9), weight_decay=0.2)),
    (lambda x: optim.adam(x, lr=0.1), lambda p: torch.optim.Adam(p, 0.1)),
])
def test_they_are_torch_s_own(ours, theirs):
    assert torch.allclose(descend(ours), by_hand(theirs), atol=1e-6)


def test_the_rate_follows_progress():
    seen = []
    descend(optim.sgd, lr=lambda progress: seen.append(progress) or 0.1)
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_adamw_decays_matrices_only():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    opt = optim.adamw(net, lr=0.1, decay=0.5)
    decays = {id(p): g["weight_decay"] for g in opt.inner.param_groups for p in g["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [0.5, 0.0, 0.0, 0.0]


def test_a_shared_parameter_is_moved_once():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    assert len(optim.sgd(a, b, a.bias, lr=0.1).params) == 3


@pytest.mark.parametrize("target", [nn.ReLU(), nn.Linear(1, 1).requires_grad_(False), torch.zeros(2)])
def test_what_cannot_learn_is_refused(target):
    with pytest.raises(ValueError, match="nothing to learn"):
        optim.sgd(target, lr=0.1)


def test_state_goes_round():
    net = nn.Linear(2, 1)
    opt = optim.adamw(net, lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    opt.step(0.0)
    twin = optim.adamw(net, lr=0.1)
    twin.load_state_dict(opt.state_dict())
    state, again = (o.inner.state_dict()["state"] for o in (opt, twin))
    assert state.keys() == again.keys() and torch.equal(state[0]["exp_avg"], again[0]["exp_avg"])
