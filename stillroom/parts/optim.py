"""What learns: an optimiser, its rate and its clipping as one thing."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.parts.schedules import Schedule


class Optimiser:
    """A torch optimiser over `params`, with a learning rate that follows progress and a bound on the gradient's norm."""

    def __init__(self, inner: torch.optim.Optimizer, lr: float | Schedule, clip: float | None):
        self.inner, self.lr, self.clip = inner, lr, clip
        self.params: list[Tensor] = [p for group in inner.param_groups for p in group["params"]]
        self.scales = [group.pop("scale", 1.0) for group in inner.param_groups]
        self.scaler: torch.amp.GradScaler | None = None     # set by Run under fp16
        self.checked = False                                # set by Run: all of it is kept

    def step(self, progress: float) -> bool | None:
        """Step on the gathered gradients and drop them. True: moved; False: fp16 overflow, skipped; None: gradient not finite."""
        rate = self.lr(progress) if callable(self.lr) else self.lr
        for group, scale in zip(self.inner.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        if self.scaler:
            self.scaler.unscale_(self.inner)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        finite = bool(norm.isfinite())
        if finite and self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.clip, norm)
        if finite:
            self.inner.step()
        if self.scaler:
            self.scaler.update()
        self.inner.zero_grad(set_to_none=True)
        return finite or (False if self.scaler else None)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "scaler": self.scaler.state_dict() if self.scaler else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def sgd(*targets: Module | Tensor, lr: float | Schedule, momentum: float = 0.9, decay: float = 0.0,
        nesterov: bool = False, clip: float | None = None) -> Optimiser:
    """SGD with momentum over modules and leaf tensors; weight decay on everything, as in the KD literature."""
    inner = torch.optim.SGD(_params(targets), lr=1.0, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
    return Optimiser(inner, lr, clip)


def adamw(*targets: Module | Tensor, lr: float | Schedule, decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999),
          eps: float = 1e-8, clip: float | None = None) -> Optimiser:
    """AdamW over modules and leaf tensors; weight decay on matrices only, never on biases, scales and norms."""
    params = _params(targets)
    groups = [{"params": [p for p in params if p.ndim > 1], "weight_decay": decay},
              {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0}]
    inner = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=betas, eps=eps, fused=True)
    return Optimiser(inner, lr, clip)


def adam(*targets: Module | Tensor, lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
         clip: float | None = None) -> Optimiser:
    """Adam without weight decay over modules and leaf tensors."""
    return Optimiser(torch.optim.Adam(_params(targets), lr=1.0, betas=betas, eps=eps, fused=True), lr, clip)


def _params(targets: tuple[Module | Tensor, ...]) -> list[Tensor]:
    """Trainable parameters of all targets, each once. Raises `ValueError` when a target has none."""
    found: dict[int, Tensor] = {}
    for target in targets:
        own = [p for p in target.parameters() if p.requires_grad] if isinstance(target, Module) else [target]
        if not own or not all(p.requires_grad and p.is_leaf for p in own):
            raise ValueError(f"{type(target).__name__} has nothing to learn: a target needs leaves with requires_grad=True")
        found.update((id(p), p) for p in own)
    return list(found.values())
