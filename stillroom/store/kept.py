"""What is kept of a distribution over many ids, and tokens of it in few bytes.

A token's ids and its tail, which stands as an id after the last, are numbers below ids + 1. Put one token behind another they
rise, and so do the sums of the levels that stand for the square roots of their probabilities: a sample is two rising rows of
numbers, which `bits.rise` codes near the limit. How many ids a token has need not be told: its tail ends it.

Why square roots: KL(p ‖ q) ≈ 2·Σ(√p − √q)², so that equal steps in √p spend bits where they lower the error.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.store.bits import rise, risen

LEVELS = 128          # steps between 0 and the largest √p of a token: 2e-4 nats of error
PIECE = 2**22         # logits that are looked at together


@dataclass(frozen=True)
class Kept:
    """Listed ids, their log-probabilities, and that of all others as one. An unused place has id `classes` and −∞."""
    ids: Tensor       # [rows, k]
    logp: Tensor      # [rows, k]
    rest: Tensor      # [rows, 1]
    classes: int

    def __getitem__(self, rows: slice) -> "Kept":
        return Kept(self.ids[rows], self.logp[rows], self.rest[rows], self.classes)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Kept":
        return Kept(self.ids.to(device), self.logp.to(device), self.rest.to(device), self.classes)

    def summed(self) -> "Kept":
        """The same, so that its sum is one."""
        total = torch.logaddexp(self.logp.logsumexp(1, keepdim=True), self.rest)
        return Kept(self.ids, self.logp - total, self.rest - total, self.classes)

    def softened(self, temperature: float) -> "Kept":
        """The same at a temperature, as if the tail were shared out evenly; its sum is one."""
        many = self._others()
        return Kept(self.ids, self.logp / temperature, (self.rest - many) / temperature + many, self.classes).summed()

    def dense(self) -> Tensor:
        """Log-probabilities of every id [rows, classes]; the tail is shared out evenly. Their sum is one to the rounding of the
        codec, and exactly after `summed`."""
        whole = (self.rest - self._others()).repeat(1, self.classes + 1)
        return whole.scatter_(1, self.ids, self.logp)[:, :-1]

    def _others(self) -> Tensor:
        """Logarithm of how many ids make the tail [rows, 1]."""
        return (self.classes - self.logp.isfinite().sum(1, keepdim=True)).log()


def keep(given: Tensor | Kept, k: int, mass: float | None = None) -> Kept:
    """The k likeliest of logits [rows, classes], likeliest first; with `mass` the fewest of them that hold this share of the
    probability, without those whose level would be 0."""
    if isinstance(given, Kept):
        return given
    parts = [_keep(piece, k, mass) for piece in given.split(max(1, PIECE // given.shape[1]))]
    ids, logp, rest = map(torch.cat, zip(*parts, strict=True))
    return Kept(ids, logp, rest, given.shape[1])


def _keep(logits: Tensor, k: int, mass: float | None) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = z.logsumexp(1, keepdim=True)
    top, ids = z.topk(k)                                                             # [rows, k], descending
    logp = top - total
    used = torch.ones_like(ids, dtype=torch.bool)
    if mass is not None:
        p = logp.exp()
        used = (p.cumsum(1) - p < mass) & (logp > logp[:, :1] - 2 * np.log(2 * LEVELS))
    rest = z.scatter(1, torch.where(used, ids, ids[:, :1]), -torch.inf).logsumexp(1, keepdim=True) - total
    if mass is not None:
        ids, logp = ids.where(used, logits.shape[1]), logp.where(used, -torch.inf)
    return ids.cpu(), logp.cpu(), rest.cpu()


def to_bytes(kept: Kept) -> bytes:
    """All rows, the tokens of one sample."""
    ids = torch.cat([kept.ids, torch.full_like(kept.ids[:, :1], kept.classes)], 1)   # the tail, after unused places
    logp = torch.cat([kept.logp, kept.rest], 1).double()
    if not len(ids):
        return rise(np.empty(0, np.int64)) * 2
    level = ((logp - logp.amax(1, keepdim=True)).div(2).exp() * LEVELS).round().clamp(min=1).long()
    used = logp.isfinite()
    used[:, -1] = True
    ids, order = ids.where(used, kept.classes + 1).sort(1)
    used = used.gather(1, order)
    place = ids + (kept.classes + 1) * torch.arange(len(ids))[:, None]
    return rise(place[used].numpy()) + rise((level.gather(1, order)[used] - 1).cumsum(0).numpy())


def from_bytes(raw: np.ndarray, rows: int, classes: int) -> Kept:
    """What `to_bytes` was given, its levels rounded, summing to one; ids ascend. Raises `Refused` for other bytes."""
    places, raw = risen(raw)
    sums, raw = risen(raw)
    row, ids = np.divmod(places, classes + 1)
    tails, count = ids == classes, np.bincount(row, minlength=rows)
    if len(raw) or len(places) != len(sums) or not np.array_equal(row[tails], np.arange(rows)):
        raise Refused(f"these bytes do not hold {rows} tokens over {classes} ids", "read them as they were written")
    level = np.diff(sums, prepend=0) + 1.0
    logp = 2 * np.log(level) - np.log(np.bincount(row, level**2, minlength=rows))[row]
    column = np.arange(len(row)) - (count.cumsum() - count)[row]
    k = max(1, count.max(initial=1) - 1)
    found = Kept(torch.full((rows, k), classes), torch.full((rows, k), -torch.inf),
                 torch.from_numpy(logp[tails]).float()[:, None], classes)
    at = torch.from_numpy(row[~tails]), torch.from_numpy(column[~tails])
    found.ids[at], found.logp[at] = torch.from_numpy(ids[~tails]), torch.from_numpy(logp[~tails]).float()
    return found
