"""DMD2: what the battery cannot ask. Its losses are tested in parts/test_scores.py, its sampling in parts/test_diffusion.py."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import arenas
from stillroom.errors import Refused
from stillroom.models.denoisers import PointNet, UNet, image_judge, point_judge
from stillroom.parts import diffusion
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.recipes.generation import dmd2
from stillroom.recipes.generation.dmd2 import DMD2
from stillroom.run import Run

FAST = dict(lr=1e-3, lr_critic=1e-3, warmup=0, batch=8)


def points(n=64, classes=0):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=g) if classes else torch.full((n,), UNLABELLED)
    return TensorDataset(torch.randn(n, 2, generator=g), y)


def teacher(seed=0, **named):
    torch.manual_seed(seed)
    net = PointNet(2, 16, 1, **named)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return diffusion.Edm(net, data_std=1.0)


def play(method, run=None, seed=0, classes=0, **actors):
    torch.manual_seed(seed)
    given = {"teacher": teacher(classes=classes), "judge": point_judge(16), "data": points(classes=classes), **actors}
    return method(run or Run(), **given)


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def moved(before, after):
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Watched(Run):
    """A run that remembers which optimiser moved in which step, and with what terms."""

    def __init__(self, **named):
        super().__init__(**named)
        self.moves: list[tuple[int, int, tuple[str, ...]]] = []

    def update(self, opt, **terms):
        self.moves.append((self.step, id(opt), tuple(terms)))
        return super().update(opt, **terms)


def test_the_critic_learns_in_every_step_and_the_generator_in_every_fifth():
    run = Watched()
    play(DMD2(steps=11, **FAST), run)
    assert [step for step, _, terms in run.moves if terms == ("match", "realism")] == [0, 5, 10]
    assert [step for step, _, terms in run.moves if terms == ("denoise", "telling")] == list(range(11))


def test_the_teacher_is_never_moved_and_all_begin_as_its_copies():
    real = teacher()
    before = weights(real)
    generator = play(DMD2(steps=6, **FAST), teacher=real)
    assert not moved(before, weights(real)) and moved(before, weights(generator)) and generator is not real
    generator = play(DMD2(steps=1, **{**FAST, "lr": 0.0, "decay": 0.0}))
    assert not moved(before, weights(generator))


def test_a_frozen_teacher_gives_a_generator_that_learns():
    generator = play(DMD2(steps=1, **FAST), teacher=teacher().requires_grad_(False))
    assert moved(weights(teacher()), weights(generator)) and all(p.requires_grad for p in generator.parameters())


def test_the_rates_rise_over_the_warm_up():
    """AdamW's first step is as long as its rate: none at the first step, all of it at the end of the warm-up."""
    def first_step(warmup, ratio, steps):
        generator = play(DMD2(steps=steps, ratio=ratio, **{**FAST, "warmup": warmup, "decay": 0.0}))
        return max((a - b).abs().max().item() for a, b in zip(weights(generator), weights(teacher()), strict=True))
    assert first_step(100, 5, 1) == 0
    assert first_step(0, 5, 1) == pytest.approx(1e-3, rel=1e-2)
    assert first_step(100, 5, 6) == pytest.approx(5e-5, rel=0.1)         # the second turn is step 5 of 100


