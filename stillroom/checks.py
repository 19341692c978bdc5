"""Before the first step: everything that can be known to be wrong is said now, with its remedy."""

import inspect

from stillroom.errors import Refused, nearest


def before(recipe, run, actors: dict) -> None:
    """Check the actors of a recipe. Raises `Refused`; changes nothing."""
    signature = inspect.signature(recipe.distill).parameters
    wanted = {n: p for n, p in signature.items() if n != "run"}
    name = type(recipe).__name__
    for given in actors:
        if given not in wanted:
            raise Refused(f"{name} has no actor {given!r}", nearest(given, wanted))
    for needed, p in wanted.items():
        if p.default is p.empty and needed not in actors:
            raise Refused(f"{name} needs {needed!r}", f"its actors: {', '.join(wanted)}")
