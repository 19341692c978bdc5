"""Train one contestant on one seed in its own folder, and judge its last step. What it raises becomes its result."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Module

from stillroom import measure, recipe, saved, settings
from stillroom.batches import targets
from stillroom.comparison.bar import Bar
from stillroom.comparison.files import read, write
from stillroom.comparison.judge import architecture, fingerprint, numbers, some
from stillroom.comparison.plan import GRID, Contestant, Plan, call, is_loop, repeat
from stillroom.comparison.versions import versions
from stillroom.errors import Refused
from stillroom.measure.classification import answers, right
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.run import Run

POINTS = 20        # of a learning curve
WATCHED = 1000     # validation samples of a learning curve, at most


def cell(plan: Plan, contestant: Contestant, seed: int, bar: Bar, retry: bool) -> None:
    """Leave a `result.json` in the cell's folder, unless there is one; `retry`: a failed one does not count."""
    folder, updates = plan.folder(contestant, seed), plan.updates[contestant.name]
    old = read(folder / "result.json")
    if old and not (retry and old["status"] == "failed"):
        plan.costs[old.get("architecture", "")] = old.get("cost")
        return bar.skip(updates or 0)
    if old:
        shutil.rmtree(folder)
    bar.name(f"{contestant.name}, seed {seed}")
    ground, taught = plan.ground(seed), teacher(plan, seed)
    facts: dict[str, Any] = {"contestant": contestant.name, "seed": seed, "versions": versions()}
    try:
        if updates is None:
            raise RuntimeError(f"its update could not be timed: {plan.timed[contestant.name]}")
        facts["fields"] = contestant.fields(updates, batch=plan.batch, **(_tuned(plan) if contestant.role == "tuned" else {}))
        _from_trial(plan, contestant, facts["fields"], seed, folder)
        made, trained = _train(plan, contestant, facts["fields"], seed, folder, bar)
        logits, y = answers(made, ground.test)
        if logits.shape[-1] != len(ground.classes):
            raise TypeError(f"its student tells {logits.shape[-1]} classes apart, the data have {len(ground.classes)}")
        facts |= trained | numbers(logits, y) | _cost(plan, made, ground.shape)
        facts["agreement"] = right(logits, torch.tensor(taught["says"]))
        saved.save(made, folder, classes=ground.classes, shape=ground.shape)
        if plan.named:
            _note(plan, contestant, seed, facts, folder)
        facts["status"], words = "done", f"{facts['accuracy']:.1f} % of test images right"
    except Exception as error:
        facts |= {"status": "failed", "error": _told(error), "curve": curve(_log(folder))}
        words = f"failed: {facts['error']}"
    write(folder / "result.json", facts)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    bar.tell(f"{contestant.name}, seed {seed}: {words}")


def tune(plan: Plan, bar: Bar) -> None:
    """Plain KD on a small grid of weight and temperature, on the first seed: the best on validation runs on all."""
    contestant, seed, trials = plan.tuned, plan.seeds[0], []
    updates = plan.updates[contestant.name]
    if updates is None or read(plan.out / "tuning.json"):
        return
    for alpha in GRID["alpha"]:
        for temperature in GRID["temperature"]:
            folder = plan.out / "tuning" / f"alpha{alpha:g}_T{temperature:g}"
            bar.name(f"tuning kd: alpha {alpha:g}, temperature {temperature:g}")
            trial = read(folder / "result.json")
            if trial:
                bar.skip(updates)
            else:
                trial = {"fields": contestant.fields(updates, batch=plan.batch, alpha=alpha, temperature=temperature)}
                try:
                    made, trained = _train(plan, contestant, trial["fields"], seed, folder, bar)
                    logits, y = answers(made, plan.ground(seed).valid)
                    trial |= {"status": "done", "accuracy": right(logits, y), "loss": F.cross_entropy(logits, y).item(),
                              "seconds": trained["seconds"]}
                except Exception as error:
                    trial |= {"status": "failed", "error": _told(error)}
                write(folder / "result.json", trial)
            trials.append({"alpha": alpha, "temperature": temperature, **{k: v for k, v in trial.items() if k != "fields"}})
    done = [t for t in trials if t["status"] == "done"]
    best, slack = choose(done, len(plan.ground(seed).valid))
    write(plan.out / "tuning.json", {"seed": seed, "trials": trials, "seconds": sum(t["seconds"] for t in done), "slack": slack,
                                     "chosen": {k: best[k] for k in GRID if best}})
    bar.tell(f"kd_tuned: {best['alpha']:g} of the loss from the teacher, temperature {best['temperature']:g}" if best
             else "kd_tuned: no trial reached its end")


