"""Who teaches: frozen, following, past, random, several."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Module


class _Teacher(Module):
    """A model in eval mode for good, without gradients: `train()` has no effect on it."""

    def __init__(self, model: Module):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs, **named):
        return self.model(*inputs, **named)


class Frozen(_Teacher):
    """The given model itself, frozen. `mean`, `std` (per channel): its own input scale, when inputs come in [0, 1]."""

    def __init__(self, model: Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__(model)
        self.mean = None if mean is None else nn.Buffer(torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.std = None if std is None else nn.Buffer(torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, *inputs, **named):
        if self.mean is not None or self.std is not None:
            x = inputs[0] if self.mean is None else inputs[0] - self.mean
            inputs = (x if self.std is None else x / self.std, *inputs[1:])
        return self.model(*inputs, **named)


class Ema(_Teacher):
    """A copy of the student that follows it: θ ← m·θ + (1 − m)·θ_student (He et al. 2020, eq. 2). Buffers are copied."""

    def __init__(self, student: Module):
        super().__init__(copy.deepcopy(student))

    @torch.no_grad()
    def follow(self, student: Module, momentum: float) -> None:
        """One step towards the student; `momentum` in [0, 1], 1 stays where it is."""
        mine: list[Tensor] = list(self.model.parameters())
        yours: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, yours, 1 - momentum)
        for old, new in zip(self.model.buffers(), student.buffers(), strict=True):
            old.copy_(new)


class Past(_Teacher):
    """The student as it was at the last snapshot."""

    def __init__(self, student: Module):
        super().__init__(copy.deepcopy(student))

    @torch.no_grad()
    def snapshot(self, student: Module) -> None:
        """Become the student as it is now."""
        self.model.load_state_dict(student.state_dict())


class Random(_Teacher):
    """A network whose weights were never trained: the given one, frozen as it was initialised."""


class Ensemble(Module):
    """Several frozen models: the mean of their softened probabilities, as log-probabilities.

    models   each maps inputs to logits [batch, classes]
    weights  one per model; equal when left out
    """

    def __init__(self, models: Sequence[Module], weights: Sequence[float] | None = None):
        super().__init__()
        self.models = nn.ModuleList([Frozen(m) for m in models])
        w = torch.tensor(weights if weights is not None else [1.0] * len(models))
        self.weights = nn.Buffer(w / w.sum(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """log Σ_k w_k softmax(z_k / T), [batch, classes]. A softmax of it gives the mean probabilities back."""
        logs = torch.stack([(m(x) / temperature).log_softmax(-1) for m in self.models])
        return torch.logsumexp(logs + self.weights.log().view(-1, 1, 1), 0)
