"""What is read: the outputs of named modules, a timm model's stages, a transformer's hidden states. `out, feats = tap(x)`.

A tap on a stored teacher gives what the same tap gave of the live one when `store.write` was handed it.

A tap leaves nothing on the model: it listens during its own call only. It reads the same under autocast, in a deep copy,
beside other taps, inside `torch.compile(…, fullgraph=True)`, and from a model compiled in place (the tap's call is then
compiled, too).
"""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused, nearest
from stillroom.parts.teachers import Cached, Teacher, held

KEYS = {"qkv": 3, "key": 1, "k_proj": 1}     # layers that make keys, and the parts that they put out: queries, keys, values


class Tap:
    """What modules of any network put out, by their names as in `named_modules()`.

    `out, feats = tap(x)`: what the model returns, and a list of what the named modules returned, in the order of `names`.
    A module that is called several times in one forward is heard the last time. In a teacher, names are those of the network
    that it holds. Raises `Refused` for an unknown name, and at the call for a module that the forward does not pass.
    """

    def __new__(cls, model: Module | None = None, *_):
        return super().__new__(Stored if isinstance(held(model)[0], Cached) else cls)

    def __init__(self, model: Module, *names: str):
        network, way = held(model)
        known = [name for name, _ in network.named_modules() if name]
        if not names:
            raise Refused("a tap needs the name of at least one module", f"known: {', '.join(known)}")
        self.model, self.names = model, names
        self.places = [way + name for name in names]
        for name in names:
            if name not in known:
                raise Refused(f"{type(model).__name__} has no module called {name!r}", nearest(name, known))

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Any, list[Any]]:
        return _call(self, self.places, inputs, named)

    def read(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, list[Any]]:
        return _listen(self.model, self.places, inputs, named)


class Stored(Tap):
    """What a tap read of a teacher that is now stored. Raises `Refused` for names that the store does not hold."""

    def __init__(self, model: Module, *names: str):
        self.model, self.names = model, held(model)[0].held(*names)

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Any, list[Any]]:
        inputs = self.model.scaled(*inputs) if isinstance(self.model, Teacher) else inputs
        return held(self.model)[0].read(self.names, *inputs, **named)


