"""Learned masks over feature maps: where, and in which channels, two maps are compared. Lan & Tian 2025 (ACAM-KD)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module


class MapAttention(Module):
    """What every position of one map finds in another one: V·softmax(QᵀK/√d)ᵀ, Q of the first, K and V of the second map.

    channels   C of both maps; Q and K have d = C/2 of them
    keys       positions that are looked at, at most: the second map is pooled to a square of so many beyond that

    asking, asked [batch, channels, height, width] → [batch, channels, height, width] of the first.
    """

    def __init__(self, channels: int, keys: int = 4096):
        super().__init__()
        self.keys = keys
        self.q = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.k = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.v = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        if asked.shape[-2] * asked.shape[-1] > self.keys:
            asked = F.adaptive_avg_pool2d(asked, int(self.keys**0.5))
        q, k, v = (m.flatten(2).mT for m in (self.q(asking), self.k(asked), self.v(asked)))       # [batch, positions, dim]
        return F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, asking.shape[-2:])


class MaskBank(Module):
    """As many masks over the channels of a map as over its positions, each by a selector that learns.

    Channels: sigmoid(m_c·v), v the mean over positions, m_c one number a mask. Positions: sigmoid(m_s·z), m_s [masks, channels].
    [batch, channels, height, width] → [batch, masks, channels], [batch, masks, positions], all in (0, 1).
    """

    def __init__(self, masks: int, channels: int):
        super().__init__()
        self.of_channels = nn.Parameter(torch.randn(masks, 1))
        self.of_places = nn.Parameter(torch.randn(masks, channels) / channels**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x.flatten(2)                                                                            # [batch, channels, positions]
        return (self.of_channels * z.mean(2)[:, None]).sigmoid(), (self.of_places @ z).sigmoid()


def masked_mean(error: Tensor, masks: Tensor, squared: bool = True) -> Tensor:
    """(1/M) Σ_m Σ_k m_k²·error_k / Σ_k m_k, mean over samples: over the mass of each mask, not over all there is.

    error [batch, k], squared errors of channels or positions, masks [batch, masks, k]; a scalar. squared=False: m_k in place of
    m_k². Only then is it a weighted mean; with the square, masks that shrink make it smaller.
    """
    masks, error = masks.float(), error.float()
    weight = masks.square() if squared else masks
    return ((weight * error[:, None]).sum(-1) / masks.sum(-1).clamp(min=1e-6)).mean()


def overlap(masks: Tensor) -> Tensor:
    """Dice coefficient of all pairs of masks, Σ_{i≠j} 2⟨m_i, m_j⟩ / Σ_{i≠j} (|m_i|² + |m_j|²), mean over samples: 1 when they are
    all the same, 0 when no two touch, and of a single mask. masks [batch, masks, k] → a scalar."""
    masks = masks.float()
    if masks.shape[1] < 2:
        return masks.sum() * 0
    own = masks.square().sum((1, 2))
    return ((masks.sum(1).square().sum(1) - own) / ((masks.shape[1] - 1) * own)).mean()


class Level(Module):
    """One layer of the student beside one of the teacher: adapter, attention between them, masks.

    sees     what masks follow from: "both", "reversed" (the student asks), the "teacher" alone, "nothing": one half everywhere
    square   masks lie inside the square
    """

    def __init__(self, width: int, width_teacher: int, masks: int, keys: int):
        super().__init__()
        self.align = nn.Conv2d(width, width_teacher, 1) if width != width_teacher else nn.Identity()
        self.fuse, self.bank = MapAttention(width_teacher, keys), MaskBank(masks, width_teacher)

    def forward(self, student: Tensor, teacher: Tensor, sees: str, square: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over channels, loss over positions, overlap of the masks: scalars; maps [batch, channels, height, width]."""
        student = F.interpolate(self.align(student), size=teacher.shape[-2:], mode="bilinear")
        error = (teacher - student).float().square().flatten(2)                  # [batch, channels, positions]
        channels, places = self.seen(student, teacher, sees)
        return (masked_mean(error.mean(2), channels, square), masked_mean(error.mean(1), places, square),
                overlap(channels) + overlap(places))

    def seen(self, student: Tensor, teacher: Tensor, sees: str) -> tuple[Tensor, Tensor]:
        """Masks of channels and positions."""
        if sees in ("teacher", "nothing"):
            return self.bank(teacher if sees == "teacher" else torch.zeros_like(teacher))      # of zeros: one half everywhere
        return self.bank(self.fuse(*((student, teacher) if sees == "reversed" else (teacher, student))))
