"""Average precision against pycocotools; suppression against a walk down the list and torchvision's; crops."""

import contextlib
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stillroom import _compat
from stillroom.measure.boxes import iou
from stillroom.measure.detection import Boxes, average_precision, mean_ap
from stillroom.parts.boxes import crops, nms, overlaps, widened

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


def of_coco(found, truth, classes):
    """The same by pycocotools: precision [thresholds, classes] in percent, NaN where there is nothing."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(many):
        for i, one in enumerate(many):
            for k, (b, label) in enumerate(zip(one.boxes.tolist(), one.labels.tolist(), strict=True)):
                wide, tall = b[2] - b[0], b[3] - b[1]
                row = {"image_id": i, "category_id": label, "bbox": [b[0], b[1], wide, tall], "area": wide * tall, "iscrowd": 0}
                yield row | ({} if one.scores is None else {"score": one.scores[k].item()})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, "images": [{"id": i} for i in range(len(truth))],
                      "categories": [{"id": c} for c in range(classes)],
                      "annotations": [r | {"id": n + 1} for n, r in enumerate(rows(truth))]}
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes(list(rows(found))), "bbox")
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
