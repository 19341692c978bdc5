"""ACAM-KD: masks, masked distances and their overlap against the formulas written out; segmenters; judges of segmentation."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import _compat
from stillroom.arenas import streets as arena
from stillroom.batches import batches, to_device
from stillroom.errors import Refused
from stillroom.measure.detection import Boxes
from stillroom.measure.segmentation import confusion, iou_by_class, mean_iou, pixel_accuracy, segmented
from stillroom.models.detector import Pyramid
from stillroom.models.segmenter import ConvEncoder, Segmenter, segmenter
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.masks import Level, MapAttention, MaskBank, masked_mean, overlap
from stillroom.parts.schedules import linear
from stillroom.parts.taps import Tap
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.recipes.dense.acam_kd import ACAMKD, maps, task
from stillroom.run import Run

needs_torchvision = pytest.mark.skipif(_compat.find_spec("torchvision") is None, reason="torchvision is not installed")


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(width=6, teacher=6, masks=3, seed=0, keys=4096):
    torch.manual_seed(seed)
    return Level(width, teacher, masks, keys).double()


# --- masks and distances ---------------------------------------------------------------------------------------------

def naive(one, s, t, square):
    """Sections 3.2 and 3.3 for one sample, element by element: maps [channels, positions]."""
    wq, wk, wv = (layer.weight[:, :, 0, 0] for layer in (one.fuse.q, one.fuse.k, one.fuse.v))
    attention = ((wq @ t).T @ (wk @ s) / (t.shape[0] / 2) ** 0.5).softmax(1)                # teacher's positions × student's
    fused = wv @ s @ attention.T
    v = fused.mean(1)
    channels = [torch.sigmoid(m * v) for m in one.bank.of_channels[:, 0]]
    places = [torch.sigmoid(m @ fused) for m in one.bank.of_places]
    count, size = t.shape
    by_channel = by_place = 0.0
    for mc, mp in zip(channels, places, strict=True):
        for k in range(count):
            for p in range(size):
                error = (t[k, p] - s[k, p]) ** 2
                by_channel = by_channel + (mc[k] ** 2 if square else mc[k]) * error / (size * mc.sum())
                by_place = by_place + (mp[p] ** 2 if square else mp[p]) * error / (count * mp.sum())

    def dice(masks):
        pairs = [(a, b) for i, a in enumerate(masks) for j, b in enumerate(masks) if i != j]
        return 2 * sum(a @ b for a, b in pairs) / sum(a @ a + b @ b for a, b in pairs)
    return by_channel / len(channels), by_place / len(places), dice(channels) + dice(places)


@pytest.mark.parametrize("square", [True, False])
def test_the_three_losses_are_those_of_the_paper_element_by_element(square):
    one, s, t = level(), some(2, 6, 3, 4), some(2, 6, 3, 4, seed=1)
    ours = one(s, t, "both", square)
    each = [naive(one, a.flatten(1), b.flatten(1), square) for a, b in zip(s, t, strict=True)]
    for got, *wanted in zip(ours, *each, strict=True):
        assert torch.allclose(got.double(), sum(wanted) / 2, atol=1e-6)


def test_the_teacher_asks_and_the_student_answers():
    one, s, t = level(), some(1, 6, 3, 4), some(1, 6, 2, 2, seed=1)
    fused = one.fuse(t, s)
    assert fused.shape == t.shape
    weights = (one.fuse.q(t).flatten(2).mT @ one.fuse.k(s).flatten(2) / 3**0.5).softmax(-1)         # [1, 4, 12]
    assert torch.allclose(weights.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    assert torch.allclose(fused.flatten(2), (weights @ one.fuse.v(s).flatten(2).mT).mT)
    order = torch.randperm(12)
    moved = s.flatten(2)[:, :, order].unflatten(2, (3, 4))
    assert torch.allclose(one.fuse(t, moved), fused)                                                # where it is, is nothing
    same = one.fuse(t, torch.full_like(s, 0.5))
    assert torch.allclose(same, one.fuse.v(torch.full_like(t, 0.5)))                                # rows of weights sum to 1


def test_a_large_map_is_pooled_before_it_is_looked_at():
    torch.manual_seed(0)
    near, far = MapAttention(4, keys=16), MapAttention(4, keys=16)
    far.load_state_dict(near.state_dict())
    s = torch.randn(1, 4, 4, 4)
    assert torch.allclose(near(s, s), far(s, F.interpolate(s, scale_factor=2)), atol=1e-6)          # 64 positions, 16 after it


@pytest.mark.parametrize("square", [True, False])
def test_equal_maps_cost_nothing_and_constant_masks_are_half_or_all_of_the_mean_square(square):
    one, s, t = level(), some(2, 6, 3, 4), some(2, 6, 3, 4, seed=1)
    assert [x.item() for x in one(t, t, "both", square)[:2]] == [0.0, 0.0]
    channels, places, alike = one(s, t, "nothing", square)
    wanted = F.mse_loss(s, t) * (0.5 if square else 1.0)
    assert torch.allclose(torch.stack([channels, places]).double(), wanted.expand(2), rtol=1e-6)
    assert alike.item() == pytest.approx(2)


@pytest.mark.parametrize("where", [1, 2, 3])
def test_tiling_channels_or_positions_changes_nothing(where):
    """On given masks: twice the channels, rows or columns."""
    one, s, t = level(), some(2, 6, 3, 4), some(2, 6, 3, 4, seed=1)
    channels, places = one.seen(s, t, "both")
    places = places.unflatten(2, (3, 4))
    error = (s - t).square()

    def loss(error, channels, places):
        return masked_mean(error.flatten(2).mean(2), channels), masked_mean(error.mean(1).flatten(1), places.flatten(2))
    twice = loss(torch.cat([error, error], where), torch.cat([channels, channels], 2) if where == 1 else channels,
                 places if where == 1 else torch.cat([places, places], where))
    for got, wanted in zip(twice, loss(error, channels, places), strict=True):
        assert got.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_only_the_plain_mask_has_nothing_to_win_by_shrinking():
    """What the mask's mass divides out; the square of a mask that shrinks goes to 0 with it."""
    error, mask = some(2, 5).square(), some(2, 3, 5, seed=1).sigmoid()
    plain, square = (torch.stack([masked_mean(error, mask * share, way) for share in (1.0, 0.1)]) for way in (False, True))
    assert plain[1].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert square[1].item() == pytest.approx(0.1 * square[0].item(), rel=1e-6)


