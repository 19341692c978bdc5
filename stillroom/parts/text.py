"""Causal language models as policies: what they say, how likely it was, and many texts in one row.

A model is called as those of transformers: `model(input_ids=…, attention_mask=…, position_ids=…, past_key_values=…, use_cache=…)`
returns an object with `logits` [rows, tokens, vocabulary] and `past_key_values`, and `model.config` names `eos_token_id`.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from stillroom.errors import Refused
from stillroom.measure.cost import resting
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import held

CHUNK = 2**24       # logits whose softmax is computed at a time


class Completions(NamedTuple):
    """Prompts and what was said after them, row by row; the completions of one prompt follow each other."""
    ids: Tensor      # [rows, width + length]: left padding, prompt, completion, padding behind the token that ended it
    there: Tensor    # True where a token stands, that which ended the completion included, [rows, width + length]
    width: int       # of the prompts

    @property
    def said(self) -> Tensor:
        """The completions, [rows, length]."""
        return self.ids[:, self.width :]

    @property
    def mask(self) -> Tensor:
        """True at the tokens of the completions, [rows, length]."""
        return self.there[:, self.width :]


# --- what they say ---------------------------------------------------------------------------------------------------

@torch.no_grad()
def sample(model: Module, prompts: Tensor, length: int, *, count: int = 1, temperature: float = 1.0, top_k: int | None = None,
           top_p: float = 1.0, stops: Sequence[int] | None = None, there: Tensor | None = None,
           seeds: Sequence[int] | None = None) -> Completions:
    """Let the model go on after each prompt, `count` times, token by token with its cache, in eval mode.

    prompts [n, width], padded on the left. length: most tokens of a completion. temperature 0: the likeliest token; top_k and
    top_p as in `chances`. stops: ids that end a completion, by default those of the model's configuration. there: True at the
    prompts' tokens; by default all but the padding ids before the first other one.
    seeds: one for each completion [n · count], which then depends on nothing but its prompt and its seed; without them all are
    drawn from torch's global generator. Raises `Refused` for prompts that are empty or padded on the right, and where no id is
    known to end a text.
    """
    ends, pad = special(model, stops)
    wrong = prompts[:, -1] == pad if there is None else ~there[:, -1].bool()
    if wrong.any():
        raise Refused(f"{int(wrong.sum())} prompts are empty, or padded on the right",
                      "pad on the left; begin with the token that begins a text")
    there = (prompts != pad).cumsum(1) > 0 if there is None else there.bool()
    if seeds is not None and len(seeds) != len(prompts) * count:
        raise Refused(f"{len(seeds)} seeds for {len(prompts)} × {count} completions", "give one for each completion")
    dice = None if seeds is None else [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    ids, there = prompts.repeat_interleave(count, 0), there.repeat_interleave(count, 0)
    new, past, going = ids, None, torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    stop = torch.tensor(ends, device=ids.device)
    with resting(model):
        for _ in range(length):
            logits, past = _call(model, new, there, 1, past_key_values=past, use_cache=True)
            new = torch.where(going, draw(logits[:, -1], temperature, top_k, top_p, dice), pad)[:, None]
            ids, there = torch.cat([ids, new], 1), torch.cat([there, going[:, None]], 1)
            going = going & ~torch.isin(new[:, 0], stop)
            if not going.any():
                break
    return Completions(ids, there, prompts.shape[1])


def draw(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
         dice: Sequence[torch.Generator] | None = None) -> Tensor:
    """One id for each row of logits [rows, vocabulary], by one uniform number a row from its own generator or the global one."""
    if temperature == 0:
        return logits.argmax(-1)
    sums = chances(logits, temperature, top_k, top_p).cumsum(-1)
    kind: Any = {"dtype": sums.dtype, "device": sums.device}
    u = (torch.rand(len(sums), **kind) if dice is None
         else torch.stack([torch.rand((), dtype=torch.float64, generator=die) for die in dice]).to(**kind))
    return torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def chances(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Probabilities of the next id [rows, vocabulary] in float64: softened, then of the `top_k` likeliest alone, then of as few
    of these as hold `top_p` of the probability (Holtzman et al. 2020)."""
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    p = (logits.to(exact) / temperature).softmax(-1)
    if top_k is None and top_p >= 1:
        return p
    p, order = p.sort(-1, descending=True)
    if top_k is not None:
        p[:, top_k:] = 0
    p = p / p.sum(-1, keepdim=True)
    p = p * (p.cumsum(-1) - p < top_p)
    return torch.zeros_like(p).scatter(-1, order, p / p.sum(-1, keepdim=True))


