"""HPCR: each term by its formula and by the authors' code, the swing, what is kept with a sample, what moves when."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import saved, zoo
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.models.small import mlp
from stillroom.parts.heads import Proxies
from stillroom.parts.losses.contrast import to_proxies
from stillroom.parts.losses.relations import likeness
from stillroom.recipes.continual.hpcr import HPCR, swing
from stillroom.run import Run


def wave(*shape):
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) ** 1.3).view(*shape)


@pytest.fixture
def ground():
    torch.manual_seed(0)
    tasks = [TensorDataset(torch.rand(24, 1, 8, 8), torch.randint(2 * k, 2 * k + 2, (24,))) for k in range(2)]
    return {"student": mlp(hidden=12, classes=4), "tasks": tasks}


class Watched(Run):
    """A run that keeps what its updates were given, and what was there before them."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.terms, self.before = [], []

    def update(self, opt, **terms):
        self.terms.append({k: v.detach() for k, v in terms.items()})
        self.before.append((self._loop.key, self.step, copy.deepcopy(self._things["student"])))
        return super().update(opt, **terms)


def play(ground, run=None, **fields):
    return HPCR(**{"batch": 6, "replay": 5, "memory": 9, **fields})(run or Run(), **copy.deepcopy(ground))


# --- terms ------------------------------------------------------------------------------------------------------------------

def test_terms_are_those_of_the_authors_code():
    """FelixHuiweiLin/PCR: SupConLoss(contrast_mode="proxy") of utils/loss.py, and the block L_SCD of agents/hpcr.py."""
    feature, proxies, y = wave(6, 4), wave(3, 4).flip(1) + 0.1, torch.tensor([0, 2, 2, 0, 2, 0])
    assert to_proxies(feature, proxies, y, 0.09).item() == pytest.approx(5.7821946, rel=1e-5)
    assert likeness(wave(6, 4), torch.cat([wave(3, 5).cos()] * 2), 0.09).item() == pytest.approx(7.6365204, rel=1e-4)


@pytest.mark.parametrize("samples", [False, True])
def test_the_contrast_written_out(samples):
    h, w, y, tau = wave(7, 5), wave(4, 5).flip(0), [0, 3, 3, 1, 0, 3, 1], 0.2
    z, p = h / h.norm(dim=1, keepdim=True), w / w.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(7):
        below = sum(math.exp(z[i] @ p[y[j]] / tau) for j in range(7))
        above = [math.exp(z[i] @ p[y[j]] / tau) for j in range(7) if y[j] == y[i]]
        if samples:
            below += sum(math.exp(z[i] @ z[j] / tau) for j in range(7) if j != i)
            above += [math.exp(z[i] @ z[j] / tau) for j in range(7) if j != i and y[j] == y[i]]
        total -= sum(math.log(a / below) for a in above) / len(above)
    assert to_proxies(h, w, torch.tensor(y), tau, samples).item() == pytest.approx(total / 7, rel=1e-5)


def test_with_each_class_once_it_is_cross_entropy_among_these_and_leaves_the_others_alone():
    torch.manual_seed(0)
    h, w, y = torch.randn(4, 8), torch.randn(10, 8, requires_grad=True), torch.tensor([7, 1, 4, 2])
    loss = to_proxies(h, w, y, 0.09)
    cosines = nn.functional.cosine_similarity(h.double()[:, None], w.double()[y], dim=-1)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(cosines / 0.09, torch.arange(4)).item(), rel=1e-5)
    loss.backward()
    moved = w.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [1, 2, 4, 7]


def test_likeness_written_out_and_where_nothing_pulls():
    a, b, tau = wave(5, 4), wave(5, 6).cos(), 0.3
    u, v = (t / t.norm(dim=1, keepdim=True) for t in (a, b))
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        q = [math.exp(v[i] @ v[j] / tau) for j in others]
        p = [math.exp(u[i] @ u[j] / tau) for j in others]
        total -= sum(x / sum(q) * math.log(y / sum(p)) for x, y in zip(q, p))
    assert likeness(a, b, tau).item() == pytest.approx(total / 5, rel=1e-5)
    turned = torch.linalg.qr(wave(4, 4))[0]
    assert likeness(3 * a @ turned, b, tau).item() == pytest.approx(total / 5, rel=1e-5)
    a = a.float().requires_grad_()
    likeness(a, a.detach().clone(), tau).backward()
    assert a.grad.abs().max() < 1e-6


def test_the_weight_swings_from_low_to_high_and_back():
    assert swing(0, 0.5625, 1.8, 500) == 0.5625 == swing(500, 0.5625, 1.8, 500)
    assert swing(250, 0.5625, 1.8, 500) == pytest.approx(1.8)
    assert swing(125, 0.5625, 1.8, 500) == pytest.approx((0.5625 + 1.8) / 2)


def test_logits_are_cosines_with_the_rows_of_the_last_layer():
    net = mlp(hidden=12).double()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    w, feature = net[3].weight.detach().clone(), net[:3](x)
    made = Proxies(copy.deepcopy(net), x, 0.09)
    expected = nn.functional.cosine_similarity(feature[:, None], w, dim=-1) / 0.09
    assert torch.allclose(made(x), expected, atol=1e-10)
    layer = nn.Linear(3, 2)
    assert Proxies(layer, torch.rand(2, 3))(torch.rand(5, 3)).abs().max() <= 1 / 0.09 + 1e-4


def test_it_is_built_again_from_what_was_saved(tmp_path):
    net = zoo.model("small:cnn", classes=4, channels=1, size=8)
    made = Proxies(net, torch.rand(2, 1, 8, 8), 0.2).eval()
    again = saved.load(saved.save(made, tmp_path, origin=made.origin, shape=(1, 8, 8)))
    x = torch.rand(3, 1, 8, 8)
    assert again.temperature == 0.2 and torch.equal(again(x), made(x))


