"""Nodes as samples: one large graph or hypergraph whose nodes have features and, some of them, labels."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED


@dataclass(frozen=True)
class Nodes(Dataset):
    """A data set of nodes: `[v]` is the features of node v and its class; beside them stands what connects them.

    x        features [nodes, features]
    targets  classes [nodes], −100 where there is none
    edges    from, to [2, edges], an undirected one both ways; or vertex, hyperedge [2, memberships]
    hyper    whether they are hyperedges
    """

    x: Tensor
    targets: Tensor
    edges: Tensor
    hyper: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, v: int) -> tuple[Tensor, Tensor]:
        return self.x[v], self.targets[v]

    def to(self, device: torch.device | str) -> "Nodes":
        """The same on another device."""
        return Nodes(self.x.to(device), self.targets.to(device), self.edges.to(device), self.hyper)

    def known(self, index: Tensor) -> "Nodes":
        """The same, but only these nodes keep their labels."""
        return replace(self, targets=torch.full_like(self.targets, UNLABELLED).index_copy(0, index, self.targets[index]))

    def only(self, index: Tensor) -> "Nodes":
        """These nodes, in that order, and what connects them with each other; hyperedges lose their other vertices."""
        place = torch.full((len(self),), -1).index_copy(0, index, torch.arange(len(index)))
        ends = torch.stack([place[self.edges[0]], self.edges[1] if self.hyper else place[self.edges[1]]])
        ends = ends[:, (ends >= 0).all(0)]
        if self.hyper:
            ends[1] = ends[1].unique(return_inverse=True)[1]
        return Nodes(self.x[index], self.targets[index], ends, self.hyper)


def nodes(data: Any, hyper: bool = False, labelled: bool = False) -> Nodes:
    """`Nodes` as they are, or from what PyTorch Geometric calls `Data`: x, y, edge_index or hyperedge_index, and train_mask,
    outside of which labels are left out.

    hyper: a hypergraph is wanted; a graph becomes one by `hyperedges`, and a vertex of no hyperedge gets its own.
    labelled: some node must have a label. Raises `Refused` where something is missing or does not fit.
    """
    if not isinstance(data, Nodes):
        data = _from_geometric(data)
    n, edges = len(data.x), data.edges
    if data.x.ndim != 2 or not data.x.is_floating_point() or not n:
        raise Refused(f"features of shape {list(data.x.shape)}, {data.x.dtype}", "give floats [nodes, features]")
    if not data.x.isfinite().all():
        raise Refused(f"{int((~data.x.isfinite()).sum())} features are NaN or infinite", "clean the data")
    if data.targets.shape != (n,) or data.targets.is_floating_point():
        raise Refused(f"labels of shape {list(data.targets.shape)}, {data.targets.dtype} for {n} nodes",
                      f"give one class number a node, {UNLABELLED} for none")
    if ((data.targets < 0) & (data.targets != UNLABELLED)).any():
        raise Refused(f"a label is {int(data.targets[data.targets != UNLABELLED].min())}",
                      f"classes run from 0; {UNLABELLED} means no label")
    if labelled and not (data.targets != UNLABELLED).any():
        raise Refused("no node has a label, and the method learns from labels", "label a few, or check train_mask")
    ends = edges[:1] if data.hyper else edges
    if edges.ndim != 2 or len(edges) != 2 or edges.is_floating_point() or (
            edges.numel() and not 0 <= int(edges.min()) <= int(ends.max()) < n):
        raise Refused(f"edges of shape {list(edges.shape)} do not fit {n} nodes", "give whole numbers [2, edges], from 0")
    if data.hyper and not hyper:
        raise Refused("this is a hypergraph, and the method reads a graph", "give edges between two nodes, or take light_hgnn")
    return _alone(data if data.hyper else hyperedges(data)) if hyper else data


def _from_geometric(data: Any) -> Nodes:
    index = getattr(data, "hyperedge_index", None)
    edges = index if index is not None else getattr(data, "edge_index", None)
    x, y = getattr(data, "x", None), getattr(data, "y", None)
    if not all(isinstance(t, Tensor) for t in (x, y, edges)):
        raise Refused(f"a {type(data).__name__} without x, y and edge_index is no graph with features and labels",
                      "give parts.nodes.Nodes(x, targets, edges), or torch_geometric's Data")
    assert x is not None and y is not None and edges is not None
    mask = getattr(data, "train_mask", None)
    y = y.reshape(-1) if y.numel() == len(x) else y
    return Nodes(x, y if mask is None else torch.where(mask, y, UNLABELLED), edges, index is not None)


def hyperedges(graph: Nodes) -> Nodes:
    """A graph as a hypergraph: each edge, and each node with all its neighbours (Feng et al. 2024, appendix)."""
    source, target = graph.edges
    pairs = torch.stack([torch.minimum(source, target), torch.maximum(source, target)])[:, source != target].unique(dim=1)
    count, every = pairs.shape[1], torch.arange(len(graph), device=source.device)
    number = torch.arange(count, device=source.device)
    around = torch.cat([torch.stack([every, every]), pairs, pairs.flip(0)], 1)
    members = torch.cat([torch.stack([pairs.T.flatten(), number.repeat_interleave(2)]),
                         torch.stack([around[0], count + around[1]])], 1)
    return replace(graph, edges=members, hyper=True)


def _alone(graph: Nodes) -> Nodes:
    """A vertex of no hyperedge gets one of its own."""
    alone = (torch.bincount(graph.edges[0], minlength=len(graph)) == 0).nonzero().flatten()
    first = int(graph.edges[1].max()) + 1 if graph.edges.numel() else 0
    own = torch.stack([alone, first + torch.arange(len(alone), device=alone.device)])
    return replace(graph, edges=torch.cat([graph.edges, own], 1))


# --- what is computed over them --------------------------------------------------------------------------------------

def edge_means(values: Tensor, members: Tensor) -> Tensor:
    """Mean over the vertices of every hyperedge: values [vertices, …], members [2, memberships] → [hyperedges, …]."""
    vertex, edge = members
    count = int(edge.max()) + 1
    total = values.new_zeros(count, *values.shape[1:]).index_add(0, edge, values[vertex])
    return total / torch.bincount(edge, minlength=count).clamp(min=1).to(values).view(-1, *[1] * (values.ndim - 1))


def adjacency_error(z: Tensor, edges: Tensor, count: int) -> Tensor:
    """Mean over all pairs u ≠ v of (A_uv − σ(z_u·z_v))²: exact over the edges, over the other pairs an unbiased estimate from
    `count` drawn ones, so that nothing of size nodes² exists. z [nodes, dim], edges [2, edges]; a scalar."""
    n, there = len(z), _keys(edges, len(z))
    near = (1 - score(z, torch.stack([there // n, there % n]))).square().sum()
    free = unlinked(edges, n, count)
    far = score(z, free).square().sum() / max(free.shape[1], 1)
    pairs = n * (n - 1)
    return (near + (pairs - len(there)) * far) / pairs


def unlinked(edges: Tensor, n: int, count: int) -> Tensor:
    """Up to `count` pairs of different nodes without an edge, drawn evenly and with replacement, [2, pairs]; edges [2, edges]."""
    pairs = torch.randint(n, (2, count), device=edges.device)
    return pairs[:, (pairs[0] != pairs[1]) & ~torch.isin(pairs[0] * n + pairs[1], _keys(edges, n))]


def without(edges: Tensor, deleted: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The edges that stay and those that go: `deleted` are edges [2, deleted], which go in both directions, or nodes [deleted],
    of which every incident edge goes."""
    if deleted.ndim == 1:
        gone = torch.isin(edges, deleted).any(0)
    else:
        both = torch.cat([deleted, deleted.flip(0)], 1)
        gone = torch.isin(edges[0] * n + edges[1], both[0] * n + both[1])
    return edges[:, ~gone], edges[:, gone]


def _keys(edges: Tensor, n: int) -> Tensor:
    """One number for every edge that is no loop, sorted, each once."""
    return (edges[0] * n + edges[1])[edges[0] != edges[1]].unique()


def score(z: Tensor, edges: Tensor) -> Tensor:
    """Probability of an edge σ(z_u·z_v), [edges], in fp32; z [nodes, dim], edges [2, edges]."""
    return (z[edges[0]] * z[edges[1]]).float().sum(-1).sigmoid()


def cut(targets: Tensor, each: int, each_valid: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of nodes to learn from, to choose by, to report on: so many of every class, drawn by the seed, and all others.
    Nodes without a label are in none."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    ranked = [order[targets[order] == c] for c in range(int(targets.max()) + 1)]
    ends = (0, each, each + each_valid, None)
    train, valid, test = (torch.cat([own[a:b] for own in ranked]) for a, b in pairwise(ends))
    return train, valid, test
