"""The losses of DMD2 against the formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.parts import diffusion
from stillroom.parts.losses import scores


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_is_the_difference_of_the_two_estimates_over_the_mean_distance():
    fake, real_clean, fake_clean = (draws(5, 1, 3, 3, seed=s) for s in range(3))
    fake.requires_grad_()
    scores.distribution_match(fake, real_clean, fake_clean).backward()
    for i in range(5):                                                   # eq. 7 and 8 of DMD, a sample at a time
        away = (fake[i] - real_clean[i]).abs().double().mean()
        expected = (fake_clean[i] - real_clean[i]).double() / away / fake.numel()
        torch.testing.assert_close(fake.grad[i].double(), expected, rtol=1e-5, atol=1e-8)


def test_its_value_is_half_the_mean_square_of_that_gradient():
    fake, real_clean, fake_clean = (draws(4, 6, seed=s) for s in range(3))
    pull = (fake_clean - real_clean) / (fake - real_clean).abs().mean(1, keepdim=True)
    torch.testing.assert_close(scores.distribution_match(fake, real_clean, fake_clean), 0.5 * pull.square().mean())


def test_no_gradient_goes_through_the_two_estimates():
    fake, real_clean, fake_clean = (draws(4, 6, seed=s).requires_grad_() for s in range(3))
    scores.distribution_match(fake, real_clean, fake_clean).backward()
    assert fake.grad is not None and real_clean.grad is None and fake_clean.grad is None


def test_scaling_both_differences_leaves_the_gradient():
    fake, real_clean, fake_clean = (draws(4, 6, seed=s) for s in range(3))
    found = []
    for scale in (1.0, 7.0):
        x = fake.clone().requires_grad_()
        near = fake - scale * (fake - real_clean)                        # both |x − x̂_r| and x̂_f − x̂_r grow by `scale`
        scores.distribution_match(x, near, near + scale * (fake_clean - real_clean)).backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_where_the_sample_is_the_teachers_own_there_is_no_gradient_and_no_nan():
    fake = draws(3, 4).requires_grad_()
    real_clean = draws(3, 4, seed=1)
    real_clean[1] = fake[1].detach()                                     # 0 / 0, and x / 0 below
    for fake_clean in (real_clean.clone(), real_clean + 1):
        fake.grad = None
        loss = scores.distribution_match(fake, real_clean, fake_clean)
        loss.backward()
        assert loss.isfinite() and torch.equal(fake.grad[1], torch.zeros(4))
    assert fake.grad[0].abs().sum() > 0


def test_under_bf16_it_is_computed_in_fp32():
    fake, real_clean, fake_clean = (draws(4, 6, seed=s) for s in range(3))
    expected = scores.distribution_match(fake.bfloat16().float(), real_clean, fake_clean)
    assert torch.equal(scores.distribution_match(fake.bfloat16(), real_clean, fake_clean), expected)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.7, 1.0), (-0.7, 1.0), (0.0, 0.5), (0.0, 2.0)])
def test_for_gaussians_it_pulls_towards_the_data_and_rests_only_there(mean, std):
    """Data N(0, 1), generator N(μ, τ²), exact denoisers: dL/dμ has the sign of μ, dL/dτ that of τ − 1, both are 0 at the data."""
    z = draws(20_000, 1)
    mu, tau = torch.tensor(mean, requires_grad=True), torch.tensor(std, requires_grad=True)
    fake = mu + tau * z
    torch.manual_seed(1)
    noisy, sigma = diffusion.noise(fake.detach(), diffusion.karras(), 0.02, 0.98)
    real, critic = (diffusion.Mixture(torch.tensor([[m]]), s) for m, s in ((0.0, 1.0), (mean, std)))
    real_clean, fake_clean = real(noisy, sigma), critic(noisy, sigma)
    variance = sigma[:, None].square()
    torch.testing.assert_close(real_clean, noisy / (1 + variance), rtol=1e-4, atol=1e-4)      # the closed form
    torch.testing.assert_close(fake_clean, (variance * mean + std**2 * noisy) / (variance + std**2), rtol=1e-4, atol=1e-4)
    scores.distribution_match(fake, real_clean, fake_clean).backward()
    if (mean, std) == (0.0, 1.0):
        assert mu.grad == 0 == tau.grad
    elif mean:
        assert mu.grad.sign() == math.copysign(1, mean)
    else:
        assert tau.grad.sign() == math.copysign(1, std - 1)


def test_the_gan_terms_written_out():
    real, fake = draws(7), draws(7, seed=1)
    naive = sum(math.log1p(math.exp(v)) for v in fake.tolist()) / 7 + sum(math.log1p(math.exp(-v)) for v in real.tolist()) / 7
    assert abs(scores.telling_apart(real, fake).item() - naive) < 1e-6
    assert abs(scores.realism(fake).item() - sum(math.log1p(math.exp(-v)) for v in fake.tolist()) / 7) < 1e-6


def test_an_undecided_judge_costs_two_log_two_and_its_gradients_have_the_right_sign():
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = scores.telling_apart(real, fake)
    assert abs(loss.item() - 2 * math.log(2)) < 1e-6
    loss.backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()               # logits of real rise, of fake fall
    fake.grad = None
    scores.realism(fake).backward()
    assert (fake.grad < 0).all()                                         # the generator wants them to rise


def test_the_judges_loss_is_binary_cross_entropy():
    real, fake = draws(9), draws(9, seed=1)
    said, truth = torch.cat([real, fake]), torch.cat([torch.ones(9), torch.zeros(9)])
    torch.testing.assert_close(scores.telling_apart(real, fake), 2 * F.binary_cross_entropy_with_logits(said, truth))
