"""Layers of which every leading slice is a layer, too: what a network of shared weights is made of (Wang et al. 2022).

Each is torch's own, with its weights and names; the input's width and the widths asked for say how much of it computes. What is
left out gets no gradient. Left to themselves they are whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module


class Linear(nn.Linear):
    """x [..., width] → [..., out]: W[:out, :width], b[:out]."""

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        out = self.out_features if out is None else out
        return F.linear(x, self.weight[:out, : x.shape[-1]], None if self.bias is None else self.bias[:out])


class LayerNorm(nn.LayerNorm):
    """x [..., width] → the same shape; mean and variance are those of the width that is there."""

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)


class Conv1d(nn.Conv1d):
    """x [batch, width, time] → [batch, out, time]: W[:out, :width / groups]; the number of groups stays."""

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        out = self.out_channels if out is None else out
        weight = self.weight[:out, : x.shape[1] // self.groups]
        bias = None if self.bias is None else self.bias[:out]
        return F.conv1d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Attention(Module):
    """Self-attention, x [batch, tokens, width] → the same shape, by the first `heads` heads. A head is `each` wide however many
    there are, so that the scale 1/√each stays. `drop`: of the attention's weights. there [batch, tokens]: which tokens are none
    of padding; all when left out. Nobody attends to the others, and what comes out in their places means nothing."""

    def __init__(self, dim: int, heads: int, each: int = 64, drop: float = 0.0):
        super().__init__()
        self.heads, self.each, self.drop = heads, each, drop
        self.q_proj, self.k_proj, self.v_proj = (Linear(dim, heads * each) for _ in range(3))
        self.out_proj = Linear(heads * each, dim)

    def forward(self, x: Tensor, heads: int | None = None, there: Tensor | None = None) -> Tensor:
        heads = self.heads if heads is None else heads
        asked = None if there is None else there[:, None, None]                        # [batch, heads, tokens, tokens]
        q, k, v = (layer(x, heads * self.each).unflatten(-1, (heads, self.each)).transpose(1, 2)
                   for layer in (self.q_proj, self.k_proj, self.v_proj))               # [batch, heads, tokens, each]
        seen = F.scaled_dot_product_attention(q, k, v, asked, self.drop if self.training else 0.0)
        return self.out_proj(seen.transpose(1, 2).flatten(2), x.shape[-1])


class FeedForward(Module):
    """x [..., width] → the same shape, through the first `hidden` units."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.intermediate_dense, self.output_dense = Linear(dim, hidden), Linear(hidden, dim)

    def forward(self, x: Tensor, hidden: int | None = None) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x, hidden)), x.shape[-1])


@torch.no_grad()
def cut(whole: Module, part: Module) -> Module:
    """`part`, a network of the same make but smaller, with the leading slices of the weights of `whole`; of a weight under a
    parametrisation, such as weight norm, with the slice of what it computes. Weights of equal shape are copied."""
    for name, module in part.named_modules():
        if "parametrizations" in name.split("."):
            continue
        source = whole.get_submodule(name)
        held = [key for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        for key in held:
            mine = getattr(module, key)
            mine.copy_(_leading(getattr(source, key), mine.shape))
        for key in getattr(module, "parametrizations", ()):
            setattr(module, key, _leading(getattr(source, key), getattr(module, key).shape))
    return part


def _leading(weight: Tensor, shape: torch.Size) -> Tensor:
    return weight[tuple(slice(size) for size in shape)]

