"""Average precision against pycocotools; suppression against a walk down the list and torchvision's; crops; masks; zoom."""

import contextlib
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stillroom import _compat
from stillroom.measure.boxes import iou
from stillroom.measure.detection import Boxes, average_precision, mean_ap, zoomed
from stillroom.parts.boxes import crops, mask_overlaps, nms, overlaps, pasted, projected, through, widened

torchvision_there = pytest.mark.skipif(_compat.find_spec("torchvision") is None, reason="torchvision is not installed")


def some_boxes(n, seed, size=60.0):
    draw = torch.Generator().manual_seed(seed)
    corner = size * torch.rand(n, 2, generator=draw, dtype=torch.float64)
    return torch.cat([corner, corner + 2 + size / 2 * torch.rand(n, 2, generator=draw, dtype=torch.float64)], 1)


def scene(seed, images=6, classes=4):
    """True boxes, and found ones: most near a true one, some anywhere; scores with ties."""
    truth, found = [], []
    for i in range(images):
        draw = torch.Generator().manual_seed(100 * seed + i)
        n = int(torch.randint(0, 7, (), generator=draw))
        boxes, labels = some_boxes(n, 100 * seed + i), torch.randint(0, classes - 1, (n,), generator=draw)
        near = boxes.repeat(2, 1) + 3 * torch.randn(2 * n, 4, generator=draw, dtype=torch.float64)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        far = some_boxes(5, 100 * seed + i + 50)
        said = torch.cat([labels.repeat(2), torch.randint(0, classes - 1, (5,), generator=draw)])
        scores = (20 * torch.rand(2 * n + 5, generator=draw, dtype=torch.float64)).round() / 20
        truth.append(Boxes(boxes, labels))
        found.append(Boxes(torch.cat([near, far]), said, scores))
    return found, truth


def outlined(many, seed, size=100):
    """The same with masks: of each box the ellipse in it, or another one when it has the same name, with ragged borders."""
    draw, at = torch.Generator().manual_seed(seed), torch.arange(size) + 0.5
    for one in many:
        middle, half = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2, (one.boxes[:, 2:] - one.boxes[:, :2]) / 2
        x, y = ((at - middle[:, k, None]) / half[:, k, None] for k in (0, 1))
        rough = 0.3 * torch.rand(len(middle), size, size, generator=draw)
        yield one._replace(masks=x[:, None].square() + y[:, :, None].square() + rough < 1)


