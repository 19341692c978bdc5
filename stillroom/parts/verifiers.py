"""Rewards by rule: is the answer in a text the right one? Each verifier takes what was said and the right answer, both as texts,
and returns 1.0 or 0.0."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Verifier = Callable[[str, str], float]
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d[\d,]*)?")


def exact(said: str, gold: str) -> float:
    """The whole text, but for space around it."""
    return float(said.strip() == gold.strip())


def number(said: str, gold: str) -> float:
    """The final number, as a value: 1,200 is 1200.0, and 1/2 or \\frac{1}{2} is 0.5. Units and currency do not matter."""
    own, right = final(said), final(gold)
    return float(own is not None and own == right)


def final(text: str) -> Fraction | None:
    """The number after the last `####` (GSM8K, Cobbe et al. 2021), or in the last \\boxed{…}, or the last number of the text."""
    mark = text.rfind("####")
    part = text[mark + 4 :] if mark >= 0 else boxed(text)
    found = NUMBER.findall(_plain(text if part is None else part))
    if not found:
        return None
    one = found[0 if mark >= 0 else -1].replace(",", "")
    above, _, below = one.partition("/")
    return None if below and not int(below) else Fraction(above.strip()) / (int(below) if below else 1)


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{…} whose braces close; None without one."""
    for start in reversed([m.end() for m in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for i, sign in enumerate(text[start:], start):
            depth += (sign == "{") - (sign == "}")
            if not depth:
                return text[start:i]
    return None


def matching(pattern: str) -> Verifier:
    """A verifier: the first group of the last match of a regular expression is the right answer, but for space around it."""
    compiled = re.compile(pattern, re.S)
    return lambda said, gold: float(bool(found := list(compiled.finditer(said))) and exact(found[-1][1] or "", gold))


def graded(decode: Callable[[Sequence[int]], str], verify: Verifier) -> Callable[[Tensor, Sequence | Tensor], Tensor]:
    """A reward for answers in tokens: (answers [prompts, group, length], right answers [prompts]) → [prompts, group]. `decode`
    makes a text of a list of ids and leaves out what ends and pads: `partial(tokenizer.decode, skip_special_tokens=True)`."""
    def reward(said: Tensor, gold: Sequence | Tensor) -> Tensor:
        right = [str(g) for g in (gold.tolist() if isinstance(gold, Tensor) else gold)]
        grades = [[verify(decode(row), g) for row in rows] for rows, g in zip(said.tolist(), right, strict=True)]
        return torch.tensor(grades, device=said.device)
    return reward


def _plain(text: str) -> str:
    """Fractions of LaTeX as a/b, without its marks for dollars and thousands."""
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2", text)
    return re.sub(r"\\[$!,;]|\{,\}", lambda m: "," if m[0] == "{,}" else "", text)
