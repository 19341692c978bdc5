"""does it work: a recipe's own trial and proof, with numbers"""

import tyro

from stillroom import recipe, status
from stillroom.commands._names import Name


def command(words) -> int:
    """`try` from words: a recipe's own name is a keyword of the language."""
    return tyro.cli(try_, args=words, prog="stillroom try")


def try_(name: Name, seed: int = 0) -> int:
    """Run a recipe's own trial in memory, and say whether its proof holds. Ten seconds or so; nothing is written.

    Args:
        seed: everything random follows from it
    """
    card = recipe.card(name)
    from stillroom.commands.prove import one

    print(f"{card.short}: {card.title}", flush=True)
    row, method, cast = one(name, seed)
    print(f"{method}\non {cast.data}{'' if cast.real else ' (drawn by a formula)'}\n{status.say(row)}; {row['seconds']:.1f} s")
    return 0 if row["holds"] else 1
