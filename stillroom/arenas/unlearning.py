"""Links between papers, and a network that has learnt them all: some are to be forgotten. Cora, or drawn ones where it is not."""

import copy
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.citations import whole_graph
from stillroom.measure.cost import resting
from stillroom.measure.unlearning import auc, members, membership_ratio, score_distance
from stillroom.models.nodes import GNN
from stillroom.parts import optim
from stillroom.parts.nodes import Nodes, score, unlinked, without
from stillroom.run import Run

TEST, DELETED, STEPS = 0.1, 0.05, 100      # shares of the links; updates of the network that is to forget
WIDTHS = (64, 32)


def unlearning(seed: int = 0, where: Literal["anywhere", "near", "nodes"] = "anywhere") -> Cast:
    """Student and destroyer (fresh GCNs), teacher (one trained on all links but a tenth), the graph, and what it shall forget.

    where    a twentieth of the links drawn "anywhere", or "near", within two steps of a test link; or a fiftieth of the "nodes"
    original(), retrained()    the teacher; one trained as it was on what stays
    held(net)         area in percent: test links above pairs without one
    forgotten(net)    area in percent: links that stay above those that go
    both(net)         the mean of the two
    membership(net)   success of an attack on the links that go, the original's over its own
    distance(net)     of its scores for the links that go from the retrained network's
    other(**fields)   what the trial of D2DGN makes with these fields changed
    """
    ground = _ground(seed, where)
    actors = {"student": _fresh(seed + 1000), "teacher": copy.deepcopy(_trained(seed, where, False)),
              "destroyer": _fresh(seed + 2000), "data": ground.graph, "deleted": ground.deleted}
    held, forgotten = partial(_held, seed, where), partial(_forgotten, seed, where)
    return Cast(actors, data=ground.name, real=ground.real, ground=ground, held=held, forgotten=forgotten,
                both=lambda net: (held(net) + forgotten(net)) / 2, original=lambda: _trained(seed, where, False),
                retrained=lambda: _trained(seed, where, True), membership=partial(_membership, seed, where),
                distance=partial(_distance, seed, where), other=partial(variant, "d2dgn", seed))


@lru_cache(maxsize=4)
def _ground(seed: int, where: str) -> SimpleNamespace:
    """The graph without test links, these, as many pairs without one, what is to be deleted, and the links that stay and go."""
    whole, name, real = whole_graph()
    n, links = len(whole), whole.edges[:, whole.edges[0] < whole.edges[1]]
    draw = torch.Generator().manual_seed(seed)
    links = links[:, torch.randperm(links.shape[1], generator=draw)]
    count = round(TEST * links.shape[1])
    test, train = links[:, :count], links[:, count:]
    graph = Nodes(whole.x, whole.targets, torch.cat([train, train.flip(0)], 1))
    if where == "nodes":
        deleted = torch.randperm(n, generator=draw)[: n // 50]
    else:
        choice = train[:, near(graph.edges, test.unique(), n)[train].all(0)] if where == "near" else train
        deleted = choice[:, : round(DELETED * links.shape[1])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        apart = unlinked(whole.edges, n, 2 * count)[:, :count]
    kept, gone = without(graph.edges, deleted, n)
    return SimpleNamespace(graph=graph, test=test, apart=apart, deleted=deleted, kept=kept, stay=kept[:, kept[0] < kept[1]],
                           go=gone[:, gone[0] < gone[1]], name=name, real=real)


def near(edges: Tensor, start: Tensor, n: int, steps: int = 2) -> Tensor:
    """Which nodes lie within so many steps of the first ones, [n]."""
    reached = torch.zeros(n, dtype=torch.bool).index_fill(0, start, True)
    for _ in range(steps):
        reached = reached.index_fill(0, edges[1][reached[edges[0]]], True)
    return reached


def _fresh(seed: int) -> Module:
    torch.manual_seed(seed)
    return GNN((whole_graph()[0].x.shape[1], *WIDTHS), dropout=0.0)


@lru_cache(maxsize=4)
def _trained(seed: int, where: str, anew: bool) -> Module:
    """A network that predicts links, trained on all of them; or on those that stay."""
    ground = _ground(seed, where)
    edges = ground.kept if anew else ground.graph.edges
    links, x, n = edges[:, edges[0] < edges[1]], ground.graph.x, len(ground.graph)
    run, net = Run(seed=seed, device="cpu"), _fresh(seed)
    opt = optim.adam(net, lr=0.01)
    run.keep(net=net, opt=opt)
    for _ in run.loop(steps=STEPS):
        pairs = torch.cat([links, unlinked(edges, n, links.shape[1])], 1)
        z = net(x, edges)
        there = (torch.arange(pairs.shape[1]) < links.shape[1]).float()
        run.update(opt, links=F.binary_cross_entropy_with_logits((z[pairs[0]] * z[pairs[1]]).sum(-1), there))
    return net.eval()


def _scores(seed: int, where: str, net: Module, *pairs: Tensor) -> list[Tensor]:
    """Of links, each kind [pairs]. The original reads the graph that it knows; every other one what is left of it."""
    ground = _ground(seed, where)
    with resting(net):
        z = net(ground.graph.x, ground.graph.edges if net is _trained(seed, where, False) else ground.kept)
    return [score(z, some) for some in pairs]


def _held(seed: int, where: str, net: Module) -> float:
    ground = _ground(seed, where)
    return auc(*_scores(seed, where, net, ground.test, ground.apart))


def _forgotten(seed: int, where: str, net: Module) -> float:
    ground = _ground(seed, where)
    return auc(*_scores(seed, where, net, ground.stay, ground.go))


def _membership(seed: int, where: str, net: Module) -> float:
    ground, original = _ground(seed, where), _trained(seed, where, False)
    before, after = (members(*_scores(seed, where, n, ground.go, ground.stay, ground.test)) for n in (original, net))
    return membership_ratio(before, after, ground.go.shape[1])


def _distance(seed: int, where: str, net: Module) -> float:
    ground = _ground(seed, where)
    return score_distance(*(_scores(seed, where, n, ground.go)[0] for n in (net, _trained(seed, where, True))))
