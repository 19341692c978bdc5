"""From settings to what plays: the recipe with its fields, its actors, the judges; and the folder that keeps all of it."""

import copy
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Subset

from stillroom import ranks, recipe, saved, settings, status, zoo
from stillroom.arenas import Cast
from stillroom.batches import targets, to_device, whole
from stillroom.errors import Refused
from stillroom.measure import Proof, accuracy, answers
from stillroom.measure.cost import placed, resting, samples
from stillroom.measure.segmentation import mean_iou, segmented
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.pairs import by_label
from stillroom.parts.teachers import Cached
from stillroom.recipe import Recipe
from stillroom.run import Run
from stillroom.settings import ALONE, Settings
from stillroom.store import origin
from stillroom.zoo import language
from stillroom.zoo.specs import moved


@dataclass(frozen=True)
class Job:
    """Everything that is there before the first step."""

    settings: Settings
    recipe: Recipe
    actors: dict[str, Any]
    words: str                                # what the data are
    fingerprint: str = ""                     # of the data
    classes: list[str] | None = None
    shape: tuple[int, ...] | None = None      # of one sample
    valid: Any = None                         # data set, where there is one
    test: Any = None
    cast: Cast | None = None                  # of the recipe's own trial
    proof: Callable[[Any, Any], Proof] | None = None


# --- who plays -------------------------------------------------------------------------------------------------------

def prepare(chosen: Settings) -> Job:
    """Build actors and data from their names, or the recipe's own trial when none is named. Raises `Refused`."""
    _sound(chosen)
    return _named(*stored(chosen)) if chosen.actors else _trial(chosen)


def stored(chosen: Settings) -> tuple[Settings, dict[str, Any]]:
    """The settings of a run whose teacher is a store, with the store's data and how they were read where nothing else is said;
    and the store's origin, for its views. Raises `Refused`."""
    if "data" not in {a.name for a in settings.signature(chosen.recipe)[0]}:
        return chosen, {}
    teachers = [spec for name, spec in chosen.actors.items() if name != "data"]
    data, reading, told = origin.brought(teachers, chosen.actors.get("data"))
    options = chosen.options | {k: v for k, v in reading.items() if k not in chosen.given}
    return replace(chosen, actors={**({"data": data} if data else {}), **chosen.actors}, options=options), told


def _sound(chosen: Settings) -> None:
    """Numbers that no run can have, whatever the recipe. Raises `Refused`."""
    least = {"steps": 1, "batch": 1, **{k: 0 for k in chosen.fields if k.startswith("steps_")},
             "accumulate": 1, "every": 1, "workers": 0, "save_every": 0, "size": 0, "channels": 0}
    for name, value in {**chosen.fields, **chosen.options}.items():
        if name in least and not value >= least[name]:
            raise Refused(f"--{name.replace('_', '-')} {value}", f"{least[name]} at least")


def _trial(chosen: Settings) -> Job:
    if chosen.recipe == ALONE:
        raise Refused("teach needs --student and --data", "e.g. stillroom teach --student small:cnn --data digits")
    module = recipe.module(chosen.recipe)
    method, cast = module.trial(chosen.options["seed"])
    method = replace(method, **{k: v for k, v in chosen.fields.items() if k in chosen.given})
    judges = vars(cast)
    sample = judges["test"][0][0] if "test" in judges else None
    shape = tuple(sample.shape) if isinstance(sample, Tensor) else None
    return Job(replace(chosen, fields=asdict(method)), method, cast.actors, cast.data, shape=shape,
               valid=judges.get("valid"), test=judges.get("test"), cast=cast, proof=module.proof)


