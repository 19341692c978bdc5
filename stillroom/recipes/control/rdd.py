"""RDD: Exploration by Random Distribution Distillation

Fang, Yang, Tao, Lyu, Li, Shen, Li — arXiv 2025 — https://arxiv.org/abs/2505.11044

    teacher   random network, never trained: the mean of a Gaussian from which a new target is drawn at every visit
    reads     features of the state that was reached
    compares  squared error to the drawn target; to the mean, it is the reward for novelty
    views     whitened observations
    data      the policy's own rollouts
    weights   two streams of advantage: the environment's, and novelty, which does not end with the episode
    learns    the predictor; a policy, by PPO
    note      reconstruction: the constants of PPO are those of Burda et al. 2018 where the paper leaves them open
"""

from dataclasses import dataclass, replace

import torch
from torch.nn import Module

from stillroom.measure import Proof
from stillroom.parts import optim, ppo
from stillroom.parts.ppo import Envs
from stillroom.parts.stats import ReturnScale, RunningMean
from stillroom.parts.teachers import Random
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class RDD(Recipe):
    sigma: float = 1.0        # σ, deviation of the drawn targets from their mean; 0 is RND
    novelty: float = 1.0      # c, weight of the novelty advantage; 0 is PPO alone
    gamma: float = 0.99       # discount of the environment's reward
    gamma_novelty: float = 0.99   # discount of novelty
    trace: float = 0.95       # λ of the advantage estimates
    clip: float = 0.1         # ε, how far the policy may move in one go
    entropy: float = 0.001    # weight of the policy's entropy
    horizon: int = 128        # steps per rollout, in each environment
    epochs: int = 4           # passes over a rollout
    minibatches: int = 4      # parts of a pass
    lr: float = 3e-4          # of the policy, Adam; 1e-4 on Atari
    lr_predictor: float = 3e-4    # of the predictor, Adam; 1e-4 on Atari
    limit: float = 5.0        # bound on whitened observations
    steps: int = 30_000       # rollouts

    def distill(self, run: Run, policy: Module, predictor: Module, target: Module, env: Envs) -> Module:
        mean = Random(target)
        seen, scale = RunningMean((env.size,)), ReturnScale(len(env), self.gamma_novelty)
        opt = optim.adam(policy, lr=self.lr, eps=1e-5, clip=0.5)
        opt_predictor = optim.adam(predictor, lr=self.lr_predictor)
        run.keep(policy=policy, predictor=predictor, env=env, seen=seen, scale=scale, opt=opt, opt_predictor=opt_predictor,
                 target=run.place(mean))

        for _ in run.loop(steps=self.steps):
            roll = ppo.rollout(policy, env, self.horizon)
            seen.update(roll.next_obs)
            look = seen.normalise(roll.next_obs, self.limit)
            with torch.no_grad():
                centre = mean(look)                                                     # μ(s), [time, envs, dim]
                drawn = centre + self.sigma * torch.randn_like(centre)                  # one target a visit
                novel = scale((predictor(look) - centre).square().mean(-1))             # [time, envs]
            gain = ppo.advantage(roll.reward + self.gamma * roll.rest[0], roll.value[0], roll.done, self.gamma, self.trace)
            gain_novel = ppo.advantage(novel, roll.value[1], 0 * roll.done, self.gamma_novelty, self.trace)
            goals = torch.stack([roll.value[0][:-1] + gain, roll.value[1][:-1] + gain_novel], -1)
            gain = gain + self.novelty * gain_novel
            for part in ppo.minibatches(self.epochs, self.minibatches, obs=roll.obs, action=roll.action, logp=roll.logp,
                                        gain=gain, goal=goals, look=look, drawn=drawn):
                run.update(opt_predictor, distil=(predictor(part.look) - part.drawn).square().mean())
                run.update(opt, **ppo.losses(policy, part, self.clip, self.entropy))
            run.log(novel=novel.mean(), **({"return": sum(env.finished) / len(env.finished)} if env.finished else {}))
        return policy
