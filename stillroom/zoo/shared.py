"""The sets of the shared data folder, where it lies on this machine."""

import io
import lzma
import os
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import stillroom
from stillroom.errors import Refused
from stillroom.zoo import arrays, images
from stillroom.zoo.sets import Arrays, Given
from stillroom.zoo.specs import Spec, take

NAMES = ("cifar10", "cifar100", "fashion_mnist")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """train and test of a shared set. Raises `Refused` when the folder is not there."""
    take(asked.options, {"labels": 0, "noise": 0.0}, asked)
    folder = home(asked.kind)
    read = _fashion if asked.kind == "fashion_mnist" else _jpegs

    def part(split: str) -> Arrays:
        x, y, classes = read(folder, split)
        return Arrays(images.fit(x.float().div_(255), size, channels), y, classes, f"{asked.kind}, {split}")
    return {split: partial(part, split) for split in ("train", "test")}


def home(name: str) -> Path:
    """Where a shared set lies: below STILLROOM_DATA, else in `shared/data` beside the project."""
    told = os.environ.get("STILLROOM_DATA")
    root = Path(told) if told else Path(stillroom.__file__).resolve().parents[2] / "shared" / "data"
    if not (root / name).is_dir():
        unset = "" if told else ", and STILLROOM_DATA is not set"
        raise Refused(f"{name} is not on this machine: {root / name} does not exist{unset}",
                      "set STILLROOM_DATA to the folder of the shared data, or use digits, folder:PATH, hf:NAME")
    return root / name


@lru_cache(maxsize=2)
def _jpegs(folder: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """CIFAR, JPEG files in one array: bytes [samples, 3, 32, 32], labels, names."""
    found = arrays.read(folder / f"{folder.name}_jpeg.npz")
    blob, at = found[f"{split}_jpeg"].tobytes(), found[f"{split}_offsets"]
    pixels = np.stack([_pixels(blob[a:b]) for a, b in pairwise(at)])
    y = torch.from_numpy(found[f"{split}_labels"].astype(np.int64))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), y, [str(n) for n in found["class_names"]]


def _pixels(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"))


@lru_cache(maxsize=2)
def _fashion(folder: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    x, y = (np.load(io.BytesIO(lzma.decompress((folder / f"{split}_{what}.npy.xz").read_bytes())), allow_pickle=False)
            for what in ("images", "labels"))
    return torch.from_numpy(x.reshape(-1, 1, 28, 28)), torch.from_numpy(y.astype(np.int64)), list(FASHION)
