"""Case reports in which experts marked drugs and adverse effects: sentences, what they tell, an ontology of other papers."""

import gzip
import random
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from stillroom.parts.concepts import Ontology, abbreviations, in_one_form
from stillroom.zoo.shared import home

DISEASE, SUBSTANCE = "T047", "T121"      # an effect, a drug; UMLS' types are not in the corpus
Sentence = tuple[str, str, frozenset[str], frozenset[str]]       # paper, text, its effects, its drugs


def parted(seed: int) -> SimpleNamespace:
    """The corpus, papers parted by the seed: one half for the ontology, a quarter to search in, a quarter to search for.

    ontology     of the spans and abbreviations of its half alone
    known        sentences of that half: text, effects
    references, tests   sentences of the others
    silent       their sentences in which the experts saw no adverse effect
    Raises `Refused` where the corpus is not on this machine.
    """
    told, silent = corpus(home("ade_corpus"))
    papers = sorted({paper for paper, *_ in told})
    random.Random(seed).shuffle(papers)
    ends = [0, len(papers) // 2, 3 * len(papers) // 4, len(papers)]
    half, *quarters = ({*papers[a:b]} for a, b in pairwise(ends))
    seen = [sentence for sentence in told if sentence[0] in half]
    references, tests = ([(text, effects) for paper, text, effects, _ in told if paper in part] for part in quarters)
    return SimpleNamespace(ontology=ontology(seen, [text for paper, text in silent if paper in half]), references=references,
                           known=[(text, effects) for _, text, effects, _ in seen], tests=tests, limits=(1, 4), real=True,
                           silent=[text for paper, text in silent if paper not in half],
                           name="the ADE corpus, sentences of case reports; ontology of the experts' spans in half of the papers")


@lru_cache(maxsize=1)
def corpus(folder: Path) -> tuple[list[Sentence], list[tuple[str, str]]]:
    """Sentences with an adverse effect; paper and text of those without (Gurulingappa et al. 2012)."""
    def lines(name: str) -> list[str]:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            return file.read().splitlines()

    found: dict[tuple[str, str], tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for line in lines("DRUG-AE.rel.gz"):
        paper, text, effect, _, _, drug, *_ = line.split("|")
        for kind, span in zip(found[paper, text], (effect, drug), strict=True):
            kind.add(" ".join(in_one_form(span)))
    told = [(paper, text, frozenset(effects - {""}), frozenset(drugs - {""}))
            for (paper, text), (effects, drugs) in found.items()]
    silent = [line.split(" NEG ", 1) for line in lines("ADE-NEG.txt.gz")]
    return told, [(paper.strip(), text) for paper, text in silent]


def ontology(seen: list[Sentence], further: list[str]) -> Ontology:
    """Every span is a concept of its kind. An effect lies above those whose names hold its own. An abbreviation that a text
    explains names the concept of its long form, or is its synonym where the experts marked both."""
    effects, drugs = (frozenset().union(*(sentence[kind] for sentence in seen)) for kind in (2, 3))
    names = {name: name for name in effects | drugs}
    types = {**dict.fromkeys(drugs, SUBSTANCE), **dict.fromkeys(effects, DISEASE)}
    synonyms: dict[str, set[str]] = defaultdict(set)
    for text in [*(sentence[1] for sentence in seen), *further]:
        for pair in abbreviations(text):
            short, long = (" ".join(in_one_form(form)) for form in pair)
            if short in types and long in types and short != long:
                synonyms[short].add(long)
                synonyms[long].add(short)
            elif len(short) > 2 and (short in types or long in types):
                names.setdefault(short, long)
                names.setdefault(long, short)
    parents = {name: above for name in effects if (above := _above(name, effects))}
    return Ontology(names, types, {c: tuple(sorted(others)) for c, others in synonyms.items()}, parents, in_one_form)


def _above(name: str, names: frozenset[str]) -> tuple[str, ...]:
    """The longest names within a name."""
    words = name.split()
    within = [" ".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1) if b - a < len(words)]
    within = [part for part in dict.fromkeys(within) if part in names]
    return tuple(part for part in within if not any(f" {part} " in f" {other} " for other in within if other != part))
