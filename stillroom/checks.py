"""Before the first step: everything that can be known to be wrong is said now, with its remedy."""

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, Subset, TensorDataset

from stillroom.batches import ids, tagged, to_device
from stillroom.errors import Refused, nearest
from stillroom.measure.cost import placed, resting
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Teacher

LARGE = 10**9        # parameters from which a model is not tried out on two samples: it may not fit where it lies
EDGE = 1e-3          # how far outside [0, 1] an image may be: resampling overshoots


def before(recipe: Any, run: Any, actors: dict[str, Any]) -> None:
    """Check the actors of a recipe. Raises `Refused`; changes nothing, and asks each model for two samples at most."""
    wanted = _signature(recipe, actors)
    for name, actor in actors.items():
        _kind(name, actor, wanted[name].annotation)
    student, teacher, data = (actors.get(name) for name in ("student", "teacher", "data"))
    rows = _rows(recipe)
    if isinstance(student, Module) and "student" in rows.get("learns", ""):
        _learns(student)
    teachers = {"teacher": teacher, **{f"others[{i}]": other for i, other in enumerate(actors.get("others") or ())}}
    teachers = {name: net for name, net in teachers.items() if isinstance(net, Module)}
    for net in teachers.values():
        if isinstance(student, Module):
            _apart(student, net)
            _one_scale(student, net)
        taught(net, rows)
    if data is None or wanted["data"].annotation is not Dataset:
        return
    with _undisturbed():
        x = _samples(data)
    if "logits" in rows.get("reads", "") and "compares" in rows and getattr(data, "targets", ...) is None:
        raise Refused(f"{type(recipe).__name__} compares logits of classes; the answers in these data are none",
                      "take a method made for them, such as acam_kd for masks")
    y = _labels(data)
    _labelled(rows, y, len(data), type(recipe).__name__)
    if not isinstance(x, Tensor | dict):
        return
    tagged(x, ids(data)[:2])
    _in_range(x, student, *teachers.values())
    nets = {**({"student": student} if isinstance(student, Module) else {}), **teachers}
    if "logits" in rows.get("reads", ""):
        _classes({name: _width(name, net, x) for name, net in nets.items()}, data, y)
        for name, net in nets.items():
            _order(name, net, data)


def teaches(teacher: Module, data: Any) -> None:
    """A classifier that was trained, and takes these samples: what must be true of a teacher before there is a student.
    Raises `Refused`; asks it about two samples."""
    taught(teacher, {})
    with _undisturbed():
        x = _samples(data)
    if isinstance(x, Tensor | dict):
        tagged(x, ids(data)[:2])
        _in_range(x, teacher)
        _classes({"teacher": _width("teacher", teacher, x)}, data, _labels(data))
        _order("teacher", teacher, data)


def vocabulary(student: Any, teacher: Any) -> int:
    """Width to which the logits of two language models may be cut so that they mean the same tokens.

    student, teacher: tokenizers (transformers or tokenizers) or dicts from token to id. Ids that both have must stand for the
    same token; the tail that only one has, tokens added or rows padded, falls away. Raises `Refused` when they disagree.
    """
    one, other = _vocabulary(student), _vocabulary(teacher)
    if not one or not other:
        raise Refused("a tokenizer has no vocabulary", "give the tokenizers of student and teacher")
    width = min(max(one.values()), max(other.values())) + 1
    tokens, others = {i: t for t, i in one.items() if i < width}, {i: t for t, i in other.items() if i < width}
    wrong = sorted(i for i in tokens.keys() & others.keys() if tokens[i] != others[i])
    wrong += sorted(i for t, i in one.items() if t in other and other[t] != i and min(i, other[t]) < width and i not in wrong)
    if wrong or not tokens.keys() & others.keys():
        names = {i: t for t, i in one.items()}
        some = ", ".join(f"{i} is {names[i]!r} and {others.get(i, 'nothing')!r}" for i in wrong[:3])
        raise Refused(f"student and teacher number their tokens differently: {len(wrong)} ids disagree ({some or 'none shared'})",
                      "take a teacher with the student's tokenizer, or a method that compares texts")
    return width


# --- actors ----------------------------------------------------------------------------------------------------------

