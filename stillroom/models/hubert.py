"""HuBERT (Hsu et al. 2021), a transformer over 50 frames of speech a second, of which every leading slice is a smaller one.

Names and order of the weights are those of `transformers.HubertModel`: `like` takes them over.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils.parametrizations import weight_norm

from stillroom.errors import Refused
from stillroom.parts.elastic import Attention, Conv1d, FeedForward, LayerNorm, Linear, cut

CONVS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)      # width, kernel, stride: 320 samples a frame


class Shape(TypedDict):
    """How large a transformer is: its width, and of each block the heads and the units of the feed-forward network."""

    dim: int
    heads: list[int]
    hidden: list[int]


class Hubert(Module):
    """Waves [batch, samples] → [batch, frames, dim]. Of clips of different lengths, filled at their ends, `attention_mask`
    [batch, samples] says where there is sound: each then says what it says alone, and nothing in the frames after it.

    dim, heads, hidden   its `Shape`; `each`: the width of a head
    convs                width, kernel and stride of each layer that reads the wave
    norm, bias           of these layers: "group" as HuBERT-Base, once after the first, or "layer", after each; biases
    kernel, groups       of the convolution that tells places apart
    drop                 of attention and of what each branch adds
    """

    def __init__(self, dim: int = 768, heads: Sequence[int] = (12,) * 12, hidden: Sequence[int] = (3072,) * 12, each: int = 64,
                 convs: Sequence[Sequence[int]] = CONVS, norm: str = "group", bias: bool = False, kernel: int = 128,
                 groups: int = 16, drop: float = 0.1):
        super().__init__()
        if len(heads) != len(hidden) or dim % groups or norm not in ("group", "layer"):
            raise Refused(f"a HuBERT of width {dim} with {len(heads)} numbers of heads, {len(hidden)} of hidden units, {groups} "
                          f"groups and norm {norm!r}", "one number of each for every block; groups divide the width")
        self.shape: Shape = {"dim": dim, "heads": list(heads), "hidden": list(hidden)}
        self.made = {"each": each, "convs": convs, "norm": norm, "bias": bias, "kernel": kernel, "groups": groups, "drop": drop}
        self.dim: int = dim
        self.feature_extractor = Extractor(convs, norm, bias)
        self.feature_projection = Projection(convs[-1][0], dim)
        self.masked_spec_embed = nn.Parameter(torch.empty(dim).uniform_())
        self.encoder = Encoder(self.shape, each, kernel, groups, drop)
        self.apply(_initialise)

    def forward(self, x: Tensor, shape: Shape | None = None, masked: Tensor | None = None,
                attention_mask: Tensor | None = None) -> Tensor:
        """shape: of the slice that computes, all of it when left out; masked [batch, frames]: these are hidden from it."""
        return self.states(x, shape, masked, attention_mask)[-1]

    def states(self, x: Tensor, shape: Shape | None = None, masked: Tensor | None = None,
               attention_mask: Tensor | None = None) -> list[Tensor]:
        """What goes into the first block and what comes out of each, [batch, frames, dim]."""
        shape, samples = self.shape if shape is None else shape, None if attention_mask is None else attention_mask.sum(1)
        x = self.feature_projection(self.feature_extractor(x[:, None], samples).mT, shape["dim"])   # [batch, frames, dim]
        if masked is not None:
            x = torch.where(masked[..., None], self.masked_spec_embed[: shape["dim"]].to(x.dtype), x)
        return self.encoder(x, shape, None if samples is None else first(self.frames(samples), x.shape[1]))

    def frames(self, samples: Any) -> Any:
        """How many there are of a wave of so many samples, or of several [batch]."""
        for _, kernel, stride in self.made["convs"]:
            samples = (samples - kernel) // stride + 1
        return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)

    def counts(self, x: Tensor, attention_mask: Tensor | None = None) -> Any:
        """How many frames there are of waves [batch, samples]: one number, or of each clip [batch] where they differ. Raises
        `Refused` for a clip that is too short to have one."""
        found = self.frames(x.shape[1] if attention_mask is None else attention_mask.sum(1))
        if not torch.as_tensor(found).all():
            raise Refused("a clip is too short to have a frame", "leave it out")
        return found

    def cut(self, shape: Shape) -> "Hubert":
        """This slice as a network of its own."""
        return cut(self, Hubert(**shape, **self.made)).to(self.masked_spec_embed.device)     # type: ignore[return-value]

    def count(self, shape: Shape) -> int:
        """Parameters of this slice."""
        d, width = shape["dim"], self.made["convs"][-1][0]
        kernel, groups, each = self.made["kernel"], self.made["groups"], self.made["each"]
        wave: int = sum(p.numel() for p in self.feature_extractor.parameters())
        enter = 2 * width + width * d + d + d                                              # norm, projection, mask
        places = d * (d // groups) * kernel + kernel + d + 2 * d                           # weight norm, bias, norm
        blocks = [4 * d * h * each + 3 * h * each + d + 2 * d * f + f + d + 4 * d       # attention, feed-forward, norms
                  for h, f in zip(shape["heads"], shape["hidden"], strict=True)]
        return wave + enter + places + sum(blocks)


class Extractor(Module):
    """[batch, 1, samples] → [batch, width, frames]; samples [batch]: of each clip, where they differ."""

    def __init__(self, convs: Sequence[Sequence[int]], norm: str, bias: bool):
        super().__init__()
        self.convs, widths = convs, [1, *(width for width, _, _ in convs)]
        self.conv_layers = nn.ModuleList(
            Reading(widths[n], width, kernel, stride, bias, "" if norm == "group" and n else norm)
            for n, (width, kernel, stride) in enumerate(convs))

    def forward(self, x: Tensor, samples: Tensor | None = None) -> Tensor:
        for layer, (_, kernel, stride) in zip(self.conv_layers, self.convs, strict=True):
            samples = None if samples is None else (samples - kernel) // stride + 1
            x = layer(x, samples)
        return x


class Reading(Module):
    """A convolution, a norm of each channel over time ("group") or of each frame ("layer") or none, GELU."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, bias: bool, norm: str):
        super().__init__()
        self.conv, self.by_frame = nn.Conv1d(inputs, width, kernel, stride, bias=bias), norm == "layer"
        nn.init.kaiming_normal_(self.conv.weight)
        if norm:
            self.layer_norm = nn.LayerNorm(width) if self.by_frame else nn.GroupNorm(width, width)

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        if self.by_frame:
            return F.gelu(self.layer_norm(x.mT).mT)
        if "layer_norm" not in self._modules:
            return F.gelu(x)
        return F.gelu(self.layer_norm(x) if frames is None else self.over(x, frames))

    def over(self, x: Tensor, frames: Tensor) -> Tensor:
        """The norm over the first so many frames of each clip."""
        norm, there = self.layer_norm, first(frames, x.shape[-1])[:, None]                     # [batch, 1, frames]
        x = x.to(norm.weight.dtype)                                                            # under autocast, too
        mean = (x * there).sum(-1, keepdim=True) / frames[:, None, None]
        spread = ((x - mean).square() * there).sum(-1, keepdim=True) / frames[:, None, None]
        return (x - mean) * (spread + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


class Projection(Module):
    def __init__(self, width: int, dim: int):
        super().__init__()
        self.layer_norm, self.projection = nn.LayerNorm(width), Linear(width, dim)

    def forward(self, x: Tensor, dim: int) -> Tensor:
        return self.projection(self.layer_norm(x), dim)


class Places(Module):
    """What a convolution with weight norm says of the place of each frame, [batch, frames, dim]."""

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        conv = Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=2 * (kernel * dim) ** -0.5)
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x.mT, x.shape[-1])[..., : x.shape[1]]).mT        # an even kernel gives a frame too many


