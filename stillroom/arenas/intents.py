"""What people ask of a bank, answered by small language models with the name of what is wanted, word by word; a rule grades."""

import copy
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
from torch.nn import Module

from stillroom.arenas import sentences
from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.sums import imitated, school, sums
from stillroom.errors import Refused
from stillroom.models.gpt import GPT
from stillroom.parts import text, verifiers
from stillroom.zoo.shared import home

PAD, STOP, UNKNOWN, ASKED = range(4)
WIDTH, LENGTH = 13, 4          # tokens of a query, its last words and the sign that ends it, and of an answer, "bill due."
TAUGHT = 350                   # queries whose answers are told; of the others only the rule knows them
BEGUN = 33.0                   # percent of `valid` right, at which the student's schooling ends; the teacher's goes on


def intents(seed: int = 0) -> Cast:
    """A student and its teacher, who is as large and was schooled to the end by the same 350 queries with their answers; 2,650
    other queries, and a rule as reward. Where CLINC150 is not on this machine, `sums`.

    accuracy(net)    percent of the official test's queries that it answers right by its likeliest tokens
    before, teacher  the two as they begin
    other(**fields)  what the trial of KDRL makes with these fields changed
    imitated()       the student taught by answers that the teacher said to the queries, with as many updates and as many answers
    """
    try:
        home("clinc150")
    except Refused:
        return sums(seed)
    parts, student, teacher = ground(seed), schooled(seed, BEGUN), schooled(seed)
    return Cast({"student": copy.deepcopy(student), "teacher": copy.deepcopy(teacher),
                 "data": list(zip(parts.train.prompts, parts.train.gold, strict=True)), "reward": right},
                data=f"CLINC150: queries of {len(sentences.DOMAINS)} domains, the names of their 30 intents",
                accuracy=lambda net: accuracy(net, parts.test),
                teacher=teacher, before=student,
                other=partial(variant, "kdrl", seed), imitated=lambda: imitated(seed, parts.train.prompts, LENGTH))


@lru_cache(maxsize=1)
def words() -> list[str]:
    """Those of the intents' names, and those that occur twice or more in queries of the training part."""
    rows = sentences.ground().train
    count = Counter(word for query, _ in rows for word in query.split())
    named = {word for _, name in rows for word in name.split("_")}
    return ["_", ".", "?", "=", *sorted(named | {word for word, n in count.items() if n > 1})]


@lru_cache(maxsize=4)
def ground(seed: int) -> SimpleNamespace:
    """taught, train: two parts of the training split, drawn by the seed; valid and test as they are. Each has prompts [n, WIDTH],
    answers [n, LENGTH] and their texts."""
    found = sentences.ground()
    rows = random.Random(seed).sample(found.train, len(found.train))
    parts = {"taught": rows[:TAUGHT], "train": rows[TAUGHT:], "valid": found.valid, "test": found.test}
    return SimpleNamespace(**{name: _told(part) for name, part in parts.items()})


def _told(rows: Sequence[sentences.Row]) -> SimpleNamespace:
    number = {word: n for n, word in enumerate(words())}
    prompts = [[*(number.get(word, UNKNOWN) for word in query.split()[1 - WIDTH :]), ASKED] for query, _ in rows]
    answers = [[number[word] for word in name.split("_")] + [STOP] for _, name in rows]
    return SimpleNamespace(prompts=torch.tensor([[PAD] * (WIDTH - len(some)) + some for some in prompts]),
                           answers=torch.tensor([some + [PAD] * (LENGTH - len(some)) for some in answers]),
                           gold=[name.replace("_", " ") for _, name in rows])


def read(tokens: Sequence[int]) -> str:
    """The words of an answer, nothing where it does not end."""
    said = [i for i in tokens if i != PAD]
    return " ".join(words()[i] for i in said[:-1]) if said[-1:] == [STOP] else ""


right = verifiers.graded(read, verifiers.exact)


def accuracy(net: Module, part: SimpleNamespace) -> float:
    said = text.sample(net, part.prompts, LENGTH, temperature=0).said
    return 100 * right(said[:, None], part.gold).mean().item()


@lru_cache(maxsize=8)
def schooled(seed: int, goal: float = 100.0) -> Module:
    parts = ground(seed)
    torch.manual_seed(1000 + seed)
    net = GPT(len(words()), dim=48, layers=1, length=WIDTH + LENGTH, eos=STOP, pad=PAD)
    return school(net, parts.taught.prompts, parts.taught.answers, lr=5e-3, batch=64, steps=200, seed=seed,
                  enough=lambda net: goal < 100 and accuracy(net, parts.valid) >= goal, every=2)
