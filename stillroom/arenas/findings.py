"""Texts that tell of diseases, to search and to label: case reports marked by experts where they are here, else drawn reports."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from stillroom.arenas import effects, radiographs
from stillroom.arenas.cast import Cast
from stillroom.errors import Refused
from stillroom.parts.alike import MEASURES, Library
from stillroom.parts.concepts import BEHIND, DENIES, ENDS, Report, labels, read
from stillroom.parts.losses.logits import UNLABELLED

BANDS = ("head", "medium", "tail")
MORE = 3                           # texts that are looked for to join the one that a class has
CHANCE = 0.06                      # from which a classifier's chance is a label: its best F1 on other seeds
Found = Sequence[Sequence[int]]    # for each text that was searched for, places in the library, the best first


def findings(seed: int = 0, drawn: bool = False) -> Cast:
    """Texts to search, an ontology, and judges. What a test text truly tells, and how often, is known to the judges alone.

    library(made)   what was made, ready for searches
    by(library)     for each test text those of the library that are nearest by concepts
    words()         … by cosine of TF-IDF; marked=True: words that are denied are other words
    meaning()       … by cosine of MiniLM; None where it is not installed
    rarity(library) … by cosine of the same concepts, but for those that weigh nothing, the rarer the heavier
    right(found)    share of (test text, disease) pairs whose first hit tells of that disease, in percent, over the diseases that
                    the library holds; band=…: those rare (tail), often (head) or neither (medium) there; named=True: those
                    that the ontology has a name of
    labelled()      F1 of the labels that follow from the concepts of the test texts; beside it a classifier taught by the true
                    labels of the texts that the ontology was made of
    denied()        of texts whose diseases are all read as denied, and of others, the share in which experts saw no effect
    flips(library)  how often a text that tells of a disease is nearer than one that denies something, see `_flips`
    taught(…)       mAP of a classifier taught by one text a class and others found for it, see `_taught`
    """
    ground = split(seed, drawn)
    return Cast({"data": [(text, UNLABELLED) for text, _ in ground.references], "ontology": ground.ontology}, data=ground.name,
                real=ground.real, ground=ground, library=lambda made: Library(ground.ontology, **made),
                by=lambda library: _by(ground, library, _texts(ground.tests)),
                words=lambda marked=False: _words(ground, _texts(ground.tests), marked),
                meaning=lambda: _meaning(seed, drawn, "tests"), rarity=lambda library: _rarity(ground, library),
                labelled=lambda: _labelled(ground), denied=lambda: _denied(ground),
                right=lambda found, band=None, named=False: _right(ground, found, band, named),
                flips=lambda library: _flips(seed, drawn, library),
                taught=lambda library=None, how="concepts": _taught(seed, drawn, library, how))


@lru_cache(maxsize=4)
def split(seed: int, drawn: bool = False) -> SimpleNamespace:
    """Texts and the diseases that they tell of, parted by the seed."""
    try:
        return radiographs.parted(seed) if drawn else effects.parted(seed)
    except Refused:
        return radiographs.parted(seed)


def _texts(told: Sequence[tuple[str, frozenset[str]]]) -> list[str]:
    return [text for text, _ in told]


# --- searches --------------------------------------------------------------------------------------------------------

def _by(ground: SimpleNamespace, library: Library, asked: list[str]) -> Found:
    return [library.nearest(read(text, ground.ontology), len(library.reports)) for text in asked]


def _words(ground: SimpleNamespace, asked: list[str], marked: bool = False) -> Found:
    from sklearn.feature_extraction.text import TfidfVectorizer

    change = _marked if marked else str
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = tfidf.fit_transform([change(text) for text in _texts(ground.references)])
    return _order((tfidf.transform([change(text) for text in asked]) @ known.T).toarray())


def _marked(text: str) -> str:
    """Every word that is denied becomes another word."""
    clauses = []
    for clause in ENDS.split(text):
        no = DENIES.search(clause.lower())
        start = 0 if BEHIND.search(clause.lower()) else no.end() if no else len(clause)
        clauses.append(clause[:start] + re.sub(r"(\w+)", r"not_\1", clause[start:]))
    return " ".join(clauses)


def _meaning(seed: int, drawn: bool, part: str) -> Found | None:
    references, asked = (_embedded(seed, drawn, p) for p in ("references", part))
    return None if asked is None or references is None else _order(asked @ references.T)


def _said(texts: list[str]) -> np.ndarray | None:
    """Texts as MiniLM's directions [texts, 384]; None where it is not installed."""
    from stillroom.arenas.abstracts import minilm

    try:
        return minilm(texts)[0].numpy()
    except Refused:
        return None


