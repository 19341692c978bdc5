"""What survives a stop: one file, written whole or not at all, read without pickle."""

import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused

FORMAT = 1
NAME = "checkpoint.pt"
PIECES = "pieces in"      # key of the place of a tensor that lies in pieces


def write(folder: Path, state: dict[str, Any]) -> None:
    """Write to a new file, flush it to disk, then rename it over the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "checkpoint.new"
    with open(new, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / NAME)
    for old in set(folder.glob("pieces-*")) - {folder / name for name in _named(state["things"])}:
        shutil.rmtree(old)


def read(folder: Path | None, resume: bool, seed: int) -> dict[str, Any] | None:
    """The state in a folder, None for a new run. Raises `Refused` when the folder is not what the caller thinks it is."""
    file = folder / NAME if folder else None
    if file is None or not file.exists():
        if resume:
            raise Refused(f"nothing to resume: {file or 'a run without folder'} does not exist",
                          "leave out resume, or name the run's folder")
        return None
    if not resume:
        raise Refused(f"{folder} already holds a run",
                      "resume it (resume=True, `stillroom run --resume FOLDER`) or name another folder")
    try:
        with zipfile.ZipFile(file) as parts:
            if bad := parts.testzip():               # torch does not look at the checksums that it writes
                raise zipfile.BadZipFile(bad)
        state = torch.load(file, map_location="cpu", weights_only=True)
        found = state["seed"], state["format"]
    except Exception as error:
        raise Refused(f"{file} is damaged ({type(error).__name__})", "delete it to start this run anew") from error
    if found != (seed, FORMAT):
        raise Refused(f"{file} was written with seed {found[0]}, format {found[1]}; this run has seed {seed}, format {FORMAT}",
                      "use the same seed and version, or another folder")
    return state


def state_of(thing: Any) -> Any:
    """What has to be written of a kept thing."""
    if hasattr(thing, "state_dict"):
        return thing.state_dict()
    return thing.detach() if isinstance(thing, Tensor) else thing


def restore(thing: Any, saved: Any, folder: Path | None = None) -> None:
    """Put a kept thing back, in place; from the whole or from pieces, as a whole or in pieces."""
    saved = fitted(saved, _like(thing), folder)
    if hasattr(thing, "load_state_dict"):
        thing.load_state_dict(saved)
    elif isinstance(thing, Tensor):
        thing.detach().copy_(saved)
    else:
        thing[:] = saved


# --- in pieces -------------------------------------------------------------------------------------------------------

def write_pieces(folder: Path, things: dict[str, Any]) -> dict[str, Any]:
    """Write the tensors that lie in pieces over the ranks, each rank its own, as safetensors; a call of all ranks together.

    Returns the things with the place of such a tensor in the stead of it. Folders of older checkpoints go when `write` is done.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    from stillroom import ranks

    name = ranks.once(lambda: f"pieces-{time.time_ns()}")
    found: dict[str, Tensor] = {}
    things = {key: _set_apart(thing, key, name, found) for key, thing in things.items()}
    (folder / name).mkdir(parents=True, exist_ok=True)
    save(found, storage_writer=HuggingFaceStorageWriter(str(folder / name), save_distributed=True))
    return things


def fitted(saved: Any, like: Any, folder: Path | None) -> Any:
    """What was saved, with each tensor whole or in pieces as the tensor that it is for."""
    wanted: dict[str, dict[str, Tensor]] = {}
    fit = _fit(saved, like, wanted)
    for name, tensors in wanted.items():
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load

        assert folder is not None
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / name)))
    return fit


def _set_apart(tree: Any, key: str, name: str, found: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        return {k: _set_apart(v, f"{key}.{k}", name, found) for k, v in tree.items()}
    if hasattr(tree, "full_tensor"):
        found[key] = tree
        return {PIECES: name, "key": key}
    return tree


def _fit(saved: Any, like: Any, wanted: dict[str, dict[str, Tensor]]) -> Any:
    if isinstance(saved, dict) and PIECES in saved:
        return wanted.setdefault(saved[PIECES], {}).setdefault(saved["key"], torch.zeros_like(like))
    if isinstance(saved, dict):
        return {k: _fit(v, like.get(k) if isinstance(like, dict) else like, wanted) for k, v in saved.items()}
    if isinstance(saved, Tensor) and hasattr(like, "full_tensor") and saved.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(saved.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return saved


def _like(thing: Any) -> Any:
    """Tensors in the places of those that were saved: of an optimiser's state the parameter that it is kept for."""
    if isinstance(thing, Module):
        return thing.state_dict()
    params = getattr(thing, "params", None)
    return {"inner": {"state": dict(enumerate(params))}} if params else {}


def _named(tree: Any) -> set[str]:
    """Folders of pieces that a state names."""
    if not isinstance(tree, dict):
        return set()
    return {tree[PIECES]} if PIECES in tree else set().union(*map(_named, tree.values()))
