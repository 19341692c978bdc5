"""A network's weights as one vector: for methods that differentiate through them, compare them, or walk along them."""

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import Module

from stillroom.errors import Refused


def flatten(model: Module) -> Tensor:
    """All parameters in order, copied into one vector [weights]. Raises `Refused` for a network in pieces over the ranks."""
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise Refused("this method takes a network's weights as one vector, and they lie in pieces", "run it without shard")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def flat_call(model: Module, weights: Tensor, *inputs) -> Tensor:
    """What `model` says with `weights` [weights] in the place of its own, which stay as they are; differentiable in both.

    Raises `ValueError` when the vector is of another length. Buffers are copies: batch statistics that it takes are forgotten.
    """
    own = dict(model.named_parameters())
    sizes = [p.numel() for p in own.values()]
    if weights.numel() != sum(sizes):
        raise ValueError(f"{weights.numel()} weights for a network of {sum(sizes)}")
    parts = (part.view_as(p) for part, p in zip(weights.split(sizes), own.values(), strict=True))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return functional_call(model, {**buffers, **dict(zip(own, parts, strict=True))}, inputs)


def each_call(model: Module, weights: Tensor, *inputs: Tensor) -> Tensor:
    """What `model` says with every row of `weights` [rows, weights] of the row of inputs [rows, …] beside it, [rows, …]."""
    return vmap(partial(flat_call, model))(weights, *inputs)


def fresh(model: Module) -> Module:
    """The same network with newly drawn weights, in place: every layer by its own initialisation.

    Raises `Refused`, before any is drawn, when a module owns parameters and has no `reset_parameters`: they would stay.
    """
    draws = {name: getattr(module, "reset_parameters", None) for name, module in model.named_modules()}
    for name, draw in draws.items():
        module = model.get_submodule(name)
        if not callable(draw) and any(True for _ in module.parameters(recurse=False)):
            raise Refused(f"{name or 'the network'} ({type(module).__name__}) has weights that cannot be drawn anew",
                          "give its class a method reset_parameters() that initialises them in place")
    for draw in filter(callable, draws.values()):
        draw()
    return model