def test_overlap_is_one_for_the_same_masks_and_none_for_disjoint_ones():
    mask = some(2, 1, 8).sigmoid()
    assert overlap(mask.expand(2, 4, 8)).item() == pytest.approx(1)
    assert overlap(torch.eye(4).expand(2, 4, 4)).item() == 0
    assert overlap(mask).item() == 0
    assert overlap(torch.tensor([[[1.0, 1, 0, 0], [0, 1, 1, 1]]])).item() == pytest.approx(2 / 5)    # 2·1 / (2 + 3)


def test_gradients_reach_all_that_learns_and_nothing_of_the_teacher():
    one, s, t = level(5), some(1, 5, 3, 4).requires_grad_(), some(1, 6, 3, 4, seed=1).requires_grad_()
    channels, places, alike = one(s, t.detach(), "both", True)
    (channels + places + alike).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (*one.parameters(), s)) and t.grad is None


@pytest.mark.parametrize("sees", ["both", "reversed", "teacher"])
def test_whom_the_masks_follow(sees):
    one, s, t = level(), some(1, 6, 3, 4), some(1, 6, 3, 4, seed=1)
    before = one.seen(s, t, sees)[1]
    of_student, of_teacher = one.seen(s + 1, t, sees)[1], one.seen(s, t * 2, sees)[1]
    assert not torch.allclose(before, of_teacher)
    assert torch.allclose(before, of_student) == (sees == "teacher")
    wanted = {"both": one.fuse(t, s), "reversed": one.fuse(s, t), "teacher": t}[sees]
    assert torch.allclose(before, one.bank(wanted)[1])


