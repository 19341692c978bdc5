"""Sums of two numbers below a hundred, digit by digit, for small language models whose answers a rule can grade."""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom import recipe
from stillroom.arenas.cast import Cast, variant
from stillroom.models.gpt import GPT
from stillroom.parts import grpo, optim, text, verifiers
from stillroom.parts.schedules import constant
from stillroom.run import Run

SIGNS = "_.0123456789+="       # the first pads, the second ends a text
PAD, STOP = 0, 1
WIDTH, LENGTH = 6, 4           # tokens of a prompt, "07+85=", and of an answer, "290.": the digits of the least worth come first
TEST, VALID = 2000, 500
SKILLED, BEGUN = 85.0, 20.0    # percent of its sums right, at which the teacher's and the student's schooling ends


def sums(seed: int = 0) -> Cast:
    """Student and teacher, each schooled by right answers until it knows so many; prompts with their sums, and a rule as reward.

    accuracy(net)    percent of 2,000 sums, of which nobody learns, that it gets right by its likeliest tokens
    before, teacher  the two as they begin
    other(**fields)  what the trial of KDRL makes with these fields changed
    imitated()       the student taught by answers that the teacher said to the prompts, with as many updates and as many answers
    """
    parts = ground(seed)
    student, teacher = schooled(seed, 32, 4e-3, BEGUN), schooled(seed, 48, 3e-3, SKILLED)
    return Cast({"student": copy.deepcopy(student), "teacher": copy.deepcopy(teacher),
                 "data": TensorDataset(parts.train.prompts, parts.train.gold),
                 "reward": verifiers.graded(read, verifiers.number)},
                data="sums of two numbers below a hundred", real=False,
                accuracy=lambda net: accuracy(net, parts.test), teacher=teacher, before=student,
                other=partial(variant, "kdrl", seed), imitated=lambda: imitated(seed, parts.train.prompts, LENGTH))


def ids(words: str) -> list[int]:
    return [SIGNS.index(sign) for sign in words]


def read(tokens: Sequence[int]) -> str:
    """The number that an answer writes, nothing where it does not end."""
    words = "".join(SIGNS[i] for i in tokens if i != PAD)
    return words[-2::-1] if words.endswith(".") else ""


@lru_cache(maxsize=4)
def ground(seed: int) -> SimpleNamespace:
    """All pairs in an order of the seed, in three parts: prompts [n, WIDTH], sums in three digits, answers [n, LENGTH]."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(seed))
    pairs = [divmod(n, 100) for n in order.tolist()]
    prompts = torch.tensor([ids(f"{a:02}+{b:02}=") for a, b in pairs])
    gold = torch.tensor([a + b for a, b in pairs])
    answers = torch.tensor([ids(f"{a + b:03}"[::-1] + ".") for a, b in pairs])
    cuts = {"test": slice(TEST), "valid": slice(TEST, TEST + VALID), "train": slice(TEST + VALID, None)}
    return SimpleNamespace(**{k: SimpleNamespace(prompts=prompts[s], gold=gold[s], answers=answers[s]) for k, s in cuts.items()})


def accuracy(net: Module, part: SimpleNamespace) -> float:
    said = text.sample(net, part.prompts, LENGTH, temperature=0).said
    return 100 * verifiers.graded(read, verifiers.number)(said[:, None], part.gold).mean().item()


def school(net: Module, prompts: Tensor, answers: Tensor, *, lr: float, batch: int, steps: int, seed: int,
           enough: Callable[[Module], bool] = lambda net: False, every: int = 10) -> Module:
    """Taught by answers to prompts: cross-entropy of their tokens, until it is asked, `every` so many steps, and found to know
    enough."""
    run = Run(seed=seed, device="cpu")
    opt = optim.adamw(net, lr=constant(lr, warmup=0.05), betas=(0.9, 0.98), clip=1.0)
    run.keep(net=net, opt=opt)
    whole = torch.cat([prompts, answers], 1)
    for x, in run.loop(TensorDataset(whole), batch=batch, steps=steps, whole=True):
        told = text.Completions(x, x != PAD, prompts.shape[1])
        run.update(opt, spoken=-grpo.mean(text.log_probs(net, told), told.mask))
        if run.step % every == every - 1 and enough(net):
            break
    return net.eval()


@lru_cache(maxsize=8)
def schooled(seed: int, dim: int, lr: float, goal: float) -> Module:
    parts = ground(seed)
    torch.manual_seed(1000 * dim + seed)
    net = GPT(len(SIGNS), dim=dim, heads=2, length=WIDTH + LENGTH, eos=STOP, pad=PAD)
    return school(net, parts.train.prompts, parts.train.answers, lr=lr, batch=64, steps=800, seed=seed,
                  enough=lambda net: accuracy(net, parts.valid) >= goal)


def imitated(seed: int, prompts: Tensor, length: int) -> Module:
    """The student of KDRL's trial, taught by answers of the teacher, as many and with as many updates as the trial has."""
    method, cast = recipe.module("kdrl").trial(seed)
    many = method.batch * method.group
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        told = text.sample(cast.teacher, prompts, length, count=-(-method.steps * many // len(prompts)))
    said = F.pad(told.said, (0, length - told.said.shape[1]), value=PAD)
    return school(cast.actors["student"], told.ids[:, : told.width], said, lr=method.lr, batch=many, steps=method.steps,
                  seed=seed)