@lru_cache(maxsize=12)
def _embedded(seed: int, drawn: bool, part: str) -> np.ndarray | None:
    ground = split(seed, drawn)
    return _said(list(_seeds(ground).values()) if part == "seeds" else _texts(getattr(ground, part)))


def _rarity(ground: SimpleNamespace, library: Library) -> Found:
    from sklearn.feature_extraction.text import TfidfVectorizer

    weighs = {c for c, kind in ground.ontology.types.items() if (library.by_type or {}).get(kind)}
    tfidf = TfidfVectorizer(analyzer=weighs.intersection)
    if not any(weighs & report.present for report in library.sets):
        return [[] for _ in ground.tests]
    known = tfidf.fit_transform([report.present for report in library.sets])
    return _order((tfidf.transform([read(text, ground.ontology).present for text in _texts(ground.tests)]) @ known.T).toarray())


def _order(scores: np.ndarray) -> Found:
    return (-scores).argsort(1, kind="stable").tolist()


def _right(ground: SimpleNamespace, found: Found, band: str | None, named: bool) -> float:
    often = Counter(disease for _, told in ground.references for disease in told)
    hits = [bool(places) and disease in ground.references[places[0]][1]
            for (_, told), places in zip(ground.tests, found, strict=True) for disease in told
            if often[disease] and band in (None, _band(often[disease], ground.limits))
            and (not named or disease in ground.ontology.types)]
    return 100 * sum(hits) / max(len(hits), 1)


def _band(times: int, limits: tuple[int, int]) -> str:
    return BANDS[2 - sum(times > limit for limit in limits)]


# --- labels ----------------------------------------------------------------------------------------------------------

def _labelled(ground: SimpleNamespace) -> dict[str, float]:
    """Classes: diseases that two texts or more tell of among those the ontology was made of, and a test text does."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import f1_score

    often, asked = (Counter(disease for _, told in part for disease in told) for part in (ground.known, ground.tests))
    classes = sorted(c for c in often if often[c] > 1 and asked[c])
    true = _matrix([told for _, told in ground.tests], classes)
    ours = _matrix([labels(read(text, ground.ontology), dict(zip(classes, classes, strict=True)), ground.ontology, deep=False)
                    for text in _texts(ground.tests)], classes)
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    x, asks = tfidf.fit_transform(_texts(ground.known)), tfidf.transform(_texts(ground.tests))
    learned = _classifier(x, _matrix([told for _, told in ground.known], classes)).predict_proba(asks) > CHANCE
    return {f"labels, {way} F1{of}": 100 * f1_score(true, guess, average=way, zero_division=0)
            for way in ("micro", "macro") for of, guess in (("", ours), (", classifier by the experts' labels", learned))}


def _denied(ground: SimpleNamespace) -> dict[str, float]:
    """See `findings`; {} where every text tells of a disease."""
    counted: dict[bool, list[bool]] = {False: [], True: []}
    told = [(text, False) for text in _texts(ground.references) + _texts(ground.tests)] if ground.silent else []
    for text, silent in [*told, *((text, True) for text in ground.silent)]:
        report = read(text, ground.ontology)
        there, absent = ({c for c in part if ground.ontology.types[c] == effects.DISEASE}
                         for part in (report.present, report.absent))
        if there or absent:
            counted[not there].append(silent)
    return {f"no effect by the experts, of texts read as {word} one": 100 * sum(counted[no]) / len(counted[no])
            for no, word in ((True, "denying"), (False, "asserting")) if counted[no]}


CUE = re.compile(r"\b(no|not|without|denied|denies|never|neither|nor|absence|absent|free)\b")


def _flips(seed: int, drawn: bool, library: Library) -> dict[str, float]:
    """A test text and two others that name its disease: one of the library, which tells of it, and one in which experts saw no
    effect and a word of denial stands. How often the first is nearer, in percent; equals count half."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    ground, dice = split(seed, drawn), random.Random(0)
    telling: list[dict[str, list[int]]] = []
    for part in (ground.tests, ground.references):
        telling.append({})
        for n, (_, told) in enumerate(part):
            for disease in sorted(told):
                telling[-1].setdefault(disease, []).append(n)
    both = sorted(telling[0].keys() & telling[1].keys())
    asked, there, denying = list[int](), list[int](), list[str]()
    for text in (text for text in ground.silent if CUE.search(text.lower())):
        words = " ".join(ground.ontology.words(text))
        for disease in [c for c in both if f" {c} " in f" {words} "][:1]:
            asked.append(dice.choice(telling[0][disease]))
            there.append(dice.choice(telling[1][disease]))
            denying.append(text)
    if not denying:
        return {}
    tests, references = ([part[n][0] for n in rows] for part, rows in ((ground.tests, asked), (ground.references, there)))
    sets = [[read(text, ground.ontology) for text in texts] for texts in (references, tests, denying)]
    measure = partial(MEASURES[library.measure], ontology=ground.ontology, by_type=library.by_type, **library.ways)
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(_texts(ground.references))
    whole = [[Report(report.present | report.absent) for report in reports] for reports in sets]
    near: dict[str, Any] = {name: [[measure(r, t) for r, t in zip(other, asking, strict=True)] for other in (telling_, denying_)]
                            for name, (telling_, asking, denying_) in (("ours", sets), ("ours, no denials read", whole))}
    near["TF-IDF"] = [(tfidf.transform(other).multiply(tfidf.transform(tests))).sum(1) for other in (references, denying)]
    spoken, x, y = _said(denying), _embedded(seed, drawn, "tests"), _embedded(seed, drawn, "references")
    if spoken is not None and x is not None and y is not None:
        near["MiniLM"] = [(x[asked] * other).sum(1) for other in (y[there], spoken)]
    return {f"nearer than a text with a denial: {name}": 100 * float(np.mean(np.greater(a, b) + 0.5 * np.equal(a, b)))
            for name, (a, b) in near.items()}


