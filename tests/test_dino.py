"""DINO: the steps of the paper written out, and the judges of its features."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom.errors import Refused
from stillroom.measure.features import features, knn, linear_probe
from stillroom.parts import optim
from stillroom.parts.schedules import cosine
from stillroom.recipes.selfsup.dino import DINO

STILL = dict(border=1.0, least=1.0, flip=0.0, colour=0.0)                   # every view is the whole image, as it is


def images(n=6):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 1, 4, 4, generator=g), torch.full((n,), -100))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())


def small(**named):
    sizes = dict(prototypes=7, hidden=8, bottleneck=4, small=2, large_size=4, small_size=4, batch=6, steps=4, lr=0.05, still=0.5)
    return DINO(**{**STILL, **sizes, **named})


def watched(recipe, student, data=None, seed=0):
    """What is kept, as it was after every step."""
    seen = []
    run = Run(seed=seed, every=1, watch={"seen": lambda things: seen.append(
        {k: copy.deepcopy(things[k]) for k in ("student", "teacher", "centre")}) or 0.0})
    made = recipe(run, student=student, data=data or images())
    return made, seen, run


def test_the_steps_are_those_of_the_paper_written_out():
    """Algorithm 1 with weight decay, momentum, temperature and prototypes on their schedules; all views alike, so no luck."""
    recipe = small(clip=1e9)
    _, seen, run = watched(recipe, network())
    x = images().tensors[0]
    start = watched(replace(recipe, steps=1), network())[1][0]            # the first step has rate 0: the weights as they began
    student, teacher = start["student"], copy.deepcopy(start["student"])
    centre = torch.zeros(7)
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    adam = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.0)
    for step in range(4):
        progress = step / 4
        fall = (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) / 2
        rate = 0.05 * progress / 0.1 if progress < 0.1 else 1e-6 + (0.05 - 1e-6) * fall
        sharp = 0.04 + 0.03 * min(1, progress / 0.3)
        with torch.no_grad():
            scores = teacher(x)
            target = ((scores - centre) / sharp).softmax(-1)
        logs = (student(x) / 0.1).log_softmax(-1)
        loss = -(target * logs).sum(-1).mean()                              # every pair of views gives the same number
        assert run.history[step]["dino"] == pytest.approx(loss.item(), rel=1e-4)
        adam.zero_grad()
        loss.backward()
        if progress < 0.5:
            student[1].prototypes.grad = None
        for group in adam.param_groups:
            group["lr"] = rate
        adam.param_groups[0]["weight_decay"] = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * progress)) / 2
        adam.step()
        momentum = 1 - (1 - 0.996) * (1 + math.cos(math.pi * progress)) / 2
        with torch.no_grad():
            for mine, yours in zip(teacher.parameters(), student.parameters()):
                mine.copy_(momentum * mine + (1 - momentum) * yours)
            centre = 0.9 * centre + 0.1 * scores.mean(0)
        now = seen[step]
        for a, b in zip(now["student"].parameters(), student.parameters()):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)
        for a, b in zip(now["teacher"].parameters(), teacher.parameters()):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(now["centre"], centre, atol=1e-5, rtol=1e-4)


def test_prototypes_stay_through_the_first_share_of_the_loop():
    _, seen, _ = watched(small(), network())
    protos = [s["student"][1].prototypes for s in seen]
    assert torch.equal(protos[0], protos[1]), "not even weight decay moves them"
    assert not torch.equal(protos[1], protos[2])
    first = [s["student"][1].mlp[0].weight for s in seen]
    assert not torch.equal(first[0], first[1])


def test_what_is_made_is_the_teacher_s_body_without_a_classifier():
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    made, seen, _ = watched(small(), student)
    x = images().tensors[0]
    assert made(x).shape == (6, 8) and not made.training
    assert torch.equal(made(x), seen[-1]["teacher"].model[0](x))
    assert not torch.allclose(made(x), seen[-1]["student"][0](x))


def test_crops_differ_and_small_ones_may_have_another_size():
    student = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = small(border=0.5, least=0.2, large_size=4, small_size=3, colour=1.0, flip=0.5)(Run(), student=student, data=images())
    assert made(torch.rand(2, 1, 5, 5)).isfinite().all()


def test_colour_pictures_go_through_all_of_byol_s_changes():
    x = torch.rand(2, 3, 3, 8, 8)
    torch.manual_seed(0)
    seen = DINO().look(x)
    assert seen.shape == x.shape and not torch.equal(seen, x) and seen.min() >= 0 and seen.max() <= 1
    assert torch.equal(DINO(colour=0.0, flip=0.0).look(x), x) or torch.allclose(DINO(colour=0.0, flip=0.0).look(x), x, atol=1e-6)


def test_parts_of_a_batch_have_another_centre_so_accumulation_is_refused():
    with pytest.raises(Refused, match="accumulate"):
        small()(Run(accumulate=2), student=network(), data=images())


def test_weight_decay_may_follow_progress():
    """The part of the optimiser that DINO needs: decay alone, no gradient but of size 0."""
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    opt = optim.adamw(w, b, lr=0.1, decay=cosine(0.0, 1.0), shares={w: 0.5})
    want = 1.0
    for progress in (0.0, 0.5, 1.0):
        w.grad, b.grad = torch.zeros(2, 2), torch.zeros(2)
        opt.step(progress)
        want *= 1 - 0.05 * (1 - (1 + math.cos(math.pi * progress)) / 2)
        torch.testing.assert_close(w.detach(), torch.full((2, 2), want))
    assert torch.equal(b.detach(), torch.ones(2))


# --- judges ----------------------------------------------------------------------------------------------------------

def test_knn_is_the_weighted_vote_written_out():
    g = torch.Generator().manual_seed(0)
    known, labels = torch.randn(30, 5, generator=g), torch.randint(0, 4, (30,), generator=g)
    asked, truth = torch.randn(17, 5, generator=g), torch.randint(0, 4, (17,), generator=g)
    right = 0
    for x, y in zip(asked, truth):
        near = sorted(((F.cosine_similarity(x, k, dim=0).item(), c.item()) for k, c in zip(known, labels)), reverse=True)[:6]
        votes = [sum(math.exp(s / 0.07) for s, c in near if c == name) for name in range(4)]
        right += votes.index(max(votes)) == y
    for batch in (1024, 5):
        assert knn((known, labels), (asked, truth), k=6, batch=batch) == pytest.approx(100 * right / 17)


def test_knn_of_the_known_is_right_and_scale_does_not_matter():
    torch.manual_seed(0)
    x, y = torch.randn(20, 6), torch.arange(20) % 5
    assert knn((x, y), (x, y), k=1) == 100.0
    assert knn((x, y), (3 * x, y), k=1) == 100.0
    assert knn((x, y), (x, y), k=500, temperature=0.001) == 100.0          # more than there are


def test_linear_probe_and_features():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 3, generator=g), torch.randint(0, 2, (200,), generator=g)
    x[:, 0] += 8 * y
    assert linear_probe((x[:100], y[:100]), (x[100:], y[100:])) == 100.0
    assert linear_probe((x[:100, 1:], y[:100]), (x[100:, 1:], y[100:])) < 75
    net = nn.Conv2d(1, 2, 3)
    seen, labels = features(net, TensorDataset(torch.rand(4, 1, 5, 5), torch.arange(4)))
    assert seen.shape == (4, 18) and torch.equal(labels, torch.arange(4)) and not seen.requires_grad
