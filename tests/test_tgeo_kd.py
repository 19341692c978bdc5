"""TGeo-KD: its terms and features written out, the gradient through the step ahead by differences, what it must leave alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import store
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts import losses
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.recipes.classification.tgeo_kd import TGeoKD, class_means, fused, geometry, ratio_net, trial
from stillroom.run import Run


class Watched(Run):
    """A run that remembers what is kept, and of the first outer loss the value, the gradient and the student's state."""

    def keep(self, **things):
        self.kept = things
        super().keep(**things)
        self.before = copy.deepcopy(things["student"].state_dict())
        self.ratio = copy.deepcopy(things["ratio"])
        self.outer = None

    def update(self, opt, **terms):
        if "held" in terms and self.outer is None:
            grads = torch.autograd.grad(terms["held"], opt.params, retain_graph=True)
            self.outer = terms["held"].item(), torch.cat([g.flatten() for g in grads])
            self.after = copy.deepcopy(self.kept["student"].state_dict())
        return super().update(opt, **terms)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some_logits(n=7, classes=4):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(n, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.arange(n) % classes, torch.rand(n, generator=draw, dtype=torch.float64)


def test_the_terms_are_the_papers():
    z, t, y, share = some_logits()
    soft = hard = 0.0
    for i in range(7):
        p, q = (z[i] / 3).softmax(0), (t[i] / 3).softmax(0)
        soft += share[i] * 9 * sum(q[c] * (q[c] / p[c]).log() for c in range(4)) / 7
        hard += (1 - share[i]) * -z[i].softmax(0)[y[i]].log() / 7
    ours = fused(z, t, y, share, 3.0)
    assert torch.allclose(ours[0], soft) and torch.allclose(ours[1], hard)


def test_a_share_of_one_is_distillation_alone_and_of_none_the_labels_alone():
    z, t, y, _ = some_logits()
    soft, hard = fused(z, t, y, torch.ones(7), 2.0)
    assert torch.allclose(soft, losses.kl(z, t, 2.0)) and hard == 0
    soft, hard = fused(z, t, y, torch.zeros(7), 2.0)
    assert torch.allclose(hard, losses.labels(z, y)) and soft == 0


def test_the_features_are_four_points_and_five_sides():
    z, t, y, _ = some_logits()
    means = class_means(t, y)
    found = geometry(z.requires_grad_(), t, y, means)
    assert found.shape == (7, 36) and not found.requires_grad
    for i in range(7):
        S, T, G, M = z[i].softmax(0), t[i].softmax(0), torch.eye(4)[y[i]].double(), means[y[i]]
        naive = [S, T, G, M, (G - S) ** 2, (T - S) ** 2, (T - G) ** 2, (M - S) ** 2, (M - G) ** 2]
        assert torch.allclose(found[i], torch.cat(naive))
    for c in range(4):
        mean = sum(t[i].softmax(0) for i in range(7) if y[i] == c) / sum(y == c)
        assert torch.allclose(means[c], mean)


def test_a_class_without_samples_has_no_mean_and_a_share_lies_between_none_and_one():
    z, t, y, _ = some_logits()
    assert not class_means(t, y.clamp(max=2))[3].any()
    share = ratio_net(4)(geometry(z, t, y, class_means(t, y)).float())
    assert share.shape == (7,) and ((share > 0) & (share < 1)).all()


def stepped(run, data, teacher, student, **fields):
    one = TensorDataset(*(t[:1] for t in data.tensors))          # every draw of held-out samples is this one
    method = TGeoKD(**{"batch": 12, "steps": 1, "decay": 0.0, **fields})
    return method(run, student=student, teacher=teacher, data=data, valid=one)


def test_the_gradient_of_the_outer_loss_goes_through_the_step_ahead(double):
    """Against central differences of: step by hand, loss of the held-out sample. A student of four weights."""
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(1, 2)), nn.Linear(1, 2)
    data = TensorDataset(torch.randn(12, 1), torch.arange(12) % 2)
    run = Watched()
    stepped(run, data, teacher, copy.deepcopy(student), ahead=0.5, temperature=2.0)
    x, y = data.tensors
    t, weights = teacher(x).detach(), torch.nn.utils.parameters_to_vector(run.ratio.parameters()).detach()
    means = class_means(t, y)

    def outer(changed):
        ratio, net = copy.deepcopy(run.ratio), copy.deepcopy(student)
        torch.nn.utils.vector_to_parameters(changed, ratio.parameters())
        z = net(x)
        a = ratio(geometry(z, t, y, means)).detach()
        kl = 4 * F.kl_div((z / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="none").sum(-1)
        (a * kl + (1 - a) * F.cross_entropy(z, y, reduction="none")).mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.5 * p.grad
        return F.cross_entropy(net(x[:1]), y[:1]).item()

    value, gradient = run.outer
    assert value == pytest.approx(outer(weights), rel=1e-5)
    largest = gradient.abs().argsort(descending=True)[:12]
    for k in largest:
        bump = 1e-4 * torch.eye(len(weights))[k]
        slope = (outer(weights + bump) - outer(weights - bump)) / 2e-4
        assert gradient[k].item() == pytest.approx(slope, rel=1e-3)
    assert gradient[largest[0]].abs() > 1e-5


def test_the_step_ahead_leaves_the_student_and_its_batch_statistics_as_they_are():
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(24, 1, 8, 8), torch.arange(24) % 10)
    run = Watched()
    stepped(run, data, cnn(width=4), cnn(width=4))
    assert all(torch.equal(run.before[k], v) for k, v in run.after.items())
    made = run.kept["student"].state_dict()
    assert not torch.equal(made["1.running_mean"], run.before["1.running_mean"])
    assert made["1.num_batches_tracked"] == 1, "one forward of each step is seen by the batch norm"
    assert any(not torch.equal(a, b) for a, b in zip(run.ratio.parameters(), run.kept["ratio"].parameters(), strict=True))


