"""Boxes by their corners (x1, y1, x2, y2), and masks of what is in them: how far they overlap, which of many on one thing is
kept, where they are in another view, what lies inside one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every box with every other: [n, 4], [m, 4] → [n, m]; 0 where both are empty."""
    starts, ends = torch.maximum(one[:, None, :2], other[:, :2]), torch.minimum(one[:, None, 2:], other[:, 2:])
    common = (ends - starts).clamp(min=0).prod(-1)                                        # [n, m]
    union = (one[:, 2:] - one[:, :2]).prod(-1)[:, None] + (other[:, 2:] - other[:, :2]).prod(-1) - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def mask_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """The same of masks: boolean [n, height, width], [m, height, width] → [n, m]."""
    one, other = one.flatten(1).float(), other.flatten(1).float()        # counts of pixels are exact to 2²⁴
    common = (one @ other.mT).double()
    return common / (one.sum(1)[:, None] + other.sum(1) - common).clamp(min=1)


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


def through(boxes: Tensor, window: Tensor, size: tuple[int, int]) -> Tensor:
    """Where boxes [n, 4] are on what an image of this height and width shows of its window (`views.zoom`): cut at the border.
    window [4]: top, left, height, width."""
    limit = boxes.new_tensor([size[1], size[0]])
    moved = (boxes.unflatten(1, (2, 2)) - window[[1, 0]]) * (limit / window[[3, 2]])     # [n, 2, 2]
    return torch.minimum(moved.clamp(min=0), limit).flatten(1)


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
              sampling_ratio: int = -1, aligned: bool = False) -> Tensor:
    """RoIAlign (He et al. 2017) of boxes inside their images: means of `sampling_ratio`² points in each of the cells of a box; of
    as many as it has pixels on each axis, rounded up, where the ratio is not above 0.

    maps [images, channels, height, width], boxes [n, 5], the image's number first → [n, channels, *output_size]; arguments as
    torchvision's.
    """
    tall, wide = (output_size, output_size) if isinstance(output_size, int) else output_size
    corners = boxes[:, 1:] * spatial_scale - 0.5 * aligned
    size = corners[:, 2:] - corners[:, :2]
    size = size if aligned else size.clamp(min=1.0)
    pixels = (size / size.new_tensor([wide, tall])).ceil().clamp(min=1)      # of a cell, across and down
    ratio = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else pixels

    def points(own: Tensor, axis: int, count: int) -> Tensor:
        """Where points lie on an axis, in pixels of the map, as shares of it from −1 to 1, [own, count]."""
        steps = (torch.arange(count, device=boxes.device) + 0.5) / count
        return 2 * (corners[own, axis, None] + size[own, axis, None] * steps) / max(1, maps.shape[3 - axis] - 1) - 1
    groups, found = torch.cat([boxes[:, :1], ratio], 1), maps.new_zeros(len(boxes), maps.shape[1], tall, wide)
    for group in groups.unique(dim=0):                                       # boxes of one image and as many points
        own = (groups == group).all(1).nonzero().flatten()
        i, across, down = map(int, group)
        x, y = points(own, 0, wide * across), points(own, 1, tall * down)
        grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)       # [own, rows, columns, 2]
        seen = F.grid_sample(maps[i : i + 1], grid.flatten(0, 1)[None].to(maps), padding_mode="border", align_corners=True)
        seen = F.avg_pool2d(seen, (down, across))[0].unflatten(1, (len(own), tall)).movedim(1, 0)    # [own, channels, tall, wide]
        found = found.index_copy(0, own, seen.to(found))
    return found


def projected(masks: Tensor, which: Tensor, boxes: Tensor, side: int) -> Tensor:
    """How much of each cell of a box lies in one of the masks, by RoIAlign with a pixel's middle at one half: masks boolean
    [m, height, width], which of them [n], boxes [n, 4] → [n, side, side] from 0 to 1; torchvision's puts it at whole numbers."""
    return roi_align(masks[:, None].float(), torch.cat([which[:, None].to(boxes), boxes], 1), side, aligned=True)[:, 0]


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes in an image of this height and width, bilinear, 0 outside: [n, side, side], [n, 4] → [n, height, width]."""
    def line(start: Tensor, end: Tensor, pixels: int) -> Tensor:
        """How much each cell counts in each pixel, [n, pixels, side]."""
        middle = torch.arange(pixels, device=boxes.device)[:, None] + 0.5
        at = (middle - start[:, None, None]) / (end - start).clamp(min=1e-6)[:, None, None] * masks.shape[-1] - 0.5
        return (1 - (at - torch.arange(masks.shape[-1], device=boxes.device)).abs()).clamp(min=0).to(masks)
    x1, y1, x2, y2 = boxes.unbind(1)
    return line(y1, y2, size[0]) @ masks @ line(x1, x2, size[1]).mT