# --- the recipe -------------------------------------------------------------------------------------------------------------

def test_a_task_that_fills_no_batch_is_refused(ground):
    with pytest.raises(Refused, match="a task of 24 samples"):
        play(ground, batch=25)


def test_each_sample_comes_once_task_after_task(ground):
    seen = {}

    class Counts(Run):
        def loop(self, data=None, **named):
            for x, y in super().loop(data, **named):
                seen.setdefault(named["name"], []).extend(x.sample_ids.tolist())
                yield x, y

    play(ground, Counts(), steps=100)
    assert list(seen) == ["task0", "task1"] and all(sorted(ids) == list(range(24)) for ids in seen.values())
    seen.clear()
    play(ground, Counts(), steps=2)
    assert all(len(set(ids)) == 12 == len(ids) for ids in seen.values())


def test_the_first_batch_teaches_nothing_and_the_past_speaks_from_the_second_task_on(ground):
    run = Watched()
    made = play(ground, run, steps=1)
    assert [key for key, *_ in run.before] == ["task1"]
    first = play({**ground, "tasks": ground["tasks"][:1]}, steps=1)
    start = Proxies(copy.deepcopy(ground["student"]), torch.rand(2, 1, 8, 8))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), start.parameters(), strict=True))
    assert not torch.equal(made.proxies, start.proxies)
    run = Watched()
    play(ground, run)
    assert [(key, set(terms)) for (key, *_), terms in zip(run.before, run.terms)] == [
        *[("task0", {"contrast"})] * 3, *[("task1", {"contrast", "logits", "likeness"})] * 4]


def test_the_terms_of_a_step_written_out_and_f_scales_the_contrast_alone(ground):
    """A task of one batch, all of it remembered and drawn, then another; views are the images themselves."""
    same = {"least": 1.0, "flip": 0.0, "colour": 0.0, "batch": 24, "replay": 24, "memory": 24, "alpha": 0.3, "beta": 0.7}
    run = Watched()
    play(ground, run, **same, low=0.5625, high=1.8, period=500)
    (_, _, net), terms = run.before[0], run.terms[0]
    net = net.double()                                           # has not moved since the samples came: stored is current
    (x_then, y_then), (x, y) = (task.tensors for task in ground["tasks"])
    z, labels = net.body(torch.cat([x_then, x_then, x, x]).double()), torch.cat([y_then, y_then, y, y])
    scores, own = net.scores(z)[:, labels], net.scores(z)[range(96), labels]
    assert terms["contrast"].item() == pytest.approx(0.5625 * (scores.logsumexp(1) - own).mean().item(), rel=1e-4)
    assert terms["logits"].item() == pytest.approx(0, abs=1e-6)
    old = z[:48] / z[:48].norm(dim=1, keepdim=True)
    rows = (old @ old.T / 0.09).masked_fill(torch.eye(48, dtype=torch.bool), -torch.inf).softmax(1)
    assert terms["likeness"].item() == pytest.approx(-0.7 * torch.special.xlogy(rows, rows).sum(1).mean().item(), rel=1e-4)
    run = Watched()
    play(ground, run, **same, low=1.0, high=1.0)
    assert run.terms[0]["contrast"].item() == pytest.approx(terms["contrast"].item() / 0.5625, rel=1e-5)
    assert torch.equal(run.terms[0]["likeness"], terms["likeness"])


def test_what_is_kept_is_the_students_word_on_the_unchanged_sample_when_it_came(ground):
    run = Watched()
    play(ground, run, least=0.5, memory=100)
    memory = run._things["memory"]
    assert len(memory) == 48
    for place in (0, 7, 40):                                     # the first batch, the second, and one of the second task
        step = place // 6
        net = run.before[max(step, 1) - 1][2]                    # no update happened in the first step
        x = memory.held.x[place][None]
        assert torch.allclose(net.body(x), memory.held.feature[place], atol=1e-5)
        assert torch.allclose(net(x), memory.held.logits[place], atol=1e-4)
        assert not torch.allclose(run._things["student"](x), memory.held.logits[place], atol=1e-4)


def test_logits_are_compared_on_the_columns_of_the_labels_at_hand(ground):
    run = Watched()
    play(ground, run, least=1.0, flip=0.0, colour=0.0, batch=12, replay=24, memory=24, alpha=1.0)
    (key, step, net), terms = run.before[1], run.terms[1]        # first step of the second task; one update was before it
    assert (key, step) == ("task1", 0)
    start = run.before[0][2]
    (_, y_new), = batches(ground["tasks"][1], 12, start=0, count=1, seed=(0, "task1"))
    x, y = ground["tasks"][0].tensors
    columns = torch.cat([y, y, y_new, y_new])
    away = (net.double()(x.double()) - start.double()(x.double()))[:, columns]
    assert terms["logits"].item() == pytest.approx(away.square().mean().item(), rel=1e-3)


def test_batch_norms_have_not_seen_anything_before_the_stream(ground):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    made = play({**ground, "student": net}, steps=1)
    assert made.body[2].num_batches_tracked == 3                 # new in each task, remembered in the second


def test_augmented_images_stay_images():
    torch.manual_seed(0)
    x = torch.rand(5, 3, 16, 16)
    both = HPCR().both(x)
    assert both.shape == (10, 3, 16, 16) and torch.equal(both[:5], x) and not torch.allclose(both[5:], x)
    assert both.min() >= 0 and both.max() <= 1 + 1e-5
