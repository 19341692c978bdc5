"""Search among architectures without a gradient."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import nn
from torch.nn import Module

from stillroom.errors import Refused

TRIES = 1000     # draws before a limit on cost is called too low


class Space(Protocol):
    """A space of architectures. An architecture is plain data: numbers, strings, lists and dicts of such.

    All that is random comes from Python's global generator, so that a search can be repeated and resumed.
    """

    def random(self) -> Any:
        """Any architecture."""

    def mutate(self, arch: Any) -> Any:
        """A neighbour of it, that differs in one place."""

    def build(self, arch: Any) -> Module:
        """A fresh network of it: images → logits [batch, classes]."""

    def cost(self, arch: Any) -> float:
        """What is limited: parameters, operations, milliseconds."""


def child(space: Space, scored: Sequence[tuple[float, Any]], population: int, tournament: int, limit: float = 0.0) -> Any:
    """The next architecture of regularised evolution (Real et al. 2019, algorithm 1): random ones until there are `population`;
    from then on the best of a tournament among the youngest `population`, mutated. The oldest dies, not the worst.

    scored: (score, architecture) of all so far, in the order of their birth; a higher score is better.
    limit: on `space.cost`, 0 for none. Raises `Refused` when no architecture within it is found.
    """
    if len(scored) < population:
        return within(space, space.random, limit)
    parent = max(random.sample(list(scored[-population:]), min(tournament, population)), key=lambda one: one[0])[1]
    return within(space, lambda: space.mutate(parent), limit)


def within(space: Space, draw: Callable[[], Any], limit: float) -> Any:
    """The first architecture drawn whose cost is within the limit, 0 for none. Raises `Refused`."""
    for _ in range(TRIES):
        arch = draw()
        if not limit or space.cost(arch) <= limit:
            return arch
    raise Refused(f"no architecture costs {limit:g} or less", f"a higher limit; one drawn last costs {space.cost(arch):g}")


def gaussian(net: Module) -> Module:
    """Every convolution and linear layer drawn anew from N(0, 1), biases 0, norms as when new. In place; returns the network."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()
    return net
