"""BAI: Balanced Actor Initialization: Stable RLHF Training of Distillation-Based Reasoning Models

Zheng, Ma, Yang, Liu, Liu, Song, Song, Ren, Zhu, Liu, Qiao, Zhou, Xiang, Wu — arXiv 2025 — https://arxiv.org/abs/2509.00309

    teacher   none at this time: one of the parents was taught by answers of a reasoning model
    compares  nothing: three descendants of one network become one by their weights
    weights   the two taught parents evenly; then a tenth of the pretrained network
    learns    nothing, no gradient: what is made is where learning by rewards begins
    stages    the instructed and the distilled parent become one; that and the pretrained network become the actor
    note      α = 0.1 had the best scores in the paper, 0.5 to 0.6 the steadiest lengths
"""

import copy
from dataclasses import dataclass

from torch.nn import Module

from stillroom.arenas.answers import answers
from stillroom.measure import Proof
from stillroom.parts.merging import balanced, merged
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class BalancedActorInit(Recipe):
    alpha: float = 0.1        # α, share of the pretrained network
    share: float = 0.5        # w, of the instructed parent among the two that were taught
    steps: int = 2            # mergers: of the taught parents; of what they made and the pretrained network

    def distill(self, run: Run, base: Module, instructed: Module, distilled: Module) -> Module:
        """Three networks of one architecture, two of them descendants of the first. Returns a new one: the actor to begin with,
        and what a penalty on the divergence should refer to."""
        balanced(self.alpha, self.share)                         # refuses what is no share
        actor = copy.deepcopy(base)
        run.keep(actor=actor)

        for stage in run.loop(steps=min(self.steps, 2), name="mergers"):
            pair, weight = ((base, actor), self.alpha) if stage else ((instructed, distilled), self.share)
            actor.load_state_dict(merged(pair, (weight, 1 - weight)).state_dict())

        return actor


def trial(seed=0):
    """Small language models that name what people want of a bank: at once, or after its domain."""
    return BalancedActorInit(), answers(seed)


def proof(actor, cast):
    """With a tenth of the pretrained network the actor answers better than without it. Beside it what 60 updates of GRPO make of
    each: of the mergers more than of either taught parent, which have learnt few samples too well. The pretrained network itself,
    which has read many answers of both kinds, ends there too. The lengths of no taught parent collapse in this world."""
    also: dict[str, float] = {}
    for who, net in {"BAI": actor, "no base": cast.without, **cast.parents}.items():
        learnt = cast.learn(net)
        also |= {f"{who}: right": cast.correct(net), f"{who}: collapse": learnt.collapse, f"{who}: dip": learnt.depth,
                 f"{who}: right after GRPO": learnt.correct}
    return Proof(cast.correct(actor), beats=cast.correct(cast.without), unit="% of answers right", also=also,
                 baseline="the taught parents merged without the pretrained network")
