"""KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement Learning

Xu, Zhu, Xiao, Zheng, Wu, Ding, Zhao, Shen, He, Hu, Xiong — arXiv 2025 — https://arxiv.org/abs/2506.02208

    teacher   frozen language model with the student's tokens
    reads     log-probabilities of the tokens that the student said, one forward for each completion
    compares  reverse KL on the student's own samples, by the estimator whose gradient is its: half the squared log-ratio (k2)
    data      prompts and what a rule needs to grade an answer; no text of the teacher's is read
    weights   of the distillation: falls by a constant at each step until its least; may leave out completions that were right
    learns    student weights, by group-relative policy gradient (GRPO) and the distillation in one loss
    note      reconstruction: where masks leave tokens out, the mean stays over all; in the reward, log-ratios are averaged
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.intents import intents
from stillroom.errors import one_of
from stillroom.measure import Proof
from stillroom.parts import grpo, optim, text
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run

# of KL(student ‖ teacher) at a token, from R = log π_T − log π of the token that was drawn
ESTIMATES = {"k1": lambda r: -r, "k2": lambda r: r.square() / 2, "k3": lambda r: r.exp() - r - 1}
TAUGHT = {  # which completions [prompts, group] are distilled, by their rewards
    "all": lambda reward: torch.ones_like(reward),
    "response": lambda reward: (reward <= 0).float(),
    "group": lambda reward: (reward <= 0).all(1, keepdim=True).float().expand_as(reward)}


@dataclass(frozen=True, kw_only=True)
class KDRL(Recipe):
    beta: float = 5e-3        # β, weight of the distillation at the first step; 0 and no least: GRPO alone
    fall: float = 5e-5        # δ, by which β falls at each step
    beta_least: float = 1e-3  # where β stays
    outcome: float = 1.0      # weight of the policy gradient by rewards; 0 is on-policy distillation alone
    estimate: str = "k2"      # of the reverse KL: "k1" (no gradient in the mean), "k2", "k3" (its gradient is the forward KL's)
    shaped: bool = False      # the distillation goes into the reward and not into the loss
    taught: str = "all"       # completions that are distilled: "all"; "response": wrong ones; "group": where all were wrong
    std: bool = True          # advantages are divided by the deviation of their group
    clip: float = 0.2         # ε, bound on the ratio of new and old probability; acts from the second update on
    updates: int = 1          # of the weights on each batch of completions
    group: int = 8            # completions for each prompt, G
    length: int = 8192        # tokens of a completion, at most
    lr: float = 1e-6          # of AdamW, constant
    decay: float = 0.0        # weight decay
    batch: int = 128          # prompts per step
    steps: int = 280          # batches of prompts

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, reward: Callable) -> Module:
        """`student`, `teacher`: called as transformers' causal models. `data`: samples (ids of a prompt padded on the left, what
        grades its answer). `reward`: (answers [prompts, group, length], what grades them) → [prompts, group]; see
        `parts.verifiers.graded`."""
        distance, chosen = one_of(ESTIMATES, self.estimate), one_of(TAUGHT, self.taught)
        teacher = Frozen(teacher)
        opt = optim.adamw(student, lr=self.lr, decay=self.decay, clip=1.0)
        run.keep(student=student, opt=opt)

        for prompts, gold in run.loop(data, batch=self.batch, steps=self.steps, whole=True):     # a mean over tokens
            told = text.sample(student, prompts, self.length, count=self.group)
            grade = reward(told.said.unflatten(0, (-1, self.group)), gold).float()               # [prompts, group]
            beta = max(self.beta - self.fall * run.step, self.beta_least)
            taught = text.log_probs(teacher, told) if beta else None                             # [rows, length]
            old = None
            for _ in range(self.updates):
                logp = text.log_probs(student, told)
                old = logp.detach() if old is None else old
                gain, terms = grade, {}
                if beta and self.shaped:
                    gain = grade + beta * closeness(old, taught, told.mask).view_as(grade)
                elif beta:
                    weight = chosen(grade).flatten()[:, None] * grpo.ratio(logp, old, self.clip)[1].detach()
                    terms["distil"] = beta * grpo.mean(weight * distance(taught - logp), told.mask)
                if self.outcome:
                    gain = grpo.advantage(gain, self.std).flatten()
                    terms["outcome"] = self.outcome * grpo.loss(logp, old, gain, told.mask, self.clip)
                run.update(opt, **terms)
            run.log(reward=grade.mean(), length=told.mask.sum(1).float().mean())

        return student


def closeness(logp: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """Mean of R over the tokens of each completion, [rows]."""
    return ((taught - logp) * mask).sum(1) / mask.sum(1).clamp(min=1)


def trial(seed=0):
    """What people want of a bank, named word by word: a teacher that is right in two of three cases, a student in one, and a rule
    that grades."""
    return KDRL(beta=1.0, fall=0.02, beta_least=0.02, length=4, lr=3e-3, batch=32, steps=100), intents(seed)


def proof(student, cast):
    """It learns more from as many of its own answers than by rewards alone. Beside it the paper's other baselines: distillation
    alone, and the student taught by as many answers of the teacher's. Whether these teach as much depends on the teacher: one
    schooled by 200 queries, right in half of the cases, is left behind by KDRL; one schooled by 750, right in four of five,
    teaches more by its answers."""
    alone = cast.other(beta=0.0, beta_least=0.0)
    also = {"on-policy distillation alone": cast.other(outcome=0.0, fall=0.0, beta_least=1.0), "the teacher": cast.teacher,
            "taught by the teacher's answers": cast.imitated(), "the student before": cast.before}
    return Proof(cast.accuracy(student), beats=cast.accuracy(alone), unit="accuracy", baseline="GRPO alone",
                 also={who: cast.accuracy(net) for who, net in also.items()})
