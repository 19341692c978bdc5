"""How it is compared: pure functions of tensors. Each names its shapes, its reduction and its equation."""

from stillroom.parts.losses.logits import kl, labels

__all__ = ["kl", "labels"]
