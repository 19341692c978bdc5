"""What of a stream is remembered: samples, and what was said of them when they came."""

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused


class Memory(Module):
    """A reservoir of `size` samples: each of the n that came is in it with probability size/n (Vitter 1985, algorithm R).

    size  places
    like  by name what a sample consists of, as a batch [any, …] of its shape and type

    `seen` counts the samples that came, `held[name]` [size, …] is what is remembered; of it the first `len(memory)` are filled.
    Draws come from torch's global generator. Raises `Refused` for a memory without places.
    """

    def __init__(self, size: int, **like: Tensor):
        super().__init__()
        if size < 1:
            raise Refused(f"a memory of {size} samples", "give it one place at least")
        self.size = size
        self.seen = nn.Buffer(torch.tensor(0))
        self.held = nn.Module()
        for name, x in like.items():
            self.held.register_buffer(name, torch.zeros(size, *x.shape[1:], dtype=x.dtype))

    def __len__(self) -> int:
        return min(self.size, int(self.seen))

    @torch.no_grad()
    def add(self, **batch: Tensor) -> None:
        """Samples in the order in which they came, [batch, …] each; without gradient, in the type of the first."""
        count = len(next(iter(batch.values())))
        number = int(self.seen) + torch.arange(count)                    # how many came before, [batch]
        drawn = (torch.rand(count, dtype=torch.float64) * (number + 1)).long()
        place = torch.where(number < self.size, number, drawn)
        last = {p: i for i, p in enumerate(place.tolist()) if p < self.size}         # of two for one place the later stays
        for name, x in batch.items():
            held = self.held.get_buffer(name)
            held[list(last)] = x[list(last.values())].to(held)
        self.seen.add_(count)

    def draw(self, count: int, among: Tensor | None = None) -> tuple[Tensor, ...]:
        """So many samples drawn evenly, none twice; all where there are fewer. A tensor [drawn, …] for each name, in their order.
        among: the places that may be drawn, boolean [size]; all that are filled when left out."""
        places = torch.arange(len(self)) if among is None else among[: len(self)].cpu().nonzero().flatten()
        chosen = places[torch.randperm(len(places))[:count]].to(self.seen.device)
        return tuple(held[chosen] for held in self.held.buffers())


class Hard(Module):
    """A pool of hard samples. It fills as they come; once full it gives some back, and newer ones take their places.

    size  places
    like  a batch [any, …] of the samples' shape and type

    `held` [size, …] is what it holds, of it the first `len(pool)` are filled. Raises `Refused` for a pool without places.
    """

    def __init__(self, size: int, like: Tensor):
        super().__init__()
        if size < 1:
            raise Refused(f"a pool of {size} samples", "give it one place at least")
        self.held = nn.Buffer(torch.zeros(size, *like.shape[1:], dtype=like.dtype, device=like.device))
        self.filled = nn.Buffer(torch.tensor(0))

    def __len__(self) -> int:
        return int(self.filled)

    def draw(self, count: int) -> Tensor:
        """Places of so many random samples, none twice; of none before the pool is full. Whole numbers [count] or [0]."""
        full = len(self) == len(self.held)
        return torch.randperm(len(self.held), device=self.held.device)[: count if full else 0]

    @torch.no_grad()
    def put(self, samples: Tensor, places: Tensor) -> None:
        """Samples [n, …], the hardest first, into the places that were drawn; as many as there is room for while it fills."""
        if len(self) < len(self.held):
            places = torch.arange(len(self), min(len(self) + len(samples), len(self.held)), device=self.held.device)
            self.filled.add_(len(places))
        self.held[places] = samples[: len(places)].to(self.held)
