"""Detectors whose regions speak the language of a two-tower teacher: any class is found whose name has an embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom._compat import package
from stillroom.measure.detection import Boxes
from stillroom.models.segmenter import ConvEncoder
from stillroom.parts.boxes import pasted, projected
from stillroom.parts.regions import ensemble, sampled


class Detector(Module):
    """Images [batch, channels, height, width] → proposals, boxes and masks that know no class, an embedding of each region by
    each head.

    backbone   images → maps by name, such as torchvision's `resnet_fpn_backbone`
    channels   of every map
    dim        of the embeddings
    heads      1, or 2: one that learns from names, one that learns from images
    anchors    sides of the anchors on each map, in pixels
    side       of a region after RoIAlign; twice that for its mask, which comes out at four times
    mask       width of the head of masks, 256 in Mask R-CNN; 0: boxes alone
    keep       proposals before and after suppression
    sample     anchors of an image that the proposal network learns from

    Proposal network, RoIAlign and heads are torchvision's. Raises `Refused` when it is not installed.
    """

    def __init__(self, backbone: Module, channels: int, dim: int, *, maps: tuple[str, ...] = ("0",), heads: int = 2,
                 anchors: tuple[tuple[int, ...], ...] = ((16, 24),), side: int = 7, hidden: int = 1024,
                 keep: tuple[int, int] = (1000, 300), sample: int = 256, mask: int = 0):
        super().__init__()
        package("torchvision")
        from torchvision.models.detection._utils import BoxCoder
        from torchvision.models.detection.faster_rcnn import TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        grid: Any = AnchorGenerator(anchors, ((1.0,),) * len(anchors))
        before, after = ({"training": n, "testing": n} for n in keep)
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(grid, RPNHead(channels, len(anchors[0])), 0.7, 0.3, sample, 0.5, before, after, 0.7)
        self.align = MultiScaleRoIAlign(list(maps), side, 2)
        self.coder: Any = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.trunks = nn.ModuleList(TwoMLPHead(channels * side**2, hidden) for _ in range(heads))
        self.embeds = nn.ModuleList(nn.Linear(hidden, dim) for _ in range(heads))
        self.boxes = nn.Linear(hidden, 4)                                    # the same for every class
        self.background = nn.Parameter(torch.randn(dim))
        self.align_masks = MultiScaleRoIAlign(list(maps), 2 * side, 2)
        self.masks = nn.Sequential(MaskRCNNHeads(channels, [mask] * 4, 1), MaskRCNNPredictor(mask, mask, 1)) if mask else None

    def propose(self, x: Tensor, truth: list[Boxes] | None = None) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Tensor]]:
        """Maps, proposals of each image [n, 4], and in training the losses of the proposal network."""
        from torchvision.models.detection.image_list import ImageList

        maps = self.backbone(x)
        known = None if truth is None else [{"boxes": t.boxes} for t in truth]
        boxes, found = self.rpn(ImageList(x, [tuple(x.shape[2:])] * len(x)), maps, known)
        return maps, [b.detach() for b in boxes], found

    def place(self, maps: dict[str, Tensor], proposals: list[Tensor], truth: list[Boxes], size: tuple[int, int], count: int,
              positive: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Regions drawn from the proposals (`parts.regions.sampled`), all images together: their embeddings by the first head,
        [regions, dim], the class of each plus one, 0 for the background, [regions], and the losses of boxes and masks."""
        picked = [sampled(p, t.boxes, t.labels, count, positive) for p, t in zip(proposals, truth, strict=True)]
        label = torch.cat([classes for _, classes, _ in picked])
        (region, *_), moves = self.regions(maps, [boxes for boxes, _, _ in picked], size)
        on = [boxes[classes > 0] for boxes, classes, _ in picked]
        which = [at[classes > 0] for _, classes, at in picked]                      # of the true boxes
        goal = torch.cat(self.coder.encode([t.boxes[at] for t, at in zip(truth, which, strict=True)], on))
        losses = {"moves": F.smooth_l1_loss(moves[label > 0].float(), goal, beta=1 / 9, reduction="sum") / len(label)}
        masks = [t.masks for t in truth if t.masks is not None]
        if self.masks is not None and len(masks) == len(truth):
            said = self.outlines(maps, on, size)
            inside = torch.cat([projected(*of, said.shape[-1]) for of in zip(masks, which, on, strict=True)])
            losses["masks"] = F.binary_cross_entropy_with_logits(said, inside, reduction="sum") / max(1, inside.numel())
        return region, label, losses

    def regions(self, maps: dict[str, Tensor], boxes: list[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Embeddings of unit length by each head, [regions, dim], and moves of the boxes, [regions, 4]; all images together."""
        aligned = self.align(maps, boxes, [size] * len(boxes))
        hidden = [trunk(aligned) for trunk in self.trunks]
        return [F.normalize(embed(h).float(), dim=1) for embed, h in zip(self.embeds, hidden, strict=True)], self.boxes(hidden[0])

    def outlines(self, maps: dict[str, Tensor], boxes: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits of the masks in boxes, [regions, 4·side, 4·side], all images together."""
        assert self.masks is not None
        return self.masks(self.align_masks(maps, boxes, [size] * len(boxes)))[:, 0].float()

    def named(self, region: Tensor, texts: Tensor, temperature: float) -> Tensor:
        """Logits of the background, then of each name: cosines with the texts [classes, dim] over the temperature."""
        return region @ torch.cat([F.normalize(self.background.float(), dim=0)[None], texts]).T / temperature

    @torch.no_grad()
    def detect(self, x: Tensor, scores, suppress: float = 0.6, least: float = 0.0, limit: int = 100) -> list[Boxes]:
        """What is on each image; `scores(regions)` gives [regions, classes] of the embeddings by each head."""
        from torchvision.ops import batched_nms, clip_boxes_to_image

        size = (x.shape[2], x.shape[3])
        maps, proposals, _ = self.propose(x)
        regions, moves = self.regions(maps, proposals, size)
        counts, found = [len(p) for p in proposals], []
        said = scores(regions).split(counts)
        for boxes, score in zip(self.coder.decode(moves, proposals)[:, 0].split(counts), said, strict=True):
            place, label = (score > least).nonzero().T
            boxes, score = clip_boxes_to_image(boxes, size)[place], score[place, label]
            kept = batched_nms(boxes, score, label, suppress)[:limit]
            found.append(Boxes(boxes[kept], label[kept], score[kept]))
        if self.masks is not None:
            inside = self.outlines(maps, [f.boxes for f in found], size).sigmoid().split([len(f.boxes) for f in found])
            found = [f._replace(masks=pasted(m, f.boxes, size) > 0.5) for f, m in zip(found, inside, strict=True)]
        return [f.to("cpu") for f in found]


def scores(student: Module, regions: list[Tensor], texts: Tensor, base: Tensor, way: str, temperature: float = 0.01) -> Tensor:
    """Probabilities [regions, classes] of embeddings by each head; texts [classes, dim], base [classes]: which had boxes."""
    text, image = (student.named(r, texts, temperature) for r in (regions[0], regions[-1]))
    text, image = text.softmax(1)[:, 1:], image[:, 1:].softmax(1)        # which has learnt nothing of the background
    return image if way == "image" else ensemble(text, image, base) if way == "ensemble" else text


class OneMap(Module):
    """A `ConvEncoder`'s maps but the first, enlarged to the second and summed: {"0": map} of `width` channels."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 32), width: int = 32):
        super().__init__()
        self.encoder = ConvEncoder(widths)
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths[1:])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [lateral(m) for lateral, m in zip(self.lateral, self.encoder(x)[1:], strict=True)]
        total = maps[0] + sum(F.interpolate(m, size=maps[0].shape[2:], mode="bilinear") for m in maps[1:])
        return {"0": F.relu(total)}


class Pyramid(Module):
    """A `ConvEncoder`'s maps but the first as a feature pyramid of `width` channels (Lin et al. 2017), from the finest on,
    {"0": map, "1": map, …}: a backbone for torchvision's detectors. Raises `Refused` when that is not installed."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), width: int = 32):
        super().__init__()
        package("torchvision")
        from torchvision.ops import FeaturePyramidNetwork

        self.encoder, self.fpn, self.out_channels = ConvEncoder(widths), FeaturePyramidNetwork(list(widths[1:]), width), width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(n): m for n, m in enumerate(self.encoder(x)[1:])})
