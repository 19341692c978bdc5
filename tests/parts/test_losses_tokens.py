"""Objectives over a vocabulary, walked in chunks, against the dense formula written out in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from stillroom.errors import Refused
from stillroom.parts.losses import tokens as L
from stillroom.parts.losses.tokens import Head, Top, terms

B, S, D, V, E = 2, 7, 6, 23, 5          # sequences, tokens, width, ids, width of the teacher


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def jsd(p, q, b):
    return b * kl(p, b * p + (1 - b) * q) + (1 - b) * kl(q, b * p + (1 - b) * q)


COMPARISONS = {                          # ours, and the paper's formula of probabilities p (teacher), q (student)
    "forward": (L.forward_kl, kl),
    "reverse": (L.reverse_kl, lambda p, q: kl(q, p)),
    "jensen_shannon": (partial(L.jensen_shannon, beta=0.3), lambda p, q: jsd(p, q, 0.3)),
    "skew": (partial(L.skew_kl, alpha=0.1), lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skew_reverse": (partial(L.skew_reverse_kl, alpha=0.1), lambda p, q: kl(q, 0.1 * q + 0.9 * p)),
}
every = pytest.mark.parametrize("compare, formula", COMPARISONS.values(), ids=COMPARISONS)


@pytest.fixture
def made():
    torch.manual_seed(0)
    draw = partial(torch.randn, dtype=torch.float64)
    hidden, weight, bias = (draw(*s).requires_grad_() for s in ((B, S, D), (V, D), (V,)))
    y = torch.randint(V, (B, S))
    y[:, 2] = y[1, -3:] = -100
    return hidden, weight, bias, (draw(B, S, E), Head(draw(V, E), draw(V))), y


def dense(hidden, head, taught, T=1.0):
    """Probabilities of teacher and student, [..., ids]."""
    def logits(h, by):
        z = by.scale * (h @ by.weight.T + (0 if by.bias is None else by.bias))
        return z if by.cap is None else by.cap * (z / by.cap).tanh()
    return [(z / T).softmax(-1) for z in (logits(*taught) if isinstance(taught, tuple) else taught, logits(hidden, head))]


def gradients(loss, *of):
    return torch.autograd.grad(loss, of, retain_graph=True)


def same(ours, theirs, of, tolerance=1e-10):
    assert ours.item() == pytest.approx(theirs.item(), abs=tolerance)
    for a, b in zip(gradients(ours, *of), gradients(theirs, *of)):
        assert (a - b).abs().max() <= tolerance


# --- equal to the dense formula ----------------------------------------------------------------------------------------

@every
@pytest.mark.parametrize("scale, cap, T", [(1.0, None, 1.0), (0.5, 2.0, 3.0), (2.0, None, 0.7)])
def test_values_and_gradients_are_those_of_the_dense_formula(made, compare, formula, scale, cap, T):
    hidden, weight, bias, (their_hidden, by), y = made
    head, taught = Head(weight, bias, scale, cap), (their_hidden, by._replace(scale=scale, cap=cap))
    p, q = dense(hidden, head, taught, T)
    valid = y != -100
    soft = T**2 * formula(p, q)[valid].sum() / valid.sum()
    hard = F.nll_loss(dense(hidden, head, taught)[1].log().flatten(0, 1), y.flatten())
    ours = terms(hidden, head, taught, y, compare=compare, temperature=T, per="tokens", chunk=4)
    same(ours.soft, soft, (hidden, weight, bias))
    same(ours.hard, hard, (hidden, weight, bias))
    same(0.3 * ours.soft - 2 * ours.hard, 0.3 * soft - 2 * hard, (hidden, weight, bias))
    once = terms(hidden, head, taught, y, compare=compare, temperature=T, per="tokens", together=(0.3, 0.7), chunk=4)
    assert once.soft.item() == pytest.approx(0.3 * soft.item()) and once.hard.item() == pytest.approx(0.7 * hard.item())
    same(5 * (once.soft + once.hard), 1.5 * soft + 3.5 * hard, (hidden, weight, bias))


@every
def test_gradcheck(made, compare, formula):
    hidden, weight, bias, taught, y = made
    def both(h, w, b):
        return tuple(terms(h, Head(w, b, 1.5, 3.0), taught, y, compare=compare, temperature=2.0, per="batch", chunk=5))
    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_hidden_states_logits_and_all_log_probabilities_of_the_teacher_say_the_same(made):
    hidden, weight, bias, taught, _ = made
    head = Head(weight, bias)
    logits = taught[0] @ taught[1].weight.T + taught[1].bias
    listed = Top(torch.arange(V).expand(B, S, V).flip(-1), logits.log_softmax(-1).flip(-1))
    first = terms(hidden, head, taught, per="tokens").soft
    for other in (logits, listed):
        same(terms(hidden, head, other, per="tokens").soft, first, (hidden, weight, bias))


@pytest.mark.parametrize("reduction, n", [("tokens", 8.5), ("batch", B), (10, 10)])
def test_reductions_and_weights_of_tokens(made, reduction, n):
    hidden, weight, bias, taught, _ = made
    mask = torch.tensor([[1, 1, 0.5, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]])
    p, q = dense(hidden, Head(weight, bias), taught)
    ours = terms(hidden, Head(weight, bias), taught, mask=mask, per=reduction).soft
    same(ours, (mask * kl(p, q)).sum() / n, (hidden, weight, bias))


def test_a_comparison_of_ones_own_goes_through_the_same_walk(made):
    """TAID (Shing et al. 2025): forward KL to softmax((1−t)·z_student + t·z_teacher), whose student part has no gradient."""
    hidden, weight, bias, taught, _ = made
    head = Head(weight, bias)
    p, q = dense(hidden, head, taught)
    between = (0.6 * q.detach().log() + 0.4 * p.log()).softmax(-1)

    def taid(student, teacher):
        return L.forward_kl(student, (0.6 * student + 0.4 * teacher).log_softmax(-1))
    same(terms(hidden, head, taught, compare=taid, per="tokens").soft, kl(between, q).mean(), (hidden, weight, bias))


# --- what must make no difference --------------------------------------------------------------------------------------

@every
def test_chunks_parts_and_padding_make_no_difference(made, compare, formula):
    hidden, weight, bias, (their_hidden, by), y = made
    head, of = Head(weight, bias), (hidden, weight, bias)
    n = (y != -100).sum().item()
    call = partial(terms, head=head, compare=compare, per=n)
    whole = sum(call(hidden=hidden, taught=(their_hidden, by), labels=y, chunk=64))
    for chunk in (1, 3, 14):
        same(sum(call(hidden=hidden, taught=(their_hidden, by), labels=y, chunk=chunk)), whole, of, 1e-12)
    parts = [sum(call(hidden=hidden[i], taught=(their_hidden[i], by), labels=y[i])) for i in (slice(0, 1), slice(1, 2))]
    same(sum(parts), whole, of, 1e-12)
    longer = [F.pad(x, (0, 0, 2, 3), value=math.nan) for x in (hidden, their_hidden)]      # what is padded is never looked at
    padded = sum(call(hidden=longer[0], taught=(longer[1], by), labels=F.pad(y, (2, 3), value=-100)))
    same(padded, whole, of, 1e-12)


def test_all_tokens_ignored_is_zero_with_zero_gradients(made):
    hidden, weight, bias, taught, y = made
    for per in ("tokens", "batch", 3):
        none = terms(hidden, Head(weight, bias), taught, torch.full_like(y, -100), per=per)
        assert none.soft == 0 and none.hard == 0
        assert not any(g.any() or g.isnan().any() for g in gradients(sum(none), hidden, weight, bias))


def test_soft_goes_where_the_mask_says_and_hard_where_there_is_a_label_too(made):
    hidden, weight, bias, taught, y = made
    p, q = dense(hidden, Head(weight, bias), taught)
    ours = terms(hidden, Head(weight, bias), taught, y, mask=torch.ones(B, S), per="tokens")
    assert ours.soft.item() == pytest.approx(kl(p, q).mean().item())
    assert ours.hard.item() == pytest.approx(F.nll_loss(q.log().flatten(0, 1), y.flatten()).item())


def test_a_tied_head_gathers_both_its_gradients(made):
    _, weight, _, taught, _ = made
    text = torch.randint(V, (B, S))
    p, q = dense(F.embedding(text, weight), Head(weight), taught)
    same(terms(F.embedding(text, weight), Head(weight), taught, per="tokens").soft, kl(p, q).mean(), (weight,))


# --- limits ------------------------------------------------------------------------------------------------------------

@every
def test_identical_nets_are_at_zero_and_stay_there(made, compare, formula):
    hidden, weight, bias, _, _ = made
    frozen = hidden.detach(), Head(weight.detach(), bias.detach())
    value = terms(hidden, Head(weight, bias), frozen, compare=compare, per="tokens").soft
    assert abs(value.item()) < 1e-14
    assert all(g.abs().max() < 1e-14 for g in gradients(value, hidden, weight, bias))


@pytest.mark.parametrize("near, factor, limit", [
    (partial(L.jensen_shannon, beta=1e-7), 1e7, L.forward_kl), (partial(L.jensen_shannon, beta=1 - 1e-7), 1e7, L.reverse_kl),
    (partial(L.skew_kl, alpha=1e-9), 1, L.forward_kl), (partial(L.skew_reverse_kl, alpha=1e-9), 1, L.reverse_kl)])
def test_mixtures_end_in_the_two_kl(made, near, factor, limit):
    hidden, weight, bias, taught, _ = made
    call = partial(terms, hidden, Head(weight, bias), taught, per="tokens")
    same(factor * call(compare=near).soft, call(compare=limit).soft, (hidden, weight, bias), 1e-3)


@pytest.mark.parametrize("compare", [
    partial(L.jensen_shannon, beta=0.0), partial(L.skew_kl, alpha=1.0), partial(L.skew_reverse_kl, alpha=-1.0)])
def test_a_share_outside_zero_and_one_is_refused(made, compare):
    with pytest.raises(Refused, match="between 0 and 1"):
        terms(made[0], Head(made[1]), made[3], compare=compare, per="tokens")


# --- the likeliest ids and the tail ------------------------------------------------------------------------------------

def bucketed(p, q, k):
    """Probabilities of the teacher's k likeliest ids and of all others as one."""
    ids = p.topk(k, -1).indices
    return [torch.cat([x.gather(-1, ids), x.scatter(-1, ids, 0).sum(-1, keepdim=True)], -1) for x in (p, q)]


