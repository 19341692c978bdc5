"""Data by name: images in [0, 1] with their labels, and the splits into what is learnt from and what is judged on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from stillroom.errors import Refused
from stillroom.zoo import arrays, boxes, folders, images, language, masks, own, shared, tables, waves
from stillroom.zoo.sets import SPLITS, Answered, Arrays, Given, Set, cut, few_labels, noisy_labels
from stillroom.zoo.specs import Spec, near, parse, take

Size = int | tuple[int, int] | None


NAMED: dict[str, Callable[[Spec, Any, Any, bool, int], Given]] = {
    "folder": folders.given, "masks": masks.given, "boxes": boxes.given, "wavs": waves.given, "prompts": language.prompts,
    "passages": language.passages, "texts": language.texts, "hf": tables.given, "npz": arrays.given, "file": own.given}


def data(spec: str, *, size: Size = None, channels: int | None = None, skip_corrupt: bool = False, split: str = "train",
         seed: int = 0) -> Set:
    """Data by name: samples (x, y), x [channels, height, width] in [0, 1], y a class number or −100 for none.

    digits · folder:PATH (a folder per class, or images alone; `train`, `valid`, `test` inside are respected) · npz:PATH (x, y;
    images, labels; data, target) · hf:NAME, FOLDER or FILE (datasets; parquet, jsonl, csv) · cifar10, cifar100, fashion_mnist
    where the shared data are · wavs:PATH (a folder per class, or clips alone) · passages:FILE (a text, cut into blocks) ·
    texts:FILE · file:PATH.py:callable, which returns a map-style data set of samples (x, y), or a dict of them by split; x may be
    anything that the method takes. With another answer than a class: masks:PATH (images/ and masks/) · boxes:PATH (COCO's JSON) ·
    prompts:FILE (jsonl, csv). Options: `?labels=50` keeps that many labels, `?noise=0.4` makes that share of them wrong; for npz
    `scale`, `layout`; for hf `image`, `label`, `text`, `tokenizer`, `length`, `config`, `scale`; for masks `classes`, `size`; for
    boxes `images`, `size`, `masks`; for wavs `seconds`, `rate`; for passages and prompts `tokenizer`, `length`; for prompts
    `prompt`, `answer`, `chat`; for texts `text`; for file the arguments of the callable.

    size          height and width, or one number: cut to these proportions around the middle, and resized
    skip_corrupt  leave images out that cannot be read; without it they are named and refused
    split         train, valid or test; data without splits are all train
    seed          of the split of digits, of the labels that are kept or made wrong

    The data set carries `classes` (names), `shape` of a sample, `targets`, `fingerprint` and `words`. Raises `Refused`.
    """
    asked, given = _given(spec, size, channels, skip_corrupt, seed)
    if split not in SPLITS:
        raise Refused(f"split={split!r}", near(split, ("train", "valid", "test")))
    part = SPLITS[split]
    key = "all" if part == "train" and "all" in given else part
    if key not in given:
        have = "it comes without" if "all" in given else f"it has {', '.join(given)}"
        raise Refused(f"{asked} has no split {split!r}: {have}", "zoo.splits cuts one off")
    return _spoilt(given[key](), asked, seed) if part == "train" else given[key]()


def splits(spec: str, *, size: Size = None, channels: int | None = None, skip_corrupt: bool = False,
           seed: int = 0) -> SimpleNamespace:
    """`train`, `valid` (for choosing) and `test` (for the report): as the data come, else cut 80 : 10 : 10 evenly over the
    classes, by the seed. Where one of valid and test is missing, the other is the test and a tenth of train is for choosing.
    `?labels=` and `?noise=` only touch train. Raises `Refused`."""
    asked, given = _given(spec, size, channels, skip_corrupt, seed)
    if "all" not in given and "train" not in given:
        raise Refused(f"{asked} has no split to learn from: it has {', '.join(given)}", "call one of them train")
    everything = given["all" if "all" in given else "train"]()
    if {"valid", "test"} <= set(given):
        parts = [everything, given["valid"](), given["test"]()]
    elif {"valid", "test"} & set(given):
        parts = [*cut(everything, (0.1,), seed), given["test" if "test" in given else "valid"]()]
    else:
        parts = cut(everything, (0.1, 0.1), seed)
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        if not len(part):
            raise Refused(f"{asked} has too few samples for splits: {len(everything)} leave none for {name}",
                          "three of each class at least, or splits of your own")
    return SimpleNamespace(train=_spoilt(parts[0], asked, seed), valid=parts[1], test=parts[2])


def _given(spec: str, size: Size, channels: int | None, skip: bool, seed: int) -> tuple[Spec, Given]:
    asked = parse(spec)
    alone = {"digits": _digits, **dict.fromkeys(shared.NAMES, shared.given)}
    known = f"data read {', '.join(alone)}, {', '.join(f'{kind}:…' for kind in NAMED)}"
    if asked.kind not in NAMED | alone:
        raise Refused(f"{spec!r} names no data", f"did you mean 'folder:{spec}'?" if Path(spec).is_dir() else
                      f"{near(asked.kind, NAMED | alone)} {known}")
    if bool(asked.name) != (asked.kind in NAMED):
        raise Refused(f"{spec!r} names no data", known)
    sides = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
    if (sides and min(sides) < 1) or (channels is not None and channels < 1):
        raise Refused(f"size={size}, channels={channels}", "whole numbers from 1")
    return asked, (NAMED | alone)[asked.kind](asked, sides, channels, skip, seed)


def _digits(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from stillroom.arenas.digits import SPLIT

    take(asked.options, {"labels": 0, "noise": 0.0}, asked)
    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.tensor(raw.target)
    rest, test = train_test_split(range(len(x)), test_size=SPLIT[2], stratify=y, random_state=seed)      # as the arena cuts them
    train, valid = train_test_split(rest, test_size=SPLIT[1], stratify=y[rest], random_state=seed)
    x = images.fit(x, size, channels)
    return {name: partial(Arrays, x[index], y[index], [str(c) for c in range(10)], f"scikit-learn digits, {name}")
            for name, index in (("train", train), ("valid", valid), ("test", test))}


def _spoilt(train: Set, asked: Spec, seed: int) -> Set:
    """Fewer labels, or wrong ones, as the options say."""
    if isinstance(train, Answered):
        return train
    labels, noise = asked.options.get("labels"), asked.options.get("noise")
    if (labels is not None or noise is not None) and not train.classes:
        raise Refused(f"{asked} has no labels to leave out or to spoil", "drop ?labels= and ?noise=")
    if labels is not None:
        if not isinstance(labels, int) or not len(train.classes) <= labels <= len(train):
            raise Refused(f"labels={labels}",
                          f"at least one for each of the {len(train.classes)} classes, at most {len(train):,}")
        train = few_labels(train, labels, seed)
    if noise is not None:
        if not isinstance(noise, int | float) or not 0 <= noise <= 1:
            raise Refused(f"noise={noise}", "a share of the labels, from 0 to 1")
        train = noisy_labels(train, noise, seed)
    return train
