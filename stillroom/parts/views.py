"""On which views: crops, zoom, flips, colour, blur, mixing and masks; batched, on the device, drawn anew for every sample.

Images are float [..., channels, height, width] in [0, 1], with any number of leading dimensions: each image there gets its
own draw, from torch's global generator. Nothing is rounded to pixels or bytes, everything can be differentiated, and precision
is kept under autocast.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

LUMA = (0.299, 0.587, 0.114)       # ITU-R 601-2, as in PIL's "L"


def _exact(view: Callable[..., Any]) -> Callable[..., Any]:
    """Outside autocast: pixels keep their precision."""
    @wraps(view)
    def exact(x: Tensor, *rest, **named):
        with torch.autocast(x.device.type, enabled=False):
            return view(x, *rest, **named)
    return exact


# --- geometry --------------------------------------------------------------------------------------------------------

def crops(x: Tensor, n: int, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3),
          size: int | tuple[int, int] = 0) -> Tensor:
    """`n` random crops of every image, resized: [batch, channels, height, width] → [n, batch, channels, *size].

    scale  smallest and largest share of the image's area (Szegedy et al. 2015)
    ratio  smallest and largest width / height, even on the log scale
    size   side of the crops, or (height, width), in pixels; that of the image when 0
    """
    height, width = x.shape[-2:]
    out = (size or height, size or width) if isinstance(size, int) else size
    return resample(x.expand(n, *x.shape), boxes((n, len(x)), height, width, scale, ratio, x.device), out)


def boxes(lead: tuple[int, ...], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float],
          device: torch.device | str = "cpu") -> Tensor:
    """Random boxes (top, left, height, width) in pixels, [*lead, 4], not rounded: the first of ten draws that lies in the image;
    should none, the largest centred box of an allowed ratio."""
    draw = torch.rand(10, 4, *lead, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[:, 0])
    shape = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draw[:, 1])
    h, w = (area / shape).sqrt(), (area * shape).sqrt()                              # [10, *lead]
    fits = (h <= height) & (w <= width)
    first = fits.int().argmax(0, keepdim=True)
    h, w, down, right = (t.gather(0, first)[0] for t in (h, w, draw[:, 2], draw[:, 3]))
    whole = min(max(width / height, ratio[0]), ratio[1])
    none = ~fits.any(0)
    h = torch.where(none, min(height, width / whole), h)
    w = torch.where(none, min(width, height * whole), w)
    down, right = torch.where(none, 0.5, down), torch.where(none, 0.5, right)
    return torch.stack([down * (height - h), right * (width - w), h, w], -1)


@_exact
def resample(x: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies in each image's box (top, left, height, width; pixels, [..., 4]), at `size`: [..., channels, *size].

    Bilinear, antialiased when it shrinks; pixels outside of the box do not count. For boxes of whole pixels it is
    `F.interpolate(…, mode="bilinear", antialias=True)` of the crop.
    """
    rows = _bilinear(box[..., 0], box[..., 2], x.shape[-2], size[0]).to(x.dtype)     # [..., out, height]
    columns = _bilinear(box[..., 1], box[..., 3], x.shape[-1], size[1]).to(x.dtype)  # [..., out, width]
    return rows.unsqueeze(-3) @ x @ columns.unsqueeze(-3).mT


def _bilinear(start: Tensor, length: Tensor, pixels: int, out: int) -> Tensor:
    """How much each pixel of a line counts in each of the `out` pixels that cover it from `start` on: [..., out, pixels]."""
    start, length = start[..., None, None], length[..., None, None]
    edge = torch.arange(pixels, device=start.device, dtype=start.dtype)
    step = length / out
    centre = start + (torch.arange(out, device=start.device)[:, None] + 0.5) * step
    near = (1 - (centre - edge - 0.5).abs() / step.clamp(1)).clamp(0)
    inside = (torch.minimum(edge + 1, start + length) - torch.maximum(edge, start)).clamp(0, 1)
    share = near * inside
    return share / share.sum(-1, keepdim=True).clamp(torch.finfo(share.dtype).tiny)     # 0 beyond the image


def zoom(x: Tensor, scale: tuple[float, float] = (0.1, 2.0), fill: float = 0.5) -> tuple[Tensor, Tensor]:
    """Each image at a scale drawn evenly, in a frame of its old size (large-scale jitter, Ghiasi et al. 2021): of a larger one a
    random part is seen, a smaller one lies at the top left. → images, and the window that each shows (top, left, height, width)
    in pixels of the old one, [..., 4]."""
    height, width = x.shape[-2:]
    draw = torch.rand(3, *x.shape[:-3], device=x.device)
    factor = scale[0] + (scale[1] - scale[0]) * draw[0]
    h, w = height / factor, width / factor
    window = torch.stack([draw[1] * (height - h).clamp(0), draw[2] * (width - w).clamp(0), h, w], -1)
    return through(x, window, fill), window


