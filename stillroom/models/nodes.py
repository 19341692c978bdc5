"""Networks over one large graph or hypergraph: features and edges → something of every node."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom._compat import package
from stillroom.parts.codebook import Codebook
from stillroom.parts.nodes import edge_means


class GNN(Module):
    """Layers of PyTorch Geometric, ReLU and dropout between them: x [nodes, widths[0]], edges → [nodes, widths[-1]].

    widths  of the features and behind every layer, such as (1433, 64, 7)
    kind    of layer: "gcn" (Kipf & Welling 2017), "sage" (Hamilton et al. 2017)
    open    ReLU and dropout behind the last layer, too: the first half of a network
    Raises `Refused` when torch_geometric is missing.
    """

    def __init__(self, widths: Sequence[int], *, kind: Literal["gcn", "sage"] = "gcn", dropout: float = 0.5, open: bool = False):
        super().__init__()
        package("torch_geometric")
        from torch_geometric.nn import GCNConv, SAGEConv

        layer = {"gcn": GCNConv, "sage": SAGEConv}[kind]
        self.layers = nn.ModuleList([layer(a, b) for a, b in pairwise(widths)])
        self.dropout, self.open = dropout, open

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.each(x, edges)[-1]

    def each(self, x: Tensor, edges: Tensor) -> list[Tensor]:
        """What every layer makes of the nodes, [nodes, width] each."""
        h, made = x, []
        for number, layer in enumerate(self.layers, 1):
            h = layer(h, edges)
            if self.open or number < len(self.layers):
                h = F.relu(h)
            made.append(h)
            if self.open or number < len(self.layers):
                h = F.dropout(h, self.dropout, self.training)
        return [*made[:-1], h]


class Tokenizer(Module):
    """A GNN whose first half speaks to the second through a codebook (Yang et al. 2024, VQGraph, sec. 4.1).

    encoder  features, edges → embeddings [nodes, dim] of a node and its neighbourhood
    head     embeddings, edges → logits [nodes, classes]
    codes    of the codebook, K; decay, least as `parts.codebook.Codebook` has them
    """

    def __init__(self, encoder: Module, head: Module, dim: int, codes: int = 5000, decay: float = 0.8, least: float = 0.0):
        super().__init__()
        self.embed, self.head = encoder, head
        self.book = Codebook(codes, dim, cosine=True, decay=decay, least=least)
        self.to_nodes, self.to_edges = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(self.to_edges(self.book(self.embed(x, edges)).value), edges)


class HGNN(Module):
    """Convolutions over a hypergraph (Feng et al. 2019, eq. 11): σ(D_v^-½ H D_e^-1 Hᵀ D_v^-½ X Θ), ReLU and dropout between.

    x [vertices, widths[0]], members [2, memberships] of vertices and hyperedges → [vertices, widths[-1]]. A vertex of no
    hyperedge becomes 0: give it one of its own, as `parts.nodes.nodes` does.
    """

    def __init__(self, widths: Sequence[int], *, dropout: float = 0.5):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.dropout = dropout

    def forward(self, x: Tensor, members: Tensor) -> Tensor:
        h = x
        for number, layer in enumerate(self.layers, 1):
            h = spread(layer(h), members)
            if number < len(self.layers):
                h = F.dropout(F.relu(h), self.dropout, self.training)
        return h


def spread(h: Tensor, members: Tensor) -> Tensor:
    """D_v^-½ H D_e^-1 Hᵀ D_v^-½ h, vertices to hyperedges and back: h [vertices, width], members [2, memberships]."""
    vertex, edge = members
    scale = torch.bincount(vertex, minlength=len(h)).clamp(min=1).to(h).rsqrt()[:, None]
    return scale * torch.zeros_like(h).index_add(0, vertex, edge_means(scale * h, members)[edge])
