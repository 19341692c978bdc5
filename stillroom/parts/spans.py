"""Strings in texts: where they stand, which words they cover, how an answer lists them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FORM = 'Answer with one line for each name, like this: - NAME: ["…", "…"]'
Span = tuple[int, int]      # first character, and the one after the last


class Passage(NamedTuple):
    """A text, and the names in it that are asked about."""

    text: str
    names: tuple[str, ...]


def words(text: str) -> list[Span]:
    """Words, numbers and single signs: `tol=1e-4.` has tol, =, 1e-4 and the full stop."""
    return [m.span() for m in re.finditer(r"\w+(?:[-.+]\w+)*|[^\w\s]", text)]


def mentions(text: str, wanted: str) -> list[Span]:
    """Every place where a string stands in the text, whole words only; case and breaks of lines do not matter. Without one the
    string was made up."""
    parts = [re.escape(part) for part in wanted.split()]
    if not parts:
        return []
    before, after = (r"(?<!\w)" if wanted.strip()[0].isalnum() else "", r"(?!\w)" if wanted.strip()[-1].isalnum() else "")
    return [m.span() for m in re.finditer(before + r"\s+".join(parts) + after, text, re.I)]


def covered(spans: Sequence[Span], where: Sequence[Span]) -> list[int]:
    """Numbers of the tokens (`spans`, empty ones are padding) that share a character with one of the places."""
    return [n for n, (start, end) in enumerate(spans) if any(start < b and a < end for a, b in where)]


def runs(chosen: Sequence[bool], spans: Sequence[Span]) -> list[Span]:
    """Tokens chosen side by side, as one span each; padding, which stands nowhere, is none."""
    found: list[Span] = []
    before = False
    for yes, (start, end) in zip(chosen, spans, strict=False):
        yes = yes and start < end
        if yes:
            found.append((found.pop()[0], end) if before else (start, end))
        before = yes
    return found


def prompt(task: str, passage: Passage, examples: Sequence[tuple[Passage, Mapping[str, Sequence[str]]]] = ()) -> str:
    """What a language model is asked: the task, the form of the answer, examples with theirs, and the passage."""
    shown = "".join(f"{_asked(p)}\n{listed(answer)}\n\n" for p, answer in examples)
    return f"{task}\n{FORM}\n\n{shown}{_asked(passage)}"


def _asked(passage: Passage) -> str:
    return f"Passage: {' '.join(passage.text.split())}\nNames: {', '.join(passage.names)}"


def listed(found: Mapping[str, Sequence[str]]) -> str:
    """An answer: a line for each name, with its strings."""
    return "\n".join(f"- {name}: {json.dumps(list(strings), ensure_ascii=False)}" for name, strings in found.items())


def parse(answer: str, passage: Passage) -> dict[str, list[str]]:
    """What an answer lists for the names of a passage: names that were not asked about and strings that do not stand in the
    text fall out. Reads JSON lists, and lists with bare words or commas; the rest of the answer is passed over."""
    known = {name.casefold(): name for name in passage.names}
    found: dict[str, list[str]] = {name: [] for name in passage.names}
    for line in re.finditer(r"^\s*[-*•]?\s*[\"'`*]*(.+?)[\"'`*]*\s*:\s*(\[.*\])\s*$", answer, re.M):
        name = known.get(line[1].strip().casefold())
        try:
            strings = json.loads(line[2])
        except ValueError:
            strings = [s.strip(" \"'`") for s in line[2][1:-1].split(",")]
        for s in strings:
            if name and isinstance(s, str) and mentions(passage.text, s) and s not in found[name]:
                found[name].append(s)
    return found
