"""What a method needs from the machine: six verbs (keep, loop, update, log, mean, part), three facts (step, progress, device)."""

import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from stillroom import checkpoint, ranks, shards
from stillroom.batches import batches, to_device
from stillroom.errors import Lost, Refused
from stillroom.parts.optim import Optimiser
from stillroom.parts.placement import Blocks, ahead
from stillroom.parts.shared import turn
from stillroom.progress import Progress

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(FloatingPointError):
    """A term or gradient became NaN or infinite. Names the step and the term; no weight has been moved by it."""


class Run:
    """The engine. One `Run` is one use of a recipe; without a folder it lives in memory and leaves nothing behind.

    folder      where log and checkpoints go; `resume=True` goes on from its last checkpoint, bit for bit on the CPU
    seed        everything random follows from (seed, loop, step): no generator state is ever saved
    device      "auto", "cpu", "cuda", "cuda:1", "mps"
    precision   "fp32", "bf16", "fp16" (with loss scaling); weights stay fp32, the step runs under autocast
    accumulate  micro-batches per update; refused where a method's update is not a mean over its batch
    compile     `torch.compile` every actor in place
    shard       under torchrun: models in pieces over the ranks, in place of a copy on each
    save_every  seconds between checkpoints
    watch       judges run during training: name → function of the kept things by name
    every       steps between two watches
    trackers    "tensorboard", "wandb", "mlflow", "trackio"; a JSONL log is always written
    workers     processes that load data
    show        progress bar with time left
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        seed: int = 0,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        accumulate: int = 1,
        compile: bool = False,
        shard: bool = False,
        save_every: float = 300.0,
        watch: Mapping[str, Callable[[dict[str, Any]], float]] | None = None,
        every: int = 200,
        trackers: tuple[str, ...] = (),
        workers: int = 0,
        show: bool = False,
        resume: bool = False,
    ):
        if precision not in PRECISIONS:
            raise Refused(f"precision {precision!r} is unknown", f"one of {', '.join(PRECISIONS)}")
        for name, number, least in (("accumulate", accumulate, 1), ("every", every, 1), ("workers", workers, 0)):
            if number < least:
                raise Refused(f"{name}={number}", f"a whole number from {least}")
        self.folder = Path(folder) if folder else None
        self.seed, self.precision, self.accumulate, self.compile = seed, precision, accumulate, compile
        ranks.join()
        self.device, self.shard = ranks.device(device), shard and ranks.count() > 1
        if self.shard:
            shards.possible(precision)
        self.workers, self.watch, self.every, self.save_every = workers, dict(watch or {}), every, save_every
        self.step, self.progress = 0, 0.0
        self.history: list[dict[str, Any]] = []      # every line of the log
        self.seconds = 0.0                           # spent in loops, stops included in nothing
        self._root, self._path = self, ""
        self._loop: _Loop | None = None
        self._blocks: set[Blocks] = set()            # teachers that answer batches ahead
        self._things: dict[str, Any] = {}            # kept, by name
        self._loops: dict[str, int] = {}             # steps done, by loop
        self._open_loops: set[str] = set()
        self._casting = ExitStack()
        self._progress = Progress(show and ranks.first())
        self._consent = ranks.Consent()
        self._statistics: list[Tensor] = []          # of batch norms, to be averaged over the ranks
        self._resting = False                        # a teacher reads them in every step
        self._swapped: dict[Tensor, Tensor] = {}     # the piece that stands for a parameter
        self._actors: list[Module] = []              # placed; those that do not learn are sharded before the first step
        self._stop: str | None = None
        self._handlers: dict[int, Any] = {}
        self._saved_at = time.monotonic()
        self._restored = self._go_on(resume)         # kept things of a checkpoint that are not asked for yet
        self._trackers = _trackers(trackers if ranks.first() else (), self.folder)

    # --- six verbs ---------------------------------------------------------------------------------------------

    def keep(self, **things: Any) -> None:
        """Put modules, tensors, lists and optimisers on the device, and let them survive a stop.

        On a resumed run each is restored on the spot, in place. Modules go into train mode. Ranks hold what the first one holds.
        """
        root = self._root
        for name, thing in things.items():
            key = self._path + name
            if key in root._things:
                raise RuntimeError(f"two things are kept as {name!r}")
            if isinstance(thing, Module):
                root._ready(thing).train()
                if root.shard:
                    root._shard(thing)
                found, resting = ranks.statistics(thing)
                root._statistics, root._resting = root._statistics + found, root._resting or resting
            elif isinstance(thing, Optimiser):
                thing.swap(root._swapped)
                thing.scaler = torch.amp.GradScaler(root.device.type) if root.precision == "fp16" else None
            elif isinstance(thing, Tensor):
                if thing.device.type != root.device.type:
                    raise RuntimeError(f"{name!r} lies on {thing.device}: create it with device=run.device")
                ranks.equal_([thing])
            elif not isinstance(thing, list) and not hasattr(thing, "state_dict"):
                raise RuntimeError(f"{name!r} is a {type(thing).__name__}: keep modules, tensors, lists, what has a state_dict")
            root._things[key] = thing
            if key in root._restored:
                checkpoint.restore(thing, root._restored.pop(key), root.folder)

    def loop(self, data=None, *, steps: int, batch: int | None = None, name: str = "loop", whole: bool = False) -> Iterator[Any]:
        """Batches of `data` in an order computed from the seed, or step numbers when there is no data.

        Each step runs under autocast with its own seed; a finished loop yields nothing when a run is resumed.
        `whole`: the method's update is not a mean over the samples of a batch, so the batch must not be split.
        Under torchrun `batch` is that of all ranks together, and each gets its share; without data all do and draw the same.
        """
        root, key = self._root, self._path + name
        many, own = (ranks.count(), ranks.rank()) if data is not None else (1, 0)
        if key in root._open_loops:
            raise RuntimeError(f"two loops are called {name!r}: name them apart with run.loop(…, name=…)")
        parts = root.accumulate
        if parts > 1 and (data is None or whole):
            raise Refused(f"accumulate={parts} would change this method: its update is not a mean over the samples of one batch",
                          "run it with accumulate=1, and a smaller batch if memory is short")
        if data is not None and (not batch or batch % (parts * many)):
            raise Refused(f"a batch of {batch} cannot be split into {parts * many} equal parts",
                          f"choose batch as a multiple of accumulate{f' × {many} ranks' if many > 1 else ''}")
        root._open_loops.add(key)
        done = root._loops.get(key, 0)
        stream = None if data is None or not batch else batches(
            data, batch // (parts * many), start=done * parts * many + own, count=(steps - done) * parts, every=many,
            seed=(root.seed, key), workers=root.workers)
        if stream is not None and root._blocks:
            stream = ahead(stream, root._blocks, root._autocast)
        while root._actors:
            if root.shard and shards.frozen(actor := root._actors.pop()):
                root._shard(actor)
        outer, self._loop = self._loop, (loop := _Loop(key, steps))
        if done < steps:
            root._progress.begin(key, steps, done)
        began = time.perf_counter()
        for step in range(done, steps):
            self.step, self.progress, loop.step = step, step / steps, step
            for micro in range(parts):
                began += turn()
                content = step if stream is None else to_device(next(stream), root.device)
                loop.micro, loop.moved = micro, set()
                root._reseed(key, step, micro * many + own)
                try:
                    root._casting.enter_context(root._autocast())
                    yield content
                finally:
                    root._casting.close()
            now = time.perf_counter()
            root.seconds, began = root.seconds + now - began, now
            root._loops[key] = step + 1
            root._end_of_step(loop)
            began = time.perf_counter()
        self.progress, self._loop = 1.0, outer
        root._progress.end(key)
        root._reseed(key, steps, 0)              # what follows draws the same whether the loop ran now or before a stop

    def update(self, opt: Optimiser, **terms: Tensor) -> bool:
        """Descend the sum of the named terms; without terms, step on gradients already gathered.

        Moves only what `opt` owns. True when weights moved. Raises `Diverged` before a NaN can reach a weight.
        """
        root, loop = self._root, self._loop
        if loop is None:
            raise RuntimeError("run.update belongs inside run.loop")
        root._owned(opt)
        if root.accumulate > 1 and (id(opt) in loop.moved or not terms):
            raise Refused(f"accumulate={root.accumulate} would change this method: it updates more than once per batch",
                          "run it with accumulate=1, and a smaller batch if memory is short")
        loop.moved.add(id(opt))
        if terms:
            total = sum(terms.values(), torch.zeros((), device=root.device)) / root.accumulate
            try:
                loop.note(_finite(terms, loop))
            except Diverged as error:
                if ranks.count() == 1:
                    raise
                loop.diverged, total = error, total * math.nan       # the mean gradient tells the other ranks
            with torch.autocast(root.device.type, enabled=False) if PRECISIONS[root.precision] else nullcontext():
                ranks.backward(opt, opt.scaler.scale(total) if opt.scaler else total, last=loop.micro == root.accumulate - 1)
        elif ranks.count() > 1:
            ranks.average(opt.params)
        if loop.micro < root.accumulate - 1:
            return False
        with torch.no_grad():
            moved = opt.step(self.progress, scaled=bool(terms))
        if moved is None or (moved is False and ranks.any_of(loop.diverged is not None)):
            if loop.diverged:
                raise loop.diverged
            where = f" here: {ranks.count()} ranks average it" if ranks.count() > 1 else ""
            raise Diverged(f"{loop.key}, step {loop.step}: the gradient is not finite though every term is{where}\n"
                           "  → lower lr, clip the gradient, or use precision fp32; no weight was moved")
        torch.clear_autocast_cache()             # else a second forward in this step would use stale casts of the weights
        return moved

    def log(self, **scalars: Any) -> None:
        """Remember scalars of this step for the log."""
        if self._loop is None:
            raise RuntimeError("run.log belongs inside run.loop")
        self._loop.note(scalars)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks, without gradient; `x` itself on one."""
        return ranks.mean(x)

    def part(self, name: str) -> "Run":
        """A run for a recipe inside a recipe: same machine, own names, own folder in the folder."""
        part = object.__new__(type(self))
        part.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_")})
        part.step, part.progress, part._loop = 0, 0.0, None
        part.folder = self.folder / name if self.folder else None
        part._root, part._path = self._root, f"{self._path}{name}/"
        return part

    # --- around a recipe ---------------------------------------------------------------------------------------

    def place(self, actor: Any) -> Any:
        """An actor on the device: modules in place, tensors as leaves, tuples and lists element by element."""
        if isinstance(actor, Module):
            self._root._blocks.update(m for m in actor.modules() if isinstance(m, Blocks))
            if self._root.shard:
                self._root._actors.append(actor)
            return self._root._ready(actor)
        if isinstance(actor, Tensor) and actor.device != self.device:
            return actor.detach().to(self.device).requires_grad_(actor.requires_grad)
        if type(actor) in (list, tuple):
            return type(actor)(map(self.place, actor))
        return actor

    def finish(self, made: Any) -> Any:
        """Close the run around what was made: modules to eval mode, last checkpoint, trackers."""
        if isinstance(made, Module):
            made.eval()
        if self._root is self:
            if self.folder:
                self.save()
            if self.shard:
                made = shards.plain(made)
            for tracker in self._trackers:
                tracker.close()
            self._consent.answer()
            ranks.wait()
        return made

    def __enter__(self) -> "Run":
        if self._root is self:
            self._reseed("begin", 0, 0)
            if self.folder and threading.current_thread() is threading.main_thread():
                self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, _kind, error, _where) -> None:
        if self._root is self:
            self._casting.close()
            self._progress.close()
            for s, handler in self._handlers.items():
                signal.signal(s, handler)
            self._handlers = {}
            if self.shard and any(word in str(error) for word in shards.WHOLE):
                raise Refused("this method calls or copies a part of a model that lies in pieces", "leave shard out") from error
            if ranks.lost(error):
                raise Lost(f"rank {ranks.rank()} waits in vain for another, which has ended or hangs; what was saved is whole"
                                 f"{f'. Go on with: stillroom run --resume {self.folder}' if self.folder else ''}") from error

    def save(self) -> None:
        """Write the checkpoint of everything kept."""
        assert self.folder is not None
        log = self.folder / "log.jsonl"
        ranks.mean_(self._statistics)
        things = {**self._restored, **{k: checkpoint.state_of(v) for k, v in self._things.items()}}
        if self.shard:
            things = checkpoint.write_pieces(self.folder, things)
        if ranks.first():
            checkpoint.write(self.folder, {"seed": self.seed, "loops": dict(self._loops), "seconds": self.seconds,
                                           "log": log.stat().st_size if log.exists() else 0, "things": things})
        ranks.wait()
        self._saved_at = time.monotonic()

    # --- plumbing ----------------------------------------------------------------------------------------------

    def _ready(self, module: Module) -> Module:
        if self.shard and shards.frozen(module, shards.LARGE):
            self._shard(module)                  # from where it lies: no device has to hold it whole
        elif not self.shard or not shards.sharded(module):
            ranks.equal_([*module.to(self.device).parameters(), *module.buffers()])
        if self.compile and not any(m._compiled_call_impl for m in module.modules()):
            module.compile()
        return module

    def _shard(self, module: Module) -> None:
        self._swapped |= shards.shard(module, self.device)

    def _autocast(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def _reseed(self, key: str, step: int, micro: int) -> None:
        digest = blake2b(f"{self.seed}/{key}/{step}/{micro}/0".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> 1
        torch.default_generator.manual_seed(number)      # torch.manual_seed formats a stack trace for CUDA each time: 0.2 ms
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(number)
        np.random.seed(number % 2**32)
        random.seed(number)

    def _owned(self, opt: Optimiser) -> None:
        """Everything that learns is kept; said once per optimiser."""
        if opt.checked:
            return
        if not any(thing is opt for thing in self._things.values()):
            raise RuntimeError("run.update with an optimiser that is not kept: name it in run.keep")
        kept = {id(p) for thing in self._things.values() for p in (thing.parameters() if isinstance(thing, Module) else [thing])}
        if any(id(p) not in kept for p in opt.params):
            raise RuntimeError("the optimiser moves weights that are not kept: name their module or tensor in run.keep")
        opt.checked = True

    def _end_of_step(self, loop: "_Loop") -> None:
        last = loop.step + 1 == loop.steps
        watched = bool(self.watch) and (last or (loop.step + 1) % self.every == 0)
        if self._resting or watched or last:
            ranks.mean_(self._statistics)
        if watched:
            loop.note(self._watched())
        if last or watched or loop.step % max(1, loop.steps // 200) == 0:
            line = {"loop": loop.key, "step": loop.step, "seconds": round(self.seconds, 3), **ranks.mean_of(loop.scalars())}
            self.history.append(line)
            if self.folder and ranks.first():
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            for tracker in self._trackers:
                tracker.log(line)
        self._progress.advance(loop.key, loop.step + 1, loop.shown)
        loop.clear()
        due = self.folder is not None and time.monotonic() - self._saved_at > self.save_every
        stop, due = self._consent(self._stop is not None, due)
        if stop or due:
            self.save()
        if stop:
            raise KeyboardInterrupt(f"{self._stop or 'another rank'} at step {loop.step + 1} of {loop.key!r}; "
                                    f"all of it is saved. Go on with: stillroom run --resume {self.folder}")

    @torch.no_grad()
    def _watched(self) -> dict[str, float]:
        modules = [m for t in self._things.values() if isinstance(t, Module) for m in t.modules()]
        modes = [m.training for m in modules]
        try:
            for m in modules:
                m.training = False
            return {name: float(judge(self._things)) for name, judge in self.watch.items()}
        finally:
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode

    def _on_signal(self, number: int, _frame) -> None:
        if self._stop and ranks.count() == 1:    # asked twice: at once, without saving; torchrun passes one wish on twice
            raise KeyboardInterrupt
        self._stop = signal.Signals(number).name

    def _go_on(self, resume: bool) -> dict[str, Any]:
        """The kept things of the checkpoint in the folder, by name; its log is cut where the checkpoint was written."""
        state = checkpoint.read(self.folder, resume, self.seed)
        if state is None or self.folder is None:
            return {}
        self._loops, self.seconds = state["loops"], state["seconds"]
        log = self.folder / "log.jsonl"
        if log.exists():
            ranks.once(lambda: os.truncate(log, state["log"]))
            self.history = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return state["things"]


class _Loop:
    """What a running loop knows of its current step."""

    def __init__(self, key: str, steps: int):
        self.key, self.steps, self.step, self.micro = key, steps, 0, 0
        self.moved: set[int] = set()             # optimisers updated on this micro-batch
        self.diverged: Diverged | None = None    # on this rank
        self.shown: dict[str, float] = {}        # last values, for the progress bar
        self.noted: dict[str, list[Any]] = {}

    def note(self, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self.noted.setdefault(name, []).append(value)

    def scalars(self) -> dict[str, float]:
        """Mean of each scalar over this step (micro-batches, inner epochs)."""
        self.shown = {k: sum(map(float, v)) / len(v) for k, v in self.noted.items()}
        return self.shown

    def clear(self) -> None:
        self.noted = {}


def _finite(terms: Mapping[str, Tensor], loop: _Loop) -> dict[str, float]:
    for name, term in terms.items():
        if term.numel() != 1:
            raise RuntimeError(f"term {name!r} has shape {list(term.shape)}: reduce it to a scalar")
    values = torch.stack([t.detach().float().reshape(()) for t in terms.values()]).tolist()
    for name, value in zip(terms, values, strict=True):
        if not np.isfinite(value):
            raise Diverged(f"{loop.key}, step {loop.step}: term {name!r} is {value}\n"
                           "  → lower lr, clip the gradient, or use precision fp32; no weight was moved")
    return dict(zip(terms, values, strict=True))


def _trackers(names: tuple[str, ...], folder: Path | None) -> list[Any]:
    if not names:
        return []
    from stillroom.trackers import tracker

    return [tracker(name, folder) for name in names]
