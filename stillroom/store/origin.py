"""What a store says of its making, in names: by them its data and its views are had again."""

from pathlib import Path
from typing import Any

from stillroom.errors import Refused
from stillroom.store.augments import augment
from stillroom.store.reading import about
from stillroom.store.views import Views
from stillroom.zoo.specs import moved

KIND = "store:"      # what a teacher's name begins with when a store is meant
READING = ("size", "channels", "skip_corrupt")      # options by which data are read


def origin(folder: str | Path) -> dict[str, Any]:
    """By which names a store was made; {} of one that was written from Python. Raises `Refused` where there is no store.

    teacher, data             specs; a path that is not here but lies where the store was made is meant from there
    size channels skip_corrupt pretrained   how the zoo read them
    views augment mixup cutmix seed         of `Views`
    classes, cost             the names of the classes, what the teacher cost where it was asked
    """
    told = about(Path(folder)).get("origin")
    if not told:
        return {}
    return {**told, "data": moved(told["data"], told["cwd"]), "augment": [moved(word, told["cwd"]) for word in told["augment"]]}


def shown(told: dict[str, Any], data: Any) -> Any:
    """The data in the views of an origin."""
    if not told or not differs(told):
        return data
    return Views(data, augment(*told["augment"]) if told["augment"] else None, told["views"], told["seed"], told["mixup"],
                 told["cutmix"])


def differs(told: dict[str, Any]) -> bool:
    """Whether a view is another thing than the sample."""
    return bool(told["augment"] or told["mixup"] or told["cutmix"])


def described(words: dict[str, Any]) -> str:
    """The views of an origin, for people."""
    mixes = [f"{name} {words[name]:g}" for name in ("mixup", "cutmix") if words and words[name]]
    views = "views" if words and words["views"] > 1 else "view"
    return f", {words['views']} {views} each ({', '.join([*words['augment'], *mixes])})" if words and differs(words) else ""


def of_teachers(specs: list[str]) -> tuple[str, dict[str, Any]]:
    """The folder and the origin of the stores among teachers' names ("store:A", "store:A,store:B"), which must have the same
    data and views; ("", {}) when none is a store. Raises `Refused`."""
    folders = [part[len(KIND) :] for spec in specs for part in spec.split(",") if part.startswith(KIND)]
    for folder in folders[1:]:
        if about(Path(folder))["data"] != about(Path(folders[0]))["data"]:
            raise Refused(f"{folder} and {folders[0]} are stores of different data, or of different views of them",
                          "write both with the same --data, --views, --augment, --mixup, --cutmix and --seed")
    return (folders[0], origin(folders[0])) if folders else ("", {})


def brought(specs: list[str], data: str | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What a store among teachers' names brings: its data unless `data` are named, how the zoo read them, and its origin;
    ("", {}, {}) when none is a store. Raises `Refused` when it cannot say which data they are."""
    folder, told = of_teachers(specs)
    if folder and not told and not data:
        raise Refused(f"{folder} does not say of which data it is: it was written from Python", "name them: --data SPEC")
    return data or told.get("data", ""), {k: told[k] for k in READING if k in told}, told
