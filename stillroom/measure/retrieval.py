"""Judges of rankings: how many of the right documents were found, and how high."""

from collections.abc import Collection, Sequence

from torch import Tensor

from stillroom.errors import Refused


def recall(found: Tensor, relevant: Sequence[Collection[int]], k: int = 10) -> float:
    """Of the relevant documents the share among the first k, mean over queries, in percent.

    found     document numbers [queries, at least k], the best first; −1 where none was found
    relevant  of each query the numbers of its relevant documents
    Queries without a relevant document are left out, here and below. Raises `Refused` where none has any.
    """
    return _mean([len(set(row[:k]) & set(right)) / len(set(right)) for row, right in _judged(found, relevant)])


def mrr(found: Tensor, relevant: Sequence[Collection[int]], k: int = 10) -> float:
    """One over the rank of the first relevant document, 0 where it is not among the first k; mean over queries, in percent."""
    return _mean([next((1 / rank for rank, one in enumerate(row[:k], 1) if one in right), 0.0)
                  for row, right in _judged(found, relevant)])


def average_precision(found: Tensor, relevant: Sequence[Collection[int]]) -> float:
    """MAP in percent: at the rank of each relevant document the share of relevant ones so far, summed and divided by how many
    there are, found or not; mean over queries."""
    scores = []
    for row, right in _judged(found, relevant):
        ranks = [rank for rank, one in enumerate(row, 1) if one in right]
        scores.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(set(right)))
    return _mean(scores)


def _judged(found: Tensor, relevant: Sequence[Collection[int]]) -> list[tuple[list[int], Collection[int]]]:
    pairs = [(row, right) for row, right in zip(found.tolist(), relevant, strict=True) if len(right)]
    if not pairs:
        raise Refused("no query has a relevant document", "give judgements of at least one")
    return pairs


def _mean(scores: list[float]) -> float:
    return 100 * sum(scores) / len(scores)
