"""PVD-AL: Progressive Volume Distillation with Active Learning for Efficient NeRF Architecture Conversion

Fang, Wang, Yang, Xu, Wang, Ding, Zhou — arXiv 2023 — https://arxiv.org/abs/2304.04012

    teacher   frozen radiance field of any architecture; where it sees nothing, the student is not asked either
    reads     features of block 1, logarithm of the density, colour; the colour rendered along rays
    compares  norm of the difference over the whole batch
    views     random cameras where the given ones stand; the same points of the same rays for both
    data      poses, no image; photographs from there, if it is tuned by them in the end
    weights   hard views, hard rays and points of much weight come more often
    learns    a radiance field of another architecture
    stages    features of block 1; densities and colours beside them; all of it and what is rendered; photographs, if any
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.arenas.radiance import Fitting, radiance
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.parts import cameras, optim
from stillroom.parts.losses.sizes import size
from stillroom.parts.memory import Hard
from stillroom.parts.rendering import composite, heaviest, sample, trunc_exp
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class PVDAL(Recipe):
    feature: float = 0.002      # weight of the features at the first step, λ_f
    fade: float = 0.995         # factor on it at every step
    density: float = 0.002      # weight of the densities' logarithms, λ_σ
    colour: float = 0.002       # weight of the points' colours, λ_c
    rgb: float = 1.0            # weight of the rendered colours, λ_rgb
    features: float = 0.0667    # share of the steps with features alone: 2,000 of 30,000
    blocks: float = 0.1667      # share of the steps without rendering: 5,000 of 30,000
    norm: str = "l2"            # of every difference: "l2", "l1", "mse" or "smooth_l1"; weights are for the first
    clamp: tuple[float, float] = (-2.0, 7.0)    # features and logarithms of densities are kept in this range when compared
    hard_views: float = 0.1     # share of a round's views that turn around hard ones
    hard_rays: float = 0.1      # hard rays in a step, as a share of the others
    points: float = 0.3         # share of a ray's points that count, those of most weight
    opaque: float = 0.5         # least opacity of a ray whose points count
    pool_views: int = 100       # hard views that are remembered
    pool_rays: int = 614_400    # hard rays that are
    rest: int = 3               # rounds before views are remembered
    turn: float = 0.157         # largest angle by which a hard view is turned
    views: int = 312            # of a round, one a step
    rays: int = 4096            # of a view
    samples: int = 1024         # along a ray
    lr: float = 0.01            # of AdamW, cosine; a deep network takes a tenth
    lr_end: float = 7e-5        # where it ends
    steps: int = 30_000         # updates
    steps_tune: int = 30_000    # updates by photographs, where there are any, at the same rate

    def distill(self, run: Run, student: Module, teacher: Module, poses: Tensor, focal: float, height: int, width: int,
                images: Tensor | None = None) -> Module:
        """`poses` [n, 4, 4]: cameras around the scene, all alike. `images` [n, height, width, 3]: what they saw, on white."""
        if (student.bound, student.occupied.shape) != (teacher.bound, teacher.occupied.shape):
            raise Refused("student and teacher fill different boxes", "build both with the same bound and grid")
        if images is not None and images.shape[:3] != (len(poses), height, width):
            raise Refused("{} images of {} × {} for {} poses".format(*images.shape[:3], len(poses)), "one of each pose's size")
        student.occupied.copy_(teacher.occupied)
        common, teacher, poses = student.shared and teacher.shared, Frozen(teacher), poses.float()    # whether features compare
        opt = optim.adamw(student, lr=cosine(self.lr, self.lr_end), betas=(0.9, 0.99), eps=1e-15, shares=student.paces())
        hard = nn.ModuleList([cameras.Tour(self.views, self.pool_views, poses), Hard(self.pool_rays, torch.empty(1, 6))])
        run.keep(student=student, opt=opt, hard=hard)

        for step in run.loop(steps=self.steps):
            (tour, pool), (lap, view) = hard, divmod(step, self.views)
            if view == 0:
                tour.begin(cameras.orbit(poses, self.views), self.hard_views if lap >= self.rest else 0.0, self.turn)
            pixels = torch.randint(height * width, (self.rays,), device=run.device)
            again = pool.draw(int(self.hard_rays * self.rays))
            rays = torch.cat([cameras.rays(tour.pose[view], pixels, focal, height, width), pool.held[again]])
            points = sample(rays, student.bound, student.occupied, self.samples, jitter=True)
            taught, learnt = teacher(points.x, points.direction), student(points.x, points.direction)
            among, terms = torch.ones_like(taught.logit, dtype=torch.bool), {}

            if run.progress >= self.blocks:
                ground = torch.rand(len(rays), 3, device=run.device)
                true, seen = (composite(points, trunc_exp(f.logit), f.colour, ground) for f in (taught, learnt))
                miss = seen.colour - true.colour                                     # [rays, 3]
                tour.error[view] = miss[: self.rays].detach().square().mean()
                pool.put(rays[miss.abs().sum(1).topk(int(self.hard_rays * self.rays)).indices], again)
                among = heaviest(points, true, self.points, self.opaque) | heaviest(points, seen, self.points, self.opaque)
                terms["rgb"] = self.rgb * size(miss, self.norm)

            one, other = (f.clamped(*self.clamp) for f in (taught, learnt))
            if run.progress >= self.features or not common:
                terms["density"] = self.density * size((other.logit - one.logit)[among], self.norm)
                terms["colour"] = self.colour * size((other.colour - one.colour)[among], self.norm)
            if common:
                terms["features"] = self.feature * self.fade**step * size((other.features - one.features)[among], self.norm)
            run.update(opt, **terms)

        if images is None:
            return student
        tuning = Fitting(lr=self.lr, rays=self.rays, samples=self.samples, steps=self.steps_tune)
        return tuning(run.part("tune"), field=student, images=images, poses=poses, focal=focal)


SMALL = PVDAL(lr=0.06, pool_views=2, pool_rays=300, views=10, rays=128, samples=48, steps=200)


def trial(seed=0):
    """Photographs of a scene; the teacher is a table of features that has learnt from them, the student a deep network."""
    return SMALL, radiance(seed)


def proof(student, cast):
    """Views that nobody saw come out better than those of the same network after as many steps on the photographs."""
    return Proof(cast.psnr(student), beats=cast.psnr(cast.alone(SMALL)), unit="PSNR in dB, held-out views",
                 baseline="the same network taught by the photographs", shows=lambda: cast.views(student, SMALL),
                 also={who: cast.psnr(field) for who, field in cast.others(student, SMALL).items()})
