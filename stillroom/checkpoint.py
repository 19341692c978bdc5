"""What survives a stop: one file, written whole or not at all, read without pickle."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import Refused

FORMAT = 1
NAME = "checkpoint.pt"


def write(folder: Path, state: dict[str, Any]) -> None:
    """Write to a new file, flush it to disk, then rename it over the old one."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "checkpoint.new"
    with open(new, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / NAME)


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


def restore(thing: Any, saved: Any) -> None:
    """Put a kept thing back, in place."""
    if hasattr(thing, "load_state_dict"):
        thing.load_state_dict(saved)
    elif isinstance(thing, Tensor):
        thing.detach().copy_(saved)
    else:
        thing[:] = saved