@every
def test_top_k_is_the_formula_over_k_ids_and_a_tail(made, compare, formula):
    hidden, weight, bias, taught, _ = made
    head, of = Head(weight, bias), (hidden, weight, bias)
    p, q = dense(hidden, head, taught, 2.0)
    expected = 4 * formula(*bucketed(p, q, 5)).mean()
    same(terms(hidden, head, taught, compare=compare, temperature=2.0, top=5, per="tokens", chunk=4).soft, expected, of)
    given = Top(p.topk(5, -1).indices, p.topk(5, -1).values.log())
    same(terms(hidden, head, given, compare=compare, temperature=2.0, per="tokens", chunk=4).soft, expected, of)
    whole = terms(hidden, head, taught, compare=compare, per="tokens").soft
    same(terms(hidden, head, taught, compare=compare, top=V, per="tokens").soft, whole, of)


def test_the_tail_lies_between_what_k_ids_say_and_what_all_say(made):
    """KL over ids and tail = KL of the two masses + listed mass · KL renormalised; merging never adds (log-sum inequality)."""
    hidden, weight, bias, taught, _ = made
    p, q = dense(hidden, Head(weight, bias), taught)
    (p_k, q_k), one = bucketed(p, q, 4), torch.eye(B * S, dtype=torch.float64).view(B * S, B, S)
    mass = p_k[..., :-1].sum(-1)
    renormalised = kl(*(x[..., :-1] / x[..., :-1].sum(-1, keepdim=True) for x in (p_k, q_k)))
    for i, mask in enumerate(one):
        tail = terms(hidden, Head(weight, bias), taught, top=4, mask=mask, per="tokens").soft.item()
        assert (mass * renormalised).flatten()[i] < tail < kl(p, q).flatten()[i]


