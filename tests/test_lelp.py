"""LELP: pseudo-subclasses by the formulas, in float64; a class keeps its share; what the classifier reads is left out."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import saved, zoo
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts.heads import Subclasses, apart
from stillroom.parts.losses.logits import UNLABELLED, soft_cross_entropy
from stillroom.parts.subclasses import projections, rotation, unread
from stillroom.recipes.classification.lelp import LELP
from stillroom.run import Run


@pytest.fixture
def ground():
    torch.manual_seed(0)
    return mlp(hidden=16, classes=2), cnn(width=4, classes=2).eval(), TensorDataset(torch.rand(48, 1, 8, 8), torch.arange(48) % 2)


@pytest.fixture
def cloud():
    """Embeddings [60, 12] of three classes, and a classifier [3, 12]."""
    torch.manual_seed(1)
    return torch.randn(60, 12).double() @ torch.randn(12, 12).double() + 3, torch.arange(60) % 3, torch.randn(3, 12).double()


class Watched(Run):
    """A run that shows the student as it was before its first step, and what was placed."""

    def keep(self, **things):
        self.before = copy.deepcopy(things["student"])
        super().keep(**things)

    def place(self, actor):
        self.placed = actor
        return super().place(actor)


def one_step(ground, **fields):
    student, teacher, data = ground
    run = Watched()
    made = LELP(**{"subclasses": 3, "lr": 1.0, "decay": 0.0, "batch": 48, "steps": 1, **fields})(
        run, student=copy.deepcopy(student), teacher=teacher, data=data)
    return made, run


@pytest.mark.parametrize("fields", [{}, {"alpha": 0.3, "temperature": 2.0, "beta": 0.25}, {"null_space": False}])
def test_the_terms_are_the_papers(ground, fields):
    """Sample by sample, class by class: null space, centre, projection, one deviation a class, product of two softmaxes."""
    _, run = one_step(ground, **fields)
    _, teacher, data = ground
    net = copy.deepcopy(teacher).double().requires_grad_(False)
    W, b = net[-1].weight, net[-1].bias
    x, y = data.tensors
    h = net[:-1](x.double()).detach()
    P = torch.eye(h.shape[1]).double() - (torch.linalg.pinv(W) @ W if fields.get("null_space", True) else 0)
    out, V = h @ P.T, run.placed.axes.double()
    tau, beta, alpha = fields.get("temperature", 1.0), fields.get("beta", 1.0), fields.get("alpha", 0.0)
    centre = [out[y == c].mean(0) for c in (0, 1)]
    sigma = [math.sqrt(((out[y == c] - centre[c]) @ V[c]).square().mean()) for c in (0, 1)]
    z = run.before.double().head(run.before.body(x.double()))                             # [samples, 2 · 3]
    soft = hard = 0.0
    for i in range(48):
        said = z[i].log_softmax(0)
        for c in (0, 1):
            p_c = ((W @ h[i] + b) / tau).softmax(0)[c]
            a = torch.stack([V[c][:, s] @ (out[i] - centre[c]) / sigma[c] for s in range(3)])
            soft = soft - sum(p_c * (a / beta).softmax(0)[s] * said[3 * c + s] for s in range(3)) / 48
        hard = hard - said[3 * y[i] : 3 * y[i] + 3].exp().sum().log() / 48
    assert run.history[0]["soft"] == pytest.approx((1 - alpha) * soft.item(), rel=1e-4)
    assert run.history[0]["hard"] == pytest.approx(alpha * hard.item(), rel=1e-4, abs=1e-7)


def test_what_the_classifier_reads_is_left_out(cloud):
    h, y, W = cloud
    assert (W @ unread(W) @ h.T).abs().max() < 1e-5
    assert torch.allclose(unread(W) @ unread(W), unread(W)) and torch.linalg.matrix_rank(unread(W)) == 9
    found = projections(h, y, 3, 4, unread(W))
    assert (W @ found.axes).abs().max() < 1e-8
    seen = h + torch.randn(60, 3).double() @ W                            # moved where the classifier looks
    assert torch.allclose(found(seen), found(h))


@pytest.mark.parametrize("chance", [False, True])
def test_directions_are_orthonormal_and_a_class_has_mean_zero_and_variance_one(cloud, chance):
    h, y, W = cloud
    found = projections(h, y, 3, 4, unread(W), chance)
    a = found(h)
    for c in range(3):
        assert torch.allclose(found.axes[c].T @ found.axes[c], torch.eye(4).double(), atol=1e-10)
        assert a[y == c][:, c].mean(0).abs().max() < 1e-10
        assert a[y == c][:, c].square().mean().item() == pytest.approx(1)


def test_directions_span_what_varies_most(cloud):
    """The variance along all of them is the sum of the largest eigenvalues of the class's covariance: no four have more."""
    h, y, _ = cloud
    found, by_chance = projections(h, y, 3, 4), projections(h, y, 3, 4, chance=True)
    for c in range(3):
        own = h[y == c] - h[y == c].mean(0)
        most = torch.linalg.eigvalsh(own.T @ own / 20)[-4:].sum()
        assert (own @ found.axes[c]).square().mean(0).sum().item() == pytest.approx(most.item())
        assert (own @ by_chance.axes[c]).square().mean(0).sum() < most


