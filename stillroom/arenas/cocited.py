"""Papers that are cited together, a few of them labelled: a hypergraph of Cora where it is on this machine, else drawn ones."""

import copy
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn import Module

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.citations import by_labels, drawn, parted
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.measure.cost import resting
from stillroom.models.nodes import HGNN
from stillroom.models.small import mlp
from stillroom.parts import optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes, edge_means, nodes
from stillroom.run import Run
from stillroom.zoo.graphs import hypergraph


def cocited(seed: int = 0, unseen: float = 0.0) -> Cast:
    """Student (an MLP of 128), an HGNN of 32 trained on twenty labels a class, and the hypergraph with these labels.

    unseen   share of the test vertices that are not in the hypergraph; they are what is judged then
    accuracy(net)        of a network that reads features alone, on the test vertices, in percent
    teacher_accuracy     of the HGNN in the whole hypergraph
    distance(net)        mean over hyperedges of how far its vertices' distributions lie from their mean
    alone()              the student taught by the labels alone
    other(**fields)      what the trial of LightHGNN makes with these fields changed
    """
    ground = split(seed, unseen)
    teacher = _teacher(seed, unseen)
    with resting(teacher):
        right = teacher(ground.all.x, ground.all.edges)[ground.index].argmax(-1) == ground.judged.tensors[1]
    return Cast({"student": _student(seed), "teacher": copy.deepcopy(teacher), "data": ground.seen}, data=ground.name,
                real=ground.real, ground=ground, accuracy=lambda net: accuracy(net, ground.judged),
                teacher_accuracy=100 * right.float().mean().item(), distance=partial(_distance, ground.all),
                alone=lambda: _alone(seed, unseen), other=partial(variant, "light_hgnn", seed))


@lru_cache(maxsize=4)
def split(seed: int, unseen: float = 0.0) -> SimpleNamespace:
    """The hypergraph, parted by the seed."""
    return parted(*whole_graph(), seed, unseen)


@lru_cache(maxsize=1)
def whole_graph() -> tuple[Nodes, str, bool]:
    """All vertices with all labels, their name, and whether they are real."""
    try:
        return nodes(hypergraph("cocitation/cora").graph, hyper=True), "Cora, cited together", True
    except Refused:
        return nodes(drawn(), hyper=True), "papers and citations drawn by a formula", False


def _student(seed: int) -> Module:
    x, y = split(seed).labelled.tensors
    torch.manual_seed(1000 + seed)
    return mlp(x.shape[1], 128, int(y.max()) + 1, dropout=0.5, norm=True)


@lru_cache(maxsize=4)
def _teacher(seed: int, unseen: float) -> Module:
    graph = split(seed, unseen).seen
    torch.manual_seed(seed)
    run, net = Run(seed=seed, device="cpu"), HGNN((graph.x.shape[1], 32, int(graph.targets.max()) + 1))
    opt = optim.adam(net, lr=0.01, decay=5e-4)
    run.keep(net=net, opt=opt)
    for _ in run.loop(steps=100):
        run.update(opt, labels=F.cross_entropy(net(graph.x, graph.edges), graph.targets, ignore_index=UNLABELLED))
    return net.eval()


@lru_cache(maxsize=4)
def _alone(seed: int, unseen: float) -> Module:
    return by_labels(_student(seed), split(seed, unseen).labelled, seed, decay=5e-4)


@torch.no_grad()
def _distance(graph: Nodes, net: Module) -> float:
    """How well the topology is kept (Feng et al. 2024, sec. 5): small where vertices of a hyperedge are seen alike."""
    p = net.eval()(graph.x).softmax(-1)
    vertex, edge = graph.edges
    away = (p[vertex] - edge_means(p, graph.edges)[edge]).norm(dim=-1)
    shared = torch.bincount(edge) > 1
    each = torch.zeros(len(shared)).index_add(0, edge, away) / torch.bincount(edge)
    return each[shared].mean().item()
