"""What a run made, in a folder: weights as safetensors, the rest as JSON. Nothing is pickled, nothing half written."""

import json
import os
import platform
import warnings
from collections.abc import Callable
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

import stillroom
from stillroom.errors import Refused

FORMAT = 1
STUDENT, MADE = "student", "made"
FOREIGN = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers", "lm": "transformers",
           "clip": "transformers", "speech": "transformers"}      # package that a kind of origin needs


def save(made: Any, folder: str | Path, *, origin: dict[str, Any] | None = None, classes: list[str] | None = None,
         shape: tuple[int, ...] | None = None) -> Path:
    """Write what was made: a module as student.safetensors and student.json; tensors, and tuples, lists and dicts of them, as
    made.safetensors and made.json; what JSON can hold as made.json.

    origin, classes, shape   what rebuilds the module, the names of its classes, the shape of a sample; the module's own
                             `origin`, `classes`, `expects` (as the zoo gives them) when left out. A model without origin is saved
                             too, and loaded `into` one of yours.

    Each file is written anew, flushed to disk and then renamed over the old one. Returns the folder. Raises `Refused` for what
    neither file can hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(made, Module):
        tensors = _apart(made.state_dict())
        origin = origin or _told(made, "origin", dict)
        expects = shape or _told(made, "expects", tuple)
        about = {"origin": _good(origin, made),
                 "classes": classes or _told(made, "classes", list), "shape": expects and list(expects),
                 "kind": type(made).__name__, "shared": _shared(made.state_dict()), "versions": _versions(origin)}
        _write(folder, STUDENT, tensors, about)
    else:
        found: dict[str, Tensor] = {}
        tree = _tree(made, found, "made")
        _write(folder, MADE, _apart(found), {"made": tree, "shared": _shared(found), "versions": _versions(None)})
    return folder


def load(folder: str | Path, into: Module | None = None) -> Any:
    """What `save` wrote: the module in eval mode, rebuilt from its origin and carrying `origin`, `classes`, `expects`; or the
    tensors, or the plain things. `into` is filled with the weights instead of rebuilding. Runs no code from the folder.
    Raises `Refused` when there is nothing, it is damaged, or it cannot be rebuilt or does not fit."""
    folder = Path(folder)
    name = next((n for n in (STUDENT, MADE) if (folder / f"{n}.json").is_file()), None)
    if name is None:
        raise Refused(f"{folder} holds nothing that was made",
                      "name the folder of a finished run: it has student.json or made.json")
    about = _about(folder / f"{name}.json")
    tensors = _tensors(folder, about)
    if name == MADE:
        if into is not None:
            raise Refused(f"{folder} holds no model but {_kind(about['made'])}", "leave out into=")
        return _thing(about["made"], tensors, folder)
    if into is None and about["origin"] is None:
        raise Refused(f"{folder} holds the weights of a {about['kind']} of your own, which cannot be built by name",
                      "build it and fill it: saved.load(folder, into=model); or name models as file:PATH.py:callable")
    net: Any = into if into is not None else _rebuilt(about["origin"])
    _fill(net, tensors, folder)
    net.origin, net.classes, net.drawn = about["origin"], about["classes"], None
    net.expects = tuple(about["shape"]) if about["shape"] else None
    return net.eval()


# --- writing ---------------------------------------------------------------------------------------------------------

def _write(folder: Path, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Weights first, then the JSON that vouches for them."""
    from safetensors.torch import save_file

    about = {"format": FORMAT, **about}
    if tensors:
        file = folder / f"{name}.safetensors"
        _atomic(file, lambda new: save_file(tensors, new))
        file.chmod(folder.stat().st_mode & 0o666)      # safetensors lets nobody else read; the folder knows who may
        about["weights"] = {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
    try:
        text = json.dumps(about, indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise Refused(f"the origin cannot be written as JSON ({error})", "use plain numbers, words, lists and dicts") from error
    _atomic(folder / f"{name}.json", lambda new: new.write_text(text + "\n", encoding="utf-8"))
    stale = (STUDENT, MADE)[name == STUDENT]            # what this folder held before was something else
    for old in (folder / f"{stale}.json", folder / f"{stale}.safetensors"):
        old.unlink(missing_ok=True)


def _atomic(file: Path, write: Callable[[Path], Any], by: int = 0) -> None:
    new = file.with_name(f"{file.name}.{by}.new" if by else f"{file.name}.new")      # several may write the same at once
    try:
        write(new)
        with open(new, "rb+") as opened:
            os.fsync(opened.fileno())
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    if os.name == "posix":                              # the new name must reach the disk, too
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: on the CPU, contiguous, none sharing memory; one of each that are the same."""
    again, held, apart = _shared(state), set(), {}
    for name, t in state.items():
        if name not in again:
            t = t.detach().cpu().contiguous()
            apart[name] = t.clone() if t.untyped_storage().data_ptr() in held else t
            held.add(t.untyped_storage().data_ptr())
    return apart


def _shared(state: dict[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are another one: same memory, same shape; with the name under which it is kept."""
    first: dict[tuple, str] = {}
    again: dict[str, str] = {}
    for name, t in state.items():
        if t.numel() and not t.is_meta:
            key = (t.device, t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride(), t.dtype)
            if first.setdefault(key, name) != name:
                again[name] = first[key]
    return again


def _good(origin: dict[str, Any] | None, made: Module) -> dict[str, Any] | None:
    """The origin if it still gives a module of these weights, else None: a recipe may have changed the network."""
    if not origin:
        return None
    for device in ("meta", "cpu"):                      # some networks compute while they are built
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")         # what is built on the meta device is not to be used
                fresh = _rebuilt(origin).state_dict()
        except Exception:                               # saving must not fail for it: the weights are the work
            continue
        return origin if {k: v.shape for k, v in fresh.items()} == {k: v.shape for k, v in made.state_dict().items()} else None
    return None


def _told(made: Module, what: str, kind: type) -> Any:
    value = vars(made).get(what)
    return value if isinstance(value, kind) else None


def _versions(origin: dict[str, Any] | None) -> dict[str, str]:
    versions = {"stillroom": stillroom.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    package = FOREIGN.get(str((origin or {}).get("spec", "")).partition(":")[0])
    return versions | ({package: metadata.version(package)} if package else {})


def _tree(thing: Any, tensors: dict[str, Tensor], at: str) -> Any:
    """A thing as JSON; its tensors go into `tensors` under the name of their place."""
    if isinstance(thing, Tensor):
        tensors[at] = thing
        return {"tensor": at}
    if isinstance(thing, np.ndarray):
        if thing.dtype.kind not in "biuf":
            raise Refused(f"an array of {thing.dtype} at {at} cannot be saved", "return arrays of numbers")
        tensors[at] = torch.from_numpy(np.ascontiguousarray(thing))
        return {"array": at}
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, Module):
        state = {f"{at}.{k}": v for k, v in thing.state_dict().items()}
        tensors.update(state)
        return {"module": at, "kind": type(thing).__name__, "origin": _good(_told(thing, "origin", dict), thing)}
    if isinstance(thing, dict):
        if not all(isinstance(k, str | int) for k in thing):
            raise Refused(f"a dict at {at} has keys that are neither words nor whole numbers", "use words as keys")
        return {"dict": [[k, _tree(v, tensors, f"{at}.{k}")] for k, v in thing.items()]}
    if isinstance(thing, tuple | list):
        return {type(thing).__name__ if type(thing) in (tuple, list) else "tuple":
                [_tree(v, tensors, f"{at}.{i}") for i, v in enumerate(thing)]}
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise Refused(f"a {type(thing).__name__} at {at} cannot be saved without running code when it is loaded",
                  "let `distill` return modules, tensors, numbers, words, and tuples, lists or dicts of them")


# --- reading ---------------------------------------------------------------------------------------------------------

def _about(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        number = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} is damaged ({type(error).__name__})", "run it again, or take it from a copy") from error
    if number != FORMAT:
        raise Refused(f"{file} has format {number}; this stillroom reads format {FORMAT}",
                      "install the version that wrote it: see its `versions`")
    wanted = {"origin", "classes", "shape", "kind"} if file.stem == STUDENT else {"made"}
    if not wanted | {"shared"} <= set(about):
        raise Refused(f"{file} is damaged (without {', '.join(sorted(wanted - set(about)))})",
                      "run it again, or take it from a copy")
    return about


def _tensors(folder: Path, about: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the JSON vouches for, the shared ones under every name."""
    from safetensors.torch import load_file

    told = about.get("weights")
    if told is None:
        return {}
    name = told["file"]
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or ":" in name or name.startswith("."):
        raise Refused(f"{folder} names its weights {name!r}, which is no file inside it", "do not trust this folder")
    file = folder / name
    if not file.is_file():
        raise Refused(f"{file} is missing", "run it again, or take it from a copy")
    if file.stat().st_size != told["bytes"] or _sha256(file) != told["sha256"]:
        raise Refused(f"{file} is not the file that its JSON describes: it was damaged or exchanged",
                      "run it again, or take it from a copy")
    tensors = load_file(file)
    return tensors | {again: tensors[kept] for again, kept in about["shared"].items()}


def _rebuilt(origin: dict[str, Any]) -> Module:
    from stillroom.zoo.models import rebuild

    return rebuild(origin)


def _fill(net: Module, tensors: dict[str, Tensor], folder: Path) -> None:
    own = net.state_dict()
    other = [f"{k} is not there" for k in tensors if k not in own] + [f"{k} is not saved" for k in own if k not in tensors]
    other += [f"{k} is {list(own[k].shape)}, saved {list(t.shape)}" for k, t in tensors.items() if own.get(k, t).shape != t.shape]
    if other:
        some = "; ".join(other[:3]) + (" …" if other[3:] else "")
        raise Refused(f"the weights in {folder} do not fit this {type(net).__name__}: {some}",
                      "build the model exactly as it was when it was saved")
    net.load_state_dict(tensors)


def _thing(tree: Any, tensors: dict[str, Tensor], folder: Path) -> Any:
    if not isinstance(tree, dict):
        return tree
    (kind, content), *more = tree.items()
    if kind in ("tensor", "array"):
        return tensors[content] if kind == "tensor" else tensors[content].numpy()
    if kind == "module":
        origin = dict(more)["origin"]
        if origin is None:
            raise Refused(f"{folder} holds a {dict(more)['kind']} at {content!r}, which cannot be built by name",
                          "read its weights with safetensors.torch.load_file")
        net = _rebuilt(origin)
        _fill(net, {k.removeprefix(f"{content}."): v for k, v in tensors.items() if k.startswith(f"{content}.")}, folder)
        return net.eval()
    if kind == "dict":
        return {k: _thing(v, tensors, folder) for k, v in content}
    return (tuple if kind == "tuple" else list)(_thing(v, tensors, folder) for v in content)


def _kind(tree: Any) -> str:
    return f"a {next(iter(tree))}" if isinstance(tree, dict) else f"a {type(tree).__name__}"


def _sha256(file: Path) -> str:
    digest = sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()