def of_coco(found, truth, classes, kind="bbox"):
    """The same by pycocotools: precision [thresholds, classes] in percent, NaN where there is nothing."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(many):
        for i, one in enumerate(many):
            for k, (b, label) in enumerate(zip(one.boxes.tolist(), one.labels.tolist(), strict=True)):
                wide, tall = b[2] - b[0], b[3] - b[1]
                row = {"image_id": i, "category_id": label, "bbox": [b[0], b[1], wide, tall], "area": wide * tall, "iscrowd": 0}
                if one.masks is not None:
                    row["segmentation"] = mask.encode(np.asfortranarray(one.masks[k].byte().numpy()))
                yield row | ({} if one.scores is None else {"score": one.scores[k].item()})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, "images": [{"id": i, "height": 100, "width": 100} for i in range(len(truth))],
                      "categories": [{"id": c} for c in range(classes)],
                      "annotations": [r | {"id": n + 1} for n, r in enumerate(rows(truth))]}
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(list(rows(found))), kind)
        judge.evaluate()
        judge.accumulate()
    table = judge.eval["precision"][:, :, :, 0, 2].mean(1)
    return np.where(table < 0, np.nan, 100 * table)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    found, truth = scene(seed)
    ours = average_precision(found, truth, 4).numpy()
    assert np.allclose(ours, of_coco(found, truth, 4), atol=1e-9, equal_nan=True)
    assert np.isnan(ours[:, 3]).all() and 1 < np.nanmean(ours) < 99
    assert mean_ap(found, truth, 4) == pytest.approx(np.nanmean(ours))
    assert mean_ap(found, truth, [0, 2], (0.5,)) == pytest.approx(ours[0, [0, 2]].mean())


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_masks_is_that_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    found, truth = (list(outlined(many, seed)) for many in scene(seed))
    ours = average_precision(found, truth, 4, of="masks").numpy()
    assert np.allclose(ours, of_coco(found, truth, 4, "segm"), atol=1e-9, equal_nan=True)
    assert mean_ap(found, truth, 4, of="masks") == pytest.approx(np.nanmean(ours)) != mean_ap(found, truth, 4)
    assert 1 < np.nanmean(ours) < 99


def test_average_precision_by_hand():
    truth = [Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), torch.tensor([0, 0]))]
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]]), torch.zeros(3, dtype=torch.long)
    found = [Boxes(boxes, labels, torch.tensor([0.9, 0.8, 0.7]))]
    assert mean_ap(found, truth, 1) == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)       # recall to .5 at 1, to 1 at 2/3
    assert mean_ap([Boxes(boxes[:0], labels[:0], torch.zeros(0))], truth, 1) == 0
    twice = [Boxes(boxes[[0, 0, 2, 2]], labels[[0, 0, 0, 0]], torch.tensor([0.9, 0.8, 0.7, 0.6]))]
    assert mean_ap(twice, truth, 1) == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)       # a second box on one thing is wrong
    shifted = [Boxes(boxes[[0, 2]] + torch.tensor([0.0, 0, 0, 2.5]), labels[:2], torch.tensor([0.9, 0.8]))]   # IoU 0.8
    assert average_precision(shifted, truth, 1)[:, 0].tolist() == pytest.approx([100.0] * 7 + [0.0] * 3)


def walk(boxes, scores, threshold):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(overlaps(boxes[i : i + 1], boxes[k : k + 1]).item() <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed, threshold", [(0, 0.5), (1, 0.3), (2, 0.15), (3, 0.0)])
def test_suppression_is_a_walk_down_the_list(seed, threshold):
    boxes = some_boxes(40, seed, 30.0)
    scores = (10 * torch.rand(40, generator=torch.Generator().manual_seed(seed))).round()           # with ties
    ours = nms(boxes, scores, threshold)
    assert ours.tolist() == walk(boxes, scores, threshold) and 1 < len(ours) < 40
    assert nms(boxes[:0], scores[:0], threshold).tolist() == []


def test_overlap_is_that_of_the_judge_of_boxes_by_their_sides():
    one, other = some_boxes(6, 0), some_boxes(7, 1)

    def sides(b):
        return torch.stack([b[:, 1], b[:, 0], b[:, 3] - b[:, 1], b[:, 2] - b[:, 0]], 1)
    assert torch.allclose(overlaps(one, other), iou(sides(one), sides(other)))


@torchvision_there
def test_suppression_is_that_of_torchvision_where_it_has_its_own():
    _compat.package("torchvision")
    import torchvision

    boxes, scores = some_boxes(60, 5, 30.0).float(), torch.rand(60, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(60) % 3
    kept = torchvision.ops.batched_nms(boxes, scores, labels, 0.4)
    own = [(labels == c).nonzero().flatten() for c in range(3)]
    wanted = [i for of in own for i in of[walk(boxes[of], scores[of], 0.4)].tolist()]
    assert sorted(kept.tolist()) == sorted(wanted)
    if torchvision.extension._has_ops():
        assert torch.equal(torch.ops.torchvision.nms(boxes, scores, 0.4), nms(boxes, scores, 0.4))


@torchvision_there
def test_a_detector_of_torchvision_learns_and_detects_without_its_operators():
    _compat.package("torchvision")
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3, score_thresh=0.3).eval()
    found = net([torch.rand(3, 64, 64)])[0]
    assert found["boxes"].shape[1] == 4 and len(found["boxes"]) == len(found["scores"]) > 0


def test_crops_are_the_pixels_in_the_box():
    image = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 2, 8, 6], [0, 0, 16, 12], [3, 3, 11, 11]])
    out = crops(image, boxes, 4)
    assert torch.allclose(out[0], image[:, 2:6, 4:8], atol=1e-6)
    exact = F.interpolate(image[None], size=(4, 4), mode="bilinear")[0]
    assert torch.allclose(out[1], exact, atol=1e-6)
    assert torch.allclose(out[2], F.interpolate(image[None, :, 3:11, 3:11], size=(4, 4), mode="bilinear")[0], atol=1e-6)


def test_context_is_one_and_a_half_of_the_box_within_the_image():
    boxes = torch.tensor([[10.0, 10, 20, 14], [0, 0, 8, 8]])
    assert widened(boxes, 1.5, (30, 40)).tolist() == [[7.5, 9.0, 22.5, 15.0], [0.0, 0.0, 10.0, 10.0]]
    assert widened(boxes[:1], 10, (30, 40)).tolist() == [[0.0, 0.0, 40.0, 30.0]]


# --- masks -----------------------------------------------------------------------------------------------------------

def blobs(n, size, seed=0):
    """Masks [n, size, size] of one piece each, and the boxes around them."""
    noise = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    masks = F.pad(F.interpolate(noise, size=(size - 4, size - 4), mode="bicubic")[:, 0] > 0.5, (2, 2, 2, 2))
    rows, columns = masks.any(2), masks.any(1)
    first, last = (lambda line: line.int().argmax(1)), (lambda line: line.shape[1] - line.flip(1).int().argmax(1))
    return masks, torch.stack([first(columns), first(rows), last(columns), last(rows)], 1).float()


def test_masks_overlap_by_their_pixels():
    one, other = blobs(3, 20)[0], torch.cat([blobs(2, 20, 1)[0], torch.zeros(1, 20, 20, dtype=torch.bool)])
    wanted = [[(a & b).sum().item() / (a | b).sum().item() for b in other] for a in one]
    assert torch.allclose(mask_overlaps(one, other), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12)
    assert mask_overlaps(other[2:], other[2:]).item() == 0 and mask_overlaps(one[:0], other).shape == (0, 3)


def test_a_mask_in_its_box_is_its_pixels():
    masks, which = blobs(2, 24)[0], torch.tensor([1, 0, 1])
    boxes = torch.tensor([[3.0, 5, 11, 13], [0, 0, 8, 8], [4, 2, 20, 18]])
    ours = projected(masks, which, boxes, 8)
    assert torch.allclose(ours[0], masks[1, 5:13, 3:11].float(), atol=1e-5)
    assert torch.allclose(ours[1], masks[0, :8, :8].float(), atol=1e-5)
    share = F.avg_pool2d(masks[1:, 2:18, 4:20].float(), 2)[0]                   # two points in a cell of two pixels
    assert torch.allclose(ours[2], share, atol=1e-5) and 0 < share.mean() < 1
    assert projected(masks, which[:0], boxes[:0], 8).shape == (0, 8, 8)


def test_masks_are_pasted_where_their_box_is():
    masks = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 5, 16, 23], [10, 2, 16, 8]])
    ours = pasted(masks, boxes, (30, 20))
    large = F.interpolate(F.pad(masks[:1, None], (1, 1, 1, 1)), scale_factor=(3, 2), mode="bilinear")[0, 0]   # 0 around it
    wanted = torch.zeros(30, 20)
    wanted[2:26, 2:18] = large
    assert torch.allclose(ours[0], wanted, atol=1e-5)
    assert torch.allclose(ours[1, 2:8, 10:16], masks[1], atol=1e-5)
    assert ours[1].sum() == pytest.approx(masks[1].sum().item(), rel=1e-5)
    half = pasted(masks[1:], boxes[1:] + torch.tensor([7.0, 0, 7, 0]), (30, 20))
    assert torch.allclose(half[0, 2:8, 17:], masks[1, :, :3], atol=1e-5)        # the rest is beyond the image
    assert pasted(masks[:0], boxes[:0], (30, 20)).shape == (0, 30, 20)


def test_a_mask_comes_back_from_its_box():
    masks, boxes = blobs(6, 60)
    moved = boxes + torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    back = pasted(projected(masks, torch.arange(6), moved, 28), moved, (60, 60)) > 0.5
    assert mask_overlaps(back, masks).diagonal().min() > 0.93


@torchvision_there
def test_pasting_is_that_of_torchvision_but_for_its_rounding_of_boxes():
    _compat.package("torchvision")
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks, boxes = blobs(6, 60)
    inside = projected(masks, torch.arange(6), boxes, 28)
    theirs = paste_masks_in_image(inside[:, None], boxes, (60, 60))[:, 0] > 0.5
    assert mask_overlaps(pasted(inside, boxes, (60, 60)) > 0.5, theirs).diagonal().min() > 0.85


# --- zoom ------------------------------------------------------------------------------------------------------------

def painted(n=4, height=48, width=64):
    """Dark images, two bright boxes on each, drawn to the pixel: what is known of a box is its colour."""
    draw = torch.Generator().manual_seed(0)
    x, known = torch.zeros(n, 3, height, width), []
    for image in x:
        boxes = torch.tensor([[5.0, 7, 21, 30], [34, 12, 60, 40]]) + torch.randint(-3, 4, (2, 4), generator=draw)
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        colours = 0.6 + 0.4 * torch.rand(2, 3, generator=draw)
        for (x1, y1, x2, y2), mask, colour in zip(boxes.int().tolist(), masks, colours, strict=True):
            mask[y1:y2, x1:x2] = True
            image[:, y1:y2, x1:x2] = colour[:, None, None]
        known.append(Boxes(boxes, colours, masks=masks))
    return x, known


def test_at_their_own_scale_images_and_boxes_stay_as_they_are():
    x, known = painted()
    before = torch.get_rng_state()
    y, same = zoomed((1, 1), x, known)
    assert y is x and same is known and torch.equal(torch.get_rng_state(), before)
    whole = torch.tensor([0.0, 0, 48, 64])
    assert torch.equal(through(known[0].boxes, whole, (48, 64)), known[0].boxes)


@pytest.mark.parametrize("scale", [(0.4, 0.9), (1.1, 2.0), (0.3, 2.0)])
def test_boxes_masks_and_what_is_known_move_with_the_image(scale):
    x, known = painted()
    seen = 0
    for seed in range(5):
        torch.manual_seed(seed)
        y, moved, again = zoomed(scale, x, known, known)
        assert y.shape == x.shape and not torch.equal(y, x)
        for image, boxes, other in zip(y, moved, again, strict=True):
            assert torch.equal(boxes.boxes, other.boxes) and torch.equal(boxes.labels, other.labels)
            for (x1, y1, x2, y2), colour, mask in zip(boxes.boxes.tolist(), boxes.labels, boxes.masks, strict=True):
                assert 0 <= x1 <= x2 - 1 <= 63 and 0 <= y1 <= y2 - 1 <= 47
                rows, columns = torch.arange(48) + 0.5, torch.arange(64) + 0.5
                drawn = ((rows > y1) & (rows < y2))[:, None] & ((columns > x1) & (columns < x2))
                assert (drawn ^ mask).sum() <= (x2 - x1) + (y2 - y1) + 2                 # of the border, at most a half of it
                core = ((rows > y1 + 2) & (rows < y2 - 2))[:, None] & ((columns > x1 + 2) & (columns < x2 - 2))
                assert torch.allclose(image[:, core], colour[:, None].expand(-1, int(core.sum())), atol=1e-4)
                seen += int(core.sum()) > 0
    assert seen > 20


def test_what_is_out_of_sight_or_too_small_is_left_out():
    x, known = painted()
    small = torch.tensor([[30.0, 30, 34, 34]])
    known = [Boxes(torch.cat([k.boxes, small]), torch.arange(3)) for k in known]
    torch.manual_seed(0)
    _, moved = zoomed((0.2, 0.2), x, known)
    assert [k.labels.tolist() for k in moved] == [[0, 1]] * 4 and moved[0].masks is None
    counts = []
    for _ in range(10):
        _, moved = zoomed((4.0, 4.0), x, known)
        counts += [len(k.boxes) for k in moved]
    assert min(counts) == 0 < max(counts) <= 3
