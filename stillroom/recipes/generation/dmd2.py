"""DMD2: Improved Distribution Matching Distillation for Fast Image Synthesis

Yin, Gharbi, Park, Zhang, Shechtman, Durand, Freeman — NeurIPS 2024 — https://arxiv.org/abs/2405.14867

    teacher   frozen diffusion model
    reads     its estimate of the clean sample, at every level of noise
    compares  with the estimate of a critic that denoises the generator's samples; a judge on the critic's bottleneck
              tells noised real samples from noised generated ones
    views     samples of the generator, from noise alone (several steps: from its own earlier steps, backward simulation)
    data      real samples for the judge; class labels optional
    learns    a generator of one or a few steps, the critic, the judge
"""

import copy
from dataclasses import dataclass

import torch
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import arenas
from stillroom.measure import Proof
from stillroom.parts import diffusion, optim
from stillroom.parts.losses import scores
from stillroom.parts.schedules import constant
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DMD2(Recipe):
    at: tuple[float, ...] = (1.0,)  # where in the noise schedule the generator steps; four steps: 1.0 0.75 0.5 0.25
    ratio: int = 5            # critic updates for one generator update (two time-scales); 10 for SD v1.5
    gan: float = 3e-3         # weight of realism in the generator's loss
    gan_critic: float = 1e-2  # weight of the judge's loss in the critic's
    guidance: float = 1.0     # of the teacher, classifier-free; 1.75 for SD v1.5, 8 for SDXL
    low: float = 0.02         # least noise at which distributions are matched, as a share of the schedule
    high: float = 0.98        # most noise at which they are
    lr: float = 2e-6          # of the generator, AdamW
    lr_critic: float = 2e-6   # of critic and judge, AdamW
    decay: float = 0.01       # weight decay of both
    warmup: int = 500         # steps until the rates are reached
    clip: float = 10.0        # largest norm of a gradient
    batch: int = 280          # samples per step
    steps: int = 400_000      # critic updates

    def distill(self, run: Run, teacher: Module, judge: Module, data: Dataset) -> Module:
        generator, critic = (copy.deepcopy(teacher).requires_grad_() for _ in range(2))
        teacher, warmup = Frozen(teacher), self.warmup / self.steps
        slow = optim.adamw(generator, lr=constant(self.lr, warmup), decay=self.decay, clip=self.clip)
        fast = optim.adamw(critic, judge, lr=constant(self.lr_critic, warmup), decay=self.decay, clip=self.clip)
        run.keep(generator=generator, critic=critic, judge=judge, slow=slow, fast=fast)
        sigmas = generator.sigmas                                                  # [levels], ascending
        steps = diffusion.at(sigmas, self.at)                                      # [generator steps], descending

        for real, y in run.loop(data, batch=self.batch, steps=self.steps):
            turn = run.step % self.ratio == 0
            reached = 1 + int(torch.rand(()) * len(steps))                         # of the generator's steps, by its own samples
            noisy, sigma = diffusion.walk(generator, torch.randn_like(real), steps[:reached], y)
            with torch.set_grad_enabled(turn):
                fake = generator(noisy, sigma, y)

            if turn:                                                               # the generator, rarely
                noisy, sigma = diffusion.noise(fake, sigmas, self.low, self.high)
                with torch.no_grad():
                    real_clean = diffusion.guided(teacher, noisy, sigma, y, self.guidance)
                    fake_clean = critic(noisy, sigma, y)
                match = scores.distribution_match(fake, real_clean, fake_clean)
                realism = scores.realism(judge(critic.features(*diffusion.noise(fake, sigmas), y)))
                run.update(slow, match=match, realism=self.gan * realism)

            fake = fake.detach()                                                   # the critic, always
            denoise = diffusion.denoising_loss(critic, fake, *diffusion.noise(fake, sigmas), y)
            telling = scores.telling_apart(judge(critic.features(*diffusion.noise(real, sigmas), y)),
                                           judge(critic.features(*diffusion.noise(fake, sigmas), y)))
            run.update(fast, denoise=denoise, telling=self.gan_critic * telling)

        return generator


def trial(seed=0):
    """Handwritten digits of ten classes; the teacher is a small diffusion model of them."""
    return DMD2(gan=0.03, gan_critic=0.03, lr=5e-4, lr_critic=5e-4, warmup=20, batch=32, steps=300), arenas.handwriting(seed)


def proof(generator, cast):
    """One evaluation of the generator comes nearer to real digits than four of the teacher."""
    made, rivals = cast.draw(generator), {"1 (DDIM)": cast.solve(1), "8 (DDIM)": cast.solve(8), "35 (Heun)": cast.solve(18, 2)}
    return Proof(cast.frechet(made), beats=cast.frechet(cast.solve(4)), unit="Fréchet distance of classifier features",
                 better="lower", baseline="the teacher's four evaluations (DDIM)",
                 also={"class obeyed, %": cast.obeys(made), "sliced W2 of pixels": cast.distance(made),
                       **{f"the teacher's {n}": cast.frechet(images) for n, images in rivals.items()}})
