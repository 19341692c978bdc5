"""What a store was made from: digests of the teacher with its preprocessing, of the data with its views, of each sample."""

import ast
import inspect
import re
import sysconfig
import textwrap
import zlib
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Subset, TensorDataset

from stillroom.store.views import Views

LOOKS = 64      # samples that are read for the fingerprint of data
READ = 1024     # values of a tensor, at most, that its check is made from


def of_teacher(teacher: Module) -> str:
    """Hex digest of weights, buffers (the input scale of a model of the zoo or of `Frozen` is among them) and of what modules do:
    how they print, and their classes by name and, of code that was not installed as a package, by source without comments.
    Functions that a forward calls outside of its classes are not seen."""
    kinds = sorted({_deed(kind) for module in teacher.modules() for kind in type(module).__mro__[:-1]})
    shown = re.sub(r"0x[0-9a-f]+", "", repr(teacher))                # without addresses
    digest = blake2b(repr([type(teacher).__qualname__, shown, kinds]).encode(), digest_size=16)
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
    """`of_samples` of one input."""
    return of_samples({k: v[None] for k, v in x.items()} if isinstance(x, Mapping) else x[None])[0]


def of_samples(x: Any) -> list[int]:
    """16 bits for each input of a batch, a tensor or a dict of tensors: they follow from all values of a tensor that has up to
    1,024, else from some hundreds, spread evenly over it."""
    checks = [0] * len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    for value in x.values() if isinstance(x, Mapping) else [x]:
        flat = value.detach().flatten(1) if value.ndim > 1 else value.detach()[:, None]
        step = -(-flat.shape[1] // READ) or 1
        while gcd(step, flat.shape[1]) > 1:          # else it would meet the same few columns of an image again and again
            step += 1
        rows = flat[:, ::step].cpu().contiguous().view(torch.uint8).numpy()
        checks = [zlib.crc32(row.tobytes(), check) for row, check in zip(rows, checks, strict=True)]
    return [check & 0xFFFF for check in checks]


@cache
def _deed(kind: type) -> str:
    """A class as it works: its name, and its source where that is a user's own."""
    try:
        home = Path(inspect.getfile(kind)).resolve()
        if kind.__module__.partition(".")[0] != "stillroom" and not any(root in home.parents for root in _installed()):
            return f"{kind.__qualname__} {ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(kind))))}"
    except (OSError, TypeError, SyntaxError):        # typed in by hand, or built in
        pass
    return kind.__qualname__


@cache
def _installed() -> set[Path]:
    """Where packages lie: their code changes with their version, and a store outlives it."""
    return {Path(home).resolve() for name, home in sysconfig.get_paths().items() if name in ("stdlib", "purelib", "platlib")}


def _about(data: Any) -> str:
    if isinstance(data, Views):
        return f"views {data.count} {data.seed} {data.mixup} {data.cutmix} {_about(data.data)}"
    if isinstance(data, Subset):
        return f"{_about(data.dataset)} {_digest(torch.as_tensor(data.indices))}"
    if isinstance(data, TensorDataset):
        return _digest(data.tensors[0])
    return f"{getattr(data, 'content', '')} {_digest(data.index)}" if hasattr(data, "content") else ""


def _digest(x: Tensor) -> str:
    return blake2b(_bytes(x), digest_size=16).hexdigest()


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
