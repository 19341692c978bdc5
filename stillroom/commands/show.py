"""what it is: card, paper, actors, fields with defaults and meaning, proof"""

import textwrap

from stillroom import recipe, status
from stillroom.commands._names import Name


def show(name: Name) -> None:
    """A recipe's card: the paper, the answers to the eight questions, its actors and fields, and what was measured."""
    card = recipe.card(name)
    print(f"{card.short}: {card.title}\n{card.authors} — {card.venue}\n{card.link}\n")
    print(f"{card.name} · {card.family} · {status.status(name)}\n")
    _table([(word, text) for word, text in card.rows.items()])
    print("\nactors")
    _table([(_flag(f), f.type, "" if f.default is ... else "may be left out", f.help) for f in recipe.actors(name)])
    print("\nfields")
    _table([(_flag(f), f.type, _value(f.default), f.help) for f in recipe.fields(name)])
    print(f"\n{proof(name)}\n\nstillroom try {name}   ·   stillroom run {name} --help   ·   {card.path}")


def proof(name: str) -> str:
    """What `stillroom prove` measured, in two lines or three."""
    found = status.proof(name)
    if not found:
        return f"proof: not measured yet (stillroom prove {name})"
    ours, beats = found["ours"], found["beats"]
    also = ", ".join(f"{who} {spread['mean']:.4g}" for who, spread in found["also"].items())
    return (f"proof: {ours['mean']:.4g} ± {ours['std']:.2g} {found['unit']} ({found['better']} is better), "
            f"{found['baseline']} {beats['mean']:.4g} ± {beats['std']:.2g}\n"
            f"       better with {status.wins(found)} of {len(found['seeds'])} seeds, in {found['seconds']:.0f} s; "
            f"{found['data']}{'' if found['real'] else ' (drawn by a formula, not real)'}"
            + (f"\n       beside it: {also}" if also else ""))


def _flag(field: recipe.Field) -> str:
    return "--" + field.name.replace("_", "-")


def _value(value) -> str:
    return f"{value:_}" if type(value) is int and abs(value) >= 10_000 else str(value)


def _table(rows: list[tuple[str, ...]]) -> None:
    """Columns side by side; the last is wrapped."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    indent = 2 + sum(w + 2 if w else 0 for w in wide)
    for row in rows:
        lead = "  " + "".join(cell.ljust(w + 2) for cell, w in zip(row, wide) if w)
        print(textwrap.fill(row[-1], 130, initial_indent=lead, subsequent_indent=" " * indent) or lead.rstrip())
