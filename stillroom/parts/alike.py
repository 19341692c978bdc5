"""How alike two sets of concepts are, in [0, 1], by an ontology and by what its semantic types weigh; and a search by that."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from stillroom.parts.concepts import Ontology, Report, reached

Weights = Mapping[str, float] | None      # by semantic type; a type that is not named weighs nothing; None: all concepts weigh 1


def weight(concepts: Iterable[str], ontology: Ontology, by_type: Weights) -> float:
    """Sum over the concepts of what their type weighs."""
    if by_type is None:
        return float(len(list(concepts)))
    return sum(by_type.get(ontology.types.get(c, ""), 0.0) for c in concepts)


def alike(reference: Report, target: Report, ontology: Ontology, by_type: Weights, alpha: float = 0.5, beta: float = 1.0,
          synonyms: bool = True, across: bool = False) -> float:
    """I / (I + β(α·min(d₁, d₂) + (1 − α)·max(d₁, d₂)) + C); 0 where both sets weigh nothing (Nützel et al. 2025, after Jimenez et
    al. 2013: Tversky's index made symmetric).

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


def tversky(reference: Report, target: Report, ontology: Ontology, by_type: Weights, alpha: float = 0.1,
            beta: float = 0.9) -> float:
    """I / (I + α·d₁ + β·d₂) (Tversky 1977): Jaccard's index with α = β = 1, Dice's with ½; 0 where nothing is shared."""
    r, t = reference.present, target.present
    both, only_r, only_t = (weight(part, ontology, by_type) for part in (r & t, r - t, t - r))
    return both / (both + alpha * only_r + beta * only_t) if both else 0.0


def overlap(reference: Report, target: Report, ontology: Ontology, by_type: Weights) -> float:
    """I over the weight of the lighter set (Szymkiewicz and Simpson); 0 where nothing is shared."""
    both, *each = (weight(s, ontology, by_type) for s in (reference.present & target.present, reference.present, target.present))
    return both / min(each) if both else 0.0


def denials(reference: Report, target: Report, ontology: Ontology, by_type: Weights, alpha: float = 0.5) -> float:
    """α · likeness of what both assert + (1 − α) · likeness of what both deny, each I / (I + d₁ + d₂ + C), with C as in `alike`.
    (The authors' code has the asserted I in both terms.)"""
    parts = []
    for side in ("present", "absent"):
        r, t = (getattr(report, side) for report in (reference, target))
        both, either = weight(r & t, ontology, by_type), weight(r | t, ontology, by_type)
        parts.append(both / (either + weight(target.present & target.absent, ontology, by_type)) if both else 0.0)
    return alpha * parts[0] + (1 - alpha) * parts[1]


def walk(reference: Report, target: Report, ontology: Ontology, by_type: Weights, step: float = 0.5, lost: float = 5.0) -> float:
    """1 / (1 + cost): for each concept of the reference that weighs something, the way from the target to it, by synonyms for
    nothing, by parents and children for `step` each, and `lost` where none leads; 0 where no way leads to any."""
    asked = {c for c in reference.present if weight((c,), ontology, by_type)}
    far = _far(target.present, ontology, step)
    return 1 / (1 + sum(far.get(c, lost) for c in asked)) if not asked.isdisjoint(far) else 0.0


def lin(reference: Report, target: Report, ontology: Ontology, by_type: Weights) -> float:
    """2 · best-match average of IC(best common ancestor) / (mean IC of the target + mean IC of the reference) (Lin 1998, Resnik
    1995), over concepts that weigh something. IC(c) = −log(share of the leaves that lie at or below c)."""
    r, t = ({c for c in report.present if weight((c,), ontology, by_type)} for report in (reference, target))
    if not r or not t:
        return 0.0
    up = {c: {c, *reached(c, ontology.parents)} for c in r | t}
    known = ontology.content
    best = [sum(max(max((known[u] for u in up[a] & up[b]), default=0.0) for b in other) for a in own) / len(own)
            for own, other in ((t, r), (r, t))]
    total = sum(sum(known[c] for c in s) / len(s) for s in (t, r))
    return sum(best) / total if total else 0.0


def _far(start: Iterable[str], ontology: Ontology, step: float) -> dict[str, float]:
    """The shortest way from any of these concepts to each that can be reached."""
    far, front = dict.fromkeys(start, 0.0), list(start)
    while front:                                     # synonyms cost nothing: all of them before the next step is taken
        for concept in front:
            for other in ontology.same.get(concept, ()):
                if other not in far:
                    far[other] = far[concept]
                    front.append(other)
        onward = [(kin, far[concept] + step) for concept in front for kin in ontology.kin.get(concept, ()) if kin not in far]
        far.update(onward)
        front = list(dict.fromkeys(kin for kin, _ in onward))
    return far


MEASURES: dict[str, Callable[..., float]] = {
    "symmetric": alike, "tversky": tversky, "jaccard": partial(tversky, alpha=1.0, beta=1.0),
    "dice": partial(tversky, alpha=0.5, beta=0.5), "overlap": overlap, "denials": denials, "walk": walk, "lin": lin}


@dataclass(frozen=True)
class Library:
    """Reports, as lists of what each asserts and denies, that are searched by how alike they are; `ways`: what the measure of
    that name is told besides."""

    ontology: Ontology
    reports: Sequence[Sequence[Sequence[str]]]
    by_type: Weights = None
    measure: str = "symmetric"
    ways: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def sets(self) -> list[Report]:
        """What each report asserts and denies."""
        return [Report(frozenset(present), frozenset(absent)) for present, absent in self.reports]

    @cached_property
    def index(self) -> dict[str, set[Report]]:
        """Under each concept (or all that edges join to it, where the measure walks) the different reports that hold it."""
        found = defaultdict(set)
        for report in self.sets:
            for key in self._keys(report):
                found[key].add(report)
        return found

    def _keys(self, report: Report) -> set[str]:
        held = report.present | report.absent if self.measure == "denials" else report.present
        return {self.ontology.joined.get(c, c) for c in held} if self.measure in ("walk", "lin") else set(held)

    def alike(self, target: Report) -> list[float]:
        """How alike each report is to the target; reports of equal sets are compared once, those that share nothing never."""
        near = set().union(*(self.index.get(key, ()) for key in self._keys(target)))
        known = {r: MEASURES[self.measure](r, target, self.ontology, self.by_type, **self.ways) for r in near}
        return [known.get(report, 0.0) for report in self.sets]

    def nearest(self, target: Report, k: int = 1) -> list[int]:
        """Places of the `k` reports most alike, fewer where fewer share anything; of equals first those that deny what the target
        denies."""
        def beside(report: Report) -> float:
            both = report.absent and target.absent
            return MEASURES[self.measure](Report(report.absent), Report(target.absent), *ways, **self.ways) if both else 0.0

        ways = self.ontology, self.by_type
        order = [(-score, -beside(report), n) for n, (score, report) in enumerate(zip(self.alike(target), self.sets, strict=True))
                 if score]
        return [n for *_, n in heapq.nsmallest(k, order)]