def _named(chosen: Settings, views: dict[str, Any]) -> Job:
    actors, _ = settings.signature(chosen.recipe)
    missing = ["--" + a.name.replace("_", "-") for a in actors if a.default is ... and a.name not in chosen.actors]
    if missing:
        own = "" if chosen.recipe == ALONE else ", or leave all actors out to run on the recipe's own trial"
        raise Refused(f"{chosen.recipe} also needs {' and '.join(missing)}", f"name them{own}")
    data = next((a.name for a in actors if a.type == "Dataset" and a.name in chosen.actors), None)
    others = ", ".join(chosen.actors[a.name] for a in actors if a.name in chosen.actors and "Module" not in a.type)
    speaks, made = language.speaker(chosen.actors), dict[str, Any]()
    known, context = (read(language.told(chosen.actors[data], speaks), chosen.options) if data
                      else ({"words": others or "no data"}, {}))
    context |= {"pretrained": chosen.options["pretrained"], "speaks": speaks}
    for actor in actors:
        if actor.name == data:
            made[data] = origin.shown(views, known.pop("train"))
            known["words"] += origin.described(views)
        elif actor.name in chosen.actors:
            torch.manual_seed(_number(chosen.options["seed"], actor.name))        # a resumed run begins with the same network
            made[actor.name] = zoo.actor(actor.type, chosen.actors[actor.name], **context)
    for teacher in [t for one in made.values() for t in (one if isinstance(one, list) else [one]) if isinstance(t, Cached)]:
        teacher.belongs(data=made[data] if data else None)
    return Job(chosen, recipe.load(chosen.recipe)(**chosen.fields), made, **known)


def read(spec: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a job knows of its data, and what models are told of them. One split for every seed: no image that a student is
    tested on was in its teacher's training."""
    skip = options["skip_corrupt"]
    parts = zoo.splits(spec, size=options["size"] or None, channels=options["channels"] or None, skip_corrupt=skip)
    train, shape = parts.train, tuple(parts.train.shape)
    known = {"train": train, "valid": parts.valid, "test": parts.test, "words": train.words, "fingerprint": train.fingerprint,
             "classes": train.classes, "shape": shape}
    images = {"channels": shape[0], "size": shape[1:]} if len(shape) == 3 else {}
    return known, {"classes": train.classes or None, "skip_corrupt": skip, **images}


def _number(*words: Any) -> int:
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "little") >> 1


# --- judges ----------------------------------------------------------------------------------------------------------

def judges(job: Job) -> dict[str, Callable[[dict[str, Any]], float]]:
    """What `--watch` names, as functions of the kept things. Raises `Refused` when there is nothing to judge by."""
    names = job.settings.options["watch"]
    if names and not labelled(job.valid):
        raise Refused(f"--watch needs a validation split with labels; {job.words} has none", "leave --watch out")
    known = {"accuracy": accuracy, "loss": loss}
    return {name: partial(_watched, known[name], by_label(job.valid)[0]) for name in names}


def _watched(judge: Callable[[Module, Any], float], data: Any, things: Mapping[str, Any]) -> float:
    return judge(learner(things), data)


def labelled(data: Any) -> int:
    """How many samples have a class; 0 of bare images, or where samples have something else than one class each."""
    if data is None or isinstance(data, Tensor) or not len(data) or getattr(data, "targets", ...) is None:
        return 0
    try:
        y = targets(data)
    except (TypeError, ValueError, RuntimeError):
        return 0
    return int((y != UNLABELLED).sum()) if y.ndim == 1 else 0


def learner(things: Mapping[str, Any]) -> Module:
    """The network that learns, among the kept things. Raises `Refused` where no one of them is the student."""
    found = {k: v for k, v in things.items() if isinstance(v, Module)}
    if "student" in found or len(found) == 1:
        return found.get("student") or next(iter(found.values()))
    raise Refused(f"--watch cannot tell which of {', '.join(found) or 'nothing'} is the student", "leave --watch out")


def loss(model: Module, data: Any) -> float:
    """Mean cross-entropy, in nats."""
    return F.cross_entropy(*answers(model, data)).item()


def classifies(made: Any, data: Any) -> bool:
    """Whether what was made gives one logit a class for samples of this data set, and the data set has labels."""
    if not isinstance(made, Module) or not labelled(data) or labelled(data) < len(data):
        return False
    if isinstance(made, Cached):
        return True
    x, y = whole(Subset(data, range(min(2, len(data)))))
    out = _tried(made, x)
    return isinstance(out, Tensor) and out.shape[:-1] == y.shape


def segments(made: Any, data: Any) -> bool:
    """Whether what was made gives every pixel of these images logits, and the images have masks."""
    if not isinstance(made, Module) or getattr(data, "kind", "") != "images with masks":
        return False
    x, y = whole(Subset(data, range(min(2, len(data)))))
    out = _tried(made, x)
    return isinstance(out, Tensor) and out.ndim == 4 and out.shape[2:] == y.shape[1:]


