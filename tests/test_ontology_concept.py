"""Concept sets: the index by hand and by its identities, what is denied, synonyms, labels, and a search that is brute force."""

import random
from dataclasses import replace

import pytest

from stillroom.arenas.findings import findings, ontology, split
from stillroom.errors import Refused
from stillroom.parts.concepts import Library, Ontology, Report, alike, labels, reached, read, tversky, weight
from stillroom.recipes.language.ontology_concept import OntologyConcept
from stillroom.run import Run
from stillroom.saved import load, save
from stillroom.zoo import actor

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


def test_a_library_finds_what_brute_force_finds_also_when_it_was_saved(tmp_path):
    texts = [text for text, _ in split(5).references]
    found = OntologyConcept(alpha=0.3, across=True)(Run(), data=[(text, -100) for text in texts], ontology=ontology())
    made = Library(ontology(), **load(save(found, tmp_path)))
    assert len(made.reports) == 300
    for text, _ in split(5).tests[:20]:
        target = read(text, ontology())
        brute = [alike(read(t, ontology()), target, ontology(), WEIGHTS, 0.3, 1.0, True, True) for t in texts]
        assert made.alike(target) == pytest.approx(brute)
        assert made.nearest(target, 3) == sorted(range(300), key=lambda n: (-made.alike(target)[n], n))[:3]


def test_another_reader_may_read():
    cast = findings(0)
    made = OntologyConcept()(Run(), **cast.actors, reader=lambda text, known: told("A" if "a" in text else ""))
    assert [present for present, _ in made["reports"]] == [["A"] if "a" in text else [] for text, _ in cast.actors["data"]]


def test_denials_matter():
    """The same names, once denied: words alone see nearly the same text, the sets have nothing in common."""
    there, denied = (read(text, KNOWN) for text in ("There is heart failure.", "There is no heart failure."))
    assert score(there, denied) == 0 and score(there, there) == 1


def test_what_is_no_text_is_refused():
    with pytest.raises(Refused, match="texts"):
        OntologyConcept()(Run(), data=[(3.0, -100)], ontology=KNOWN)


def test_an_ontology_of_ones_own_is_named_on_the_command_line(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from stillroom.parts.concepts import Ontology\ndef lungs(): return Ontology({'tb': 'A'}, {'A': 'T047'})\n")
    assert read("No TB.", actor("Ontology", f"file:{file}:lungs")) == told("", "A")