def test_a_bank_gives_its_masks_by_its_selectors():
    bank = MaskBank(3, 4).double()
    x = some(2, 4, 2, 5)
    channels, places = bank(x)
    assert channels.shape == (2, 3, 4) and places.shape == (2, 3, 10)
    assert torch.allclose(channels[1, 2], torch.sigmoid(bank.of_channels[2] * x[1].mean((1, 2))))
    assert torch.allclose(places[1, 2], torch.sigmoid((bank.of_places[2][:, None, None] * x[1]).sum(0).flatten()))


@pytest.mark.parametrize("seed", range(3))
def test_masks_stay_different_because_their_overlap_costs(seed):
    """Selectors that follow the loss on fixed maps: with the term, and without, where all of them flee to the least error."""
    found = {}
    x, error = some(4, 8, 5, 5, seed=seed), some(4, 25, seed=seed + 10).square()
    for weight in (1.0, 0.0):
        torch.manual_seed(seed)
        bank = MaskBank(4, 8).double()
        opt = torch.optim.Adam(bank.parameters(), lr=0.05)
        for _ in range(150):
            channels, places = bank(x)
            loss = masked_mean(error, places, squared=False) + weight * (overlap(channels) + overlap(places))
            opt.zero_grad()
            loss.backward()
            opt.step()
        found[weight] = overlap(bank(x)[1]).item()
    assert found[1.0] < 0.6 and found[1.0] < found[0.0] - 0.2


# --- the recipe ------------------------------------------------------------------------------------------------------

def data(n=4, side=12, classes=3):
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 3, side, side, generator=draw), torch.randint(0, classes, (n, side, side), generator=draw))


def pair(classes=3):
    torch.manual_seed(0)
    return segmenter(classes, widths=(4, 8), width=4), segmenter(classes, widths=(4, 8), width=8)


def test_it_takes_several_layers_and_names_of_the_teachers_own():
    student, teacher = pair()
    before = copy.deepcopy(teacher).state_dict()
    method = ACAMKD(layers=("smooth.0", "smooth.1"), layers_teacher=("smooth.1", "fused"), masks=2, batch=2, steps=2)
    made = method(Run(), student=student, teacher=teacher, data=data())
    assert made is student and all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_without_masks_and_layers_it_is_mean_squared_error_of_the_logit_maps():
    student, teacher = pair()
    twin, run = copy.deepcopy(student), Run()
    x, y = data().tensors
    method = ACAMKD(sees="nothing", square_mask=False, alpha=0.5, diversity=0.0, batch=4, steps=1)
    method(run, student=student, teacher=teacher, data=data())
    mse = F.mse_loss(twin(x), teacher(x)).item()
    line = run.history[-1]
    assert line["channels"] + line["places"] == pytest.approx(mse, rel=1e-4)
    assert line["task"] == pytest.approx(F.cross_entropy(twin(x), y).item(), rel=1e-4)


def test_pixels_and_images_without_a_class_count_nothing_in_the_task():
    logits, y = some(2, 3, 4, 4).float(), data(2, 4).tensors[1]
    y[0, :2] = UNLABELLED
    known = F.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="sum") / 32
    assert torch.allclose(losses.labels(logits, y), known)
    halves = (losses.labels(logits[:1], y[:1]) + losses.labels(logits[1:], y[1:])) / 2
    assert torch.allclose(halves, known) and losses.labels(logits, torch.full_like(y, UNLABELLED)) == 0


