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
from torch.func import vmap
from torch.nn import Module

from stillroom.arenas.plane import plane
from stillroom.measure import Proof
from stillroom.parts import optim
from stillroom.parts.archive import Archive, cells, isoline
from stillroom.parts.episodes import Episodes, Task
from stillroom.parts.flat import flat_call, flatten, fresh
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
                played = task.play(lambda obs, rows: each(policy, young[rows], obs.to(run.device)).float().cpu(), len(young))
                added = archive.add(young, played.fitness.to(run.device), played.descriptor.to(run.device))
                remember(replay, played, played.descriptor)
                asked = archive.draw(self.active)[1].cpu()
                if self.active:
                    played = task.play(lambda obs, rows: actor(self.seen(obs, asked[rows]).to(run.device)).float().cpu(), self.active)
                    remember(replay, played, asked)

            for update in range(self.steps_critic * (self.gradient + self.active > 0)):
                part = replay.draw(self.batch)
                error = critic(self.seen(part.obs, part.action, part.asked)) - self.target(part, critic_target, actor_target)
                run.update(opt_critic, critic=error.square().mean(1).sum())
                critic_target.follow(critic, 1 - self.follow)
                if update % self.delay == 0:
                    said = actor(self.seen(part.obs, part.asked))
                    run.update(opt_actor, actor=-critic(self.seen(part.obs, said, part.asked))[0].mean())
                    actor_target.follow(actor, 1 - self.follow)
            run.log(added=added.float().mean(), filled=float(len(archive.filled)))
        return archive, actor

    def seen(self, *parts: Tensor) -> Tensor:
        """What networks see: the parts side by side, the last of them the descriptor that is asked for."""
        return torch.cat([*parts[:-1], parts[-1] if self.conditioned else torch.zeros_like(parts[-1])], -1)

    @torch.no_grad()
    def target(self, part, critic: Module, actor: Module) -> Tensor:
        """S·r + γ·(1 − done)·min Q'(s', π'(s' | d') + clipped noise | d'), [batch]."""
        near = (-(part.reached - part.asked).norm(dim=-1) / self.length).exp() if self.conditioned else 1.0
        action = actor(self.seen(part.next_obs, part.asked))
        action = (action + (self.noise * torch.randn_like(action)).clamp(-self.limit, self.limit)).clamp(-1, 1)
        after = critic(self.seen(part.next_obs, action, part.asked)).amin(0)
        return near * part.reward + self.gamma * (1 - part.done) * after

    def improved(self, elites: Tensor, reached: Tensor, policy: Module, critic: Module, replay: Replay) -> Tensor:
        """Elites [policies, weights] that ascend Q₁ of what they do, while they are asked for what they did, each by its own."""
        elites, asked = elites.requires_grad_(), reached[:, None].expand(-1, self.batch, -1)
        opt = torch.optim.Adam([elites], lr=self.lr_elite)
        for _ in range(self.steps_elite * (len(elites) > 0)):
            obs = replay.draw(len(elites), self.batch).obs                               # [policies, batch, size]
            said = vmap(partial(flat_call, policy))(elites, obs)
            elites.grad, = torch.autograd.grad(-critic(self.seen(obs, said, asked))[0].mean(1).sum(), elites)
            opt.step()
        return elites.detach()


def each(policy: Module, weights: Tensor, obs: Tensor) -> Tensor:
    """The action of every policy, [policies, actions]: weights [policies, weights], obs [policies, size]."""
    return vmap(partial(flat_call, policy))(weights, obs)


def remember(replay: Replay, played: Episodes, asked: Tensor) -> None:
    """All steps of episodes that had not ended, with the descriptor of the whole episode and the one that was asked for."""
    lived, time = played.alive.bool(), played.alive.shape[1]
    whole = {"reached": played.descriptor[:, None].expand(-1, time, -1), "asked": asked[:, None].expand(-1, time, -1)}
    own = {name: getattr(played, name) for name in ("obs", "action", "reward", "next_obs", "done")}
    replay.add(**{name: x[lived] for name, x in (own | whole).items()})


SMALL = DCGMAPElites(cells=128, bred=16, gradient=16, active=8, memory=20_000, lr=1e-3, batch=64, steps_critic=40,
                     steps_elite=10, steps=30)


def trial(seed=0):
    """A point that leaves a trap, 1,200 episodes; settings chosen on seeds 10 to 12."""
    return SMALL, plane(seed)


def proof(made, cast):
    """Its archive is worth more than that of gradients that know no descriptor, after as many episodes."""
    (archive, actor), pga = made, cast.other(bred=20, gradient=20, active=0, conditioned=False)[0]
    elites = cast.other(bred=40, gradient=0, active=0)[0]
    return Proof(cast.score(archive), beats=cast.score(pga), unit="QD score, % of the possible", baseline="PGA-MAP-Elites",
                 also={"MAP-Elites": cast.score(elites)})