def test_mass_that_leaves_the_listed_ids_costs_reverse_kl():
    """Renormalised over the two ids both would be equal; the student's mass went elsewhere and the tail says so."""
    given = Top(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.49]], dtype=torch.float64).log())
    leaked = torch.tensor([[0.05 * 0.5 / 0.99, 0.05 * 0.49 / 0.99, 0.95]], dtype=torch.float64).log()
    value = terms(leaked, Head(torch.eye(3, dtype=torch.float64)), given, compare=L.reverse_kl, per="tokens").soft.item()
    assert value == pytest.approx(0.05 * math.log(0.05 / 0.99) + 0.95 * math.log(0.95 / 0.01))


@every
def test_an_unused_place_in_the_list_counts_nothing(made, compare, formula):
    """Whatever id stands in it belongs to the tail: the same value and gradients as without the place."""
    hidden, weight, bias, taught, _ = made
    head, of = Head(weight, bias), (hidden, weight, bias)
    p, q = dense(hidden, head, taught)
    top, ids = p.topk(5, -1)
    expected = formula(*bucketed(p, q, 5)).mean()
    nothing = top.new_full((B, S, 2), -math.inf)
    for id in (ids[..., :2], p.topk(7, -1).indices[..., 5:], torch.zeros_like(ids[..., :2])):
        given = Top(torch.cat([id, ids], -1), torch.cat([nothing, top.log()], -1))
        same(terms(hidden, head, given, compare=compare, per="tokens").soft, expected, of)


