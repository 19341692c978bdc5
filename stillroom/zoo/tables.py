"""Tables of the `datasets` library: a name of the hub, a folder, or a parquet, jsonl, csv or arrow file."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import arrays, images, language
from stillroom.zoo.built import first_line
from stillroom.zoo.sets import SPLITS, Arrays, Given, Lazy, Set
from stillroom.zoo.specs import Spec, near, take

OPTIONS = {"labels": 0, "noise": 0.0, "config": "", "image": "", "label": "", "text": "", "tokenizer": "", "length": 128,
           "scale": 0.0}
BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
IMAGE = ("image", "img", "picture", "pixel_values", "x")         # usual names of columns
LABEL = ("label", "labels", "fine_label", "class", "target", "y")
TEXT = ("text", "sentence")


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """The splits of a table. A table that comes in one piece is cut by `splits`. Raises `Refused`."""
    options = take(asked.options, OPTIONS, asked)
    found: Given = {}
    parts = _load(asked, options["config"])
    for name, part in parts.items():
        word = next((SPLITS[w] for w in re.split(r"[^a-z]+", name.lower()) if w in SPLITS), None)
        if word and word not in found:
            found[word] = partial(_rows, part, asked, options, size, channels, skip, word)
    if len(parts) == 1:
        return {"all": partial(_rows, next(iter(parts.values())), asked, options, size, channels, skip, "")}
    if not found:
        raise Refused(f"{asked} has the splits {', '.join(parts)}", "call them train, valid and test")
    return found


def _load(asked: Spec, config: str) -> dict[str, Any]:
    datasets = package("datasets")
    path = Path(asked.name).expanduser()
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif path.is_file() and path.suffix in BUILDERS:
            found = datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path))
        elif path.is_file():
            raise Refused(f"{path} is no table", f"tables end in {', '.join(BUILDERS)}")
        elif not path.is_dir() and (asked.name.startswith((".", "/", "~")) or asked.name.count("/") > 1):
            raise Refused(f"{path} does not exist", "name a folder or file of tables, or a data set of the hub")
        else:
            found = datasets.load_dataset(str(path) if path.is_dir() else asked.name, config or None)
    except Refused:
        raise
    except Exception as error:
        remedy = "check its files" if path.exists() else "without a network name a folder or file: hf:FOLDER, hf:FILE.parquet"
        raise Refused(f"{asked} cannot be loaded: {first_line(error)}", remedy) from error
    finally:
        if not shown:
            datasets.enable_progress_bars()
    return dict(found) if isinstance(found, dict) else {"all": found}


def _rows(table: Any, asked: Spec, options: dict[str, Any], size: Any, channels: Any, skip: bool, split: str) -> Set:
    """One split as a data set: of images, of texts (with a tokenizer) or of numbers."""
    name = f"{Path(asked.name).name}{', ' + split if split else ''}"
    label = _column(table, options["label"], LABEL, asked)
    picture = _column(table, options["image"], IMAGE, asked) or next(
        (c for c, f in table.features.items() if _holds_files(f)), None)
    text = None if picture and not options["text"] else _column(table, options["text"], TEXT, asked)
    targets, classes = _labels(table, label, name)
    if text:
        return _texts(table, text, targets, classes, name, options, asked)
    if picture is None:
        raise Refused(f"{asked} has no column of images or texts; it has {', '.join(table.column_names)}",
                      f"name it: {asked}?image=… or {asked}?text=…")
    if not _holds_files(table.features[picture]):
        x = arrays.scaled(_numbers(table, picture, asked), options["scale"], "", str(asked))
        return Arrays(images.fit(x, size, channels) if x.ndim == 4 else x, targets, classes, name)
    files = _Files(table.cast_column(picture, package("datasets").Image(decode=False)), picture)
    seen, good = images.whole(files, table.data.nbytes, skip, name, lambda i: f"row {i}")
    shape = images.settle([seen[i] for i in good], size, channels, name)
    content = repr([seen[i].digest for i in good])
    return Lazy(partial(images.read, files, shape), targets[good], classes, name, shape, content,
                index=torch.tensor(good), left_out=len(files) - len(good))


def _holds_files(feature: Any) -> bool:
    """Whether a column holds image files: an image column, bytes, or the pair of bytes and path that stands for one."""
    pair = isinstance(feature, dict) and "bytes" in feature
    return pair or type(feature).__name__ == "Image" or getattr(feature, "dtype", "") == "binary"


class _Files(Sequence):
    """The image files in a column of a table, read one by one: bytes, or the path of a file."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: Any) -> images.Source:
        file = self.table[i][self.column] or {"bytes": b""}         # a row may have none
        return file["path"] if file["bytes"] is None else file["bytes"]


def _texts(table: Any, column: str, targets: Tensor, classes: list[str], name: str, options: dict[str, Any], asked: Spec) -> Lazy:
    """Texts as a dict of tensors [length], by the tokenizer of a model's folder."""
    if not options["tokenizer"]:
        raise Refused(f"{asked} holds texts, which need a tokenizer",
                      f"name the folder of the model's: {asked}?tokenizer=FOLDER&length=128")
    tokenizer = language.tokenizer(str(options["tokenizer"]))
    try:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        batch = tokenizer([str(t) for t in table[column]], padding="max_length", truncation=True, max_length=options["length"],
                          return_tensors="pt")
    except Exception as error:
        raise Refused(f"the tokenizer {options['tokenizer']} does not work: {first_line(error)}",
                      "name a folder that holds tokenizer.json") from error
    held = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    content = arrays.digest(*held.values())
    return Lazy(partial(_from_tensors, held), targets, classes, name, (options["length"],), content, kind="texts")


def _from_tensors(held: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {k: v[i] for k, v in held.items()}


def _column(table: Any, asked_for: str, usual: tuple[str, ...], asked: Spec) -> str | None:
    if asked_for and asked_for not in table.column_names:
        raise Refused(f"{asked} has no column {asked_for!r}", near(asked_for, table.column_names, "its columns"))
    return asked_for or next((c for c in usual if c in table.column_names), None)


def _labels(table: Any, column: str | None, name: str) -> tuple[Tensor, list[str]]:
    """Labels as class numbers, and the names of the classes; None and −1 mean no label."""
    if column is None:
        return torch.full((len(table),), UNLABELLED), []
    values, feature = table[column], table.features[column]
    known = {v for v in values if v is not None}
    if known and all(isinstance(v, str) for v in known):
        classes = sorted(known)
        number = {c: i for i, c in enumerate(classes)}
        return torch.tensor([UNLABELLED if v is None else number[v] for v in values]), classes
    numbers = np.array([UNLABELLED if v is None else v for v in values])
    classes = list(feature.names) if type(feature).__name__ == "ClassLabel" else arrays.class_names([numbers], name)
    return arrays.numbers(numbers, classes, len(values), name), classes


def _numbers(table: Any, column: str, asked: Spec) -> np.ndarray:
    try:
        return np.asarray(list(table[column]), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise Refused(f"the column {column!r} of {asked} is no array of numbers: {first_line(error)}",
                      "one array of one shape a row, or image files") from error
