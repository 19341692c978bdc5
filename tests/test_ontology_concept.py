"""Concept sets: measures by hand and by their identities, what is denied, names, links, labels, a search that is brute force."""

import math
import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from stillroom.arenas import effects
from stillroom.arenas.findings import findings, split
from stillroom.arenas.radiographs import ontology
from stillroom.errors import Refused
from stillroom.parts.alike import MEASURES, Library, alike, lin, overlap, tversky, walk, weight
from stillroom.parts.concepts import Nearest, Ontology, Report, abbreviations, in_one_form, labels, letters, reached, read
from stillroom.recipes.language.ontology_concept import OntologyConcept
from stillroom.run import Run
from stillroom.saved import load, save
from stillroom.zoo import actor
from stillroom.zoo.shared import home

WEIGHTS = {"T047": 3.0, "T046": 2.0, "T033": 1.0}
KNOWN = Ontology(
    names={"heart failure": "A", "failure": "F", "cough": "B", "pleural fluid": "C", "lung edema": "D", "picc line": "Z"},
    types={"A": "T047", "B": "T033", "C": "T046", "D": "T047", "E": "T047", "F": "T033", "Z": "T074", "U": "T047"},
    synonyms={"D": ("E",), "E": ("A",)}, parents={"A": ("U",)})


def told(present="", absent=""):
    return Report(frozenset(present), frozenset(absent))


def score(r, t, **fields):
    return alike(r, t, KNOWN, WEIGHTS, **fields)


def drawn(dice):
    return told(*("".join(dice.sample("ABCDEFZU", dice.randrange(5))) for _ in range(2)))


def by_hand(r, t, alpha, beta, across):
    """The formula concept by concept, without synonyms."""
    w = {"A": 3.0, "D": 3.0, "E": 3.0, "U": 3.0, "C": 2.0, "B": 1.0, "F": 1.0, "Z": 0.0}
    both = only_r = only_t = against = 0.0
    for c, weighs in w.items():
        both += weighs * (c in r.present and c in t.present)
        only_r += weighs * (c in r.present and c not in t.present)
        only_t += weighs * (c not in r.present and c in t.present)
        against += weighs * (c in (r if across else t).present and c in t.absent)
    rest = beta * (alpha * min(only_r, only_t) + (1 - alpha) * max(only_r, only_t)) + against
    return both / (both + rest) if both + rest else 0.0


def test_the_papers_example():
    """{A(3), B(1)} and {A, C(2)}: I = 3, differences 1 and 2, 3/(3 + ½ + 1) = ⅔."""
    assert score(told("AB"), told("AC")) == pytest.approx(2 / 3)


@pytest.mark.parametrize("across", [False, True])
def test_it_is_the_formula(across):
    dice = random.Random(0)
    for _ in range(300):
        r, t, alpha, beta = drawn(dice), drawn(dice), dice.random(), 2 * dice.random()
        ours = score(r, t, alpha=alpha, beta=beta, synonyms=False, across=across)
        assert ours == pytest.approx(by_hand(r, t, alpha, beta, across)) and 0 <= ours <= 1


def test_a_report_is_like_itself_and_what_weighs_nothing_has_no_influence():
    assert score(told("AC"), told("AC")) == 1
    assert score(told(), told()) == score(told("Z"), told("Z")) == score(told("A"), told()) == 0
    assert score(told("ABZ"), told("AC")) == score(told("AB"), told("ACZ")) == score(told("AB"), told("AC"))


def test_without_synonyms_and_contradictions_it_is_symmetric_it_is_dice_and_has_no_unit():
    dice = random.Random(1)
    for _ in range(200):
        r, t = (replace(drawn(dice), absent=frozenset()) for _ in range(2))
        ours = score(r, t, synonyms=False)
        assert ours == pytest.approx(score(t, r, synonyms=False))
        assert ours == pytest.approx(alike(r, t, KNOWN, {k: 7 * w for k, w in WEIGHTS.items()}, synonyms=False))
        assert ours == pytest.approx(tversky(r, t, KNOWN, WEIGHTS, 0.5, 0.5))
        total = sum(weight(s.present, KNOWN, WEIGHTS) for s in (r, t))
        assert ours == pytest.approx(2 * weight(r.present & t.present, KNOWN, WEIGHTS) / total if total else 0)
        union = weight(r.present | t.present, KNOWN, WEIGHTS)
        assert tversky(r, t, KNOWN, WEIGHTS, 1, 1) == pytest.approx(
            weight(r.present & t.present, KNOWN, WEIGHTS) / union if union else 0)


