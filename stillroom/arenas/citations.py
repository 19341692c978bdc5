"""Papers that cite each other, a few of them labelled: Cora where it is on this machine, else drawn ones."""

import copy
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
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
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes, cut, nodes
from stillroom.run import Run
from stillroom.zoo.graphs import planetoid

EACH, EACH_VALID = 20, 30      # labelled papers a class, and those to choose by
WIDTH, CODES = 64, 512         # of the teacher


def citations(seed: int = 0, unseen: float = 0.0) -> Cast:
    """Student (an MLP of 128), a GCN with a codebook in its middle, both fresh, and a graph with twenty labels a class.

    unseen   share of the test nodes that are not in the graph; they are what is judged then
    accuracy(net)        of a network that reads features alone, on the test nodes, in percent
    taught()             the teacher as VQGraph trains it: `net`, `accuracy` in the graph, `codes` of which so many are `used`
    alone()              the student taught by the labels alone
    plain()              a GCN without codes: its `accuracy`, and the `student` that GLNN makes of it
    other(**fields)      what the trial of VQGraph makes with these fields changed; alpha=0 is GLNN
    """
    ground = split(seed, unseen)
    features, classes = ground.all.x.shape[1], int(ground.all.targets.max()) + 1
    torch.manual_seed(2000 + seed)
    teacher = Tokenizer(GNN((features, WIDTH), open=True, dropout=0.8), GNN((WIDTH, classes)), WIDTH, CODES)
    return Cast({"student": _student(seed), "teacher": teacher, "data": ground.seen}, data=ground.name,
                real=ground.real, ground=ground, accuracy=lambda net: accuracy(net, ground.judged),
                alone=lambda: _alone(seed, unseen), taught=lambda: _taught(seed, unseen),
                other=lambda **fields: _other(seed, unseen, **fields), plain=lambda: _plain(seed, unseen))


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
    """All nodes with all labels, their name, and whether they are real."""
    try:
        return planetoid("cora").graph, "Cora", True
    except Refused:
        return drawn(), "papers and citations drawn by a formula", False


def drawn(papers: int = 2000, fields: int = 7, topics: int = 40, words: int = 1120, cited: int = 3) -> Nodes:
    """Papers by a formula: of their eighteen words three are of their topic and three of their field; they cite three others,
    seven in ten of their topic, two in ten of their field."""
    draw = torch.Generator().manual_seed(0)
    topic = torch.randint(fields * topics, (papers,), generator=draw)
    field, each = topic // topics, words // fields
    of_topic = topic[:, None] * (each // topics) + torch.randint(each // topics, (papers, 3), generator=draw)
    of_field = field[:, None] * each + torch.randint(each, (papers, 3), generator=draw)
    of_none = torch.randint(words, (papers, 12), generator=draw)
    x = torch.zeros(papers, words).scatter_(1, torch.cat([of_topic, of_field, of_none], 1), 1.0)
    near, far = (key[:, None] == key for key in (topic, field))
    chance = 0.7 * near / near.sum(1) + 0.2 * far / far.sum(1) + 0.1 / papers
    edges = torch.stack([torch.arange(papers).repeat_interleave(cited), chance.multinomial(cited, generator=draw).flatten()])
    edges = edges[:, edges[0] != edges[1]]
    return nodes(Nodes(x, field, torch.cat([edges, edges.flip(0)], 1).unique(dim=1)))


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
def _plain(seed: int, unseen: float) -> SimpleNamespace:
    """A GCN without codes, and the student that GLNN (Zhang et al. 2022) makes of it, with the batches of the trial."""
    ground, net = split(seed, unseen), _gcn(seed)
    x, y, edges = ground.seen.x, ground.seen.targets, ground.seen.edges
    run, student, opt = Run(seed=seed, device="cpu"), _student(seed), optim.adam(net, lr=0.01, decay=5e-4)
    run.keep(net=net, opt=opt)
    for _ in run.loop(steps=100, name="teacher"):
        run.update(opt, labels=F.cross_entropy(net(x, edges), y, ignore_index=UNLABELLED))
    with resting(net):
        taught = net(x, edges)
        right = net(ground.all.x, ground.all.edges)[ground.index].argmax(-1) == ground.judged.tensors[1]
    opt = optim.adam(student, lr=0.01, decay=5e-3)
    run.keep(student=student, opt_student=opt)
    for features, logits in run.loop(TensorDataset(x, taught), batch=512, steps=100):
        run.update(opt, soft=losses.kl(student(features), logits))
    return SimpleNamespace(student=student.eval(), accuracy=100 * right.float().mean().item())


def _gcn(seed: int) -> Module:
    x, y = split(seed).labelled.tensors
    torch.manual_seed(3000 + seed)
    return GNN((x.shape[1], WIDTH, int(y.max()) + 1))


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