@_exact
def through(x: Tensor, window: Tensor, fill: float = 0.5) -> Tensor:
    """The deed of `zoom`: `fill` stands where the window is beyond the image."""
    height, width = x.shape[-2:]
    down, right = height / window[..., 2], width / window[..., 3]
    image = torch.stack([-window[..., 0] * down, -window[..., 1] * right, height * down, width * right], -1)
    return torch.where(_inside(image, height, width), resample(x, window, (height, width)), fill)


def flip(x: Tensor, p: float = 0.5) -> Tensor:
    """Each image mirrored left to right with probability `p`."""
    return torch.where(_happens(x, p), x.flip(-1), x)


# --- colour ----------------------------------------------------------------------------------------------------------

@_exact
def jitter(x: Tensor, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.2, hue: float = 0.1,
           p: float = 1.0) -> Tensor:
    """Brightness, contrast, saturation and hue changed at random, in this order, with probability `p` per image.

    Factors are even in [max(0, 1 − s), 1 + s]; hue turns by an even draw from ±`hue` of the circle. The last two need three
    channels and leave other images as they are. Results are clamped to [0, 1].
    """
    done = adjust(x, _even(x, 1, brightness), _even(x, 1, contrast), _even(x, 1, saturation), hue * (2 * _draw(x) - 1))
    return torch.where(_happens(x, p), done, x)


@_exact
def adjust(x: Tensor, brightness: Tensor | float, contrast: Tensor | float, saturation: Tensor | float,
           hue: Tensor | float) -> Tensor:
    """The deed of `jitter`: factors (1: no change) and turn (0: none) per image, [..., 1, 1, 1]."""
    x = (x * brightness).clamp(0, 1)
    mean = luma(x).mean((-2, -1), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 1)
    if x.shape[-3] != 3:
        return x
    grey = luma(x)
    return turn((grey + (x - grey) * saturation).clamp(0, 1), hue)


def luma(x: Tensor) -> Tensor:
    """Brightness of each pixel, [..., 1, height, width]; the mean over channels unless there are three."""
    if x.shape[-3] != 3:
        return x.mean(-3, keepdim=True)
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True)


def turn(x: Tensor, hue: Tensor | float) -> Tensor:
    """The hue of RGB images turned by a share of the circle; saturation and value (of HSV) stay."""
    value, least = x.amax(-3), x.amin(-3)
    r, g, b = x.unbind(-3)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1)
    angle = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))  # sixths
    angle = angle.unsqueeze(-3) + 6 * hue
    k = (angle + angle.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)) % 6                # [..., 3, height, width]
    return value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(k, 4 - k).clamp(0, 1)


def grey(x: Tensor, p: float = 0.2) -> Tensor:
    """Each RGB image without its colour with probability `p`; other images as they are."""
    return torch.where(_happens(x, p), luma(x).expand_as(x), x) if x.shape[-3] == 3 else x


def solarise(x: Tensor, p: float = 0.2, threshold: float = 0.5) -> Tensor:
    """Each image with its values from `threshold` on inverted, with probability `p`."""
    return torch.where(_happens(x, p) & (x >= threshold), 1 - x, x)


