"""What is settled before the first step: who takes part, with which fields, on what, at which budget, in which folder."""

import ast
import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import Module

from stillroom import checks, recipe, settings
from stillroom.comparison.files import read, write
from stillroom.comparison.ground import Ground, ground
from stillroom.comparison.judge import fingerprint
from stillroom.errors import Refused, nearest
from stillroom.recipe import Field
from stillroom.run import Run
from stillroom.store import origin

FORMAT = 1
ALONE, TUNED = "alone", "kd_tuned"
ACTORS = ("student", "teacher", "data")
GRID = {"alpha": (0.5, 0.9, 1.0), "temperature": (1.0, 2.0, 4.0)}      # of the tuned KD
READING = ("size", "channels", "pretrained", "skip_corrupt")           # how the zoo reads; the other options are the run's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A recipe with its fields, as it was named."""

    name: str                 # "nkd_uskd:gamma=1.0"
    recipe: str               # "nkd_uskd"; "alone" is no recipe but the baseline
    role: str                 # "alone", "tuned", "method"
    changed: dict[str, Any]   # fields that differ from the paper's defaults

    @property
    def kind(self) -> type:
        return recipe.load(self.recipe)

    @property
    def described(self) -> list[Field]:
        return recipe.fields(self.recipe)

    @property
    def actors(self) -> list[str]:
        return [a.name for a in recipe.actors(self.recipe) if a.name in ACTORS]

    @property
    def slug(self) -> str:
        """A folder's name: readable, and another one for other fields."""
        mark = "-" + blake2b(self.name.encode(), digest_size=3).hexdigest() if ":" in self.name else ""
        return re.sub(r"\W+", "_", self.name.partition(":")[0]) + mark

    def fields(self, updates: int, **more: Any) -> dict[str, Any]:
        """All fields, with the budget shared out over its loops. `more`: the batch, and what the tuning found."""
        defaults = {f.name: f.default for f in self.described}
        return {**defaults, **self.changed, **more, **share(updates, {k: v for k, v in defaults.items() if is_loop(k)})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is settled before the first step."""

    contestants: list[Contestant]
    seeds: list[int]
    budget: tuple[str, float]                  # ("steps", 600) or ("seconds", 300.0)
    batch: int
    out: Path
    ground: Callable[[int], Ground]            # of a seed
    options: dict[str, Any]                    # of every Run
    reading: dict[str, Any]                    # of the zoo
    named: dict[str, str]                      # the user's actors, when all of them have names
    settings: dict[str, Any]                   # what must not change while the folder is in use
    command: str
    updates: dict[str, int | None] = dataclasses.field(default_factory=dict)     # by contestant; None: could not be timed
    timed: dict[str, Any] = dataclasses.field(default_factory=dict)              # seconds of an update, or what went wrong
    costs: dict[str, Any] = dataclasses.field(default_factory=dict)              # by architecture

    @property
    def cells(self) -> list[tuple[Contestant, int]]:
        return [(c, seed) for seed in self.seeds for c in self.contestants]

    @property
    def tuned(self) -> Contestant:
        return next(c for c in self.contestants if c.role == "tuned")

    def folder(self, contestant: Contestant, seed: int) -> Path:
        return self.out / "runs" / contestant.slug / f"seed{seed}"


def plan(methods: Sequence[str], given: dict[str, Any], *, regime: str, seeds: int, budget: int | str, batch: int, shared: str,
         out: str | Path, options: dict[str, Any]) -> Plan:
    """Settle everything that needs no training. Raises `Refused`."""
    for name, value in (("seeds", seeds), ("batch", batch)):
        if value < 1:
            raise Refused(f"{name}={value}", "a whole number from 1")
    teachers = [given["teacher"]] if isinstance(given["teacher"], str) else []
    named, reading, _ = origin.brought(teachers, given["data"])
    given, options = {**given, "data": named}, {**options, **{k: v for k, v in reading.items() if not options[k]}}
    if given["data"] and not (given["teacher"] and given["student"]):
        raise Refused("data of your own need a teacher and a student of your own",
                      "add --teacher and --student (`stillroom teach` makes a teacher), or leave out --data to use the digits")
    if given["data"] and regime != "few":
        raise Refused(f"regime {regime!r} is one of the digits arena", "leave it out: your data are what they are")
    unit, amount = parse_budget(budget)
    contestants = _contestants(methods, shared)
    for c in contestants:
        c.fields(int(amount) if unit == "steps" else 10**6)          # refuses a budget that cannot be shared out
    data = given["data"] if isinstance(given["data"], str) else called(given["data"])
    out = Path(out or "compare/" + _slug(data or f"digits-{regime}") + "-" + _slug(str(budget)))
    reading = {k: options[k] for k in READING}
    words = {"regime": regime, "seeds": seeds, "budget": budget, "batch": batch, "shared": shared, **options}
    unchanging = {"actors": {k: v if isinstance(v, str) else called(v) for k, v in given.items()},
                  "regime": "" if data else regime, "budget": f"{amount:g} {unit}", "batch": batch, "shared": shared, **options,
                  "fields": {c.name: c.fields(10**6) for c in contestants}}
    return Plan(
        contestants=contestants, seeds=list(range(seeds)), budget=(unit, amount), batch=batch, out=out, settings=unchanging,
        reading=reading, named=dict(given) if all(isinstance(v, str) and v for v in given.values()) else {},
        ground=lru_cache(maxsize=1)(lambda seed: ground(given, regime, seed, reading)),
        options={k: v for k, v in options.items() if k not in READING},
        command=_command(methods, given, words, out))


def parse_budget(budget: int | str) -> tuple[str, float]:
    """`600`, `"600 steps"` → ("steps", 600); `"300s"`, `"10m"`, `"2h"` → ("seconds", …). Raises `Refused`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|s|m|min|h)?\s*", str(budget))
    number, unit = (float(found[1]), found[2] or "steps") if found else (0.0, "")
    if not number or (unit.startswith("step") and number != int(number)):
        raise Refused(f"budget {str(budget)!r} is not understood", "updates per run (600) or time per run (300s, 10m, 2h)")
    return ("steps", number) if unit.startswith("step") else ("seconds", number * {"s": 1, "m": 60, "min": 60, "h": 3600}[unit])


