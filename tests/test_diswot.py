"""DisWOT: the score is the paper's, the search keeps to its rules, and the winner is taught."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom.arenas.architectures import Cells
from stillroom.errors import Refused
from stillroom.models.cells import OPERATIONS
from stillroom.models.small import cnn, mlp
from stillroom.parts.evolution import child, gaussian, within
from stillroom.parts.losses import relations
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.places import last_map
from stillroom.recipes.classification.diswot import DisWOT, alike, read
from stillroom.run import Run

ALL = ["conv3"] * 6


@pytest.fixture
def probe():
    torch.manual_seed(0)
    return torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,))


def drawn(net, seed=0):
    """The network that `read` sees at its first draw."""
    torch.manual_seed(seed)
    return gaussian(copy.deepcopy(net)).eval()


# --- the score -----------------------------------------------------------------------------------------------------------

def test_what_is_read_is_the_last_map_and_the_gradient_of_the_classifier(probe):
    x, y = probe
    net = Cells().build(ALL)
    torch.manual_seed(0)
    ((last, grad),) = read(net, x, y, 1)
    same = drawn(net).double()
    wanted = same.last(same.second(same.down(same.first(same.stem(x.double())))))
    h = same.pool(wanted).flatten(1)
    p = same.head(h).softmax(1)
    exact = (p - F.one_hot(y, 10)).T @ h / 16                                    # (p − onehot)ᵀ h / B
    assert last.shape == (16, 8, 4, 4) and (last - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert (grad - exact).abs().max() < 1e-6 * exact.abs().max()


def test_the_score_is_the_readme_of_the_authors(probe):
    """lilujunai/DisWOT-CVPR2023, README, core code: both similarities, of nets of equal width at the end."""
    x, y = probe
    teacher, student = Cells().build(ALL), Cells().build(["conv1", "skip", "conv3", "pool", "none", "conv3"])
    torch.manual_seed(1)
    taught, learnt = read(teacher, x, y, 3), read(student, x, y, 3)
    total = 0.0
    for (f_t, g_t), (f_s, g_s) in zip(taught, learnt):
        grams = [F.normalize(f.double().flatten(1) @ f.double().flatten(1).T) for f in (f_t, f_s)]
        cams = [F.normalize(torch.bmm(g.double()[..., None], g.double()[:, None]), dim=2) for g in (g_t, g_s)]
        total -= ((grams[0] - grams[1]) ** 2).sum() / 16**2 + ((cams[0] - cams[1]) ** 2).sum() / (8 * 10)
    assert alike(taught, learnt) == pytest.approx(total.item() / 3, rel=1e-4)


def test_equal_networks_score_zero_and_others_less(probe):
    net = Cells().build(ALL)
    taught = read(net, *probe, 2)
    assert alike(taught, taught) == pytest.approx(0, abs=1e-9)
    assert alike(taught, read(net, *probe, 2)) < -0.01                # the same architecture with other weights


def test_where_widths_differ_the_classes_are_compared(probe):
    taught, learnt = read(cnn(width=8), *probe, 1), read(cnn(width=4), *probe, 1)
    (f_t, g_t), (f_s, g_s) = taught[0], learnt[0]
    assert g_t.shape != g_s.shape
    assert alike(taught, learnt) == pytest.approx(-(relations.gram(f_s, f_t) + relations.gram(g_s, g_t)).item())


def test_the_same_seed_gives_the_same_score_and_the_networks_stay_as_they_are(probe):
    teacher, student = Cells().build(ALL).train(), Cells().build(["conv3", "skip", "none", "none", "pool", "conv1"])
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    scores = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        scores.append(alike(read(teacher, *probe, 2), read(student, *probe, 2)))
    assert scores[0] == scores[1] != scores[2]
    for net, state in zip((teacher, student), before):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert teacher.training and all(p.requires_grad and p.grad is None for p in teacher.parameters())


def test_gaussian_weights_zero_biases_and_norms_as_new():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Linear(500, 100), nn.LayerNorm(4))
    for p in net.parameters():
        nn.init.constant_(p, 3.0)
    net[1].running_mean.fill_(2.0)
    gaussian(net)
    for layer in (net[0], net[2]):
        assert abs(layer.weight.mean()) < 0.05 and abs(layer.weight.std() - 1) < 0.05 and not layer.bias.any()
    assert (net[1].weight == 1).all() and not net[1].bias.any() and not net[1].running_mean.any() and (net[3].weight == 1).all()


def test_the_last_map_is_the_one_before_pooling():
    assert last_map(cnn(width=4), torch.rand(1, 1, 8, 8)) == "5"                 # the second ReLU, not the pooling after it
    assert last_map(Cells().build(ALL), torch.rand(1, 1, 8, 8)) in ("last", "last.1")
    assert last_map(mlp(), torch.rand(1, 1, 8, 8)) == "2"


# --- the search ----------------------------------------------------------------------------------------------------------

def test_the_space_has_neighbours_that_differ_in_one_word_and_knows_its_cost():
    space = Cells(width=4)
    random.seed(0)
    for _ in range(50):
        arch = space.random()
        other = space.mutate(arch)
        assert len(arch) == 6 and set(arch) <= set(OPERATIONS) and sum(a != b for a, b in zip(arch, other)) == 1
        net = space.build(arch)
        assert net.arch == arch and space.cost(arch) == sum(p.numel() for p in net.parameters())
        assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert space.build(["none"] * 6)(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_a_cell_is_the_sum_over_its_edges():
    torch.manual_seed(0)
    cell = Cells(width=4).build(["conv1", "skip", "conv3", "pool", "none", "skip"]).first.eval()
    a, skip, b, pool, last = cell.operations
    x = torch.rand(2, 4, 8, 8)
    one = a(x)
    two = skip(x) + b(one)
    assert torch.allclose(cell(x), pool(x) + last(two))                          # 0→3, nothing on 1→3, 2→3


class Numbers:
    """Whole numbers, whose neighbours are one away; their cost is their size."""

    def random(self):
        return random.randrange(100)

    def mutate(self, arch):
        return arch + random.choice((-1, 1))

    def build(self, arch):
        raise AssertionError("a search looks at architectures, it does not build them")

    def cost(self, arch):
        return abs(arch)


def test_evolution_fills_its_population_then_mutates_the_best_that_is_young():
    random.seed(0)
    space, scored = Numbers(), []
    for _ in range(5):
        scored.append((-1.0, child(space, scored, 5, 5)))
    assert len({arch for _, arch in scored}) > 1
    scored = [(9.0, 1000)] + [(float(n), 50 * n) for n in range(5)]               # the best of all is the sixth oldest: dead
    assert {child(space, scored, 5, 5) for _ in range(20)} == {199, 201}         # neighbours of 200, the best alive
    assert len({child(space, scored, 5, 1) // 50 for _ in range(60)}) > 3        # a tournament of one is a parent at random


def test_evolution_climbs_higher_than_drawing_does():
    space, reached = Numbers(), []
    for tournament in (5, 0):
        random.seed(1)
        scored = []
        for _ in range(300):
            arch = child(space, scored, 20, tournament) if tournament else space.random()
            scored.append((float(arch), arch))
        reached.append(max(scored)[1])
    assert reached[0] > 110 > reached[1]


def test_a_limit_is_kept_or_refused():
    random.seed(0)
    assert all(within(Numbers(), Numbers().random, 20) <= 20 for _ in range(50))
    assert all(child(Numbers(), [(1.0, 20)] * 5, 5, 5, 20) == 19 for _ in range(20))
    with pytest.raises(Refused, match="no architecture costs -1 or less"):
        within(Numbers(), Numbers().random, -1)


# --- the whole -----------------------------------------------------------------------------------------------------------

class Watched(Run):
    """A run that lets its kept things be seen."""

    def __init__(self, **named):
        super().__init__(**named)
        self.seen = {}

    def keep(self, **things):
        self.seen.update(things)
        super().keep(**things)


def test_the_winner_is_the_best_of_all_that_were_scored_and_is_taught(probe):
    x, y = probe
    space, run = Cells(width=4), Watched()
    method = DisWOT(population=4, tournament=2, draws=1, steps=9, steps_student=5, batch=8, limit=1500)
    teacher = space.build(ALL)
    before = copy.deepcopy(teacher.state_dict())
    made = method(run, space=space, teacher=teacher, data=TensorDataset(x, torch.where(y < 5, y, UNLABELLED)))
    scored = run.seen["scored"]
    assert len(scored) == 9 and all(space.cost(arch) <= 1500 for _, arch in scored)
    assert made.arch == max(scored)[1]
    assert [line["loop"] for line in run.history if line["step"] == 4] == ["search", "winner/loop"]
    assert made.stem[1].num_batches_tracked == 5
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()), "the teacher is not drawn anew, its copy is"


def test_the_search_needs_no_trained_teacher(probe):
    """Two runs whose teachers differ in their weights alone choose the same architecture."""
    data, found = TensorDataset(*probe), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        teacher = Cells(width=4).build(ALL)
        found.append(DisWOT(population=4, tournament=2, draws=1, steps=8, steps_student=1, batch=8)(
            Run(), space=Cells(width=4), teacher=teacher, data=data).arch)
    assert found[0] == found[1]
