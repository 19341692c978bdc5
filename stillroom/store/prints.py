"""What a store was made from: digests of the teacher with its preprocessing, of the data with its views, of each sample."""

import zlib
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Subset, TensorDataset

from stillroom.store.views import Views

LOOKS = 64      # samples that are read for the fingerprint of data


def of_teacher(teacher: Module) -> str:
    """Hex digest of kind, weights and buffers; the input scale of a model of the zoo or of `Frozen` is among the buffers."""
    digest = blake2b(type(teacher).__name__.encode(), digest_size=16)
    for name, value in (*teacher.named_parameters(), *teacher.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + _bytes(value))
    return digest.hexdigest()


def of_data(data: Any) -> str:
    """Hex digest of length and inputs, whatever the labels are: all of arrays, what `content` says of files, and of every data
    set 64 samples spread over it as they come, so that a changed augmentation shows."""
    digest = blake2b(f"{len(data)} {_about(data)}".encode(), digest_size=16)
    for i in sorted({int(i) for i in np.linspace(0, len(data) - 1, LOOKS)}):
        digest.update(of_sample(data[i][0]).to_bytes(2, "little"))
    return digest.hexdigest()


def of_sample(x: Any) -> int:
    """16 bits that follow from the bytes of one input, a tensor or a dict of tensors."""
    values = x.values() if isinstance(x, Mapping) else [x]
    check = 0
    for value in values:
        check = zlib.crc32(_bytes(value), check)
    return check & 0xFFFF


def _about(data: Any) -> str:
    if isinstance(data, Views):
        return f"views {data.count} {data.seed} {data.mixup} {_about(data.data)}"
    if isinstance(data, Subset):
        return f"{_about(data.dataset)} {_digest(torch.as_tensor(data.indices))}"
    if isinstance(data, TensorDataset):
        return _digest(data.tensors[0])
    return f"{getattr(data, 'content', '')} {_digest(data.index)}" if hasattr(data, "content") else ""


def _digest(x: Tensor) -> str:
    return blake2b(_bytes(x), digest_size=16).hexdigest()


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
