"""Schedules, denoisers, noising and sampling against the papers' formulas and against what is known exactly."""

import math

import pytest
import torch
from torch import nn

from stillroom.errors import Refused
from stillroom.measure.generation import frechet, modes_covered, sliced_wasserstein
from stillroom.models.denoisers import PointNet, UNet, image_judge, point_judge
from stillroom.parts import diffusion
from stillroom.parts.losses.logits import UNLABELLED


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """A network without mystery: F(x, c, y) = 0.3·x + 0.1·c."""

    def forward(self, x, c, y=None):
        return 0.3 * x + 0.1 * c.view(-1, *[1] * (x.ndim - 1))

    features = forward


# --- schedules -------------------------------------------------------------------------------------------------------

def test_karras_levels_are_equation_5():
    grid = diffusion.karras(18)
    assert (grid.diff() > 0).all() and abs(grid[0] - 0.002) < 1e-6 and abs(grid[-1] - 80) < 1e-3
    for i in range(18):                              # the paper counts from the most noise down
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert abs(grid[17 - i] / expected - 1) < 1e-5


def test_ddpm_levels_are_those_of_stable_diffusion_and_of_ho_et_al():
    sd, ho = diffusion.ddpm(), diffusion.ddpm(1000, 1e-4, 0.02, power=1)
    assert (sd.diff() > 0).all() and len(sd) == 1000
    # ᾱ_999 and σ range of Stable Diffusion 1.x as known from its own configuration (scaled linear, 0.00085 to 0.012)
    assert abs(sd[-1] - 14.6146) < 1e-3 and abs(sd[0] - 0.0292) < 1e-4
    kept = 1.0
    for t in range(1000):                            # Ho et al. 2020, written out
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        if t in (0, 500, 999):
            assert abs(ho[t] / math.sqrt((1 - kept) / kept) - 1) < 1e-5


def test_shares_of_a_schedule_are_the_papers_step_numbers():
    numbers = torch.arange(1000.0)
    assert diffusion.at(numbers, (1.0, 0.75, 0.5, 0.25)).tolist() == [999, 749, 499, 249]
    assert diffusion.at(numbers, (0.4,)).tolist() == [399]
    for wrong in ((), (0.0,), (1.2,), (0.5, 1.0), (0.5, 0.5)):
        with pytest.raises(Refused, match="shares"):
            diffusion.at(numbers, wrong)


# --- denoisers -------------------------------------------------------------------------------------------------------

def test_edm_is_equation_7_with_table_1():
    x, sigma = draws(4, 3), torch.tensor([0.01, 0.5, 2.0, 80.0])
    told = diffusion.Edm(Linear(), data_std=0.5)(x, sigma)
    for i, s in enumerate(sigma.tolist()):
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / math.sqrt(s**2 + 0.25)
        seen = x[i].double() / math.sqrt(0.25 + s**2)
        expected = skip * x[i].double() + out * (0.3 * seen + 0.1 * math.log(s) / 4)
        torch.testing.assert_close(told[i].double(), expected, rtol=1e-5, atol=1e-6)


def test_edm_of_shifted_data_is_edm_shifted():
    x, sigma = draws(4, 3), torch.tensor([0.01, 0.5, 2.0, 80.0])
    plain, moved = diffusion.Edm(Linear(), 0.5), diffusion.Edm(Linear(), 0.5, data_mean=3.0)
    torch.testing.assert_close(moved(x + 3, sigma), plain(x, sigma) + 3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.features(x + 3, sigma), plain.features(x, sigma), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.start(x, sigma[2]), plain.start(x, sigma[2]) + 3)


def test_edm_without_noise_says_what_it_sees_and_in_pure_noise_only_what_the_net_says():
    d = diffusion.Edm(Linear(), 0.5)
    x = draws(2, 3)
    torch.testing.assert_close(d(x, torch.full((2,), 1e-6)), x, atol=1e-4, rtol=0)
    assert abs((d.weight(torch.tensor([0.3])) - (1 / 0.09 + 4)).item()) < 1e-4


def test_its_weight_makes_the_networks_own_target_weigh_one():
    d, sigma = diffusion.Edm(Linear(), 0.5), torch.tensor([0.002, 0.1, 1.0, 80.0])
    out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(d.weight(sigma) * out**2, torch.ones(4))


def test_vp_in_these_coordinates_is_the_usual_formula():
    d, t = diffusion.Vp(Linear()), torch.tensor([0, 399, 999])
    sigma = d.sigmas[t]
    kept = 1 / (1 + sigma.double() ** 2)                                 # ᾱ
    clean, eps = draws(3, 5), draws(3, 5, seed=1)
    x_t = kept.sqrt()[:, None] * clean + (1 - kept).sqrt()[:, None] * eps
    said = 0.3 * x_t + 0.1 * t[:, None]                                  # ε̂(x_t, t)
    expected = (x_t - (1 - kept).sqrt()[:, None] * said) / kept.sqrt()[:, None]
    torch.testing.assert_close(d(clean + sigma[:, None] * eps, sigma).double(), expected, rtol=1e-4, atol=1e-3)