def takes(model: Module, sample: Any) -> bool:
    """Whether a model takes a batch of such samples and nothing else."""
    return _tried(model, samples(sample, 2)) is not None


def _tried(model: Module, x: Any) -> Any:
    try:
        with resting(model):
            return model(to_device(x, placed(model)))
    except (TypeError, RuntimeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError):
        return None


def result(job: Job, made: Any) -> dict[str, Any]:
    """What was reached: accuracy or mIoU on the test split, or the proof of the recipe's own trial."""
    if job.cast is not None and job.proof is not None:
        found = job.proof(made, job.cast)
        return {**asdict(found), "holds": found.holds}
    if segments(made, job.test):
        return {"mIoU": mean_iou(segmented(made, job.test)), "samples": len(job.test)}
    return {"accuracy": accuracy(made, job.test), "samples": len(job.test)} if classifies(made, job.test) else {}


def say(found: Mapping[str, Any]) -> str:
    """A result in one line."""
    if "beats" in found:
        return status.say(found)
    if "mIoU" in found:
        return f"{found['mIoU']:.2f} % mIoU of {found['samples']} test images"
    if "accuracy" in found:
        return f"{found['accuracy']:.2f} % of {found['samples']} test samples right"
    return "nothing here judges what was made"


# --- what was made ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Finished:
    """A student, and what it is judged by."""

    student: Module
    teacher: Module | None = None
    test: Any = None             # data set, where there is one
    words: str = "no data: name some with --data"
    sample: Any = None           # shape of one sample, or one sample of named tensors; None when it is not known


def finished(folder: Path, *, data: str = "", teacher: str = "") -> Finished:
    """The student in a folder, with the test split and the teacher of its run, or those that are named. Raises `Refused`."""
    if not (folder / "student.json").exists():
        state = facts(folder)["state"]
        raise Refused(f"{folder} holds no network: its run is {state}",
                      "what it made is in made.json" if state == "finished" else f"stillroom run --resume {folder}")
    file = folder / "settings.yaml"
    chosen = reopen(folder) if file.exists() else settings.defaults(ALONE)
    found = _own(folder, chosen, data) if file.exists() else Finished(saved.load(folder))
    net: Any = found.student
    context: dict[str, Any] = {}
    if data:
        reading = dict(chosen.options)
        if net.expects and not reading["size"]:
            reading |= {"channels": net.expects[0], "size": net.expects[1:]}
        known, context = read(data, reading)
        found = replace(found, test=known["test"], words=known["test"].words)
    sample = sample_of(found.test) or net.expects
    if teacher:
        net = zoo.actor("Module", teacher, **context, pretrained=chosen.options["pretrained"])
        found = replace(found, teacher=net.eval())
    return replace(found, sample=sample)


def _own(folder: Path, chosen: Settings, data: str) -> Finished:
    """The student of a run, with the data and the teacher that it had."""
    job = prepare(chosen)
    if not data and job.fingerprint != facts(folder)["data"]["fingerprint"]:
        raise Refused(f"the data of {folder} have changed: now {job.words}", "put them back, or name some: --data SPEC")
    teacher = job.actors.get("teacher")
    return Finished(_load(folder, [a for a in job.actors.values() if isinstance(a, Module)]),
                    teacher.eval() if isinstance(teacher, Module) else None, job.test,
                    getattr(job.test, "words", job.words))


def _load(folder: Path, actors: list[Module]) -> Module:
    """The student, rebuilt by its origin, or else into that actor of its run which it fits."""
    try:
        return saved.load(folder)
    except Refused as error:
        for actor in actors:
            try:
                return saved.load(folder, into=copy.deepcopy(actor))
            except Refused:
                continue
        raise error


def sample_of(data: Any) -> Any:
    """The shape of one sample, or one sample of named tensors; None where there is none."""
    if data is None or not len(data):
        return None
    x = data[0][0]
    return {k: torch.as_tensor(v) for k, v in x.items()} if isinstance(x, Mapping) else tuple(x.shape)


# --- the folder ------------------------------------------------------------------------------------------------------

