"""Networks of repeated cells, small: the space of NAS-Bench-201 (Dong & Yang 2020) for small images."""

import torch
from torch import Tensor, nn
from torch.nn import Module

OPERATIONS = ("none", "skip", "conv1", "conv3", "pool")
EDGES = [(start, end) for end in range(1, 4) for start in range(end)]     # of a cell's four nodes: 0→1, 0→2, 1→2, 0→3, 1→3, 2→3


class Cell(Module):
    """Four nodes, an operation on each edge from an earlier to a later one; a node is the sum of what reaches it.

    [batch, width, height, width'] → the same shape. operations: six words of `OPERATIONS`, in the order of `EDGES`.
    """

    def __init__(self, operations: list[str], width: int):
        super().__init__()
        self.edges = [edge for edge, word in zip(EDGES, operations, strict=True) if word != "none"]
        self.operations = nn.ModuleList([_operation(word, width) for word in operations if word != "none"])

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x] + [torch.zeros_like(x)] * 3
        for (start, end), operation in zip(self.edges, self.operations, strict=True):
            nodes[end] = nodes[end] + operation(nodes[start])
        return nodes[-1]


class CellNet(Module):
    """Stem, cell, half the resolution at twice the width, the same cell again, classifier: images → logits [batch, classes]."""

    def __init__(self, arch: list[str], width: int = 4, classes: int = 10, channels: int = 1):
        super().__init__()
        self.arch = list(arch)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.first = Cell(arch, width)
        wider = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.down = nn.Sequential(nn.ReLU(), wider, nn.BatchNorm2d(2 * width), nn.AvgPool2d(2))
        self.second = Cell(arch, 2 * width)
        self.last = nn.Sequential(nn.BatchNorm2d(2 * width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.second(self.down(self.first(self.stem(x)))))
        return self.head(self.pool(x).flatten(1))


def _operation(word: str, width: int) -> Module:
    if word == "skip":
        return nn.Identity()
    if word == "pool":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    size = {"conv1": 1, "conv3": 3}[word]
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width))
