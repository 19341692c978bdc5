"""Models in pieces over the ranks, and whole again: PyTorch's `fully_shard` (FSDP2), in place."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList, Parameter, Sequential

from stillroom.errors import Refused
from stillroom.parts.teachers import Teacher

BOXES = (Sequential, ModuleList, ModuleDict)
WHOLE = ("mixed torch.Tensor and DTensor", "FSDP does not support deepcopy")       # torch, when a piece is taken for the whole
LARGE = 10**9        # weights from which a model is sharded before its device has held it


def possible(precision: str) -> None:
    """Raises `Refused` where models cannot lie in pieces."""
    import torch.distributed.checkpoint as files

    if precision == "fp16":
        raise Refused("fp16 scales the loss of a whole model, not of one in pieces", "precision bf16, or leave shard out")
    if not hasattr(files, "HuggingFaceStorageWriter"):
        raise Refused(f"torch {torch.__version__} cannot write models in pieces without pickle", "torch 2.9 or newer")


def shard(module: Module, device: torch.device) -> dict[Tensor, Tensor]:
    """Leave on every rank its piece of each weight, in place. Returns the new parameter for each old one.

    What is gathered at once are the blocks: modules of one class in a list or a row. A row of modules is sharded one by one, a
    teacher where its model is, so that a method may call these by themselves. A model's own methods that take an input
    (`features(x)`) gather it like a forward. Raises `Refused` for a part of a model that is sharded already.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    old = dict(module.named_parameters())
    for unit in list(_units(module)):
        if sharded(unit):
            raise Refused(f"{type(unit).__name__} holds a part of a model that is sharded already", "run it without shard")
        for block in _blocks(unit):
            fully_shard(block, mesh=_mesh(device.type), reshard_after_forward=True)
        fully_shard(unit, mesh=_mesh(device.type), reshard_after_forward=True)
        for part in unit.modules():
            if isinstance(part, FSDPModule):
                _gathering(part)
    for part in module.modules():                # not module.to(device): it would exchange the pieces under those who hold them
        part._buffers.update({name: b if b is None else b.to(device) for name, b in part._buffers.items()})
    new = dict(module.named_parameters())
    return {p: new[name] for name, p in old.items() if new[name] is not p}


def sharded(module: Module) -> bool:
    """Whether a module or a part of it is in pieces."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in module.modules())


def frozen(module: Module, least: int = 1) -> bool:
    """Whether a module is whole and has weights, `least` of them, of which none learns."""
    params = list(module.parameters())
    return sum(p.numel() for p in params) >= least and not any(p.requires_grad for p in params) and not sharded(module)


def piece(p: Tensor) -> bool:
    """Whether a tensor lies in pieces."""
    return hasattr(p, "full_tensor")


def leaves(params: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a backward must reach so that these parameters get a gradient: of a piece, the whole in use."""
    found = [p.in_use() if piece(p) else p for p in params]     # type: ignore[attr-defined]
    return [p for p in found if p is not None]


def plain(made: Any) -> Any:
    """Modules whole and as they were before `shard`, in place, on every rank; in lists, tuples and dicts, too."""
    if isinstance(made, Mapping):
        return {key: plain(one) for key, one in made.items()}
    if type(made) in (list, tuple):
        return type(made)(map(plain, made))
    if isinstance(made, Module):
        from torch.distributed.fsdp import FSDPModule

        for module in list(made.modules()):
            if isinstance(module, FSDPModule):
                _plain(module)
    return made


@lru_cache
def _mesh(kind: str):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(kind, (torch.distributed.get_world_size(),))


def _units(module: Module) -> Iterator[Module]:
    """The modules that a method may call by themselves and that have weights."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule) or not any(True for _ in module.parameters()):
        return
    if type(module) in BOXES or isinstance(module, Teacher):
        for child in module.children():
            yield from _units(child)
    else:
        yield module


def _blocks(unit: Module) -> list[Module]:
    """Modules of one class that follow each other in a list or a row, innermost first."""
    found = []
    for box in unit.modules():
        inside = list(box.children())
        if isinstance(box, Sequential | ModuleList) and len(inside) > 1 and len({type(m) for m in inside}) == 1:
            found += [m for m in inside if m is not unit and type(m) not in BOXES and any(True for _ in m.parameters())]
    return list(dict.fromkeys(reversed(found)))


def _gathering(module: Any) -> None:
    """Let the module's own methods that take an input gather its weights, and say of each piece which whole is in use."""
    state, kind = module._get_fsdp_state(), type(module).__mro__[2]
    for group in state._fsdp_param_groups:
        for held in group.fsdp_params:
            held.sharded_param.in_use = lambda held=held: getattr(held, "_unsharded_param", None)
    if kind.__module__.startswith(("torch.", "transformers.")):
        return
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        inputs = list(inspect.signature(method).parameters.values())[1:2]
        if inputs and inputs[0].default is inputs[0].empty and not name.startswith("_") and not hasattr(Module, name):
            setattr(module, name, _as_forward(module, state, getattr(module, name)))


def _as_forward(module: Module, state: Any, method: Any) -> Any:
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    @wraps(method)
    def gathered(*inputs: Any, **named: Any) -> Any:
        if state._training_state == TrainingState.FORWARD:       # within another call of this module
            return method(*inputs, **named)
        inputs, named = state._pre_forward(module, inputs, named)
        return state._post_forward(module, inputs, method(*inputs, **named))

    gathered.gathering = True                    # type: ignore[attr-defined]
    return gathered


def _plain(module: Any) -> None:
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    state = module._get_fsdp_state()
    for group in state._fsdp_param_groups:
        for held in group.fsdp_params:
            piece, places = held.sharded_param, held._module_info
            whole = Parameter(piece.full_tensor(), requires_grad=piece.requires_grad)
            for owner, name in [(places.module, places.param_name), *zip(places.shared_modules, places.shared_param_names)]:
                owner._parameters[name] = whole
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    for name in [n for n, value in vars(module).items() if getattr(value, "gathering", False)]:
        del module.__dict__[name]
    for part in module.modules():
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            part.__dict__.pop(mark, None)
    for key in (STATE_KEY, REGISTRY_KEY):
        module.__dict__.pop(key, None)
    _module_state_mapping.pop(module, None)
    module.__class__ = type(module).__mro__[2]
