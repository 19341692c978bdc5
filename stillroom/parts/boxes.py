"""Boxes by their corners (x1, y1, x2, y2): how far they overlap, which of many on one thing is kept, what lies inside one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every box with every other: [n, 4], [m, 4] → [n, m]; 0 where both are empty."""
    starts, ends = torch.maximum(one[:, None, :2], other[:, :2]), torch.minimum(one[:, None, 2:], other[:, 2:])
    common = (ends - starts).clamp(min=0).prod(-1)                                        # [n, m]
    union = (one[:, 2:] - one[:, :2]).prod(-1)[:, None] + (other[:, 2:] - other[:, :2]).prod(-1) - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Numbers of the boxes that are kept, by falling score: each overlaps no kept one of a higher score with more than the
    threshold. boxes [n, 4], scores [n] → [kept]; of equal scores the first is the higher.

    Exact: a box's fate follows from those above it, so that the sets of kept ones, computed from each other for all boxes at
    once, end at the one that a walk down the list would find.
    """
    order = scores.argsort(descending=True, stable=True)
    above = (overlaps(boxes[order], boxes[order]) > iou_threshold).triu(1)                # [n, n], row above column
    kept, before = torch.ones_like(order, dtype=torch.bool), torch.zeros_like(order, dtype=torch.bool)
    while not torch.equal(kept, before):
        kept, before = ~(above & kept[:, None]).any(0), kept
    return order[kept]


def widened(boxes: Tensor, factor: float, size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] around the same centres, `factor` times as wide and high, cut to an image of this height and width."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * factor / 2
    limit = boxes.new_tensor([size[1], size[0]])
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, limit)], 1)


def crops(image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What lies in each box, brought to a square: [channels, height, width], [n, 4] in pixels → [n, channels, side, side].

    Bilinear: the middle of each pixel of a crop is read off the image, the border beyond it repeated."""
    height, width = image.shape[1:]
    steps = (torch.arange(side, device=image.device, dtype=boxes.dtype) + 0.5) / side
    x = boxes[:, None, 0] + (boxes[:, 2] - boxes[:, 0])[:, None] * steps                  # [n, side], in pixels
    y = boxes[:, None, 1] + (boxes[:, 3] - boxes[:, 1])[:, None] * steps
    across, down = (2 * x / width - 1)[:, None].expand(-1, side, -1), (2 * y / height - 1)[:, :, None].expand(-1, -1, side)
    grid = torch.stack([across, down], -1).to(image)                                      # [n, side, side, 2]
    return F.grid_sample(image.expand(len(boxes), -1, -1, -1), grid, padding_mode="border", align_corners=False)


def roi_align(maps: Tensor, boxes: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0,
              sampling_ratio: int = 2, aligned: bool = False) -> Tensor:
    """RoIAlign (He et al. 2017) of boxes inside their images: means of `sampling_ratio`² points in each of the cells of a box.

    maps [images, channels, height, width], boxes [n, 5], the image's number first → [n, channels, *output_size]; arguments as
    torchvision's, whose adaptive sampling it has not: 2 where the ratio is not said.
    """
    tall, wide = (output_size, output_size) if isinstance(output_size, int) else output_size
    ratio, corners = sampling_ratio if sampling_ratio > 0 else 2, boxes[:, 1:] * spatial_scale - 0.5 * aligned
    size = corners[:, 2:] - corners[:, :2]
    size = size if aligned else size.clamp(min=1.0)

    def points(axis: int, cells: int) -> Tensor:
        """Where points lie on an axis, in pixels of the map, as shares of it from −1 to 1, [n, points]."""
        steps = (torch.arange(cells * ratio, device=boxes.device) + 0.5) / (cells * ratio)
        return 2 * (corners[:, axis, None] + size[:, axis, None] * steps) / max(1, maps.shape[3 - axis] - 1) - 1
    across, down = points(0, wide), points(1, tall)
    grid = torch.stack([across[:, None].expand(-1, tall * ratio, -1), down[:, :, None].expand(-1, -1, wide * ratio)], -1)
    order, found = boxes[:, 0].long(), maps.new_zeros(len(boxes), maps.shape[1], tall, wide)
    for i in range(len(maps)):
        own = (order == i).nonzero().flatten()
        if len(own):
            at = grid[own].flatten(0, 1)[None].to(maps)
            seen = F.grid_sample(maps[i : i + 1], at, padding_mode="border", align_corners=True)
            seen = F.avg_pool2d(seen, ratio)[0].unflatten(1, (len(own), tall)).movedim(1, 0)      # [own, channels, tall, wide]
            found = found.index_copy(0, own, seen.to(found))
    return found
