"""KD on pruned data: each score by its definition, exactly so many samples, both terms of the loss, updates as told."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset

from stillroom.errors import Refused
from stillroom.models.small import mlp
from stillroom.parts import pruning
from stillroom.recipes.classification.data_pruning_kd import DataPruningKD, said, trial
from stillroom.run import Run


@pytest.fixture
def ground():
    torch.manual_seed(0)
    return mlp(hidden=16), mlp(hidden=12), TensorDataset(torch.rand(40, 1, 8, 8), torch.randint(0, 10, (40,)))


class Watched(Run):
    """A run that remembers what its loops were given."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.loops = {}

    def loop(self, data=None, **named):
        self.loops[named.get("name", "loop")] = (data, named["steps"])
        return super().loop(data, **named)


def small(**fields):
    return DataPruningKD(**{"share": 0.3, "nets": 2, "batch": 8, "steps": 10, "steps_score": 12, **fields})


# --- scores -----------------------------------------------------------------------------------------------------------------

def test_scores_by_their_definitions():
    torch.manual_seed(0)
    nets, n, classes, width = 3, 15, 4, 5
    h, y = torch.randn(nets, n, width), torch.randint(0, classes, (n,))
    layers = [nn.Linear(width, classes) for _ in range(nets)]
    p = torch.stack([layer(f).softmax(-1) for layer, f in zip(layers, h)]).detach()
    el2n, grand, margin = ([] for _ in range(3))
    for i in range(n):
        away = [p[k, i].double() - torch.eye(classes)[y[i]].double() for k in range(nets)]
        el2n.append(sum(a.square().sum().sqrt() for a in away) / nets)
        norms = []
        for k, layer in enumerate(layers):                                   # the gradient itself, by autograd
            g = torch.autograd.grad(F.cross_entropy(layer(h[k, i : i + 1]), y[i : i + 1]), [layer.weight, layer.bias])
            norms.append((g[0].square().sum() + g[1].square().sum()).sqrt())
        grand.append(sum(norms) / nets)
        margin.append(sum(1 - (s := p[k, i].sort().values)[-1] + s[-2] for k in range(nets)) / nets)
    for score, wanted in (("el2n", el2n), ("grand", grand), ("margin", margin)):
        assert torch.allclose(pruning.SCORES[score](p, h, y).double(), torch.stack(wanted).double(), atol=1e-5)


def test_el2n_is_zero_when_right_and_sure_and_root_two_when_wrong_and_sure():
    y = torch.tensor([0, 1])
    p = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    assert pruning.el2n(p, p, y).tolist() == pytest.approx([0, 2**0.5])
    assert pruning.el2n(torch.rand(5, 100, 3).softmax(-1), p, torch.randint(0, 3, (100,))).max() <= 2**0.5


def test_moderate_prefers_the_median_distance_and_herding_follows_the_mean():
    features = torch.tensor([[[0.0], [1.0], [2.0], [-3.0], [0.0], [9.0]]])
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    assert pruning.moderate(features, features, y).tolist() == [-1, 0, -1, -2, -1, 0]         # distances 0 1 2 3 0, median 1
    torch.manual_seed(0)
    h, y = torch.randn(2, 20, 3), torch.arange(20) % 2
    rank = -pruning.herding(h, h, y).long()
    flat = torch.cat([h[0], h[1]], 1)
    for c in (0, 1):
        own, taken = flat[y == c], []
        for place in range(10):                                              # each further one brings the mean closest
            best = min((j for j in range(10) if j not in taken), key=lambda j: (own.mean(0) - own[[*taken, j]].mean(0)).norm())
            taken.append(best)
            assert rank[y == c][best] == place


def test_what_is_forgotten_is_counted():
    seen = pruning.Forgetting(3)
    for right in (1, 0, 1, 1, 0):                                            # sample 2 never comes, sample 1 is never right
        seen.see(torch.tensor([0, 1]), torch.tensor([bool(right), False]))
    assert seen.count.tolist() == [2, 0, 0]


# --- the choice ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.01, 0.1, 0.333, 0.5, 1.0])
def test_exactly_the_share_is_kept_and_it_is_the_highest(share):
    torch.manual_seed(0)
    scores = torch.rand(97)
    kept = pruning.keep(scores, share)
    assert len(kept) == round(share * 97) == len(set(kept.tolist()))
    left = torch.ones(97, dtype=torch.bool)
    left[kept] = False
    assert not left.any() or scores[kept].min() > scores[left].max()


def test_every_class_keeps_its_share_of_its_own_highest():
    torch.manual_seed(0)
    classes = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    scores = torch.rand(100) - classes.float()                               # without balance, class 0 alone would stay
    assert (classes[pruning.keep(scores, 0.3)] == 0).all()
    kept = pruning.keep(scores, 0.3, classes)
    assert len(kept) == 30 and classes[kept].bincount().tolist() == [18, 9, 3]
    for c in range(3):
        own = scores[classes == c]
        assert torch.equal(scores[kept][classes[kept] == c].sort().values, own.sort().values[-len(kept[classes[kept] == c]):])


def test_nothing_kept_is_refused():
    for share in (0.0, -1.0, 1.2, 0.001):
        with pytest.raises(Refused, match="share"):
            pruning.keep(torch.rand(50), share)