def test_vp_tells_its_net_the_number_of_the_nearest_level():
    d = diffusion.Vp(Linear())
    for t in (0, 1, 500, 998, 999):
        assert d._seen(torch.zeros(1, 2), d.sigmas[t : t + 1] * 1.0001)[1].item() == t
        assert d._seen(torch.zeros(1, 2), d.sigmas[t : t + 1] * 0.9999)[1].item() == t


def test_vp_weight_is_the_squared_error_of_the_noise():
    d = diffusion.Vp(Linear())
    clean = draws(6, 4)
    torch.manual_seed(0)
    noisy, sigma = diffusion.noise(clean, d.sigmas)
    _, t = d._seen(noisy, sigma)
    eps = (noisy - clean) / sigma[:, None]
    said = d.net(noisy / (1 + sigma[:, None] ** 2).sqrt(), t)
    loss = diffusion.denoising_loss(d, clean, noisy, sigma)
    torch.testing.assert_close(loss, (said - eps).square().mean(), rtol=1e-3, atol=1e-5)


def test_vp_starts_from_noise_itself_at_any_level():
    d, z = diffusion.Vp(Linear()), draws(5, 3)
    sigma = diffusion.at(d.sigmas, (0.4,))[0]                            # SDXL in one step: pure noise called number 399
    seen, number = d._seen(d.start(z, sigma), sigma.expand(5))
    torch.testing.assert_close(seen, z)
    assert (number == 399).all()


def test_the_mixture_is_bayes_rule_written_out():
    means, shares = draws(3, 2).double(), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    d = diffusion.Mixture(means, 0.4, shares)
    x, sigma = 2 * draws(5, 2, seed=1).double(), torch.tensor([0.01, 0.3, 1.0, 5.0, 80.0], dtype=torch.float64)
    for i in range(5):
        spread = 0.16 + sigma[i] ** 2
        weights = torch.stack([w * torch.exp(-(x[i] - m).square().sum() / (2 * spread)) / spread for m, w in zip(means, shares)])
        parts = torch.stack([m + 0.16 / spread * (x[i] - m) for m in means])
        expected = (weights[:, None] * parts).sum(0) / weights.sum()
        torch.testing.assert_close(d(x, sigma)[i], expected)


def test_the_mixture_denoises_better_than_anything_near_it():
    torch.manual_seed(0)
    d = diffusion.Mixture(torch.tensor([[-1.0], [1.0]]), 0.2)
    clean = d.draw(40_000)
    sigma = torch.full((len(clean),), 0.7)
    noisy = clean + 0.7 * torch.randn_like(clean)
    best = (d(noisy, sigma) - clean).square().mean()
    wrong = torch.tensor([0.6, 0.4])
    for means, std, shares in ((d.means * 1.2, 0.2, d.shares), (d.means, 0.3, d.shares), (d.means, 0.2, wrong)):
        assert (diffusion.Mixture(means, std, shares)(noisy, sigma) - clean).square().mean() > best


def test_the_mixtures_draws_have_its_moments():
    torch.manual_seed(0)
    d = diffusion.Mixture(torch.tensor([[-1.0, 0.0], [3.0, 0.0]]), 0.5, torch.tensor([3.0, 1.0]))
    x = d.draw(100_000)
    assert abs(x[:, 0].mean()) < 0.02 and abs(x[:, 0].var() - (0.25 + 3.0)) < 0.05 and abs(x[:, 1].std() - 0.5) < 0.01


# --- noising ---------------------------------------------------------------------------------------------------------

def test_noise_adds_what_it_says_between_the_shares_both_included():
    torch.manual_seed(0)
    sigmas = diffusion.karras()
    x = torch.zeros(200_000, 1)
    noisy, sigma = diffusion.noise(x, sigmas, 0.02, 0.98)
    numbers = torch.searchsorted(sigmas, sigma)
    assert numbers.min() == 20 and numbers.max() == 980
    counts = torch.bincount(numbers)[20:].double()
    assert (counts / counts.mean() - 1).abs().max() < 0.4                # even: 208 each, five deviations are 0.35
    assert abs((noisy[:, 0] / sigma).std() - 1) < 0.01
    numbers = torch.searchsorted(sigmas, diffusion.noise(x, sigmas)[1])
    assert numbers.min() == 0 and numbers.max() == 999


