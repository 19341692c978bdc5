"""Graphs: packed side by side, their computation trees, canonical codes, and sets of trees that come together often."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Tree = tuple[int, int, tuple[tuple[int, int], ...]]      # label, degree, ((kind of the edge, number of the child), …)


@dataclass(frozen=True)
class Graph:
    """One graph, or several side by side. Edges point the way of the messages; an undirected one is there twice.

    labels  of the nodes [nodes], int64
    edges   from, to [2, edges]
    kinds   labels of the edges [edges]
    degree  in-degree of every node in the graph that it comes from [nodes]
    roots   nodes that a readout pools [nodes]: all of a graph, the root of a tree
    member  which of the graphs a node belongs to [nodes]
    count   graphs
    """

    labels: Tensor
    edges: Tensor
    kinds: Tensor
    degree: Tensor
    roots: Tensor
    member: Tensor
    count: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Graph":
        """The same on another device."""
        return Graph(*(t.to(device) for t in self._tensors()), count=self.count)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.labels, self.edges, self.kinds, self.degree, self.roots, self.member


def graph(labels: Sequence[int], pairs: Iterable[tuple[int, int]], kinds: Sequence[int] = ()) -> Graph:
    """An undirected graph from the labels of its nodes, its edges (each named once) and their labels (0 when left out).

    Raises `ValueError` for an edge to a node that is not there, or when `kinds` does not fit.
    """
    ends = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2).T
    kind = torch.tensor(kinds if len(kinds) else [0] * ends.shape[1], dtype=torch.int64)
    if len(kind) != ends.shape[1] or (ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < len(labels)):
        raise ValueError(f"{ends.shape[1]} edges with {len(kind)} labels between {len(labels)} nodes: an end or a label is missing")
    edges = torch.cat([ends, ends.flip(0)], 1)
    n = len(labels)
    return Graph(torch.tensor(labels, dtype=torch.int64), edges, kind.repeat(2), torch.bincount(edges[1], minlength=n),
                 torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64))


def pack(graphs: Sequence[Graph]) -> Graph:
    """Several graphs side by side, without an edge between them."""
    nodes = torch.tensor([0] + [len(g) for g in graphs]).cumsum(0).tolist()
    counts = torch.tensor([0] + [g.count for g in graphs]).cumsum(0).tolist()
    columns = zip(*(g._tensors() for g in graphs), strict=True)
    labels, edges, kinds, degree, roots, member = columns
    return Graph(torch.cat(labels), torch.cat([e + n for e, n in zip(edges, nodes)], 1), torch.cat(kinds), torch.cat(degree),
                 torch.cat(roots), torch.cat([m + c for m, c in zip(member, counts)]), count=counts[-1])


@dataclass(frozen=True)
class Graphs(Dataset):
    """A data set of graphs, real or distilled: `[i]` is a graph and its class.

    graphs  one `Graph` per sample
    y       classes [samples]
    weight  of every sample in the loss [samples]: 1 for a real one, the graphs that a distilled one stands for
    """

    graphs: list[Graph]
    y: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, i: int) -> tuple[Graph, int]:
        return self.graphs[i], int(self.y[i])

    @property
    def nodes(self) -> int:
        """Nodes of all graphs together: what a pass of training costs."""
        return sum(map(len, self.graphs))

    def take(self, index: Sequence[int]) -> "Graphs":
        """Some of the samples."""
        at = torch.as_tensor(index, dtype=torch.int64)
        return Graphs([self.graphs[i] for i in at.tolist()], self.y[at], self.weight[at])


class Trees:
    """Rooted trees with labels on nodes and edges, each numbered once: isomorphic trees, and only they, share a number.

    A tree is its root's label, its root's degree in the graph it comes from, and the sorted pairs (edge label, number of
    the child), so that all trees of all graphs are one shared structure (Aho, Hopcroft, Ullman 1974, sec. 3.2).
    """

    def __init__(self) -> None:
        self.trees: list[Tree] = []
        self._number: dict[Tree, int] = {}

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, number: int) -> Tree:
        """The tree of that number. Raises `LookupError` when there is none."""
        if not 0 <= number < len(self.trees):
            raise LookupError(f"no tree has the number {number}: the trees were not kept with their numbers")
        return self.trees[number]

    def number(self, label: int, degree: int, children: Iterable[tuple[int, int]]) -> int:
        """Number of a tree, a new one if it was never seen."""
        tree = (label, degree, tuple(sorted(children)))
        if tree not in self._number:
            self._number[tree] = len(self.trees)
            self.trees.append(tree)
        return self._number[tree]

    def grow(self, graph: Graph, hops: int, degrees: bool = False) -> list[int]:
        """The computation tree of every node: its children are all nodes that send it a message, its own parent too.

        `hops` levels below the root, as many as a network has layers. `degrees`: the leaves keep their degree, so that
        trees whose leaves differ in it differ (a symmetric normalisation reads it); without, a leaf's degree is 0.
        """
        labels, known = graph.labels.tolist(), graph.degree.tolist()
        senders: list[list[tuple[int, int]]] = [[] for _ in labels]
        for source, target, kind in zip(*graph.edges.tolist(), graph.kinds.tolist(), strict=True):
            senders[target].append((kind, source))
        tree = [self.number(label, degree if degrees else 0, ()) for label, degree in zip(labels, known)]
        for _ in range(hops):
            tree = [self.number(label, len(sent), [(kind, tree[u]) for kind, u in sent]) for label, sent in zip(labels, senders)]
        return tree

    def code(self, number: int) -> str:
        """Canonical code of a tree, the same in every collection: "(label:degree edge(…)edge(…))", children sorted."""
        label, degree, children = self[number]
        return f"({label}:{degree} " + "".join(sorted(f"{kind}{self.code(child)}" for kind, child in children)) + ")"

    def nodes(self, number: int) -> int:
        """Nodes of a tree."""
        return 1 + sum(self.nodes(child) for _, child in self[number][2])

    def forest(self, numbers: Iterable[int]) -> Graph:
        """Trees side by side as one graph: edges point from child to parent, the readout pools the roots alone."""
        labels: list[int] = []
        degree: list[int] = []
        edges: list[tuple[int, int, int]] = []
        waiting = [(number, -1, 0) for number in numbers]
        roots = len(waiting)
        for number, parent, kind in waiting:             # grows while it is walked: breadth first, roots in front
            label, known, children = self[number]
            if parent >= 0:
                edges.append((len(labels), parent, kind))
            waiting += [(child, len(labels), k) for k, child in children]
            labels.append(label)
            degree.append(known)
        ends = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T
        return Graph(torch.tensor(labels, dtype=torch.int64), ends[:2], ends[2], torch.tensor(degree, dtype=torch.int64),
                     torch.arange(len(labels)) < roots, torch.zeros(len(labels), dtype=torch.int64))

    def state_dict(self) -> dict[str, Any]:
        return {"trees": list(self.trees)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trees = [tuple(tree) for tree in state["trees"]]
        self._number = {tree: number for number, tree in enumerate(self.trees)}


def frequent(sets: Sequence[Iterable[int]], least: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every set of items that at least `least` ≥ 1 of the given sets contain, with the number of those that do.

    Exact, depth first, one bit per given set (Eclat: Zaki 2000); items rare first, so that branches end early. It finds
    what FP-growth finds (Han et al. 2000). Lazy: stop reading when there are enough.
    """
    if least < 1:
        raise ValueError(f"a set must be contained in at least one of the given ones, not {least}")
    where: dict[int, list[int]] = {}
    for at, items in enumerate(sets):
        for item in set(items):
            where.setdefault(item, []).append(at)
    often = sorted((len(at), item) for item, at in where.items() if len(at) >= least)
    return _deeper((), [(item, sum(1 << at for at in where[item])) for _, item in often], least)


def _deeper(prefix: tuple[int, ...], items: list[tuple[int, int]], least: int) -> Iterator[tuple[tuple[int, ...], int]]:
    for turn, (item, holders) in enumerate(items, 1):
        chosen = (*prefix, item)
        yield tuple(sorted(chosen)), holders.bit_count()
        both = ((other, holders & theirs) for other, theirs in items[turn:])
        yield from _deeper(chosen, [(other, mask) for other, mask in both if mask.bit_count() >= least], least)
