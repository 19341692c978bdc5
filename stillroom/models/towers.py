"""Two towers: one sees images, one reads texts, and what belongs together points the same way (CLIP, Radford et al. 2021)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.models.vit import Block


class TwoTowers(Module):
    """Cosines of images and texts, times a factor: [images, texts].

    image   images [batch, …] → [batch, width]
    text    tokens [texts, length] → [texts, width]
    scale   log of the factor, learnt; log(1/0.07) where it is not given
    """

    def __init__(self, image: Module, text: Module, scale: Tensor | None = None):
        super().__init__()
        self.image, self.text = image, text
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07))) if scale is None else scale
        if all("origin" in vars(half) for half in (image, text)):                # built again from the same halves
            self.origin = {"spec": "part:two_towers", "image": image.origin, "text": text.origin}

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.scale.exp() * F.normalize(self.image(x), dim=-1) @ F.normalize(self.text(tokens), dim=-1).T


def towers(model: Module) -> TwoTowers:
    """A two-tower model's halves, which share its weights: of a `TwoTowers`, or of transformers' CLIPModel and those built like
    it. Raises `Refused` for another model."""
    if isinstance(model, TwoTowers):
        return model
    if not two_towers(model):
        raise Refused(f"{type(model).__name__} has no tower for images beside one for texts",
                      "give transformers' CLIPModel, or models.towers.TwoTowers(image, text)")
    clip: Any = model
    image, text = Half(clip.vision_model, clip.visual_projection), Half(clip.text_model, clip.text_projection)
    return TwoTowers(image, text, clip.logit_scale)


def two_towers(model: Module) -> bool:
    """Whether `towers` knows the halves of this model."""
    names = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale")
    return isinstance(model, TwoTowers) or all(hasattr(model, name) for name in names)


def per_class(texts: Tensor) -> Tensor:
    """Tokens [classes, sentences, length], where there is one sentence a class from [classes, length]. Raises `Refused`."""
    if texts.ndim not in (2, 3) or texts.is_floating_point():
        raise Refused(f"texts of shape {list(texts.shape)} and {texts.dtype}", "give tokens [classes, sentences, length]")
    return texts if texts.ndim == 3 else texts[:, None]


class Half(Module):
    """One of the towers of a transformers model: images or tokens → [batch, width]."""

    def __init__(self, body: Module, projection: Module):
        super().__init__()
        self.body, self.projection = body, projection

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.body(x).pooler_output)


class TextTower(Module):
    """A small transformer that reads: tokens [texts, length] → [texts, width], the mean over tokens that are not 0."""

    def __init__(self, words: int, length: int, dim: int = 32, depth: int = 2, heads: int = 4, width: int = 32):
        super().__init__()
        self.embed, self.places = nn.Embedding(words, dim), nn.Parameter(0.02 * torch.randn(1, length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places[:, : tokens.shape[1]]               # [texts, length, dim]
        for block in self.blocks:
            x = block(x)
        there = (tokens != 0)[..., None]
        return self.head((self.norm(x) * there).sum(1) / there.sum(1))
