"""The judge of distilled graphs: what fresh networks learn from them alone; and real graphs to hold them against."""

from collections.abc import Callable
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.parts import optim
from stillroom.parts.graphs import Graph, Graphs, pack
from stillroom.run import Run


def teaches(graphs: Graph, y: Tensor, weight: Tensor, *, model: Callable[[], Module], test: Graphs, judge: str = "accuracy",
            steps: int = 200, lr: float = 5e-3, nets: int = 1, seed: int = 0) -> tuple[float, float]:
    """What `nets` new networks reach on the test graphs, mean and deviation in percent, taught by these graphs alone.

    graphs: packed; y: their classes [graphs]; weight: of each in the loss [graphs]. Adam on all of them at once.
    judge: "accuracy", or "auc", the area under the ROC curve of two classes.
    """
    scores, exam = [], pack(test.graphs)
    for number in range(nets):
        torch.manual_seed(10_000 * seed + number)
        net = model()
        run, opt = Run(seed=seed + number, device="cpu"), optim.adam(net, lr=lr)
        run.keep(net=net, opt=opt)
        for _ in run.loop(steps=steps):
            loss = F.cross_entropy(net(graphs), y, reduction="none")
            run.update(opt, labels=(weight * loss).sum() / weight.sum())
        with torch.no_grad():
            scores.append(100 * JUDGES[judge](net.eval()(exam), test.targets))
    found = torch.tensor(scores)
    return found.mean().item(), found.std(correction=0).item()


def some_of_each(data: Graphs, nodes: float) -> tuple[Graph, Tensor, Tensor]:
    """Real graphs drawn at random, the classes in turn, until they have so many nodes or more: packed, classes, weights of 1."""
    order = torch.randperm(len(data)).tolist()
    queues = ([i for i in order if data.targets[i] == c] for c in data.targets.unique())
    chosen: list[int] = []
    for i in (i for turn in zip_longest(*queues) for i in turn if i is not None):
        chosen.append(i)
        nodes -= data.graphs[i].nodes
        if nodes <= 0:
            break
    part = data.take(chosen)
    return pack(part.graphs), part.targets, torch.ones(len(chosen))


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(-1) == y).float().mean().item()


def _auc(logits: Tensor, y: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, logits[:, 1] - logits[:, 0]))


JUDGES = {"accuracy": _accuracy, "auc": _auc}
