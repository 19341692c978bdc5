"""Comparisons over a vocabulary, walked in chunks of tokens: the logits of the whole batch never exist.

`terms` takes hidden states and the head that makes logits of them. A chunk at a time it computes student and teacher logits, the
divergence of each token and at once its gradient in hidden states, weight and bias, so that backward only multiplies. Beside what
it is given it holds one gradient of the head and two buffers [chunk, vocabulary], by default as large together as the head.

How two distributions compare is a function of their log-probabilities, student's first, [rows, ids] each, that returns its value
[rows] and its derivative in the student's log-probabilities [rows, ids]; any other function of that shape will do.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED

NEVER = -1e30          # log-probability of what a logit of −∞ rules out: finite, so that 0·log 0 is 0


class Head(NamedTuple):
    """From hidden states to logits: z = scale·(h·Wᵀ + b), then cap·tanh(z/cap) where there is a soft-cap."""
    weight: Tensor                 # [vocabulary, dim]
    bias: Tensor | None = None     # [vocabulary]
    scale: float = 1.0             # logit_scale of Cohere's models, 1/logits_scaling of Granite's
    cap: float | None = None       # final_logit_softcapping of Gemma 2


class Top(NamedTuple):
    """The teacher's k likeliest ids and their log-probabilities, taken at the temperature of the comparison.

    What they lack to a sum of one is the tail. A token's ids differ from one another; a place of log-probability −∞ is unused,
    and whatever id stands there belongs to the tail.
    """
    ids: Tensor                    # [..., k]
    logp: Tensor                   # [..., k]


class Terms(NamedTuple):
    soft: Tensor                   # scalar, nats: against the teacher; 0 without one
    hard: Tensor                   # scalar, nats: cross-entropy with the labels; 0 without them


# --- how two distributions compare: log-probabilities [rows, ids] → value [rows], derivative in the student's [rows, ids] ---

def forward_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q), p the teacher (Hinton et al. 2015)."""
    p = teacher.exp()
    return (p * (teacher - student)).sum(-1), p.neg_()


