"""What policies met, and is learnt from again: the last transitions, in a ring."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import Module


class Replay(Module):
    """The last `size` transitions, the oldest overwritten first. widths: by name how many numbers a field has, 0 for a scalar."""

    def __init__(self, size: int, **widths: int):
        super().__init__()
        self.size = size
        self.seen = nn.Buffer(torch.tensor(0))
        self.held = nn.Module()
        for name, width in widths.items():
            self.held.register_buffer(name, torch.zeros((size, width) if width else (size,)))

    def __len__(self) -> int:
        return min(self.size, int(self.seen))

    @torch.no_grad()
    def add(self, **fields: Tensor) -> None:
        """Transitions in the order in which they came, [batch, width] or [batch]."""
        count = len(next(iter(fields.values())))
        last = torch.arange(max(0, count - self.size), count)                    # of more than there is place for
        place = (int(self.seen) + last) % self.size
        for name, x in fields.items():
            self.held.get_buffer(name)[place] = x[last].to(self.seen.device, torch.float32)
        self.seen.add_(count)

    def draw(self, *shape: int) -> SimpleNamespace:
        """So many transitions drawn evenly, with replacement: fields [*shape, width] or [*shape], by name."""
        chosen = torch.randint(len(self), shape, device=self.seen.device)
        return SimpleNamespace(**{name: held[chosen] for name, held in self.held.named_buffers()})