@_exact
def blur(x: Tensor, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """Each image smoothed with probability `p` by a Gaussian of a deviation drawn evenly from `sigma`, in pixels."""
    return torch.where(_happens(x, p), smooth(x, sigma[0] + (sigma[1] - sigma[0]) * _draw(x)), x)


@_exact
def smooth(x: Tensor, sigma: Tensor) -> Tensor:
    """The deed of `blur`: sigma [..., 1, 1, 1] in pixels; at the border, weights of what is there sum to 1."""
    def weights(pixels: int) -> Tensor:
        at = torch.arange(pixels, device=x.device, dtype=sigma.dtype)
        return (-((at - at[:, None]) / sigma.clamp(1e-3)).square() / 2).softmax(-1).to(x.dtype)      # [..., 1, pixels, pixels]
    return weights(x.shape[-2]) @ x @ weights(x.shape[-1]).mT


@_exact
def erase(x: Tensor, p: float = 0.25, scale: tuple[float, float] = (0.02, 1 / 3),
          ratio: tuple[float, float] = (0.3, 10 / 3)) -> Tensor:
    """A random box of each image filled with noise, even in [0, 1], with probability `p` (Zhong et al. 2020)."""
    height, width = x.shape[-2:]
    hidden = _inside(boxes(tuple(x.shape[:-3]), height, width, scale, ratio, x.device), height, width)
    return torch.where(hidden & _happens(x, p), torch.rand_like(x), x)


# --- mixing ----------------------------------------------------------------------------------------------------------

def soft_labels(y: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Classes [batch] as probabilities [batch, classes], `smoothing` of them spread evenly; a negative class becomes zeros."""
    hot = F.one_hot(y.clamp(0), classes).float()
    return (hot * (1 - smoothing) + smoothing / classes) * (y >= 0)[:, None]


def mixup(x: Tensor, soft: Tensor, alpha: float = 0.8, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """λ·x + (1 − λ)·x of another sample, and the same of the labels, λ ~ Beta(α, α) per sample (Zhang et al. 2018).

    x [batch, channels, height, width], soft [batch, classes]; α = 0 changes nothing. other: the row with which each is mixed,
    [batch]; a permutation drawn at random when left out.
    """
    if not alpha:
        return x, soft
    share = torch.distributions.Beta(alpha, alpha).sample((len(x),)).to(x)           # [batch]
    return _mixed(x, soft, share.view(-1, 1, 1, 1), share, other)


def cutmix(x: Tensor, soft: Tensor, alpha: float = 1.0, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A box of every image from another sample; labels by area. The box has the image's shape, 1 − λ of its area with
    λ ~ Beta(α, α) per sample, a centre anywhere, and is cut at the border (Yun et al. 2019, sec. 3.1). α = 0 changes nothing.
    other: see `mixup`."""
    if not alpha:
        return x, soft
    stays = outside(x, alpha)
    return _mixed(x, soft, stays.to(x.dtype), stays.float().mean((1, 2, 3)), other)


def outside(x: Tensor, alpha: float) -> Tensor:
    """The pixels that `cutmix` leaves of every image, boolean [batch, 1, height, width]."""
    height, width = x.shape[-2:]
    side = (1 - torch.distributions.Beta(alpha, alpha).sample((len(x),)).to(x)).sqrt()
    h, w = (side * height).floor(), (side * width).floor()
    top = (torch.rand_like(side) * height).floor() - (h / 2).floor()
    left = (torch.rand_like(side) * width).floor() - (w / 2).floor()
    return ~_inside(torch.stack([top, left, h, w], -1), height, width)


def _mixed(x: Tensor, soft: Tensor, pixels: Tensor, share: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
    other = torch.randperm(len(x), device=x.device) if other is None else other
    return pixels * x + (1 - pixels) * x[other], share[:, None] * soft + (1 - share[:, None]) * soft[other]


# --- masks -----------------------------------------------------------------------------------------------------------

def random_mask(batch: int, tokens: int, share: float, device: torch.device | str = "cpu") -> Tensor:
    """Which tokens are hidden: boolean [batch, tokens], exactly tokens − ⌊tokens·(1 − share)⌋ of each sample."""
    return mask(torch.rand(batch, tokens, device=device), share)


def mask(noise: Tensor, share: float) -> Tensor:
    """The deed of `random_mask`: the tokens of largest noise are hidden. noise [batch, tokens]."""
    hidden = torch.ones_like(noise, dtype=torch.bool)
    return hidden.scatter_(1, visible(noise, share), False)


def visible(noise: Tensor, share: float) -> Tensor:
    """Numbers of the tokens that are not hidden, in order: [batch, ⌊tokens·(1 − share)⌋], those of smallest noise."""
    seen = int(noise.shape[1] * (1 - share) + 1e-9)
    return noise.argsort(1)[:, :seen].sort(1).values


def heard(x: Tensor, y: Any = None, *length: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Clips [batch, samples] of a sample (clip, label), or (clip, label, its length) where they are filled to one length: cut to
    the longest of the batch, and where there is sound, [batch, samples], as HuBERTs take it: `attention_mask`, or nothing."""
    if not length:
        return x, {}
    x = x[:, : int(length[0].max())]
    return x, {"attention_mask": (torch.arange(x.shape[1], device=x.device) < length[0][:, None]).long()}


def spans(batch: int, frames: int | Tensor, share: float, length: int) -> Tensor:
    """Frames to mask, [batch, frames]: share · frames / length spans in every clip, at least one, with different begins. Of clips
    of different lengths, frames [batch], each has its own share, and nothing is masked after its end."""
    if isinstance(frames, Tensor):
        return pad_sequence([spans(1, int(n), share, length)[0] for n in frames], batch_first=True)
    places = max(frames - length + 1, 1)
    count = min(max(int(share * frames / length + torch.rand(())), 1), places)
    offset = torch.arange(frames) - torch.rand(batch, places).topk(count, 1).indices[..., None]    # [batch, spans, frames]
    return ((offset >= 0) & (offset < length)).any(1)


# --- draws -----------------------------------------------------------------------------------------------------------

def _draw(x: Tensor) -> Tensor:
    """One even number in [0, 1) per image, [..., 1, 1, 1]."""
    return torch.rand(*x.shape[:-3], 1, 1, 1, device=x.device)


def _even(x: Tensor, middle: float, spread: float) -> Tensor:
    low = max(0.0, middle - spread)
    return low + (middle + spread - low) * _draw(x)


def _happens(x: Tensor, p: float) -> Tensor:
    return _draw(x) < p


def _inside(box: Tensor, height: int, width: int) -> Tensor:
    """Pixels whose centre lies in the box (top, left, height, width), boolean [..., 1, height, width]."""
    down = torch.arange(height, device=box.device) + 0.5
    right = torch.arange(width, device=box.device) + 0.5
    top, left, h, w = (t[..., None] for t in box.unbind(-1))
    rows, columns = (down >= top) & (down < top + h), (right >= left) & (right < left + w)
    return (rows[..., :, None] & columns[..., None, :]).unsqueeze(-3)
