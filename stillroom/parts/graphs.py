"""Graphs: packed side by side, their computation trees, canonical codes, and sets of trees that come together often."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

Tree = tuple[int, int, tuple[tuple[int, int], ...]]      # label, degree, ((label of the edge, number of the child), …)
Sets = dict[tuple[int, ...], int]                        # items → how many of the given sets contain them all


class Graph(NamedTuple):
    """One graph, or several side by side. Edges point the way of the messages; an undirected one is there twice.

    labels  of the nodes [nodes], int64
    edges   from, to [2, edges]
    kinds   labels of the edges [edges]
    degree  in-degree of every node in the graph that it comes from [nodes]
    roots   nodes that a readout pools [nodes]: all of a graph, the root of a tree
    member  which of the graphs a node belongs to [nodes]
    number  graphs that lie here
    """

    labels: Tensor
    edges: Tensor
    kinds: Tensor
    degree: Tensor
    roots: Tensor
    member: Tensor
    number: int = 1

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Graph":
        """The same on another device."""
        labels, edges, kinds, degree, roots, member = (t.to(device) for t in self[:6])
        return Graph(labels, edges, kinds, degree, roots, member, self.number)


@dataclass(frozen=True)
class Graphs(Dataset):
    """A data set of graphs: `[i]` is a graph and its class. graphs: one `Graph` each; targets: classes [samples]."""

    graphs: list[Graph]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, i: int) -> tuple[Graph, int]:
        return self.graphs[i], int(self.targets[i])

    def take(self, index: Sequence[int]) -> "Graphs":
        """Some of the samples."""
        return Graphs([self.graphs[i] for i in index], self.targets[list(index)])


def graph(labels: Sequence[int], pairs: Iterable[tuple[int, int]], kinds: Sequence[int] = ()) -> Graph:
    """An undirected graph from the labels of its nodes, its edges (each named once) and their labels (0 when left out).

    Raises `ValueError` for an edge to a node that is not there, or when `kinds` does not fit.
    """
    ends = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2).T
    kind = torch.tensor(kinds if len(kinds) else [0] * ends.shape[1], dtype=torch.int64)
    if len(kind) != ends.shape[1] or (ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < len(labels)):
        raise ValueError(f"{ends.shape[1]} edges with {len(kind)} labels between {len(labels)} nodes do not fit")
    edges, n = torch.cat([ends, ends.flip(0)], 1), len(labels)
    return Graph(torch.tensor(labels, dtype=torch.int64), edges, kind.repeat(2), torch.bincount(edges[1], minlength=n),
                 torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64))


def pack(graphs: Sequence[Graph]) -> Graph:
    """Several graphs side by side, without an edge between them."""
    labels, edges, kinds, degree, roots, member, number = zip(*graphs, strict=True)
    first = torch.tensor([0, *(len(part) for part in labels)]).cumsum(0).tolist()
    before = torch.tensor([0, *number]).cumsum(0).tolist()
    return Graph(torch.cat(labels), torch.cat([e + at for e, at in zip(edges, first)], 1), torch.cat(kinds), torch.cat(degree),
                 torch.cat(roots), torch.cat([m + at for m, at in zip(member, before)]), number=before[-1])


# --- computation trees -----------------------------------------------------------------------------------------------

class Trees:
    """Rooted trees with labels on nodes and edges, each numbered once: isomorphic trees, and only they, share a number.

    A tree is its root's label, its root's degree in the graph it comes from, and the sorted pairs (edge label, number of
    the child), so that all trees of all graphs are one shared structure (Aho, Hopcroft & Ullman 1974, sec. 3.2).
    """

    def __init__(self) -> None:
        self.trees: list[Tree] = []
        self._nodes: list[int] = []
        self._number: dict[Tree, int] = {}

    def number(self, label: int, degree: int, children: Iterable[tuple[int, int]]) -> int:
        """Number of a tree, a new one if it was never seen."""
        tree = (label, degree, tuple(sorted(children)))
        if tree not in self._number:
            self._number[tree] = len(self.trees)
            self.trees.append(tree)
            self._nodes.append(1 + sum(self._nodes[child] for _, child in tree[2]))
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
        label, degree, children = self.trees[number]
        return f"({label}:{degree} " + "".join(sorted(f"{kind}{self.code(child)}" for kind, child in children)) + ")"

    def nodes(self, number: int) -> int:
        """Nodes of a tree."""
        return self._nodes[number]

    def forest(self, numbers: Iterable[int]) -> Graph:
        """Trees side by side as one graph: edges point from child to parent, the readout pools the roots alone."""
        labels: list[int] = []
        degree: list[int] = []
        edges: list[tuple[int, int, int]] = []
        waiting = deque((number, -1, 0) for number in numbers)
        roots = len(waiting)
        while waiting:                                   # breadth first: the roots are the first nodes
            number, parent, kind = waiting.popleft()
            label, known, children = self.trees[number]
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
        self.trees, self._nodes, self._number = [], [], {}
        for tree in state["trees"]:
            self.number(*tree)


# --- sets that come often --------------------------------------------------------------------------------------------

def frequent(sets: Sequence[Iterable[int]], least: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every set of items that at least `least` ≥ 1 of the given sets contain, with the number of those that do.

    Exact: it finds what FP-growth finds (Han et al. 2000), by one bit per given set (Eclat: Zaki 2000). Small sets come before
    larger ones, in an order that depends on nothing but the sets. Lazy: stop reading when there are enough.
    """
    if least < 1:
        raise ValueError(f"a set must be contained in one of the given ones at least, not in {least}")
    return _frequent(_holders(sets), least)


