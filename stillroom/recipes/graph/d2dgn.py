"""D2DGN: Distill to Delete: Unlearning in Graph Networks with Knowledge Distillation

Sinha, Mandal, Kankanhalli — arXiv 2023 — https://arxiv.org/abs/2309.16173

    teacher   two: the network that knows too much preserves; an untrained one of the same shape destroys
    reads     what is told of edges, or of the nodes' classes; or the nodes' embeddings behind every layer
    compares  KL of Bernoulli or class distributions; or squared error of embeddings
    data      one graph and what is to be forgotten of it, edges or nodes; no label is read
    weights   alpha for what stays, the rest for what goes
    learns    weights of a new student, whose messages never pass a deleted edge
    note      reconstruction: optimiser and weights; pairs without an edge are drawn, so that the student knows the zeros, too
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.unlearning import unlearning
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.parts import losses, optim
from stillroom.parts.nodes import Nodes, nodes, score, unlinked, without
from stillroom.recipe import Recipe
from stillroom.run import Run

LEAST = 1e-5      # of a probability that is compared


@dataclass(frozen=True, kw_only=True)
class D2DGN(Recipe):
    compares: str = "edges"      # "edges" by products of embeddings, "classes" of nodes, or "features", the embeddings themselves
    alpha: float = 0.5           # weight of what stays, α; what goes gets the rest
    negatives: float = 1.0       # drawn pairs without an edge, for each edge that stays
    lr: float = 0.01             # of Adam
    decay: float = 5e-4          # weight decay
    steps: int = 100             # updates, on the whole graph

    def distill(self, run: Run, student: Module, teacher: Module, destroyer: Module, data: Nodes, deleted: Tensor) -> Module:
        """`deleted`: edges [2, deleted] or nodes [deleted] of `data`. Networks: (features, edges) → embeddings or logits
        [nodes, …]; to compare features they have `each`, which gives those of every layer, as `models.nodes.GNN` does."""
        if self.compares not in COMPARE:
            raise Refused(f"compares={self.compares!r}", nearest(self.compares, COMPARE))
        graph = nodes(data).to(run.device)
        compare, x, n = COMPARE[self.compares], graph.x, len(graph)
        kept, gone = without(graph.edges, deleted, n)
        if not gone.shape[1]:
            raise Refused("nothing that is to be deleted is in the graph", "give edges [2, deleted] or nodes [deleted] of it")
        read = each if self.compares == "features" else Module.__call__
        with resting(teacher), resting(destroyer):
            preserved, destroyed = read(teacher, x, graph.edges), read(destroyer, x, kept)
        stay, go = kept[:, kept[0] < kept[1]], gone[:, gone[0] < gone[1]]              # each edge once
        if self.compares != "edges":
            stay, go = touched(kept, gone, deleted, n)
        opt = optim.adam(student, lr=self.lr, decay=self.decay)
        run.keep(student=student, opt=opt)

        for _ in run.loop(steps=self.steps):
            found, items = read(student, x, kept), stay
            if self.compares == "edges":
                items = torch.cat([stay, unlinked(graph.edges, n, round(self.negatives * stay.shape[1]))], 1)
            run.update(opt, keep=self.alpha * compare(found, preserved, items),
                       drop=(1 - self.alpha) * compare(found, destroyed, go))

        return student


def touched(kept: Tensor, gone: Tensor, deleted: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Nodes that stay and nodes that go, [nodes] each: deleted ones, or both ends of deleted edges, go; an end of deleted edges
    that has others stays, too."""
    go = deleted.unique() if deleted.ndim == 1 else gone.unique()
    stay = torch.ones(n, dtype=torch.bool, device=kept.device).index_fill(0, go, False).index_fill(0, kept.unique(), True)
    return stay.nonzero().flatten(), go


def each(net: Module, x: Tensor, edges: Tensor) -> list[Tensor]:
    """The embeddings of every layer, [nodes, width] each."""
    return net.each(x, edges)


def of_edges(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Mean over pairs of KL([p, 1 − p] ‖ [q, 1 − q]), p = σ(z_u·z_v) by the teacher, q by the student, cut at 1e-5.
    Embeddings [nodes, dim], pairs [2, pairs]."""
    q, p = (score(z, pairs).clamp(LEAST, 1 - LEAST) for z in (student, teacher))
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def of_classes(student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
    """Mean over nodes of the KL of their classes. Logits [nodes, classes], rows [items]."""
    return losses.kl(student[rows], teacher[rows])


def of_features(student: list[Tensor], teacher: list[Tensor], rows: Tensor) -> Tensor:
    """Mean squared error of the embeddings of these nodes, summed over the layers."""
    return torch.stack([F.mse_loss(ours[rows], theirs[rows]) for ours, theirs in zip(student, teacher, strict=True)]).sum()


COMPARE = {"edges": of_edges, "classes": of_classes, "features": of_features}


def trial(seed=0):
    """Links between papers: a network that predicts them forgets some, drawn at random."""
    return D2DGN(alpha=0.9), unlearning(seed)


def proof(student, cast):
    """Mean of two areas: test links above pairs without one, and links that stay above those that were to be forgotten; better
    than a network trained anew without these. Beyond what such a one forgets, it suppresses: their scores lie apart."""
    original, retrained, by_features = cast.original(), cast.retrained(), cast.other(compares="features")
    return Proof(cast.both(student), beats=cast.both(retrained), unit="area, %", baseline="trained anew without them",
                 also={"test links": cast.held(student), "forgotten links": cast.forgotten(student),
                       "test links, trained anew": cast.held(retrained), "forgotten, trained anew": cast.forgotten(retrained),
                       "test links, original": cast.held(original), "forgotten, original": cast.forgotten(original),
                       "test links, by features": cast.held(by_features), "forgotten, by features": cast.forgotten(by_features),
                       "membership ratio": cast.membership(student), "membership ratio, trained anew": cast.membership(retrained),
                       "distance to trained anew": cast.distance(student), "of the original": cast.distance(original)})