def new_folder(name: str, wanted: str) -> Path:
    """The folder for a run: the wanted one, which must be new or empty, or the next runs/NAME-n. Raises `Refused`."""
    try:
        if wanted:
            folder = Path(wanted)
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "run.json").exists():
                raise Refused(f"{folder} already holds a run", f"stillroom run --resume {folder}, or name another folder")
            if any(folder.iterdir()):
                raise Refused(f"{folder} is not empty", "name a new or an empty folder")
            return folder
        number = 1
        while True:
            try:
                folder = Path("runs") / f"{name}-{number}"
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        raise Refused(f"{wanted or 'runs'} cannot be made: {error.strerror}", "give --folder one you may write to") from error


def note(folder: Path, **facts: Any) -> dict[str, Any]:
    """Add facts to the folder's run.json, atomically, on the first rank; returns all of them."""
    file = folder / "run.json"
    if not ranks.first():
        return facts
    content = {**(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}), **facts}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, file)
    return content


def facts(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises `Refused` when the folder holds no run."""
    file = folder / "run.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        wrong = "is damaged" if file.exists() else "does not exist"
        near = get_close_matches(str(folder), [str(p.parent) for home in (folder, folder.parent, Path("runs"))
                                               for p in home.glob("*/run.json")], n=1)
        raise Refused(f"{file} {wrong}", f"did you mean {near[0]!r}?" if near else "make a run: stillroom run kd") from error


def reopen(folder: Path) -> Settings:
    """The settings of a run. A path that is not here but lies where the run began is meant from there. Raises `Refused`."""
    said = facts(folder)
    chosen, began = settings.read(folder / "settings.yaml", said["recipe"]), Path(said["cwd"])
    return replace(chosen, actors={name: moved(spec, began) for name, spec in chosen.actors.items()})


def carry_out(job: Job, folder: Path, *, show: bool = True) -> dict[str, Any]:
    """Run a job in its folder, from its start or from its last checkpoint, and keep all that is known of it. Returns run.json.

    Raises `Refused` before any step, `Diverged` or `KeyboardInterrupt` out of one; run.json then says so.
    """
    fresh, resume = ranks.once(lambda: (not (folder / "run.json").exists(), (folder / "checkpoint.pt").exists()))
    options, began = job.settings.options, time.perf_counter()
    if ranks.first():
        if not resume:
            (folder / "log.jsonl").unlink(missing_ok=True)    # lines of a run that was stopped before it could save
        (folder / "settings.yaml").write_text(settings.write(job.settings), encoding="utf-8")
    note(folder, recipe=job.settings.recipe, state="running", actors=job.settings.actors, fields=job.settings.fields,
         options=options, data={"words": job.words, "fingerprint": job.fingerprint, "shape": job.shape},
         versions=status.versions(), trial=job.cast is not None, threads=torch.get_num_threads(),
         command=shlex.join(["stillroom", *sys.argv[1:]]),
         **({"began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cwd": str(Path.cwd())} if fresh else {}))
    try:
        run = Run(folder, seed=options["seed"], device=options["device"], precision=options["precision"],
                  accumulate=options["accumulate"], compile=options["compile"], shard=options["shard"],
                  save_every=options["save_every"], watch=judges(job), every=options["every"], trackers=options["trackers"],
                  workers=options["workers"], show=show, resume=resume)
        made = job.recipe(run, **job.actors)
    except Refused:
        if fresh and ranks.first() and not (folder / "log.jsonl").exists():
            shutil.rmtree(folder)                             # nothing was begun: leave nothing behind
        raise
    except KeyboardInterrupt:
        note(folder, state="stopped")
        if (folder / "checkpoint.pt").exists():
            raise
        raise KeyboardInterrupt(f"before the first checkpoint. Go on with: stillroom run --resume {folder}") from None
    except FloatingPointError as error:
        note(folder, state="diverged", error=str(error))
        raise
    except BaseException as error:
        note(folder, state="failed", error=f"{type(error).__name__}: {error}")
        raise
    if ranks.first():
        saved.save(made, folder, origin=getattr(made, "origin", None), classes=job.classes, shape=job.shape)
    found = result(job, made)
    if (shows := found.pop("shows", None)) and ranks.first():
        saved.save(shows(), folder / "shown")
    return note(folder, state="finished", device=str(run.device), seconds={"steps": round(run.seconds, 3),
                "all": round(time.perf_counter() - began, 3)}, result=found)