def _signature(recipe: Any, actors: dict[str, Any]) -> dict[str, inspect.Parameter]:
    wanted = {n: p for n, p in inspect.signature(recipe.distill).parameters.items() if n != "run"}
    name = type(recipe).__name__
    for given in actors:
        if given not in wanted:
            raise Refused(f"{name} has no actor {given!r}", nearest(given, wanted))
    for needed, p in wanted.items():
        if p.default is p.empty and needed not in actors:
            raise Refused(f"{name} needs {needed!r}", f"its actors: {', '.join(wanted)}")
    return wanted


def _rows(recipe: Any) -> dict[str, str]:
    """The rows of the recipe's card; of one outside the package nothing is known, but of the baseline."""
    from stillroom.recipe import card

    home = type(recipe).__module__
    if home == "stillroom.arenas.alone":
        return {"teacher": "none", "reads": "logits", "data": "some labelled", "learns": "student weights"}
    return card(home.rpartition(".")[2]).rows if home.startswith("stillroom.recipes.") else {}


def _kind(name: str, actor: Any, annotation: Any) -> None:
    """A model where a model is wanted, a data set where data are."""
    word = isinstance(actor, str)
    if annotation is Module and not isinstance(actor, Module):
        raise Refused(f"{name} is {_a(actor)}, no torch.nn.Module",
                      f"{name}=zoo.model({actor!r})" if word else "give the model itself")
    indexed = hasattr(actor, "__len__") and hasattr(actor, "__getitem__") and not word and not isinstance(actor, Tensor)
    if annotation is Dataset and not indexed:
        raise Refused(f"{name} is {_a(actor)}, no data set with a length and samples by number",
                      f"{name}=zoo.data({actor!r})" if word else "give TensorDataset(x, y), or another map-style data set")


def _learns(student: Module) -> None:
    if not any(p.requires_grad for p in student.parameters()):
        why = "all its parameters are frozen" if list(student.parameters()) else "it has no parameters"
        raise Refused(f"the student has nothing to learn: {why}", "student.requires_grad_(True), or another student")


def _apart(student: Module, teacher: Module) -> None:
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        raise Refused(f"student and teacher share {len(shared)} parameters: freezing the teacher would freeze the student",
                      "let one be a copy: copy.deepcopy(model)")


def _one_scale(student: Module, teacher: Module) -> None:
    """Raw timm models with different input scales cannot look at the same images."""
    one, other = _raw_scale(student), _raw_scale(teacher)
    if one and other and one != other:
        scales = f"mean {one[0]}, std {one[1]}, and mean {other[0]}, std {other[1]}"
        raise Refused(f"student and teacher want their input on different scales: {scales}",
                      "build them with zoo.model, which takes images in [0, 1]; or wrap it: Frozen(teacher, mean=…, std=…)")