class Stages:
    """The feature maps of a timm model, by its own interface. See `stages`."""

    def __init__(self, model: Module, which: tuple[int, ...]):
        inner: Any = model.model if isinstance(model, Teacher) else model
        if isinstance(inner, Teacher):
            raise Refused(f"the stages of a teacher placed as {type(inner).__name__} cannot be read: its own forward places it",
                          "have it live or in 8 bits, or read modules by name: Tap(model, …)")
        if not callable(getattr(inner, "forward_intermediates", None)) or not callable(getattr(inner, "forward_head", None)):
            raise Refused(f"{type(inner).__name__} has no stages of its own to read", "read modules by name: Tap(model, …)")
        self.model, self.inner, self.which = model, inner, list(which) or None

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return _call(self, ["model" if isinstance(self.model, Teacher) else ""], (x,), {})

    def read(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad() if isinstance(self.model, Teacher) else nullcontext():
            if isinstance(self.model, Teacher):
                inputs = self.model.scaled(*inputs)
            for hook in self.inner._forward_pre_hooks.values():      # a model of the zoo scales its input there
                seen = hook(self.inner, inputs)
                inputs = inputs if seen is None else seen if isinstance(seen, tuple) else (seen,)
            last, maps = self.inner.forward_intermediates(inputs[0], indices=self.which)
            return self.inner.forward_head(last), maps


class Hidden:
    """The hidden states of a transformers model. See `hidden`."""

    def __init__(self, model: Module, which: tuple[int, ...]):
        self.model, self.name, self.which = model, _transformer(model), which

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Tensor, list[Tensor]]:
        return _call(self, [self.name], inputs, named)

    def read(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        out, full = _told(self, inputs, named, output_hidden_states=True)
        states = list(full.hidden_states)
        return out, [states[i] for i in self.which] if self.which else states


class Latents:
    """The hidden states and attention maps of a transformers model. See `latents`."""

    def __init__(self, model: Module):
        self.model, self.name = model, _transformer(model)

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return _call(self, [self.name], inputs, named)

    def read(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        # only the plain implementation holds the maps at all: the fused ones never write them down
        out, full = _told(self, inputs, named, output_hidden_states=True, output_attentions=True, _attn_implementation="eager")
        maps = list(full.attentions or [None])
        if any(m is None for m in maps):
            raise Refused(f"{type(self.model.get_submodule(self.name)).__name__} does not tell its attention",
                          "take an encoder of transformers that has output_attentions")
        return out, list(full.hidden_states), maps


def stages(model: Module, *which: int) -> Stages | Stored:
    """A tap on a timm model: `logits, maps = tap(x)`, maps [batch, channels, height, width], also of vision transformers.

    which: numbers of the stages, negative ones from the last; all when left out. A module around a timm model is read if it
    passes `forward_intermediates` and `forward_head` on. Raises `Refused` for a model without them.
    """
    return _stored(model, "stages", which) or Stages(model, which)


def hidden(model: Module, *which: int) -> Hidden | Stored:
    """A tap on a transformers model, alone or inside another: `logits, states = tap(x)`, `tap(batch)` or `tap(**batch)`.

    which: 0 is the embedding, then the layers, negative numbers from the last; all when left out. States [batch, tokens, dim].
    A model without logits gives its last hidden state instead. Raises `Refused` when there is no transformers model.
    """
    return _stored(model, "hidden", which) or Hidden(model, which)


def latents(model: Module) -> Latents:
    """A tap on a transformers model, alone or inside another: `logits, states, maps = tap(x)`, `tap(batch)` or `tap(**batch)`.

    States [batch, tokens, dim] of the embedding and each layer, maps [batch, heads, tokens, tokens] of each layer: the softmax of
    attention, 0 on padding where the batch has an attention mask. Other modules are read the same if they have
    `get_input_embeddings` and a `config`, and return `hidden_states` and `attentions` as `models.bert` does. Raises `Refused`
    when there is none, or none that tells its attention.
    """
    return Latents(model)


def keys(model: Module, x: Tensor, patch: int) -> Tensor:
    """The keys of a transformer's last attention, all heads side by side, of the patches alone: [batch, rows, columns, dim].

    x: images [batch, channels, height, width], padded with 0 to whole patches, below and on the right. They are read of the last
    layer called as in KEYS, in timm's, transformers' and the house's own networks, before any norm of their own. Raises
    `Refused` when there is none, and when there are fewer tokens than patches.
    """
    found = [name for name, _ in held(model)[0].named_modules() if name.rpartition(".")[2] in KEYS]
    if not found:
        raise Refused(f"{type(held(model)[0]).__name__} has no layer that makes keys", f"known: {', '.join(KEYS)}")
    x = F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))
    out, parts = Tap(model, found[-1])(x)[1][0], KEYS[found[-1].rpartition(".")[2]]
    rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
    if out.shape[1] < rows * columns:
        raise Refused(f"{out.shape[1]} tokens for {rows} × {columns} patches of {patch}", "name the side of its own patches")
    key = out.chunk(parts, -1)[parts // 2]
    return key[:, key.shape[1] - rows * columns :].unflatten(1, (rows, columns))    # class and registers come first


def read_by(tap: Any, x: Any) -> tuple[tuple[str, ...], int]:
    """Names under which a store holds what a tap reads, and how many stages or hidden states there are; `x` is a batch."""
    if isinstance(tap, Stored):
        return tap.names, held(tap.model)[0].rows.about["depth"]
    if isinstance(tap, Tap):
        return tap.names, 0
    if not isinstance(tap, Stages | Hidden):
        return (), 0
    depth = len(type(tap)(tap.model, ())(x)[1])
    return _numbered(type(tap).__name__.lower(), tuple(tap.which or ()), depth), depth


def _numbered(kind: str, which: tuple[int, ...], depth: int) -> tuple[str, ...]:
    """Names of stages or hidden states in a store, in the order in which the tap gives them: timm's stages come upwards."""
    try:
        numbers = [range(depth)[i] for i in which or range(depth)]
    except IndexError:
        raise Refused(f"{kind} {', '.join(map(str, which))} of {depth}", f"at most {depth - 1}") from None
    return tuple(f"{kind} {i}" for i in (sorted(set(numbers)) if kind == "stages" else numbers))


def _stored(model: Module, kind: str, which: tuple[int, ...]) -> Stored | None:
    inner = held(model)[0]
    if not isinstance(inner, Cached):
        return None
    depth = inner.rows.about["depth"]
    return Stored(model, *_numbered(kind, which, depth) if depth else (kind,))


def _transformer(model: Module) -> str:
    """The name of the first transformers model in a model, made ready to be read."""
    found = [name for name, m in model.named_modules() if callable(getattr(m, "get_input_embeddings", None))]
    if not found:
        raise Refused(f"{type(model).__name__} holds no transformers model", "read modules by name: Tap(model, …)")
    _record(model)
    return found[0]


def _told(tap, inputs: tuple[Any, ...], named: dict[str, Any], **asked: Any) -> tuple[Tensor, Any]:
    """Logits, or what comes first where there are none, and all that the transformers model returns when its configuration asks
    for more during this call."""
    if inputs and isinstance(inputs[0], Mapping):
        inputs, named = inputs[1:], {**inputs[0], **named}
    config: Any = tap.model.get_submodule(tap.name).config
    before = {name: getattr(config, name) for name in asked if hasattr(config, name)}
    try:
        for name in reversed(before):                            # eager first: transformers refuses to ask others for maps
            setattr(config, name, asked[name])
        out, (full,) = _listen(tap.model, [tap.name], inputs, named)
    finally:
        for name, value in before.items():
            setattr(config, name, value)
    if isinstance(out, Mapping) and "logits" in out:
        return out["logits"], full
    return out if isinstance(out, Tensor) else out[0], full


def _listen(model: Module, names: list[str], inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, list[Any]]:
    """One forward of the model, and what its modules `names` returned."""
    heard: dict[int, Any] = {}
    modules, before = [model.get_submodule(name) for name in names], []
    for i, module in enumerate(modules):
        def hear(_module, _inputs, out, i=i):
            heard[i] = out
        before.append(module._forward_hooks)
        # exchanged as a whole: Dynamo follows this, but neither register_forward_hook nor an item assigned
        module._forward_hooks = OrderedDict([*module._forward_hooks.items(), (-1 - i, hear)])
    try:
        out = model(*inputs, **named)
    finally:
        for i in reversed(range(len(modules))):      # reversed: a module named twice
            modules[i]._forward_hooks = before[i] or OrderedDict()
    for i, name in enumerate(names):
        if i not in heard:
            raise Refused(f"the forward of {type(model).__name__} does not pass {name!r}", "name another module")
    return out, [heard[i] for i in range(len(names))]


def _record(model: Module) -> None:
    """Let transformers ≥ 5 install its own recorders now: at the first call it does so under a lock that Dynamo cannot trace."""
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return
    module: Any
    for module in model.modules():
        done = any(getattr(m, "_output_capturing_hooks_installed", False) for m in module.modules())
        if getattr(module, "_can_record_outputs", None) and not done:        # a second time they would record twice
            maybe_install_capturing_hooks(module)


def _call(tap, names: list[str], inputs: tuple[Any, ...], named: dict[str, Any]):
    """`tap.read`, compiled when a module on the way to what is read was compiled in place: its graph would not hear."""
    if not torch.compiler.is_compiling():
        ways = {".".join(name.split(".")[:n]) for name in names for n in range(name.count(".") + 2)}
        if any(tap.model.get_submodule(way)._compiled_call_impl is not None for way in ways):
            return _compiled()(tap, inputs, named)
    return tap.read(inputs, named)


@cache
def _compiled():
    return torch.compile(lambda tap, inputs, named: tap.read(inputs, named))
