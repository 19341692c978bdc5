"""Files of weights and of configuration, read without running what is in them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.zoo.built import first_line
from stillroom.zoo.specs import Spec


def read(file: str | Path) -> dict[str, Tensor]:
    """Weights by name from a safetensors or torch file, its wrappings taken off. Raises `Refused`."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise Refused(f"{path} does not exist", "give the path of a file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Refused(f"{path} cannot be read: {first_line(error)}", "save model.state_dict(), best as safetensors") from error
    for key in ("state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in state.items()
             if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not state:
        raise Refused(f"{path} holds no weights by name", "save model.state_dict()")
    return state


def fill(net: Module, file: str | Path, asked: Spec) -> None:
    """Load a file of weights into a model that must fit it exactly."""
    try:
        net.load_state_dict(read(file))
    except RuntimeError as error:
        raise Refused(f"the weights in {file} do not fit {asked}: {first_line(error)}",
                      "build it with the options they were trained with") from error


def configuration(file: str | Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `Refused`."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be read: {first_line(error)}",
                      "a model's folder holds config.json and model.safetensors") from error
    if not isinstance(found, dict):
        raise Refused(f"{file} holds no configuration", "a model's folder holds config.json and model.safetensors")
    return found


def refuse_foreign_shards(folder: Path) -> None:
    """An index of shards may only name files beside it."""
    for index in folder.glob("*.index.json"):
        for name in set(configuration(index).get("weight_map", {}).values()):
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise Refused(f"{index} names the shard {name!r}, which is no file beside it", "do not trust this folder")
