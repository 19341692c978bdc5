"""Comparisons of class scores against the papers' formulas written out in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.parts import losses
from stillroom.parts.losses import logits as L
from stillroom.parts.losses.logits import UNLABELLED


@pytest.fixture
def z():
    torch.manual_seed(0)
    return torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])


def double(*tensors):
    return [t.double() for t in tensors]


# --- divergences -------------------------------------------------------------------------------------------------------

def test_kl_is_the_formula_and_its_gradient_is_the_gap_of_the_softened_probabilities(z):
    s, t, _ = z
    T = 3.0
    p, q = (s.double() / T).softmax(1), (t.double() / T).softmax(1)
    assert losses.kl(s, t, T).item() == pytest.approx((T**2 * (q * (q / p).log()).sum(1).mean()).item(), rel=1e-5)
    s = s.clone().requires_grad_()
    losses.kl(s, t, T).backward()
    assert torch.allclose(s.grad, (T * (p - q) / len(s)).float(), atol=1e-6)


def test_labels_leave_out_what_has_none_and_halves_of_a_batch_add_up(z):
    s, _, y = z
    some = torch.where(torch.arange(6) % 3 == 0, y, UNLABELLED)
    assert torch.allclose(losses.labels(s, some), F.cross_entropy(s[::3], y[::3], reduction="sum") / 6)
    assert torch.allclose(losses.labels(s, some), (losses.labels(s[:3], some[:3]) + losses.labels(s[3:], some[3:])) / 2)
    assert torch.allclose(losses.labels(s, y, 0.1), F.cross_entropy(s, y, label_smoothing=0.1))
    nothing = losses.labels(s.requires_grad_(), torch.full_like(y, UNLABELLED))
    nothing.backward()
    assert nothing.item() == 0 and not s.grad.any()


def test_symmetric_kl_js_and_soft_cross_entropy_are_their_formulas(z):
    s, t, _ = z
    p, q = (a.softmax(1) for a in double(s, t))
    m = (p + q) / 2
    both = ((q * (q / p).log()).sum(1) + (p * (p / q).log()).sum(1)).mean() / 2
    jensen = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
    assert L.symmetric_kl(s, t).item() == pytest.approx(both.item(), rel=1e-5)
    assert L.js(s, t).item() == pytest.approx(jensen.item(), rel=1e-5)
    assert L.soft_cross_entropy(s, t).item() == pytest.approx(-(q * p.log()).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("distance", [L.symmetric_kl, L.js])
def test_divergences_are_symmetric_positive_and_zero_only_at_equality(distance, z):
    s, t, _ = z
    assert distance(s, t).item() == pytest.approx(distance(t, s).item(), rel=1e-5)
    assert distance(s, t) > 0.01
    assert abs(distance(s, s + torch.randn(6, 1)).item()) < 1e-6      # logits up to a constant


def test_js_is_bounded_by_ln_2_and_symmetric_kl_is_not():
    apart = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0.0, 100.0, 0.0]])
    assert L.js(*apart).item() == pytest.approx(math.log(2), rel=1e-6)
    assert L.symmetric_kl(*apart).item() == pytest.approx(100.0, rel=1e-4)


def test_soft_cross_entropy_has_the_gradient_of_kl(z):
    s, t, _ = z
    a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
    L.soft_cross_entropy(a, t).backward()
    losses.kl(b, t).backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-6)


# --- NKD ---------------------------------------------------------------------------------------------------------------

def naive_nkd(s, t, y, gamma, tau):
    """Eq. 8 sample by sample."""
    total = 0.0
    for a, b, c in zip(*double(s, t), y.tolist()):
        p, q = a.softmax(0), b.softmax(0)
        others = [i for i in range(len(a)) if i != c]
        ph, qh = (a[others] / tau).softmax(0), (b[others] / tau).softmax(0)
        total = total - q[c] * p[c].log() - gamma * tau**2 * (qh * ph.log()).sum()
    return (total / len(s)).item()


@pytest.mark.parametrize(("gamma", "tau"), [(1.5, 1.0), (3.5, 3.0)])
def test_nkd_is_the_formula(z, gamma, tau):
    s, t, y = z
    ours = L.nkd_target(s, t, y) + gamma * L.nkd_others(s, t, y, tau)
    assert ours.item() == pytest.approx(naive_nkd(s, t, y, gamma, tau), rel=1e-5)


def test_nkd_of_two_samples_by_hand():
    s, t = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    y = torch.tensor([0, 1])
    p = [math.exp(2) / (math.exp(2) + 2), math.e / (math.e + 2)]
    q = [math.e / (math.e + 1 + 1 / math.e), math.exp(3) / (math.exp(3) + 2)]
    assert L.nkd_target(s, t, y).item() == pytest.approx(-(q[0] * math.log(p[0]) + q[1] * math.log(p[1])) / 2, rel=1e-6)
    assert L.nkd_others(s, t, y).item() == pytest.approx(math.log(2), rel=1e-6)     # its others are equal: ln 2 for any q


def test_nkd_others_do_not_see_the_target_and_standard_kd_does(z):
    s, t, y = z
    moved_s, moved_t = s.clone(), t.clone()
    moved_s[range(6), y] += 5
    moved_t[range(6), y] -= 3
    assert torch.allclose(L.nkd_others(s, t, y, 2.0), L.nkd_others(moved_s, moved_t, y, 2.0))
    assert (losses.kl(s, t) - losses.kl(moved_s, moved_t)).abs() > 0.1


def test_nkd_of_equal_nets_is_an_entropy_without_gradient_and_two_classes_leave_nothing(z):
    s, _, y = z
    s = s.clone().requires_grad_()
    loss = L.nkd_others(s, s.detach(), y)
    q = L.without_target(s.detach(), y).softmax(1)
    assert loss.item() == pytest.approx(-(q * q.log()).sum(1).mean().item(), rel=1e-5)
    loss.backward()
    assert s.grad.abs().max() < 1e-7
    two = torch.randn(4, 2, requires_grad=True)
    nothing = L.nkd_others(two, torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    nothing.backward()
    assert nothing.item() == 0 and not two.grad.any()


def test_no_gradient_reaches_the_teacher(z):
    s, t, y = z
    t = t.clone().requires_grad_()
    (L.nkd_target(s.requires_grad_(), t, y) + L.nkd_others(s, t, y)).backward()
    assert t.grad is None


def test_the_target_is_taken_out_and_the_order_stays():
    z = torch.arange(12.0).view(3, 4)
    assert L.without_target(z, torch.tensor([0, 3, 1])).tolist() == [[1, 2, 3], [4, 5, 6], [8, 10, 11]]


# --- USKD --------------------------------------------------------------------------------------------------------------

def naive_zipf(s, w, y):
    rows = []
    for a, b, c in zip(*double(s, w), y.tolist()):
        p, q = a.softmax(0), b.softmax(0)
        score = q / (1 - q[c] + 1e-6) + p / (1 - p[c] + 1e-6)
        ranked = sorted(range(len(a)), key=lambda i: -score[i])
        value = [1 / (ranked.index(i) + 1) for i in range(len(a)) if i != c]
        rows.append([v / sum(value) for v in value])
    return torch.tensor(rows)


def test_uskd_is_the_formula(z):
    s, w, y = z
    p = s.double().softmax(1)[range(6), y]
    soft = p**2 + 1 - (p**2).mean()
    assert soft.mean().item() == pytest.approx(1.0, abs=1e-12)       # the soft label of the target is 1 on average
    assert L.uskd_target(s, y).item() == pytest.approx(-(soft * p.log()).mean().item(), rel=1e-5)
    labels = naive_zipf(s, w, y)
    assert torch.allclose(L.zipf_labels(s, w, y), labels)
    others = L.without_target(s.double(), y).log_softmax(1)
    assert L.uskd_others(s, w, y).item() == pytest.approx(-(labels * others).sum(1).mean().item(), rel=1e-5)


def test_the_soft_label_of_the_target_carries_no_gradient(z):
    s, w, y = z
    s = s.clone().requires_grad_()
    p = s.detach().softmax(1)
    square = p[range(6), y] ** 2
    L.uskd_target(s, y).backward()
    wanted = (square + 1 - square.mean())[:, None] * (p - F.one_hot(y, 5)) / 6       # gradient of −P log p_t with P constant
    assert torch.allclose(s.grad, wanted, atol=1e-6)
    w = w.clone().requires_grad_()
    L.uskd_others(s, w, y).backward()
    assert w.grad is None and not L.zipf_labels(s, w, y).requires_grad


def test_zipf_labels_follow_the_rank_of_four_classes():
    s = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    given = L.zipf_labels(s, s, torch.tensor([1]))                   # ranks 1 2 3 4; the target, the second, is taken out
    value = torch.tensor([1, 1 / 3, 1 / 4])
    assert torch.allclose(given, (value / value.sum())[None])
    assert torch.allclose(L.zipf_labels(s, s, torch.tensor([0])).sum(), torch.tensor(1.0))
    # the weak head is sure of the target: its view of the others is blown up by 1/(1 − w_t) and lifts class 2 above 0 and 1
    given = L.zipf_labels(s, s.flip(1) * 3, torch.tensor([3]))[0]
    value = torch.tensor([1 / 3, 1 / 4, 1 / 2])
    assert torch.allclose(given, value / value.sum())


def test_the_released_mix_takes_the_logarithm_for_the_probability(z):
    s, w, y = z
    q, p = w.double().softmax(1), s.double().log_softmax(1)
    score = q / (1 - q[range(6), y][:, None] + 1e-6) + p / (1 - p[range(6), y][:, None] + 1e-6)     # uskd.py, line "rank ="
    rank = score.argsort(1, descending=True).argsort(1) + 1
    wanted = L.without_target(1 / rank, y)
    assert torch.allclose(L.zipf_labels(s, w, y, "code"), wanted / wanted.sum(1, keepdim=True))
    assert not torch.allclose(L.zipf_labels(s, w, y, "code"), L.zipf_labels(s, w, y))
