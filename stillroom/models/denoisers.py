"""Networks of the denoisers: one for points, one for images. Called as F(x, c, y): c [batch] says the noise level, y [batch] the
class, `UNLABELLED` for none; `features` of the same arguments is their bottleneck, which a judge can read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module


class Condition(Module):
    """Noise level [batch] and class [batch] → embedding [batch, width]: sines and cosines of the level through a small MLP."""

    def __init__(self, width: int, classes: int = 0):
        super().__init__()
        self.classes = classes
        self.waves = nn.Buffer(torch.logspace(-3, 1.5, width // 2), persistent=False)      # radians per unit of c
        self.mlp = nn.Sequential(nn.Linear(2 * (width // 2), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.names = nn.Embedding(classes + 1, 2 * (width // 2)) if classes else None      # the last one: no class

    def forward(self, c: Tensor, y: Tensor | None) -> Tensor:
        angle = c.float()[:, None] * self.waves
        told = torch.cat([angle.cos(), angle.sin()], 1)
        if self.names is not None:
            none = torch.full_like(c, self.classes, dtype=torch.long)
            told = told + self.names(none if y is None else torch.where(y < 0, none, y))
        return self.mlp(told)


class PointNet(Module):
    """For points: residual layers, each scaled and shifted by noise level and class.

    size   of one sample; width: neurons; depth: layers before and after the bottleneck; classes: 0 if unconditional
    """

    def __init__(self, size: int = 2, width: int = 128, depth: int = 2, classes: int = 0):
        super().__init__()
        self.width = width
        self.condition = Condition(width, classes)
        self.enter = nn.Linear(size, width)
        self.before = nn.ModuleList([_Dense(width) for _ in range(depth)])
        self.after = nn.ModuleList([_Dense(width) for _ in range(depth)])
        self.leave = _zero(nn.Linear(width, size))

    def _enter(self, x: Tensor, c: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        told, h = self.condition(c, y), self.enter(x.flatten(1))
        for layer in self.before:
            h = layer(h, told)
        return h, told

    def features(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """[batch, width]"""
        return self._enter(x, c, y)[0]

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        h, told = self._enter(x, c, y)
        for layer in self.after:
            h = layer(h, told)
        return self.leave(F.silu(h)).view_as(x)


class UNet(Module):
    """For images whose side can be halved `len(widths) − 1` times: a residual block a scale on the way down, one below, one up.

    channels  of the images; widths: channels of each scale, multiples of 8; classes: 0 if unconditional
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (32, 64), classes: int = 0):
        super().__init__()
        self.width = widths[-1]
        self.condition = Condition(4 * widths[0], classes)
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths))
        self.down = nn.ModuleList([_Residual(a, b, 4 * widths[0]) for a, b in pairs])
        self.bottom = _Residual(widths[-1], widths[-1], 4 * widths[0])
        self.up = nn.ModuleList([_Residual(2 * b, a, 4 * widths[0]) for a, b in reversed(pairs)])
        self.leave = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU(), _zero(nn.Conv2d(widths[0], channels, 3, padding=1)))

    def _enter(self, x: Tensor, c: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        told, h, kept = self.condition(c, y), self.enter(x), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, told)
            kept.append(h)
        return self.bottom(h, told), told, kept

    def features(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        """[batch, width, height, width of the smallest scale]"""
        return self._enter(x, c, y)[0]

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> Tensor:
        h, told, kept = self._enter(x, c, y)
        for i, block in enumerate(self.up):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0) if i else h, kept.pop()], 1), told)
        return self.leave(h)


def point_judge(width: int) -> nn.Sequential:
    """Features [batch, width] → logits [batch]."""
    return nn.Sequential(
        nn.Linear(width, width), nn.GroupNorm(_groups(width), width), nn.SiLU(), nn.Linear(width, 1), nn.Flatten(0))


def image_judge(width: int, side: int) -> nn.Sequential:
    """Features [batch, width, side, side] → logits [batch]: the head of Yin et al. 2024 (DMD2), whose bottleneck has side 8."""
    half = side // 2
    return nn.Sequential(
        nn.Conv2d(width, width, 4, stride=2, padding=1), nn.GroupNorm(_groups(width), width), nn.SiLU(),
        nn.Conv2d(width, width, half, stride=half), nn.GroupNorm(_groups(width), width), nn.SiLU(),
        nn.Conv2d(width, 1, 1), nn.Flatten(0))


class _Dense(Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.film = nn.LayerNorm(width, elementwise_affine=False), _zero(nn.Linear(width, 2 * width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told).chunk(2, 1)
        return h + self.layers(self.norm(h) * (1 + scale) + shift)


class _Residual(Module):
    def __init__(self, inputs: int, outputs: int, told: int):
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.film = _zero(nn.Linear(told, 2 * outputs))
        self.norm = nn.GroupNorm(8, outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[:, :, None, None].chunk(2, 1)
        return self.past(x) + self.two(F.silu(self.norm(self.one(x)) * (1 + scale) + shift))


def _groups(width: int) -> int:
    """As near to 32 groups of at least four channels as divides the width."""
    return next(n for n in range(min(32, max(1, width // 4)), 0, -1) if width % n == 0)


def _zero(layer: Module) -> Module:
    """The layer, saying nothing at first."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
