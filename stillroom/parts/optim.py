"""What learns: an optimiser, its rate and its clipping as one thing."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.parts.schedules import Schedule


class Optimiser:
    """A torch optimiser over `params`, with a learning rate that follows progress and a bound on the gradient's norm.

    Groups of `inner` may name their share of the learning rate (`scale`); those with weight decay follow `decay` if it is given.
    """

    def __init__(self, inner: torch.optim.Optimizer, lr: float | Schedule, clip: float | None, decay: Schedule | None = None):
        self.inner, self.lr, self.clip, self.decay = inner, lr, clip, decay
        self.params: list[Tensor] = [p for group in inner.param_groups for p in group["params"]]
        self.scales = [group.pop("scale", 1.0) for group in inner.param_groups]
        self.decayed = [group.get("weight_decay", 0.0) != 0.0 for group in inner.param_groups]
        self.scaler: torch.amp.GradScaler | None = None     # set by Run under fp16
        self.checked = False                                # set by Run: all of it is kept
        self.averaged: Any = None                           # set by Run on several ranks: what averages the gradients

    def swap(self, pieces: Mapping[Tensor, Tensor]) -> None:
        """Own other tensors in the place of some: the pieces of a model that was sharded."""
        for group in self.inner.param_groups if pieces else ():
            group["params"] = [pieces.get(p, p) for p in group["params"]]
            if isinstance(self.inner, torch.optim.SGD):
                group["fused"] = False                       # torch has no fused SGD for pieces
        self.params = [p for group in self.inner.param_groups for p in group["params"]]

    def step(self, progress: float, scaled: bool = True) -> bool | None:
        """Step on the gathered gradients and drop them. True: moved; False: fp16 overflow, skipped; None: gradient not finite.
        scaled: under fp16 they are those of a scaled loss; not so where a method gathered them by itself."""
        scaler = self.scaler if scaled else None
        rate = self.lr(progress) if callable(self.lr) else self.lr
        for group, scale, decayed in zip(self.inner.param_groups, self.scales, self.decayed, strict=True):
            group["lr"] = rate * scale
            if self.decay and decayed:
                group["weight_decay"] = self.decay(progress)
        if scaler:
            scaler.unscale_(self.inner)
        grads = [p.grad for p in self.params if p.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(grads)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm      # of pieces: over all ranks
        finite = bool(norm.isfinite())
        if finite and self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.clip, norm)
        if finite:
            self.inner.step()
        if scaler:
            scaler.update()
        self.inner.zero_grad(set_to_none=True)
        return finite or (False if scaler else None)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "scaler": self.scaler.state_dict() if self.scaler else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        fused = [group["fused"] for group in self.inner.param_groups]    # how this machine steps is not the saved run's to say
        self.inner.load_state_dict(state["inner"])
        for group, own in zip(self.inner.param_groups, fused, strict=True):
            group["fused"] = own
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def sgd(*targets: Module | Tensor, lr: float | Schedule, momentum: float = 0.9, decay: float = 0.0,
        nesterov: bool = False, clip: float | None = None) -> Optimiser:
    """SGD with momentum over modules and leaf tensors; weight decay on everything, as in the KD literature."""
    inner = torch.optim.SGD(_params(targets), lr=1.0, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True)
    return Optimiser(inner, lr, clip)


def adamw(*targets: Module | Tensor, lr: float | Schedule, decay: float | Schedule = 0.01,
          betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, clip: float | None = None,
          shares: Mapping[Tensor, float] = MappingProxyType({})) -> Optimiser:
    """AdamW over modules and leaf tensors; weight decay on matrices only, never on biases, scales and norms.

    shares: of the learning rate, for parameters that do not get all of it.
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for p in _params(targets):
        groups.setdefault((shares.get(p, 1.0), p.ndim > 1), []).append(p)
    fixed = 1.0 if callable(decay) else decay
    named = [{"params": own, "scale": share, "weight_decay": fixed * matrix} for (share, matrix), own in groups.items()]
    inner = torch.optim.AdamW(named, lr=1.0, betas=betas, eps=eps, fused=True)
    return Optimiser(inner, lr, clip, decay if callable(decay) else None)


def adam(*targets: Module | Tensor, lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
         decay: float = 0.0, clip: float | None = None) -> Optimiser:
    """Adam over modules and leaf tensors. decay: times the weights, of all of them, is added to the gradient, as in the
    literature on graphs."""
    inner = torch.optim.Adam(_params(targets), lr=1.0, betas=betas, eps=eps, weight_decay=decay, fused=True)
    return Optimiser(inner, lr, clip)


def _params(targets: tuple[Module | Tensor, ...]) -> list[Tensor]:
    """Trainable parameters of all targets, each once. Raises `ValueError` when a target has none."""
    found: dict[int, Tensor] = {}
    for target in targets:
        own = [p for p in target.parameters() if p.requires_grad] if isinstance(target, Module) else [target]
        if not own or not all(p.requires_grad and p.is_leaf for p in own):
            raise ValueError(f"{type(target).__name__} has nothing to learn: a target needs leaves with requires_grad=True")
        found.update((id(p), p) for p in own)
    return list(found.values())