def choose(trials: list[dict[str, Any]], images: int) -> tuple[dict[str, Any], float]:
    """The trial with the smallest validation loss among those whose validation accuracy is within one standard error of the
    highest (Breiman et al. 1984, sec. 3.4.3): on few images the highest accuracy alone is chance. And that error, in points."""
    if not trials:
        return {}, 0.0
    top = max(t["accuracy"] for t in trials)
    slack = 100 * math.sqrt(top / 100 * (1 - top / 100) / images)
    return min((t for t in trials if t["accuracy"] >= top - slack), key=lambda t: t["loss"]), slack


def teacher(plan: Plan, seed: int) -> dict[str, Any]:
    """What the teacher says on the test split of a seed, and what the data are; told once. Raises `Refused` when it changed."""
    file, ground = plan.out / "teacher" / f"seed{seed}.json", plan.ground(seed)
    marks = {"weights": fingerprint(ground.teacher), "data": getattr(ground.train, "fingerprint", "")}
    found = read(file)
    if found and found["marks"] != marks:
        raise Refused(f"{' and '.join('teacher' if k == 'weights' else k for k in marks if marks[k] != found['marks'][k])} "
                      f"changed since {plan.out} was begun", "name another folder with --out, or bring the old ones back")
    if not found:
        logits, y = answers(ground.teacher, ground.test)
        first = read(plan.out / "teacher" / f"seed{plan.seeds[0]}.json") or {}
        found = {
            **numbers(logits, y), "says": logits.argmax(-1).tolist(), "marks": marks, "words": ground.words,
            "classes": ground.classes, "shape": list(ground.shape),
            "cost": first.get("cost") or _measured(ground.teacher, ground.shape),
            "images": {**{part: len(getattr(ground, part)) for part in ("train", "valid", "test")},
                       "labelled": int((targets(ground.train) != UNLABELLED).sum())}}
        write(file, found)
    return found


def updates_done(history: list[dict[str, Any]]) -> int:
    """Updates that a log tells of, over all its loops."""
    last: dict[str, int] = {}
    for line in history:
        last[line["loop"]] = max(last.get(line["loop"], 0), line["step"] + 1)
    return sum(last.values())


def curve(history: list[dict[str, Any]]) -> list[list[float]]:
    """[update, validation accuracy in percent] along a run; its loops one after the other."""
    begun: dict[str, int] = {}
    ends: dict[str, int] = {}
    points = []
    for line in history:
        begun.setdefault(line["loop"], sum(ends.values()))
        ends[line["loop"]] = line["step"] + 1
        if math.isfinite(line.get("valid", math.nan)):
            points.append([begun[line["loop"]] + line["step"] + 1, line["valid"]])
    return points