def test_a_synonym_never_lowers_and_is_taken_on_the_references_side_alone():
    """D is a synonym of E, E of A: what the reference adds by it is no difference; what the target adds stays one."""
    assert list(reached("D", KNOWN.synonyms)) == ["E", "A"]
    assert score(told("AD"), told("A")) == 1 and score(told("AD"), told("A"), synonyms=False) == pytest.approx(3 / 4.5)
    assert score(told("A"), told("AD")) == pytest.approx(3 / 4.5)
    dice = random.Random(2)
    for _ in range(300):
        r, t = drawn(dice), drawn(dice)
        assert score(r, t) >= score(r, t, synonyms=False)


def test_a_walk_ends_in_a_ring():
    assert sorted(reached("a", {"a": ("b", "b"), "b": ("c", "a"), "c": ("a", "b")})) == ["b", "c"]


def test_contradictions_lower_the_score():
    within = [score(told("AC"), told("AC", absent)) for absent in ("", "C", "AC")]
    assert within == [1, pytest.approx(5 / 7), pytest.approx(5 / 10)]
    assert score(told("AC"), told("A", "C"), across=True) < score(told("AC"), told("A", "C")), "only one of them asserts C"
    assert score(told("AC"), told("AC", "B")) == 1


@pytest.mark.parametrize("text, present, absent", [
    ("Heart failure and cough.", "AB", ""), ("No heart failure or cough.", "", "AB"), ("No cough. Heart failure.", "A", "B"),
    ("No cough but heart failure.", "A", "B"), ("Cough is not seen; PLEURAL FLUID.", "C", "B"), ("Failure.", "F", ""),
    ("Heart  failure; no heart failure.", "A", "A"), ("Negative for lung edema, cough", "", "BD"), ("Notable cough", "B", ""),
    ("Coughing, heartfailure", "", ""), ("Cough without pleural fluid", "B", "C"), ("", "", ""), ("cough is absent", "", "B")])
def test_the_reader_takes_the_longest_name_and_knows_what_is_denied(text, present, absent):
    assert read(text, KNOWN) == told(present, absent)


def test_labels_follow_from_concepts_and_from_what_lies_above_or_beside_them():
    wanted = {"A": "failure", "U": "heart disease"}
    assert labels(told("A"), wanted, KNOWN, deep=False) == {"failure"}
    assert labels(told("A"), wanted, KNOWN) == {"failure", "heart disease"}
    assert labels(told("D"), wanted, KNOWN) == {"failure", "heart disease"}
    assert labels(told("B", "A"), wanted, KNOWN) == frozenset()


# --- other measures --------------------------------------------------------------------------------------------------

TREE = Ontology({}, {c: "T047" for c in "rabcdexyz"} | {"q": "T121"}, synonyms={"x": ("c",)},
                parents={"a": ("r",), "b": ("r",), "c": ("a",), "d": ("a",), "e": ("b",), "y": ("z",)})


def test_tversky_and_overlap_by_hand():
    """{A(3), B(1)} and {A, C(2)}: I = 3, d₁ = 1, d₂ = 2, weights 4 and 5."""
    r, t = told("AB"), told("AC")
    assert tversky(r, t, KNOWN, WEIGHTS) == pytest.approx(3 / (3 + 0.1 * 1 + 0.9 * 2))
    assert overlap(r, t, KNOWN, WEIGHTS) == pytest.approx(3 / 4)
    assert MEASURES["jaccard"](r, t, KNOWN, None) == pytest.approx(1 / 3), "without weights every concept weighs 1"
    assert MEASURES["dice"](r, t, KNOWN, None) == MEASURES["overlap"](r, t, KNOWN, None) == pytest.approx(1 / 2)
    assert overlap(told("Z"), told("Z"), KNOWN, WEIGHTS) == overlap(told(), t, KNOWN, WEIGHTS) == 0