def share(total: int, loops: dict[str, int]) -> dict[str, int]:
    """`total` updates over several loops in the proportion of their defaults; at least one each. Raises `Refused`."""
    if total < len(loops):
        raise Refused(f"a budget of {total} updates cannot be shared by {len(loops)} loops ({', '.join(loops)})",
                      "give a larger --budget")
    weights = np.array(list(loops.values()), dtype=float)
    exact = weights / weights.sum() * (total - len(loops))
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: total - len(loops) - whole.sum()]] += 1
    return {name: int(n) + 1 for name, n in zip(loops, whole, strict=True)}


def is_loop(field: str) -> bool:
    """A field that is the length of a loop."""
    return field == "steps" or field.startswith("steps_")


# --- who takes part --------------------------------------------------------------------------------------------------


def _contestants(methods: Sequence[str], shared: str) -> list[Contestant]:
    """The two baselines, then the methods. Raises `Refused` for whoever cannot take part."""
    named = {m.partition(":")[0]: m for m in methods if m.partition(":")[0] in (ALONE, TUNED)}
    specs = [named.get(ALONE, ALONE), named.get(TUNED, TUNED), *(m for m in methods if m not in named.values())]
    for spec in specs:
        if specs.count(spec) > 1:
            raise Refused(f"{spec!r} is named twice", f"name it once, or give it other fields: {spec.partition(':')[0]}:lr=0.01")
    common = assignments(shared)
    found = [_contestant(spec, common) for spec in specs]
    for field in common:
        if not any(field == f.name for c in found for f in c.described):
            raise Refused(f"no contestant has a field {field!r}", nearest(field, {f.name for c in found for f in c.described}))
    return found


