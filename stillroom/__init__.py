"""stillroom: one library and one command that distils anything."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.recipe import Recipe as Recipe
    from stillroom.run import Run as Run

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "arenas", "measure", "parts", "recipes", "zoo"]

_HOMES = {"Recipe": "stillroom.recipe", "Run": "stillroom.run"}


def __getattr__(name: str) -> Any:
    """Nothing heavy is imported before it is asked for, so that `stillroom list` answers at once."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"stillroom.{name}")
    raise AttributeError(f"stillroom has no {name!r}")