def test_the_small_network_moves_at_its_own_pace():
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(24, 1, 8, 8), torch.arange(24) % 10)
    run = Run()
    stepped(run, data, mlp(), mlp(), steps=6, pace=3)
    assert ["held" in line for line in run.history] == [True, False, False, True, False, False]


@pytest.mark.parametrize("held", [0.25, 1e-9])
def test_a_part_of_the_data_is_held_out_and_not_learnt_from(held):
    torch.manual_seed(0)
    data, seen = TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 10), []

    class Noting(Watched):
        def loop(self, content, **named):
            seen.extend(content.indices)
            return super().loop(content, **named)

    TGeoKD(batch=8, steps=1, held=held)(Noting(), student=mlp(), teacher=mlp(), data=data)
    assert len(set(seen)) == len(seen) == 40 - max(1, round(40 * held))


def test_a_stored_teacher_teaches_the_same(tmp_path):
    torch.manual_seed(0)
    data, teacher = TensorDataset(torch.rand(24, 1, 8, 8), torch.arange(24) % 10), mlp()
    cached = Cached(store.write(tmp_path, teacher, data))
    student = mlp()
    made = [stepped(Run(), data, taught, copy.deepcopy(student), steps=2) for taught in (teacher, cached)]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*(net.parameters() for net in made), strict=True))


def test_samples_without_a_label_are_refused():
    data = TensorDataset(torch.rand(20, 1, 8, 8), torch.full((20,), UNLABELLED))
    with pytest.raises(Refused, match="label"):
        TGeoKD(batch=8, steps=1)(Run(), student=mlp(), teacher=mlp(), data=data)


@pytest.mark.slow
def test_the_teacher_gets_more_of_a_sample_whose_label_is_wrong():
    method, cast = trial(0)
    run, (x, y), teacher = Watched(), cast.actors["data"].tensors, cast.actors["teacher"]
    student = method(run, **cast.actors)
    with torch.no_grad():
        share = run.kept["ratio"](geometry(student(x), teacher(x), y, class_means(teacher(x), y)))
    assert share[cast.wrong].mean() - share[~cast.wrong].mean() > 0.3
