"""GRPO on a policy whose answers can be counted: against its formula, REINFORCE, and the limits of the paper."""

import pytest
import torch

from stillroom.parts import grpo


def test_the_advantage_has_mean_0_and_deviation_1_in_each_group():
    reward = torch.rand(5, 8, dtype=torch.float64)
    gain = grpo.advantage(reward)
    assert torch.allclose(gain.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(gain.std(1), torch.ones(5, dtype=torch.float64), atol=1e-3)
    assert torch.equal(grpo.advantage(reward, std=False), reward - reward.mean(1, keepdim=True))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rewards_give_no_gradient_at_all(value):
    logits = torch.randn(2, 4, 3, requires_grad=True)
    gain = grpo.advantage(torch.full((1, 2), value)).flatten()
    logp = logits.log_softmax(-1)[..., 0]
    grpo.loss(logp, logp.detach(), gain, torch.ones(2, 4)).backward()
    assert (logits.grad == 0).all()


def test_on_the_first_update_it_is_reinforce_and_the_clip_does_not_act():
    """Five tokens, answers of two: the gradient is that of −mean A·log π."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    said = torch.randint(5, (6, 2))
    gain, mask = torch.randn(6, dtype=torch.float64), torch.tensor([[1, 1], [1, 0]] * 3)
    logp = logits.log_softmax(-1)[said]
    want, = torch.autograd.grad(-(gain[:, None] * logp * mask).sum() / mask.sum(), logits, retain_graph=True)
    for clip in (0.2, 1e9):
        found, = torch.autograd.grad(grpo.loss(logp, logp.detach(), gain, mask, clip), logits, retain_graph=True)
        assert torch.allclose(found, want, atol=1e-12)


def test_it_is_the_formula_written_out():
    logp, old, gain = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    total = 0.0
    for i in range(3):
        for t in range(int(mask[i].sum())):
            rho = (logp[i, t] - old[i, t]).exp().item()
            total += min(rho * gain[i, t].item(), min(max(rho, 0.7), 1.3) * gain[i, t].item())
    assert grpo.loss(logp, old, gain, mask, 0.3).item() == pytest.approx(-total / 7, abs=1e-12)


def test_what_has_moved_too_far_learns_no_further():
    old = torch.zeros(4, 1)
    logp = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    grpo.loss(logp, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4, 1)).backward()
    assert (logp.grad != 0).flatten().tolist() == [False, True, True, False]


def test_a_longer_answer_takes_weight_from_the_others():
    """The mean is over tokens: what answer 0 gains per token falls when answer 1 doubles its length."""
    def slope(length):
        logp = torch.zeros(2, 4, requires_grad=True)
        mask = torch.tensor([[1, 1, 0, 0], [1] * length + [0] * (4 - length)])
        grpo.loss(logp, logp.detach(), torch.tensor([1.0, -1.0]), mask).backward()
        return logp.grad[0, 0].item()
    assert slope(2) == pytest.approx(-1 / 4) and slope(4) == pytest.approx(-1 / 6)
