"""what is there: family, name, title, status of every recipe"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom import recipe, status
from stillroom.errors import Refused


@dataclass(frozen=True)
class Flags:
    json: bool = False     # one object a recipe
    names: bool = False    # nothing but the names, on one line


def command(words: Sequence[str]) -> None:
    """Every recipe in whose card all the given words stand: `stillroom list graph --json`."""
    flags, wanted = Flags(), [w.lower() for w in words if not w.startswith("-")]
    if len(wanted) < len(words):                 # without a flag the parser is left out: the answer comes at once
        import tyro

        flags = tyro.cli(Flags, args=[w for w in words if w.startswith("-")], prog="stillroom list [WORDS]",
                         description=command.__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    cards = [c for c in map(recipe.card, recipe.names()) if all(w in _text(c) for w in wanted)]
    if not cards:
        raise Refused(f"no card holds {' and '.join(map(repr, wanted))}", "`stillroom list` shows all of them")
    cards.sort(key=lambda c: (c.family, c.name))
    if flags.names:
        print(*(c.name for c in cards))
    elif flags.json:
        print(json.dumps([{"family": c.family, "name": c.name, "title": f"{c.short}: {c.title}", "status": status.status(c.name),
                           "venue": c.venue, "link": c.link} for c in cards], indent=1, ensure_ascii=False))
    else:
        _table([("family", "name", "status", "title"),
                *((c.family, c.name, status.status(c.name), f"{c.short}: {c.title}") for c in cards)])


def _table(rows: list[tuple[str, ...]]) -> None:
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    screen = shutil.get_terminal_size((10_000, 20)).columns       # a pipe gets whole lines
    for row in rows:
        line = "  ".join([*(cell.ljust(w) for cell, w in zip(row[:3], wide, strict=True)), row[3]])
        print(line if len(line) <= screen else line[: screen - 1] + "…")


def _text(card: recipe.Card) -> str:
    return " ".join([card.family, card.name, card.short, card.title, card.authors, card.venue, *card.rows.values()]).lower()
