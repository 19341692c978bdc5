"""Where a teacher's weights lie: whole on the device, in 8 bits, on the host, or on the device only now and then. Each placement
is a module that takes the live one's place; all but 8 bits give the live one's answers, bit for bit."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from stillroom.batches import to_device
from stillroom.errors import Refused
from stillroom.parts.teachers import Teacher

PLACES = ("live", "8bit", "offload", "blocks", "blocks:N")
BLOCK = 16           # batches a block
OTHERWISE = "place it otherwise: 8bit, offload"


def placed(model: Module, place: str) -> Module:
    """The model placed as a word says: one of `PLACES`, N batches a block. Raises `Refused`."""
    word, _, count = place.partition(":")
    if word == "blocks" and (not count or count.isdecimal()):
        return Blocks(model, *([int(count)] if count else []))
    ways: dict[str, Callable[[Module], Module]] = {"live": lambda net: net, "8bit": eight_bit, "offload": Offloaded}
    if place not in ways:
        raise Refused(f"place={place} is unknown", f"one of {', '.join(PLACES)}")
    return ways[place](model)


# --- in 8 bits -------------------------------------------------------------------------------------------------------

class Rows(Module):
    """A weight as one byte a number and one scale a row: w ≈ scale · q, q in −127 … 127, off by scale / 2 at most."""

    def forward(self, q: Tensor, scale: Tensor) -> Tensor:
        return q * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny * 127)
        scale = (largest / 127).view(-1, *[1] * (weight.ndim - 1))                   # [rows, 1, …]
        return (weight / scale).round().to(torch.int8), scale


def eight_bit(model: Module) -> Module:
    """A frozen copy whose linear and convolutional weights are bytes; each layer is whole again for its own forward alone.

    Biases, norms, embeddings and weights that two modules share stay as they are: `by_type` says how much that is. Layers keep
    their names and places. Raises `Refused` when nothing would become smaller.
    """
    small = copy.deepcopy(model).eval().requires_grad_(False)
    uses = Counter(id(p) for _, p in small.named_parameters(remove_duplicate=False))
    found = [(m, name) for m in small.modules() for name in ("weight", "in_proj_weight")
             if isinstance(m, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
             and isinstance(w := getattr(m, name, None), nn.Parameter) and w.is_floating_point() and uses[id(w)] == 1]
    if not found:
        raise Refused(f"{type(model).__name__} has no linear or convolutional weights: in 8 bits it would be as large",
                      "place it otherwise: offload, blocks")
    for module, name in found:
        parametrize.register_parametrization(module, name, Rows())
    return small


def by_type(model: Module) -> dict[str, int]:
    """Bytes of weights and buffers by their number format: {"float32": 40_112, "int8": 11_678_912}."""
    count: Counter[str] = Counter()
    for t in (*model.parameters(), *model.buffers()):
        count[str(t.dtype).removeprefix("torch.")] += t.nbytes
    return dict(sorted(count.items()))


# --- on the host -----------------------------------------------------------------------------------------------------

class Offloaded(Teacher):
    """Its weights lie in main memory; each layer's visit the device for that layer's forward (by accelerate's hooks).

    Buffers, and what a module around layers holds itself (tokens, positions), stay on the device. It is placed when it is moved
    to one, as the engine does. Raises `Refused` when the model reads a layer's weights without calling the layer.
    """

    def __init__(self, model: Module):
        from stillroom._compat import package

        package("accelerate")
        super().__init__(model)
        self.model.cpu()
        self.device = torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Offloaded":
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_module

        self.device = fn(torch.empty(0, device=self.device)).device
        remove_hook_from_module(self.model, recurse=True)            # the weights are whole again, on the CPU
        cpu_offload(self.model, self.device, preload_module_classes=["MultiheadAttention"])
        for module in filter(around, self.model.modules()):
            remove_hook_from_module(module)
        for held in (*self.model.parameters(), *self.model.buffers()):
            if not held.is_meta:
                held.data = held.data.to(self.device)
        return self

    @torch.compiler.disable
    def forward(self, *inputs: Any, **named: Any) -> Any:
        with _Visited():
            return super().forward(*inputs, **named)


class _Visited(TorchDispatchMode):
    """Refuses to reckon with weights that are not there: PyTorch's matrix product would answer with whatever lay in memory."""

    def __torch_dispatch__(self, operation, types, inputs=(), named=None):
        missing = {t.is_meta for t in tree_leaves((inputs, named)) if isinstance(t, Tensor)}
        if len(missing) > 1:
            raise Refused("this model reads a layer's weights without calling the layer, so they do not visit the device",
                          "place it otherwise: 8bit, blocks")
        return operation(*inputs, **(named or {}))


def around(module: Module) -> bool:
    """Whether it holds layers; attention reads the weights of its own, and counts as one layer."""
    return any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention)