def test_lognormal_has_the_papers_moments():
    torch.manual_seed(0)
    noisy, sigma = diffusion.lognormal(torch.zeros(100_000, 1))
    assert abs(sigma.log().mean() + 1.2) < 0.02 and abs(sigma.log().std() - 1.2) < 0.02
    assert abs((noisy[:, 0] / sigma).std() - 1) < 0.01


def test_denoising_loss_written_out():
    d = diffusion.Edm(Linear(), 0.5)
    clean, noisy, sigma = draws(3, 1, 2, 2), draws(3, 1, 2, 2, seed=1), torch.tensor([0.1, 1.0, 10.0])
    told = d(noisy, sigma)
    naive = sum((1 / s**2 + 4) * (told[i] - clean[i]).square().mean() for i, s in enumerate(sigma.tolist())) / 3
    torch.testing.assert_close(diffusion.denoising_loss(d, clean, noisy, sigma), naive)


def test_guidance_goes_beyond_the_condition_and_asks_once_without():
    asked = []

    class Told(nn.Module):
        def forward(self, x, sigma, y):
            asked.append(y)
            return torch.where(y < 0, 1.0, 3.0)[:, None] + 0 * x

    x, sigma, y = torch.zeros(2, 1), torch.ones(2), torch.tensor([4, 7])
    assert diffusion.guided(Told(), x, sigma, y, 1.0).flatten().tolist() == [3, 3] and len(asked) == 1
    assert diffusion.guided(Told(), x, sigma, y, 1.75).flatten().tolist() == [4.5, 4.5]
    assert (asked[-1] == UNLABELLED).all()


# --- sampling --------------------------------------------------------------------------------------------------------

def test_walk_hands_a_perfect_generator_inputs_of_the_right_variance():
    """Backward simulation with an oracle: the input at each level has the variance of the data and of the noise together."""
    torch.manual_seed(0)
    v = 4.0
    oracle = diffusion.Mixture(torch.zeros(1, 1), 1e-6)

    class Perfect(nn.Module):
        sigmas = oracle.sigmas
        start = staticmethod(oracle.start)

        def forward(self, x, sigma, y=None):         # a sample of the data for whatever noise: what a perfect generator is
            return math.sqrt(v) * torch.randn_like(x)

    levels = torch.tensor([80.0, 10.0, 2.0, 0.5])
    for k in range(4):
        x, sigma = diffusion.walk(Perfect(), torch.randn(100_000, 1), levels[: k + 1])
        expected = levels[k] ** 2 + (v if k else 0)  # the first is pure noise
        assert abs(x.var() / expected - 1) < 0.03 and (sigma == levels[k]).all() and sigma.shape == (100_000,)


def test_one_step_is_the_generator_on_pure_noise_and_several_steps_renoise():
    d = diffusion.Edm(Linear(), 0.5)
    z = draws(4, 2)
    assert torch.equal(diffusion.sample(d, z, torch.tensor([80.0])), d(80 * z, torch.full((4,), 80.0)))
    torch.manual_seed(3)
    told = diffusion.sample(d, z, torch.tensor([80.0, 2.0]))
    torch.manual_seed(3)
    clean = d(80 * z, torch.full((4,), 80.0))
    assert torch.equal(told, d(clean + 2 * torch.randn_like(clean), torch.full((4,), 2.0)))
    assert not told.requires_grad


def test_the_ode_of_a_gaussian_is_solved_exactly_by_its_closed_form():
    d = diffusion.Mixture(torch.tensor([[1.5]]), 0.6)
    z = draws(64, 1)
    exact = 1.5 + (80 * z - 1.5) * 0.6 / math.sqrt(0.36 + 80**2)         # σ from 80 to 0 along dx/dσ = (x − D) / σ
    error = {(n, o): (diffusion.solve(d, z, n, order=o) - exact).abs().max().item() for n in (50, 100, 200) for o in (1, 2)}
    assert error[200, 2] < 2e-3
    for n in (50, 100):                              # first and second order: half the step, 1/2 and 1/4 of the error
        assert 1.7 < error[n, 1] / error[2 * n, 1] < 2.3
        assert 3.0 < error[n, 2] / error[2 * n, 2] < 5.0


def test_one_step_of_ddim_is_one_evaluation_at_the_most_noise():
    d, z = diffusion.Edm(Linear(), 0.5), draws(4, 2)
    torch.testing.assert_close(diffusion.solve(d, z, 1, order=1), d(80 * z, torch.full((4,), 80.0)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="order"):
        diffusion.solve(d, z, 1, order=3)


@pytest.mark.parametrize("order, expected", [(1, 7), (2, 13)])
def test_evaluations_are_as_many_as_said(order, expected):
    calls = []
    d = diffusion.Mixture(torch.zeros(1, 2), 1.0)
    d.register_forward_hook(lambda *_: calls.append(1))
    diffusion.solve(d, draws(4, 2), 7, order=order)
    assert len(calls) == expected


def test_the_exact_teacher_samples_its_mixture():
    torch.manual_seed(0)
    angle = torch.arange(8) * math.pi / 4
    d = diffusion.Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.1)
    made, fresh, other = diffusion.solve(d, torch.randn(2000, 2)), d.draw(2000), d.draw(2000)
    assert modes_covered(made, d.means, 0.4) == 8
    assert sliced_wasserstein(made, fresh) < 2 * sliced_wasserstein(other, fresh) + 0.02


