"""Ask a teacher about every sample once. Shards appear whole or not at all; a write that was killed goes on where it was."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Module
from torch.utils.data import default_collate

import stillroom
from stillroom.batches import tagged, to_device
from stillroom.errors import Refused
from stillroom.measure.cost import resting
from stillroom.progress import Progress
from stillroom.saved import _atomic
from stillroom.store import codecs, prints
from stillroom.store.reading import CHECK, FORMAT, about, checksum, names, shards, whole

SHARD = 2**28       # bytes of a shard


@torch.no_grad()
def write(folder: str | Path, teacher: Module, data: Any, *, codec: str = "fp32", batch: int = 256, device: str = "cpu",
          rows: int = 0, rank: int = 0, ranks: int = 1, show: bool = False) -> Path:
    """The teacher's logits of all samples of `data` (their first element, a tensor or a dict of tensors), in a folder.

    codec        fp32, fp16, bf16, topK: see `store.codecs`
    batch        samples that the teacher is asked about at a time
    rows         of a shard; as many as fill 256 MiB when 0
    rank, ranks  of writers side by side: rank r writes shards r, r + ranks, …

    The same call goes on where it was killed, and rewrites a damaged shard. Raises `Refused` when the folder holds the store of
    another teacher, of other data or in another codec, or when another process is writing there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, rank), resting(teacher.to(device)):
        first = _said(teacher, data, range(min(2, len(data))), device)[1]
        size = CHECK + codecs.size(codec, first.shape[1])
        told: dict[str, Any] = {"format": FORMAT, "teacher": prints.of_teacher(teacher),
                                "data": prints.of_data(data), "codec": codec, "classes": first.shape[1],
                                "count": len(data), "rows": rows or max(1, SHARD // size)}
        _begin(folder, told, rank)
        progress = Progress(show)
        progress.begin("cache", len(data), 0)
        try:
            for shard in range(rank, shards(told), ranks):
                span = range(shard * told["rows"], min(len(data), (shard + 1) * told["rows"]))
                try:
                    whole(folder, shard, len(span) * size)
                except Refused:
                    _shard(folder, shard, _rows(teacher, data, span, batch, device, codec, progress))
        finally:
            progress.close()
    return folder


def _begin(folder: Path, told: dict[str, Any], rank: int) -> None:
    """store.json, unless it is there already and says the same."""
    file = folder / "store.json"
    if file.exists():
        before = about(folder)
        other = [k for k in told if before.get(k) != told[k]]
        if other:
            raise Refused(f"{folder} holds the store of another {' and '.join(other)}",
                          "name another folder, or delete this one: a store belongs to one teacher and one data set")
        return
    text = json.dumps({**told, "version": stillroom.__version__}, indent=1) + "\n"
    _atomic(file, lambda new: new.write_text(text, encoding="utf-8"), by=rank)


def _shard(folder: Path, shard: int, parts: Iterator[np.ndarray]) -> None:
    """The rows first, then what vouches for them."""
    file, voucher = names(folder, shard)
    voucher.unlink(missing_ok=True)

    def fill(new: Path) -> None:
        with open(new, "wb") as opened:
            for part in parts:
                opened.write(part.tobytes())
    _atomic(file, fill)
    told = json.dumps({"bytes": file.stat().st_size, "blake2b": checksum(file)})
    _atomic(voucher, lambda new: new.write_text(told + "\n", encoding="utf-8"))


def _rows(teacher: Module, data: Any, span: range, batch: int, device: str, codec: str,
          progress: Progress) -> Iterator[np.ndarray]:
    for start in range(span.start, span.stop, batch):
        part = range(start, min(start + batch, span.stop))
        checks, logits = _said(teacher, data, part, device)
        yield np.concatenate([checks, codecs.encode(logits, codec)], 1)
        progress.advance("cache", part.stop, {})


def _said(teacher: Module, data: Any, part: range, device: str) -> tuple[np.ndarray, torch.Tensor]:
    """Checks of the inputs, uint8 [samples, 2], and what the teacher said of them, [samples, classes] on the CPU."""
    inputs = [data[i][0] for i in part]
    checks = np.array([prints.of_sample(x) for x in inputs], "<u2").view(np.uint8).reshape(-1, CHECK)
    x = tagged(default_collate(inputs), torch.tensor(part))
    out = teacher(to_device(x, torch.device(device)))
    out = out["logits"] if isinstance(out, Mapping) else out
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        raise Refused("this teacher gives no logits [batch, classes]", "the store holds outputs of classifiers")
    if not out.isfinite().all():
        raise Refused(f"the teacher's answers to samples {part.start} to {part.stop - 1} are not finite", "look at these samples")
    return checks, out.float().cpu()


@contextmanager
def _alone(folder: Path, rank: int) -> Iterator[None]:
    """No other process writes these shards; the lock ends with the process, however it ends."""
    import fcntl

    with open(folder / f"{rank}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"another process is writing {folder}", "wait for it, or name another folder") from error
        yield