# --- now and then on the device --------------------------------------------------------------------------------------

class Blocks(Teacher):
    """On the device only while it is asked: the engine reads `count` batches ahead, the teacher answers all of them and goes
    back to main memory, then the student learns from the answers.

    For methods that ask it about batches as they come: in a loop over data, inputs that the method made itself are refused.
    Outside of such loops it is asked live. Batches and answers wait in main memory.
    """

    def __init__(self, model: Module, count: int = BLOCK):
        if count < 1:
            raise Refused(f"blocks of {count} batches", "1 at least")
        super().__init__(model)
        self.model.cpu()
        self.count, self.device, self.loops = count, torch.device("cpu"), 0
        self.answers: dict[Any, tuple[int, Any]] = {}             # by the very tensor that numbers a batch's samples

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Blocks":
        self.device = fn(torch.empty(0, device=self.device)).device
        return self

    @torch.no_grad()
    def _ask(self, block: list[Any]) -> dict[Tensor, tuple[int, Any]]:
        self.model.to(self.device)
        answers = {}
        for batch in block:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            first = _numbered(x)
            if first is None:
                raise Refused("a teacher in blocks reads batches of tensors, which these data do not give", OTHERWISE)
            answers[first.sample_ids] = first._version, copied(self.model(to_device(x, self.device)), "cpu")
        self.model.cpu()
        return answers

    @contextmanager
    def answering(self, block: list[Any]) -> Iterator[None]:
        """Inside, the answers to these batches are at hand, and to nothing else."""
        self.answers |= (mine := self._ask(block))
        self.loops += 1
        try:
            yield
        finally:
            self.loops -= 1
            for batch in mine:
                del self.answers[batch]

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not self.loops:
            return self.model.to(self.device)(*to_device(inputs, self.device), **to_device(named, self.device))
        x = _numbered(inputs)
        version, answer = self.answers.get(getattr(x, "sample_ids", None), (-1, None))
        if version < 0 or x._version > version or len(inputs) > 1 or named:
            raise Refused("a teacher in blocks is asked about inputs that the method made itself, such as crops of a batch",
                          f"{OTHERWISE}, or put the views into the data: store.Views(data, augment, count)")
        return copied(answer, self.device)


def ahead(batches: Iterator[Any], teachers: Collection[Blocks],
          casting: Callable[[], AbstractContextManager]) -> Iterator[Any]:
    """The same batches, read ahead as far as all teachers go, with their answers at hand. `casting`: as a step is taken."""
    while block := list(islice(batches, min(teacher.count for teacher in teachers))):
        with ExitStack() as answered:
            with casting():
                for teacher in teachers:
                    answered.enter_context(teacher.answering(block))
            yield from block


def _numbered(inputs: Any) -> Any:
    """The tensor that carries the numbers of a batch's samples, if there is one."""
    return next((t for t in tree_leaves(inputs) if hasattr(t, "sample_ids")), None)


def copied(held: Any, device: torch.device | str | None = None) -> Any:
    """The same with copies of its tensors, whatever holds them."""
    return tree_map_only(Tensor, lambda t: t.detach().to(device or t.device, copy=True), held)
