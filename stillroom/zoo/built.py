"""What every model of the zoo gets, wherever it comes from: its input scale, its origin, and what it knows of itself."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.models.towers import TwoTowers
from stillroom.zoo.specs import Spec

Scale = Sequence[float] | float
Shape = tuple[int, int, int]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Wish(NamedTuple):
    """What is asked of a model; None leaves it as it comes."""

    classes: int | None = None
    names: list[str] | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None
    pretrained: bool = False
    mean: Scale | None = None
    std: Scale | None = None


class Built(NamedTuple):
    """A model as it comes from its source."""

    net: Module
    spec: str                                       # with which it can be built again, without weights
    options: dict[str, Any]
    classes: int | None
    names: list[str] | None = None                  # of the classes
    expects: Shape | None = None                    # of a sample
    scale: tuple[Scale, Scale] | None = None        # mean and std that its weights want; None: it takes inputs as they are
    drawn: bool = True                              # its last layer was never trained
    config: dict[str, Any] | None = None            # of a transformers model


def finish(built: Built, wish: Wish) -> Module:
    """The model, told what it is: `origin`, `classes`, `expects`, `drawn`; in [0, 1] by its own normalisation."""
    net: Any = built.net
    mean = std = None
    if built.scale:
        channels = built.expects[0] if built.expects else 3
        mean = _per_channel(built.scale[0] if wish.mean is None else wish.mean, channels)
        std = _per_channel(built.scale[1] if wish.std is None else wish.std, channels)
        normalise(net.image if isinstance(net, TwoTowers) else net, mean, std)
    own = vars(net).get("classes")                  # a model of one's own may know its classes
    net.classes = own if isinstance(own, list) else built.names
    net.expects = built.expects
    net.drawn = head_digest(net) if built.drawn else None
    origin = {"spec": built.spec, "options": built.options, "classes": built.classes, "channels": wish.channels,
              "size": wish.size, "mean": mean, "std": std} | ({} if built.config is None else {"config": built.config})
    net.origin = json.loads(json.dumps(origin))     # as it will be read again
    if isinstance(net, TwoTowers):                  # of which a recipe may keep a half
        for half in ("image", "text"):
            getattr(net, half).origin = {**net.origin, "options": {**net.origin["options"], "half": half}}
    return net


def normalise(net: Module, mean: Sequence[float], std: Sequence[float]) -> Module:
    """Let a model take images in [0, 1]: it subtracts `mean` and divides by `std` (per channel) before its first layer.
    A hook and two buffers that are not saved: no weight is renamed, and a copy of the model has its own."""
    device = next((p.device for p in net.parameters()), None)
    for name, value in (("input_mean", mean), ("input_std", std)):
        net.register_buffer(name, torch.tensor(value, device=device).view(-1, 1, 1), persistent=False)
    net.register_forward_pre_hook(_scale)
    return net


def normalises(net: Module) -> bool:
    """Whether the model takes images in [0, 1] and normalises them itself."""
    return _scale in net._forward_pre_hooks.values()


def head_digest(net: Module) -> str | None:
    """Digest of the last matrix of weights; None on the meta device."""
    last = [p for p in net.parameters() if p.ndim > 1][-1:]
    if not last or last[0].is_meta:
        return None
    return blake2b(last[0].detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def not_built(asked: Spec, wish: Wish, error: Exception, local: str) -> Refused:
    """What to say when a source could not build a model. `local`: how to name weights that lie on this machine."""
    words = " ".join(f"{k}={getattr(wish, k)}" for k in ("classes", "channels", "size") if getattr(wish, k) is not None)
    if wish.pretrained and not isinstance(error, TypeError | AssertionError | KeyError):
        return Refused(f"the weights of {asked} could not be loaded: {first_line(error)}",
                       f"without a network put them on this machine and name {local}; or leave out pretrained")
    return Refused(f"{asked} cannot be built{' with ' + words if words else ''}: {first_line(error)}",
                   "check its options and its weights")


def first_line(error: BaseException) -> str:
    """Kind and gist of an error. PyTorch puts the gist of a wrong state dict on the second line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    gist = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else "…"
    return f"{type(error).__name__}: {gist}"


def _scale(net: Any, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return ((inputs[0] - net.input_mean) / net.input_std, *inputs[1:])


def _per_channel(value: Scale, channels: int) -> list[float]:
    """One number per channel: the mean over colours for fewer, repeated for more."""
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if channels < len(values):
        return [sum(values) / len(values)] * channels
    return [values[i % len(values)] for i in range(channels)]
