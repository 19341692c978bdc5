"""TokenCut: Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut

Wang, Shen, Hu, Yuan, Crowley, Vaufreydaz — CVPR 2022 — https://arxiv.org/abs/2202.11539

    teacher   frozen vision transformer, self-distilled
    reads     keys of its last attention, all heads side by side, of the patches alone
    compares  every patch with every other: alike when the cosine of their keys is above a threshold
    views     one, padded with black to whole patches
    data      images; labels are not used
    weights   1 between patches that are alike, a trace between the others
    learns    nothing, no gradient: the normalised cut of this graph parts an object from the rest
    note      one object an image; not built: the bilateral solver for masks in pixels, the detector trained on the boxes
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.scenes import PATCH, scenes
from stillroom.measure import Proof
from stillroom.parts.cuts import bounds, component, normalised_cut
from stillroom.parts.taps import keys
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class TokenCut(Recipe):
    threshold: float = 0.2    # τ, cosine above which two patches are alike
    trace: float = 1e-5       # ε, weight between two that are not
    patch: int = 16           # side of the teacher's patches, in pixels
    steps: int = 1_000_000    # images to read, at most all

    def distill(self, run: Run, teacher: Module, data: Dataset) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each image, in order: box (top, left, height, width) in pixels, the object's mask and map in patches; see `cut`."""
        teacher, found = Frozen(teacher), []
        run.keep(found=found)

        for i in run.loop(steps=min(self.steps, len(data)), name="images"):
            x = run.place(data[i][0])                                                # [channels, height, width]
            mask, vector = cut(keys(teacher, x[None], self.patch)[0], self.threshold, self.trace)
            top, left, tall, wide = (self.patch * bounds(mask)).tolist()
            box = torch.tensor([top, left, min(tall, x.shape[1] - top), min(wide, x.shape[2] - left)])
            found.append((box, mask, vector))

        return found


def cut(key: Tensor, threshold: float = 0.2, trace: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Keys [rows, columns, dim] → the object's mask, and the second eigenvector with the sign that is positive on its seed;
    a full mask and a vector of 0 where every patch is like every other, or none is: then no cut is better than another."""
    grid, key = key.shape[:2], F.normalize(key.cpu().double().flatten(0, 1), dim=1)
    alike = (key @ key.T > threshold).fill_diagonal_(True)                           # [patches, patches]
    if alike.sum() in (len(key), len(key) ** 2):
        return torch.ones(grid, dtype=torch.bool), torch.zeros(grid, dtype=key.dtype)
    vector = normalised_cut(torch.where(alike, 1.0, trace))[1]
    seed = int(vector.abs().argmax())
    mask = vector > vector.mean()
    if not mask[seed]:                                                               # the object has the largest value
        mask, vector = ~mask, -vector
    return component(mask.unflatten(0, grid), seed), vector.unflatten(0, grid)


def trial(seed=0):
    """Shaded scenes with a digit each; threshold, scenes and all that the baselines set chosen on scenes of seeds 10 to 12."""
    return TokenCut(threshold=0.6, patch=PATCH), scenes(seed)


def proof(made, cast):
    """It finds more objects than LOST does on the same keys, with a threshold of its own."""
    untrained = TokenCut(threshold=0.8, patch=PATCH)(Run(), teacher=cast.untrained, data=cast.actors["data"])
    also = {"TokenCut, the network untrained": [box for box, _, _ in untrained], "LOST, threshold 0": cast.lost(0.0),
            "attention of the class token": cast.attention(), "the centre": cast.centre(), "the whole image": cast.everything()}
    return Proof(cast.corloc([box for box, _, _ in made]), beats=cast.corloc(cast.lost()), unit="CorLoc", baseline="LOST",
                 also={who: cast.corloc(boxes) for who, boxes in also.items()})