# --- widths, masks, dtypes ---------------------------------------------------------------------------------------------

def test_another_width_is_refused_or_cut_to_the_shared_ids_before_the_softmax(made):
    hidden, weight, bias, (their_hidden, by), y = made
    wider = Head(F.pad(by.weight, (0, 0, 0, 4), value=9.0), F.pad(by.bias, (0, 4), value=50.0))
    with pytest.raises(Refused, match="has 23 ids, the teacher's 27"):
        terms(hidden, Head(weight, bias), (their_hidden, wider), per="tokens")
    with pytest.raises(Refused, match="vocabulary=24, but the heads have 23 and 27"):
        terms(hidden, Head(weight, bias), (their_hidden, wider), vocabulary=24, per="tokens")
    plain = terms(hidden, Head(weight, bias), (their_hidden, by), per="tokens").soft
    cut = terms(hidden, Head(weight, bias), (their_hidden, wider), vocabulary=V, per="tokens").soft
    same(cut, plain, (hidden, weight, bias), 1e-14)
    logits = their_hidden @ by.weight[:20].T + by.bias[:20]
    shorter = terms(hidden, Head(weight, bias), logits, vocabulary=20, per="tokens").soft
    same(shorter, kl(logits.softmax(-1), (hidden @ weight[:20].T + bias[:20]).softmax(-1)).mean(), (hidden, weight, bias))
    assert not gradients(shorter, weight)[0][20:].any()
    with pytest.raises(Refused, match="a label 20 lies outside the 20 ids"):
        terms(hidden, Head(weight, bias), logits, torch.where(y < 0, y, 20), vocabulary=20, per="tokens")
    with pytest.raises(Refused, match="the teacher's id 22 lies outside the 20"):
        terms(hidden, Head(weight, bias), Top(torch.full((B, S, 1), 22), torch.zeros(B, S, 1)), vocabulary=20, per="tokens")


def test_rows_that_do_not_match_are_refused(made):
    hidden, weight, _, taught, y = made
    with pytest.raises(Refused, match="labels is"):
        terms(hidden, Head(weight), taught, y[:, 1:], per="tokens")


