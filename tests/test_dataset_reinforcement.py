"""Dataset reinforcement: stored views come again with what was said of them; the teacher is asked once; mixes are of views."""

import copy
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom.batches import batches
from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached, Ensemble
from stillroom.recipes.classification.dataset_reinforcement import DatasetReinforcement, reinforce, trial
from stillroom.run import Run
from stillroom.store import Views, write
from stillroom.store.regions import Mixed, Several, asked, crop


@pytest.fixture
def ground():
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(24, 1, 8, 8), torch.randint(0, 10, (24,)))
    return mlp(hidden=16), cnn(width=4).eval(), cnn(width=6).eval(), data


def short(**fields):
    usual = {"samples": 3, "codec": "top5", "ops": 0, "batch": 8, "steps": 3, "lr": 0.1, "raw": 0.0}
    return DatasetReinforcement(**{**usual, **fields})


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.parameters()])


# --- views ------------------------------------------------------------------------------------------------------------------

WITHOUT = pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
PROGRAM = """
import torch
from stillroom.recipes.classification.dataset_reinforcement import DatasetReinforcement
from torch.utils.data import TensorDataset
torch.manual_seed(0)
data = TensorDataset(torch.rand(6, 3, 16, 16), torch.arange(6))
for ops in OPS:
    seen = DatasetReinforcement(samples=4, ops=ops, erase=0.5, mixup=0.5, cutmix=0.5).views(data, 5)
    told = {i: float(seen[i][0].double().sum()) for i in ORDER}
    print([told[i] for i in range(24)])
"""


def test_views_are_the_same_in_another_process_and_another_order(capsys):
    program = PROGRAM.replace("OPS", "(0, 2)" if find_spec("torchvision") else "(0,)")
    there = subprocess.run([sys.executable, "-c", program.replace("ORDER", "range(23, -1, -1)")], capture_output=True, text=True,
                           check=True).stdout
    exec(program.replace("ORDER", "range(24)"), {})
    assert capsys.readouterr().out == there


@WITHOUT
def test_a_view_with_randaugment_and_erasing_is_an_image_again():
    torch.manual_seed(0)
    x = torch.rand(3, 16, 16)
    made = [reinforce(x, 0.5, 0.5, 2, 9, 0.25) for _ in range(20)]
    assert all(v.shape == x.shape and v.isfinite().all() and v.min() >= 0 and v.max() <= 1 for v in made)
    assert len({v.sum().item() for v in made}) == 20


def test_mixed_views_keep_at_least_half_of_their_own_by_mixup_and_paste_the_others_own_view(ground):
    data = TensorDataset(torch.arange(24.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), torch.arange(24))
    seen = Views(data, lambda x: x + torch.rand(()) / 100, 3, 0)
    values = torch.stack([seen[i][0][0, 0, 0] for i in range(72)])
    for i in range(72):
        own, (x, y) = values[i], Mixed(seen, 1.0, 0.0)[i]
        others = values[i - i % 24 : i - i % 24 + 24]
        assert torch.equal(Mixed(seen, 1.0, 0.0)[i][0], x) and y == UNLABELLED and (x == x[0, 0, 0]).all()
        assert (x[0, 0, 0] - own).abs() <= (others - own).abs().max() / 2 + 1e-5
        x, y = Mixed(seen, 0.0, 1.0)[i]
        pasted = x[x != own]
        if len(pasted):
            assert (pasted == pasted[0]).all() and (pasted[0] == others).any(), "the other as it came in its own view"
        x, y = Mixed(seen, 0.0, 0.0)[i]
        assert (x == own).all() and y == i % 24
    both = Mixed(seen, 0.5, 0.5)
    kinds = [int(both[i][1] == UNLABELLED) for i in range(72)]
    assert 40 < sum(kinds) < 66, "three in four are mixed in one way or the other, or both"


# --- the store, and what is made of it ----------------------------------------------------------------------------------------

def test_what_was_said_sums_to_one_keeps_the_likeliest_and_is_exact_when_all_are_kept(ground):
    _, first, second, data = ground
    both = Ensemble([first, second])
    seen = short().views(data, 0)
    x = torch.stack([seen[i][0] for i in range(72)])
    x.sample_ids = torch.arange(72)
    with torch.no_grad():
        p = (first(x).double().softmax(-1) + second(x).double().softmax(-1)) / 2
    exact, sparse = (asked(None, both, seen, codec)(x).double().softmax(-1) for codec in ("fp32", "top5"))
    assert torch.allclose(exact, p, atol=1e-6)
    assert torch.allclose(sparse.sum(1), torch.ones(72).double())
    top, which = p.topk(5)
    assert torch.allclose(sparse.gather(1, which), top, rtol=0.01)
    assert torch.equal(sparse.topk(5).indices.sort().values, which.sort().values)


