"""Small pieces of HTML. All text that came from outside is escaped here."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from stillroom.report import words


class Cell(NamedTuple):
    """One cell of a table: HTML to show, a value to sort by ("" sorts last), a class."""

    shown: str
    value: Any = ""
    kind: str = ""


class Row(NamedTuple):
    """One row of a table; its first cell is its head."""

    cells: Sequence[Cell]
    kind: str = ""


def text(thing: Any) -> str:
    """Escaped; a number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=(?:ms|s|kB|MB|GB|B|min)\b|%)", "\u00a0", escape(str(thing)))


def note(words_: str) -> str:
    return f'<p class="note">{words_}</p>' if words_ else ""


def plain(thing: Any) -> Cell:
    """A cell of text."""
    return Cell(text(thing), thing)


def value(shown: str, number: Any) -> Cell:
    """A cell that is sorted by a number; a dash without one."""
    return Cell(shown, number) if number is not None else Cell(words.NONE)


def percent(number: float | None) -> Cell:
    return value(words.percent(number), number)


def difference(pair: dict[str, Any] | None) -> Cell:
    """A difference with its interval, and what that says in words."""
    if pair is None:
        return Cell(words.NONE)
    said = words.verdict(pair)
    return Cell(f'{words.interval(pair)}<small class="{said.replace(" ", "-")}">{said}</small>', pair["difference"])


def setting(thing: Any) -> str:
    """A field's value as one reads it."""
    return f"{thing:,}" if type(thing) is int else f"{thing:g}" if isinstance(thing, float) else str(thing) or words.NONE


def table(columns: Iterable[tuple[str, str]], rows: Iterable[Row], caption: str = "", *, sortable: bool = True) -> str:
    """columns: (title, "text" for words, "desc" for numbers of which the largest come first, or "")."""
    marks = {"text": ' class="text"', "desc": ' data-first="descending"', "": ""}
    open_, close = ('<button type="button">', "</button>") if sortable else ("", "")
    head = "".join(f'<th scope="col"{marks[kind]}>{open_}{text(title)}{close}</th>' for title, kind in columns)
    return (f'{note(text(caption))}<div class="scroll" tabindex="0"><table class="sticky{" sortable" * sortable}">'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table></div>")


def _row(row: Row) -> str:
    first, *rest = row.cells
    line = f'<th scope="row" class="text" data-value="{escape(str(first.value))}">{first.shown}</th>'
    for cell in rest:
        kind = f' class="{cell.kind}"' if cell.kind else ""
        line += f'<td{kind} data-value="{escape(str(cell.value))}">{cell.shown}</td>'
    return f'<tr class="{row.kind}">{line}</tr>' if row.kind else f"<tr>{line}</tr>"


def figure(title: str, said: str, drawn: str) -> str:
    return f"<figure><figcaption><b>{text(title)}</b>{text(said)}</figcaption>{drawn}</figure>" if drawn else ""


def figures(*drawn: str) -> str:
    return f'<div class="pictures">{"".join(drawn)}</div>' if any(drawn) else ""


def pairs(facts: Iterable[tuple[str, Any]]) -> str:
    """Names and values below each other."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(setting(fact))}</dd>" for name, fact in facts) + "</dl>"


def command(line: str) -> str:
    return f'<div class="command"><pre>{escape(line)}</pre><button type="button">copy</button></div>'


def page(title: str, body: str) -> str:
    """The whole page: template, style and script in one file."""
    here = resources.files("stillroom.report")
    parts = {name: (here / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    return Template(parts["html"]).substitute(title=escape(title), style=parts["css"], script=parts["js"], body=body)