def test_the_step_is_the_papers_written_out():
    """One step against plain PyTorch: the same draws, SG by hand, AdamW on the critic's turn and the generator's."""
    method = DMD2(steps=1, low=0.1, high=0.9, gan=0.2, gan_critic=0.3, clip=1e9, **{**FAST, "decay": 0.0})
    seen = {}

    class Spy(Run):
        def update(self, opt, **terms):
            seen.update({k: v.item() for k, v in terms.items()})
            return super().update(opt, **terms)

    run = Spy()
    generator = play(method, run)

    torch.manual_seed(0)
    real_net, judge, data = teacher(), point_judge(16), points()
    made, critic = copy.deepcopy(real_net), copy.deepcopy(real_net)
    order = run_order(data)
    real = data.tensors[0][order]
    Run()._reseed("loop", 0, 0)
    torch.rand(())
    sigmas = diffusion.karras()

    def noised(x, low=0, high=1000):
        number = low + (torch.rand(8) * (min(high + 1, 1000) - low)).long()
        return x + sigmas[number][:, None] * torch.randn_like(x), sigmas[number]

    z = torch.randn_like(real)
    # which of the draws come first is the recipe's: input noise, level and noise of the match, of realism, of the critic
    fake = made(80.0 * z, torch.full((8,), 80.0))
    x_t, sigma = noised(fake, 100, 900)
    p_real, p_fake = fake - real_net(x_t, sigma), fake - critic(x_t, sigma)
    grad = ((p_real - p_fake) / p_real.abs().mean(1, keepdim=True)).detach()
    match = 0.5 * ((fake - (fake - grad).detach()) ** 2).mean()
    realism = nn.functional.softplus(-judge(critic.features(*noised(fake)))).mean()
    opt = torch.optim.AdamW(made.parameters(), lr=1e-3, weight_decay=0.0)
    (match + 0.2 * realism).backward(inputs=list(made.parameters()))
    opt.step()
    fixed = fake.detach()
    x_t, sigma = noised(fixed)
    denoise = ((sigma**-2 + 1.0)[:, None] * (critic(x_t, sigma) - fixed) ** 2).mean()
    telling = nn.functional.softplus(-judge(critic.features(*noised(real)))).mean() + nn.functional.softplus(
        judge(critic.features(*noised(fixed)))).mean()
    naive = {"match": match, "realism": 0.2 * realism, "denoise": denoise, "telling": 0.3 * telling}
    for name, value in naive.items():
        assert seen[name] == pytest.approx(value.item(), rel=1e-4), name
    for ours, theirs in zip(weights(generator), weights(made), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def run_order(data):
    from stillroom.batches import positions

    return positions(len(data), 8, 0, (0, "loop"))[1]


def test_without_the_gan_it_is_distribution_matching_alone():
    judged = point_judge(16)
    before = weights(judged)
    play(DMD2(steps=3, gan=0.0, gan_critic=0.0, **{**FAST, "decay": 0.0}), judge=judged)
    assert not moved(before, weights(judged))


def test_several_steps_are_walked_by_the_generators_own_samples_each_as_often():
    reached = []

    class Listening(diffusion.Edm):
        def forward(self, x, sigma, y=None):
            if torch.is_grad_enabled() and (sigma == sigma[0]).all():
                reached.append(round(sigma[0].item(), 4))
            return super().forward(x, sigma, y)

    torch.manual_seed(0)
    method = DMD2(at=(1.0, 0.75, 0.5, 0.25), ratio=1, steps=80, **FAST)
    play(method, teacher=Listening(PointNet(2, 16, 1), data_std=1.0))
    levels = [round(s.item(), 4) for s in diffusion.at(diffusion.karras(), method.at)]
    counts = [reached.count(s) for s in levels]
    assert sum(counts) == 80 and min(counts) > 8, counts                 # twenty each, give or take


def test_classes_are_told_to_all_and_guidance_asks_the_teacher_twice():
    asked = []

    class Listening(diffusion.Edm):
        def forward(self, x, sigma, y=None):
            asked.append((self.training, y))
            return super().forward(x, sigma, y)

    torch.manual_seed(0)
    for guidance, of_the_teacher in ((1.0, 1), (2.0, 2)):
        asked.clear()
        play(DMD2(steps=1, guidance=guidance, **FAST), teacher=Listening(PointNet(2, 16, 1, classes=3), data_std=1.0), classes=3)
        frozen = [y for training, y in asked if not training]
        assert len(frozen) == of_the_teacher and (frozen[0] >= 0).all()
        if guidance != 1:
            assert (frozen[1] == UNLABELLED).all()
        assert all((y >= 0).all() for training, y in asked if training)


@pytest.mark.parametrize("make", [
    lambda: (diffusion.Vp(PointNet(2, 16, 1)), point_judge(16), points()),
    lambda: (diffusion.Edm(UNet(1, (8, 16), classes=3)), image_judge(16, 4),
             TensorDataset(torch.rand(16, 1, 8, 8), torch.arange(16) % 3))])
def test_it_takes_denoisers_of_both_families_and_images(make):
    torch.manual_seed(0)
    net, judge, data = make()
    before = weights(net)
    generator = DMD2(steps=6, **FAST)(Run(), teacher=net, judge=judge, data=data)
    assert moved(before, weights(generator)) and all(p.isfinite().all() for p in generator.parameters())


def test_under_bf16_everything_learns_and_stays_in_fp32():
    for at in ((1.0,), (1.0, 0.5)):
        generator = play(DMD2(at=at, steps=6, **FAST), Run(precision="bf16"))
        assert all(p.dtype == torch.float32 for p in generator.parameters())
        assert all(moved([a], [b]) for a, b in zip(weights(teacher()), weights(generator), strict=True))


@pytest.mark.parametrize("at", [(1.0,), (1.0, 0.75, 0.5, 0.25)])
def test_a_stop_anywhere_goes_on_bit_for_bit(at, tmp_path):
    method = DMD2(at=at, ratio=2, steps=7, **FAST)
    whole = weights(play(method))

    class Stop(Exception):
        pass

    for stop in (1, 2, 5, 6):
        folder = tmp_path / str(stop)

        class Stopped(Run):
            last = stop

            def loop(self, *args, **named):
                for content in super().loop(*args, **named):
                    if self.step == self.last:
                        raise Stop
                    yield content

        with pytest.raises(Stop):
            play(method, Stopped(folder, save_every=-1.0))
        torch.rand(3)
        assert not moved(whole, weights(play(method, Run(folder, resume=True)))), stop


def test_wrong_steps_are_refused_before_the_first():
    with pytest.raises(Refused, match="shares"):
        play(DMD2(at=(0.0,), steps=1, **FAST))
    with pytest.raises(Refused):
        play(DMD2(steps=1, **FAST), Run(accumulate=3))


# --- whole experiments -----------------------------------------------------------------------------------------------

RING = DMD2(gan=0.1, gan_critic=0.1, lr=5e-4, lr_critic=5e-4, warmup=50, batch=256, steps=1500)


@pytest.mark.slow
def test_one_step_covers_every_mode_of_a_known_mixture_and_one_step_of_ddim_does_not():
    cast = arenas.mixture(0)
    generator = RING(Run(), **cast.actors)
    made, ddim = cast.draw(generator), cast.solve(1)
    assert cast.modes(made) == 8 > cast.modes(ddim)
    assert cast.distance(made) < 0.25 * cast.distance(ddim)


@pytest.mark.slow
def test_one_time_scale_is_worse_than_two():
    method, cast = dmd2.trial(0)
    two = cast.frechet(cast.draw(method(Run(), **cast.actors)))
    _, cast = dmd2.trial(0)
    one = cast.frechet(cast.draw(dataclasses.replace(method, ratio=1)(Run(), **cast.actors)))
    assert two < one
