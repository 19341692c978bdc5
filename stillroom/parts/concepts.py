"""Texts as sets of concepts: an ontology, a reader that finds its names and what is denied, and how alike two sets are."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

DENIES = ("no", "not", "without", "denies", "free of", "negative for")        # stand before what is absent
BEHIND = re.compile(r"\b(is|are|was|were) (not|absent)\b")                     # stands behind it
ENDS = r"[.;:!?\n]|\bbut\b|\bhowever\b|\bexcept\b"                           # how far a denial reaches


@dataclass(frozen=True)
class Ontology:
    """names: strings, lower case, and the concept that each names; types: semantic type of each concept, as T047 in UMLS;
    synonyms, parents: for each concept those at the other end of its edges SY and PAR."""

    names: Mapping[str, str]
    types: Mapping[str, str]
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a text asserts and what it denies; a concept may be in both."""

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


def read(text: str, ontology: Ontology) -> Report:
    """The longest names of the ontology that stand in a text as words; absent where a denial stands before them in their
    clause, or "is not" behind them."""
    found: tuple[set[str], set[str]] = (set(), set())
    longest = max((len(name.split()) for name in ontology.names), default=0)
    for clause in re.split(ENDS, text.lower()):
        words, at, denied = re.findall(r"[\w'-]+", clause), 0, False
        while at < len(words):
            name = next((n for n in range(longest, 0, -1) if " ".join(words[at : at + n]) in ontology.names), 0)
            if name:
                absent = denied or bool(BEHIND.search(" ".join(words[at + name :])))
                found[absent].add(ontology.names[" ".join(words[at : at + name])])
            denied = denied or any(words[at : at + len(d.split())] == d.split() for d in DENIES)
            at += name or 1
    return Report(*map(frozenset, found))


def reached(concept: str, edges: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """All concepts that a walk along the edges comes to, the nearest first, without the one where it begins."""
    seen, front = {concept}, [concept]
    while front:
        front = list(dict.fromkeys(n for c in front for n in edges.get(c, ()) if n not in seen))
        seen.update(front)
        yield from front


def weight(concepts: Iterable[str], ontology: Ontology, by_type: Mapping[str, float]) -> float:
    """Sum over the concepts of what their type weighs; a type that is not named weighs nothing."""
    return sum(by_type.get(ontology.types.get(c, ""), 0.0) for c in concepts)


def alike(reference: Report, target: Report, ontology: Ontology, by_type: Mapping[str, float], alpha: float = 0.5,
          beta: float = 1.0, synonyms: bool = True, across: bool = False) -> float:
    """I / (I + β(α·min(d₁, d₂) + (1 − α)·max(d₁, d₂)) + C), in [0, 1]; 0 where both sets weigh nothing (Nützel et al. 2025, after
    Jimenez et al. 2013: Tversky's index made symmetric).

    I weighs what both assert, d₁ what the reference alone asserts, d₂ what the target alone does. `synonyms`: what a walk along
    synonyms leads from to a concept of the target is not counted in d₁. C weighs what the target both asserts and denies;
    `across`: what the reference asserts and the target denies.
    """
    r, t = reference.present, target.present
    known = t | {c for c in r - t if not t.isdisjoint(reached(c, ontology.synonyms))} if synonyms else t
    both, only_r, only_t = (weight(part, ontology, by_type) for part in (r & t, r - known, t - r))
    against = weight((r if across else t) & target.absent, ontology, by_type)
    rest = beta * (alpha * min(only_r, only_t) + (1 - alpha) * max(only_r, only_t)) + against
    return both / (both + rest) if both else 0.0


def tversky(reference: Report, target: Report, ontology: Ontology, by_type: Mapping[str, float], alpha: float,
            beta: float) -> float:
    """I / (I + α·d₁ + β·d₂) (Tversky 1977): Jaccard's index with α = β = 1, Dice's with ½; 0 where nothing is shared."""
    r, t = reference.present, target.present
    both, only_r, only_t = (weight(part, ontology, by_type) for part in (r & t, r - t, t - r))
    return both / (both + alpha * only_r + beta * only_t) if both else 0.0


@dataclass(frozen=True)
class Library:
    """Reports, as lists of what each asserts and denies, that are searched by what they assert; further fields as in `alike`."""

    ontology: Ontology
    reports: Sequence[Sequence[Sequence[str]]]
    by_type: Mapping[str, float]
    alpha: float = 0.5
    beta: float = 1.0
    synonyms: bool = True
    across: bool = False

    def alike(self, target: Report) -> list[float]:
        """How alike each report is to the target; reports that assert the same are compared once."""
        ways = (self.ontology, self.by_type, self.alpha, self.beta, self.synonyms, self.across)
        sets = [frozenset(present) for present, _ in self.reports]
        known = {s: alike(Report(s), target, *ways) for s in set(sets) if not s.isdisjoint(target.present)}
        return [known.get(s, 0.0) for s in sets]

    def nearest(self, target: Report, k: int = 1) -> list[int]:
        """Places of the `k` reports most alike, the first of equals first."""
        scores = self.alike(target)
        return sorted(range(len(scores)), key=lambda n: -scores[n])[:k]


def labels(report: Report, wanted: Mapping[str, str], ontology: Ontology, deep: bool = True) -> frozenset[str]:
    """Names that a report is labelled with; `wanted`: from concept to name. `deep`: a concept is also labelled as its synonyms
    and as what lies above it."""
    further = {c: (*ontology.synonyms.get(c, ()), *ontology.parents.get(c, ())) for c in ontology.types} if deep else {}
    return frozenset(wanted[c] for own in report.present for c in (own, *reached(own, further)) if c in wanted)