# --- networks --------------------------------------------------------------------------------------------------------

def wake(net):
    """Weights instead of the zeros with which some layers begin."""
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("net, shape, judge", [
    (PointNet(2, 32), (2,), point_judge(32)), (PointNet(64, 32, classes=3), (1, 8, 8), point_judge(32)),
    (UNet(1, (8, 16), classes=3), (1, 8, 8), image_judge(16, 4)), (UNet(3, (8, 16, 32)), (3, 16, 16), image_judge(32, 4)),
    (UNet(1, (8, 16)), (1, 16, 16), image_judge(16, 8))])
def test_networks_say_nothing_at_first_then_learn_everything(net, shape, judge):
    d = diffusion.Edm(net)
    x, y = torch.rand(6, *shape), torch.tensor([0, 1, 2, 0, 1, UNLABELLED])
    sigma = torch.tensor([0.01, 0.1, 1.0, 2.0, 5.0, 80.0])
    torch.testing.assert_close(d(x, sigma, y), (0.25 / (sigma**2 + 0.25)).view(-1, *[1] * len(shape)) * x)
    assert judge(d.features(x, sigma, y)).shape == (6,)
    wake(net)
    (d(x, sigma, y).square().mean() + judge(d.features(x, sigma, y)).square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("make", [lambda c: PointNet(4, 32, classes=c), lambda c: UNet(1, (8,), classes=c)])
def test_a_class_is_heard_and_an_unlabelled_sample_is_one_class_of_its_own(make):
    torch.manual_seed(0)
    net = wake(make(3))
    x, c = draws(1, 1, 2, 2).expand(4, 1, 2, 2), torch.zeros(4)
    told = net(x, c, torch.tensor([0, 1, UNLABELLED, UNLABELLED]))
    assert not torch.allclose(told[0], told[1]) and not torch.allclose(told[0], told[2])
    torch.testing.assert_close(told[2], told[3])
    torch.testing.assert_close(net(x, c, None), net(x, c, torch.full((4,), UNLABELLED)))
    torch.testing.assert_close(make(0)(x, c, None), make(0)(x, c, torch.arange(4)))      # unconditional: no class is heard


# --- judges of generators --------------------------------------------------------------------------------------------

def test_sliced_wasserstein_of_a_shift_is_known():
    """A shift by v moves every projection by v·θ: √E(v·θ)² = |v| / √dim."""
    x = draws(500, 3)
    assert sliced_wasserstein(x, x) == 0
    v = torch.tensor([3.0, 0.0, 4.0])
    assert abs(sliced_wasserstein(x, x + v, directions=4000) - 5 / math.sqrt(3)) < 0.06
    assert abs(sliced_wasserstein(x[:, :1], 2 * x[:, :1]) - x[:, 0].square().mean().sqrt()) < 1e-5


def test_sliced_wasserstein_of_unequal_numbers_compares_quantiles():
    x = torch.linspace(0, 1, 1000)[:, None]
    assert sliced_wasserstein(x, x[::2]) < 1e-3
    assert abs(sliced_wasserstein(x, x[::2] + 1) - 1) < 1e-2


def test_frechet_of_gaussians_is_the_closed_form():
    a, b = draws(50_000, 2).double(), draws(50_000, 2, seed=1).double() * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -1.0])
    assert frechet(a, a) < 1e-9
    assert abs(frechet(a, b) - (2 + (1 - 2) ** 2 + (1 - 0.5) ** 2)) < 0.05
    one, other = torch.cov(a.T), torch.cov(b.T)                          # against the definition, by a general matrix root
    values, vectors = torch.linalg.eig(one @ other)
    root = (vectors * values.sqrt()) @ torch.linalg.inv(vectors)
    naive = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(one + other) - 2 * torch.trace(root).real
    assert abs(frechet(a, b) - naive) < 1e-8


def test_a_mode_counts_when_it_gets_its_share_nearby():
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.cat([means[0].expand(50, 2), means[1].expand(45, 2), means[2].expand(5, 2)])
    assert modes_covered(x, means, 0.5) == 2                             # 5 of 100 are less than a quarter of a third
    assert modes_covered(x, means, 0.5, share=0.1) == 3
    assert modes_covered(x + 1, means, 0.5) == 0
