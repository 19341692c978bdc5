"""What each placement of a teacher costs: a few forwards measured, the rest is arithmetic."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from stillroom.errors import Refused
from stillroom.measure.cost import resting
from stillroom.parts.placement import around, by_type, placed
from stillroom.store.layout import Layout, Output

STUDENTS = 2        # that share a teacher in the row `shared`
CODEC = "fp16"      # of the row `store`


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of a run with a live teacher. Bytes and seconds."""

    seconds: float               # of the whole run
    asked: float                 # forwards of the teacher in it
    forward: dict[str, float]    # seconds of one of them: live, and 8bit and offload where they can run
    weights: dict[str, int]      # that lie on the device meanwhile, likewise
    move: float                  # seconds to bring the weights to the device and back
    batch: int                   # bytes of one input
    answer: int                  # bytes of the answer to it
    views: int = 0               # that a store of all answers holds; 0: there can be none
    view: int = 0                # bytes of one
    passes: float = 0.0          # forwards that write them


def prices(seen: Seen, count: int) -> list[dict[str, Any]]:
    """One row a placement; `count` batches a block.

    device   bytes of the teacher's weights there while the student learns
    host     bytes that wait in main memory: weights, batches read ahead, their answers
    disk     bytes
    seconds  of the run; of a shared teacher for each of two students; of the store with its writing, without its reading
    """
    live, whole = seen.forward["live"], seen.weights["live"]
    rest = seen.seconds - seen.asked * live

    def row(place: str, seconds: float, device: int = 0, host: int = 0, disk: int = 0) -> dict[str, Any]:
        return {"place": place, "device": device, "host": host, "disk": disk, "seconds": rest + seconds}

    rows = [row(place, seen.asked * each, device=seen.weights[place], host=whole if place == "offload" else 0)
            for place, each in seen.forward.items()]
    rows.append(row(f"blocks:{count}", seen.asked * (live + seen.move / count),
                    host=whole + count * (seen.batch + seen.answer)))
    rows.append(row("shared", seen.asked * live / STUDENTS, device=whole))
    if seen.views:
        rows.append(row("store", seen.passes * live, disk=seen.views * seen.view))
    return rows


def look(teacher: Module, inputs: tuple[Any, ...], named: dict[str, Any], *, device: torch.device, seconds: float, asked: float,
         took: float, views: int = 0) -> Seen:
    """Ask a live teacher about one batch, in each placement that this machine can run. It is offloaded afterwards, or live.

    took   seconds of a live forward in the run; those of the other placements are in proportion
    views  that a store of its answers would hold; of answers that are no logits [batch, classes] there can be none
    """
    with resting(teacher):
        answer = teacher(*inputs, **named)
    weights = {"live": sum(by_type(teacher).values()), "offload": visiting(teacher)}
    forward = {"live": _forward(teacher, inputs, named, device)}
    move = sum(_timed(lambda to=to: teacher.to(to), device) for to in ("cpu", device))    # type: ignore[misc]
    for place in ("8bit", "offload"):
        try:
            other = placed(teacher.cpu(), place).to(device)
            forward[place] = _forward(other, inputs, named, device)
        except Refused:                                  # it cannot be placed so, or accelerate is missing
            continue
        weights.setdefault(place, sum(by_type(other).values()))
    flat = {what: [t for t in tree_leaves(held) if isinstance(t, Tensor)] for what, held in
            (("asked", (inputs, named)), ("answer", answer))}
    logits = isinstance(answer, Tensor) and answer.ndim == 2
    took = min(took, seconds / asked)                    # a few noisy steps may make it longer than all of them
    forward = {place: took * each / forward["live"] for place, each in forward.items()}
    row = Layout((Output(CODEC, tuple(answer.shape[1:]), False),), ()) if logits else None
    return Seen(seconds=seconds, asked=asked, forward=forward, weights=weights, move=move,
                batch=sum(t.nbytes for t in flat["asked"]), answer=sum(t.nbytes for t in flat["answer"]),
                views=views if row else 0, view=row.bytes if row else 0, passes=views / len(flat["asked"][0]))


def visiting(model: Module) -> int:
    """Most bytes of an offloaded model that are on the device at a time: its largest layer, and what stays there."""
    stay = sum(p.nbytes for m in model.modules() if around(m) for p in m.parameters(recurse=False))
    return max(sum(p.nbytes for p in m.parameters()) for m in model.modules() if not around(m)) + stay + sum(
        b.nbytes for b in model.buffers())


def _forward(model: Module, inputs: tuple[Any, ...], named: dict[str, Any], device: torch.device) -> float:
    """Seconds of one forward; the first does not count."""
    with resting(model):
        return median([_timed(lambda: model(*inputs, **named), device) for _ in range(6)][1:])


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    began = clock(device)
    call()
    return clock(device) - began


def clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()