def test_the_step_descends_kl_from_what_was_said_of_this_view(ground):
    student, first, second, data = ground
    run = Run()
    made = short(codec="fp32", batch=24, steps=1, lr=1.0, warmup=0.0, decay=0.0)(
        run, student=copy.deepcopy(student), teacher=first, others=[second], data=data)
    (x, _, _), = batches(Several(short().views(data, 0), 1), 24, start=0, count=1, seed=(0, "loop"))
    net, loss = copy.deepcopy(student).double(), 0.0
    for image in x[:, 0]:
        q = (first(image[None])[0].double().softmax(0) + second(image[None])[0].double().softmax(0)).detach() / 2
        loss = loss + (q * (q.log() - net(image[None].double())[0].log_softmax(0))).sum() / 24
    assert run.history[0]["soft"] == pytest.approx(loss.item(), rel=1e-4)
    for p, q, g in zip(made.parameters(), net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
        assert torch.allclose(p.double(), q - g, atol=1e-5)


def test_one_plain_view_of_each_image_is_distillation_on_the_images(ground):
    student, teacher, _, data = ground
    made = short(samples=1, least=1.0, flip=0.0, erase=0.0, codec="fp32", batch=24, steps=1, lr=1.0, warmup=0.0, decay=0.0)(
        Run(), student=copy.deepcopy(student), teacher=teacher, data=data)
    x = data.tensors[0]
    loss = F.kl_div(student(x).log_softmax(-1), teacher(x).softmax(-1).detach(), reduction="batchmean")
    for p, q, g in zip(made.parameters(), student.parameters(), torch.autograd.grad(loss, list(student.parameters()))):
        assert torch.allclose(p, q - g, atol=1e-4)


def test_a_raw_image_is_learnt_from_its_label_and_one_without_label_from_nothing(ground):
    student, teacher, _, data = ground
    run = Run()
    short(raw=0.4, least=0.5, codec="fp32", batch=24, steps=1)(run, student=copy.deepcopy(student), teacher=teacher, data=data)
    some, loss = Several(short(least=0.5).views(data, 0), 1, raw=0.4, usual=partial(crop, scale=(0.5, 1.0))), 0.0
    (x, y, at), = batches(some, 24, start=0, count=1, seed=(0, "loop"))
    assert 3 < (at < 0).sum() < 18
    for image, label, number in zip(x[:, 0], y, at[:, 0]):
        p = student(image[None])[0].double().log_softmax(0)
        q = teacher(image[None])[0].double().softmax(0)
        loss = loss - (p[label] if number < 0 else (q * (p - q.log())).sum()).item() / 24
    assert run.history[0]["soft"] == pytest.approx(loss, rel=1e-4)
    nothing = short(raw=1.0, steps=2, decay=0.0)(Run(), student=copy.deepcopy(student), teacher=teacher,
                                                 data=TensorDataset(data.tensors[0], torch.full((24,), UNLABELLED)))
    assert torch.equal(weights(nothing), weights(student))


def test_training_never_calls_the_teacher(ground, tmp_path):
    student, teacher, _, data = ground
    seen = short().views(data, 0)
    stored = Cached(write(tmp_path / "labels", teacher, seen, codec="top5"))
    wanted = short()(Run(), student=copy.deepcopy(student), teacher=teacher, data=data)
    teacher.forward = None                                                   # it is gone
    made = short()(Run(), student=copy.deepcopy(student), teacher=stored, data=seen)
    assert torch.equal(weights(made), weights(wanted)), "and the second student of the same store is the first again"


def test_mixed_views_are_stored_and_found_again(ground):
    student, teacher, _, data = ground
    made = [short(mixup=0.5, cutmix=0.5)(Run(), student=copy.deepcopy(student), teacher=teacher, data=data) for _ in range(2)]
    assert torch.equal(weights(made[0]), weights(made[1]))               # and no row was refused as that of another input


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_it_is_worth_two_points_over_wrong_labels_and_about_what_live_teachers_give(seed):
    method, cast = trial(seed)
    ours = cast.accuracy(method(Run(seed=seed), **cast.actors))
    assert ours > cast.accuracy(cast.labels()) + 2
    assert abs(ours - cast.accuracy(cast.live())) < 1.5