def test_asserted_and_denied_are_summed():
    """Asserted: I = 3, union 6; denied {B, F} and {B}: I = 1, union 2; the target asserts and denies C(2) in the second case."""
    measure = MEASURES["denials"]
    assert measure(told("AB", "F"), told("AC", "F"), KNOWN, WEIGHTS) == pytest.approx(0.5 * 3 / 6 + 0.5 * 1 / 1)
    assert measure(told("AB", "BF"), told("AC", "B"), KNOWN, WEIGHTS, alpha=0.25) == pytest.approx(0.25 * 3 / 6 + 0.75 * 1 / 2)
    assert measure(told("AC", "C"), told("AC", "C"), KNOWN, WEIGHTS) == pytest.approx(0.5 * 5 / 7 + 0.5 * 2 / 4)


@pytest.mark.parametrize("reference, target, cost", [
    ("c", "c", 0), ("x", "c", 0), ("c", "x", 0), ("d", "c", 1), ("d", "x", 1), ("e", "c", 2), ("cd", "c", 1), ("ce", "cb", 0.5),
    ("cy", "c", 5), ("q", "q", math.inf), ("y", "c", math.inf), ("", "c", math.inf), ("cq", "cq", 0)])
def test_a_walk_costs_half_a_step_and_nothing_along_synonyms(reference, target, cost):
    assert walk(told(reference), told(target), TREE, WEIGHTS) == pytest.approx(1 / (1 + cost))


def test_a_walk_takes_the_shortest_way():
    """All pairs of a graph by relaxing every edge as often as there are concepts."""
    dice = random.Random(3)
    for _ in range(20):
        some = list(combinations("abcdefgh", 2))
        edges = {pair: dice.choice((0.0, 0.5)) for pair in dice.sample(some, 7)}
        of = [{a: tuple(y for (x, y), w in edges.items() if x == a and w == kind) for a in "abcdefgh"} for kind in (0.0, 0.5)]
        known = Ontology({}, dict.fromkeys("abcdefgh", "T047"), *of)
        far = {(a, b): 0.0 if a == b else math.inf for a in "abcdefgh" for b in "abcdefgh"}
        for _ in "abcdefgh":
            for (a, b), w in edges.items():
                for c in "abcdefgh":
                    far[c, b], far[c, a] = min(far[c, b], far[c, a] + w), min(far[c, a], far[c, b] + w)
        for (a, b), cost in far.items():
            assert walk(told(b), told(a), known, WEIGHTS) == pytest.approx(1 / (1 + cost))


def test_lin_by_hand():
    """Leaves c, d, e, x, y, q: IC(c) = log 6, IC(a) = log 3, IC(b) = log 6, IC(r) = log 2."""
    assert TREE.content == pytest.approx({c: math.log(6 / {"a": 2, "r": 3}.get(c, 1)) for c in "rabcdexyzq"})
    assert lin(told("c"), told("d"), TREE, WEIGHTS) == pytest.approx(2 * math.log(3) / (2 * math.log(6)))
    assert lin(told("ce"), told("d"), TREE, WEIGHTS) == pytest.approx(
        (math.log(3) + (math.log(3) + math.log(2)) / 2) / (2 * math.log(6)))
    assert lin(told("y"), told("c"), TREE, WEIGHTS) == lin(told("q"), told("q"), TREE, WEIGHTS) == 0
    assert lin(told("cd"), told("dc"), TREE, WEIGHTS) == 1


# --- the library -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MEASURES)
def test_an_index_changes_nothing(name):
    """Concepts of a random ontology with edges: what is never compared is not alike."""
    dice, every = random.Random(4), "abcdefghijklmnop"
    known = Ontology({}, {c: dice.choice(["T047", "T046", "T033", "T121"]) for c in every},
                     {c: (dice.choice(every),) for c in every[:3]},
                     {c: (dice.choice(every[:n]),) for n, c in enumerate(every) if n > 9})
    some = [told(dice.sample(every, dice.randrange(4)), dice.sample(every, dice.randrange(3))) for _ in range(60)]
    library = Library(known, [[sorted(r.present), sorted(r.absent)] for r in some], WEIGHTS, name)
    for target in some:
        brute = [MEASURES[name](r, target, known, WEIGHTS) for r in some]
        assert library.alike(target) == pytest.approx(brute)
        found = library.nearest(target, 60)
        assert [brute[n] for n in found] == sorted((b for b in brute if b), reverse=True)