# --- a classifier ----------------------------------------------------------------------------------------------------

def _seeds(ground: SimpleNamespace) -> dict[str, str]:
    """One text a class, of those the ontology was made of; classes: diseases that the library and the tests hold too."""
    held = [{disease for _, told in part for disease in told} for part in (ground.known, ground.references, ground.tests)]
    dice = random.Random(0)
    return {c: dice.choice([text for text, told in ground.known if c in told]) for c in sorted(set.intersection(*held))}


def _taught(seed: int, drawn: bool, library: Library | None, how: str) -> float:
    """The papers' use: each class has one text, and the library's texts nearest to it are taken for more, three times in turn,
    none twice. Then logistic regression of TF-IDF learns them; mean average precision of the classes on the test texts.

    how   "alone": nothing is added; "concepts", "words", "meaning": by which search; "true": texts that experts marked so
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import average_precision_score

    ground = split(seed, drawn)
    seeds = _seeds(ground)
    classes, first = list(seeds), list(seeds.values())
    found: Any = {"alone": lambda: [[] for _ in classes], "concepts": lambda: library and _by(ground, library, first),
                  "words": lambda: _words(ground, first), "meaning": lambda: _meaning(seed, drawn, "seeds"),
                  "true": lambda: [[n for n, (_, told) in enumerate(ground.references) if c in told] for c in classes]}[how]()
    taken: dict[int, int] = {}                                        # a place in the library: the class it was found for
    for _ in range(MORE):
        for c, places in enumerate(found):
            taken.update({n: c for n in [n for n in places if n not in taken][:1]})
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(_texts(ground.references))
    x = tfidf.transform([*first, *(ground.references[n][0] for n in taken)])
    net = _classifier(x, np.eye(len(classes), dtype=int)[[*range(len(classes)), *taken.values()]])
    true = _matrix([told for _, told in ground.tests], classes)
    return 100 * average_precision_score(true, net.predict_proba(tfidf.transform(_texts(ground.tests))), average="macro")


def _classifier(x: Any, y: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(LogisticRegression(C=10, class_weight="balanced", solver="liblinear")).fit(x, y)


def _matrix(told: Sequence[frozenset[str]], classes: list[str]) -> np.ndarray:
    return np.array([[c in own for c in classes] for own in told], dtype=int)
