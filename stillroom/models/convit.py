"""ConViT: a vision transformer whose attention begins as a convolution and may leave it (d'Ascoli et al. 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.models.vit import IMAGENET, patchify, stochastic_depth

SIZES = {"tiny": (192, 4), "small": (432, 9), "base": (768, 16)}      # dim, heads


class ConViT(Module):
    """Images [batch, channels, height, width] in [0, 1] → logits [batch, classes], or with `classes=0` the feature [batch, dim].

    The first `local` blocks attend by content and by place among patches alone; the class token comes after them, and the
    other blocks attend by content. `local=0` is a plain transformer of the same shape.

    image, patch   sides in pixels; images of other sizes stretch the learned positions and keep the places' units
    heads          in local blocks a square number: each begins at one offset of a √heads × √heads kernel
    strength       α, how sharply it does
    mean, std      of the pixels, per channel or for all
    drop_path      share of samples that pass by the last block; earlier blocks less, in proportion (Huang et al. 2016)
    """

    def __init__(self, image: int = 224, patch: int = 16, channels: int = 3, dim: int = 432, depth: int = 12, heads: int = 9,
                 local: int = 10, classes: int = 0, strength: float = 1.0, mean: float | Sequence[float] = 0.5,
                 std: float | Sequence[float] = 0.5, drop_path: float = 0.0):
        super().__init__()
        if image % patch or dim % heads or not 0 <= local <= depth:
            raise Refused(f"a ConViT of width {dim} with {heads} heads, {local} of {depth} blocks local, patches of {patch} in "
                          f"images of {image}", "the patch divides the image, the heads divide the width; local is at most depth")
        self.patch, self.grid, self.dim, self.local = patch, image // patch, dim, local
        self.mean = nn.Buffer(torch.tensor(mean).expand(channels).reshape(-1, 1, 1).clone(), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).expand(channels).reshape(-1, 1, 1).clone(), persistent=False)
        self.embed = nn.Linear(channels * patch * patch, dim)
        self.place = nn.Parameter(torch.empty(1, self.grid**2, dim))
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        drops = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(GatedAttention(dim, heads, strength) if i < local else Attention(dim, heads), dim, drop)
                                    for i, drop in enumerate(drops))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        for weight in (self.place, self.cls, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02, a=-2, b=2)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks[:local]:
            block.attention.begin()              # last, lest another initialisation undo it

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        x = self.embed(patchify((x - self.mean) / self.std, self.patch)) + self._places(rows, columns)
        away = offsets(rows, columns, x.device)
        for block in self.blocks[: self.local]:
            x = block(x, away)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for block in self.blocks[self.local :]:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def _places(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.grid:
            return self.place
        known = self.place.unflatten(1, (self.grid, self.grid)).movedim(-1, 1)
        return F.interpolate(known, size=(rows, columns), mode="bicubic").flatten(2).mT


def convit(size: str = "small", **named) -> ConViT:
    """A `ConViT` of a published size, "tiny", "small" or "base", normalised as for ImageNet; `named` as for `ConViT`."""
    dim, heads = SIZES[size]
    mean, std = IMAGENET
    return ConViT(**{"dim": dim, "heads": heads, "mean": mean, "std": std, **named})


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); tokens [batch, tokens, dim]."""

    def __init__(self, attention: Module, dim: int, drop: float = 0.0, ratio: int = 4):
        super().__init__()
        self.attention, self.drop = attention, drop
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor, *away: Tensor) -> Tensor:
        x = x + self._dropped(self.attention(self.norm1(x), *away))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, self.drop) if self.training else branch


class Attention(Module):
    """Multi-head attention; queries, keys and values have no bias."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)              # [batch, heads, tokens, d]
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedAttention(Module):
    """Gated positional self-attention: A = (1 − σ(λ))·softmax(QKᵀ/√d) + σ(λ)·softmax(v·r), λ and v of each head (eqs. 7 and 8).

    Raises `Refused` unless the number of heads is a square.
    """

    def __init__(self, dim: int, heads: int, strength: float = 1.0):
        super().__init__()
        if math.isqrt(heads) ** 2 != heads:
            raise Refused(f"{heads} heads fill no square kernel", "take 1, 4, 9 or 16, or blocks without places: local=0")
        self.heads, self.strength = heads, strength
        self.qk, self.value, self.out = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.place = nn.Linear(3, heads)
        self.gate = nn.Parameter(torch.ones(heads))      # λ
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """As a convolution: v·r = −α·‖r − Δ‖² up to a constant, so that head number a + k·b looks most at Δ = a − c rows and
        b − c columns away, where c is the middle of a k × k kernel; values pass as they are."""
        k = math.isqrt(self.heads)
        column, row = (n.flatten() - (k - 1) / 2 for n in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij"))
        self.place.weight.copy_(self.strength * torch.stack([2 * column, 2 * row, -torch.ones(self.heads)], 1))
        nn.init.zeros_(self.place.bias)
        nn.init.eye_(self.value.weight)
        nn.init.ones_(self.gate)

    def by_place(self, away: Tensor) -> Tensor:
        """softmax(v·r), [heads, queries, keys]; away: `offsets`."""
        return self.place(away).movedim(-1, 0).softmax(-1)

    def maps(self, x: Tensor, away: Tensor) -> Tensor:
        """A, [batch, heads, queries, keys]."""
        q, k = self.qk(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return torch.lerp((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1), self.by_place(away)[None], self._share())

    def forward(self, x: Tensor, away: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)                  # [batch, heads, tokens, d]
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        share = self._share()                            # A·V is linear in A: two sums in place of one map
        mixed = (1 - share) * F.scaled_dot_product_attention(q, k, v) + share * (self.by_place(away) @ v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _share(self) -> Tensor:
        return self.gate.sigmoid()[:, None, None]


def offsets(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """r of every query (first) and key (second) of a grid, row by row: columns away, rows away, squared distance, all in patches:
    [patches, patches, 3]."""
    at = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)).float()
    row, column = (at[None] - at[:, None]).unbind(-1)
    return torch.stack([column, row, row**2 + column**2], -1)


def reach(maps: Tensor, away: Tensor) -> Tensor:
    """Mean distance in patches at which every head looks (non-locality, sec. 4): maps [batch, heads, n, n] → [heads]."""
    return (maps * away[..., 2].sqrt()).sum(-1).mean((0, 2))
