"""Vision transformers: plain (Dosovitskiy et al. 2021), as masked autoencoder (He et al. 2022), with DeiT's second token."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # mean and deviation per channel
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}    # dim, depth, heads


class ViT(Module):
    """Pre-norm transformer over patches and one class token, with fixed sine-cosine positions.

    Images [batch, channels, height, width] in [0, 1] → logits [batch, classes], or with `classes=0` the feature [batch, dim]: the
    class token after the last norm. Other image sizes than `image` stretch the positions.

    image, patch   sides in pixels; `image` is a multiple of `patch`, other sizes given to it too
    mean, std      of the pixels, per channel or for all
    drop_path      share of samples that pass by the last block; earlier blocks less, in proportion (Huang et al. 2016)
    """

    def __init__(self, image: int = 224, patch: int = 16, channels: int = 3, dim: int = 384, depth: int = 12, heads: int = 6,
                 classes: int = 0, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5,
                 drop_path: float = 0.0):
        super().__init__()
        if image % patch or dim % 4 or dim % heads:
            raise Refused(f"a transformer of width {dim} with {heads} heads on patches of {patch} in images of {image}",
                          "the patch divides the image; 4 and the heads divide the width")
        self.image, self.patch, self.channels, self.dim, self.grid = image, patch, channels, dim, image // patch
        self.mean = nn.Buffer(torch.tensor(mean).expand(channels).reshape(-1, 1, 1).clone(), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).expand(channels).reshape(-1, 1, 1).clone(), persistent=False)
        self.embed = nn.Linear(channels * patch * patch, dim)
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, drop_path * i / max(1, depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        self.apply(_initialise)
        nn.init.normal_(self.cls, std=0.02)

    @property
    def tokens(self) -> int:
        """Number of patches of an image of the size it was made for."""
        return self.grid**2

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x)[:, 0])

    def encode(self, x: Tensor, *more: Tensor) -> Tensor:
        """All tokens after the last norm: class, patches, `more` [1, n, dim] without position; [batch, 1 + patches + n, dim]."""
        return self._attend(self._embedded(x), more)

    def encode_visible(self, x: Tensor, visible: Tensor) -> Tensor:
        """The same from some patches only, by their numbers [batch, seen], row by row: [batch, 1 + seen, dim]."""
        return self._attend(_pick(self._embedded(x), visible), ())

    def _embedded(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        height, width = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        return self.embed(patchify(x, self.patch)) + positions(self.dim, height, width, self.grid, x.device)

    def _attend(self, patches: Tensor, more: Sequence[Tensor]) -> Tensor:
        n = len(patches)
        x = torch.cat([self.cls.expand(n, -1, -1), patches, *(m.expand(n, -1, -1) for m in more)], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def vit(size: str = "small", patch: int = 16, **named) -> ViT:
    """A `ViT` of a published size, "tiny", "small", "base" or "large", normalised as for ImageNet; `named` as for `ViT`."""
    dim, depth, heads = SIZES[size]
    mean, std = IMAGENET
    return ViT(**{"patch": patch, "dim": dim, "depth": depth, "heads": heads, "mean": mean, "std": std, **named})


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); tokens [batch, tokens, dim]."""

    def __init__(self, dim: int, heads: int, drop: float = 0.0, ratio: int = 4):
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, d]
        x = x + self._dropped(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, self.drop) if self.training else branch


def stochastic_depth(branch: Tensor, drop: float) -> Tensor:
    """A branch [batch, tokens, dim], left out for each sample with probability `drop`, and larger where it stays (Huang et al.
    2016)."""
    return branch * (torch.rand(len(branch), 1, 1, device=branch.device) >= drop) / (1 - drop) if drop else branch


