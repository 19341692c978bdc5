"""Papers that cite each other, a few of them labelled: Cora where it is on this machine, else digits and those alike."""

import copy
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import torch
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
    return Cast({"student": _student(seed), "teacher": teacher, "data": ground.seen}, data=ground.name,
                real=ground.real, ground=ground, accuracy=lambda net: accuracy(net, ground.judged),
                alone=lambda: _alone(seed, unseen), taught=lambda: _taught(seed, unseen),
                other=lambda **fields: _other(seed, unseen, **fields))


@lru_cache(maxsize=4)
def split(seed: int, unseen: float = 0.0) -> SimpleNamespace:
    """The graph, parted by the seed."""
    return parted(*whole_graph(), seed, unseen)


def parted(graph: Nodes, name: str, real: bool, seed: int, unseen: float) -> SimpleNamespace:
    """all: the graph with every label; seen: what may be seen of it; labelled, valid, judged: samples to learn from, to choose
    by and to report on; index: where the last lie in the graph."""
    train, valid, test = cut(graph.targets, EACH, EACH_VALID, seed)
    draw = torch.Generator().manual_seed(seed)
    hidden = test[torch.randperm(len(test), generator=draw)[: round(unseen * len(test))]]
    there = torch.ones(len(graph), dtype=torch.bool).index_fill(0, hidden, False)
    index = hidden if unseen else test
    labelled, choosing, judged = (TensorDataset(graph.x[part], graph.targets[part]) for part in (train, valid, index))
    return SimpleNamespace(all=graph, seen=nodes(graph.known(train).only(there.nonzero().flatten()), graph.hyper), name=name,
                           real=real, index=index, labelled=labelled, valid=choosing, judged=judged)


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


def _student(seed: int) -> Module:
    x, y = split(seed).labelled.tensors
    torch.manual_seed(1000 + seed)
    return mlp(x.shape[1], 128, int(y.max()) + 1, dropout=0.6)


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
    return by_labels(_student(seed), split(seed, unseen).labelled, seed, decay=5e-3)


def by_labels(net: Module, labelled: TensorDataset, seed: int, decay: float) -> Module:
    """A network taught by labels alone, with the rate of the papers."""
    run, opt = Run(seed=seed, device="cpu"), optim.adam(net, lr=0.01, decay=decay)
    run.keep(net=net, opt=opt)
    x, y = labelled.tensors
    for _ in run.loop(steps=200):
        run.update(opt, labels=losses.labels(net(x), y))
    return net.eval()