def _train(plan: Plan, contestant: Contestant, fields: dict[str, Any], seed: int, folder: Path,
           bar: Bar) -> tuple[Module, dict[str, Any]]:
    """One run in its folder, from its checkpoint if there is one. Raises whatever the contestant raises."""
    ground = plan.ground(seed)
    resume = (folder / "checkpoint.pt").exists()
    if not resume and folder.exists():
        shutil.rmtree(folder)                          # killed before its first checkpoint
    valid, total = some(ground.valid, WATCHED), sum(v for k, v in fields.items() if is_loop(k))
    every = max(1, total // POINTS)

    def watch(kept: dict[str, Any]) -> float:
        bar.tick(every)
        logits, y = answers(_learner(kept), valid)
        return right(logits, y) if logits.shape == (len(y), len(ground.classes)) else math.nan

    bar.begin(total)
    run = Run(folder, seed=seed, resume=resume, watch={"valid": watch}, every=every, **plan.options)
    made = call(contestant, run, fields, ground)
    bar.end()
    if not isinstance(made, Module):
        raise TypeError(f"it made a {type(made).__name__}, not a network")
    if contestant.role == "method" and hasattr(recipe.module(contestant.recipe), "choose"):
        recipe.module(contestant.recipe).choose(made, ground.valid)        # what the paper sets on validation samples
    return made, {"updates": updates_done(run.history), "seconds": run.seconds, "initial": fingerprint(ground.student),
                  "curve": curve(run.history)}


def _note(plan: Plan, contestant: Contestant, seed: int, facts: dict[str, Any], folder: Path) -> None:
    """Make the cell's folder one that `stillroom measure` and `run:FOLDER` understand: settings.yaml and run.json."""
    ground, name = plan.ground(seed), contestant.recipe
    options = {**settings.defaults(name).options, **plan.options, **plan.reading, "seed": seed}
    actors = {a: plan.named[a] for a in contestant.actors}
    (folder / "settings.yaml").write_text(
        settings.write(settings.Settings(name, actors, facts["fields"], options, frozenset())), encoding="utf-8")
    write(folder / "run.json", {
        "recipe": name, "state": "finished", "actors": actors, "fields": facts["fields"], "options": options, "trial": False,
        "data": {"words": ground.words, "fingerprint": getattr(ground.train, "fingerprint", ""), "shape": ground.shape},
        "versions": versions(), "threads": torch.get_num_threads(), "cwd": str(Path.cwd()),
        "seconds": {"steps": facts["seconds"]},
        "command": repeat(plan, contestant, seed, facts["fields"]),
        "result": {"accuracy": facts["accuracy"], "samples": len(ground.test)}})


def _learner(kept: dict[str, Any]) -> Module:
    """The network that learns: the one kept as `student`, else the first that is kept."""
    return kept["student"] if isinstance(kept.get("student"), Module) else next(k for k in kept.values() if isinstance(k, Module))


def _from_trial(plan: Plan, contestant: Contestant, fields: dict[str, Any], seed: int, folder: Path) -> None:
    """A run that was a trial of the tuning goes on from the trial's last checkpoint, with nothing left to train."""
    if contestant.recipe != "kd" or seed != plan.seeds[0] or folder.exists():
        return
    for file in (plan.out / "tuning").glob("*/result.json"):
        if (read(file) or {}).get("fields") == json.loads(json.dumps(fields)) and file.with_name("checkpoint.pt").exists():
            new = folder.with_name(folder.name + ".new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(file.parent, new, ignore=shutil.ignore_patterns("result.json"))
            return os.replace(new, folder)


def _tuned(plan: Plan) -> dict[str, float]:
    chosen = (read(plan.out / "tuning.json") or {}).get("chosen")
    if not chosen:
        raise RuntimeError("no trial of its tuning reached its end")
    return chosen


def _cost(plan: Plan, made: Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the student costs; measured once for all students that are built alike, or chance would tell them apart."""
    key = architecture(made)
    if not plan.costs.get(key):
        plan.costs[key] = _measured(made, shape)
    return {"architecture": key, "cost": plan.costs[key]}


def _measured(net: Module, shape: tuple[int, ...]) -> dict[str, Any]:
    if isinstance(net, Cached):
        return net.cost
    return measure.cost(net, shape, seconds=2.0)


def _log(folder: Path) -> list[dict[str, Any]]:
    file = folder / "log.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _told(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"
