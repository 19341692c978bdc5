"""Spectra of waves as ears hear them: triangles on the mel scale, logarithms."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def spectrum(x: Tensor, size: int, hop: int) -> Tensor:
    """Complex spectra [batch, size / 2 + 1, frames] of waves [batch, samples] under Hann windows of `size` samples, `hop` apart.
    Samples / hop frames, rounded down: (size − hop) / 2 samples are mirrored at each end, as in HiFi-GAN (Kong et al. 2020)."""
    beyond = (size - hop) // 2
    x = F.pad(x[:, None].float(), (beyond, beyond), mode="reflect")[:, 0]
    return torch.stft(x, size, hop, window=torch.hann_window(size, device=x.device), center=False, return_complex=True)


@lru_cache(maxsize=32)
def filterbank(bins: int, mels: int, rate: int, low: float = 0.0, high: float | None = None) -> Tensor:
    """Weights [mels, bins] of `mels` triangles, evenly spaced from `low` to `high` Hz (half the rate when left out) on the scale
    m = 2595·log₁₀(1 + f / 700) (O'Shaughnessy 1987), each of area 1 over Hz: peak 2 / width (Slaney 1998). Do not change it."""
    first, last = (2595 * math.log10(1 + end / 700) for end in (low, rate / 2 if high is None else high))
    marks = torch.linspace(first, last, mels + 2, dtype=torch.float64)
    marks = 700 * (10 ** (marks / 2595) - 1)                                                  # [mels + 2], Hz
    left, peak, right = marks[:-2, None], marks[1:-1, None], marks[2:, None]
    at = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    return (torch.minimum((at - left) / (peak - left), (right - at) / (right - peak)).clamp(0) * 2 / (right - left)).float()


def log_mel(x: Tensor, rate: int, size: int = 1024, hop: int = 240, mels: int = 80, high: float | None = None) -> Tensor:
    """ln max(10⁻⁵, filterbank · |spectrum|), [batch, mels, frames], in fp32. x [batch, samples]."""
    with torch.autocast(x.device.type, enabled=False):
        power = spectrum(x, size, hop).abs() + 1e-9                                   # its gradient is finite where it is 0
        return (filterbank(size // 2 + 1, mels, rate, 0.0, high).to(x.device) @ power).clamp(1e-5).log()
