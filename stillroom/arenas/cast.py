"""Who plays in an arena, and what its recipe makes otherwise."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from stillroom import recipe
from stillroom.run import Run


class Cast:
    """Who plays, on which data, judged how.

    actors   what a recipe's `distill` takes, by name; fresh for every cast
    data     what the data are, in words
    real     False when they were drawn by a formula
    judges   functions and baselines by name, for the proof: `cast.accuracy(net)`, `cast.alone()`
    """

    def __init__(self, actors: dict[str, Any], *, data: str, real: bool = True, **judges: Any):
        self.actors, self.data, self.real = actors, data, real
        self.__dict__.update(judges)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this cast has no {name!r}; it has {', '.join(self.__dict__)}")


@lru_cache(maxsize=32)
def variant(name: str, seed: int, /, **fields: Any) -> Any:
    """What the recipe's own trial makes with these fields changed; made once, and not to be changed."""
    method, cast = recipe.module(name).trial(seed)
    return replace(method, **fields)(Run(seed=seed), **cast.actors)
