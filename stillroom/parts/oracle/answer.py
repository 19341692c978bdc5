"""What a teacher said, or why it said nothing."""

import json
from typing import NamedTuple


class Step(NamedTuple):
    """One token of an answer: the token, its log-probability in nats, and the likeliest tokens there with theirs."""

    token: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


class Answer(NamedTuple):
    """The text; why it ended ("stop", "length", …; "" when unknown); the tokens of question and answer together, 0 when
    unknown; and the answer token by token where log-probabilities were asked for."""

    text: str
    finish: str = ""
    used: int = 0
    steps: tuple[Step, ...] = ()


class Failed(Exception):
    """No answer this time. again: it may come later, after so many seconds if the server said so; billed: it may have cost
    tokens all the same."""

    def __init__(self, why: str, remedy: str = "", *, again: bool = False, after: float | None = None, billed: bool = False):
        super().__init__(why)
        self.why, self.remedy, self.again, self.after, self.billed = why, remedy, again, after, billed


def write(answer: Answer) -> str:
    """An answer as one line of JSON."""
    return json.dumps(answer, ensure_ascii=False)


def read(line: str) -> Answer:
    """What `write` wrote."""
    text, finish, used, steps = json.loads(line)
    return Answer(text, finish, used, tuple(Step(t, p, tuple((u, q) for u, q in near)) for t, p, near in steps))
