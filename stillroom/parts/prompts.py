"""Learnt tokens in a transformer whose weights stay as they are: deep prompts."""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused


class Prompted(Module):
    """A frozen transformer with learnt tokens among its own at the input of each of its first `depth` blocks; what a block made
    of those before is dropped for them (Jia et al. 2022, VPT-Deep). Inputs and output are the transformer's.

    tower   its blocks stand in one list, and take and give tokens [batch, tokens, dim]
    x       any inputs of it, [batch, …]
    count   tokens for each block, [depth, count, dim]; with none it is the tower itself, bit for bit
    depth   blocks, at most all
    at      None: they come behind the others, and go after the last block. A number: they stand in the place of the tokens from
            there on, such as the words before a name, and begin as the first text has them

    The tower stays in eval mode; called by itself it is as it was. Raises `Refused` when it has no such blocks, and when there
    are fewer tokens than shall be replaced.
    """

    def __init__(self, tower: Module, x: Tensor, count: int = 4, depth: int = 9, at: int | None = None):
        super().__init__()
        self.tower, self.count, self.at = tower.eval().requires_grad_(False), count, at
        seen = first_tokens(tower, x)                                            # [batch, tokens, dim]
        if at is not None and at + count > seen.shape[1]:
            raise Refused(f"{count} prompts from token {at} on, and a text has {seen.shape[1]}", "longer texts, or fewer prompts")
        shape = min(depth, len(blocks(tower))), count, seen.shape[2]
        self.tokens = nn.Parameter(0.02 * torch.randn(shape, device=seen.device), requires_grad=count > 0)
        if at is not None:
            self.tokens.data[:1] = seen[:1, at : at + count]
        if "origin" in vars(tower):                    # built again from the same tower
            self.origin = {"spec": "part:prompted", "model": tower.origin, "sample": list(x.shape[1:]), "count": count,
                           "depth": depth, "at": at}

    def train(self, mode: bool = True):
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, *inputs: Any) -> Any:
        call = self.tower._call_impl                 # not a compiled call: it may have been traced without the tokens
        if not self.tokens.numel():
            return call(*inputs)
        stack = blocks(self.tower)
        before = [(block, block._forward_pre_hooks, block._forward_hooks) for block in stack]
        for n, (block, entering, _) in enumerate(before[: len(self.tokens)]):
            block._forward_pre_hooks = OrderedDict([*entering.items(), (-1, partial(self._enter, n))])
        if self.at is None:
            stack[-1]._forward_hooks = OrderedDict([(-1, self._leave), *before[-1][2].items()])
        try:
            return call(*inputs)
        finally:
            for block, entering, leaving in before:
                block._forward_pre_hooks, block._forward_hooks = entering, leaving

    def _enter(self, n: int, _block: Module, inputs: tuple) -> tuple:
        x, *rest = inputs
        own = self.tokens[n].to(x).expand(len(x), -1, -1)                        # [batch, count, dim]
        if self.at is not None:
            return torch.cat([x[:, : self.at], own, x[:, self.at + self.count :]], 1), *rest
        return torch.cat([x[:, : -self.count] if n else x, own], 1), *rest

    def _leave(self, _block: Module, _inputs: tuple, out: Any) -> Any:
        if isinstance(out, tuple):
            return out[0][:, : -self.count], *out[1:]
        return out[:, : -self.count]


def blocks(tower: Module) -> list[Module]:
    """The blocks of a transformer: the list of modules of one kind that holds most weights. Raises `Refused`."""
    lists = [list(m) for m in tower.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [some for some in lists if len({type(m) for m in some}) == 1 and any(some[0].children())]
    if not alike:
        raise Refused(f"{type(tower).__name__} has no list of blocks", "give a transformer")
    return max(alike, key=lambda some: sum(p.numel() for m in some for p in m.parameters()))


@torch.no_grad()
def first_tokens(tower: Module, x: Tensor) -> Tensor:
    """What arrives at the first block, [batch, tokens, dim]. Raises `Refused` when that is something else."""
    seen: list[Any] = []
    hook = blocks(tower)[0].register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0] if inputs else None))
    try:
        tower._call_impl(x)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim != 3:
        raise Refused(f"the blocks of {type(tower).__name__} take no tokens [batch, tokens, dim]", "give a transformer")
    return seen[0]