def test_rotated_directions_have_equal_variance_on_average():
    torch.manual_seed(0)
    scale = torch.tensor([9.0, 4.0, 1.0]).double().sqrt()
    drawn = torch.stack([rotation(3) for _ in range(3000)])
    variance = (scale[:, None] * drawn).square().sum(1).mean(0)                                        # along each new axis
    assert torch.allclose(drawn.mT @ drawn, torch.eye(3).double().expand(3000, 3, 3))
    assert ((variance / (14 / 3) - 1).abs() < 0.05).all()
    assert (drawn.mean(0).abs() < 0.05).all(), "signs are even, too"


def test_subclasses_share_a_class_exactly_and_are_even_without_sharpness(ground):
    _, run = one_step(ground)
    body, last = apart(copy.deepcopy(ground[1]), ground[2].tensors[0][:2])
    h = body(ground[2].tensors[0])
    p = last(h).softmax(-1)[..., None] * run.placed(h).softmax(-1)
    assert torch.allclose(p.sum(-1), ground[1](ground[2].tensors[0]).softmax(-1), atol=1e-6)
    even = last(h).softmax(-1)[..., None] * (run.placed(h) / 1e9).softmax(-1)
    assert torch.allclose(even, last(h).softmax(-1)[..., None].expand_as(even) / 3, atol=1e-6)


def test_one_subclass_is_kd_and_even_ones_are_kd_and_a_constant(ground):
    """S = 1: cross-entropy with the teacher. β → ∞, at the class distribution q: KD's value and log S, the least that can be."""
    _, teacher, data = ground
    x = data.tensors[0]
    _, run = one_step(ground, subclasses=1)
    assert run.history[0]["soft"] == pytest.approx(soft_cross_entropy(run.before(x), teacher(x)).item(), rel=1e-5)
    q = torch.randn(5, 2).double().log_softmax(-1)
    p = torch.randn(5, 2).double().softmax(-1)
    even = -(p[..., None].expand(5, 2, 3) / 3 * (q[..., None] - math.log(3))).sum((1, 2)).mean()
    assert even.item() == pytest.approx(-(p * q).sum(-1).mean().item() + math.log(3))


def test_the_student_reads_as_a_classifier_of_classes(ground):
    student = Subclasses(copy.deepcopy(ground[0]), torch.rand(1, 1, 8, 8), 5)
    x = torch.rand(7, 1, 8, 8)
    z = student.head(student.body(x)).softmax(-1)                                                      # [7, 10]
    assert torch.allclose(student(x).exp(), torch.stack([z[:, :5].sum(1), z[:, 5:].sum(1)], 1), atol=1e-6)
    assert student.head.out_features == 10 and student(x).shape == (7, 2)
    pooled = torch.tensor([[0.30, 0.30, 0.0, 0.40, 0.0, 0.0]]).log().view(1, 2, 3).logsumexp(-1)
    assert pooled.argmax().item() == 0, "the group's sum, not the largest subclass"


def test_the_true_label_groups_where_there_is_one_and_the_teacher_where_there_is_none(ground):
    student, teacher, data = ground
    x, y = data.tensors
    said = teacher(x).argmax(-1)
    said[:24] = (torch.arange(24) % 2)                                    # both classes are there, whatever the teacher says
    part = torch.where(torch.arange(48) < 24, y, UNLABELLED)
    _, run = one_step((student, teacher, TensorDataset(x, part)), null_space=False)
    h = apart(copy.deepcopy(teacher), x[:2])[0](x)
    group = torch.where(part == UNLABELLED, teacher(x).argmax(-1), part)
    assert torch.allclose(run.placed.centre, torch.stack([h[group == c].mean(0) for c in (0, 1)]), atol=1e-5)
    assert run.history[0]["hard"] == 0


def test_the_teacher_stays_as_it_is(ground):
    before = copy.deepcopy(ground[1].state_dict())
    one_step(ground)
    assert all(torch.equal(before[k], v) for k, v in ground[1].state_dict().items()) and isinstance(ground[1][-1], nn.Linear)


def test_too_few_directions_are_refused(ground, cloud):
    h, y, W = cloud
    for bad in ((h, y, 3, 10, unread(W)), (h[:9], y[:9], 3, 3), (h, y, 4, 2)):
        with pytest.raises(Refused, match="fewer subclasses"):
            projections(*bad)
    with pytest.raises(Refused, match="linear layer"):
        one_step((ground[0], nn.Sequential(ground[1], nn.LogSoftmax(-1)), ground[2]))


def test_a_saved_student_is_built_again(tmp_path):
    student = zoo.model("small:mlp?hidden=16", classes=["even", "odd"], channels=1, size=8)
    made = Subclasses(student, torch.rand(1, 1, 8, 8), 4)
    again = saved.load(saved.save(made, tmp_path, classes=["even", "odd"]))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), made(x)) and again.head.out_features == 8 and again.classes == ["even", "odd"]
