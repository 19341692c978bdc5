"""Networks over graphs, in plain torch: GIN, GraphSAGE, GCN, GAT, with a readout of the roots."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.graphs import Graph

Kind = Literal["gin", "sage", "gcn", "gat"]


class GraphNet(Module):
    """Graphs with labelled nodes → logits [graphs, classes].

    kind     of layer: gin, sage, gcn, gat
    labels   number of node labels
    classes  number of classes
    width    of every layer
    hops     layers, each a hop
    edges    number of edge labels; with more than one, a message carries its edge's embedding
    pool     "mean" or "sum" over the roots of a graph
    """

    def __init__(self, kind: Kind, labels: int, classes: int, *, width: int = 64, hops: int = 2, edges: int = 1,
                 pool: Literal["mean", "sum"] = "mean"):
        super().__init__()
        layer = {"gin": GIN, "sage": SAGE, "gcn": GCN, "gat": GAT}[kind]
        self.embed, self.pool = nn.Embedding(labels, width), pool
        self.layers = nn.ModuleList([layer(width) for _ in range(hops)])
        self.edge_embeds = nn.ModuleList([nn.Embedding(edges, width) for _ in range(hops)]) if edges > 1 else None
        self.head = nn.Linear(width, classes)

    def nodes(self, graph: Graph) -> Tensor:
        """Embedding of every node after the last layer, [nodes, width]."""
        h = self.embed(graph.labels)
        for i, layer in enumerate(self.layers):
            edge = 0.0 if self.edge_embeds is None else self.edge_embeds[i](graph.kinds)
            h = F.relu(layer(h, graph, edge))
        return h

    def read(self, graph: Graph) -> Tensor:
        """Embedding of every graph: its roots pooled, [graphs, width]."""
        h = self.nodes(graph)[graph.roots]
        member = graph.member[graph.roots]
        total = _sum(h, member, graph.number)
        return total if self.pool == "sum" else total / torch.bincount(member, minlength=graph.number).clamp(min=1)[:, None]

    def forward(self, graph: Graph) -> Tensor:
        return self.head(self.read(graph))


class GIN(Module):
    """MLP((1 + ε)·h_v + Σ_u h_u) with ε learnt (Xu et al. 2019, eq. 4.1); with edge labels Σ_u relu(h_u + e_uv) (Hu et al. 2020).

    No normalisation over nodes: it would count the inner nodes of a tree, whose embeddings nobody reads.
    """

    def __init__(self, width: int):
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.eps)

    def forward(self, h: Tensor, graph: Graph, edge: Tensor | float) -> Tensor:
        return self.mlp((1 + self.eps) * h + _sum(_messages(h, graph, edge), graph.edges[1], len(h)))


class SAGE(Module):
    """W₁·h_v + W₂·mean_u h_u (Hamilton et al. 2017, mean aggregator); the mean over no neighbour is 0."""

    def __init__(self, width: int):
        super().__init__()
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, graph: Graph, edge: Tensor | float) -> Tensor:
        target = graph.edges[1]
        total = _sum(_messages(h, graph, edge), target, len(h))
        return self.own(h) + self.others(total / torch.bincount(target, minlength=len(h)).clamp(min=1)[:, None])


class GCN(Module):
    """Σ_{u ∈ N(v) ∪ v} W·h_u / √((d_u + 1)(d_v + 1)) (Kipf & Welling 2017, eq. 2), with the degrees that the graph states."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor, graph: Graph, edge: Tensor | float) -> Tensor:
        scale = (graph.degree + 1).to(h.dtype).rsqrt()[:, None]
        h = self.linear(h) * scale
        edge = edge * scale[graph.edges[0]] if isinstance(edge, Tensor) else edge
        return scale * (h + _sum(_messages(h, graph, edge), graph.edges[1], len(h)))


class GAT(Module):
    """Σ_{u ∈ N(v) ∪ v} α_uv·W·h_u, α the softmax over u of leaky_relu(a·[W·h_v ‖ W·h_u]) (Veličković et al. 2018, eq. 3–6)."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(width, width)
        self.attend = nn.Parameter(torch.empty(2, heads, width // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.attend)

    def forward(self, h: Tensor, graph: Graph, edge: Tensor | float) -> Tensor:
        n, loops = len(h), torch.arange(len(h), device=h.device)
        target = torch.cat([graph.edges[1], loops])
        sent = torch.cat([_messages(h, graph, edge), h])
        value = self.linear(sent).unflatten(-1, (self.heads, -1))                  # [edges, heads, width/heads]
        score = F.leaky_relu((self.linear(h).unflatten(-1, (self.heads, -1)) * self.attend[0]).sum(-1)[target]
                             + (value * self.attend[1]).sum(-1), 0.2)              # [edges, heads]
        top = torch.full((n, self.heads), -torch.inf, dtype=score.dtype, device=h.device)
        top = top.scatter_reduce(0, target[:, None].expand_as(score), score.detach(), "amax")
        weight = (score - top[target]).exp()
        weight = weight / _sum(weight, target, n)[target]
        return _sum(weight[..., None] * value, target, n).flatten(1)


def _messages(h: Tensor, graph: Graph, edge: Tensor | float) -> Tensor:
    """What every edge carries: [edges, width]."""
    sent = h[graph.edges[0]]
    return F.relu(sent + edge) if isinstance(edge, Tensor) else sent


def _sum(x: Tensor, to: Tensor, count: int) -> Tensor:
    """Rows of x summed where `to` says, [count, …]."""
    return x.new_zeros(count, *x.shape[1:]).index_add(0, to, x)
