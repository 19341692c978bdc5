"""How the diffusion teachers of the arenas are made."""

from dataclasses import dataclass

import torch
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.parts import diffusion, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Ema
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class Denoising(Recipe):
    """Denoising score matching as in Karras et al. 2022, with labels left out now and then; returns the moving average."""

    lr: float = 3e-3          # of AdamW, cosine to 0
    drop: float = 0.1         # share of samples whose label is hidden, for guidance
    momentum: float = 0.97    # of the average over steps
    batch: int = 64           # samples per step
    steps: int = 100_000      # updates

    def distill(self, run: Run, denoiser: Module, data: Dataset) -> Module:
        average = Ema(denoiser)
        opt = optim.adamw(denoiser, lr=cosine(self.lr, warmup=0.05))
        run.keep(denoiser=denoiser, average=average, opt=opt)
        for x, y in run.loop(data, batch=self.batch, steps=self.steps):
            y = torch.where(torch.rand(y.shape, device=y.device) < self.drop, UNLABELLED, y)
            if run.update(opt, denoise=diffusion.denoising_loss(denoiser, x, *diffusion.lognormal(x), y)):
                average.follow(denoiser, self.momentum)
        return average.model
