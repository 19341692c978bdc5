"""Who plays in an arena."""

from typing import Any


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
