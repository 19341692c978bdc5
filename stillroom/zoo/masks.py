"""Folders of images with masks: `images` and `masks` inside, with the same names; a mask is a PNG of class numbers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import folders, images
from stillroom.zoo.sets import Answered, Given
from stillroom.zoo.specs import Spec, take

VOID = 255                       # of a pixel without a class
FLAT = ("1", "L", "P", "I;16", "I;16B", "I")         # modes whose pixels are one number
LAYOUT = "it holds images/ and masks/, a PNG for each image by its name; train/, valid/ and test/ inside may each hold both"


class Looked(NamedTuple):
    """A mask that was looked at. `wrong` says why it cannot be used, or is empty."""

    size: tuple[int, int]        # height, width
    values: list[int]            # class numbers on it
    digest: bytes
    wrong: str


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """The splits of a folder. Classes are the lines of classes.txt there, as many as `?classes=` says, or those that the training
    masks hold. Images in `unlabelled`, beside the others, have no mask. Raises `Refused`."""
    options = take(asked.options, {"classes": 0, "size": None}, asked)
    root = folders.there(asked, f"name a folder of images with masks: {LAYOUT}")
    told = [str(c) for c in range(options["classes"])]
    if not told and (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        told = [line.strip() for line in lines if line.strip()]
    read = partial(_read, told=told, skip=skip)
    return folders.by_split(root, read, images.sides(options["size"], size, asked), channels)


def _read(root: Path, classes: list[str] | None, size: Any, channels: Any, told: list[str], skip: bool) -> Answered:
    """The images below one folder with their masks. `classes`: those of the training data; `told`: those that somebody named."""
    files, masks = _paired(root)
    seen, good = images.whole([str(f) for f in files], sum(f.stat().st_size for f in files), skip, str(root),
                              lambda i: files[i].relative_to(root).as_posix())
    looked = _look(masks)
    damaged = [i for i in good if looked[i] and looked[i].wrong]
    if not skip:
        _refuse([f"{masks[i].relative_to(root)} ({looked[i].wrong})" for i in damaged], f"masks of {root} cannot be read",
                "save PNGs of class numbers, or leave such images out: skip_corrupt=True, --skip-corrupt")
    good = [i for i in good if not (looked[i] and looked[i].wrong)]
    drawn = [i for i in good if looked[i]]
    _refuse([f"{masks[i].name} is {_by(looked[i].size)}, its image {_by(seen[i].size)}" for i in drawn
             if looked[i].size != seen[i].size], f"masks of {root} are not of their image's size",
            "draw a mask on its image, pixel by pixel")
    values = sorted({v for i in drawn for v in looked[i].values})
    if classes is None and len(values) < 2:
        raise Refused(f"the masks of {root} tell no two classes apart: they hold {' and '.join(map(str, [*values, VOID]))}",
                      f"count classes from 0; {VOID} is none, so save a white foreground as 1")
    known = classes or told or [str(c) for c in range(values[-1] + 1)]
    _refuse([f"{masks[i].name} has {looked[i].values[-1]}" for i in drawn if max(looked[i].values, default=0) >= len(known)],
            f"masks of {root} hold numbers beyond its {len(known)} classes",
            f"classes count from 0, {VOID} is none; say how many there are: ?classes=…, or a line for each in classes.txt")
    shape = images.settle([seen[i] for i in good], size, channels, str(root))
    content = repr([(files[i].relative_to(root).as_posix(), seen[i].digest, looked[i] and looked[i].digest) for i in good])
    counts = ((len(good) - len(drawn), "of them without a mask"), (len(files) - len(good), "corrupt left out"))
    left = ", ".join(f"{n:,} {what}" for n, what in counts if n)
    return Answered(partial(_pair, [str(files[i]) for i in good], [masks[i] and str(masks[i]) for i in good], shape), len(good),
                    known, root.name, shape, content, "images with masks", left_out=left)


def _paired(root: Path) -> tuple[list[Path], list[Any]]:
    """Images and the mask of each; None of those that lie in `unlabelled`. Raises `Refused`."""
    own, drawn = root / "images", root / "masks"
    if not own.is_dir() or not drawn.is_dir():
        raise Refused(f"{root} has no folder {'images' if not own.is_dir() else 'masks'}", LAYOUT)
    files = folders.below(own)
    by_stem: dict[str, Path] = {}
    for mask in folders.below(drawn):
        stem = mask.relative_to(drawn).with_suffix("").as_posix()
        if mask.suffix.lower() in (".jpg", ".jpeg"):
            raise Refused(f"the mask {mask} is a JPEG, which does not keep class numbers", "save masks as PNG")
        if stem in by_stem:
            raise Refused(f"{drawn} holds two masks called {stem}", "keep one of them")
        by_stem[stem] = mask
    stems = [f.relative_to(own).with_suffix("").as_posix() for f in files]
    _refuse([f.name for f, stem in zip(files, stems, strict=True) if stem not in by_stem],
            f"images of {own} have no mask in {drawn}",
            "give each one by its name, or move images without a mask into `unlabelled`, beside `images`")
    bare = [f for word in folders.UNLABELLED_FOLDERS if (root / word).is_dir() for f in folders.below(root / word)]
    if not files:
        raise Refused(f"{own} holds no images", LAYOUT)
    return files + bare, [by_stem[stem] for stem in stems] + [None] * len(bare)


def _look(masks: Sequence[Path | None]) -> list[Any]:
    """Every mask, decoded once: what is wrong is said before the first step."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda mask: mask and _looked(mask), masks))


def _looked(mask: Path) -> Looked:
    try:
        content = mask.read_bytes()
        with Image.open(mask) as picture:
            size = picture.height, picture.width
            wrong = "" if picture.mode in FLAT else f"{picture.mode} pixels, no class numbers"
            values = [] if wrong else np.unique(np.asarray(picture)).tolist()
        wrong = "numbers below 0" if values and values[0] < 0 else wrong
        return Looked(size, [int(v) for v in values if v != VOID], blake2b(content, digest_size=8).digest(), wrong)
    except Exception as error:
        return Looked((0, 0), [], b"", str(error) or type(error).__name__)


def _pair(files: list[str], masks: list[str | None], shape: tuple[int, int, int], i: int) -> tuple[Tensor, Tensor]:
    """Image [channels, height, width] and classes [height, width], cut and resized alike; of a mask the nearest pixel counts."""
    x, mask = images.decode(files[i], shape), masks[i]
    if mask is None:
        return x, torch.full(shape[1:], UNLABELLED)
    with Image.open(mask) as picture:
        numbers = Image.fromarray(np.asarray(picture, dtype=np.int32))
        y = np.asarray(ImageOps.fit(numbers, shape[:0:-1], Image.Resampling.NEAREST), dtype=np.int64)
    return x, torch.from_numpy(np.where(y == VOID, UNLABELLED, y))


def _refuse(wrong: list[str], what: str, remedy: str) -> None:
    if wrong:
        some = "; ".join(wrong[:3]) + (f"; … {len(wrong) - 3} more" if wrong[3:] else "")
        raise Refused(f"{len(wrong)} {what}: {some}", remedy)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
