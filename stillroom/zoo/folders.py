"""Folders of images: one folder a class, or images alone; `train`, `valid` and `test` inside are respected."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import images
from stillroom.zoo.sets import SPLITS, Given, Lazy, Set
from stillroom.zoo.specs import Spec, near, take

UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """The splits of a folder; valid and test take classes, size and channels from train. Raises `Refused`."""
    take(asked.options, {"labels": 0, "noise": 0.0}, asked)
    return by_split(there(asked, "name a folder of images"), partial(_pictures, skip=skip), size, channels)


def there(asked: Spec, remedy: str) -> Path:
    """The folder that a name means. Raises `Refused`."""
    root = Path(asked.name).expanduser()
    if not root.is_dir():
        raise Refused(f"{root} is no folder", remedy)
    return root


def by_split(root: Path, read: Callable[[Path, list[str] | None, Any, Any], Set], size: Any, channels: Any) -> Given:
    """The splits inside a folder, or all of it: `read(folder, classes, size, channels)` makes the data set of one; valid and test
    take classes, size and channels from train."""
    inside = {SPLITS[p.name.lower()]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in SPLITS}
    if "train" not in inside:
        return {"all": partial(read, root, None, size, channels)}
    train = lru_cache(maxsize=1)(partial(read, inside["train"], None, size, channels))

    def other(part: str) -> Set:
        known = train()
        return read(inside[part], known.classes, size or known.shape[1:], channels or known.shape[0])
    return {"train": train, **{part: partial(other, part) for part in inside if part != "train"}}


def _pictures(root: Path, classes: list[str] | None, size: Any, channels: Any, skip: bool) -> Lazy:
    """The images below one folder. `classes`: those of the training data, which must not grow."""
    files, targets, names = listed(root, classes)
    seen, good = images.whole([str(f) for f in files], sum(f.stat().st_size for f in files), skip, str(root),
                              lambda i: files[i].relative_to(root).as_posix())
    shape = images.settle([seen[i] for i in good], size, channels, str(root))
    y = torch.tensor(targets)[good]
    for number, name in enumerate(names if classes is None else []):
        if not (y == number).any():
            raise Refused(f"{root} has no image that can be read for the class {name!r}",
                          "repair its images, or remove its folder")
    content = repr([(files[i].relative_to(root).as_posix(), seen[i].digest) for i in good])
    return Lazy(partial(images.read, [str(files[i]) for i in good], shape), y, names, root.name, shape, content,
                left_out=len(files) - len(good))


def listed(root: Path, known: list[str] | None, suffixes: tuple[str, ...] = images.SUFFIXES,
           what: str = "images") -> tuple[list[Path], list[int], list[str]]:
    """Files below a folder, their labels, the names of the classes: a subfolder each; `unlabelled` is none. Classes that are
    `known`, of the training data, must not grow. Raises `Refused`."""
    alone = below(root, False, suffixes)
    holding = {p.name: below(p, True, suffixes) for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if not any(holding.values()):
        if not alone:
            raise Refused(f"{root} holds no {what}",
                          f"a folder per class with {what} inside, or {what} alone ({', '.join(suffixes)})")
        return alone, [UNLABELLED] * len(alone), known or []
    empty = [name for name, found in holding.items() if not found]
    if empty:
        raise Refused(f"the class folder {empty[0]!r} of {root} holds no {what}", f"put {what} there, or remove the folder")
    if alone:
        raise Refused(f"{len(alone)} {what} lie beside the class folders of {root}, such as {alone[0].name}",
                      "move them into a class's folder, or into one called 'unlabelled'")
    classes = [name for name in holding if name.lower() not in UNLABELLED_FOLDERS]
    strange = [name for name in classes if known is not None and name not in known]
    if strange:
        raise Refused(f"{root} has the class {strange[0]!r}, which the training data have not",
                      near(strange[0], known or (), "their classes"))
    classes = classes if known is None else known
    pairs = [(f, classes.index(name) if name in classes else UNLABELLED) for name, found in holding.items() for f in found]
    return [f for f, _ in pairs], [t for _, t in pairs], classes


def below(folder: Path, deep: bool = True, suffixes: tuple[str, ...] = images.SUFFIXES) -> list[Path]:
    """Files of these kinds in a folder, and in those inside."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file())