def _raw_scale(net: Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that a timm model of its own, outside the zoo, wants its inputs to have."""
    from stillroom.zoo.built import normalises

    if isinstance(net, Teacher) and (getattr(net, "mean", None) is not None or getattr(net, "std", None) is not None):
        return None
    inner = net.model if isinstance(net, Teacher) else net
    about = getattr(inner, "pretrained_cfg", None)
    if normalises(inner) or not isinstance(about, dict) or not {"mean", "std"} <= set(about):
        return None
    return tuple(about["mean"]), tuple(about["std"])


def taught(teacher: Module, rows: Mapping[str, str]) -> None:
    """A teacher whose last layer is as it was drawn has nothing to say, unless the card's row means a random one.
    Raises `Refused`."""
    from stillroom.zoo.built import head_digest

    inner: Any = teacher.model if isinstance(teacher, Teacher) else teacher
    drawn = vars(inner).get("drawn")
    meant = any(word in rows.get("teacher", "") for word in ("random", "untrained"))
    if drawn and drawn == head_digest(inner) and not meant:
        spec = inner.origin["spec"]
        raise Refused(f"the teacher {spec} was never trained: its last layer is as it was drawn",
                      f"train it (stillroom teach --student {spec} …) and name run:FOLDER, or load weights for these classes")


# --- data ------------------------------------------------------------------------------------------------------------

@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random numbers go on as if nothing had been drawn inside: a data set may augment its samples."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _samples(data: Any) -> Any:
    """The first two samples as a batch, or a dict of such; or the first as it is, if it is neither."""
    if not len(data):
        raise Refused("the data set is empty", "check its path, its split and its filters")
    held = []
    for i in range(min(2, len(data))):
        sample = data[i]
        if isinstance(sample, Tensor) or not isinstance(sample, Sequence) or isinstance(sample, str):
            raise Refused(f"the data set gives {_a(sample)} for a sample, not (x, y)",
                          f"return (x, y); y = {UNLABELLED} where there is no label")
        if len(sample) < 2:
            raise Refused("the data set gives samples without a place for the label",
                          f"return (x, y); y = {UNLABELLED} where there is none")
        held.append(sample[0])
    if type(held[0]).__module__.startswith("PIL"):
        raise Refused("the data set gives pictures, not tensors",
                      "turn them into tensors in [0, 1], or read them with zoo.data('folder:PATH')")
    if isinstance(held[0], Tensor):
        if held[0].shape != held[-1].shape:
            raise Refused(f"the samples differ in shape: {list(held[0].shape)} and {list(held[-1].shape)}",
                          "bring them to one size: zoo.data(…, size=…)")
        return torch.stack(held)
    if isinstance(held[0], dict) and all(isinstance(v, Tensor) for v in held[0].values()):
        for k, v in held[0].items():
            if v.shape != held[-1][k].shape:
                raise Refused(f"the samples' {k!r} differ in shape: {list(v.shape)} and {list(held[-1][k].shape)}",
                              "pad them to one length")
        return {k: torch.stack([sample[k] for sample in held]) for k in held[0]}
    return held[0]


def _in_range(x: Any, *nets: Any) -> None:
    """Images are finite floats, and in [0, 1] for models that normalise themselves."""
    from stillroom.zoo.built import normalises

    if not isinstance(x, Tensor):
        return
    if x.dtype == torch.uint8:
        raise Refused("the samples are bytes, from 0 to 255", "give floats in [0, 1]: x.float() / 255")
    if not x.is_floating_point():
        return
    if not x.isfinite().all():
        raise Refused(f"{int((~x.isfinite()).sum())} numbers in the first samples are NaN or infinite",
                      "clean the data, or the transform that makes them")
    low, high = x.min().item(), x.max().item()
    own = [n for n in nets if isinstance(n, Module) and normalises(n.model if isinstance(n, Teacher) else n)]
    if own and x.ndim == 4 and (low < -EDGE or high > 1 + EDGE):
        raise Refused(f"the images run from {low:.3g} to {high:.3g}; models of the zoo take [0, 1] and normalise by themselves",
                      "leave the normalisation out of the data set" if low < 0 else "divide them by the largest, such as 255")


def _labels(data: Any) -> Tensor | None:
    """All labels where the data set tells them without reading its samples; else those of its first few."""
    if isinstance(data, TensorDataset):
        return data.tensors[1]
    if isinstance(data, Subset):
        inner = _labels(data.dataset)
        return inner[list(data.indices)] if inner is not None and len(inner) == len(data.dataset) else inner  # type: ignore[arg-type]
    targets = getattr(data, "targets", None)
    if targets is None:
        with _undisturbed():
            targets = [data[i][1] for i in range(min(8, len(data)))]
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):        # boxes, masks, texts: not classes
        return None


def _labelled(rows: Mapping[str, str], y: Tensor | None, size: int, name: str) -> None:
    """Labels are there where the method needs them: its card says "labelled" or "some labelled"."""
    if y is None or y.is_floating_point() or y.ndim != 1:
        return
    missing, needs = int((y == UNLABELLED).sum()), rows.get("data", "")
    if needs.startswith("labelled") and missing:
        raise Refused(f"{name} needs a label for every sample; {missing} of {len(y)} have none",
                      "leave those out (parts.pairs.by_label), or take a method that learns from both, such as kd")
    if needs.startswith("some labelled") and missing == len(y) == size:
        raise Refused(f"no sample has a label, and {name} learns from labels",
                      "label a few, or take a method that needs none, such as ssld")


def _width(name: str, net: Module, x: Any) -> int | None:
    """Number of classes that the model tells apart, from its answer to two samples; None where that is not what it gives."""
    inner = net.model if isinstance(net, Teacher) else net
    if not _takes_one(inner) or any(torch.nn.parameter.is_lazy(p) for p in inner.parameters()):
        return None
    if sum(p.numel() for p in inner.parameters()) > LARGE:
        return None
    batch = to_device(x, placed(inner))
    try:
        with _undisturbed(), resting(net):
            of_transformers = isinstance(batch, dict) and callable(getattr(inner, "get_input_embeddings", None))
            out = net(**batch) if of_transformers else net(batch)
    except Refused:
        raise
    except Exception as error:
        raise _does_not_take(name, inner, x, error) from error
    out = getattr(out, "logits", out)
    return out.shape[1] if isinstance(out, Tensor) and out.ndim == 2 else None


def _does_not_take(name: str, net: Module, x: Any, error: Exception) -> Refused:
    """Why a model refused two samples, as far as it can be known."""
    wants, has = getattr(net, "expects", None), tuple(x.shape[1:]) if isinstance(x, Tensor) else None
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if wants and has and len(has) == 3 and wants[0] != has[0]:
        return Refused(f"the {name} takes images of {wants[0]} channels; the data have {has[0]}",
                       f"--channels {wants[0]}; in Python zoo.data(…, channels={wants[0]}), or zoo.model(…, channels={has[0]})")
    if wants and has and tuple(wants) != has:
        size = wants[1] if wants[1] == wants[2] else tuple(wants[1:])
        return Refused(f"the {name} takes images of {_by(wants)}; the data have {_by(has)}",
                       f"--size {wants[1]}; in Python zoo.data(…, size={size}), or zoo.model(…, size={has[-1]})")
    shown = f"samples of shape {list(has)}" if has else f"a batch of {', '.join(x)}" if isinstance(x, dict) else "the samples"
    return Refused(f"the {name} does not take {shown}: {said}", "give it data of the size and channels it was built for")


def _takes_one(net: Module) -> bool:
    """Whether the forward is content with one argument: `model(x)`."""
    try:
        takes = list(inspect.signature(net.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    free = [p for p in takes if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [p for p in takes if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return bool(free) and len(needed) <= 1 and all(p.kind is not p.KEYWORD_ONLY for p in needed)


def _classes(widths: Mapping[str, int | None], data: Any, y: Tensor | None) -> None:
    """As many classes in student, teacher and data."""
    known = {who: n for who, n in widths.items() if n is not None}
    names = getattr(data, "classes", None)
    first = next(iter(known), "")
    for who, n in known.items():
        if n != known[first]:
            build = f"build the student with the teacher's: classes={n}; or " if first == "student" else ""
            raise Refused(f"the {first} tells {known[first]} classes apart, the {who} {n}",
                          f"{build}a teacher for the data's classes")
    for who, n in known.items():
        if names and len(names) != n:
            raise Refused(f"the {who} tells {n} classes apart, the data have {len(names)}", f"zoo.model(…, classes={len(names)})")
        if y is None or y.is_floating_point() or y.ndim != 1:
            continue
        wrong = y[((y < 0) & (y != UNLABELLED)) | (y >= n)]
        if len(wrong):
            raise Refused(f"{len(wrong)} labels are no class of the {who}'s {n}, such as {int(wrong[0])}",
                          f"classes run from 0 to {n - 1}; {UNLABELLED} means no label")


def _order(name: str, net: Module, data: Any) -> None:
    """Classes of the same name have the same number."""
    own, names = getattr(net.model if isinstance(net, Teacher) else net, "classes", None), getattr(data, "classes", None)
    if not isinstance(own, list) or not names:
        return
    place = {_plain(c): i for i, c in enumerate(names)}
    moved = [(c, i, place[_plain(c)]) for i, c in enumerate(own) if place.get(_plain(c), i) != i]
    if moved:
        label, here, there = moved[0]
        raise Refused(f"{name} and data number the classes differently: {label!r} is {here} for the {name}, {there} in the data",
                      f"bring the data's classes into the {name}'s order ({len(moved)} are out of place)")


def _plain(name: Any) -> str:
    return str(name).casefold().replace("_", " ").replace("-", " ").strip()


def _vocabulary(thing: Any) -> dict[str, int]:
    return dict(thing) if isinstance(thing, Mapping) else dict(thing.get_vocab())


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _a(thing: Any) -> str:
    kind = type(thing).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
