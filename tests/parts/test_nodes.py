"""Nodes as samples: what is kept of a graph, PyTorch Geometric's data, hyperedges, and what is computed over them."""

import pytest
import torch
from torch_geometric.data import Data

from stillroom.errors import Refused
from stillroom.models.nodes import GNN, HGNN, spread
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes, adjacency_error, cut, edge_means, hyperedges, nodes, score


def some(n=12, links=20, features=5, classes=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(n - 1, (2, links), generator=draw)                      # the last node is alone
    ends = ends[:, ends[0] != ends[1]]
    return Nodes(torch.randn(n, features, generator=draw), torch.randint(classes, (n,), generator=draw),
                 torch.cat([ends, ends.flip(0)], 1).unique(dim=1))


def incidence(graph):
    table = torch.zeros(len(graph), int(graph.edges[1].max()) + 1, dtype=torch.float64)
    table[graph.edges[0], graph.edges[1]] = 1
    return table


def test_nodes_are_samples_and_some_keep_their_labels():
    graph = some()
    known = graph.known(torch.tensor([3, 5]))
    assert len(graph) == 12 and torch.equal(graph[4][0], graph.x[4]) and graph[4][1] == graph.targets[4]
    assert (known.targets != UNLABELLED).nonzero().flatten().tolist() == [3, 5] and known.targets[3] == graph.targets[3]
    assert torch.equal(known.x, graph.x) and torch.equal(known.edges, graph.edges)


def test_a_part_of_a_graph_has_the_edges_between_its_nodes():
    graph, index = some(), torch.tensor([7, 2, 0, 9])
    part, table = graph.only(index), torch.zeros(12, 12)
    table[graph.edges[0], graph.edges[1]] = 1
    inner = torch.zeros(4, 4)
    inner[part.edges[0], part.edges[1]] = 1
    assert torch.equal(inner, table[index][:, index]) and torch.equal(part.x, graph.x[index])


def test_a_part_of_a_hypergraph_keeps_hyperedges_of_its_vertices():
    graph, index = hyperedges(some()), torch.tensor([7, 2, 0, 9])
    part = graph.only(index)
    rows = incidence(graph)[index]
    assert torch.equal(incidence(part), rows[:, rows.any(0)])


def test_a_graph_as_a_hypergraph_has_its_pairs_and_its_neighbourhoods():
    graph = some()
    found = incidence(hyperedges(graph)).bool()
    table = torch.zeros(12, 12, dtype=torch.bool)
    table[graph.edges[0], graph.edges[1]] = True
    sets = {frozenset(column.nonzero().flatten().tolist()) for column in found.T}
    pairs = {frozenset(pair) for pair in graph.edges.T.tolist()}
    around = {frozenset([v, *row.nonzero().flatten().tolist()]) for v, row in enumerate(table)}
    assert sets == pairs | around and found.shape[1] == len(pairs) + 12


def test_what_pytorch_geometric_calls_data_is_taken_with_its_mask():
    graph, mask = some(), torch.arange(12) < 4
    taken = nodes(Data(x=graph.x, y=graph.targets[:, None], edge_index=graph.edges, train_mask=mask))
    assert torch.equal(taken.edges, graph.edges) and torch.equal(taken.targets, torch.where(mask, graph.targets, UNLABELLED))
    assert torch.equal(nodes(Data(x=graph.x, y=graph.targets, edge_index=graph.edges)).targets, graph.targets)
    hyper = hyperedges(graph)
    taken = nodes(Data(x=graph.x, y=graph.targets, hyperedge_index=hyper.edges), hyper=True)
    assert taken.hyper and torch.equal(taken.edges, hyper.edges)


@pytest.mark.parametrize("spoil, word", [
    ({"x": torch.zeros(12)}, "features of shape"), ({"x": torch.full((12, 2), torch.nan)}, "NaN"),
    ({"y": torch.zeros(5, dtype=torch.long)}, "labels of shape"), ({"y": torch.full((12,), -1)}, "a label is -1"),
    ({"edge_index": torch.tensor([[0], [12]])}, "do not fit"), ({"edge_index": torch.zeros(3, 2)}, "do not fit"),
    ({"y": None}, "without x, y and edge_index")])
def test_what_does_not_fit_is_refused(spoil, word):
    graph = some()
    with pytest.raises(Refused, match=word):
        nodes(Data(**{"x": graph.x, "y": graph.targets, "edge_index": graph.edges} | spoil))


def test_a_method_that_learns_from_labels_refuses_a_graph_without():
    graph = some().known(torch.arange(0))
    nodes(graph)
    with pytest.raises(Refused, match="no node has a label"):
        nodes(graph, labelled=True)


def test_a_hypergraph_is_no_graph_and_a_lone_vertex_gets_its_own_hyperedge():
    graph = Nodes(torch.randn(3, 2), torch.zeros(3, dtype=torch.long), torch.tensor([[0, 1], [0, 0]]), hyper=True)
    with pytest.raises(Refused, match="this is a hypergraph"):
        nodes(graph)
    assert incidence(nodes(graph, hyper=True)).tolist() == [[1, 0], [1, 0], [0, 1]]


def test_means_over_hyperedges_and_the_convolution_are_those_of_the_dense_formulas():
    graph, h = hyperedges(some()), torch.randn(12, 4, dtype=torch.float64)
    table = incidence(graph)
    assert torch.allclose(edge_means(h, graph.edges), (table / table.sum(0)).T @ h)
    vertices, edges = table.sum(1).rsqrt().diag(), (1 / table.sum(0)).diag()
    assert torch.allclose(spread(h, graph.edges), vertices @ table @ edges @ table.T @ vertices @ h)
    ones = table.sum(1).sqrt()[:, None]                          # what the symmetric convolution leaves as it is
    assert torch.allclose(spread(ones, graph.edges), ones)


def test_hgnn_is_the_formula_twice():
    torch.manual_seed(0)
    graph, net = hyperedges(some()), HGNN((5, 8, 3)).double().eval()
    x, table = graph.x.double(), incidence(graph)
    scale = table.sum(1).rsqrt().diag()
    step = scale @ table @ (1 / table.sum(0)).diag() @ table.T @ scale
    first, second = net.layers
    expected = step @ second((step @ first(x)).relu())
    assert torch.allclose(net(x, graph.edges), expected)


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_a_gnn_says_the_same_of_nodes_in_any_order(kind):
    torch.manual_seed(0)
    graph, order, net = some(), torch.randperm(12), GNN((5, 8, 3), kind=kind).double().eval()
    moved = graph.only(order)
    out, other = net(graph.x.double(), graph.edges), net(moved.x.double(), moved.edges)
    assert torch.allclose(other, out[order], atol=1e-12)
    first, last = net.each(graph.x.double(), graph.edges)
    assert first.shape == (12, 8) and (first >= 0).all() and torch.equal(last, out)


def test_the_error_of_drawn_pairs_is_on_average_that_of_the_whole_adjacency():
    graph = some()
    z = 0.5 * torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = torch.zeros(12, 12, dtype=torch.float64)
    table[graph.edges[0], graph.edges[1]] = 1
    off = ~torch.eye(12, dtype=torch.bool)
    whole = (table - (z @ z.T).sigmoid()).square()[off].mean()
    torch.manual_seed(0)
    assert adjacency_error(z, graph.edges, 200_000) == pytest.approx(whole.item(), rel=2e-3)
    drawn = torch.stack([adjacency_error(z, graph.edges, 20) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(whole.item(), rel=2e-2) and drawn.std() > 0
    doubled = torch.cat([graph.edges, graph.edges, torch.tensor([[3], [3]])], 1)      # twice, and with a loop
    torch.manual_seed(0)
    assert adjacency_error(z, doubled, 200_000) == pytest.approx(whole.item(), rel=2e-3)


def test_blocks_of_an_adjacency_can_be_told_without_error():
    group = torch.arange(12) // 4
    ends = (group[:, None] == group).nonzero().T
    z = 20 * (2 * torch.eye(3)[group] - 0.5)                    # alike inside, opposite between
    assert adjacency_error(z, ends, 500) < 1e-6 < adjacency_error(torch.zeros(12, 3), ends, 500)
    assert torch.allclose(score(torch.zeros(12, 3), ends), torch.tensor(0.5))


def test_a_cut_takes_so_many_of_each_class_and_nobody_twice():
    y = torch.cat([torch.arange(4).repeat(30), torch.full((7,), UNLABELLED)])
    train, valid, test = cut(y, 5, 3, seed=0)
    assert y[train].bincount().tolist() == [5] * 4 and y[valid].bincount().tolist() == [3] * 4
    assert torch.cat([train, valid, test]).sort().values.tolist() == list(range(120))
    assert not torch.equal(train, cut(y, 5, 3, seed=1)[0]) and torch.equal(train, cut(y, 5, 3, seed=0)[0])
