"""FerKD: crops come again as the teacher saw them, its confidence says which way each goes, SelfMix stays in an image."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom.batches import batches, tagged
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts import views
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.recipes.classification.ferkd import FerKD, trial
from stillroom.run import Run
from stillroom.store import Views, write
from stillroom.store.regions import Several, asked, box, confidence, crop


@pytest.fixture
def ground():
    torch.manual_seed(0)
    return mlp(hidden=16), cnn(width=4).eval(), TensorDataset(torch.rand(24, 1, 8, 8), torch.randint(0, 10, (24,)))


def views_of(data, count=5):
    return Views(data, partial(crop, scale=(0.2, 1.0)), count, 0)


# --- views ------------------------------------------------------------------------------------------------------------------

def test_a_crop_is_a_box_of_whole_pixels_resized():
    torch.manual_seed(0)
    x = torch.rand(3, 12, 9)
    boxes = [box(12, 9, (0.2, 0.8), (3 / 4, 4 / 3)) for _ in range(300)]
    assert all(min(top, left) >= 0 < min(h, w) and top + h <= 12 and left + w <= 9 for top, left, h, w in boxes)
    assert 0.15 < min(h * w for _, _, h, w in boxes) / 108 < 0.3 and max(h * w for _, _, h, w in boxes) / 108 < 0.9
    candidates = [F.interpolate(x[None, :, top:top + h, left:left + w], (6, 6), mode="bilinear", antialias=True)[0]
                  for top in range(12) for left in range(9) for h in range(1, 13 - top) for w in range(1, 10 - left)]
    for flip in (0.0, 1.0):
        made = crop(x, (0.2, 0.8), 6, flip)
        assert any(torch.equal(made, c.flip(-1) if flip else c) for c in candidates)
    assert box(4, 40, (1.0, 1.0), (1.0, 1.0)) == (0, 0, 4, 40), "a box that does not fit: the whole image"


def test_a_crop_comes_again_bit_for_bit_in_any_order(ground):
    seen = views_of(ground[2])
    first = [seen[i][0] for i in range(len(seen))]
    torch.rand(3)
    assert all(torch.equal(seen[i][0], first[i]) for i in (100, 3, 55, 3, 0))
    assert len({tuple(x.flatten().tolist()) for x in first}) > 100


def test_a_few_views_of_each_sample_are_drawn_from_those_that_are_kept(ground):
    data = ground[2]
    seen = views_of(data)
    kept = torch.rand(5, 24) < 0.6
    kept[:, 7], kept[:, 8] = False, torch.tensor([False, True, False, False, False])
    some = Several(seen, 3, kept.flatten())
    assert len(some) == int(kept.any(0).sum()) and 7 not in some.samples
    x, y, at = some[some.samples.tolist().index(8)]
    assert at.tolist() == [32, 32, 32] and x.shape == (3, 1, 8, 8)
    drawn = set()
    for x, y, at in batches(some, 6, start=0, count=60, seed=(0,)):
        place = at % 24
        assert (place == place[:, :1]).all() and kept.flatten()[at].all() and torch.equal(y, data.tensors[1][place[:, 0]])
        drawn |= set(at.flatten().tolist())
        assert torch.equal(x[0, 1], seen[int(at[0, 1])][0])
    assert drawn == set(kept.flatten().nonzero().flatten().tolist())
    with pytest.raises(Refused, match="no view is left"):
        Several(seen, 1, torch.zeros(120, dtype=torch.bool))


def test_the_teacher_is_asked_once_and_gives_its_top_classes_and_an_even_rest(ground, tmp_path):
    _, teacher, data = ground
    seen = views_of(data)
    with torch.no_grad():
        p = teacher(torch.stack([seen[i][0] for i in range(120)])).softmax(-1)
    memory, disk = asked(None, teacher, seen, "top3"), asked(tmp_path / "labels", teacher, seen, "top3")
    at = torch.tensor([7, 7 + 24, 100])
    x = torch.stack([seen[int(i)][0] for i in at])
    told = memory(tagged(x, at)).softmax(-1)
    assert torch.equal(told, disk(tagged(x, at)).softmax(-1))
    top, which = p[at].topk(3)
    assert torch.allclose(told.gather(1, which), top, rtol=0.02) and torch.allclose(told.sum(1), torch.ones(3))
    rest = told.scatter(1, which, 0.0)
    assert torch.allclose(rest.max(1).values, (1 - top.sum(1)) / 7, rtol=0.02)
    assert torch.allclose(confidence(memory), p.amax(1), rtol=0.02)
    assert asked(None, disk, seen, "top3") is disk
    home = memory.home.name
    del memory
    import os
    assert not os.path.exists(home), "what was asked in memory leaves nothing behind"


# --- labels -------------------------------------------------------------------------------------------------------------------

def test_the_routes_of_four_crops(ground):
    method = FerKD(low=0.15, middle=0.3, easy=0.9)
    soft = torch.tensor([[s] + [(1 - s) / 9] * 9 for s in (0.1, 0.2, 0.5, 0.99)])
    s = soft.amax(-1)
    assert ((s >= method.low) & (s <= method.easy)).tolist() == [False, True, True, False]
    y = torch.tensor([3, 3, 3, 3])
    told = method.adapted(soft, y)
    wanted = torch.full((10,), 0.1 / 9)
    wanted[3] = 0.9
    assert torch.allclose(told[1], wanted) and torch.equal(told[2:], soft[2:])
    assert torch.equal(method.adapted(soft, torch.full((4,), UNLABELLED)), soft), "without a label the teacher is believed"
    assert torch.equal(FerKD(low=0.0, middle=0.0).adapted(soft, y), soft), "FKD"


def test_selfmix_stays_in_the_image_and_mixes_labels_by_the_same_share():
    torch.manual_seed(0)
    own = torch.arange(6.0).repeat_interleave(4)                             # each image has a grey value of its own
    soft = F.one_hot(torch.arange(24) % 4, 4).float()                        # each crop of it a label of its own
    same, mixed = FerKD().selfmix(own.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), soft)
    assert torch.allclose(same[:, 0, 0, 0], own, atol=1e-6), "alike crops of one image mix to themselves"
    assert torch.allclose(mixed.sum(1), torch.ones(24))
    marks = (torch.arange(24) % 4).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    for fields in ({"mixup": 0.0}, {"cutmix": 0.0}):
        for _ in range(12):
            x, labels = FerKD(**fields).selfmix(marks, soft)
            for i in range(24):
                step = (i + 1) % 4 - i % 4                                   # from its own mark to that of the next crop
                assert labels[i, i % 4] == pytest.approx(1 - float(((x[i] - i % 4) / step).mean()), abs=1e-5)


def test_the_step_descends_the_cross_entropy_with_what_the_crops_were_told(ground):
    student, teacher, data = ground
    seen = Views(data, partial(crop, scale=(0.08, 1.0), size=0, flip=0.5), 5, 0)
    s = confidence(asked(None, teacher, seen, "fp32")).sort().values[40:80]
    middle = (s[:-1] + s[1:])[s.diff().argmax()].item() / 2                  # in a gap, where rounding does not matter
    method = FerKD(low=0.0, middle=middle, mixup=0.0, cutmix=0.0, crops=5, each=2, codec="fp32", batch=24, steps=1, lr=1.0,
                   decay=0.0)
    run = Run()
    made = method(run, student=copy.deepcopy(student), teacher=teacher, data=data)
    (x, y, at), = batches(Several(seen, 2), 24, start=0, count=1, seed=(0, "loop"))
    net, loss, hard = copy.deepcopy(student).double(), 0.0, 0
    for image, label, numbers in zip(x, y, at):
        for view, j in zip(image, numbers):
            assert torch.equal(view, seen[int(j)][0])
            q = teacher(view[None])[0].double().softmax(0).detach()
            if q.max() < middle:
                hard += 1
                q = torch.full((10,), 0.1 / 9).double()
                q[label] = 0.9
            loss = loss - (q * net(view[None].double())[0].log_softmax(0)).sum() / 48
    assert 0 < hard < 48 and run.history[0]["soft"] == pytest.approx(loss.item(), rel=1e-5)
    for p, q, g in zip(made.parameters(), net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
        assert torch.allclose(p.double(), q - g, atol=1e-5)


def test_a_store_that_was_written_before_gives_the_same_student(ground, tmp_path):
    student, teacher, data = ground
    seen = Views(data, partial(crop, scale=(0.08, 1.0), size=0, flip=0.5), 5, 0)
    stored = Cached(write(tmp_path / "before", teacher, seen, codec="top5"))
    method = FerKD(low=0.0, crops=5, batch=8, steps=3, lr=0.1)
    made = [method(Run(), student=copy.deepcopy(student), teacher=who, data=what)
            for who, what in ((teacher, data), (stored, seen))]
    method(Run(tmp_path / "run"), student=copy.deepcopy(student), teacher=teacher, data=data)
    assert (tmp_path / "run" / "labels" / "store.json").exists()
    assert all(torch.equal(p, q) for p, q in zip(made[0].parameters(), made[1].parameters()))


def test_other_rows_to_mix_with():
    x, soft = torch.rand(4, 1, 8, 8), torch.eye(4)
    for mix in (views.mixup, views.cutmix):
        torch.manual_seed(1)
        same = mix(x, soft, 1.0, torch.arange(4))
        assert torch.allclose(same[0], x) and torch.allclose(same[1], soft)


@pytest.mark.slow
def test_a_tenth_at_most_is_dropped_and_less_than_half_of_the_crops_learn_anything_but_the_teachers_word():
    method, cast = trial(0)
    seen = Views(cast.actors["data"], partial(crop, scale=(method.least, 1.0), flip=0.0), method.crops, 0)
    s = confidence(asked(None, cast.actors["teacher"], seen, method.codec))
    dropped, kept = (s < method.low) | (s > method.easy), s >= method.middle
    assert 0.03 < dropped.float().mean() < 0.1 and kept.float().mean() > 0.55
