"""Insides of transformers compared: the formulas written out in float64, and padding that counts nowhere."""

import math

import pytest
import torch

from stillroom.errors import Refused
from stillroom.parts.losses.latent import attention_kl, attention_mse, hidden_mse, uniform


def maps(heads, seed, there):
    """Attention [texts, heads, tokens, tokens] with nothing on padding."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(there), heads, there.shape[1], there.shape[1], generator=g, dtype=torch.float64)
    return scores.masked_fill(~there[:, None, None], -math.inf).softmax(-1)


THERE = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def test_the_layer_map_is_even_and_starts_at_the_embedding():
    assert uniform(4, 12) == [0, 3, 6, 9, 12]
    assert uniform(3, 3) == [0, 1, 2, 3] and uniform(1, 6) == [0, 6] and uniform(4, 6) == [0, 1, 3, 4, 6]
    for own, theirs in ((7, 6), (0, 6)):
        with pytest.raises(Refused, match="layer by layer"):
            uniform(own, theirs)


def test_the_squared_error_of_states_written_out():
    a, b = (torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    texts = []
    for n in range(3):
        tokens = [sum((a[n, t, d] - b[n, t, d]) ** 2 for d in range(4)) / 4 for t in range(5) if THERE[n, t]]
        texts.append(sum(tokens) / len(tokens))
    assert hidden_mse(a, b, THERE).item() == pytest.approx((sum(texts) / 3).item(), rel=1e-6)


@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
def test_attention_written_out_heads_averaged_where_they_do_not_match(heads):
    a, b = maps(heads[0], 0, THERE), maps(heads[1], 1, THERE)
    pairs = list(zip(a.unbind(1), b.unbind(1), strict=True)) if heads[0] == heads[1] else [(a.mean(1), b.mean(1))]
    kl, mse = [], []
    for n in range(3):
        real = [t for t in range(5) if THERE[n, t]]
        kl.append(sum(q[n, t, u] * math.log(q[n, t, u] / p[n, t, u]) for p, q in pairs for t in real for u in real)
                  / len(real) / len(pairs))
        mse.append(sum((q[n, t, u] - p[n, t, u]) ** 2 for p, q in pairs for t in real for u in real)
                   / len(real) ** 2 / len(pairs))
    assert attention_kl(a, b, THERE).item() == pytest.approx(float(sum(kl)) / 3, rel=1e-5)
    assert attention_mse(a, b, THERE).item() == pytest.approx(float(sum(mse)) / 3, rel=1e-5)


@pytest.mark.parametrize("compare", [attention_kl, attention_mse])
def test_neither_rows_nor_columns_of_padding_count(compare):
    a, b = maps(2, 0, THERE), maps(2, 1, THERE)
    dirty = a.clone()
    dirty[~THERE[:, None].expand(-1, 2, -1)] = 0.7                               # rows of padding
    dirty = torch.where(THERE[:, None, None], dirty, 0.3)                        # columns of padding
    assert compare(dirty, b, THERE).item() == compare(a, b, THERE).item() > 0.01
    assert compare(a, a, THERE).item() == 0.0
    states = torch.randn(3, 5, 4)
    assert hidden_mse(states, torch.where(THERE[..., None], states, 9.0), THERE).item() == 0.0


def test_what_dropout_zeroed_is_finite_and_without_gradient():
    a, b = maps(2, 0, THERE).float(), maps(2, 1, THERE).float()
    a[0, 0, 0, 1] = 0.0
    a.requires_grad_()
    loss = attention_kl(a, b, THERE)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all() and a.grad[0, 0, 0, 1] == 0 and a.grad[0, 0, 0, 2] != 0


def test_halves_of_a_batch_add_up_to_the_whole():
    a, b = maps(2, 0, THERE.repeat(2, 1)), maps(2, 1, THERE.repeat(2, 1))
    there = THERE.repeat(2, 1)
    for compare in (attention_kl, attention_mse):
        halves = [compare(a[h], b[h], there[h]) for h in (slice(0, 3), slice(3, 6))]
        assert compare(a, b, there).item() == pytest.approx((sum(halves) / 2).item(), rel=1e-6)
