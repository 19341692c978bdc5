"""distil: a recipe on your models and data, or on its own trial; `run --resume FOLDER` goes on"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom import recipe, settings
from stillroom.errors import Refused
from stillroom.recipe import Field
from stillroom.settings import Settings

if TYPE_CHECKING:
    from stillroom.job import Job

EXTRA = [
    Field("folder", "str", "", "where the run goes; runs/NAME-1, -2, … when left out"),
    Field("config", "str", "", "settings from a YAML file, such as another run's settings.yaml; flags win over it"),
    Field("quiet", "bool", False, "no progress"),
    Field("proof", "bool", True, "on its own trial: make what the recipe must beat, too, which may take longer than the run"),
]
MACHINE = ("device", "workers", "save_every", "compile", "shard", "trackers")      # what may change when a run goes on
ABOUT = """\
usage: stillroom run NAME [--student SPEC --teacher SPEC --data SPEC …] [--FIELD VALUE …] [--OPTION VALUE …]
       stillroom run --resume FOLDER
       stillroom run --config settings.yaml

A recipe's actors and fields are its flags: stillroom run NAME --help. Without actors it runs on its own trial, with nothing to
download. The folder then holds the student, run.json, settings.yaml, log.jsonl and the last checkpoint; Ctrl-C saves first.

  stillroom run kd
  stillroom run kd --student timm:resnet18 --teacher run:runs/teacher --data folder:images --alpha 0.5 --precision bf16
  stillroom run kd --student timm:resnet18 --teacher store:answers        its data and views with it: stillroom cache --help
  stillroom run kd --config runs/kd-1/settings.yaml --temperature 2 --watch accuracy --every 100 --trackers tensorboard
"""


def command(words: Sequence[str]) -> None:
    """`run` from words."""
    words = list(words)
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT)
        print(textwrap.fill("recipes  " + "  ".join(recipe.names()), 128, subsequent_indent=" " * 9))
        return
    if any(w == "--resume" or w.startswith("--resume=") for w in words):
        resume(words)
        return
    name, words = named(words)
    chosen, extra = settings.parse(name, words, command=f"stillroom run {name}", about=about(name), extra=EXTRA)
    begin(chosen, folder=extra["folder"], quiet=extra["quiet"], proof=extra["proof"])


def named(words: list[str]) -> tuple[str, list[str]]:
    """The recipe's name and the other words; the name may stand in the file of `--config` instead. Raises `Refused`."""
    if not words[0].startswith("-"):
        recipe.path(words[0])
        return words[0], words[1:]
    file = settings.value_of("--config", words)
    if not file:
        raise Refused("the recipe's name comes first", f"stillroom run NAME {words[0]} …; names: stillroom list")
    return settings.read(file).recipe, words


def about(name: str) -> str:
    """What stands above the flags."""
    card = recipe.card(name)
    return f"{card.short}: {card.title}\n{card.authors} — {card.venue} — {card.link}\n\nWithout actors it runs on its own trial."


def begin(chosen: Settings, *, folder: str, quiet: bool, proof: bool = True) -> None:
    """A new run."""
    from stillroom import job, ranks

    ranks.join()
    ready = job.prepare(chosen)
    if not ranks.first():
        pass
    elif ready.cast is not None:
        flags = " ".join(f"--{a.name.replace('_', '-')} …" for a in settings.signature(chosen.recipe)[0])
        print(f"{chosen.recipe} on its own trial: {ready.words}. On yours: {flags}")
    else:
        print(f"{chosen.recipe} on {ready.words}")
    finish(ready, ranks.once(lambda: job.new_folder(chosen.recipe, folder)), quiet, proof)


def resume(words: list[str]) -> None:
    """Go on with a run that was stopped; only what belongs to the machine may be changed."""
    from stillroom import job, ranks

    ranks.join()
    folder = Path(settings.value_of("--resume", words))
    said = job.facts(folder)
    if said["state"] == "finished":
        print(f"{folder} is finished: {job.say(said['result'])}")
        return
    chosen = job.reopen(folder)
    free = [replace(f, default=chosen.options[f.name]) for f in settings.options(chosen.recipe) if f.name in MACHINE]
    flags = [Field("resume", "str", "", "the run's folder"), *EXTRA[2:], *free]
    for word in words:
        flag = word[2:].partition("=")[0].replace("-", "_").removeprefix("no_")
        if flag in {*chosen.fields, *chosen.actors, *chosen.options, "config", "folder"} - set(MACHINE):
            raise Refused(f"--{flag} cannot be changed when a run goes on",
                          f"begin anew: stillroom run --config {folder / 'settings.yaml'} {word} …")
    found = settings.flags(flags, words, command="stillroom run --resume", about=f"Go on with {folder}.")
    chosen = replace(chosen, options={**chosen.options, **{f.name: found[f.name] for f in free}})
    ready = job.prepare(chosen)
    if ready.fingerprint != said["data"]["fingerprint"]:
        raise Refused(f"the data have changed since {folder} began: {ready.words}", "put them back, or begin a new run")
    finish(ready, folder, found["quiet"], found["proof"])


def finish(ready: "Job", folder: Path, quiet: bool, proof: bool) -> None:
    """Carry the job out and say what came of it."""
    from stillroom import job, ranks, report

    said = job.carry_out(ready if proof else replace(ready, proof=None), folder, show=not quiet)
    if not ranks.first():
        return
    print(f"{job.say(said['result'])}\n{folder}: {said['seconds']['all']:.0f} s")
    print(f"its page: {report.page(folder)}")
    if (folder / "student.json").exists() and job.labelled(ready.test):      # what both commands can judge
        print(f"next: stillroom measure {folder}   ·   stillroom export {folder} --onnx")
