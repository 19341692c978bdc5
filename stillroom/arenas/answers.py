"""Sums answered at once or after written working, by descendants of one language model, and rewards for their answers."""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.sums import PAD, STOP, WIDTH, ground, school
from stillroom.arenas.sums import SIGNS as FEW
from stillroom.measure.curves import collapse, dip
from stillroom.models.gpt import GPT
from stillroom.parts import text, verifiers
from stillroom.parts.merging import merged
from stillroom.run import Run

SIGNS = FEW + ",:"
LENGTH = 21                    # tokens of an answer with its working, "7+5=12,4+8+1=13:231.", at most
COST = 0.01                    # what each token takes from the reward


def answers(seed: int = 0) -> Cast:
    """Three parents: the pretrained network has read answers of both kinds; of its descendants the instructed one was taught to
    answer at once, and the distilled one by answers of a third that had learnt to write its working.

    correct(actor)   percent of 2,000 sums, of which nobody learns, that it gets right as it answers, one draw for each
    learn(actor)     what becomes of it by 40 updates of GRPO: `correct` then, `collapse` of the length and `depth` of the dip of
                     the reward on the way
    without          the two taught parents merged, and the pretrained one left out
    """
    made = parents(seed)
    without = merged((made["instructed"], made["distilled"]), (0.5, 0.5))
    return Cast({name: copy.deepcopy(net) for name, net in made.items()}, data="sums of two numbers below a hundred", real=False,
                correct=partial(correct, seed=seed), learn=partial(learn, seed=seed), without=without, parents=made)


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


right = verifiers.graded(read, verifiers.number)


def reward(said: Tensor, gold: Tensor) -> Tensor:
    """1 for the right number, less a little for each token."""
    return right(said, gold) - COST * (said != PAD).sum(-1)


def told(prompts: Tensor, kind: Callable[[int, int], str]) -> Tensor:
    """Answers of one kind to prompts, [n, LENGTH]."""
    rows = []
    for prompt in prompts.tolist():
        a, b = "".join(SIGNS[i] for i in prompt[:-1]).split("+")
        answer = [SIGNS.index(sign) for sign in kind(int(a), int(b))]
        rows.append(answer + [PAD] * (LENGTH - len(answer)))
    return torch.tensor(rows)


@lru_cache(maxsize=4)
def parents(seed: int) -> dict[str, Module]:
    prompts = ground(seed).train.prompts
    short, long = told(prompts, at_once), told(prompts, working)
    taught = partial(school, batch=64, seed=seed)
    torch.manual_seed(seed)
    base = GPT(len(SIGNS), dim=32, heads=2, length=WIDTH + LENGTH, eos=STOP, pad=PAD)
    taught(base, prompts.repeat(2, 1), torch.cat([short, long]), lr=5e-3, steps=300)
    teacher = taught(copy.deepcopy(base), prompts, long, lr=3e-3, steps=200)
    some = prompts[:2000]
    said = drawn(teacher, some)
    said = F.pad(said, (0, LENGTH - said.shape[1]), value=PAD)
    return {"base": base, "instructed": taught(copy.deepcopy(base), prompts, short, lr=2e-3, steps=80),
            "distilled": taught(copy.deepcopy(base), some, said, lr=2e-3, steps=80)}


def drawn(net: Module, prompts: Tensor) -> Tensor:
    """Answers as the network gives them, from the same random numbers for all networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return text.sample(net, prompts, LENGTH).said


def correct(net: Module, seed: int) -> float:
    parts = ground(seed).test
    return 100 * right(drawn(net, parts.prompts)[:, None], parts.gold).mean().item()


def learn(actor: Module, seed: int) -> SimpleNamespace:
    from stillroom.recipes.language.kdrl import KDRL  # whose other half, GRPO, is asked here

    parts, run = ground(seed), Run(seed=seed)
    method = KDRL(beta=0.0, beta_least=0.0, length=LENGTH, lr=2e-3, batch=16, steps=40)
    made = method(run, student=copy.deepcopy(actor), teacher=copy.deepcopy(actor), reward=reward,
                  data=TensorDataset(parts.train.prompts, parts.train.gold))
    lengths, rewards = ([line[what] for line in run.history] for what in ("length", "reward"))
    return SimpleNamespace(collapse=collapse(lengths), depth=dip(rewards).depth, correct=correct(made, seed))
