"""Models of one's own, by file and callable; and those that come with stillroom."""

import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from torch.nn import Module

from stillroom.errors import Refused
from stillroom.zoo import weights
from stillroom.zoo.built import Built, Wish, not_built
from stillroom.zoo.specs import Spec, near


def own(asked: Spec, wish: Wish) -> Built:
    """`file:PATH.py:callable`, called with its options and what it takes of `classes`, `channels`, `size`. Raises `Refused`."""
    path, call = callable_in(asked)
    takes = inspect.signature(call).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    options = dict(asked.options)
    file = options.pop("weights", None) if "weights" not in takes else None
    unknown = [o for o in options if o not in takes and not anything]
    if unknown:
        raise Refused(f"{asked} takes no {unknown[0]!r}", near(unknown[0], takes, "it takes"))
    size = wish.size and (wish.size[0] if wish.size[0] == wish.size[1] else wish.size)
    told = {"classes": wish.classes, "channels": wish.channels, "size": size}
    given = {k: v for k, v in told.items() if (k in takes or anything) and v is not None} | options
    many = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    lacking = [n for n, p in takes.items() if n not in given and p.default is p.empty and p.kind not in many]
    if lacking:
        raise Refused(f"{asked} needs {', '.join(lacking)}",
                      f"give it as an option, {asked}?{lacking[0]}=…, or a default in the file")
    net = call(**given)
    if not isinstance(net, Module):
        raise Refused(f"{asked} gave a {type(net).__name__}, no torch.nn.Module", "let the callable return the model")
    if file is not None:
        weights.fill(net, file, asked)
    return Built(net, f"file:{path}:{asked.name.rpartition(':')[2]}", options, wish.classes, wish.names,
                 (wish.channels, *wish.size) if wish.channels and wish.size else None, drawn=False)


def ours(asked: Spec, wish: Wish, home: str) -> Built:
    """`small:mlp`, `field:table`: a function of the module `home`, its arguments as options. Raises `Refused`."""
    held = vars(importlib.import_module(home))
    known = {n: f for n, f in held.items() if inspect.isfunction(f) and f.__module__ == home and n[0] != "_"}
    if asked.name not in known:
        raise Refused(f"no {asked.kind} model is called {asked.name!r}", near(asked.name, known))
    takes = inspect.signature(known[asked.name]).parameters
    options = dict(asked.options)
    file = options.pop("weights", None)
    unknown = [o for o in options if o not in takes]
    if unknown:
        raise Refused(f"{asked} has no option {unknown[0]!r}", near(unknown[0], takes, "its options"))
    channels, size = wish.channels or options.get("channels", 1), wish.size
    told = {"classes": wish.classes, "channels": wish.channels, "size": size and size[0],
            "inputs": size and channels * size[0] * size[1]}
    given = {k: v for k, v in told.items() if k in takes and v is not None} | options
    try:
        net = known[asked.name](**given)
    except Exception as error:
        raise not_built(asked, wish, error, f"{asked}?weights=FILE") from error
    if file is not None:
        weights.fill(net, file, asked)
    if size is None and "inputs" in takes and "inputs" not in options and channels == 1:
        size = (8, 8)
    classes = given.get("classes", takes["classes"].default if "classes" in takes else None)
    return Built(net, str(asked), options, classes, wish.names, (channels, *size) if size else None, drawn=file is None)


def callable_in(asked: Spec) -> tuple[Path, Callable]:
    """The absolute path and the callable that `file:PATH.py:callable` names. Raises `Refused`; errors of the file itself pass."""
    file, _, name = asked.name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not file or path.suffix != ".py":
        raise Refused(f"'{asked}' names no callable", "it reads file:PATH.py:callable")
    if not path.is_file():
        raise Refused(f"{path} does not exist", "give the path of your Python file")
    key = f"stillroom_file_{blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    found = importlib.util.spec_from_file_location(key, path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[key] = module                        # its classes must be found by name where a sample is unpickled
    sys.path.insert(0, str(path.parent))             # it may import its neighbours
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not callable(getattr(module, name, None)):
        calls = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == key]
        raise Refused(f"{path.name} has no callable {name!r}",
                      near(name, calls, "it has") if calls else "define one that returns the model")
    return path, getattr(module, name)


def refuse_installed(name: str) -> None:
    """A saved model may name a file of the user's to be rebuilt with, never one of Python's own."""
    file = Path(name.rpartition(":")[0])
    homes = {Path(p).resolve() for p in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)}
    if not file.is_absolute() or file.resolve() != file or any(home in file.parents for home in homes):
        raise Refused(f"the saved model wants to run {name!r}, which is no file of yours",
                      "load it into a model: saved.load(folder, into=model)")
