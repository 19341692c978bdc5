"""Data of one's own, by file and callable."""

import inspect
from functools import partial
from typing import Any

from torch import Tensor

from stillroom.batches import targets
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo.from_files import callable_in
from stillroom.zoo.sets import SPLITS, Given, Lazy
from stillroom.zoo.specs import Spec, near


def called(asked: Spec, **told: Any) -> Any:
    """What `file:PATH.py:callable?option=value` returns, given its options and what it takes of `told`. Raises `Refused`."""
    _, call = callable_in(asked)
    takes = inspect.signature(call).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    unknown = [o for o in asked.options if o not in takes and not anything]
    if unknown:
        raise Refused(f"{asked} takes no {unknown[0]!r}", near(unknown[0], takes, "it takes"))
    return call(**{k: v for k, v in told.items() if v is not None and k in takes} | asked.options)


def given(asked: Spec, size: Any, channels: int | None, skip: bool, seed: int) -> Given:
    """A map-style data set of samples (x, y), or a dict of such: train, valid, test. Raises `Refused`."""
    made = called(asked, size=size, channels=channels, seed=seed)
    parts = made if isinstance(made, dict) else {"all": made}
    unknown = [name for name in parts if name != "all" and name not in SPLITS]
    if unknown:
        raise Refused(f"{asked} gave a split {unknown[0]!r}", near(str(unknown[0]), SPLITS))
    return {SPLITS.get(name, name): partial(_lazy, part, asked, name) for name, part in parts.items()}


def _lazy(data: Any, asked: Spec, split: str) -> Lazy:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, str | Tensor):
        raise Refused(f"{asked} gave a {type(data).__name__}, no data set with a length and samples by number",
                      "return TensorDataset(x, y), or another map-style data set, or a dict of them by split")
    if not len(data):
        raise Refused(f"{asked}: the data set is empty", "check what the function reads")
    first = data[0]
    if not isinstance(first, tuple | list) or len(first) < 2:
        raise Refused(f"{asked} gives a {type(first).__name__} for a sample, not (x, y)",
                      f"return (x, y); y = {UNLABELLED} where there is no label")
    known = _targets(data)
    names = getattr(data, "classes", None) or range(int(known.max()) + 1)
    words = asked.name.rpartition("/")[2] + ("" if split == "all" else f", {split}")
    return Lazy(partial(_sample, data), known, [str(c) for c in names], words, tuple(getattr(first[0], "shape", ())),
                repr((asked.name, asked.options, [_seen(data[i][0]) for i in {0, len(data) // 2, len(data) - 1}])), "samples")


def _sample(data: Any, i: int) -> Any:
    return data[i][0]


def _targets(data: Any) -> Tensor:
    try:
        return targets(data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"the labels are no class numbers ({error})",
                      f"return (x, y), y from 0, or {UNLABELLED} for none") from error


def _seen(x: Any) -> Any:
    """A sample so that another one reads otherwise."""
    if isinstance(x, Tensor):
        return tuple(x.shape), x.flatten().tolist()[:4096]
    return {k: _seen(v) for k, v in x.items()} if isinstance(x, dict) else [_seen(v) for v in x] if isinstance(x, tuple) else x
