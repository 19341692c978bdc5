"""DCG-MAP-Elites: MAP-Elites with Descriptor-Conditioned Gradients and Archive Distillation into a Single Policy

Faldor, Chalumeau, Flageat, Cully — GECCO 2023 — https://arxiv.org/abs/2303.03832

    teacher   an archive of policies, the fittest for every behaviour, each evaluated in whole episodes
    reads     transitions, with the descriptor of the episode d and the one that was asked for d'
    compares  a twin critic's Q(s, a | d') with its target, by TD3; the actor ascends it
    data      episodes of the task, rewards not negative; nothing is carried from one iteration to the next but transitions
    weights   rewards count exp(−‖d − d'‖ / L)
    learns    one actor π(s | d') that knows the whole archive; elites, by variation and by the critic's gradient
    note      a step cut by time is learnt from, what follows it is known; the released code leaves it out. conditioned=False is
              PGA-MAP-Elites but for its actor, which is no offspring here; and with gradient=0 it is MAP-Elites
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.arm import arm
from stillroom.measure import Proof
from stillroom.parts import optim, td3
from stillroom.parts.archive import Archive, alike, cells, isoline
from stillroom.parts.episodes import Task, each, told
from stillroom.parts.flat import each_call, flatten, fresh
from stillroom.parts.replay import Replay
from stillroom.parts.teachers import Ema
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DCGMAPElites(Recipe):
    cells: int = 1024         # of the archive
    bred: int = 128           # offspring of two elites, an iteration
    gradient: int = 128       # offspring by the critic's gradient
    active: int = 64          # episodes of the actor, each asked for the descriptor of an elite
    conditioned: bool = True  # critic and actor know d'; False: d' is 0 to them, and rewards count in full
    length: float = 0.1       # L, distance of descriptors at which a reward counts 1/e
    iso: float = 0.005        # σ₁ of iso+line variation
    line: float = 0.05        # σ₂
    gamma: float = 0.99       # discount
    follow: float = 0.005     # τ, step of the targets towards critic and actor
    delay: int = 2            # updates of the critic for one of the actor
    noise: float = 0.2        # σ of the target's action
    limit: float = 0.5        # bound on that noise
    memory: int = 1_000_000   # transitions
    lr: float = 3e-4          # of critic and actor, Adam
    lr_elite: float = 5e-3    # of the gradient's offspring, Adam
    batch: int = 100          # transitions of an update
    steps_critic: int = 3000  # updates of the critic, an iteration
    steps_elite: int = 150    # of an offspring by the gradient
    steps: int = 4000         # iterations

    def distill(self, run: Run, task: Task, policy: Module, actor: Module, critic: Module) -> tuple[Archive, Module]:
        """policy: obs → action, of elites; actor: obs, d' → action; critic: obs, action, d' → two returns. Archive and actor."""
        archive = Archive(cells(self.cells, task.dims).to(run.device), len(flatten(policy)))
        replay = Replay(self.memory, obs=task.size, action=task.actions, reward=0, next_obs=task.size, done=0,
                        reached=task.dims, asked=task.dims).to(run.device)
        critic_target, actor_target = Ema(critic), Ema(actor)
        opt_critic, opt_actor = optim.adam(critic, lr=self.lr), optim.adam(actor, lr=self.lr)
        run.keep(archive=archive, replay=replay, critic=critic, actor=actor, critic_target=critic_target,
                 actor_target=actor_target, opt_critic=opt_critic, opt_actor=opt_actor)
        for _ in run.loop(steps=self.steps):
            if run.step == 0:
                young = torch.stack([flatten(fresh(policy)) for _ in range(self.bred + self.gradient)])
            else:
                young = isoline(archive.draw(self.bred)[0], archive.draw(self.bred)[0], self.iso, self.line)
                young = torch.cat([young, self.improved(*archive.draw(self.gradient), policy, critic, replay)])
            with torch.no_grad():
                played = task.play(partial(each, policy, young), len(young))
                archive.add(young, played.fitness.to(run.device), played.descriptor.to(run.device))
                replay.add(**played.steps(played.descriptor))
                if self.active:
                    asked = archive.draw(self.active)[1]
                    replay.add(**task.play(partial(told, actor, asked * self.conditioned), self.active).steps(asked.cpu()))
            for update in range(self.steps_critic * (self.gradient + self.active > 0)):
                part = replay.draw(self.batch)
                near = alike(part.reached, part.asked, self.length) if self.conditioned else 1
                known = part.asked * self.conditioned
                goal = td3.target(critic_target, actor_target, near * part.reward, part.done, part.next_obs, known,
                                  self.gamma, self.noise, self.limit)                                # [batch]
                error = critic(torch.cat([part.obs, part.action, known], 1)) - goal                  # [2, batch]
                run.update(opt_critic, critic=error.square().mean(1).sum())
                critic_target.follow(critic, 1 - self.follow)
                if update % self.delay == 0:
                    run.update(opt_actor, actor=td3.regret(critic, actor, part.obs, known))
                    actor_target.follow(actor, 1 - self.follow)
            run.log(filled=float(len(archive.filled)), fitness=archive.fitness[archive.filled].sum())
        return archive, actor

    def improved(self, weights: Tensor, reached: Tensor, policy: Module, critic: Module, replay: Replay) -> Tensor:
        """Elites [elites, weights] that ascended Q₁ of what they do, each asked for what it did before [elites, dims]."""
        weights, asked = weights.requires_grad_(), (reached * self.conditioned)[:, None].expand(-1, self.batch, -1)
        opt = torch.optim.Adam([weights], lr=self.lr_elite)
        for _ in range(self.steps_elite * (len(weights) > 0)):
            obs = replay.draw(len(weights), self.batch).obs                              # [elites, batch, size]
            value = critic(torch.cat([obs, each_call(policy, weights, obs), asked], -1))[0]
            weights.grad, = torch.autograd.grad(-value.mean(1).sum(), weights)
            opt.step()
        return weights.detach()


def trial(seed=0):
    """The arm of Reacher-v5 ends everywhere with little effort, a thousand episodes; settings chosen on seeds 10 to 12."""
    return DCGMAPElites(cells=64, bred=16, gradient=16, active=8, iso=0.05, line=0.5, gamma=0.95, follow=0.01, memory=60_000,
                        lr=1e-3, batch=256, steps_critic=120, steps_elite=15, steps=25), arm(seed)


def proof(made, cast):
    """One policy, asked for every behaviour of its archive, shows many of them; the archive alone needs no gradient here."""
    (ours, actor), (pga, greedy) = made, cast.other(bred=20, gradient=20, active=0, conditioned=False)
    bred, wide = (cast.other(bred=40, gradient=0, active=0, **wider)[0] for wider in ({}, {"iso": 0.1, "line": 1.0}))
    found = {"one policy": cast.shown(actor, ours), "its archive": ours, "PGA's one policy": cast.shown(greedy, pga),
             "PGA's archive": pga, "MAP-Elites": bred, "MAP-Elites, twice as wide": wide}
    far = {"distance from what was asked": cast.error(actor, ours), "PGA's distance": cast.error(greedy, pga)}
    return Proof((also := cast.numbers(found)).pop("one policy"), beats=also.pop("PGA's one policy"), also=far | also,
                 unit="QD score of one policy, % of the possible", baseline="PGA-MAP-Elites'", shows=lambda: cast.charts(found))