def most_frequent(sets: Sequence[Iterable[int]], cost: Callable[[int], float], budget: float, least: int = 2) -> Sets:
    """The most frequent sets of items whose items cost no more than `budget` in all: the threshold is lowered as far as it
    allows, at most to `least`; of the sets just below it, the first that still fit, small ones first."""
    holders = _holders(sets)
    low, high, best = min(least, len(sets)), len(sets) + 1, Sets()
    while low < high:
        threshold = (low + high) // 2
        found = _within(_frequent(holders, threshold), cost, budget)
        if found is None:
            low = threshold + 1
        else:
            best, high = found, threshold
    below = high - 1
    if below >= min(least, len(sets)) > 0:
        left = budget - sum(cost(i) for items in best for i in items)
        for items, count in _frequent(holders, below):
            if count == below:
                left -= sum(map(cost, items))
                if left < 0:
                    break
                best[items] = count
    return best


def fill(mined: Sequence[Sets], cost: Callable[[int], float], budget: float, *, shared: bool) -> list[Sets]:
    """Of what was mined in every class, the most frequent sets that cost no more than `budget` together; one of each class at
    least. Every class gets the same room; without `shared`, sets that came in for more than one class are left out of all, and
    the room of each grows until what is left fills the budget. Empty when a class has no set for its own.
    """
    ranked = [sorted(sets.items(), key=lambda each: (-each[1], len(each[0]), each[0])) for sets in mined]
    most = max(sum(cost(i) for items in sets for i in items) for sets in mined)
    least = min(budget / len(mined), most)
    best: list[Sets] = []
    for level in range(101):                             # from room for all that was mined down to an equal part of the budget
        room = least * (most / least) ** (1 - level / 100) if least else 0
        chosen = [_first(found, cost, room) for found in ranked]
        if not shared:
            classes = Counter(items for sets in chosen for items in sets)
            chosen = [{items: n for items, n in sets.items() if classes[items] == 1} for sets in chosen]
        best = chosen if all(chosen) else best
        if all(chosen) and sum(cost(i) for sets in chosen for items in sets for i in items) <= budget:
            break
    return best


def _first(ranked: list[tuple[tuple[int, ...], int]], cost: Callable[[int], float], budget: float) -> Sets:
    """The first of the sets, until the next costs too much."""
    taken = Sets()
    for items, count in ranked:
        budget -= sum(map(cost, items))
        if budget < 0:
            break
        taken[items] = count
    return taken


def _within(found: Iterator[tuple[tuple[int, ...], int]], cost: Callable[[int], float], budget: float) -> Sets | None:
    """All that is found, or None as soon as it costs too much."""
    taken = Sets()
    for items, count in found:
        budget -= sum(map(cost, items))
        if budget < 0:
            return None
        taken[items] = count
    return taken


def _holders(sets: Sequence[Iterable[int]]) -> list[tuple[int, int]]:
    """(item, which of the sets hold it, one bit each), in the order of the items."""
    where: dict[int, bytearray] = {}
    for at, items in enumerate(sets):
        for item in items:
            where.setdefault(item, bytearray(len(sets) // 8 + 1))[at // 8] |= 1 << at % 8
    return [(item, int.from_bytes(bits, "little")) for item, bits in sorted(where.items())]


def _frequent(holders: list[tuple[int, int]], least: int) -> Iterator[tuple[tuple[int, ...], int]]:
    everyone = -1                                        # all bits set: what the empty set is contained in
    often = [(item, bits) for item, bits in holders if bits.bit_count() >= least]
    waiting: deque[tuple[tuple[int, ...], int, list[tuple[int, int]]]] = deque([((), everyone, often)])
    while waiting:
        chosen, common, items = waiting.popleft()
        more = [(item, both) for item, bits in items if (both := common & bits).bit_count() >= least]
        for turn, (item, both) in enumerate(more, 1):
            yield (*chosen, item), both.bit_count()
            if turn < len(more):
                waiting.append(((*chosen, item), both, more[turn:]))