def special(model: Module, stops: Sequence[int] | None = None) -> tuple[Sequence[int], int]:
    """Ids that end a text, and the id that pads (the first of those, where none is named), as the model's configuration tells
    them; `stops` in the place of the former. Raises `Refused` where no id ends a text."""
    net = held(model)[0]
    told = [getattr(net, about, None) for about in ("generation_config", "config")]
    ends, pad = (next((x for about in told if (x := getattr(about, name, None)) is not None), None)
                 for name in ("eos_token_id", "pad_token_id"))
    ends = stops or ends
    if ends is None:
        raise Refused("the model's configuration names no token that ends a text",
                      "model.config.eos_token_id = tokenizer.eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends
    return ends, ends[0] if pad is None else pad


# --- how likely it was -----------------------------------------------------------------------------------------------

def log_probs(model: Module, told: Completions, chunk: int = CHUNK) -> Tensor:
    """log π(yₜ | x, y₁ … yₜ₋₁) of the completions' tokens, in nats, fp32 at least: [rows, length], 0 where there is none."""
    length = told.said.shape[1]
    scores, _ = _call(model, told.ids[:, :-1], told.there[:, :-1], length, use_cache=False)
    return torch.where(told.mask, selected(scores, told.said, chunk), 0.0)


def logits(model: Module, ids: Tensor) -> Tensor:
    """Of the next token, [texts, length, symbols], for whole texts ids [texts, length]; those below 0 are no token, and are read
    as id 0. The model returns logits, or what has such `logits`."""
    said: Any = model(ids.clamp(min=0))
    return getattr(said, "logits", said)


def surprise(model: Module, ids: Tensor) -> Tensor:
    """−log p(token | all before it) in nats of texts, ids [texts, length]: [texts, length − 1], 0 where there is no token."""
    said = selected(logits(model, ids[:, :-1]), ids[:, 1:].clamp(min=0))
    return torch.where(ids[:, 1:] >= 0, -said, 0.0)


def selected(logits: Tensor, ids: Tensor, chunk: int = CHUNK) -> Tensor:
    """log softmax of the logits [..., vocabulary] at the ids [...]. About `chunk` numbers are worked on at a time, and computed
    again in the backward, so that beside the logits and their gradient no third of their size is held."""
    flat, y = logits.flatten(0, -2), ids.flatten()
    rows = max(1, chunk // logits.shape[-1])
    if len(flat) <= rows:
        return _selected(flat, y).view(ids.shape)
    parts = [checkpoint(_selected, z, some, use_reentrant=False, preserve_rng_state=False)
             for z, some in zip(flat.split(rows), y.split(rows), strict=True)]
    return torch.cat(parts).view(ids.shape)


def _selected(logits: Tensor, ids: Tensor) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(exact).log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _call(model: Module, ids: Tensor, there: Tensor, keep: int, **named) -> tuple[Tensor, Any]:
    """Logits of the last `keep` tokens, and the cache. Positions count the tokens that are there."""
    wanted = inspect.signature(held(model)[0].forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    more = {"position_ids": (there.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :], "logits_to_keep": keep}
    out = model(input_ids=ids, attention_mask=there.long(), **{k: v for k, v in more.items() if free or k in wanted}, **named)
    return out.logits[:, -keep:], out.past_key_values


# --- many texts in one row -------------------------------------------------------------------------------------------

class Packed(NamedTuple):
    """Texts one after another in rows of one length. All are [rows, length]."""
    ids: Tensor
    labels: Tensor       # the token that follows in the same text; −100 where there is none to learn
    positions: Tensor    # of a token in its text
    texts: Tensor        # number of the text that a token belongs to, −1 at padding

    def call(self, model: Module) -> Tensor:
        """Logits [rows, length, vocabulary], as if each text stood alone. The model must take masks of four dimensions."""
        dtype = next(model.parameters()).dtype
        return model(input_ids=self.ids, attention_mask=apart(self.texts, dtype), position_ids=self.positions,
                     use_cache=False).logits


def pack(texts: Sequence[Sequence[int]], length: int, *, pad: int = 0, skip: Sequence[int] | None = None) -> Packed:
    """Texts packed into rows, the longest first, each into the first row that has room. skip: how many tokens at the beginning
    of each text, such as its prompt, are not to be learnt. Raises `Refused` for a text longer than a row."""
    longest = max(map(len, texts), default=0)
    if longest > length:
        raise Refused(f"a text of {longest} tokens does not fit into {length}", "cut it, or make the rows longer")
    rows: list[list[int]] = []
    for n in sorted(range(len(texts)), key=lambda n: -len(texts[n])):
        row = next((row for row in rows if sum(len(texts[m]) for m in row) + len(texts[n]) <= length), None)
        rows.append([n]) if row is None else row.append(n)
    ids, labels, positions, owner = (torch.full((len(rows), length), fill) for fill in (pad, UNLABELLED, 0, -1))
    for r, row in enumerate(rows):
        start = 0
        for n in row:
            own, end = torch.tensor(texts[n]), start + len(texts[n])
            ids[r, start:end], positions[r, start:end], owner[r, start:end] = own, torch.arange(len(own)), n
            first = max(1, skip[n] if skip else 1)
            labels[r, start + first - 1 : end - 1] = own[first:]
            start = end
    return Packed(ids, labels, positions, owner)


def apart(texts: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What is added to the scores of attention so that a token sees those before it in its own text: 0, or the least number that
    there is. texts [rows, length] → [rows, 1, length, length]. Padding sees padding, so that no row is empty."""
    same = (texts[:, :, None] == texts[:, None]).tril()
    return torch.zeros(same.shape, dtype=dtype, device=texts.device).masked_fill(~same, torch.finfo(dtype).min)[:, None]
