"""A store's rows by number, memory-mapped. A shard that is missing, cut short or damaged is named, with the remedy."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from stillroom.errors import Refused
from stillroom.store import layout
from stillroom.store.kept import Kept

FORMAT = 2
SEAL = "blake2b"      # key under which store.json vouches for itself
END = 8         # bytes that say where a row ends, where rows differ in length
AGAIN = "run the same command again (stillroom cache; in Python store.write): it rewrites only this shard"


class Read(NamedTuple):
    """What the teacher said of some samples. Where they have tokens, those that the mask shows, one behind another."""
    logits: Tensor | Kept             # [samples or tokens, *shape]
    features: dict[str, Tensor]       # by name, [samples or tokens, *shape]
    checks: np.ndarray                # of the inputs, [samples]
    counts: Tensor | None             # tokens of each sample, where they have any

    def dense(self) -> Tensor:
        """Logits, or log-probabilities where K are kept, fp32."""
        return self.logits.dense() if isinstance(self.logits, Kept) else self.logits.float()


class Rows:
    """What the teacher said. Raises `Refused` for a folder without a store, of another format, or with a shard not whole.

    A shard is checked against its checksum when its first row is asked for.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.about = Path(folder), about(Path(folder))
        self.layout, self.each = layout.told(self.about), self.about["rows"]
        self.bytes = self.layout.bytes
        self.open: dict[int, Any] = {}
        for shard in range(shards(self.about)):
            whole(self.folder, shard, self.length(shard) * self.bytes, read=False)

    def __len__(self) -> int:
        return self.about["count"]

    def __deepcopy__(self, _memo) -> "Rows":
        return self                                          # it never changes, and a copied memory map lies in memory

    def length(self, shard: int) -> int:
        """Rows of a shard."""
        return min(self.each, len(self) - shard * self.each)

    def raw(self, index: np.ndarray) -> Any:
        """Rows as they lie on disk, uint8 [rows, bytes], or [bytes] each where they differ in length."""
        shard, row = index // self.each, index % self.each
        if not self.bytes:
            return [self._shard(n)[i] for n, i in zip(shard.tolist(), row.tolist(), strict=True)]
        out = np.empty((len(index), self.bytes), np.uint8)
        for number in np.unique(shard).tolist():
            here = shard == number
            out[here] = self._shard(number)[row[here]]
        return out

    def __getitem__(self, index: Tensor) -> Read:
        """What was said of samples, by their numbers."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise Refused(f"sample {int(index.max())} is not in {self.folder}, which holds {len(self):,}",
                          "use the data, with the views, that the store was written from")
        (logits, *features), checks, counts = layout.decode(self.layout, self.raw(index.numpy()))
        return Read(logits, dict(zip(self.layout.names, features, strict=True)), checks, counts)

    def _shard(self, number: int) -> Any:
        if number not in self.open:
            length = self.length(number)
            flat = np.memmap(whole(self.folder, number, length * self.bytes), np.uint8, "r")
            if self.bytes:
                self.open[number] = flat.reshape(length, self.bytes)
            else:
                self.open[number] = Ragged(flat, flat[-END * length :].view("<u8"))
        return self.open[number]


class Ragged(Sequence):
    """Rows of a file that differ in length, by where they end."""

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self.ends = flat, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row):
        return self.flat[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]


def about(folder: Path) -> dict[str, Any]:
    """What store.json says."""
    file = folder / "store.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        number = told["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{folder} holds no store ({type(error).__name__})",
                      f"write one: stillroom cache {folder} --teacher SPEC --data SPEC") from error
    if number != FORMAT:
        raise Refused(f"{file} has format {number}; this stillroom reads format {FORMAT}", "install the version it names")
    if told.pop(SEAL, "") != seal(told):
        raise Refused(f"{file} is damaged", "delete it and run the same write again: shards that are whole stay")
    return told


def seal(told: dict[str, Any]) -> str:
    """Hex digest of what store.json says."""
    return blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def shards(told: dict[str, Any]) -> int:
    """How many shards a store has when it is whole."""
    return -(-told["count"] // told["rows"])


def names(folder: Path, shard: int) -> tuple[Path, Path]:
    """A shard's rows, and the file that vouches for them."""
    return folder / f"{shard:06}.rows", folder / f"{shard:06}.json"


def whole(folder: Path, shard: int, size: int, read: bool = True) -> Path:
    """The file of a shard, of `size` bytes (0: of as many as it should have) and, if it is read, of its checksum. Raises
    `Refused`."""
    file, voucher = names(folder, shard)
    try:
        told = json.loads(voucher.read_text(encoding="utf-8"))
        sound = file.stat().st_size == told["bytes"] == (size or told["bytes"])
        if sound and read:
            sound = checksum(file) == told["blake2b"]
    except FileNotFoundError as error:
        raise Refused(f"shard {file} is not there: the store is not finished", AGAIN) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"shard {file} cannot be read ({type(error).__name__})", AGAIN) from error
    if not sound:
        raise Refused(f"shard {file} is damaged", AGAIN)
    return file


def checksum(file: Path) -> str:
    """Hex digest of a file."""
    digest = blake2b(digest_size=16)
    with open(file, "rb") as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def verify(x: Any, checks: np.ndarray, folder: Path) -> None:
    """Inputs are those that the teacher saw. Raises `Refused`."""
    from stillroom.store.prints import of_samples

    wrong = sum(seen != told for seen, told in zip(of_samples(x), checks.tolist(), strict=True))
    if wrong:
        raise Refused(f"{wrong} of {len(checks)} inputs are not those that the teacher of {folder} saw",
                      "use the data, in the same order, that the store was written from; put augmentation into store.Views")
