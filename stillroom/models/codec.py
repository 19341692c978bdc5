"""A codec of speech as EnCodec's (Défossez et al. 2022) and SpeechTokenizer's (Zhang et al. 2023), and its judges."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from stillroom.errors import Refused
from stillroom.parts.losses.scores import Told
from stillroom.parts.mel import spectrum
from stillroom.parts.residual_vq import Quantised, ResidualVQ


class Coded(NamedTuple):
    wave: Tensor             # [batch, samples]
    said: Quantised


class Codec(Module):
    """Waves [batch, samples] → `Coded`: the wave that comes out, and what was said of it in between.

    encode, decode   waves → codes [batch, quantisers, frames] → waves; fewer quantisers give coarser ones
    filters          channels at the full rate; twice as many after each stride
    strides          of the decoder, in its order; their product is the samples of a frame
    codes, quantisers   vectors of a codebook, codebooks; decay: of their moving averages
    layers           of the recurrent nets, to both sides in the encoder
    """

    def __init__(self, filters: int = 64, strides: Sequence[int] = (8, 5, 4, 2), dim: int = 1024, codes: int = 1024,
                 quantisers: int = 8, layers: int = 2, decay: float = 0.99):
        super().__init__()
        wide = filters * 2 ** len(strides)
        self.dim, self.hop = dim, prod(strides)
        down: list[Module] = []
        for n, stride in enumerate(reversed(strides)):
            width = filters * 2**n
            down += [Residual(width), nn.ELU(), _conv(width, 2 * width, 2 * stride, stride)]
        self.encoder = nn.Sequential(_conv(1, filters, 7), *down, Recurrent(wide, layers, both=True), nn.ELU(),
                                     _conv(2 * wide, dim, 7))
        self.quantiser = ResidualVQ(dim, codes, quantisers, decay)
        up: list[Module] = []
        for n, stride in enumerate(strides):
            width = wide // 2**n
            up += [nn.ELU(), Transposed(width, width // 2, stride), Residual(width // 2)]
        self.decoder = nn.Sequential(_conv(dim, wide, 7), Recurrent(wide, layers), *up, nn.ELU(), _conv(filters, 1, 7))

    def forward(self, x: Tensor) -> Coded:
        said = self.quantiser(self.vectors(x))
        return Coded(self.wave(said.total)[:, : x.shape[1]], said)

    def vectors(self, x: Tensor) -> Tensor:
        """What is quantised, [batch, frames, dim]; the last frame is filled with silence."""
        return self.encoder(F.pad(x, (0, -x.shape[1] % self.hop))[:, None]).mT

    def wave(self, vectors: Tensor) -> Tensor:
        """[batch, frames, dim] → [batch, frames · hop]."""
        return self.decoder(vectors.mT)[:, 0]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.quantiser(self.vectors(x)).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.wave(self.quantiser.decode(codes))


def coder(net: Module) -> Codec:
    """The network itself, if it is a codec. Raises `Refused`."""
    if not isinstance(net, Codec):
        raise Refused(f"{type(net).__name__} is no codec", "give stillroom.models.codec.Codec(…)")
    return net


class Mirrored(Module):
    """A convolution with weight norm that gives samples / stride samples: what lies beyond the ends is mirrored."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv, beyond = weight_norm(nn.Conv1d(inputs, outputs, kernel, stride)), kernel - stride
        self.beyond = (beyond - beyond // 2, beyond // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.beyond, mode="reflect" if x.shape[-1] > max(self.beyond) else "replicate"))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Mirrored:
    return Mirrored(inputs, outputs, kernel, stride)


class Transposed(Module):
    """Gives stride · samples samples."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv, self.stride = weight_norm(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride)), stride

    def forward(self, x: Tensor) -> Tensor:
        first = self.stride - self.stride // 2
        return self.conv(x)[..., first : first + self.stride * x.shape[-1]]


class Residual(Module):
    def __init__(self, width: int):
        super().__init__()
        self.past = _conv(width, width, 1)
        self.branch = nn.Sequential(nn.ELU(), _conv(width, width // 2, 3), nn.ELU(), _conv(width // 2, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.past(x) + self.branch(x)


class Recurrent(Module):
    """An LSTM over time, added to what goes in; `both`: to both sides, twice as wide."""

    def __init__(self, width: int, layers: int, both: bool = False):
        super().__init__()
        self.lstm, self.both = nn.LSTM(width, width, layers, batch_first=True, bidirectional=both), both

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.mT)[0].mT + (torch.cat([x, x], 1) if self.both else x)


# --- judges: waves [batch, samples] → a list of `Told` -----------------------------------------------------------------

class Judges(nn.ModuleList):
    """Several judges as one."""

    def forward(self, x: Tensor) -> list[Told]:
        return [told for judge in self for told in judge(x)]


def judges(width: int = 32, periods: Sequence[int] = (2, 3, 5, 7, 11), scales: int = 3,
           sizes: Sequence[int] = (1024, 2048, 512, 256, 128)) -> Judges:
    """The three kinds, by period, by scale, by spectrum, of the paper's sizes when left alone. width: of their first layers."""
    return Judges([*(ByPeriod(p, width) for p in periods), *([ByScale(4 * width, scales)] if scales else []),
                   *(BySpectrum(size, width) for size in sizes)])


def _told(layers: Sequence[Module], last: Module, x: Tensor, slope: float) -> Told:
    maps = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        maps.append(x)
    x = last(x)
    return x.flatten(1), maps


class ByPeriod(Module):
    """Looks at every `period`-th sample (Kong et al. 2020)."""

    def __init__(self, period: int, width: int = 32):
        super().__init__()
        widths = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        self.period = period
        self.layers = nn.ModuleList(weight_norm(nn.Conv2d(a, b, (5, 1), (3 if n < 4 else 1, 1), (2, 0)))
                                    for n, (a, b) in enumerate(pairwise(widths)))
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> list[Told]:
        x = F.pad(x[:, None], (0, -x.shape[1] % self.period), mode="reflect")
        return [_told(self.layers, self.last, x.unflatten(-1, (-1, self.period)), 0.1)]        # [batch, 1, time, period]


class ByScale(Module):
    """Looks at the wave, and at the wave averaged once and twice more (Kumar et al. 2019)."""

    def __init__(self, width: int = 128, scales: int = 3):
        super().__init__()
        self.scales = nn.ModuleList(_Scale(width, weight_norm if n else spectral_norm) for n in range(scales))

    def forward(self, x: Tensor) -> list[Told]:
        x, told = x[:, None], []
        for scale in self.scales:
            told.append(scale(x))
            x = F.avg_pool1d(x, 4, 2, padding=2)
        return told


class _Scale(Module):
    def __init__(self, width: int, norm):
        super().__init__()
        make = ((1, 1, 15, 1, 1), (1, 1, 41, 2, 4), (1, 2, 41, 2, 16), (2, 4, 41, 4, 16), (4, 8, 41, 4, 16),
                (8, 8, 41, 1, 16), (8, 8, 5, 1, 1))
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(a * width if n else 1, b * width, kernel, stride, kernel // 2, groups=min(groups, width)))
            for n, (a, b, kernel, stride, groups) in enumerate(make))
        self.last = norm(nn.Conv1d(8 * width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Told:
        return _told(self.layers, self.last, x, 0.1)


class BySpectrum(Module):
    """Looks at real and imaginary part of the spectra of windows of `size` samples (Défossez et al. 2022)."""

    def __init__(self, size: int, width: int = 32):
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList([
            weight_norm(nn.Conv2d(2, width, (3, 9), padding=(1, 4))),
            *(weight_norm(nn.Conv2d(width, width, (3, 9), (1, 2), (far, 4), (far, 1))) for far in (1, 2, 4)),
            weight_norm(nn.Conv2d(width, width, 3, padding=1))])
        self.last = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Told]:
        with torch.autocast(x.device.type, enabled=False):
            z = spectrum(x, self.size, self.size // 4) / (self.size * 3 / 8) ** 0.5              # by the window's power
        return [_told(self.layers, self.last, torch.stack([z.real, z.imag], 1).mT, 0.2)]       # [batch, 2, frames, bins]