def test_of_equals_the_one_that_denies_the_same_comes_first():
    library = Library(KNOWN, [["A", ""], ["A", "B"], ["A", "BC"], ["AC", "C"], ["B", "C"]], WEIGHTS)
    assert library.nearest(told("A", "C"), 9) == [2, 0, 1, 3] and library.nearest(told("A"), 1) == [0]
    assert library.nearest(told("D"), 9) == [], "nothing is alike"


def test_a_library_finds_what_brute_force_finds_also_when_it_was_saved(tmp_path):
    texts = [text for text, _ in split(5, drawn=True).references]
    found = OntologyConcept(alpha=0.3, across=True)(Run(), data=[(text, -100) for text in texts], ontology=ontology())
    made = Library(ontology(), **load(save(found, tmp_path)))
    assert len(made.reports) == 300
    for text, _ in split(5, drawn=True).tests[:20]:
        target = read(text, ontology())
        brute = [alike(read(t, ontology()), target, ontology(), WEIGHTS, 0.3, 1.0, True, True) for t in texts]
        assert made.alike(target) == pytest.approx(brute)
        assert brute[made.nearest(target)[0]] == max(brute)


def test_another_reader_may_read():
    cast = findings(0, drawn=True)
    made = OntologyConcept()(Run(), **cast.actors, reader=lambda text, known: told("A" if "a" in text else ""))
    assert [present for present, _ in made["reports"]] == [["A"] if "a" in text else [] for text, _ in cast.actors["data"]]


def test_denials_matter():
    """The same names, once denied: words alone see nearly the same text, the sets have nothing in common."""
    there, denied = (read(text, KNOWN) for text in ("There is heart failure.", "There is no heart failure."))
    assert score(there, denied) == 0 and score(there, there) == 1


def test_what_is_no_text_is_refused():
    with pytest.raises(Refused, match="texts"):
        OntologyConcept()(Run(), data=[(3.0, -100)], ontology=KNOWN)
    with pytest.raises(Refused, match="tversky"):
        OntologyConcept(measure="cosine")(Run(), data=[("a", -100)], ontology=KNOWN)


def test_an_ontology_of_ones_own_is_named_on_the_command_line(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from stillroom.parts.concepts import Ontology\ndef lungs(): return Ontology({'tb': 'A'}, {'A': 'T047'})\n")
    assert read("No TB.", actor("Ontology", f"file:{file}:lungs")) == told("", "A")


# --- names -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a, b", [
    ("haemolytic-uraemic syndromes", "hemolytic uremic syndrome"), ("Oedema", "edema"), ("tumours", "tumor"),
    ("diarrhoea", "diarrhea"), ("leucopenia", "leukopenia"), ("thromboses", "thrombosis"), ("metastases", "metastasis"),
    ("neuropathies", "neuropathy"),
    ("rashes", "rash"), ("seizures", "seizure"), ("NSAIDs", "NSAID"), ("diseases", "disease"), ("overdoses", "overdose")])
def test_spellings_and_plurals_are_one_form(a, b):
    assert in_one_form(a) == in_one_form(b) and in_one_form(b) == b.split()


@pytest.mark.parametrize("word", ["sepsis", "diabetic", "toxicity", "virus", "loss", "nausea", "aneurysm", "TEN", "anuria"])
def test_other_words_stay(word):
    assert in_one_form(word) == [word]


def test_capitals_tell_an_abbreviation_from_a_word():
    known = Ontology({"TEN": "A"}, {"A": "T047"}, words=in_one_form)
    assert read("Ten days later TEN was seen.", known) == told("A") and read("After ten days, no TEN.", known) == told("", "A")


@pytest.mark.parametrize("text, pairs", [
    ("heat shock transcription factor (HSF) binds", [("HSF", "heat shock transcription factor")]),
    ("a patient with toxic epidermal necrolysis (TEN), and alanine aminotransferase (ALT)",
     [("TEN", "toxic epidermal necrolysis"), ("ALT", "alanine aminotransferase")]),
    ("syndrome of inappropriate secretion of antidiuretic hormone (SIADH)",              # the shortest, as theirs
     [("SIADH", "secretion of antidiuretic hormone")]),
    ("5-fluorouracil (5-FU)", [("5-FU", "5-fluorouracil")]), ("three patients (two men)", []), ("gold (1975)", []), ("(AB)", []),
    ("seen in adults (see Table)", [])])
def test_abbreviations_are_read_from_the_text_that_explains_them(text, pairs):
    assert list(abbreviations(text)) == pairs