def _contestant(spec: str, common: dict[str, str]) -> Contestant:
    name, _, changes = spec.partition(":")
    role = name if name == ALONE else "tuned" if name == TUNED else "method"
    one = Contestant(name=spec, recipe="kd" if role == "tuned" else name, role=role, changed={})
    if role == "method":
        _fits(name)
    known = {f.name: f for f in one.described}
    loops = [k for k in known if is_loop(k)]
    if not loops or "batch" not in known:
        lacks = "batch" if loops else "steps"
        raise Refused(f"{name} cannot take part: without a field {lacks} no budget can be equal",
                      f"try it with `stillroom run {name}`")
    fixed = {**dict.fromkeys(loops, "--budget"), "batch": "--batch",
             **dict.fromkeys(GRID if role == "tuned" else (), "the tuning")}
    own = assignments(changes)
    for field in [*own, *(f for f in common if f in loops or f == "batch")]:
        if field in fixed:
            why = "a KD with a weight of its own is `kd:alpha=0.5`" if field in GRID else "it is equal for all"
            raise Refused(f"{spec}: {field} is set by {fixed[field]}", f"leave out {field}: {why}")
        if field not in known:
            raise Refused(f"{name} has no field {field!r}", nearest(field, known))
    wanted = {**{k: v for k, v in common.items() if k in known and k not in fixed}, **own}
    return dataclasses.replace(one, changed={k: _value(f"{name}:{k}", text, known[k]) for k, text in wanted.items()})


def _fits(name: str) -> None:
    """Can this recipe make a student from teacher, student and data? Raises `Refused`."""
    actors = recipe.actors(name)
    strange = [a.name for a in actors if a.default is ... and a.name not in ACTORS]
    if strange or "student" not in {a.name for a in actors}:
        why = f"it also needs {', '.join(strange)}" if strange else "it makes no student"
        raise Refused(f"{name} cannot take part: {why}",
                      f"compare takes methods whose actors are student, teacher and data; try it with `stillroom run {name}`")