# --- the recipe -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("fields", "alpha"), [({}, 0.85), ({"alpha": 0.3}, 0.3), ({"alpha": 0.0}, 0.0), ({"share": 1.0}, 0.5)])
def test_the_loss_is_the_papers(ground, fields, alpha):
    student, teacher, data = ground
    run = Watched()
    method = small(**{"steps": 1, "shrink": False, "batch": 12, "lr": 1.0, "decay": 0.0, **fields})
    made = method(run, student=copy.deepcopy(student), teacher=teacher, data=data)
    kept = run.loops["loop"][0]
    assert len(kept) == round(method.share * 40) == len(set(kept.indices))
    net, tau = copy.deepcopy(student).double(), 4.0
    x, y = (torch.stack([kept[i][k] for i in range(len(kept))]) for k in range(2))
    if method.share == 1.0:                                                  # the batch is a part of what is kept
        from stillroom.batches import batches
        (x, y), = batches(kept, 12, start=0, count=1, seed=(0, "loop"))
    p, q = (net(x.double()) / tau).softmax(-1), (teacher(x).detach().double() / tau).softmax(-1)
    soft = tau**2 * (q * (q / p).log()).sum(-1).mean()
    hard = -net(x.double()).log_softmax(-1)[torch.arange(len(y)), y].mean()
    assert run.history[0]["soft"] == pytest.approx(alpha * soft.item(), rel=1e-4)
    assert run.history[0]["hard"] == pytest.approx((1 - alpha) * hard.item(), rel=1e-4)
    grads = torch.autograd.grad(alpha * soft + (1 - alpha) * hard, list(net.parameters()))
    assert all(torch.allclose(p.double(), q - g, atol=1e-4) for p, q, g in zip(made.parameters(), net.parameters(), grads))


def test_as_many_epochs_or_as_many_updates(ground):
    student, teacher, data = ground
    for shrink, updates in ((True, 3), (False, 10)):
        run = Watched()
        small(shrink=shrink)(run, student=copy.deepcopy(student), teacher=teacher, data=data)
        assert run.loops["loop"][1] == updates


@pytest.mark.parametrize("score", ["el2n", "grand", "margin", "moderate", "herding"])
def test_scores_come_from_new_nets_that_learn_from_all_samples(ground, score):
    student, teacher, data = ground
    nets = {}

    class Keeps(Watched):
        def keep(self, **things):
            nets.update({k: v for k, v in things.items() if k.startswith("net")})
            super().keep(**things)

    run = Keeps()
    before = copy.deepcopy(student.state_dict())
    small(score=score, even=True)(run, student=student, teacher=teacher, data=data)
    assert [run.loops[f"score{i}"][1] for i in range(2)] == [12, 12] and len(run.loops["score0"][0]) == 40
    assert not any(torch.equal(net[1].weight, before["1.weight"]) for net in nets.values())
    told = [said(net, data) for net in nets.values()]
    p, h = (torch.stack(part) for part in zip(*told))
    x, y = data.tensors
    assert torch.allclose(p[0], nets["net0"](x).softmax(-1), atol=1e-6) and torch.allclose(h[1], nets["net1"][:3](x), atol=1e-6)
    assert run.loops["loop"][0].indices == pruning.keep(pruning.SCORES[score](p, h, y), 0.3, y).tolist()


def test_forgetting_is_counted_where_samples_bear_the_numbers_of_another_set(ground):
    student, teacher, data = ground
    part, plain = Subset(data, list(range(39, 9, -1))), TensorDataset(*(t[range(39, 9, -1)] for t in data.tensors))
    runs = []
    for given in (part, plain):
        run = Watched()
        small(score="forgetting", steps_score=40, lr=0.5)(run, student=copy.deepcopy(student), teacher=teacher, data=given)
        runs.append(run.loops["loop"][0].indices)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("score", ["el2n", "forgetting"])
def test_a_stop_between_scores_and_choice_changes_nothing(ground, score, tmp_path):
    student, teacher, data = ground

    class Stops(Run):
        def loop(self, data=None, **named):
            for content in super().loop(data, **named):
                if named.get("name", "loop") == "loop" and self.step == 1:
                    raise KeyboardInterrupt
                yield content

    def play(run):
        return small(score=score)(run, student=copy.deepcopy(student), teacher=teacher, data=data)

    whole = play(Run())
    with pytest.raises(KeyboardInterrupt):
        play(Stops(tmp_path, save_every=-1.0))
    again = play(Run(tmp_path, resume=True))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))


def test_an_unknown_score_is_refused(ground):
    with pytest.raises(Refused, match="no score is called 'el2m'"):
        small(score="el2m")(Run(), student=ground[0], teacher=ground[1], data=ground[2])


def test_a_linear_student_of_the_teacher_alone_becomes_the_teacher_by_any_part_of_full_rank():
    """The theory at α = 1 without decay: twelve of forty samples span the inputs, so the student is the teacher everywhere."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(40, 4), torch.randint(0, 3, (40,)))
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    made = small(alpha=1.0, temperature=1.0, shrink=False, decay=0.0, lr=1.0, batch=12, steps=600)(
        Run(), student=student, teacher=teacher, data=data)
    x = torch.randn(200, 4)
    assert (made(x).softmax(-1) - teacher(x).softmax(-1)).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_at_a_tenth_accuracy_rises_with_the_teachers_share_and_chance_is_as_good_as_the_hardest(seed):
    _, cast = trial(seed)
    told = [cast.accuracy(cast.other(alpha=a)) for a in (0.0, 0.5, 1.0)]
    assert told[0] + 10 < told[1] < told[2]
    assert told[2] >= cast.accuracy(cast.other(alpha=1.0, score="el2n"))
