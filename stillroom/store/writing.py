"""Ask a teacher about every sample once. Shards appear whole or not at all; a write that was killed goes on where it was."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, default_collate

import stillroom
from stillroom.batches import ids, tagged, to_device
from stillroom.errors import Refused
from stillroom.measure.cost import resting
from stillroom.parts.taps import Hidden, Stages, Tap, read_by
from stillroom.progress import Progress
from stillroom.saved import _atomic
from stillroom.store import layout, prints
from stillroom.store.answers import shown
from stillroom.store.layout import Layout, Output
from stillroom.store.reading import FORMAT, SEAL, about, checksum, names, seal, shards, whole

SHARD = 2**28       # bytes of a shard, at most
SAMPLES = 2**16     # and its samples: what a kill costs


@torch.no_grad()
def write(folder: str | Path, teacher: Module | Tap | Stages | Hidden, data: Any, *, codec: str = "fp32", features: str = "fp16",
          batch: int = 256, device: str = "cpu", rows: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0,
          origin: dict[str, Any] | None = None, mark: str = "", name: str = "cache", show: bool = False) -> Path:
    """What the teacher says of all samples of `data` (their first element, a tensor or a dict of tensors), in a folder.

    teacher      the network; or a tap on it (`Tap(teacher, "layer3")`, `stages(teacher, 2)`, `hidden(teacher, -1)`), and what
                 the tap reads is stored beside the logits, to be read by the same tap on `Cached(folder)`
    codec        of the logits: fp32, fp16, bf16, int8, topK, for tokens also topK@MASS: see `store.codecs`
    features     codec of what the tap reads: fp32, fp16, bf16, int8
    batch        samples that the teacher is asked about at a time
    rows         of a shard, which is what a kill costs; 65,536, or as many as fill 256 MiB, when 0
    rank, ranks  of writers side by side: rank r writes shards r, r + ranks, …
    workers      processes that read and augment the samples
    origin       by which names data and views are had again: see `store.origin`
    mark         the teacher's fingerprint, where it was taken before: a copy of it may have lost the source of its classes
    name, show   progress with time left, by this name

    Logits are [batch, …]; those of a language model, [batch, tokens, vocabulary] of inputs [batch, tokens], are held token by
    token where `attention_mask` is not 0. The same call goes on where it was killed, and rewrites a damaged shard. Raises
    `Refused` when the folder holds the store of another teacher, of other data or in another codec, or when another process is
    writing there.
    """
    folder = Path(folder)
    if not torch.equal(ids(data), torch.arange(len(data))):
        raise Refused("these data are a part of others, whose numbers their samples keep",
                      "write the store of the whole and train on the part, or put the part into store.Views in both places")
    folder.mkdir(parents=True, exist_ok=True)
    model = teacher.model if isinstance(teacher, Tap | Stages | Hidden) else teacher
    with _alone(folder, rank), resting(model.to(device)):
        few = range(min(2, len(data)))
        first, tokens = _said(teacher, seen := next(_inputs(data, [few], 0)), few, device)
        names, depth = read_by(teacher, to_device(seen[0], torch.device(device)))
        outputs = zip([codec, *(features for _ in names)], first.values, tokens, strict=True)
        plan = Layout(tuple(Output(c, tuple(v.shape[1:]), t) for c, v, t in outputs), names).checked()
        size = plan.bytes or max(map(len, layout.encode(plan, *first)))
        told: dict[str, Any] = {"format": FORMAT, "teacher": mark or prints.of_teacher(model), "data": prints.of_data(data),
                                **plan.about(), "depth": depth, "count": len(data),
                                "rows": rows or max(1, min(SHARD // size, SAMPLES))}
        _begin(folder, told, rank, origin)
        spans = {s: range(s * told["rows"], min(len(data), (s + 1) * told["rows"])) for s in range(rank, shards(told), ranks)}
        left = [s for s, span in spans.items() if not _there(folder, s, len(span) * plan.bytes)]
        total = sum(map(len, spans.values()))
        done = total - sum(len(spans[s]) for s in left)
        progress = Progress(show)
        progress.begin(name, total, done)
        parts = {s: [range(i, min(i + batch, spans[s].stop)) for i in range(spans[s].start, spans[s].stop, batch)] for s in left}
        inputs = _inputs(data, [part for s in left for part in parts[s]], workers)
        try:
            for s in left:
                write_shard(folder, s, plan, _rows(teacher, inputs, parts[s], device, plan, progress, name, done))
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
        words = {"logits": "codec", "features": "tap", "depth": "tap"}
        if other := dict.fromkeys(words.get(k, k) for k in told if before.get(k) != told[k]):
            raise Refused(f"{folder} holds the store of another {' and '.join(other)}",
                          "name another folder, or delete this one: a store belongs to one teacher and one data set")
        return
    told = {**told, "version": stillroom.__version__, **({"origin": origin} if origin else {})}
    text = json.dumps({**told, SEAL: seal(told)}, indent=1) + "\n"
    _atomic(file, lambda new: new.write_text(text, encoding="utf-8"), by=rank)


def write_shard(folder: Path, shard: int, plan: Layout, parts: Iterable[list[bytes]]) -> None:
    """The rows first, with their ends where they differ in length, then what vouches for them."""
    file, voucher = names(folder, shard)
    voucher.unlink(missing_ok=True)

    def fill(new: Path) -> None:
        ends: list[int] = [0]
        with open(new, "wb") as opened:
            for part in parts:
                opened.writelines(part)
                ends += (ends[-1] + np.cumsum([len(row) for row in part])).tolist()
            if not plan.bytes:
                opened.write(np.array(ends[1:], "<u8").tobytes())
    _atomic(file, fill)
    told = json.dumps({"bytes": file.stat().st_size, "blake2b": checksum(file)})
    _atomic(voucher, lambda new: new.write_text(told + "\n", encoding="utf-8"))


def _inputs(data: Any, parts: list[range], workers: int) -> Iterator[tuple[Any, np.ndarray]]:
    """The inputs of some samples at a time, as a batch, and their checks [samples]."""
    return iter(DataLoader(data, batch_sampler=parts, num_workers=workers, collate_fn=_collated))  # type: ignore[arg-type]


def _collated(samples: list[Any]) -> tuple[Any, np.ndarray]:
    x = default_collate([sample[0] for sample in samples])
    return x, np.array(prints.of_samples(x), "<u2")


def _rows(teacher: Any, inputs: Iterator[tuple[Any, np.ndarray]], parts: list[range], device: str, plan: Layout,
          progress: Progress, name: str, done: int) -> Iterator[list[bytes]]:
    for part in parts:
        yield layout.encode(plan, *_said(teacher, next(inputs), part, device)[0])
        done += len(part)
        progress.advance(name, done, {})


class Said(NamedTuple):
    """Of what has tokens those that count, one behind another."""
    values: list[Tensor]        # the logits [samples or tokens, …], then what a tap read
    checks: np.ndarray          # of the inputs, [samples]
    counts: Tensor | None       # of a language model, how many tokens of each sample count


def _said(teacher: Any, inputs: tuple[Any, np.ndarray], part: range, device: str) -> tuple[Said, list[bool]]:
    """What the teacher says, and which values have a row for each token."""
    x = to_device(tagged(inputs[0], torch.tensor(part)), torch.device(device))
    out, features = teacher(x) if isinstance(teacher, Tap | Stages | Hidden) else (teacher(x), [])
    values = [out["logits"] if isinstance(out, Mapping) else out, *features]
    if any(not isinstance(value, Tensor) or value.ndim < 2 or len(value) != len(part) for value in values):
        raise Refused("this teacher gives no tensor [batch, …]", "store what has a row for each sample: logits, features")
    mask = shown(x)
    if mask is not None and (values[0].ndim != 3 or values[0].shape[:2] != mask.shape):
        mask = None
    tokens = [mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape for value in values]
    values = [value[mask] if of_tokens else value for value, of_tokens in zip(values, tokens, strict=True)]
    if not all(value.isfinite().all() for value in values):
        raise Refused(f"what the teacher says of samples {part.start} to {part.stop - 1} is not finite", "look at these samples")
    return Said(values, inputs[1], None if mask is None else mask.sum(1).cpu()), tokens


@contextmanager
def _alone(folder: Path, rank: int) -> Iterator[None]:
    """No other process writes these shards; the lock ends with the process, however it ends."""
    lock = FileLock(folder / f".{rank}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise Refused(f"another process is writing {folder}", "wait for it, or name another folder") from error
    try:
        yield
    finally:
        lock.release()