def assignments(text: str) -> dict[str, str]:
    """`"gamma=1.0,betas=(0.9,0.99)"` → {"gamma": "1.0", "betas": "(0.9,0.99)"}. Raises `Refused`."""
    pairs = [p.partition("=") for p in re.split(r",(?![^([]*[)\]])", text) if p.strip()]
    if any(not sign or not value.strip() for _, sign, value in pairs):
        raise Refused(f"{text!r} is not understood", "fields are given as name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _value(where: str, text: str, field: Field) -> Any:
    """A field's value from its text, of the field's type. Raises `Refused`."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    return settings.typed(text if field.type == "str" else value, settings.hint(field.type), where)


# --- the folder ------------------------------------------------------------------------------------------------------


def claim(plan: Plan) -> None:
    """A folder belongs to one comparison: the same settings go on in it, others are refused with what changed."""
    old = read(plan.out / "plan.json")
    if old is None:
        if plan.out.exists() and any(plan.out.iterdir()):
            raise Refused(f"{plan.out} is not empty and holds no comparison", "name another folder with --out")
    elif old["format"] != FORMAT:
        raise Refused(f"{plan.out} has format {old['format']}, this version writes {FORMAT}", "name another folder with --out")
    else:
        before, now = _flat(old["settings"]), _flat(json.loads(json.dumps(plan.settings)))
        changed = [f"{k} was {before[k]!r}, is {now[k]!r}" for k in now if k in before and before[k] != now[k]]
        if changed:
            raise Refused(f"{plan.out} holds a comparison with other settings: {'; '.join(changed)}",
                          "name another folder with --out, delete this one, or give the same settings")
        plan.timed.update(old["timed"])
        plan.settings["fields"] = {**old["settings"]["fields"], **plan.settings["fields"]}
    first, kd = plan.ground(0), plan.tuned                          # refused before anything is written: actors that do not fit
    checks.before(kd.kind(), Run(**plan.options), first.actors(kd.actors))
    _keep(plan)


def budgets(plan: Plan) -> None:
    """How many updates each contestant gets: the budget itself, or what fits into its time by a measured update."""
    unit, amount = plan.budget
    for c in plan.contestants:
        if unit == "seconds" and c.name not in plan.timed:
            try:
                plan.timed[c.name] = _update_seconds(plan, c, min(1.0, amount / 20))
            except Exception as error:                               # it fails in its own row, not for all
                plan.timed[c.name] = f"{type(error).__name__}: {error}"
        took = plan.timed.get(c.name, 0.0)
        plan.updates[c.name] = int(amount) if unit == "steps" else None if isinstance(took, str) else max(1, int(amount / took))
    _keep(plan)


def call(contestant: Contestant, run: Run, fields: dict[str, Any], ground: Ground) -> Any:
    """Use the contestant on fresh copies of the ground's actors."""
    return contestant.kind(**fields)(run, **ground.actors(contestant.actors))


def _update_seconds(plan: Plan, contestant: Contestant, enough: float) -> float:
    """Seconds of one update, measured in memory: more and more until `enough` seconds are full; the first do not count."""
    updates = 8
    while True:
        run = Run(seed=0, **plan.options)
        call(contestant, run, contestant.fields(updates, batch=plan.batch), plan.ground(0))
        if updates > 8 and (run.seconds > enough or updates > 50_000):
            return run.seconds / updates
        updates *= 4


def _keep(plan: Plan) -> None:
    write(plan.out / "plan.json", {"format": FORMAT, "settings": plan.settings, "timed": plan.timed})


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{path}{key} ") if isinstance(value, dict) else {path + key: value})
    return flat


# --- in words --------------------------------------------------------------------------------------------------------

DEFAULTS = {"regime": "few", "batch": 64, "shared": "", "device": "auto", "precision": "fp32", "accumulate": 1, "workers": 0,
            "save_every": 300.0, "size": 0, "channels": 0, "pretrained": False, "skip_corrupt": False}


def _command(methods: Sequence[str], given: dict[str, Any], values: dict[str, Any], out: Path) -> str:
    """The command line of this comparison; of the options only those that differ from their defaults."""
    words = ["stillroom", "compare", *methods]
    for name, value in given.items():
        if value:
            words += [f"--{name}", value if isinstance(value, str) else f"<{called(value)}>"]
    for name, value in values.items():
        if name not in DEFAULTS or value != DEFAULTS[name]:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*words, "--out", str(out)])


def repeat(plan: Plan, contestant: Contestant, seed: int, fields: dict[str, Any]) -> str:
    """The command that does one run again in a folder of its own: tuned values and measured updates are named outright."""
    name = contestant.name
    if contestant.role == "tuned" and fields:
        name = "kd:" + ",".join(f"{k}={v}" for k, v in {**contestant.changed, **{k: fields[k] for k in GRID}}.items())
    words = shlex.split(plan.command)
    options = words[next(i for i, w in enumerate(words) if w.startswith("--")) :]
    options[options.index("--out") + 1] = "again"
    options[options.index("--budget") + 1] = str(plan.updates[contestant.name] or options[options.index("--budget") + 1])
    return shlex.join(["stillroom", "compare", *([] if name in (ALONE, TUNED) else [name]), *options, "--only", f"{name}/{seed}"])


def called(thing: Any) -> str:
    """A name for what came from Python; another one when its weights are others."""
    kind = getattr(thing, "__name__", type(thing).__name__) if thing else ""
    return f"{kind} {fingerprint(thing)}" if isinstance(thing, Module) else kind


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")