class MAE(Module):
    """A masked autoencoder: a ViT that sees some patches, and a smaller transformer that completes the others (He et al. 2022).

    encoder        a `ViT`; it is what remains after pre-training
    dim, depth, heads   of the decoder
    """

    def __init__(self, encoder: ViT, dim: int = 512, depth: int = 8, heads: int = 16):
        super().__init__()
        self.encoder, self.dim = encoder, dim
        self.embed = nn.Linear(encoder.dim, dim)
        self.unseen = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, encoder.channels * encoder.patch**2)
        for part in (self.embed, self.blocks, self.norm, self.predict):
            part.apply(_initialise)
        nn.init.normal_(self.unseen, std=0.02)

    def forward(self, x: Tensor, visible: Tensor, layers: int = 0) -> Tensor:
        """The decoder's hidden state after its first `layers` blocks (all when 0), before its norm: [batch, 1 + patches, dim].

        x [batch, channels, height, width]; visible: numbers of the patches that the encoder sees, [batch, seen]
        (`views.visible`).
        """
        height, width = x.shape[-2] // self.encoder.patch, x.shape[-1] // self.encoder.patch
        cls, seen = self.embed(self.encoder.encode_visible(x, visible)).tensor_split([1], 1)
        places = visible[..., None].expand_as(seen)
        full = self.unseen.to(seen.dtype).expand(len(x), height * width, -1).scatter(1, places, seen)
        state = torch.cat([cls, full + positions(self.dim, height, width, self.encoder.grid, x.device)], 1)
        for block in self.blocks[: layers or None]:
            state = block(state)
        return state

    def pixels(self, x: Tensor, visible: Tensor) -> Tensor:
        """Its guess at every patch, [batch, patches, channels·patch²]."""
        return self.predict(self.norm(self(x, visible)))[:, 1:]

    def loss(self, x: Tensor, visible: Tensor) -> Tensor:
        """Mean squared error over the patches that were not seen, each normalised to mean 0 and deviation 1 (sec. 4.1)."""
        error = (self.pixels(x, visible) - normalised(patchify(x, self.encoder.patch))).square().mean(-1)    # [batch, patches]
        unseen = torch.ones_like(error).scatter(1, visible, 0.0)
        return (error * unseen).sum() / unseen.sum()


class TwoTokens(Module):
    """A classifier with DeiT's second token, that answers to a teacher while the class token answers to the labels.

    Images → the mean of both heads' logits, [batch, classes] (Touvron et al. 2021, sec. 4; Huang et al. 2023, main_finetune_dis).
    """

    def __init__(self, encoder: ViT, classes: int):
        super().__init__()
        self.encoder = encoder
        self.token = nn.Parameter(torch.empty(1, 1, encoder.dim))
        self.labels, self.teacher = nn.Linear(encoder.dim, classes), nn.Linear(encoder.dim, classes)
        for weight, std in ((self.token, 0.02), (self.labels.weight, 2e-5), (self.teacher.weight, 2e-5)):
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        for head in (self.labels, self.teacher):
            nn.init.zeros_(head.bias)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the labels, and logits for the teacher."""
        tokens = self.encoder.encode(x, self.token)
        return self.labels(tokens[:, 0]), self.teacher(tokens[:, -1])

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x)
        return (a + b) / 2


def depths(encoder: ViT, fall: float) -> dict[Tensor, float]:
    """Share of the learning rate for each parameter of the encoder: `fall` to the power of the layers above it (Bao et al. 2022).

    The last norm has share 1, the last block `fall`, the embedding and the class token `fall` ** (depth + 1).
    """
    top = len(encoder.blocks) + 1
    shares = {p: fall**top for p in (encoder.cls, *encoder.embed.parameters())}
    for i, block in enumerate(encoder.blocks):
        shares.update({p: fall ** (top - 1 - i) for p in block.parameters()})
    return shares


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images [batch, channels, height, width] as flat patches, row by row: [batch, patches, channels·patch²]."""
    x = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))          # [batch, channels, rows, patch, columns, patch]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def normalised(patches: Tensor) -> Tensor:
    """Each patch with mean 0 and deviation 1 (unbiased, ε = 1e-6 under the root)."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def positions(dim: int, height: int, width: int, grid: int, device: torch.device | str = "cpu") -> Tensor:
    """Sine-cosine positions of a height × width grid of patches, in units of a grid × grid one: [1, patches, dim].

    The first half of `dim` tells the column, the second the row; each sines first, at 10000^(−4i/dim). `dim` is a multiple of 4.
    """
    rates = 10000 ** -(torch.arange(dim // 4, device=device) / (dim // 4))

    def line(n: int) -> Tensor:
        at = (torch.arange(n, device=device) + 0.5) * grid / n - 0.5
        angle = at[:, None] * rates
        return torch.cat([angle.sin(), angle.cos()], -1)                             # [n, dim / 2]

    columns, rows = line(width).expand(height, -1, -1), line(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)[None]


def _pick(tokens: Tensor, which: Tensor) -> Tensor:
    return tokens.gather(1, which[..., None].expand(-1, -1, tokens.shape[-1]))


def _initialise(module: Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