def test_words_are_linked_to_the_nearest_name():
    """By letters: "cardiac failures" shares most of its threes with "cardiac failure"; what is far from all stays alone."""
    known = Ontology({"cardiac failure": "A", "cough": "B"}, {"A": "T047", "B": "T033"})
    link = Nearest(known, letters, least=0.7)
    assert link("cardiac failures") == "A" and link("renal colic") is None
    assert read("He had cardiac failures and cough", known, link) == told("AB")
    assert read("No cardiac failures", known, link) == told("", "A") and read("No cardiac failures", known) == told()
    vectors = {"cardiac failure": (1.0, 0.0), "cough": (0.0, 2.0), "hacking": (0.6, 0.9)}
    links = Nearest(known, lambda strings: torch.tensor([vectors[s] for s in strings]), least=0.8)
    assert links("hacking") == "B" and replace_least(links, 0.9)("hacking") is None
    seen: list[str] = []
    read("A mild renal colic, cough and fever of the lung", known, lambda run: seen.append(run))
    assert seen == ["mild renal colic", "fever", "lung"], "runs of words that neither are names nor small"


def replace_least(link, least):
    return Nearest(Ontology(dict(zip(link.names, link.concepts, strict=True)), {}), link.embed, least)


# --- case reports ----------------------------------------------------------------------------------------------------

SEEN = [("1", "Toxic epidermal necrolysis (TEN) by gold.", frozenset({"toxic epidermal necrolysis"}), frozenset({"gold"})),
        ("2", "Acute renal failure, TEN.", frozenset({"acute renal failure", "TEN", "renal failure"}), frozenset({"gold"})),
        ("2", "Fatal acute renal failure.", frozenset({"fatal acute renal failure"}), frozenset({"mtx"}))]


def test_an_ontology_is_made_of_spans_and_abbreviations():
    made = effects.ontology(SEEN, ["methotrexate pneumonitis (MTP)", "the extrapyramidal gold salts (EGS)"])
    assert made.types == {"gold": "T121", "mtx": "T121", **{c: "T047" for _, _, told, _ in SEEN for c in told}}
    assert made.synonyms == {"TEN": ("toxic epidermal necrolysis",), "toxic epidermal necrolysis": ("TEN",)}
    assert made.parents == {"acute renal failure": ("renal failure",), "fatal acute renal failure": ("acute renal failure",)}
    assert set(made.names) == set(made.types)
    assert effects.ontology(SEEN, ["renal failure (RNF)"]).names["RNF"] == "renal failure"


def test_nothing_of_library_and_tests_is_in_the_ontology(monkeypatch):
    """Every span of the library and the test sentences is written anew: the ontology stays what it was."""
    try:
        told_, silent = effects.corpus(home("ade_corpus"))
    except Refused:
        pytest.skip("the ADE corpus is not on this machine")
    before = effects.parted(3)
    half = {paper for paper, text, *_ in told_ if text in {text for text, _ in before.known}}
    changed = [s if s[0] in half else (s[0], "Nothing (NTH).", frozenset({"nothing"}), frozenset()) for s in told_]
    quiet = [(paper, text if paper in half else "Toxic epidermal nothing (TEN).") for paper, text in silent]
    monkeypatch.setattr(effects, "corpus", lambda _: (changed, quiet))
    after = effects.parted(3)
    assert after.ontology == before.ontology and {told for _, told in after.tests} == {frozenset({"nothing"})}
    assert len(before.known) > 2000 and len(before.references) > 900 and len(before.tests) > 900


def test_judges_of_the_drawn_reports():
    """First hits of the same diseases are right wherever the library has such a report; no hits never."""
    cast = findings(0, drawn=True)
    sets = {told: n for n, (_, told) in enumerate(cast.ground.references)}
    perfect = [[sets[told]] if told in sets else [] for _, told in cast.ground.tests]
    assert cast.right(perfect) > 80 and cast.right([[]] * 300) == 0
    assert cast.right(perfect, named=True) == cast.right(perfect), "every disease has a name"
    made = OntologyConcept()(Run(), **cast.actors)
    library = cast.library(made)
    assert cast.right(cast.by(library)) > 20 + cast.right(cast.words()) > 40
    assert cast.labelled()["labels, micro F1"] > 85 and cast.denied() == {} and cast.flips(library) == {}
