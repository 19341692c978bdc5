"""Teachers: what they say, what they never do."""

import pytest
import torch
from torch import nn

from stillroom.parts.teachers import Ema, Ensemble, Frozen, Past, Random


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.mark.parametrize("make", [Frozen, Ema, Past, Random])
def test_a_teacher_stays_in_eval_mode_without_gradients(make):
    teacher, x = make(net()), torch.randn(16, 4, requires_grad=True)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    teacher.train()
    assert torch.equal(teacher(x), teacher(x)) and not teacher(x).requires_grad
    assert not any(m.training for m in teacher.modules()) and not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()), "batch statistics moved"


def test_frozen_and_random_are_the_given_net_and_ema_and_past_are_copies():
    for make, shares in ((Frozen, True), (Random, True), (Ema, False), (Past, False)):
        model = net()
        assert (make(model).model is model) == shares
        assert all(p.requires_grad for p in model.parameters()) != shares


def test_frozen_rescales_its_input():
    model, x = nn.Flatten(), torch.rand(2, 3, 2, 2)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1).flatten(1)
    assert torch.allclose(Frozen(model, mean, std)(x), by_hand)
    assert torch.allclose(Frozen(model, mean=mean)(x), (x - torch.tensor(mean).view(3, 1, 1)).flatten(1))


def test_ema_is_the_weighted_mean_and_copies_buffers():
    student, other = net(0), net(1)
    other(torch.randn(32, 4))
    teacher = Ema(student)
    teacher.follow(other, 0.75)
    for mine, old, new in zip(teacher.model.parameters(), student.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, 0.75 * old + 0.25 * new)
    assert torch.equal(teacher.model[1].running_mean, other[1].running_mean) and int(teacher.model[1].num_batches_tracked) == 1


@pytest.mark.parametrize(("momentum", "which"), [(1.0, 0), (0.0, 1)])
def test_ema_at_its_limits(momentum, which):
    nets = net(0), net(1)
    teacher = Ema(nets[0])
    teacher.follow(nets[1], momentum)
    assert all(torch.allclose(a, b) for a, b in zip(teacher.model.parameters(), nets[which].parameters(), strict=True))


def test_past_is_the_student_at_the_snapshot():
    student, x = net(0).eval(), torch.randn(5, 4)
    past, first = Past(student), student(x)
    student.load_state_dict(net(1).state_dict())
    assert torch.equal(past(x), first)
    past.snapshot(student)
    assert torch.equal(past(x), student(x)) and not torch.equal(past(x), first)


def test_ensemble_is_the_mean_of_softened_probabilities():
    nets, x, t = [net(s).eval() for s in range(3)], torch.randn(6, 4), 2.0
    by_hand = sum(w * (m(x) / t).softmax(-1) for w, m in zip((0.5, 0.25, 0.25), nets, strict=True))
    assert torch.allclose(Ensemble(nets, [2, 1, 1])(x, t).softmax(-1), by_hand, atol=1e-6)
    assert torch.allclose(Ensemble(nets[:1])(x).softmax(-1), nets[0](x).softmax(-1), atol=1e-6)
