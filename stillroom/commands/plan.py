"""what will it cost: memory, disk and hours, from a few measured steps; writes nothing"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillroom import recipe, settings
from stillroom.commands import run as runs
from stillroom.recipe import Field
from stillroom.settings import Settings

if TYPE_CHECKING:
    import torch

EXTRA = [
    Field("few", "int", 20, "steps of every loop that are taken and timed; the first does not count"),
    Field("config", "str", "", "settings from a YAML file; flags win over it"),
    Field("json", "bool", False, "as JSON"),
]
ABOUT = """\
usage: stillroom plan NAME [the flags of `stillroom run NAME`] [--few 20] [--json]

Takes the first few steps of the run that the same flags would start, and says what the whole of it will need. Writes nothing.
Beside it, what other places for the teacher's weights would cost (in 8 bits, offloaded, in blocks, shared, stored).

  stillroom plan kd --student timm:resnet18 --teacher run:runs/teacher --data folder:images --precision bf16
"""
PLACED = ("8bit, offload and blocks read --teacher SPEC?place=8bit; store (as fp16, the time with its writing): stillroom cache;",
          "shared (by two students, each of whom takes this time) is for Python: parts.shared.together")


def command(words: Sequence[str]) -> None:
    """`plan` from words."""
    words = list(words)
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT)
        return
    name, words = runs.named(words)
    chosen, extra = settings.parse(name, words, command=f"stillroom plan {name}", about=recipe.card(name).title, extra=EXTRA)
    found = plan(chosen, extra["few"])
    print(json.dumps(found, indent=1, ensure_ascii=False) if extra["json"] else table(found))


def plan(chosen: Settings, few: int = 20) -> dict[str, Any]:
    """What a run with these settings will need.

    hours   of all loops: the mean time of steps 2 … `few`, times their number; start: seconds outside loops
    memory  peak bytes: on a GPU what torch allocated there, and of the process in main memory
    disk    bytes of a checkpoint, and of what is made
    placements  of a live teacher: what other places for its weights would cost, see `measure.prices`
    """
    import time
    from statistics import median

    import torch

    from stillroom import job
    from stillroom.checkpoint import state_of
    from stillroom.errors import Refused
    from stillroom.measure import prices
    from stillroom.parts.placement import BLOCK
    from stillroom.parts.teachers import held
    from stillroom.run import Run

    if few < 2:
        raise Refused(f"--few {few}", "2 at least: the first step is not counted")

    class Sampled(Run):
        """Takes the first few steps of every loop, and remembers how many there would be."""

        def loop(self, data=None, *, steps: int, batch=None, name: str = "loop", whole: bool = False):
            key, before = self._path + name, len(took)
            loops[key] = steps
            yield from super().loop(data, steps=min(steps, few), batch=batch, name=name, whole=whole)
            asks[key] = (len(took) - before) / min(steps, few)

    loops: dict[str, int] = {}
    asks: dict[str, float] = {}      # of a teacher, in a step
    took: list[float] = []           # seconds of each of its forwards
    last: dict[str, Any] = {}        # what it is asked about, and when
    ready = job.prepare(chosen)
    options = ready.settings.options
    run = Sampled(**{k: options[k] for k in ("seed", "device", "precision", "accumulate", "compile", "workers")})
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    for actor in ready.actors.values():
        if isinstance(actor, torch.nn.Module):
            held(actor)[0].drawn = None                  # type: ignore[assignment]  # a plan may be made before the teacher is
    teacher: Any = ready.actors.get("teacher")
    if isinstance(teacher, torch.nn.Module):
        hooks = [teacher.register_forward_pre_hook(lambda _, x, named: last.update(x=(x, named), at=prices.clock(run.device)),
                                                   with_kwargs=True),
                 teacher.register_forward_hook(lambda *_: took.append(prices.clock(run.device) - last["at"]))]
    before, began = _peak(), time.perf_counter()
    made = ready.recipe(run, **ready.actors)
    wall = time.perf_counter() - began
    each = {key: _pace([line for line in run.history if line["loop"] == key]) for key in loops}
    outside, whole = max(0.0, wall - run.seconds), sum(loops[k] * each[k] for k in loops)
    found = {
        "recipe": chosen.recipe, "data": ready.words, "device": str(run.device), "threads": torch.get_num_threads(),
        "precision": options["precision"], "steps": loops, "seconds_per_step": each, "seconds_outside": outside,
        "hours": (whole + outside) / 3600,
        "memory": _peak(), "memory_before": before,
        "memory_gpu": torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else 0,
        "checkpoint": _size({k: state_of(v) for k, v in run._things.items()}), "made": _size(state_of(made)),
        "placements": [],
    }
    if sum(asks.values()) and "?place=" not in chosen.actors.get("teacher", "").replace("&", "?"):
        for hook in hooks:
            hook.remove()
        with run._autocast():
            seen = prices.look(teacher, *last["x"], device=run.device, seconds=whole + outside, took=median(took),
                               asked=sum(loops[k] * asks[k] for k in asks), views=len(ready.actors.get("data", ())))
        found["placements"] = prices.prices(seen, BLOCK)
    return found


def table(found: dict[str, Any]) -> str:
    """A plan in words."""
    loops = "\n".join(f"  {key:<12}{steps:>10,} steps × {1000 * found['seconds_per_step'][key]:.4g} ms = "
                      f"{span(steps * found['seconds_per_step'][key])}" for key, steps in found["steps"].items())
    gpu = f"{size(found['memory_gpu'])} on the GPU; " if found["memory_gpu"] else ""
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    return (f"{found['recipe']} on {found['data']}\n{found['device']}, {found['precision']}, {threads}\n\n{loops}\n"
            f"  {'otherwise':<12}{span(found['seconds_outside'])}\n\n"
            f"time      {span(3600 * found['hours'])}\n"
            f"memory    {gpu}{size(found['memory'])} at the peak, of which {size(found['memory_before'])} before the first step\n"
            f"disk      {size(found['checkpoint'])} for the checkpoint, {size(found['made'])} for what is made"
            + _places(found))


def _places(found: dict[str, Any]) -> str:
    """The placements of the teacher in words."""
    if not found["placements"]:
        return ""
    head = f"\n\n{'the teacher':<12}{'on ' + found['device']:>12}{'waiting':>12}{'on disk':>12}{'time':>12}"
    rows = [f"  {r['place']:<10}" + "".join(f"{size(r[k]):>12}" for k in ("device", "host", "disk")) + f"{span(r['seconds']):>12}"
            for r in found["placements"]]
    return "\n".join([head, *rows, *(f"  {line}" for line in PLACED)])


def span(seconds: float) -> str:
    """Seconds, minutes or hours."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def size(count: float) -> str:
    """Bytes in a unit that reads well."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _pace(lines: list[dict[str, Any]]) -> float:
    """Seconds per step, the first left out where there are more."""
    if len(lines) < 2:
        return lines[0]["seconds"] if lines else 0.0
    return (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])


def _peak() -> int:
    """Largest memory of this process so far, in bytes."""
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(state: Any) -> int:
    """Bytes that a state takes as a file, counted, not written."""
    import torch

    count = _Count()
    torch.save(state, count)  # type: ignore[arg-type]
    return count.total


class _Count:
    """A file that only counts."""

    def __init__(self) -> None:
        self.total = 0

    def write(self, content: "bytes | memoryview | torch.Tensor") -> int:
        self.total += len(content)
        return len(content)

    def flush(self) -> None:
        """There is nothing to flush."""
