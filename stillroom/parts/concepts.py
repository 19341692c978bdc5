"""Texts as sets of concepts: an ontology, a reader that finds its names and what is denied, and links that names lack."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

DENIES = re.compile(r"\b(no(?! other\b)|not(?! (only|previously|yet|been)\b)|never(?! been\b)|neither|nor|without|deny|denie[sd]|"
                    r"absence of|free of|negative for)\b")                    # stands before what is absent
BEHIND = re.compile(r"\b(is|are|was|were) (not|absent)\b")                     # stands behind what is absent
ENDS = re.compile(r"[.;:!?\n]|\b(?:but|however|except|although|though|because|since|until|who|which)\b", re.IGNORECASE)
SMALL = frozenset(re.findall(r"\w+", """
    a absence after also an and as at be been being by can denied denies due during for free from had has have he her his i in
    into is it its may negative neither never no nor not of on or our she that the their these this those to was we were when
    which while who with without"""))
FORMS = [(re.compile(before), after) for before, after in (      # British spellings, then plurals
    ("ae(?=[mdst])", "e"), ("oe(?=[dst])", "e"), ("oea", "ea"), ("our(?=s?$)", "or"), ("^leuc", "leuk"), ("yse(?=d?s?$)", "yze"),
    ("(?<=[a-z]{3})ies$", "y"), ("(?<=[a-z]{2}[^d]o|[a-z]sta)ses$", "sis"), ("(?<=sh|ch|ss)es$", ""),
    ("(?<=[a-z]{2}[^sui])s$", ""))]


def as_written(clause: str) -> list[str]:
    """Its words, lower case; what hyphens join is one word."""
    return re.findall(r"[\w'-]+", clause.lower())


def in_one_form(clause: str) -> list[str]:
    """Its words in the singular and in American spelling, what hyphens join as several; only words in capitals keep them, so that
    TEN, toxic epidermal necrolysis, is no number."""
    return [word.removesuffix("s") if word[:-1].isupper() and len(word) > 2 else _form(word.lower())
            for word in re.findall(r"[A-Za-z0-9]+", clause)]


@lru_cache(maxsize=100_000)
def _form(word: str) -> str:
    for before, after in FORMS:
        word = before.sub(after, word)
    return word


@dataclass(frozen=True)
class Ontology:
    """names: strings and the concept that each names; types: semantic type of each concept, as T047 in UMLS; synonyms, parents:
    for each concept those at the other end of its edges SY and PAR; words: cuts texts into words, as the names are written."""

    names: Mapping[str, str]
    types: Mapping[str, str]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Callable[[str], list[str]] = as_written

    @cached_property
    def longest(self) -> int:
        """Words of the longest name."""
        return max((len(name.split()) for name in self.names), default=0)

    @cached_property
    def above(self) -> dict[str, tuple[str, ...]]:
        """Edges to synonyms and parents, together."""
        return {c: (*self.synonyms.get(c, ()), *self.parents.get(c, ())) for c in {*self.synonyms, *self.parents}}

    @cached_property
    def same(self) -> dict[str, set[str]]:
        """Synonyms, whichever way the edge points."""
        return _both_ways(self.synonyms)

    @cached_property
    def kin(self) -> dict[str, set[str]]:
        """Parents and children."""
        return _both_ways(self.parents)

    @cached_property
    def joined(self) -> dict[str, str]:
        """One concept for all that edges join, by any number of steps."""
        edges, first = {c: {*self.same.get(c, ()), *self.kin.get(c, ())} for c in {*self.same, *self.kin}}, dict[str, str]()
        for concept in sorted(edges):
            if concept not in first:
                first.update(dict.fromkeys((concept, *reached(concept, edges)), concept))
        return first

    @cached_property
    def content(self) -> dict[str, float]:
        """Information content of each concept: −log of the share of the leaves that lie at or below it."""
        every = {*self.types, *self.parents, *(up for above in self.parents.values() for up in above)}
        leaves = every - {up for above in self.parents.values() for up in above}
        below = Counter(up for leaf in leaves for up in (leaf, *reached(leaf, self.parents)))
        return {c: -math.log(below[c] / len(leaves)) if below[c] else 0.0 for c in every}


def _both_ways(edges: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for a, others in edges.items():
        for b in others:
            found.setdefault(a, set()).add(b)
            found.setdefault(b, set()).add(a)
    return found


@dataclass(frozen=True)
class Report:
    """What a text asserts and what it denies; a concept may be in both."""

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


# --- from texts to sets ----------------------------------------------------------------------------------------------

def read(text: str, ontology: Ontology, link: Callable[[str], str | None] | None = None) -> Report:
    """The longest names of the ontology that stand in a text as words; absent where a denial stands before them in their
    clause, or "is not" behind them. `link`: the concept, if any, of words in a row between names and small words."""
    found: tuple[set[str], set[str]] = (set(), set())
    for clause in ENDS.split(text):
        told = ontology.words(clause)
        for start, end, concept in _named(told, ontology, link):
            denied = DENIES.search(" ".join(told[:start]).lower()) or BEHIND.search(" ".join(told[end:]).lower())
            found[bool(denied)].add(concept)
    return Report(*map(frozenset, found))


def _named(words: list[str], ontology: Ontology, link: Callable[[str], str | None] | None) -> Iterator[tuple[int, int, str]]:
    """From which word to which, and the concept that they name."""
    at, free = 0, {n for n, word in enumerate(words) if word.lower() not in SMALL}
    while at < len(words):
        name = next((n for n in range(min(ontology.longest, len(words) - at), 0, -1)
                     if " ".join(words[at : at + n]) in ontology.names), 0)
        if name:
            yield at, at + name, ontology.names[" ".join(words[at : at + name])]
            free.difference_update(range(at, at + name))
        at += name or 1
    for unknown, run in groupby(range(len(words)), free.__contains__):
        places = list(run)
        concept = link(" ".join(words[n] for n in places)) if link and unknown else None
        if concept is not None:
            yield places[0], places[-1] + 1, concept


class Nearest:
    """Links words to the concept of the name nearest to them by an embedding, as SapBERT is used for (Liu et al. 2021).

    embed   from strings to vectors [strings, dim]
    least   cosine below which nothing is linked
    """

    def __init__(self, ontology: Ontology, embed: Callable[[Sequence[str]], Tensor], least: float = 0.8):
        self.names, self.concepts = list(ontology.names), list(ontology.names.values())
        self.embed, self.least, self.known = embed, least, F.normalize(embed(self.names), dim=1)

    def __call__(self, mention: str) -> str | None:
        near, at = (self.known @ F.normalize(self.embed([mention]), dim=1)[0]).max(0)
        return self.concepts[int(at)] if near >= self.least else None


def letters(strings: Sequence[str], dim: int = 2048) -> Tensor:
    """An embedding that needs no weights: counts of the three letters in a row of each word, hashed, [strings, dim]."""
    from zlib import crc32

    out = torch.zeros(len(strings), dim)
    for row, string in zip(out, strings, strict=True):
        for word in string.split():
            for n in range(len(word)):
                row[crc32(f" {word} "[n : n + 3].encode()) % dim] += 1
    return out


def abbreviations(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (short, long) that a text gives as "long (short)": the letters of the short form stand in the long one in order, the
    first at the beginning of a word (Schwartz and Hearst 2003)."""
    for found in re.finditer(r"\(([^()]+)\)", text):
        short = found[1].strip()
        each = [c for c in short.lower() if c.isalnum()]
        if not (2 <= len(short) <= 10 and len(short.split()) <= 2 and short[0].isalnum() and re.search("[A-Za-z]", short)):
            continue
        long = " ".join(text[: found.start()].split()[-min(len(short) + 5, 2 * len(short)) :])
        at = len(long)
        for letter in reversed(each[1:]):
            at = long.lower().rfind(letter, 0, max(at, 0))
        starts = [m.start() for m in re.finditer(rf"\b{each[0]}", long[: max(at, 0)], re.IGNORECASE)]
        if starts and len(long) - starts[-1] > len(short):
            yield short, long[long.rfind(" ", 0, starts[-1]) + 1 :]


# --- what follows from the ontology ----------------------------------------------------------------------------------

def reached(concept: str, edges: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """All concepts that a walk along the edges comes to, the nearest first, without the one where it begins."""
    seen, front = {concept}, [concept]
    while front:
        front = list(dict.fromkeys(n for c in front for n in edges.get(c, ()) if n not in seen))
        seen.update(front)
        yield from front


def labels(report: Report, wanted: Mapping[str, str], ontology: Ontology, deep: bool = True) -> frozenset[str]:
    """Names that a report is labelled with; `wanted`: from concept to name. `deep`: a concept is also labelled as its synonyms
    and as what lies above it."""
    if not deep:
        return frozenset(wanted[c] for c in report.present & wanted.keys())
    return frozenset(wanted[c] for own in report.present for c in (own, *reached(own, ontology.above)) if c in wanted)