class Encoder(Module):
    """Transformer with norms after each branch. there [batch, frames]: where there is sound; all when left out."""

    def __init__(self, shape: Shape, each: int, kernel: int, groups: int, drop: float):
        super().__init__()
        self.pos_conv_embed = Places(shape["dim"], kernel, groups)
        self.layer_norm, self.dropout = LayerNorm(shape["dim"]), nn.Dropout(drop)
        self.layers = nn.ModuleList(Block(shape["dim"], h, f, each, drop)
                                    for h, f in zip(shape["heads"], shape["hidden"], strict=True))

    def forward(self, x: Tensor, shape: Shape, there: Tensor | None = None) -> list[Tensor]:
        x = x if there is None else x * there[..., None]                                       # as beyond the end of a clip alone
        states = [self.dropout(self.layer_norm(x + self.pos_conv_embed(x)))]
        for layer, heads, hidden in zip(self.layers, shape["heads"], shape["hidden"], strict=False):
            states.append(layer(states[-1], heads, hidden, there))
        return states


class Block(Module):
    def __init__(self, dim: int, heads: int, hidden: int, each: int, drop: float):
        super().__init__()
        self.attention, self.feed_forward = Attention(dim, heads, each, drop), FeedForward(dim, hidden)
        self.layer_norm, self.final_layer_norm, self.dropout = LayerNorm(dim), LayerNorm(dim), nn.Dropout(drop)

    def forward(self, x: Tensor, heads: int, hidden: int, there: Tensor | None = None) -> Tensor:
        x = self.layer_norm(x + self.dropout(self.attention(x, heads, there)))
        return self.final_layer_norm(x + self.dropout(self.feed_forward(x, hidden)))


