"""Where in a network: its classifier, an early feature, its last map. Found by running it once, not by anyone's naming."""

import math

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused


def classifier(model: Module, x: Tensor) -> str:
    """Name of the linear layer whose output is the model's output ("" when the model is that layer).

    x: any inputs [batch, …]. Raises `Refused` when the model ends in something else.
    """
    calls, final = _trace(model, x)
    for name, _, out in reversed(calls):
        if isinstance(model.get_submodule(name), nn.Linear) and _same(out, final):
            return name
    raise Refused(f"{type(model).__name__} does not end in a linear layer that makes its logits",
                  "give a network whose last step is nn.Linear, features [batch, width] → logits [batch, classes]")


def intermediate(model: Module, x: Tensor) -> str:
    """Name of the module that ends an earlier stage of the network.

    Convolutional: the last stage but one, which hands its map to the stage that makes it smaller for the last time.
    Transformer: the block at a quarter of the depth. Otherwise the last layer before the logits.
    x: inputs [batch, …]. Raises `Refused` when the model is a single layer.
    """
    calls, final = _trace(model, x)
    calls = [(name, given, out) for name, given, out in calls if name and not _same(out, final)]
    if not calls:
        raise Refused(f"{type(model).__name__} has no layer before its logits", "give a network of at least two layers")
    maps = [(name, given, out) for name, given, out in calls if out.ndim == given.ndim == 4 and max(_grid(out)) > 1]
    tokens = [name for name, _, out in calls if out.ndim == 3]
    if tokens and [name for name, _, out in calls if out.ndim in (3, 4)][-1] == tokens[-1]:
        owners = {name.rpartition(".")[0] for name in tokens}
        lists = [name for name, m in model.named_modules() if name in owners and isinstance(m, nn.Sequential | nn.ModuleList)]
        blocks = max(([t for t in tokens if t.rpartition(".")[0] == owner] for owner in lists), key=len, default=tokens)
        return blocks[max(0, round(len(blocks) / 4) - 1)]
    if not maps:
        return calls[-1][0]
    last = _grid(maps[-1][2])
    shrinking = [(math.prod(_grid(given)), name.count("."), name, given) for name, given, out in maps
                 if _grid(out) == last and math.prod(_grid(given)) > math.prod(last)]
    for _, _, name, given in sorted(shrinking, key=lambda found: found[:2]):         # the last step down, the outermost module
        before = [maker for maker, _, made in calls if _same(made, given) and not f"{maker}.".startswith(f"{name}.")]
        if before:
            return before[-1]
    return maps[-1][0]


def last_map(model: Module, x: Tensor) -> str:
    """Name of the module that makes the last feature map before it is pooled: [batch, width, height, width] or
    [batch, tokens, width]; in a network without maps the last vector before the logits.

    x: inputs [batch, …]. Raises `Refused` when the model is a single layer.
    """
    calls, final = _trace(model, x)
    calls = [(name, given, out) for name, given, out in calls if name and not _same(out, final)]
    if not calls:
        raise Refused(f"{type(model).__name__} has no layer before its logits", "give a network of at least two layers")
    for name, given, out in reversed(calls):
        pools = given.ndim == out.ndim == 4 and _grid(given) != _grid(out) and not any(model.get_submodule(name).parameters())
        if out.ndim in (3, 4) and math.prod(_grid(out)) > 1 and not pools:
            return name
    return calls[-1][0]


def pooled(feature: Tensor) -> Tensor:
    """One vector a sample, [batch, width]: the mean over a map [batch, width, height, width], or over one whose channels come
    last, when it is square; the first token of [batch, tokens, width]; the vector itself."""
    if feature.ndim == 4:
        return feature.mean((1, 2) if _channels_last(feature) else (2, 3))
    return feature[:, 0] if feature.ndim == 3 else feature


def _grid(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:3] if _channels_last(x) else x.shape[2:])


def _channels_last(x: Tensor) -> bool:
    return x.shape[1] == x.shape[2] != x.shape[3]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


@torch.no_grad()
def _trace(model: Module, x: Tensor) -> tuple[list[tuple[str, Tensor, Tensor]], Tensor]:
    """First input and output of all modules that turn one tensor into another, in the order in which they finish; and the
    model's own output. Held until all are known, so that no two lie at one address."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    modes = [(m, m.training) for m in model.modules()]

    def note(name: str):
        def hear(_module, given, out):
            if given and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                calls.append((name, given[0], out))
        return hear

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    model.eval()
    try:
        final = model._call_impl(x)              # not the compiled call: its hooks would see stand-ins
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    return calls, final
