"""A small language model that is called as those of transformers are."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

Past = tuple[tuple[Tensor, Tensor], ...]       # of each layer keys and values [batch, heads, tokens, dim / heads]


class Answer(NamedTuple):
    logits: Tensor                             # [batch, tokens, vocabulary]
    past_key_values: Past | None


class GPT(Module):
    """Tokens → logits of the token that follows each: layer norms first, learned positions, one matrix for embedding and output.

    vocabulary, length   number of tokens there are, and most that a text may have
    eos, pad             ids of the token that ends a text and of the one that pads, told in `config` as transformers tells them

    forward   input_ids [batch, new]; attention_mask [batch, past + new], 0 at padding, or what is added to the scores
              [batch, 1, new, past + new]; position_ids [batch, new]; the cache that the call before returned
    """

    def __init__(self, vocabulary: int, dim: int = 64, layers: int = 2, heads: int = 4, length: int = 64, *,
                 eos: int = 0, pad: int = 0):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocabulary, eos_token_id=eos, pad_token_id=pad)
        self.embed, self.places = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for table in (self.embed, self.places):
            nn.init.normal_(table.weight, std=(2 * dim) ** -0.5)      # 0.026 at the width of GPT-2, which has 0.02

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
                past_key_values: Past | None = None, use_cache: bool = False, logits_to_keep: int = 0) -> Answer:
        past = past_key_values[0][0].shape[2] if past_key_values else 0
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        mask = attention_mask
        if mask is None or mask.dim() == 2:
            keys = torch.arange(past + len(places), device=input_ids.device)
            mask = keys <= places[:, None]                                                   # [new, past + new]
            if attention_mask is not None:      # padding sees itself, so that no row is empty
                mask = mask & attention_mask[:, None, None].bool() | (keys == places[:, None])
        x = self.embed(input_ids) + self.places(places if position_ids is None else position_ids)
        now = []
        for n, block in enumerate(self.blocks):
            x, pair = block(x, mask, past_key_values[n] if past_key_values else None)
            now.append(pair)
        logits = F.linear(self.norm(x[:, -logits_to_keep:]), self.embed.weight)
        return Answer(logits, tuple(now) if use_cache else None)


class Block(Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, …]
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.mlp(x), (k, v)