def reverse_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p), q the student (MiniLLM, Gu et al. 2024), over the whole vocabulary at given prefixes."""
    q, gap = student.exp(), student - teacher
    return (q * gap).sum(-1), q * (gap + 1)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """β·KL(p ‖ m) + (1−β)·KL(q ‖ m), m = βp + (1−β)q (GKD, Agarwal et al. 2024, eq. 1); for β → 0 it is β·KL(p ‖ q)."""
    inside(beta, "beta", "forward_kl and reverse_kl are what is left at 0 and 1, divided by β and 1−β")
    m = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    slope = (1 - beta) * student.exp() * (student - m)
    return slope.sum(-1) + beta * (teacher.exp() * (teacher - m)).sum(-1), slope


def skew_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """KL(p ‖ αp + (1−α)q) (DistiLLM, Ko et al. 2024, sec. 3.1)."""
    inside(alpha, "alpha", "at 0 it is forward_kl, at 1 it is 0")
    own = student + math.log(1 - alpha)
    m = torch.logaddexp(teacher + math.log(alpha), own)
    p = teacher.exp()
    return (p * (teacher - m)).sum(-1), -p * (own - m).exp()


def skew_reverse_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """KL(q ‖ αq + (1−α)p) (DistiLLM, Ko et al. 2024, sec. 3.1)."""
    inside(alpha, "alpha", "at 0 it is reverse_kl, at 1 it is 0")
    own = student + math.log(alpha)
    m = torch.logaddexp(own, teacher + math.log(1 - alpha))
    q, gap = student.exp(), student - m
    return (q * gap).sum(-1), q * (gap + 1 - (own - m).exp())


def inside(share: float, name: str, remedy: str) -> None:
    if not 0 < share < 1:
        raise Refused(f"{name} is {share}, and must lie between 0 and 1", remedy)


# --- the objective -----------------------------------------------------------------------------------------------------

def terms(hidden: Tensor, head: Head, taught: tuple[Tensor, Head] | Tensor | Top | None = None, labels: Tensor | None = None, *,
          per: Literal["tokens", "batch"] | float, compare: Callable = forward_kl, temperature: float = 1.0,
          top: int | None = None, mask: Tensor | None = None, vocabulary: int | None = None,
          together: tuple[float, float] | None = None, chunk: int | None = None) -> Terms:
    """T²·compare(student, teacher) and cross-entropy with the labels: sums over tokens, each divided by what `per` says.

    hidden [..., dim]; taught: the teacher's hidden states [..., dim] and head, its logits [..., vocabulary], or its `Top`; no
    gradient reaches it. labels [...], already shifted, `UNLABELLED` where there is none. mask [...]: weight of each token; by
    default 1 where a label is, 1 everywhere without labels. Tokens of weight 0 (padding, a prompt, an end that pads) are not
    computed at all. per: "tokens" divides each term by the sum of its weights, "batch" by len(hidden), a number by itself, which
    is what parts of a batch need to add up to the whole.
    top: both distributions become the teacher's k likeliest ids and one tail of all others (a `Top` always does).
    vocabulary: the ids both nets share, 0 … vocabulary−1. Columns beyond, padded or foreign, are left out before the softmax.
    together=(a, b): returns a·soft and b·hard and keeps one gradient for both, which saves a quarter of the time; they must then
    be descended as one sum. Otherwise a gradient for each is kept and the terms may be weighted at will.
    The gradient is computed while looking forward: backward may run many times, but is not differentiated itself.
    Raises `Refused` where widths differ without `vocabulary`, and where a label or id lies beyond it.
    """
    flat, tokens = hidden.flatten(0, -2), hidden.shape[:-1].numel()
    for name, given in (("mask", mask), ("labels", labels), ("taught", taught[0] if isinstance(taught, tuple) else taught)):
        if given is not None and hidden.shape[:-1] != given.shape[: hidden.dim() - 1]:
            raise Refused(f"{name} is {list(given.shape)} for hidden states {list(hidden.shape)}", "give one row for each token")
    ids = shared(head, taught, vocabulary)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weights = torch.ones(tokens, dtype=exact, device=hidden.device) if mask is None else mask.flatten().to(exact)
    answers = None if labels is None else labels.flatten()
    on_labels = weights if answers is None else weights * (answers != UNLABELLED)
    both = torch.stack([weights if mask is not None else on_labels, on_labels])          # [terms, tokens]
    both *= torch.tensor([[taught is not None], [labels is not None]], device=hidden.device)
    if answers is not None:
        check(answers[both[1] != 0], ids, "a label")
    if isinstance(taught, Top):
        check(taught.ids.flatten(0, -2)[both[0] != 0], ids, "the teacher's id")
    size = both.sum(1) if per == "tokens" else torch.full_like(both[:, 0], len(hidden) if per == "batch" else per)
    share = together or (1.0, 1.0)
    factor = torch.tensor(share, dtype=exact, device=hidden.device) / torch.where(size == 0, 1, size)      # [terms]
    asked = [term for term, given in enumerate((taught, labels)) if given is not None]
    merged = together is not None and len(asked) == 2
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, head.weight, head.bias))
    task = Task(head.scale, head.cap, taught, answers, both, factor, factor.abs().max(), asked, merged, compare, temperature, top,
                ids, chunk or max(64, hidden.shape[-1] // 2), grad)
    return Terms(*Walk.apply(flat, head.weight, head.bias, task))


def shared(head: Head, taught, vocabulary: int | None) -> int:
    """How many leading ids are compared. Equal widths say so themselves; of others the caller must know that the ids agree."""
    own = len(head.weight)
    theirs = own
    if taught is not None and not isinstance(taught, Top):
        theirs = len(taught[1].weight) if isinstance(taught, tuple) else taught.shape[-1]
    if vocabulary is None and own != theirs:
        raise Refused(f"the student's head has {own} ids, the teacher's {theirs}",
                      "encode one text with both tokenizers; if the ids agree, give the number they share as vocabulary=…")
    if vocabulary is not None and not 0 < vocabulary <= min(own, theirs):
        raise Refused(f"vocabulary={vocabulary}, but the heads have {own} and {theirs} ids", f"at most {min(own, theirs)}")
    return vocabulary or own


def check(found: Tensor, ids: int, what: str) -> None:
    if found.numel() and (found.min() < 0 or found.max() >= ids):
        beyond = found[(found < 0) | (found >= ids)][0].item()
        raise Refused(f"{what} {beyond} lies outside the {ids} ids that are compared", "mask that token, or raise vocabulary=…")


# --- the walk ----------------------------------------------------------------------------------------------------------

class Task(NamedTuple):
    scale: float
    cap: float | None
    taught: Any          # as `terms` takes it
    labels: Tensor | None
    weights: Tensor      # [terms, tokens]
    factor: Tensor       # [terms]
    largest: Tensor      # of the factors; the gradient is kept free of it, so that fp16 does not lose it
    asked: list[int]     # 0 soft, 1 hard
    merged: bool         # one gradient for both
    compare: Callable
    temperature: float
    top: int | None
    ids: int
    chunk: int
    grad: bool


class Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, task):
        kind = hidden.device.type
        low = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if low else hidden.dtype
        exact = task.weights.dtype                               # of the softmax, of sums, of the head's gradient
        ctx.dtypes, ctx.task = [None if x is None else x.dtype for x in (hidden, weight, bias)], task
        to_hidden, to_weight, to_bias = (task.grad and need for need in ctx.needs_input_grad[:3])
        kept = 1 if task.merged else len(task.asked)
        values = torch.zeros_like(task.weights)                  # [terms, tokens]
        d_hidden = hidden.new_zeros(kept, *hidden.shape, dtype=dtype) if to_hidden else None
        d_weight = weight.new_zeros(kept, *weight.shape, dtype=exact) if to_weight else None
        d_bias = bias.new_zeros(kept, len(bias), dtype=exact) if to_bias else None
        with torch.autocast(kind, enabled=False):
            w, b = (None if x is None else x[: task.ids].to(dtype) for x in (weight, bias))
            rows = (task.weights != 0).any(0).nonzero().flatten()
            own, theirs, second = buffers(task, min(task.chunk, len(rows)), hidden, dtype, low, kept)
            for at in rows.split(task.chunk):
                h, slopes = hidden[at].to(dtype), [x[: len(at)] for x in (own, second) if x is not None]
                scores(h, w, b, slopes[0])
                if theirs is not None:
                    taught, by = task.taught
                    t, v, c = (None if x is None else x.to(theirs.dtype) for x in (taught.flatten(0, -2)[at], *by[:2]))
                    scores(t, v[: task.ids], None if c is None else c[: task.ids], theirs[: len(at)])
                few = max(1, (2**18 if kind == "cpu" else 2**24) // task.ids)         # rows whose numbers stay in the cache
                for i in range(0, len(at), few):
                    block = slice(i, min(i + few, len(at)))
                    values[:, at[block]], found = descend(task, at[block], own[block], None if theirs is None else theirs[block])
                    for slope, f in zip(slopes, found):
                        slope[block] = f                         # the logits of these rows have served; derivatives replace them
                for n in range(kept if task.grad else 0):
                    if to_hidden:
                        d_hidden[n, at] = slopes[n] @ w
                    if to_weight and dtype == exact:
                        d_weight[n, : task.ids].addmm_(slopes[n].T, h)
                    elif to_weight:
                        for i in range(0, task.ids, 2**14):      # a piece at a time: no second gradient of the head
                            d_weight[n, i : min(i + 2**14, task.ids)] += slopes[n][:, i : i + 2**14].T @ h
                    if to_bias:
                        d_bias[n, : task.ids] += slopes[n].sum(0, dtype=exact)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return tuple((values * task.weights).sum(1) * task.factor)

    @staticmethod
    def backward(ctx, soft, hard):
        if torch.is_grad_enabled():                              # create_graph=True would take these gradients for constants
            raise Refused("a chunked objective is not differentiated twice", "use the dense formula for create_graph=True")
        task, upstream = ctx.task, torch.stack([soft, hard])
        if task.merged and soft != hard:
            raise Refused("soft and hard come back with different factors, but together=(…) keeps one gradient for both",
                          "give the weights in together=(…) and descend the sum of both terms")
        by = upstream[:1] * task.largest if task.merged else (upstream * task.factor)[task.asked]          # [kept]
        return *(None if kept is None else reduce(torch.add, (x * g for x, g in zip(kept, by))).to(dtype)
                 for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes)), None


def buffers(task: Task, rows: int, hidden: Tensor, dtype: torch.dtype, low: bool, kept: int):
    """Space for a chunk's logits, the student's and (where computed) the teacher's, and for the gradient of a second term."""
    theirs = None
    if isinstance(task.taught, tuple) and not isinstance(task.taught, Top):
        theirs = hidden.new_empty(rows, task.ids, dtype=dtype if low else task.taught[0].dtype)
    own = hidden.new_empty(rows, task.ids, dtype=dtype)
    fits = theirs is not None and theirs.dtype == dtype
    return own, theirs, None if kept < 2 else theirs if fits else torch.empty_like(own)


def scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(bias, hidden, weight.T, out=out)


def shaped(logits: Tensor, scale: float, cap: float | None, exact: torch.dtype) -> Tensor:
    z = logits.to(exact) * scale if scale != 1 else logits.to(exact)
    return (z if cap is None else cap * (z / cap).tanh()).clamp(min=NEVER)


def descend(task: Task, at: Tensor, raw: Tensor, theirs: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Of the tokens `at`: values [terms, rows] and, a term or for both, the gradient in the student's raw logits [rows, ids]."""
    weights, T, slopes = task.weights[:, at], task.temperature, []
    z = shaped(raw, task.scale, task.cap, weights.dtype)
    values = torch.zeros_like(weights)
    if task.taught is not None:
        softened = z if T == 1 else z / T
        ids, teacher, unused = target(task, at, theirs, weights.dtype)
        student = softened.log_softmax(-1) if ids is None else buckets(softened, ids, unused)
        value, slope = task.compare(student, teacher)
        slope = torch.addcmul(slope, student.exp(), slope.sum(-1, keepdim=True), value=-1)        # through the softmax
        values[0] = T**2 * value
        slopes.append((slope if ids is None else spread(softened, ids, slope)).mul_(T * weights[0][:, None]))
    if task.labels is not None:
        y, logp = torch.where(weights[1] != 0, task.labels[at], 0)[:, None], z.log_softmax(-1)
        values[1] = -logp.gather(1, y).squeeze(1)
        slopes.append(logp.exp().scatter_add_(1, y, -torch.ones_like(y, dtype=logp.dtype)).mul_(weights[1][:, None]))
    if task.merged:
        soft, hard = task.factor / task.largest
        slopes = [slopes[0].mul_(soft).add_(slopes[1].mul_(hard))]
    if task.cap is not None:
        slopes = [slope.mul_(1 - (z / task.cap).square()) for slope in slopes]
    return values, slopes if task.scale == 1 else [slope.mul_(task.scale) for slope in slopes]


def target(task: Task, at: Tensor, theirs: Any, exact: torch.dtype) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The ids, None: all of them; the teacher's log-probabilities of these, the tail last; the places that are unused, if any.
    An unused place repeats the likeliest id, so that it hides no other from the tail."""
    if isinstance(task.taught, Top):
        ids, logp = (x.flatten(0, -2)[at] for x in task.taught)
        logp = logp.to(exact)
        unused = logp == -math.inf
        ids = torch.where(unused, ids.gather(1, logp.argmax(1, keepdim=True)), ids)
        listed = logp.exp().sum(-1, keepdim=True).clamp(max=1)
        tail = torch.log1p(-listed if ids.shape[-1] < task.ids else -torch.ones_like(listed))     # rounding is no mass
        return ids, torch.cat([logp, tail], -1).clamp(min=NEVER), unused
    if isinstance(task.taught, Tensor):
        z = shaped(task.taught.flatten(0, -2)[at, : task.ids], 1.0, None, exact)
    else:
        z = shaped(theirs, task.taught[1].scale, task.taught[1].cap, exact)
    z = z if task.temperature == 1 else z / task.temperature
    if task.top is None:
        return None, z.log_softmax(-1), None
    ids = z.topk(task.top, -1).indices
    return ids, buckets(z, ids), None


def buckets(z: Tensor, ids: Tensor, unused: Tensor | None = None) -> Tensor:
    """Log-probabilities [rows, k+1] of the ids and of all others as one; of an unused place as good as −∞."""
    listed = z.gather(1, ids) if unused is None else z.gather(1, ids).masked_fill(unused, NEVER)
    return torch.cat([listed, others(z, ids)[1]], -1).log_softmax(-1)


def others(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The logits without those of the ids, and the logarithm of their summed exponentials [rows, 1]."""
    rest = z.scatter(1, ids, -math.inf)
    return rest, rest.logsumexp(-1, keepdim=True).clamp(min=NEVER)


def spread(z: Tensor, ids: Tensor, slope: Tensor) -> Tensor:
    """From derivatives in the buckets' logits [rows, k+1] to those in all logits: the tail's is shared out by probability."""
    rest, total = others(z, ids)
    return ((rest - total).exp_() * slope[:, -1:]).scatter_add_(1, ids, slope[:, :-1])
