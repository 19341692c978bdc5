"""Papers that cite each other, a few of them labelled: Cora where it is on this machine, else digits and those alike."""

import copy
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.measure.cost import resting
from stillroom.models.nodes import GNN, Tokenizer
from stillroom.models.small import mlp
from stillroom.parts import losses, optim
from stillroom.parts.codebook import usage
from stillroom.parts.nodes import Nodes, cut, nodes
from stillroom.run import Run
from stillroom.zoo.graphs import planetoid

EACH, EACH_VALID = 20, 30      # labelled papers a class, and those to choose by
WIDTH, CODES = 64, 512         # of the teacher
NOISE = 0.6                    # on digits, whose ink is 0 to 1


def citations(seed: int = 0, unseen: float = 0.0) -> Cast:
    """Student (an MLP of 128), a GCN with a codebook in its middle, both fresh, and a graph with twenty labels a class.

    unseen   share of the test nodes that are not in the graph; they are what is judged then
    accuracy(net)        of a network that reads features alone, on the test nodes, in percent
    taught()             the teacher as VQGraph trains it: `net`, `accuracy` in the graph, `codes` of which so many are `used`
    alone()              the student taught by the labels alone
    other(**fields)      what the trial of VQGraph makes with these fields changed; alpha=0 is GLNN
    """
    ground = split(seed, unseen)
    features, classes = ground.all.x.shape[1], int(ground.all.targets.max()) + 1
    torch.manual_seed(2000 + seed)
    teacher = Tokenizer(GNN((features, WIDTH), open=True, dropout=0.8), GNN((WIDTH, classes)), WIDTH, CODES)
    return Cast({"student": _student(seed, features, classes), "teacher": teacher, "data": ground.seen}, data=ground.name,
                real=ground.real, ground=ground, accuracy=lambda net: accuracy(net, ground.judged),
                alone=lambda: _alone(seed, unseen), taught=lambda: _taught(seed, unseen),
                other=lambda **fields: _other(seed, unseen, **fields))


@lru_cache(maxsize=4)
def split(seed: int, unseen: float = 0.0) -> SimpleNamespace:
    """The graph with all labels, what may be seen of it, and the samples to choose by and to report on."""
    graph, name, real = whole_graph()
    train, valid, test = cut(graph.targets, EACH, EACH_VALID, seed)
    draw = torch.Generator().manual_seed(seed)
    hidden = test[torch.randperm(len(test), generator=draw)[: round(unseen * len(test))]]
    there = torch.ones(len(graph), dtype=torch.bool).index_fill(0, hidden, False)
    judged = hidden if unseen else test
    return SimpleNamespace(all=graph, seen=graph.known(train).only(there.nonzero().flatten()), name=name, real=real, index=judged,
                           labelled=_samples(graph, train), valid=_samples(graph, valid), judged=_samples(graph, judged))


@lru_cache(maxsize=1)
def whole_graph() -> tuple[Nodes, str, bool]:
    """All nodes with all labels, their name, and whether somebody drew the edges: those of digits follow from a formula."""
    try:
        return planetoid("cora").graph, "Cora", True
    except Refused:
        return alike(), "scikit-learn digits under noise, each tied to the five most alike", False


def alike(near: int = 5, noise: float = NOISE) -> Nodes:
    """Handwritten digits as nodes; an edge to each of the nearest, and back. Then noise falls on them: edges know more."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32) / 16
    away = torch.cdist(x, x).fill_diagonal_(torch.inf)
    ends = torch.stack([torch.arange(len(x)).repeat_interleave(near), away.topk(near, largest=False).indices.flatten()])
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return nodes(Nodes(x, torch.tensor(raw.target), torch.cat([ends, ends.flip(0)], 1).unique(dim=1)))


def _samples(graph: Nodes, index: Tensor) -> TensorDataset:
    return TensorDataset(graph.x[index], graph.targets[index])


def _student(seed: int, features: int, classes: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(features, 128, classes, dropout=0.6)


@lru_cache(maxsize=4)
def _taught(seed: int, unseen: float) -> SimpleNamespace:
    """What the first stage of the trial makes, and what is known of it."""
    from stillroom.recipes.graph.vqgraph import trial  # which stands on this ground itself

    ground, cast = split(seed, unseen), citations(seed, unseen)
    replace(trial(seed)[0], steps=0)(Run(seed=seed), **cast.actors)
    teacher = cast.actors["teacher"]
    with resting(teacher):
        guess = teacher(ground.all.x, ground.all.edges)[ground.index].argmax(-1)
        codes = teacher.book(teacher.embed(ground.seen.x, ground.seen.edges)).code
    used, perplexity = usage(codes, CODES)
    right = (guess == ground.judged.tensors[1]).float().mean().item()
    return SimpleNamespace(net=teacher, accuracy=100 * right, codes=CODES, used=used, perplexity=perplexity)


@lru_cache(maxsize=16)
def _other(seed: int, unseen: float, **fields) -> Module:
    """The trial with the same teacher and these fields changed."""
    from stillroom.recipes.graph.vqgraph import trial

    actors = citations(seed, unseen).actors
    actors["teacher"] = copy.deepcopy(_taught(seed, unseen).net)
    return replace(trial(seed)[0], steps_teacher=0, **fields)(Run(seed=seed), **actors)


@lru_cache(maxsize=4)
def _alone(seed: int, unseen: float) -> Module:
    ground = split(seed, unseen)
    x, y = ground.labelled.tensors
    run, net = Run(seed=seed), _student(seed, x.shape[1], int(y.max()) + 1)
    opt = optim.adam(net, lr=0.01, decay=5e-3)
    run.keep(net=net, opt=opt)
    for _ in run.loop(steps=200):
        run.update(opt, labels=losses.labels(net(x), y))
    return net.eval()
