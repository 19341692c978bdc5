"""Augmentations by name, for views that are drawn again: functions of `parts.views`, each applied to one image at a time."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts import views
from stillroom.zoo.from_files import callable_in
from stillroom.zoo.specs import near, parse, take


def crops(x: Tensor, least: float = 0.08) -> Tensor:
    """A random crop of at least this share of the image's area, at the image's size (Szegedy et al. 2015)."""
    return views.crops(x[None], 1, (least, 1.0))[0, 0]


NAMED: dict[str, Callable[..., Tensor]] = {
    "crops": crops, "flip": views.flip, "jitter": views.jitter, "grey": views.grey, "solarise": views.solarise,
    "blur": views.blur, "erase": views.erase}
SHARES = ("p", "least", "threshold")      # options that are 1 at most


class Augment:
    """Several augmentations one after another, an image → an image."""

    def __init__(self, steps: list[Callable[[Tensor], Tensor]]):
        self.steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def augment(*words: str) -> Augment:
    """Augmentations by name, in this order: `augment("crops?least=0.25", "flip", "jitter?hue=0", "file:mine.py:wobble")`.

    crops flip jitter grey solarise blur erase, their numbers as options; or a function of one's own, image → image.
    Raises `Refused` for an unknown name or option.
    """
    return Augment([_step(word) for word in words])


def _step(word: str) -> Callable[[Tensor], Tensor]:
    asked = parse(word)
    if asked.kind == "file":
        return partial(callable_in(asked)[1], **asked.options)
    if asked.kind not in NAMED or asked.name:
        raise Refused(f"no augmentation is called {word!r}",
                      f"{near(asked.kind, NAMED)} One of your own reads file:PATH.py:callable")
    known = numbers(asked.kind)
    for name, value in take(asked.options, known, asked).items():
        if value < 0 or (name in SHARES and value > 1) or (name == "least" and not value):
            raise Refused(f"{word!r}: {name}={value}", f"e.g. {asked.kind}?{name}={known[name]}")
    return partial(_one, NAMED[asked.kind], asked.kind, asked.options)


def numbers(name: str) -> dict[str, Any]:
    """The options of a named augmentation, with their defaults."""
    return {k: p.default for k, p in signature(NAMED[name]).parameters.items() if isinstance(p.default, int | float)}


def _one(change: Callable[..., Tensor], name: str, options: dict[str, Any], x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        raise Refused(f"{name} changes images, [channels, height, width] in [0, 1]",
                      "for other samples name a function of your own: file:PATH.py:callable")
    return change(x, **options)
