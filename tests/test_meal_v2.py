"""MEAL V2: no label is read, probabilities are averaged for one term and logits for the other, the gradient is turned."""

import copy

import pytest
import torch
from torch.utils.data import TensorDataset

from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.recipes.classification.meal_v2 import MEALV2, discriminator, reverse, trial
from stillroom.run import Run
from stillroom.store import write


@pytest.fixture
def ground():
    torch.manual_seed(0)
    return mlp(hidden=16), cnn(width=4), cnn(width=6), TensorDataset(torch.rand(32, 1, 8, 8), torch.randint(0, 10, (32,)))


class Watched(Run):
    """A run that shows the discriminator as it was drawn."""

    def keep(self, **things):
        self.drawn = copy.deepcopy(things["judge"])
        super().keep(**things)


def one_step(ground, others=1, run=None, **fields):
    """The student after one step of plain SGD with rate 1 on the whole set, and the run."""
    student, first, second, data = ground
    run = run or Watched()
    made = MEALV2(**{"lr": 1.0, "batch": 32, "steps": 1, **fields})(
        run, student=copy.deepcopy(student), teacher=first, others=[second] * others, data=data)
    return made, run


def by_hand(z, taught, judge):
    """Both terms as the paper writes them, in float64: z [batch, classes], taught: logits of each teacher."""
    q = sum(u.double().softmax(1) for u in taught) / len(taught)
    similar = 0.0
    for i in range(len(z)):
        similar = similar - (q[i] * z[i].log_softmax(0)).sum() / len(z)
    mean = sum(u.double() for u in taught) / len(taught)
    said = judge(torch.cat([z, mean])).sigmoid()                              # column 0: the student's; column 1: the teachers'
    who = torch.tensor([[1.0, 0.0]] * len(z) + [[0.0, 1.0]] * len(z)).double()
    return similar, -(who * said.log() + (1 - who) * (1 - said).log()).sum() / said.numel()


@pytest.mark.parametrize("relu", [False, True])
def test_the_terms_are_the_papers(ground, relu):
    student, first, second, data = ground
    x = data.tensors[0]
    _, run = one_step(ground, relu=relu)
    z, taught = student(x).double(), [net.eval()(x) for net in (first, second)]
    similar, apart = by_hand(z, taught, run.drawn.double())
    assert run.history[0]["similar"] == pytest.approx(similar.item(), rel=1e-5)
    assert run.history[0]["judge"] == pytest.approx(apart.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3, -1.0])
def test_the_student_climbs_what_the_discriminator_descends(ground, scale):
    """∂/∂θ_S of the total is ∂L_s − λ·∂L_D, the discriminator's own gradient is ∂L_D; λ = −1 is the joint descent of the code."""
    student, first, second, data = ground
    x = data.tensors[0]
    kept = {}

    class Last(Watched):
        def keep(self, **things):
            super().keep(**things)
            kept.update(things)

    made, run = one_step(ground, run=Last(), reverse=scale)
    net, judge = copy.deepcopy(student).double(), copy.deepcopy(run.drawn).double()
    similar, apart = by_hand(net(x.double()), [t.eval()(x).detach() for t in (first, second)], judge)
    weights = list(net.parameters())
    up, down = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (similar, apart))
    for p, q, g, h in zip(made.parameters(), weights, up, down):
        assert torch.allclose(p.double(), q - (g - scale * h), atol=1e-5)
    for p, q, h in zip(kept["judge"].parameters(), judge.parameters(), torch.autograd.grad(apart, list(judge.parameters()))):
        assert torch.allclose(p.double(), q - h, atol=1e-5)


def test_a_turned_gradient():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for scale in (1.0, 0.25, 0.0, -1.0):
        (g,) = torch.autograd.grad((reverse(x, scale) ** 3).sum(), x)
        assert torch.allclose(reverse(x, scale), x) and torch.allclose(g, -scale * 3 * x**2)


def test_the_gradient_of_the_similarity_in_the_logits_is_p_minus_q(ground):
    z = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    taught = [torch.randn(6, 10), torch.randn(6, 10)]
    similar, _ = by_hand(z, taught, discriminator(10).double())
    q = sum(u.double().softmax(1) for u in taught) / 2
    assert torch.allclose(torch.autograd.grad(similar, z)[0], (z.softmax(1) - q) / 6)
    assert torch.allclose(q.sum(1), torch.ones(6).double())


def test_identical_teachers_are_one_teacher_and_averaged_probabilities_are_not_averaged_logits(ground):
    student, first, _, data = ground
    twins = (student, first, copy.deepcopy(first), data)
    (alone, a), (both, b) = one_step(twins, others=0), one_step(twins, others=3)
    assert a.history[0]["similar"] == pytest.approx(b.history[0]["similar"], abs=1e-6)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(alone.parameters(), both.parameters()))
    u1, u2 = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    wrong = ((u1 + u2) / 2).softmax(1)
    right = (u1.softmax(1) + u2.softmax(1)) / 2
    assert right[0, 0] < 0.53 and wrong[0, 0] > 0.95
    z = torch.tensor([[2.0, 1.0]]).double()
    assert by_hand(z, [u1, u2], discriminator(2).double())[0].item() == pytest.approx(
        -(right.double() * z.log_softmax(1)).sum().item(), rel=1e-6)


def test_no_label_is_read(ground):
    student, first, second, data = ground
    made = [one_step((student, first, second, TensorDataset(data.tensors[0], y)))[0]
            for y in (data.tensors[1], torch.full((32,), UNLABELLED))]
    assert all(torch.equal(p, q) for p, q in zip(made[0].parameters(), made[1].parameters()))


def test_stored_teachers_give_the_same_student(ground, tmp_path):
    student, first, second, data = ground
    stored = [Cached(write(tmp_path / str(i), net, data)) for i, net in enumerate((first, second))]
    assert same(one_step(ground)[0], one_step((student, *stored, data))[0])


def same(a, b):
    return all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters()))


def test_cutmix_shows_student_and_teachers_the_same_mixed_images(ground):
    student, first, second, data = ground
    seen = []
    nets = [copy.deepcopy(net) for net in (student, first, second)]
    for net in nets:
        net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]) if len(inputs[0]) == 32 else None)
    MEALV2(cutmix=1.0, lr=0.1, batch=32, steps=1)(Run(), student=nets[0], teacher=nets[1], others=[nets[2]], data=data)
    s, t, u = seen[-3:]
    assert torch.equal(s, t) and torch.equal(s, u)
    mixed = [not any(torch.equal(image, own) for own in data.tensors[0]) for image in s]
    assert sum(mixed) > 16 and torch.isin(s, data.tensors[0]).all(), "pixels come from the images, most images from two"


def test_the_discriminators_widths_are_the_released_ones():
    widths = [layer.out_features for layer in discriminator(1000) if hasattr(layer, "out_features")]
    assert widths == [125, 15, 2] and isinstance(discriminator(1000, relu=True)[-1], torch.nn.ReLU)
    assert [layer.out_features for layer in discriminator(10) if hasattr(layer, "out_features")] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_worth_two_points_over_the_wrong_labels_and_no_worse_than_one_teacher(seed):
    method, cast = trial(seed)
    ours = cast.accuracy(method(Run(seed=seed), **cast.actors))
    assert ours > cast.accuracy(cast.alone()) + 2
    assert ours > max(cast.accuracy(cast.kd(i)) for i in range(2)) - 1 - 1e-9       # a tie, to the last bit, is no loss
