"""LightHGNN: Distilling Hypergraph Neural Networks into MLPs for 100× Faster Inference

Feng, Luo, Ying, Gao — ICLR 2024 — https://openreview.net/forum?id=lHasEfGsXL

    teacher   frozen network over a hypergraph
    reads     logits of the vertices; with plus, their means over hyperedges
    compares  KL of class distributions, vertex by vertex; with plus, hyperedge by hyperedge, the reliable ones more often
    data      vertices of one hypergraph, labels optional; the student reads features alone
    weights   with plus, a hyperedge is taken as often as its entropy stays the same under noise on the features
    learns    student weights
    note      true KL, where the release applies its KL to probabilities in the place of their logarithms
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.cocited import cocited
from stillroom.measure import Proof
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes, edge_means, nodes
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class LightHGNN(Recipe):
    plus: bool = False        # LightHGNN⁺: reliable hyperedges teach, too
    noise: float = 1.0        # on the teacher's features when hyperedges are judged, a share of each
    lam: float = 0.0          # share of the labels beside the teacher's, λ
    lr: float = 0.01          # of Adam
    decay: float = 5e-4       # weight decay
    steps: int = 200          # updates, on all vertices

    def distill(self, run: Run, student: Module, teacher: Module, data: Nodes) -> Module:
        """`teacher`: (features, members [2, memberships]) → logits. A graph becomes pairs and neighbourhoods; PyG's data do."""
        graph = nodes(data, hyper=True).to(run.device)
        x, members, teacher = graph.x, graph.edges, Frozen(teacher)
        taught = teacher(x, members)                                                 # [vertices, classes]
        kept = reliability(taught, teacher(x * (1 + self.noise * torch.randn_like(x)), members), members)
        known = (graph.targets != UNLABELLED).nonzero().flatten()
        opt = optim.adam(student, lr=self.lr, decay=self.decay)
        run.keep(student=student, opt=opt)

        for _ in run.loop(steps=self.steps):
            guess = student(x)
            terms = {"soft": (1 - self.lam) * losses.kl(guess, taught)}
            if self.plus:
                terms["edges"] = (1 - self.lam) * edge_kl(guess, taught, members, torch.bernoulli(kept))
            if self.lam and len(known):
                terms["labels"] = self.lam * losses.labels(guess[known], graph.targets[known])
            run.update(opt, **terms)

        return student


def reliability(logits: Tensor, disturbed: Tensor, members: Tensor) -> Tensor:
    """ρ_e = 1 − δ_e / max δ, [hyperedges]: δ_e is by how much the mean entropy of a hyperedge's vertices changes under noise.
    logits, disturbed [vertices, classes]; all 1 where nothing changes."""
    change = edge_means(entropy(disturbed) - entropy(logits), members).abs()
    return 1 - change / change.max().clamp(min=torch.finfo(change.dtype).tiny)


def entropy(logits: Tensor) -> Tensor:
    """Of every distribution, in nats: [..., classes] → [...]."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def edge_kl(student: Tensor, teacher: Tensor, members: Tensor, mask: Tensor) -> Tensor:
    """Σ_e m_e·KL(P_e ‖ Q_e) / Σ_e m_e; P_e and Q_e are the means of the vertices' distributions.
    Logits [vertices, classes], mask [hyperedges] of 0 and 1; a scalar in nats."""
    p, q = (edge_means(z.float().softmax(-1), members).clamp(min=1e-12) for z in (teacher, student))
    return (mask * F.kl_div(q.log(), p, reduction="none").sum(-1)).sum() / mask.sum().clamp(min=1)


def trial(seed=0):
    """LightHGNN⁺ on papers cited together, twenty labelled ones a class."""
    return LightHGNN(plus=True, steps=60), cocited(seed)


def proof(student, cast):
    """As good as the network over the hypergraph, within two points, without reading it; the same student taught by the labels
    alone, and without hyperedges, is beside it. (Two points: after one step it is already better than by the labels alone.)"""
    plain, alone = cast.other(plus=False), cast.alone()
    return Proof(cast.accuracy(student), beats=cast.teacher_accuracy - 2, unit="accuracy", baseline="the teacher less two",
                 also={"teacher": cast.teacher_accuracy, "the student alone": cast.accuracy(alone),
                       "LightHGNN": cast.accuracy(plain),
                       "distance to hyperedges": cast.distance(student), "by LightHGNN": cast.distance(plain),
                       "by labels alone": cast.distance(alone)})