def test_the_student_inherits_what_it_is_told_to():
    _, teacher = pair()
    student = segmenter(3, widths=(4, 8), width=8)
    method = ACAMKD(inherit=("head", "smooth"), lr=0.0, decay=0.0, masks=2, batch=2, steps=1)
    method(Run(), student=student, teacher=teacher, data=data())
    assert torch.equal(student.head.weight, teacher.head.weight) and torch.equal(student.smooth[1].bias, teacher.smooth[1].bias)
    assert not torch.equal(student.lateral[0].weight, teacher.lateral[0].weight)


@pytest.mark.parametrize("fields, word", [({"sees": "all"}, "none of"), ({"layers": ("nowhere",)}, "nowhere")])
def test_what_cannot_be_is_refused(fields, word):
    student, teacher = pair()
    with pytest.raises(Refused, match=word):
        ACAMKD(**fields, batch=2, steps=1)(Run(), student=student, teacher=teacher, data=data())


def test_a_classifier_is_no_segmenter():
    with pytest.raises(Refused, match="no map"):
        maps(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (), torch.rand(1, 3, 2, 2))


@needs_torchvision
def test_segmenters_of_torchvision_learn_too():
    _compat.package("torchvision")
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    student, (_, teacher) = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3), pair()
    with Run() as run:
        ACAMKD(masks=2, batch=2, steps=1, keys=64)(run, student=student, teacher=teacher, data=data(2, 64))
    assert {"task", "channels", "places", "overlap"} <= run.history[-1].keys()


# --- detectors -------------------------------------------------------------------------------------------------------

def boxed(n=4):
    """Images with one box or two; labels that every kind of detector can count."""
    draw, boxes = torch.Generator().manual_seed(0), torch.tensor([[4.0, 4, 16, 16], [18, 14, 30, 28]])
    labels = torch.tensor([1, 2])
    return [(torch.rand(3, 32, 32, generator=draw), Boxes(boxes[: 1 + i % 2], labels[: 1 + i % 2])) for i in range(n)]


def detector(kind, widths=(4, 8, 8), seed=0):
    _compat.package("torchvision")
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(seed)
    anchors, size = AnchorGenerator(((10, 14), (20, 28)), ((1.0,),) * 2), {"min_size": 32, "max_size": 32}
    if kind == "one stage":
        return detection.RetinaNet(Pyramid(widths, 8), 3, anchor_generator=anchors, **size)
    align = MultiScaleRoIAlign(["0", "1"], 3, 2)
    return detection.FasterRCNN(Pyramid(widths, 8), 3, rpn_anchor_generator=anchors, box_roi_pool=align, **size)


@dataclass(frozen=True, kw_only=True)
class Alone(Recipe):
    """A detector taught as torchvision's are."""

    steps: int = 3

    def distill(self, run: Run, student: nn.Module, data: list) -> nn.Module:
        run.keep(student=student, opt=(opt := optim.sgd(student, lr=linear(0.02), decay=1e-4, clip=35.0)))
        for x, y in run.loop(data, batch=2, steps=self.steps):
            run.update(opt, **student(x, [{"boxes": on.boxes, "labels": on.labels} for on in y]))
        return student


