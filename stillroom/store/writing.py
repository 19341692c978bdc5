"""Ask a teacher about every sample once. Shards appear whole or not at all; a write that was killed goes on where it was."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn import Module
from torch.utils.data import DataLoader, default_collate

import stillroom
from stillroom.batches import ids, tagged, to_device
from stillroom.errors import Refused
from stillroom.measure.cost import resting
from stillroom.progress import Progress
from stillroom.saved import _atomic
from stillroom.store import codecs, prints
from stillroom.store.reading import CHECK, FORMAT, about, checksum, names, shards, whole

SHARD = 2**28       # bytes of a shard, at most
SAMPLES = 2**16     # and its samples: what a kill costs


@torch.no_grad()
def write(folder: str | Path, teacher: Module, data: Any, *, codec: str = "fp32", batch: int = 256, device: str = "cpu",
          rows: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0, origin: dict[str, Any] | None = None,
          name: str = "cache", show: bool = False) -> Path:
    """The teacher's logits of all samples of `data` (their first element, a tensor or a dict of tensors), in a folder.

    codec        fp32, fp16, bf16, topK: see `store.codecs`
    batch        samples that the teacher is asked about at a time
    rows         of a shard, which is what a kill costs; 65,536, or as many as fill 256 MiB, when 0
    rank, ranks  of writers side by side: rank r writes shards r, r + ranks, …
    workers      processes that read and augment the samples
    origin       by which names data and views are had again: see `store.origin`
    name, show   progress with time left, by this name

    The same call goes on where it was killed, and rewrites a damaged shard. Raises `Refused` when the folder holds the store of
    another teacher, of other data or in another codec, or when another process is writing there.
    """
    folder = Path(folder)
    if not torch.equal(ids(data), torch.arange(len(data))):
        raise Refused("these data are a part of others, whose numbers their samples keep",
                      "write the store of the whole and train on the part, or put the part into store.Views in both places")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, rank), resting(teacher.to(device)):
        few = range(min(2, len(data)))
        first = _said(teacher, next(_inputs(data, [few], 0)), few, device)[1]
        size = CHECK + codecs.size(codec, first.shape[1])
        told: dict[str, Any] = {"format": FORMAT, "teacher": prints.of_teacher(teacher),
                                "data": prints.of_data(data), "codec": codec, "classes": first.shape[1],
                                "count": len(data), "rows": rows or max(1, min(SHARD // size, SAMPLES))}
        _begin(folder, told, rank, origin)
        spans = {s: range(s * told["rows"], min(len(data), (s + 1) * told["rows"])) for s in range(rank, shards(told), ranks)}
        left = [s for s, span in spans.items() if not _there(folder, s, len(span) * size)]
        total = sum(map(len, spans.values()))
        done = total - sum(len(spans[s]) for s in left)
        progress = Progress(show)
        progress.begin(name, total, done)
        parts = {s: [range(i, min(i + batch, spans[s].stop)) for i in range(spans[s].start, spans[s].stop, batch)] for s in left}
        inputs = _inputs(data, [part for s in left for part in parts[s]], workers)
        try:
            for s in left:
                _shard(folder, s, _rows(teacher, inputs, parts[s], device, codec, progress, name, done))
                done += len(spans[s])
        finally:
            progress.close()
    return folder


def _there(folder: Path, shard: int, size: int) -> bool:
    """Whether a shard is written, and whole."""
    try:
        return bool(whole(folder, shard, size))
    except Refused:
        return False


def _begin(folder: Path, told: dict[str, Any], rank: int, origin: dict[str, Any] | None) -> None:
    """store.json, unless it is there already and says the same; other names for the same things are the same."""
    file = folder / "store.json"
    if file.exists():
        before = about(folder)
        other = [k for k in told if before.get(k) != told[k]]
        if other:
            raise Refused(f"{folder} holds the store of another {' and '.join(other)}",
                          "name another folder, or delete this one: a store belongs to one teacher and one data set")
        return
    text = json.dumps({**told, "version": stillroom.__version__, **({"origin": origin} if origin else {})}, indent=1) + "\n"
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


def _inputs(data: Any, parts: list[range], workers: int) -> Iterator[tuple[Any, np.ndarray]]:
    """The inputs of some samples at a time, as a batch, and their checks, uint8 [samples, 2]."""
    return iter(DataLoader(data, batch_sampler=parts, num_workers=workers, collate_fn=_collated))  # type: ignore[arg-type]


def _collated(samples: list[Any]) -> tuple[Any, np.ndarray]:
    x = default_collate([sample[0] for sample in samples])
    return x, np.array(prints.of_samples(x), "<u2").view(np.uint8).reshape(-1, CHECK)


def _rows(teacher: Module, inputs: Iterator[tuple[Any, np.ndarray]], parts: list[range], device: str, codec: str,
          progress: Progress, name: str, done: int) -> Iterator[np.ndarray]:
    for part in parts:
        checks, logits = _said(teacher, next(inputs), part, device)
        yield np.concatenate([checks, codecs.encode(logits, codec)], 1)
        done += len(part)
        progress.advance(name, done, {})


def _said(teacher: Module, inputs: tuple[Any, np.ndarray], part: range, device: str) -> tuple[np.ndarray, torch.Tensor]:
    """Checks of the inputs, uint8 [samples, 2], and what the teacher said of them, [samples, classes] on the CPU."""
    x, checks = inputs
    tagged(x, torch.tensor(part))
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
    lock = FileLock(folder / f"{rank}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise Refused(f"another process is writing {folder}", "wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock.release()
