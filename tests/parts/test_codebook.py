"""A codebook: the nearest code, the gradient that passes it, means that follow, codes that begin anew, several in a row."""

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.parts.clusters import kmeans
from stillroom.parts.codebook import Codebook, drawn, straight_through, usage


def some(n=200, dim=6, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def book(codes=8, dim=6, **named):
    torch.manual_seed(1)
    return Codebook(codes, dim, **named)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_code_and_its_distance_as_written_out(cosine):
    ours, x = book(cosine=cosine), some(24).reshape(4, 6, 6)
    found = ours(x)
    for a in range(4):
        for b in range(6):
            v, codes = x[a, b].double(), ours.codes.double()
            likeness = torch.stack([v @ e / v.norm() / e.norm() if cosine else -(v - e).square().sum() for e in codes])
            assert torch.allclose(ours.scores(x[a, b]).double(), likeness, atol=1e-5)
            assert found.code[a, b] == likeness.argmax()
            assert torch.allclose(found.value[a, b], ours.codes[found.code[a, b]], atol=1e-6)
    target = F.normalize(x, dim=-1) if cosine else x
    assert found.commit == pytest.approx((target - ours.codes[found.code]).square().mean().item(), rel=1e-5)


def test_the_gradient_passes_as_if_nothing_had_been_quantised():
    x = some(10).requires_grad_()
    weight = some(10, seed=2)
    (book()(x).value * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    x.grad = None
    ours = book()
    found = ours(x)
    found.commit.backward()
    assert torch.allclose(x.grad, 2 * (x - ours.codes[found.code]).detach() / x.numel(), atol=1e-7)
    assert not ours.codes.requires_grad
    assert straight_through(x.bfloat16(), ours.codes[found.code]).dtype == torch.bfloat16


def test_the_running_means_are_those_of_the_paper_in_float64():
    ours = book(decay=0.8)
    count, total = torch.ones(8, dtype=torch.float64), ours.codes.double()
    codes = total.clone()
    for step in range(12):
        x = some(40, seed=step)
        index = ours(x).code
        for k in range(8):
            mine = x[index == k].double()
            count[k] = 0.8 * count[k] + 0.2 * len(mine)
            total[k] = 0.8 * total[k] + 0.2 * mine.sum(0)
            if len(mine):
                codes[k] = total[k] / count[k]
        ours.follow(x, index)
        assert torch.allclose(ours.codes.double(), codes, atol=1e-5)
        assert torch.allclose(codes, total / count[:, None], atol=1e-12)       # staying is what the formula says, too


@pytest.mark.parametrize("cosine", [False, True])
def test_one_vector_draws_its_code_in_geometrically_and_leaves_the_others(cosine):
    ours, x = book(decay=0.8, cosine=cosine), some(1)
    x = F.normalize(x, dim=-1) if cosine else x
    index = ours(x).code
    before, others = (ours.total[index] - x).norm(), torch.arange(8) != index
    codes = ours.codes.clone()
    for n in range(1, 20):
        ours.follow(x, index)
        assert (ours.total[index] - x).norm() == pytest.approx(before.item() * 0.8**n, rel=1e-2)
    assert torch.equal(ours.codes[others], codes[others])
    if cosine:
        assert torch.allclose(ours.codes.norm(dim=-1), torch.ones(8), atol=1e-6)


def test_a_code_that_nobody_used_for_ages_stays_and_comes_back():
    ours = book(decay=0.5)
    codes = ours.codes.clone()
    for _ in range(2000):                                       # its running count is 0 by now
        ours.follow(some(4), torch.zeros(4, dtype=torch.long))
    assert torch.equal(ours.codes[1:], codes[1:]) and ours.codes.isfinite().all()
    x = some(3, seed=5)
    ours.follow(x, torch.ones(3, dtype=torch.long))
    assert torch.allclose(ours.codes[1], x.mean(0), atol=1e-6)


def test_as_many_codes_as_vectors_lose_nothing():
    x = some(16)
    ours = book(16)
    ours.begin(x)
    found = ours(x)
    assert found.commit < 1e-12 and len(found.code.unique()) == 16 and torch.allclose(found.value, x, atol=1e-6)


def test_dead_codes_begin_anew_as_vectors_at_hand():
    ours, x = book(decay=0.5, least=0.2), some(6)
    for _ in range(2):
        ours.follow(x, torch.zeros(6, dtype=torch.long))
    kept = ours.codes[1:].clone()
    assert (ours.count[1:] == 0.25).all()
    ours.follow(x, torch.zeros(6, dtype=torch.long))            # 0.125 < 0.2
    assert (ours.count[1:] == 0.2).all() and not torch.equal(kept, ours.codes[1:])
    assert all((x == code).all(1).any() for code in ours.codes[1:])
    assert len(drawn(x, 6).unique(dim=0)) == 6 and len(drawn(x, 13).unique(dim=0)) == 6


def test_ranks_that_see_halves_end_with_the_codes_of_one_that_sees_all():
    x = some(40)
    whole, half = book(), book()
    for ours in (whole, half):
        ours.count.zero_(), ours.total.zero_()                  # else what they began with weighs differently
    index = whole(x).code
    whole.follow(x, index)
    parts = [(x[:20], index[:20]), (x[20:], index[20:])]

    def mean(t):                                                # what run.mean gives on both ranks, for counts, then for sums
        counts = [torch.bincount(i, minlength=8).float() for _, i in parts]
        sums = [torch.zeros(8, 6).index_add_(0, i, v) for v, i in parts]
        return sum(counts if t.ndim == 1 else sums) / 2
    half.follow(*parts[0], mean=mean)
    assert torch.allclose(half.codes, whole.codes, atol=1e-6)


def test_kmeans_finds_clusters_that_lie_apart():
    centres = 10 * torch.eye(4)
    x = (centres[:, None] + 0.1 * some(40 * 4, 4).reshape(4, 40, 4)).flatten(0, 1)
    torch.manual_seed(3)
    best = min((kmeans(x, 4, 10) for _ in range(5)), key=lambda c: torch.cdist(x, c).min(1).values.sum())
    assert torch.cdist(centres, best).min(1).values.max() < 0.1


def test_books_in_a_row_leave_less_and_less():
    x, rest, left = some(500), some(500), []
    for number in range(4):
        torch.manual_seed(number)
        one = Codebook(16, 6)
        one.begin(rest)
        rest = rest - one(rest).value.detach()
        left.append((rest.square().mean() / x.square().mean()).item())
    assert all(b < 0.8 * a for a, b in zip([1.0, *left], left))


def test_usage_counts_codes_and_their_perplexity():
    assert usage(torch.tensor([0, 0, 1, 1, 3, 3]), 8) == (3, pytest.approx(3.0))
    assert usage(torch.zeros(5, dtype=torch.long), 8) == (1, pytest.approx(1.0))
    share = torch.tensor([0.5, 0.25, 0.25])
    assert usage(torch.tensor([0, 0, 1, 2]), 3)[1] == pytest.approx(math.exp(-(share * share.log()).sum().item()))