@needs_torchvision
@pytest.mark.parametrize("kind", ["one stage", "two stages"])
def test_without_a_comparison_a_detector_learns_as_it_does_alone(kind):
    method = ACAMKD(masks=2, sees="nothing", alpha=0.0, diversity=0.0, batch=2, steps=3)
    run, student = Run(), detector(kind)
    ours = method(run, student=student, teacher=detector(kind, (8, 8, 8), 1), data=boxed())
    fresh, alone = detector(kind), Alone()(Run(), student=detector(kind), data=boxed())
    moved = 0
    for one, other, old in zip(ours.parameters(), alone.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
        moved += (one - old).abs().sum().item()
    assert moved > 0 and run.history[-1]["task"] > 0


@needs_torchvision
@pytest.mark.parametrize("kind", ["one stage", "two stages"])
def test_every_level_of_a_pyramid_teaches_and_the_teacher_learns_nothing(kind):
    student, teacher = detector(kind), Frozen(detector(kind, (8, 8, 8), 1))
    x, y = torch.stack([image for image, _ in boxed()]), [on.known() for _, on in boxed()]
    said, learnt = maps(student, ("backbone",), x, y)
    _, taught = maps(teacher, ("backbone",), x)
    assert [m.shape[1:] for m in learnt] == [m.shape[1:] for m in taught] == [(8, 8, 8), (8, 4, 4)]
    for n, (s, t) in enumerate(zip(learnt, taught, strict=True)):
        one = Level(8, 8, 2, 4096)
        student.zero_grad()
        sum(one(s, t, "both", True)).backward(retain_graph=True)
        grads = [block[0].weight.grad for block in student.backbone.fpn.layer_blocks]
        assert grads[n].abs().sum() > 0 and grads[1 - n] is None             # each layer of the pyramid is of one level
        assert all(p.grad.abs().sum() > 0 for p in (*one.parameters(), *student.backbone.encoder.stages[0].parameters()))
    assert all(p.grad is None for p in teacher.parameters())
    assert task(said, y).item() == pytest.approx(sum(v.item() for v in said.values()))


@needs_torchvision
def test_levels_are_compared_one_by_one_and_weighed_alike():
    """In one step the terms are sums over levels, of masks that are one half everywhere: half the mean squared errors."""
    student, teacher, run = detector("one stage"), detector("one stage", (8, 8, 8), 1), Run()
    x = torch.stack([image for image, _ in boxed()])
    pairs = zip(maps(student, ("backbone",), x, [on.known() for _, on in boxed()])[1],
                maps(teacher.eval(), ("backbone",), x)[1], strict=True)
    wanted = sum(F.mse_loss(s, t).item() for s, t in pairs) / 2
    ACAMKD(sees="nothing", diversity=0.0, masks=2, batch=4, steps=1)(run, student=student, teacher=teacher, data=boxed())
    assert run.history[-1]["channels"] == pytest.approx(wanted, rel=1e-4) == run.history[-1]["places"]


@needs_torchvision
def test_a_detector_inherits_pyramid_and_head():
    student, teacher = detector("one stage"), detector("one stage", (4, 8, 16), 1)
    method = ACAMKD(inherit=("backbone.fpn.layer_blocks", "head"), lr=0.0, decay=0.0, masks=2, batch=2, steps=1)
    made = method(Run(), student=student, teacher=teacher, data=boxed())
    for name, value in teacher.state_dict().items():
        same = name.startswith(("backbone.fpn.layer_blocks", "head"))
        assert not same or torch.equal(made.state_dict()[name], value)
    assert not torch.equal(made.backbone.encoder.stages[0][0].weight, teacher.backbone.encoder.stages[0][0].weight)


@needs_torchvision
def test_pyramids_of_different_height_are_refused():
    with pytest.raises(Refused, match="2 maps of the student, 1 of the teacher"):
        ACAMKD(layers=("backbone",), layers_teacher=("backbone.fpn.layer_blocks.0",), batch=2, steps=1)(
            Run(), student=detector("one stage"), teacher=detector("one stage", seed=1), data=boxed())


def test_a_batch_holds_the_boxes_of_each_image():
    for x, y in batches(boxed(), 3, start=0, count=2, seed=("seed",)):
        x, y = to_device((x, y), torch.device("cpu"))
        assert x.shape == (3, 3, 32, 32) and all(type(on) is Boxes and on.scores is None for on in y)
        for image, on, i in zip(x, y, x.sample_ids.tolist(), strict=True):
            assert torch.equal(image, boxed()[i][0]) and torch.equal(on.boxes, boxed()[i][1].boxes)


# --- segmenters and their judges -------------------------------------------------------------------------------------

def test_a_segmenter_gives_every_pixel_a_class_whatever_the_size():
    net = segmenter(5, widths=(4, 8, 8), width=6)
    out, (low, fused) = Tap(net, "smooth.2", "fused")(torch.rand(2, 3, 21, 34))
    assert out.shape == (2, 5, 21, 34) and low.shape[:2] == (2, 6) and fused.shape == (2, 6, 11, 17)
    sizes = [m.shape[1:] for m in ConvEncoder((4, 8))(torch.rand(1, 3, 16, 24))]
    assert sizes == [(4, 8, 12), (8, 4, 6)]


@pytest.mark.skipif(_compat.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_any_backbone_of_timm_carries_one(name):
    net = segmenter(4, name, width=8)
    out = net(torch.rand(2, 3, 64, 64))
    out.sum().backward()
    assert isinstance(net, Segmenter) and out.shape == (2, 4, 64, 64)
    assert all(p.grad is not None for m in (net.lateral, net.smooth, net.head) for p in m.parameters())


def test_the_judges_by_hand():
    true = torch.tensor([[0, 0, 1, 1], [2, 2, UNLABELLED, 1]])
    said = torch.tensor([[0, 1, 1, 1], [2, 0, 1, 0]])
    table = confusion(said, true, 4)
    assert table.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    by_class = iou_by_class(table)
    assert by_class[:3].tolist() == pytest.approx([25.0, 50.0, 50.0]) and by_class[3].isnan()
    assert mean_iou(table) == pytest.approx(125 / 3) and pixel_accuracy(table) == pytest.approx(400 / 7)


def test_a_model_is_judged_on_all_images_at_once():
    class Perfect(nn.Module):
        def forward(self, x):
            return F.one_hot((x[:, 0] * 2).round().long(), 3).movedim(-1, 1).float()

    y = data(5).tensors[1]
    given = TensorDataset((y / 2)[:, None].expand(-1, 3, -1, -1), y)
    table = segmented(Perfect(), given, batch=2)
    assert mean_iou(table) == 100 and table.sum() == y.numel()
    spoilt = y.clone()
    spoilt[0] = (spoilt[0] + 1) % 3
    table = segmented(Perfect(), TensorDataset(given.tensors[0], spoilt), batch=2)
    assert pixel_accuracy(table) == pytest.approx(80) and mean_iou(table) == pytest.approx(naive_miou(y, spoilt))


def naive_miou(said, true):
    values = []
    for c in range(3):
        both, either = ((said == c) & (true == c)).sum().item(), ((said == c) | (true == c)).sum().item()
        values.append(100 * both / either)
    return sum(values) / 3


# --- the arena -------------------------------------------------------------------------------------------------------

def test_scenes_are_drawn_from_their_seed_with_a_void_rim():
    (x, y), (again, _), (other, _) = arena.drawn(6, 1), arena.drawn(6, 1), arena.drawn(6, 2)
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert x.shape == (6, 3, *arena.SIZE) and y.shape == (6, *arena.SIZE) and 0 <= x.min() < x.max() <= 1
    assert set(y.unique().tolist()) == {UNLABELLED, 0, 1, 2, 3}
    inner = y[:, 1:-1, 1:-1]
    beside = torch.stack([y[:, :-2, 1:-1], y[:, 2:, 1:-1], y[:, 1:-1, :-2], y[:, 1:-1, 2:]])
    assert ((inner == 0) & (beside > 0).any(0)).sum() == 0           # the ground never touches a shape


def test_without_the_shared_data_the_arena_is_drawn_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    arena._ground.cache_clear()
    arena._camvid.cache_clear()
    try:
        ground = arena._ground(0)
        assert not ground.real and "drawn" in ground.words and ground.classes == 4
        given = ground.train.tensors[1]
        assert (given != UNLABELLED).flatten(1).any(1).sum() >= arena.LABELLED
    finally:
        arena._ground.cache_clear()
        arena._camvid.cache_clear()
