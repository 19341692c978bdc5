"""Queries to a bank, or sums, answered at once or after written working by descendants of one language model, and rewards for
their answers."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.arenas import intents, sentences, sums
from stillroom.arenas.cast import Cast
from stillroom.arenas.sums import PAD, STOP, school
from stillroom.errors import Refused
from stillroom.measure.curves import collapse, dip
from stillroom.models.gpt import GPT
from stillroom.parts import text, verifiers
from stillroom.parts.merging import merged
from stillroom.run import Run
from stillroom.zoo.shared import home

SIGNS = sums.SIGNS + ",:"
LENGTH = 21                    # tokens of a sum with its working, "7+5=12,4+8+1=13:231.", at most
COST = 0.01                    # what each token takes from the reward
BROAD, NARROW = 1500, 120      # samples that the pretrained network has read, and that each of the two taught parents has learnt


def answers(seed: int = 0) -> Cast:
    """Three parents: the pretrained network has read answers of both kinds; of its descendants the instructed one was taught to
    answer at once, and the distilled one by answers of a third that had learnt to write its working, both by few samples. To
    queries the working is the domain, before the name of the intent. Where CLINC150 is not on this machine, sums.

    correct(actor)   percent of the test that it gets right as it answers, mean of four draws
    learn(actor)     what becomes of it by 60 updates of GRPO: `correct` then, `collapse` of the length and `depth` of the dip of
                     the reward on the way
    without          the two taught parents merged, and the pretrained one left out
    """
    made, parts = parents(seed), ground(seed)
    without = merged((made["instructed"], made["distilled"]), (0.5, 0.5))
    return Cast({name: copy.deepcopy(net) for name, net in made.items()}, data=parts.words, real=parts.real,
                correct=partial(correct, seed=seed), learn=partial(learn, seed=seed), without=without, parents=made)


@lru_cache(maxsize=4)
def ground(seed: int) -> SimpleNamespace:
    """prompts [n, width], what grades their answers, and these at once and after working, short and long [n, length]; the test's
    prompts and gold; size of the vocabulary, updates of the pretraining, and the rule."""
    try:
        return _asked(seed, home("clinc150"))
    except Refused:
        return _drawn(seed)


# --- queries ---------------------------------------------------------------------------------------------------------

def _asked(seed: int, folder: Path) -> SimpleNamespace:
    domains = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    domain = {name.replace("_", " "): of.replace("_", " ") for of in sentences.DOMAINS for name in domains[of]}
    number, parts = {word: n for n, word in enumerate(intents.words())}, intents.ground(seed)
    prompts, short = parts.train.prompts, parts.train.answers
    long = [[*(number[word] for word in f"{domain[name]} = {name}".split()), STOP] for name in parts.train.gold]
    length = max(map(len, long))
    return SimpleNamespace(
        words="CLINC150: queries of two domains, the names of their 30 intents at once or after that of the domain", real=True,
        vocabulary=len(number), steps=250, right=verifiers.graded(read_name, verifiers.exact), test=parts.test,
        prompts=prompts, gold=parts.train.gold, short=F.pad(short, (0, length - intents.LENGTH), value=PAD),
        long=torch.tensor([row + [PAD] * (length - len(row)) for row in long]))


def read_name(tokens: Sequence[int]) -> str:
    """The name at the end of an answer, nothing where it does not end."""
    return intents.read(tokens).rpartition("=")[2].strip()


# --- sums ------------------------------------------------------------------------------------------------------------

def _drawn(seed: int) -> SimpleNamespace:
    parts = sums.ground(seed)
    prompts = parts.train.prompts
    return SimpleNamespace(words="sums of two numbers below a hundred", real=False, vocabulary=len(SIGNS), steps=400,
                           right=verifiers.graded(read, verifiers.number), test=parts.test, prompts=prompts,
                           gold=parts.train.gold.tolist(), short=told(prompts, at_once), long=told(prompts, working))


def at_once(a: int, b: int) -> str:
    """The sum in three digits, those of the least worth first: "231."."""
    return f"{a + b:03}"[::-1] + "."


def working(a: int, b: int) -> str:
    """Digit by digit with what is carried, then the sum."""
    low, high = a % 10 + b % 10, a // 10 + b // 10 + (a % 10 + b % 10) // 10
    return f"{a % 10}+{b % 10}={low:02},{a // 10}+{b // 10}+{low // 10}={high:02}:{at_once(a, b)}"


def read(tokens: Sequence[int]) -> str:
    """The number at the end of an answer, nothing where it does not end in one."""
    words = "".join(SIGNS[i] for i in tokens if i != PAD)
    last = words[:-1].rpartition(":")[2]
    return last[::-1] if words.endswith(".") and last.isdigit() else ""


def told(prompts: Tensor, kind: Callable[[int, int], str]) -> Tensor:
    """Answers of one kind to prompts, [n, LENGTH]."""
    rows = []
    for prompt in prompts.tolist():
        a, b = "".join(SIGNS[i] for i in prompt[:-1]).split("+")
        answer = [SIGNS.index(sign) for sign in kind(int(a), int(b))]
        rows.append(answer + [PAD] * (LENGTH - len(answer)))
    return torch.tensor(rows)


# --- what is made of them --------------------------------------------------------------------------------------------

@lru_cache(maxsize=4)
def parents(seed: int) -> dict[str, Module]:
    parts = ground(seed)
    taught = partial(school, batch=64, seed=seed)
    read, own, other = slice(BROAD), slice(BROAD, BROAD + NARROW), slice(BROAD + NARROW, BROAD + 2 * NARROW)
    torch.manual_seed(seed)
    base = GPT(parts.vocabulary, dim=48, layers=1, length=parts.prompts.shape[1] + parts.long.shape[1], eos=STOP, pad=PAD)
    taught(base, parts.prompts[read].repeat(2, 1), torch.cat([parts.short[read], parts.long[read]]), lr=5e-3, steps=parts.steps)
    teacher = taught(copy.deepcopy(base), parts.prompts[read], parts.long[read], lr=3e-3, steps=100)
    said = drawn(teacher, parts.prompts[other], parts.long.shape[1])
    few = partial(taught, lr=1e-2, steps=60)
    return {"base": base, "instructed": few(copy.deepcopy(base), parts.prompts[own], parts.short[own]),
            "distilled": few(copy.deepcopy(base), parts.prompts[other], said)}


def drawn(net: Module, prompts: Tensor, length: int, count: int = 1) -> Tensor:
    """Answers as the network gives them, from the same random numbers for all networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return text.sample(net, prompts, length, count=count).said


def correct(net: Module, seed: int) -> float:
    parts = ground(seed)
    said = drawn(net, parts.test.prompts, parts.long.shape[1], count=4)
    return 100 * parts.right(said.unflatten(0, (-1, 4)), parts.test.gold).mean().item()


def rewarded(right: Callable, said: Tensor, gold: Sequence) -> Tensor:
    """1 for the right answer, less a little for each token."""
    return right(said, gold) - COST * (said != PAD).sum(-1)


def learn(actor: Module, seed: int) -> SimpleNamespace:
    from stillroom.recipes.language.kdrl import KDRL  # whose other half, GRPO, is asked here

    parts, run = ground(seed), Run(seed=seed)
    method = KDRL(beta=0.0, beta_least=0.0, length=parts.long.shape[1], lr=1e-3, batch=32, steps=60)
    made = method(run, student=copy.deepcopy(actor), teacher=copy.deepcopy(actor), reward=partial(rewarded, parts.right),
                  data=list(zip(parts.prompts, parts.gold, strict=True)))
    lengths, rewards = ([line[what] for line in run.history] for what in ("length", "reward"))
    return SimpleNamespace(collapse=collapse(lengths), depth=dip(rewards).depth, correct=correct(made, seed))
