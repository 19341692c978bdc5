"""What the contestants of one seed share: teacher, student, splits."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom import arenas, checks
from stillroom.batches import ids, tagged, targets, to_device
from stillroom.errors import Refused
from stillroom.measure.cost import placed, resting
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.store import origin

REGIMES = {      # of the digits arena, in words
    "clean": "handwritten digits, all labels known",
    "few": "handwritten digits, fifty labels known",
    "noisy": "handwritten digits, two labels in five wrong",
    "weak": "handwritten digits, fifty labels known and a teacher that knew sixty",
}
ARENA_STUDENT = "small:mlp?hidden=32"      # as the zoo builds it again


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One seed's teacher, student and data."""

    train: Any
    valid: Any
    test: Any
    teacher: Module
    student: Module           # never trained: every contestant gets a copy, so all begin with the same weights
    words: str                # what the data are
    classes: list[str]
    shape: tuple[int, ...]    # of one sample

    def actors(self, wanted: Iterable[str]) -> dict[str, Any]:
        """Fresh copies of the networks, and the training split."""
        return {name: self.train if name == "data" else copy.deepcopy(getattr(self, name)) for name in wanted}


def ground(given: dict[str, Any], regime: Any, seed: int, reading: dict[str, Any]) -> Ground:
    """The digits arena of this seed, with whatever is given in its place. Raises `Refused` for what does not fit together.

    given    teacher, student, data: names, objects, or "" for the arena's
    reading  size, channels, pretrained, skip_corrupt, as `zoo` takes them
    """
    if given["data"]:
        split = _splits(given["data"], reading)
        folder, told = origin.of_teachers([given["teacher"]] if isinstance(given["teacher"], str) else [])
        split.train = origin.shown(told, split.train)
        if told and (told["mixup"] or told["cutmix"]):
            raise Refused(f"{folder} mixes samples, so that none has a label, and the student alone needs some",
                          "write a store without --mixup and --cutmix to compare on, or use `stillroom run`")
        split.words += f"; the teacher's answers and its cost from {folder}" if folder else ""
    else:
        cast = arenas.digits(regime, seed)          # every seed draws its own split, labels and teacher
        split = SimpleNamespace(train=cast.actors["data"], valid=cast.valid, test=cast.test, words=REGIMES[regime])
    shape, classes = _look(split)
    torch.manual_seed(1000 + seed)
    networks = {who: _network(given[who], classes, shape, reading) if given[who] else cast.actors[who]
                for who in ("student", "teacher")}
    if not given["student"]:
        networks["student"].origin = {"spec": ARENA_STUDENT, "options": {}, "classes": len(classes), "channels": shape[0],
                                      "size": list(shape[1:])}
    made = Ground(**vars(split), classes=classes, shape=shape, student=networks["student"], teacher=networks["teacher"])
    _check(made)
    return made


def _splits(data: Any, reading: dict[str, Any]) -> SimpleNamespace:
    """Train, validation and test of the user's data: one split for all seeds, or a test image might have taught the teacher."""
    from stillroom import zoo

    if isinstance(data, str):
        split = zoo.splits(data, size=reading["size"] or None, channels=reading["channels"] or None,
                           skip_corrupt=reading["skip_corrupt"])
    else:
        split = data
    words = getattr(split.train, "words", "") or (data if isinstance(data, str) else type(split.train).__name__)
    return SimpleNamespace(train=split.train, valid=split.valid, test=split.test, words=words)


def _look(split) -> tuple[tuple[int, ...], list[str]]:
    """Shape of a sample and the names of the classes. Raises `Refused` where labels are missing that compare needs."""
    if not isinstance(split.train[0][0], Tensor):
        raise Refused("a sample of these data is no tensor", "compare takes images so far; use `stillroom run` for texts")
    if getattr(split.train, "targets", ...) is None:
        raise Refused("the answers in these data are no classes", "compare judges classifiers so far; use `stillroom run`")
    for name in ("valid", "test"):
        part = getattr(split, name)
        if part is None or not len(part):
            raise Refused(f"the data have no {name} split", "compare chooses on one and judges on the other: add images to it")
        if not (targets(part) != UNLABELLED).all():
            raise Refused(f"the {name} split has samples without a label", "label them or leave them out: labels judge")
    if not (targets(split.train) != UNLABELLED).any():
        raise Refused("no training sample has a label", "the student alone needs a few: label some, or use `stillroom run`")
    classes = getattr(split.train, "classes", None) or range(int(max(targets(split.test).max(), targets(split.valid).max())) + 1)
    return tuple(split.train[0][0].shape), [str(c) for c in classes]


def _network(given: Any, classes: list[str], shape: tuple[int, ...], reading: dict[str, Any]) -> Module:
    """A network by its name, from a function that makes one, or a copy of the given one."""
    if isinstance(given, str):
        from stillroom import zoo

        return zoo.model(given, classes=classes, channels=shape[0], size=(shape[-2], shape[-1]), pretrained=reading["pretrained"])
    return copy.deepcopy(given) if isinstance(given, Module) else given()


def _check(made: Ground) -> None:
    """The teacher was trained; both take the samples and tell as many classes apart as the data have. Raises `Refused`."""
    checks.taught(made.teacher, {})
    if isinstance(made.teacher, Cached):
        made.teacher.belongs(data=made.train)
        made.teacher.told(made.test)
        if not made.teacher.cost:
            raise Refused(f"{made.teacher.rows.folder} does not say what its teacher costs, and the report compares it",
                          "write the store with stillroom cache, or give the live teacher")
    x = tagged(torch.stack([made.train[i][0] for i in range(2)]), ids(made.train)[:2])
    for who in ("teacher", "student"):
        net = getattr(made, who)
        try:
            with resting(net):
                width = net(to_device(x, placed(net))).shape[-1]
        except Refused:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise Refused(f"the {who} does not take samples of shape {list(made.shape)}: {str(error).splitlines()[0]}",
                          "give it data of the size and channels it was built for: --size, --channels") from error
        if width != len(made.classes):
            raise Refused(f"the {who} tells {width} classes apart, the data have {len(made.classes)}",
                          f"give a {who} with {len(made.classes)} outputs, or the data that it was trained on")
