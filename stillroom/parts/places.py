"""Where in a network: its classifier, an early feature. Found by running it once, not by anyone's naming."""

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused


def classifier(model: Module, x: Tensor) -> str:
    """Name of the linear layer whose output is the model's output ("" when the model is that layer).

    x: any inputs [batch, …]. Raises `Refused` when the model ends in something else.
    """
    outputs, final = _trace(model, x)
    for name, out in reversed(outputs):
        if isinstance(model.get_submodule(name), nn.Linear) and out.data_ptr() == final.data_ptr() and out.shape == final.shape:
            return name
    raise Refused(f"{type(model).__name__} does not end in a linear layer that makes its logits",
                  "give a network whose last step is nn.Linear, features [batch, width] → logits [batch, classes]")


def intermediate(model: Module, x: Tensor) -> str:
    """Name of the module that ends an earlier stage of the network.

    Convolutional: the last one whose map is larger than the final map (the last stage but one). Transformer: the block at a
    quarter of the depth. Otherwise the last one before the logits. x: inputs [batch, …]. Raises `Refused` when there is none.
    """
    outputs, final = _trace(model, x)
    places = [(name, out) for name, out in outputs if name and out.data_ptr() != final.data_ptr()]
    maps = [(name, out) for name, out in places if out.ndim == 4 and out.shape[2:].numel() > 1]
    tokens = [(name, out) for name, out in places if out.ndim == 3]
    if len(tokens) > len(maps):
        lists = [name for name, m in model.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
        blocks = [[name for name, _ in tokens if name.rpartition(".")[0] == owner] for owner in lists]
        deepest = max(blocks, key=len, default=[])
        if deepest:
            return deepest[max(0, round(len(deepest) / 4) - 1)]
    if maps:
        before = [name for name, out in maps if out.shape[2:] != maps[-1][1].shape[2:]]
        return before[-1] if before else maps[-1][0]
    if not places:
        raise Refused(f"{type(model).__name__} has no layer before its logits", "give a network of at least two layers")
    return places[-1][0]


def pooled(feature: Tensor) -> Tensor:
    """One vector a sample, [batch, width]: the mean over a map [batch, width, height, width], the first token of
    [batch, tokens, width], the vector itself."""
    if feature.ndim == 4:
        return feature.mean((2, 3))
    return feature[:, 0] if feature.ndim == 3 else feature


@torch.no_grad()
def _trace(model: Module, x: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """Outputs of all modules that give one tensor, in the order in which they finish, and the model's own."""
    outputs: list[tuple[str, Tensor]] = []
    modes = [(m, m.training) for m in model.modules()]

    def note(name: str):
        return lambda _module, _inputs, out: outputs.append((name, out)) if isinstance(out, Tensor) else None

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    model.eval()
    try:
        final = model._call_impl(x)              # not the compiled call: its hooks would see stand-ins
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    return outputs, final
