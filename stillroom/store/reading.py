"""A store's rows by number, memory-mapped. A shard that is missing, cut short or damaged is named, with the remedy."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stillroom.errors import Refused
from stillroom.store import codecs

FORMAT = 1
CHECK = 2       # bytes before each row: 16 bits of its input
AGAIN = "run the same command again (stillroom cache; in Python store.write): it rewrites only this shard"


class Rows:
    """What the teacher said. Raises `Refused` for a folder without a store, of another format, or with a shard not whole.

    A shard is checked against its checksum when its first row is asked for.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.about = Path(folder), about(Path(folder))
        self.classes, self.codec, self.each = self.about["classes"], self.about["codec"], self.about["rows"]
        self.bytes = CHECK + codecs.size(self.codec, self.classes)
        self.open: dict[int, np.ndarray] = {}
        for shard in range(shards(self.about)):
            whole(self.folder, shard, self.length(shard) * self.bytes, read=False)

    def __len__(self) -> int:
        return self.about["count"]

    def __deepcopy__(self, _memo) -> "Rows":
        return self                                          # it never changes, and a copied memory map lies in memory

    def length(self, shard: int) -> int:
        """Rows of a shard."""
        return min(self.each, len(self) - shard * self.each)

    def raw(self, index: np.ndarray) -> np.ndarray:
        """Rows as they lie on disk, uint8 [rows, bytes]."""
        shard, row = index // self.each, index % self.each
        out = np.empty((len(index), self.bytes), np.uint8)
        for number in np.unique(shard).tolist():
            here = shard == number
            out[here] = self._shard(number)[row[here]]
        return out

    def __getitem__(self, index: Tensor) -> tuple[Tensor, np.ndarray]:
        """Logits [rows, classes] of samples by their numbers, and the checks of their inputs [rows]."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise Refused(f"sample {int(index.max())} is not in {self.folder}, which holds {len(self):,}",
                          "use the data, with the views, that the store was written from")
        raw = self.raw(index.numpy())
        checks = raw[:, :CHECK].copy().view("<u2")[:, 0]
        return codecs.decode(raw[:, CHECK:], self.codec, self.classes), checks

    def _shard(self, number: int) -> np.ndarray:
        if number not in self.open:
            file = whole(self.folder, number, self.length(number) * self.bytes)
            self.open[number] = np.memmap(file, np.uint8, "r", shape=(self.length(number), self.bytes))
        return self.open[number]


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
    return told


def shards(told: dict[str, Any]) -> int:
    """How many shards a store has when it is whole."""
    return -(-told["count"] // told["rows"])


def names(folder: Path, shard: int) -> tuple[Path, Path]:
    """A shard's rows, and the file that vouches for them."""
    return folder / f"{shard:06}.rows", folder / f"{shard:06}.json"


def whole(folder: Path, shard: int, size: int, read: bool = True) -> Path:
    """The file of a shard, of `size` bytes and, if it is read, of its checksum. Raises `Refused`."""
    file, voucher = names(folder, shard)
    try:
        told = json.loads(voucher.read_text(encoding="utf-8"))
        sound = file.stat().st_size == size == told["bytes"]
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
