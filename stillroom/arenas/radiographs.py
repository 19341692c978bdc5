"""Reports of chest radiographs by a formula: which diseases, by which of their names, what stands beside them, what is denied."""

import random
from functools import lru_cache
from types import SimpleNamespace

from stillroom.parts.concepts import Ontology

# concept: its names; the last, in brackets, is one that the ontology lacks
DISEASES = {
    "pneumonia": "pneumonia|lung infection|(infectious process)",
    "effusion": "pleural effusion|fluid in the pleural space|(blunted angle)",
    "failure": "heart failure|cardiac failure|(cardiac decompensation)",
    "atelectasis": "atelectasis|collapse of a lobe|(volume loss)",
    "edema": "pulmonary edema|lung edema|(fluid overload)",
    "pneumothorax": "pneumothorax|air in the pleural space|(pleural line)",
    "emphysema": "emphysema|destroyed air spaces|(hyperexpanded lungs)",
    "fracture": "rib fracture|broken rib|(cortical step)",
    "fibrosis": "pulmonary fibrosis|scarring of the lungs|(honeycombing)",
    "tumour": "lung cancer|bronchial carcinoma|(spiculated mass)",
    "hernia": "hiatal hernia|stomach above the diaphragm|(retrocardiac air level)",
    "tuberculosis": "tuberculosis|tb|(apical cavities)",
    "sarcoidosis": "sarcoidosis|boeck disease|(bilateral hilar nodes)",
    "embolism": "pulmonary embolism|clot in the lung|(wedge-shaped opacity)",
}
PATHOLOGIES = {"congestion": "vascular congestion|engorged vessels", "consolidation": "consolidation|airspace disease",
               "collection": "fluid collection|loculated fluid"}
FINDINGS = {"cardiomegaly": "enlarged heart|cardiomegaly", "opacity": "opacity|hazy density",
            "nodule": "nodule|small round density", "thickening": "pleural thickening|thick pleura",
            "cough": "cough", "fever": "fever|raised temperature",
            "catheter": "central catheter|picc line", "tortuosity": "tortuous aorta|unfolded aorta"}
ABOVE = {"pneumonia": ("infection",), "tuberculosis": ("infection",), "fibrosis": ("interstitial disease",),
         "sarcoidosis": ("interstitial disease",), "infection": ("lung disease",), "interstitial disease": ("lung disease",)}
ASSERTS = ("There is {}.", "Findings consistent with {}.", "{} is seen.", "Patient with {}.", "Unchanged {}.")
DENIES = ("No {}.", "No evidence of {}.", "Without {}.", "{} is not seen.", "Negative for {}.")
REFERENCES, TESTS, LACKS = 300, 300, 0.15      # reports to search, to search for; share of mentions by a name that is not known


@lru_cache(maxsize=1)
def ontology() -> Ontology:
    """Diseases weigh as T047, pathologic functions as T046, findings as T033; what lies above has no names."""
    names = {name: concept for group in (DISEASES, PATHOLOGIES, FINDINGS) for concept, words in group.items()
             for name in words.split("|") if not name.startswith("(")}
    types = {**dict.fromkeys(DISEASES, "T047"), **dict.fromkeys(PATHOLOGIES, "T046"), **dict.fromkeys(FINDINGS, "T033"),
             **{above: "T047" for up in ABOVE.values() for above in up}}
    return Ontology(names, types, parents=ABOVE)


def parted(seed: int) -> SimpleNamespace:
    """Reports to search, to search for, and further ones whose diseases are known."""
    dice = random.Random(seed)
    references, tests, known = ([_report(dice) for _ in range(n)] for n in (REFERENCES, TESTS, REFERENCES))
    return SimpleNamespace(ontology=ontology(), references=references, tests=tests, known=known, silent=[], limits=(12, 30),
                           real=False, name="radiology reports put together by a formula")


def _report(dice: random.Random) -> tuple[str, frozenset[str]]:
    """One or two diseases, the n-th as often as 1/n; up to three other things that are there; one to three that are not."""
    ranked, other = list(DISEASES), [*PATHOLOGIES, *FINDINGS]
    true = frozenset(dice.choices(ranked, [1 / n for n in range(1, len(ranked) + 1)], k=dice.choice((1, 1, 2))))
    there = [*sorted(true), *dice.sample(other, dice.randrange(4))]
    missing = dice.sample([c for c in (*ranked, *other) if c not in there], dice.randint(1, 3))
    said = [(dice.choice(ASSERTS), c) for c in there] + [(dice.choice(DENIES), c) for c in missing]
    dice.shuffle(said)
    return " ".join(form.format(_name(c, dice)).capitalize() for form, c in said), true


def _name(concept: str, dice: random.Random) -> str:
    names = {**DISEASES, **PATHOLOGIES, **FINDINGS}[concept].split("|")
    unknown = [n.strip("()") for n in names if n.startswith("(")]
    known = [n for n in names if not n.startswith("(")]
    return dice.choice(unknown if unknown and dice.random() < LACKS else known)
