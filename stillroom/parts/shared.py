"""One teacher of several students: it answers each batch once, while their methods take their steps in turn."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from stillroom.parts.placement import copied
from stillroom.parts.teachers import Teacher

_TURN: ContextVar[Callable[[], float]] = ContextVar("turn", default=lambda: 0.0)


class Shared(Teacher):
    """It remembers the `last` inputs that it was asked about and what it answered: the same input again costs no forward."""

    def __init__(self, model: Module, last: int = 1):
        super().__init__(model)
        self.known: deque[tuple[list[Any], Any]] = deque(maxlen=last)

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        leaves = tree_leaves((inputs, named))
        kind = next(t.device.type for t in leaves if isinstance(t, Tensor))
        asked = [*leaves, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)]
        for before, answer in self.known:
            if len(before) == len(asked) and all(map(_same, before, asked)):
                return copied(answer)
        answer = self.model(*inputs, **named)
        self.known.append((copied(asked), copied(answer)))
        return answer


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the calls return, each of which uses a recipe, carried out step by step in turn: with one `Shared` teacher, the same
    data, batch and seed, the teacher is asked once for all. Each result is that of the call alone, bit for bit.

        together([partial(KD(), Run(), student=s, teacher=teacher, data=data) for s in students])

    The first error ends all of them and is raised. Runs save as often as `save_every` says, but not when they are stopped.
    """
    tokens = [threading.Semaphore(0) for _ in calls]
    made: dict[int, Any] = {}
    errors: list[BaseException] = []
    left = list(range(len(calls)))

    def hand_on(me: int) -> None:
        """The next of those that are left goes on."""
        if left:
            tokens[next((i for i in left if i > me), left[0])].release()

    def play(me: int) -> None:
        def turn() -> float:
            began = time.perf_counter()
            hand_on(me)
            tokens[me].acquire()
            if errors:
                raise _Ended
            return time.perf_counter() - began

        _TURN.set(turn)
        tokens[me].acquire()
        try:
            made[me] = None if errors else calls[me]()
        except BaseException as error:
            errors.append(error)
        left.remove(me)
        hand_on(me)

    players = [threading.Thread(target=copy_context().run, args=(play, i), daemon=True) for i in range(len(calls))]
    for player in players:
        player.start()
    hand_on(-1)
    try:
        for player in players:
            player.join()
    except BaseException as error:
        errors.append(error)                             # all end at their next step
        for player in players:
            player.join()
        raise
    if errors:
        raise errors[0]
    return [made[i] for i in range(len(calls))]


def turn() -> float:
    """Where the engine lets the others of `together` take their step: seconds that they took. Outside of it nothing happens."""
    return _TURN.get()()


class _Ended(BaseException):
    """Another call of `together` failed."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    return type(a) is type(b) and a == b
