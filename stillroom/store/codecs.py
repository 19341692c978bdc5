"""A teacher's outputs as bytes and back: one table of pairs of pure functions.

    fp32, fp16, bf16   every number: 4, 2, 2 bytes
    int8               every number in a byte, and 2 bytes of scale for each 64 that follow one another: 1.03 bytes a number
    topK (top10, …)    logits, the K largest: ⌈K·⌈log2 classes⌉ / 8⌉ bytes of packed classes, K bytes of log-probabilities, 6
                       bytes of their range and of the tail's mass. K = 10 of 1000 classes: 29 bytes
    topK@MASS          logits of tokens, the fewest ids that hold MASS percent of the probability, at most K, as `store.kept`
                       codes them: as long as it takes, so that rows differ in length

Tails are kept: what the listed leave over is a mass of its own, spread evenly over the other classes where all are asked for.

A scale for 64 numbers, rather than one for a row or a channel: one large channel, as the hidden states of transformers have,
spoils 63 neighbours and no more (in the digits' teacher the error is half of that with one scale a row), and no statistics of the
data are needed before the first row is written.
"""

import re
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from stillroom.errors import Refused
from stillroom.store.bits import pack, unpack
from stillroom.store.kept import Kept, from_bytes, keep, to_bytes

LEVELS = 255         # steps between the largest and the smallest log-probability that topK keeps
LEAST = -60000.0     # log-mass of an empty tail: fp16 holds no less
BLOCK = 64           # numbers that share a scale in int8


class Codec(NamedTuple):
    """Rows of one shape as bytes: how many a row takes (0 where that varies), there and back."""
    size: Callable[[tuple[int, ...]], int]
    encode: Callable[[Any], np.ndarray]                          # Tensor [rows, *shape] or Kept → uint8 [rows, size] or [bytes]
    decode: Callable[[np.ndarray, int, tuple[int, ...]], Any]    # those, rows and shape → Tensor [rows, *shape] or Kept


def find(name: str) -> Codec:
    """The codec of that name. Raises `Refused` for an unknown one."""
    if name in TABLE:
        return TABLE[name]
    if not (told := re.fullmatch(r"top([1-9]\d*)(?:@(\d+(?:\.\d+)?))?", name)) or not 0 < float(told[2] or 100) <= 100:
        raise Refused(f"codec {name!r} is unknown", f"one of {', '.join(TABLE)}, or top10, top64, …, or top64@99.9, …")
    k = int(told[1])
    if told[2] is None:
        return Codec(partial(_top_size, k), partial(_to_top, k), partial(_from_top, k))
    return Codec(lambda shape: _tail(k, shape[-1]) and 0, partial(_to_kept, k, float(told[2]) / 100),
                 lambda raw, rows, shape: from_bytes(raw.reshape(-1), rows, shape[-1]))


def size(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a row; 0 where rows differ. Raises `Refused` for an unknown codec, or a K that leaves no tail."""
    return find(name).size(tuple(shape))


# --- every number ------------------------------------------------------------------------------------------------------

def _to_floats(dtype: torch.dtype, values: Tensor) -> np.ndarray:
    told = values.to(dtype)
    if not told.isfinite().all():
        raise Refused(f"outputs up to {values.abs().max():.3g} do not fit into {str(dtype)[6:]}", "store them as fp32 or bf16")
    return told.cpu().flatten(1).contiguous().view(torch.uint8).numpy()


def _from_floats(dtype: torch.dtype, raw: np.ndarray, rows: int, shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(raw.reshape(-1)).view(dtype).view(rows, *shape)


def _int8_size(shape: tuple[int, ...]) -> int:
    numbers = prod(shape)
    return numbers + 2 * -(-numbers // BLOCK)


def _to_int8(values: Tensor) -> np.ndarray:
    flat = values.float().cpu().flatten(1)                                           # [rows, numbers]
    blocks = pad(flat, (0, -flat.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))        # [rows, blocks, 64]
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).to(torch.bfloat16)
    codes = (blocks / scale.float().clamp(min=1e-38)).round().clamp(-127, 127).to(torch.int8)
    parts = codes.flatten(1)[:, : flat.shape[1]], scale[..., 0].contiguous()
    return np.concatenate([part.contiguous().view(torch.uint8).numpy() for part in parts], 1)


def _from_int8(raw: np.ndarray, rows: int, shape: tuple[int, ...]) -> Tensor:
    numbers, raw = prod(shape), raw.reshape(rows, _int8_size(shape))
    codes = torch.from_numpy(raw[:, :numbers].view(np.int8).astype(np.float32))
    scale = torch.tensor(raw[:, numbers:]).view(torch.bfloat16).float()            # [rows, blocks]
    return (codes * scale.repeat_interleave(BLOCK, 1)[:, :numbers]).view(rows, *shape)


# --- the K largest, rows of one length ---------------------------------------------------------------------------------

def bits(classes: int) -> int:
    """Bits that number so many classes."""
    return max(1, (classes - 1).bit_length())


def _tail(k: int, classes: int) -> int:
    if k >= classes:
        raise Refused(f"the top {k} of {classes} classes leave no tail", "a smaller K, or fp16 for all of them")
    return k


def _top_size(k: int, shape: tuple[int, ...]) -> int:
    return -(-_tail(k, shape[-1]) * bits(shape[-1]) // 8) + k + 6


def _to_top(k: int, given: Tensor | Kept) -> np.ndarray:
    kept = keep(given, k)
    head = torch.cat([kept.logp[:, :1], kept.logp[:, -1:], kept.rest], 1).clamp(LEAST).half()        # [rows, 3]
    high, low = head[:, :1].double(), head[:, 1:2].double()
    logp = torch.cat([high, kept.logp[:, 1:-1], low], 1)[:, :k]                      # the ends as they are stored
    step = ((logp - low) / torch.where(high > low, high - low, torch.inf) * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)
    packed = pack(kept.ids.numpy(), bits(kept.classes))
    return np.concatenate([packed, step.numpy(), head.contiguous().view(torch.uint8).numpy()], 1)


def _from_top(k: int, raw: np.ndarray, rows: int, shape: tuple[int, ...]) -> Kept:
    width, raw = bits(shape[-1]), raw.reshape(rows, _top_size(k, shape))
    ids, step, head = np.split(raw, [packed := -(-k * width // 8), packed + k], axis=1)
    high, low, rest = torch.from_numpy(head.copy().view("<f2").astype(np.float32)).split(1, dim=1)
    logp = low + (high - low) * torch.from_numpy(step.astype(np.float32)) / LEVELS
    return Kept(torch.from_numpy(unpack(ids, k, width)), logp, rest, shape[-1])


def _to_kept(k: int, mass: float, given: Tensor | Kept) -> np.ndarray:
    return np.frombuffer(to_bytes(keep(given, k, mass)), np.uint8)


def _floats(dtype: torch.dtype) -> Codec:
    return Codec(lambda shape: dtype.itemsize * prod(shape), partial(_to_floats, dtype), partial(_from_floats, dtype))


TABLE = {
    "fp32": _floats(torch.float32),
    "fp16": _floats(torch.float16),
    "bf16": _floats(torch.bfloat16),
    "int8": Codec(_int8_size, _to_int8, _from_int8),
}
