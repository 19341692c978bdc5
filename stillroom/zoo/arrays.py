"""Arrays in npz files, and what must be true of arrays wherever they come from."""

from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import images
from stillroom.zoo.sets import SPLITS, Arrays, Given
from stillroom.zoo.specs import Spec, take

PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"), ("data", "targets"), ("data", "labels"))


def given(asked: Spec, size: Any, channels: Any, skip: bool, seed: int) -> Given:
    """x and y (or images and labels, data and target), or x_train, y_train, x_test, … Raises `Refused`."""
    options = take(asked.options, {"labels": 0, "noise": 0.0, "scale": 0, "layout": ""}, asked)
    file, found = asked.name, read(asked.name)
    parts = _parts(found)
    if not parts:
        raise Refused(f"{file} holds {', '.join(found) or 'nothing'}",
                      "name its arrays x and y, images and labels, or data and target")
    told = next((found[k] for k in ("classes", "class_names") if k in found), None)
    labels = [y for _, y in parts.values() if y is not None]
    classes = [str(n) for n in told] if told is not None else class_names(labels, file) if labels else []
    sets: Given = {}
    for split, (x, y) in parts.items():
        tensor = scaled(x, options["scale"], options["layout"], f"npz:{file}")
        tensor = images.fit(tensor, size, channels) if tensor.ndim == 4 else tensor
        name = Path(file).name + (f", {split}" if split != "all" else "")
        sets[split] = partial(Arrays, tensor, numbers(y, classes, len(tensor), file), classes, name)
    return sets


def read(file: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name. Raises `Refused`, also for pickled objects."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise Refused(f"{path} does not exist", "give the path of an npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        said = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error).splitlines()[0]
        raise Refused(f"{path} cannot be read: {said}", "save plain arrays with numpy.savez(file, x=…, y=…)") from error


def scaled(x: np.ndarray, scale: float, layout: str, name: str) -> Tensor:
    """Samples as float32: images [samples, channels, height, width] in [0, 1], or rows of numbers as they are."""
    if x.dtype.kind not in "uifb" or x.ndim < 2 or not len(x):
        raise Refused(f"the samples of {name} are {x.dtype} of shape {list(x.shape)}",
                      "numbers, [samples, height, width] or with channels")
    if layout not in ("", "chw", "hwc"):
        raise Refused(f"layout={layout!r}", "chw or hwc")
    values = torch.from_numpy(x.astype(np.float32))
    if not values.isfinite().all():
        raise Refused(f"{int((~values.isfinite()).sum())} numbers in the samples of {name} are NaN or infinite",
                      "clean the data first")
    values /= scale or ({"uint8": 255, "uint16": 65535}.get(str(x.dtype), 1) if x.ndim > 2 else 1)
    if x.ndim == 2:
        return values
    low, high = values.min().item(), values.max().item()
    if low < 0 or high > 1 + 1e-6:
        raise Refused(f"the images of {name} run from {low:g} to {high:g}, not from 0 to 1",
                      f"say by what to divide: {name}?scale={255 if high > 16 else f'{high:g}'}" if low >= 0
                      else "store them in [0, 1]; models normalise their input themselves")
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and (layout == "hwc" or (not layout and values.shape[-1] in (1, 3) and values.shape[1] not in (1, 3))):
        return values.permute(0, 3, 1, 2).contiguous()
    return values


def class_names(labels: list[np.ndarray], name: str) -> list[str]:
    """Names for the classes: the strings, or the numbers from 0 to the largest."""
    if labels[0].dtype.kind in "US":
        return sorted({str(v) for part in labels for v in part.ravel()})
    return [str(c) for c in range(max(int(_flat(part, name).max(initial=-1)) for part in labels) + 1)]


def numbers(y: np.ndarray | None, classes: list[str], count: int, name: str) -> Tensor:
    """Labels as class numbers [samples]; −1 and −100 mean none. Raises `Refused` for any that is no class."""
    if y is None:
        return torch.full((count,), UNLABELLED)
    if y.dtype.kind in "US":
        number = {c: i for i, c in enumerate(classes)}
        y = np.array([number.get(str(v), len(classes)) for v in y.ravel()])
    found = torch.from_numpy(_flat(y, name).astype(np.int64))
    if len(found) != count:
        raise Refused(f"{name} has {count} samples and {len(found)} labels", "one label a sample, −100 where there is none")
    found[found == -1] = UNLABELLED
    wrong = found[((found < 0) & (found != UNLABELLED)) | (found >= len(classes))]
    if len(wrong):
        raise Refused(f"{len(wrong)} labels of {name} are no class, such as {int(wrong[0])}",
                      (f"0 to {len(classes) - 1}, or " if classes else "") + "−100 where there is none")
    return found


def digest(*tensors: Tensor) -> str:
    """Hex digest of tensors."""
    found = blake2b(digest_size=16)
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _parts(found: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Samples and labels by split: x_train or train_x, …; or x alone, for `all`."""
    parts: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for a, b in PAIRS:
        for word, split in (("", "all"), *SPLITS.items()):
            names = [(a, b)] if not word else [(f"{a}_{word}", f"{b}_{word}"), (f"{word}_{a}", f"{word}_{b}")]
            for x, y in names:
                if x in found and (split not in parts or parts[split][1] is None):
                    parts[split] = (found[x], found.get(y))
    if "train" in parts:
        parts.pop("all", None)
    return parts


def _flat(y: np.ndarray, name: str) -> np.ndarray:
    """Labels as one whole number a sample; one-hot rows are understood."""
    if y.ndim == 2 and y.shape[1] > 1 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        return y.argmax(1)
    if not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)) or y.dtype.kind not in "iufb" or (y != np.round(y)).any():
        raise Refused(f"the labels of {name} are {y.dtype} of shape {list(y.shape)}", "one whole number a sample")
    return y.ravel()