@dataclass(frozen=True)
class Subnets:
    """The slices of a network that are networks, as a space to search (`parts.evolution.Space`).

    dims, depths     widths and numbers of blocks
    heads, ratios    of each block by itself; the feed-forward network is `ratio` as wide as the transformer
    Raises `Refused` where a slice would be larger than the network.
    """

    net: Hubert
    dims: Sequence[int]
    heads: Sequence[int]
    ratios: Sequence[float]
    depths: Sequence[int]

    def __post_init__(self):
        own, most = self.net.shape, max(self.depths)
        wide = int(max(self.ratios) * max(self.dims))
        if (max(self.dims) > own["dim"] or most > len(own["heads"]) or max(self.heads) > min(own["heads"][:most])
                or wide > min(own["hidden"][:most]) or any(d % self.net.made["groups"] for d in self.dims)):
            raise Refused(f"slices of width {max(self.dims)}, {most} blocks, {max(self.heads)} heads and {wide} hidden units do "
                          f"not fit into {own}", "a larger network, or smaller slices; groups divide the width")

    def __len__(self) -> int:
        return len(self.dims) * sum((len(self.heads) * len(self.ratios)) ** depth for depth in self.depths)

    def random(self) -> Shape:
        dim, blocks = random.choice(self.dims), range(random.choice(self.depths))
        return {"dim": dim, "heads": [random.choice(self.heads) for _ in blocks],
                "hidden": [int(random.choice(self.ratios) * dim) for _ in blocks]}

    def mutate(self, arch: Shape) -> Shape:
        """The width, the depth, or one block drawn anew; ratios stay where the width changes."""
        ratios, dim, new = [f / arch["dim"] for f in arch["hidden"]], arch["dim"], self.random()
        heads, what = list(arch["heads"]), random.choice(("width", "depth", "block"))
        if what == "width":
            dim = new["dim"]
        elif what == "depth":
            depth, more = len(new["heads"]), len(new["heads"]) - len(heads)
            heads = heads[:depth] + new["heads"][:max(more, 0)]
            ratios = ratios[:depth] + [f / new["dim"] for f in new["hidden"][:max(more, 0)]]
        else:
            at = random.randrange(len(heads))
            heads[at], ratios[at] = random.choice(self.heads), random.choice(self.ratios)
        return {"dim": dim, "heads": heads, "hidden": [round(r * dim) for r in ratios]}

    def build(self, arch: Shape) -> Hubert:
        return self.net.cut(arch)

    def cost(self, arch: Shape) -> float:
        """Parameters."""
        return self.net.count(arch)


def sliced(net: Module) -> Hubert:
    """The network itself, if it has slices. Raises `Refused`."""
    if not isinstance(net, Hubert):
        raise Refused(f"{type(net).__name__} has no slices", "a models.hubert.Hubert(…), or like(model) of transformers'")
    return net


class MeanStates(Module):
    """Mean of what goes into the first block and of what comes out of each, [batch, frames or tokens, dim], of a `Hubert` or of a
    model of transformers, which takes what that takes."""

    def __init__(self, net: Module):
        super().__init__()
        self.net: Any = net

    def forward(self, x: Tensor, **named: Tensor) -> Tensor:
        if isinstance(self.net, Hubert):
            return torch.stack(self.net.states(x)).mean(0)
        return torch.stack(self.net(x, output_hidden_states=True, **named).hidden_states).mean(0)


def like(model: Any) -> Hubert:
    """A `Hubert` with the weights of a `transformers.HubertModel`. Where its norm is over time ("group"), that model counts what
    clips are filled with, too; this one does not. Raises `Refused` for a make that it does not know."""
    made = model.config
    odd = [name for name, usual in (("do_stable_layer_norm", False), ("conv_pos_batch_norm", False), ("hidden_act", "gelu"),
                                    ("feat_extract_activation", "gelu"), ("feat_proj_layer_norm", True))
           if getattr(made, name, usual) != usual]
    if odd:
        raise Refused(f"this HuBERT has another {', '.join(odd)}", "models like hubert-base-ls960: norms after each branch, GELU")
    depth = made.num_hidden_layers
    net = Hubert(made.hidden_size, [made.num_attention_heads] * depth, [made.intermediate_size] * depth,
                 made.hidden_size // made.num_attention_heads,
                 list(zip(made.conv_dim, made.conv_kernel, made.conv_stride, strict=True)), made.feat_extract_norm,
                 made.conv_bias, made.num_conv_pos_embeddings, made.num_conv_pos_embedding_groups,
                 made.hidden_dropout)
    net.load_state_dict({"masked_spec_embed": net.masked_spec_embed, **model.state_dict()})
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = made.layer_norm_eps
    return net


def first(counts: Tensor, size: int) -> Tensor:
    """Which of `size` places are among the first so many, counts [n] → boolean [n, size]."""
    return torch.arange(size, device=counts.device) < counts[:, None]


def _initialise(module: Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
