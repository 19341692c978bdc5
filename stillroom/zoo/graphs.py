"""Graphs and hypergraphs of the shared data folder: papers as nodes, their words as features, their fields as classes."""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import Refused, nearest
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes
from stillroom.zoo.pickled import read
from stillroom.zoo.shared import home

CITED = ("cora", "citeseer")
HYPER = ("cocitation/cora", "cocitation/citeseer", "coauthorship/cora")


@lru_cache(maxsize=2)
def planetoid(name: str) -> SimpleNamespace:
    """Who cites whom (Yang et al. 2016): `graph` with all labels; train, valid, test: numbers of the nodes of the public split.
    Raises `Refused`."""
    if name not in CITED:
        raise Refused(f"no graph is called {name!r}", nearest(name, CITED))
    folder = home("planetoid")
    parts = {what: read(folder / f"ind.{name}.{what}") for what in ("x", "allx", "tx", "ally", "ty", "graph")}
    place = torch.from_numpy(np.loadtxt(folder / f"ind.{name}.test.index", dtype=np.int64))
    n, known = len(parts["graph"]), len(parts["allx"])
    x = torch.zeros(n, parts["allx"].shape[1])
    y = torch.full((n,), UNLABELLED)                              # some nodes of Citeseer have neither words nor a field
    for at, words, field in ((torch.arange(known), parts["allx"], parts["ally"]), (place, parts["tx"], parts["ty"])):
        x[at], y[at] = words, torch.from_numpy(field).argmax(1)
    ends = torch.tensor([(u, v) for u, cited in parts["graph"].items() for v in cited if u != v]).T
    edges = torch.cat([ends, ends.flip(0)], 1).unique(dim=1)
    first = len(parts["x"])
    return SimpleNamespace(graph=Nodes(x, y, edges), train=torch.arange(first), valid=torch.arange(first, first + 500),
                           test=place.sort().values)


@lru_cache(maxsize=2)
def hypergraph(name: str) -> SimpleNamespace:
    """Papers cited together, or of one author (Yadati et al. 2019): `graph` with all labels; splits: (train, test) of each of
    the three that come with it. Raises `Refused`."""
    if name not in HYPER:
        raise Refused(f"no hypergraph is called {name!r}", nearest(name, HYPER))
    folder = home("hypergraph") / name
    x, y, found = (read(folder / f"{what}.pickle") for what in ("features", "labels", "hypergraph"))
    members = torch.tensor([(v, number) for number, edge in enumerate(found.values()) for v in sorted(edge)]).T
    splits = [_split(read(folder / "splits" / f"{number}.pickle")) for number in (1, 2, 3)]
    return SimpleNamespace(graph=Nodes(x, torch.tensor(y), members, hyper=True), splits=splits)


def _split(parts: dict[str, list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(parts["train"]), torch.tensor(parts["test"])
