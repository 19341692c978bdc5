"""From names to a store: the teacher, the training split in its views, and the test split beside it."""

import time
from pathlib import Path
from typing import Any

from stillroom import checks, job, zoo
from stillroom.errors import Refused
from stillroom.measure import cost
from stillroom.ranks import device as named
from stillroom.store import origin, reading
from stillroom.store.on_ray import write_on_ray
from stillroom.store.writing import SAMPLES, write


def make(folder: str | Path, words: dict[str, Any], *, codec: str, batch: int, device: str, workers: int = 0, rank: int = 0,
         ranks: int = 1, engine: str = "here", show: bool = False) -> dict[str, Any]:
    """Write the store that `words` name (those of `origin`, but for what is found on the way). Returns what was made.

    Raises `Refused` before the teacher is asked: for a teacher that was never trained or does not fit the data, for views that
    are all alike, for a folder that holds another store.
    """
    for name, value, least in (("views", words["views"], 1), ("batch", batch, 1), ("workers", workers, 0), ("ranks", ranks, 1),
                               ("size", words["size"], 0), ("channels", words["channels"], 0)):
        if value < least:
            raise Refused(f"--{name} {value}", f"{least} at least")
    if not 0 <= rank < ranks:
        raise Refused(f"--rank {rank}", f"0 to {ranks - 1}: there are --ranks {ranks}")
    if words["views"] > 1 and not origin.differs(words):
        raise Refused(f"--views {words['views']} of each sample would all be the same",
                      "say how they differ: --augment crops flip, --mixup 0.2, --cutmix 1")
    place = str(named(device))
    known, context = job.read(words["data"], words)
    train, test, sample = origin.shown(words, known["train"]), known["test"], job.sample_of(known["test"])
    teacher = zoo.actor("Module", words["teacher"], **context, pretrained=words["pretrained"])
    checks.teaches(teacher, train)
    folder = Path(folder)
    told = {**words, "classes": known["classes"] or None, "cwd": str(Path.cwd())}
    if not (folder / "store.json").exists():
        told["cost"] = cost(teacher.to(place), sample, seconds=2.0) if job.takes(teacher, sample) else {}
    how: dict[str, Any] = {"batch": batch, "device": place, "workers": workers, "show": show}
    rows = 0 if ranks == 1 else min(-(-len(train) // ranks), SAMPLES)      # a shard for each, at least
    before, began = _shards(folder), time.perf_counter()
    if engine == "ray":
        write_on_ray(folder, teacher, train, writers=ranks, codec=codec, rows=rows, origin=told, **how)
    else:
        write(folder, teacher, train, codec=codec, rows=rows, rank=rank, ranks=ranks, origin=told, **how)
    seconds, shards = time.perf_counter() - began, _shards(folder)
    if rank == 0:
        write(folder / "test", teacher, test, codec="fp32", name="test split", **how)
    about = reading.about(folder)
    here, asked = (sum(min(about["rows"], len(train) - number * about["rows"]) for number, *_ in some)
                   for some in (shards, shards - before))
    size = sum(size for *_, size in shards)
    return {"folder": str(folder), "words": known["words"], "views": words["views"], "teacher": words["teacher"], "codec": codec,
            "classes": about["logits"]["shape"][-1], "bytes": size, "row": size / max(1, here), "asked": asked,
            "seconds": seconds, "test": len(test), "unfinished": f"{rank} of {ranks}" if ranks > 1 and engine == "here" else "",
            "student": "small:cnn" if isinstance(sample, tuple) and len(sample) == 3 else "SPEC"}


def _shards(folder: Path) -> set[tuple[int, int, int]]:
    """Number, time and size of every shard."""
    return {(int(file.stem), file.stat().st_mtime_ns, file.stat().st_size) for file in folder.glob("*.rows")}
