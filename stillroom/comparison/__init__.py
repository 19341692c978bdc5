"""Which way is best for this teacher, student and data: plan → cells → judge → rank → write.

A contestant is a recipe with its fields; a cell is one contestant on one seed, trained in its own folder and resumable there.
All contestants of a seed begin with the same student weights and get the same batch and the same budget. The test split is
read once per cell, after its last step; whatever has to be chosen is chosen on the validation split.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.comparison import cells, outcome
from stillroom.comparison.bar import Bar
from stillroom.comparison.files import read
from stillroom.comparison.plan import GRID, Contestant, Plan, budgets, claim, plan
from stillroom.errors import Refused, nearest

__all__ = ["compare"]


def compare(*methods: str, teacher: Any = "", student: Any = "", data: Any = "", regime: str = "few", seeds: int = 3,
            budget: int | str = 600, batch: int = 64, shared: str = "", out: str | Path = "", only: Sequence[str] = (),
            retry: bool = False, device: str = "auto", precision: str = "fp32", accumulate: int = 1, workers: int = 0,
            save_every: float = 300.0, size: int = 0, channels: int = 0, pretrained: bool = False, skip_corrupt: bool = False,
            show: bool = True) -> dict[str, Any]:
    """Compare methods at equal budget, always beside the student alone and plain KD with its weight tuned.

    methods    recipe names; with other fields: "nkd_uskd:gamma=1.0,temperature=1"; "alone:lr=0.01" and "kd_tuned:lr=0.01"
               set fields of the two baselines
    teacher student data   names for the zoo, or from Python: modules (student: also a function that makes one) and an object
               with train, valid, test; what is left out comes from the digits arena in its `regime`
    seeds      0 … seeds − 1
    budget     updates per run (600), or time per run ("300s", "10m", "2h"), turned into updates by a measured one
    batch      samples per update, for every contestant
    shared     fields set for every contestant that has them: "lr=0.01,decay=0"
    out        folder; the same call goes on where it was stopped, and methods or seeds may be added
    only       cells to run now, as "kd/0": the others are left for another time or another machine
    retry      run failed cells anew
    device precision accumulate workers save_every   as `Run` takes them
    size channels pretrained skip_corrupt            as `zoo` takes them
    show       progress and the table of results on the terminal

    Returns what is written to `result.json`. Raises `Refused` before any work is lost.
    """
    settled = plan(methods, {"teacher": teacher, "student": student, "data": data}, regime=regime, seeds=seeds, budget=budget,
                   batch=batch, shared=shared, out=out, options=dict(
                       device=device, precision=precision, accumulate=accumulate, workers=workers, save_every=save_every,
                       size=size, channels=channels, pretrained=pretrained, skip_corrupt=skip_corrupt))
    chosen = _chosen(settled, only)
    try:
        with Bar(show) as bar:
            claim(settled)
            budgets(settled)
            tuning = any(c.role == "tuned" for c, _ in chosen)
            bar.expect(sum(settled.updates[c.name] or 0 for c, _ in chosen) + tuning * _tuning_updates(settled))
            if tuning:
                cells.tune(settled, bar)
            for contestant, seed in chosen:
                cells.cell(settled, contestant, seed, bar, retry)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_stopped(settled, stop)) from None
    result = outcome.outcome(settled)
    outcome.leave(settled, result)
    if show:
        outcome.show(result)
    return result


def _chosen(settled: Plan, only: Sequence[str]) -> list[tuple[Contestant, int]]:
    """The cells to run. Raises `Refused` for one that is not in the comparison."""
    names = {f"{c.name}/{seed}": (c, seed) for c, seed in settled.cells}
    for name in only:
        if name not in names:
            raise Refused(f"this comparison has no run {name!r}", nearest(name, names))
    return [cell for name, cell in names.items() if not only or name in only]


def _tuning_updates(settled: Plan) -> int:
    if (settled.out / "tuning.json").exists():
        return 0
    return (settled.updates[settled.tuned.name] or 0) * len(GRID["alpha"]) * len(GRID["temperature"])


def _stopped(settled: Plan, stop: KeyboardInterrupt) -> str:
    """How far it came, and how to go on."""
    done = sum(read(settled.folder(c, seed) / "result.json") is not None for c, seed in settled.cells)
    where = re.search(r"at step \d+", str(stop))
    return (f"{done} of {len(settled.cells)} runs are finished" + (f", the one under way is saved {where[0]}" if where else "")
            + f". Go on with the same command:\n  → {settled.command}")
