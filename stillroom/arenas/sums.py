"""Sums of two numbers below a hundred, digit by digit, for small language models whose answers a rule can grade."""

import copy
from collections.abc import Sequence
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.models.gpt import GPT
from stillroom.parts import losses, optim, text, verifiers
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.run import Run

SIGNS = "_.0123456789+="       # the first pads, the second ends a text
PAD, STOP = 0, 1
TEST, VALID = 1000, 500
WIDTH, LENGTH = 6, 4           # of a prompt, of an answer and its end


def ids(words: str) -> list[int]:
    return [SIGNS.index(sign) for sign in words]


def read(tokens: Sequence[int]) -> str:
    """The text, as far as it is one: without padding, and without its end."""
    return "".join(SIGNS[i] for i in tokens if i > STOP)


@lru_cache(maxsize=4)
def ground(seed: int) -> SimpleNamespace:
    """All pairs in an order of the seed: prompts [n, WIDTH] padded on the left, sums [n], and the answers [n, LENGTH]."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(seed))
    pairs = [divmod(n, 100) for n in order.tolist()]
    prompts = torch.tensor([[PAD] * (WIDTH - len(p)) + ids(p) for p in (f"{a}+{b}=" for a, b in pairs)])
    gold = torch.tensor([a + b for a, b in pairs])
    answers = torch.tensor([(ids(f"{a + b}.") + [PAD] * LENGTH)[:LENGTH] for a, b in pairs])
    cuts = {"test": slice(TEST), "valid": slice(TEST, TEST + VALID), "train": slice(TEST + VALID, None)}
    return SimpleNamespace(**{k: SimpleNamespace(prompts=prompts[s], gold=gold[s], answers=answers[s]) for k, s in cuts.items()})


def accuracy(net: Module, part: SimpleNamespace) -> float:
    """Percent of the sums that the likeliest answer gives right."""
    said = text.sample(net, part.prompts, LENGTH, temperature=0).said
    return 100 * verifiers.graded(read, verifiers.exact)(said[:, None], part.gold).mean().item()


def spoken(net: Module, prompts: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answers [n, length], padding left out."""
    told = text.Completions(torch.cat([prompts, answers], 1), torch.cat([prompts, answers], 1) != PAD, prompts.shape[1])
    logp = text.log_probs(net, told)
    return -logp.sum() / told.mask.sum()


def taught(net: Module, prompts: Tensor, answers: Tensor, seed: int, steps: int, lr: float = 2e-3, batch: int = 256, until=None, every=50) -> Module:
    run = Run(seed=seed, device="cpu")
    opt = optim.adamw(net, lr=lr, clip=1.0)
    run.keep(net=net, opt=opt)
    for x, y in run.loop(TensorDataset(prompts, answers), batch=batch, steps=steps, whole=True):
        run.update(opt, spoken=spoken(net, x, y))
        if until is not None and (run.step + 1) % every == 0 and until(net):
            break
    return net.eval()
