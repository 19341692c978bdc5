"""Rows of logits as bytes and back: pairs of pure functions. Bytes a row are exact and known before anything is written.

    fp32, fp16, bf16   every logit: 4·classes, 2·classes, 2·classes bytes
    topK (top10, …)    the K largest: ⌈K·⌈log2 classes⌉ / 8⌉ bytes of packed classes, K bytes of log-probabilities, 6 bytes of
                       their range and of the tail's mass. K = 10 of 1000 classes: 29 bytes

The tail bucket is kept: what the K leave over is spread evenly over the other classes, so that no class has probability 0.
"""

import re

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused

DENSE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEVELS = 255         # steps between the largest and the smallest log-probability that is kept
LEAST = -60000.0     # log-mass of an empty tail: fp16 holds no less


def size(codec: str, classes: int) -> int:
    """Bytes of a row. Raises `Refused` for an unknown codec, or a K that leaves no tail."""
    if codec in DENSE:
        return DENSE[codec].itemsize * classes
    k = kept(codec, classes)
    return -(-k * bits(classes) // 8) + k + 6


def encode(logits: Tensor, codec: str) -> np.ndarray:
    """Logits [rows, classes] on the CPU → uint8 [rows, size]."""
    if codec in DENSE:
        told = logits.to(DENSE[codec])
        if not told.isfinite().all():
            raise Refused(f"logits up to {logits.abs().max():.3g} do not fit into {codec}", "store them as fp32 or bf16")
        return told.contiguous().view(torch.uint8).numpy()
    return _encode_top(logits, kept(codec, logits.shape[1]))


def decode(rows: np.ndarray, codec: str, classes: int) -> Tensor:
    """uint8 [rows, size] → logits [rows, classes]; of topK log-probabilities in fp32."""
    if codec in DENSE:
        return torch.from_numpy(np.ascontiguousarray(rows)).view(DENSE[codec])
    return _decode_top(rows, kept(codec, classes), classes)


def kept(codec: str, classes: int) -> int:
    """K of `topK`."""
    found = re.fullmatch(r"top([1-9]\d*)", codec)
    if not found:
        raise Refused(f"codec {codec!r} is unknown", f"one of {', '.join(DENSE)}, or top10, top64, …")
    if int(found[1]) >= classes:
        raise Refused(f"{codec} of {classes} classes leaves no tail", "a smaller K, or fp16 for all of them")
    return int(found[1])


def bits(classes: int) -> int:
    """Bits that number so many classes."""
    return max(1, (classes - 1).bit_length())


def pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """Whole numbers [rows, k] below 2^width → uint8 [rows, ⌈k·width / 8⌉], the highest bit first."""
    each = (numbers[..., None] >> np.arange(width - 1, -1, -1)) & 1                  # [rows, k, width]
    return np.packbits(each.astype(np.uint8).reshape(len(numbers), -1), axis=1)


def unpack(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """What `pack` was given: int64 [rows, count]."""
    each = np.unpackbits(packed, axis=1, count=count * width).reshape(len(packed), count, width)
    return each.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))


def _encode_top(logits: Tensor, k: int) -> np.ndarray:
    log = logits.double().log_softmax(-1)
    top, at = log.topk(k)                                                            # [rows, k], descending
    rest = log.scatter(1, at, -torch.inf).logsumexp(-1, keepdim=True)
    head = torch.cat([top[:, :1], top[:, -1:], rest], 1).clamp(LEAST).half()         # [rows, 3]
    high, low = head[:, :1].double(), head[:, 1:2].double()
    step = ((top - low) / (high - low).clamp(1e-9) * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)
    packed = pack(at.numpy(), bits(logits.shape[1]))
    return np.concatenate([packed, step.numpy(), head.contiguous().view(torch.uint8).numpy()], 1)


def _decode_top(rows: np.ndarray, k: int, classes: int) -> Tensor:
    packed = -(-k * bits(classes) // 8)
    at = torch.from_numpy(unpack(rows[:, :packed], k, bits(classes)))
    step = torch.from_numpy(rows[:, packed : packed + k].astype(np.float32))
    head = torch.from_numpy(np.ascontiguousarray(rows[:, packed + k :])).view(torch.float16).float()
    high, low, rest = head.split(1, dim=1)
    dense = (rest - float(np.log(classes - k))).expand(-1, classes).clone()          # [rows, classes]
    return dense.scatter_(1, at, low + (high - low) * step / LEVELS)
