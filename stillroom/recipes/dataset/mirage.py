"""Mirage: Model-Agnostic Graph Distillation for Graph Classification

Gupta, Manchanda, Kodamana, Ranu — ICLR 2024 — https://arxiv.org/abs/2310.09486

    teacher   none: how often trees come together in the data
    reads     the computation tree of every node, all that a message-passing network sees of it
    compares  trees by canonical code; sets of trees by how many graphs of a class contain them
    data      labelled graphs, labels on nodes and edges discrete
    weights   a set stands for as many graphs as contain it
    learns    nothing, no gradient: frequent sets of trees become the training graphs
    stages    trees of every graph; frequent sets of every class
    note      the paper chooses thresholds by hand; here they follow from the size that is asked for
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.arenas.ink import SHARE, ink
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.parts.graphs import Graph, Sets, Trees, fill, most_frequent, pack
from stillroom.recipe import Recipe
from stillroom.run import Run

REACH = 32      # times its share of the nodes, a class is mined: sets that another class has, too, fall out later


@dataclass(frozen=True, kw_only=True)
class Mirage(Recipe):
    hops: int = 2             # L, depth of the trees: layers of the networks to be trained
    size: float = 0.01        # nodes of the distilled graphs over those of the real ones, at most; but a set of each class
    shared: bool = False      # keep sets of trees that are frequent in more than one class
    degrees: bool = False     # leaves keep their degree, as a GCN's normalisation needs it
    steps: int = 1_000_000    # graphs to read, at most all

    def distill(self, run: Run, data: Dataset) -> tuple[Graph, Tensor, Tensor]:
        """Returns forests, packed; their classes [forests]; their weights in the loss [forests]."""
        if not isinstance(data[0][0], Graph):
            raise Refused(f"Mirage reads graphs, not a {type(data[0][0]).__name__}", "make them with parts.graphs.graph")
        trees, bags = Trees(), []
        run.keep(trees=trees, bags=bags)
        order = torch.rand(len(data)).argsort().tolist()           # fewer steps read a fair sample
        for step in run.loop(steps=min(self.steps, len(data)), name="trees"):
            graph, y = data[order[step]]
            bags.append((int(y), graph.nodes, sorted(set(trees.grow(graph, self.hops, self.degrees)))))

        classes = sorted({y for y, _, _ in bags})
        budget = self.size * sum(nodes for _, nodes, _ in bags)
        largest = max(trees.nodes(tree) for _, _, bag in bags for tree in bag)
        mined: list[Sets] = []
        run.keep(mined=mined)
        for step in run.loop(steps=len(classes), name="sets"):
            own = [bag for y, _, bag in bags if y == classes[step]]
            mined.append(most_frequent(own, trees.nodes, max(largest, REACH * budget / len(classes))))

        chosen = fill(mined, trees.nodes, budget, shared=self.shared)
        if not chosen:
            raise Refused("a class has no frequent set of trees for its own", "keep those that others have, too: shared=True")
        graphs, forests, labels, weights = Counter(y for y, _, _ in bags), [], [], []
        for y, sets in zip(classes, chosen, strict=True):
            for items, count in sets.items():
                forests.append(trees.forest(items))
                labels.append(y)
                weights.append(graphs[y] * count / sum(sets.values()))     # a class weighs as much as it has graphs
        return pack(forests), torch.tensor(labels), torch.tensor(weights)


def trial(seed=0):
    """Graphs of handwritten zeros and ones, fifty times smaller."""
    return Mirage(size=SHARE), ink(seed)


def proof(made, cast):
    """New networks learn more from the forests than from real graphs with as many nodes."""
    return Proof(cast.teaches(*made), beats=cast.some(), unit="accuracy", baseline="real graphs with as many nodes, mean of ten",
                 also={"nodes, % of the real": 100 * made[0].nodes / cast.nodes, "all real graphs": cast.everything()})
