"""RDD: Exploration by Random Distribution Distillation

Fang, Yang, Tao, Lyu, Li, Shen, Li — arXiv 2025 — https://arxiv.org/abs/2505.11044

    teacher   random network, never trained: the mean of a Gaussian from which a new target is drawn at every visit
    reads     features of the state that was reached
    compares  squared error to the drawn target; to the mean, it is the reward for novelty
    views     whitened observations
    data      the policy's own rollouts
    weights   two streams of advantage: the environment's, and novelty, which does not end with the episode
    learns    the predictor; a policy, by PPO
    note      reconstruction: where the paper leaves PPO's constants open, they are those of Burda et al. 2018
"""

from dataclasses import dataclass, replace

import torch
from torch.nn import Module

from stillroom import arenas
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
    clip: float = 0.1         # ε, how far one rollout may move the policy
    entropy: float = 0.001    # weight of the policy's entropy
    limit: float = 5.0        # bound on whitened observations
    horizon: int = 128        # steps per rollout, in each environment
    epochs: int = 4           # passes over a rollout
    minibatches: int = 4      # parts of a pass
    lr: float = 3e-4          # of the policy, Adam; 1e-4 on Atari
    lr_predictor: float = 3e-4    # of the predictor, Adam; 1e-4 on Atari
    steps: int = 30_000       # rollouts

    def distill(self, run: Run, policy: Module, predictor: Module, target: Module, env: Envs) -> Module:
        mean = Random(target)
        seen, scale = RunningMean((env.size,)), ReturnScale(len(env), self.gamma_novelty)
        opt = optim.adam(policy, lr=self.lr, eps=1e-5, clip=0.5)
        opt_predictor = optim.adam(predictor, lr=self.lr_predictor)
        run.keep(policy=policy, predictor=predictor, env=env, seen=seen, scale=scale, opt=opt, opt_predictor=opt_predictor)

        for _ in run.loop(steps=self.steps):
            roll = ppo.rollout(policy, env, self.horizon)                       # fields [time, envs, …]
            seen.update(roll.next_obs)
            look = seen.normalise(roll.next_obs, self.limit)
            with torch.no_grad():
                centre = mean(look)                                             # μ(s), [time, envs, dim]
                drawn = centre + self.sigma * torch.randn_like(centre)          # c ~ N(μ(s), σ²), one for each visit
                bonus = scale((predictor(look) - centre).square().mean(-1))     # against the mean, [time, envs]

            reward = roll.reward + self.gamma * roll.rest[0]                    # where time ran out the future counts
            gain = ppo.advantage(reward, roll.value[0], roll.done, self.gamma, self.trace)
            gain_novel = ppo.advantage(bonus, roll.value[1], 0 * roll.done, self.gamma_novelty, self.trace)   # never ends
            goal = roll.value[:, :-1] + torch.stack([gain, gain_novel])         # returns to expect, [streams, time, envs]

            for part in ppo.minibatches(self.epochs, self.minibatches, obs=roll.obs, action=roll.action, logp=roll.logp,
                                        gain=gain + self.novelty * gain_novel, goal=goal.movedim(0, -1), look=look, drawn=drawn):
                run.update(opt_predictor, distil=(predictor(part.look) - part.drawn).square().mean())
                run.update(opt, **ppo.losses(policy, part, self.clip, self.entropy))
            run.log(bonus=bonus.mean(), reward=roll.reward.mean())

        return policy


SMALL = RDD(clip=0.2, horizon=32, lr=1e-3, lr_predictor=1e-3, steps=150)      # 77 thousand frames


def trial(seed=0):
    """Seven MiniGrid rooms in a row, behind closed doors; there is no reward before the last."""
    return SMALL, arenas.maze(seed)


def proof(policy, cast):
    """It finds and keeps a way to the goal that PPO does not find in as many frames, because it sees more of the world."""
    again, alone, rnd = (cast.learn(replace(SMALL, **other)) for other in ({}, {"novelty": 0.0}, {"sigma": 0.0}))
    chance = replace(SMALL, lr=0.0)              # the policy stays even, so that both predictors see the same
    even, even_rnd = cast.learn(chance), cast.learn(replace(chance, sigma=0.0))
    return Proof(cast.success(policy), beats=cast.success(alone.policy), unit="% of episodes that reach the goal",
                 baseline="PPO without the bonus",
                 also={"RND": cast.success(rnd.policy), "states seen": again.seen, "states seen by PPO": alone.seen,
                       "states seen by RND": rnd.seen, "states seen by chance": even.seen,
                       "rank correlation of the bonus with 1/n, by chance": even.order, "that of RND": even_rnd.order})