@every
def test_ids_ruled_out_by_both_count_nothing(made, compare, formula):
    hidden, weight, bias, (their_hidden, by), _ = made
    never = torch.zeros(V, dtype=torch.float64)
    never[[3, 17]] = -math.inf
    left = [i for i in range(V) if i not in (3, 17)]
    p, q = dense(hidden, Head(weight[left], bias[left]), (their_hidden, Head(by.weight[left], by.bias[left])))
    taught = their_hidden, by._replace(bias=by.bias + never)
    ours = terms(hidden, Head(weight, bias + never), taught, compare=compare, per="tokens").soft
    same(ours, formula(p, q).mean(), (hidden, weight, bias))


def test_forward_kl_of_an_id_the_teacher_rules_out_is_finite(made):
    hidden, weight, bias, taught, _ = made
    logits = taught[0] @ taught[1].weight.T
    logits[..., 5] = -math.inf
    p, q = logits.softmax(-1), dense(hidden, Head(weight, bias), taught)[1]
    expected = (torch.xlogy(p, p) - p * q.log()).sum(-1).mean()
    same(terms(hidden, Head(weight, bias), logits, per="tokens").soft, expected, (hidden, weight, bias))


@every
def test_bf16_under_autocast_stays_close_and_sums_in_fp32(compare, formula):
    torch.manual_seed(0)
    hidden, weight, taught = torch.randn(40, 32), torch.randn(300, 32) / 6, (torch.randn(40, 32), Head(torch.randn(300, 32) / 6))
    y, found = torch.randint(300, (40,)), []
    for low in (False, True):
        of = [x.clone().requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = sum(terms(of[0], Head(of[1]), taught, y, compare=compare, per="tokens", chunk=7))
        loss.backward()
        found.append((loss, *(x.grad for x in of)))
    (loss, *exact), (other, *close) = found
    assert other.dtype == torch.float32 and 0 < abs(other - loss) < 5e-3 * loss
    for a, b in zip(exact, close):
        assert b.dtype == torch.float32 and (a - b).norm() < 0.02 * a.norm()


def test_weights_in_bf16_take_their_gradient_from_a_sum_in_fp32():
    torch.manual_seed(0)
    hidden, weight, logits = torch.randn(512, 8).bfloat16(), torch.randn(50, 8).bfloat16().requires_grad_(), torch.randn(512, 50)
    exact = weight.detach().double().requires_grad_()
    soft = terms(hidden.double(), Head(exact), logits.double(), per="tokens").soft
    ours = terms(hidden, Head(weight), logits, per="tokens", chunk=4).soft
    gap, size = gradients(ours, weight)[0].double() - gradients(soft, exact)[0], gradients(soft, exact)[0].norm()
    assert gap.norm() < 0.01 * size


# --- autograd ----------------------------------------------------------------------------------------------------------

def test_only_what_learns_gets_a_gradient_and_without_grad_there_is_none(made):
    hidden, weight, bias, taught, _ = made
    loss = terms(hidden, Head(weight.detach(), bias.detach()), taught, per="tokens").soft
    assert gradients(loss, hidden)[0].any()
    with torch.no_grad():
        assert not terms(hidden, Head(weight, bias), taught, per="tokens").soft.requires_grad


def test_backward_may_be_repeated_but_not_differentiated(made):
    hidden, weight, _, taught, _ = made
    loss = terms(hidden, Head(weight), taught, per="tokens").soft
    once, twice = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    with pytest.raises(Refused, match="not differentiated twice"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_terms_kept_together_must_be_descended_together(made):
    hidden, weight, _, taught, y = made
    soft, hard = terms(hidden, Head(weight), taught, y, per="tokens", together=(0.5, 0.5))
    with pytest.raises(Refused, match="together"):
        (2 * soft + hard).backward()


@pytest.mark.slow
def test_compile_only_breaks_the_graph(made):
    hidden, weight, _, taught, _ = made
    compiled = torch.compile(lambda h: terms(2 * h, Head(weight), taught, per="tokens").soft * 3, backend="aot_eager")
    same(compiled(hidden), terms(2 * hidden, Head(weight), taught, per="tokens").soft * 3, (hidden, weight))
