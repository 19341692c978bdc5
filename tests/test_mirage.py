"""Mirage: networks see of a tree what they see of its root in the graph; frequent sets stand for whole graphs."""

import gzip
import itertools
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from stillroom import Run
from stillroom.errors import Refused
from stillroom.measure.graphs import some_of_each, teaches
from stillroom.models.graph import GraphNet
from stillroom.parts.graphs import Graphs, Trees, graph, pack
from stillroom.recipes.dataset.mirage import Mirage
from stillroom.zoo.shared import home

KINDS = ("gin", "sage", "gat", "gcn")


def some_graph(seed, nodes=12, edges=18, kinds=1):
    draw = random.Random(seed)
    pairs = draw.sample(list(itertools.combinations(range(nodes - 1), 2)), edges)        # the last node is alone
    return graph([draw.randrange(3) for _ in range(nodes)], pairs, [draw.randrange(kinds) for _ in pairs])


def net(kind, hops=2, edges=1, pool="mean"):
    torch.manual_seed(0)
    return GraphNet(kind, 3, 2, width=8, hops=hops, edges=edges, pool=pool).double()


def error(kind, g, hops, edges, degrees=False):
    """Largest difference between roots of the trees and the nodes that they are the trees of."""
    trees = Trees()
    forest, model = trees.forest(trees.grow(g, hops, degrees)), net(kind, hops, edges)
    assert forest.roots[: g.nodes].all() and forest.roots.sum() == g.nodes
    return (model.nodes(forest)[forest.roots] - model.nodes(g)).abs().max().item()


# --- what a network sees ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("edges", [1, 3])
@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("kind", ["gin", "sage", "gat"])
def test_the_root_of_a_computation_tree_is_embedded_as_its_node_in_the_graph(kind, hops, edges):
    assert error(kind, some_graph(0, kinds=edges), hops, edges) < 1e-12


@pytest.mark.parametrize("edges", [1, 3])
def test_a_symmetric_normalisation_needs_the_degrees_of_the_leaves(edges):
    g = some_graph(0, kinds=edges)
    assert error("gcn", g, 2, edges) > 1e-3
    assert error("gcn", g, 2, edges, degrees=True) < 1e-12


def test_a_tree_too_shallow_is_not_enough():
    g, trees = some_graph(0), Trees()
    forest, model = trees.forest(trees.grow(g, 1)), net("gin", hops=2)
    assert (model.nodes(forest)[forest.roots] - model.nodes(g)).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["gin", "sage", "gat"])
def test_all_trees_of_a_graph_pooled_at_their_roots_are_the_graph(kind, pool):
    graphs, trees, model = [some_graph(i) for i in range(3)], Trees(), net(kind, pool=pool)
    forests = [trees.forest(trees.grow(g, 2)) for g in graphs]
    assert torch.allclose(model.read(pack(forests)), model.read(pack(graphs)), rtol=0, atol=1e-12)
    assert torch.allclose(model(pack(forests)), torch.cat([model(g) for g in graphs]), rtol=0, atol=1e-12)


# --- the layers, against their formulas on dense matrices ------------------------------------------------------------

def dense(g):
    adjacency = torch.zeros(g.nodes, g.nodes).double()   # [to, from]
    adjacency[g.edges[1], g.edges[0]] = 1
    return adjacency


def layer_of(kind):
    g, model = some_graph(1), net(kind)
    h = model.embed(g.labels)
    return g, h, model.layers[0], model.layers[0](h, g, 0.0), dense(g)


def test_gin_sums_its_neighbours():
    g, h, layer, out, a = layer_of("gin")
    layer.eps.data.fill_(0.3)
    assert torch.allclose(layer(h, g, 0.0), layer.mlp(1.3 * h + a @ h)) and not torch.allclose(out, layer.mlp(1.3 * h + a @ h))


def test_sage_takes_their_mean_and_nothing_of_none():
    _, h, layer, out, a = layer_of("sage")
    mean = (a / a.sum(1, keepdim=True)).nan_to_num() @ h
    assert torch.allclose(out, h @ layer.own.weight.T + layer.own.bias + mean @ layer.others.weight.T)


def test_gcn_normalises_by_both_degrees():
    _, h, layer, out, a = layer_of("gcn")
    looped = a + torch.eye(len(a))
    root = looped.sum(1).rsqrt()
    assert torch.allclose(out, (root[:, None] * looped * root) @ layer.linear(h))


def test_gat_attends_to_neighbours_and_itself():
    _, h, layer, out, a = layer_of("gat")
    value = layer.linear(h).unflatten(-1, (layer.heads, -1))                         # [nodes, heads, width/heads]
    score = (value * layer.attend[0]).sum(-1)[:, None] + (value * layer.attend[1]).sum(-1)[None]     # [to, from, heads]
    score = F.leaky_relu(score, 0.2).masked_fill((a + torch.eye(len(a)) == 0)[..., None], -torch.inf)
    assert torch.allclose(out, torch.einsum("ijh,jhd->ihd", score.softmax(1), value).flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_a_network_gets_a_gradient(kind):
    model = net(kind, edges=2)
    F.cross_entropy(model(pack([some_graph(0, kinds=2), some_graph(1, kinds=2)])), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in model.parameters()) >= len(list(model.parameters())) - 1


# --- the recipe ------------------------------------------------------------------------------------------------------

def motifs(each=20):
    """Rings of six against stars of six, every one with a tail of random length: two motifs and something in common."""
    draw, graphs, y = random.Random(0), [], []
    for i in range(2 * each):
        pairs = [(j, (j + 1) % 6) for j in range(6)] if i % 2 else [(0, j) for j in range(1, 6)]
        tail = draw.randint(1, 4)
        pairs += [(5 + j, 6 + j) for j in range(tail)]
        graphs.append(graph([0] * (6 + tail), pairs))
        y.append(i % 2)
    return Graphs(graphs, torch.tensor(y))


def codes(made):
    """Of every forest, its trees by canonical code."""
    forests, found = made[0], []
    for number in range(forests.number):
        inside, trees = forests.member == number, Trees()
        children = {n: [] for n in inside.nonzero().flatten().tolist()}
        for child, parent in forests.edges.T.tolist():
            if parent in children:
                children[parent].append(child)

        def tree(node, trees=trees, children=children):
            label, degree = int(forests.labels[node]), int(forests.degree[node])
            return trees.number(label, degree, [(0, tree(child)) for child in children[node]])
        found.append(sorted(trees.code(tree(n)) for n in (inside & forests.roots).nonzero().flatten().tolist()))
    return found


def test_sets_of_trees_that_one_class_has_and_no_other_stand_for_as_many_graphs():
    data = motifs()
    made = Mirage(size=0.2)(Run(), data=data)
    forests, y, weight = made
    assert forests.nodes <= 0.2 * sum(g.nodes for g in data.graphs) and set(y.tolist()) == {0, 1}
    assert torch.allclose(torch.zeros(2).index_add(0, y, weight), torch.tensor([20.0, 20.0]))
    trees = Trees()
    bags = [{trees.code(t) for t in trees.grow(g, 2)} for g in data.graphs]
    seen = codes(made)
    assert len({(*c,) for c in seen}) == len(seen)       # no set twice, neither in one class nor in both
    for c in (0, 1):
        support = torch.tensor([sum(set(trees) <= bag for bag, k in zip(bags, data.targets) if k == c)
                                for trees, k in zip(seen, y) if k == c])
        assert (support >= 2).all()
        assert torch.allclose(weight[y == c], 20 * support / support.sum())


def test_a_network_learns_the_motifs_from_a_fifth_of_the_nodes():
    data, test = motifs(), motifs(40)
    made = Mirage(size=0.2)(Run(), data=data)
    assert teaches(*made, model=partial(GraphNet, "gin", 1, 2, width=16), test=test, steps=100)[0] > 95


def test_what_it_cannot_read_is_refused():
    with pytest.raises(Refused, match="reads graphs"):
        Mirage()(Run(), data=torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4)))
    same = Graphs([graph([0, 0], [(0, 1)])] * 8, torch.arange(8) % 2)
    with pytest.raises(Refused, match="shared=True"):
        Mirage()(Run(), data=same)
    assert len(Mirage(shared=True)(Run(), data=same)[1]) == 2


def test_real_graphs_of_a_size_are_drawn_from_every_class_in_turn():
    graphs, y, weight = some_of_each(motifs(), 40)
    assert abs(int((y == 0).sum()) - int((y == 1).sum())) <= 1 and graphs.nodes >= 40 and len(weight) == len(y) == graphs.number
    assert graphs.nodes - 10 < 40


# --- real molecules, where they are ----------------------------------------------------------------------------------

def molecules(name):
    """A TU set [graphs] in the form of Zhang et al. 2018: labels of nodes, no labels of edges. Skips where it is not."""
    try:
        file = home("tu_graphs") / f"{name}.txt.gz"
    except Refused as missing:
        pytest.skip(str(missing).splitlines()[0])
    lines = iter(gzip.decompress(file.read_bytes()).decode().splitlines())
    graphs, y = [], []
    for _ in range(int(next(lines))):
        nodes, c = map(int, next(lines).split())
        rows = [list(map(int, next(lines).split())) for _ in range(nodes)]
        graphs.append(graph([row[0] for row in rows], [(v, u) for v, row in enumerate(rows) for u in row[2:] if u > v]))
        y.append(c)
    return Graphs(graphs, torch.tensor(y).unique(return_inverse=True)[1])


def against_real(name, seed, size, shared, hops=2):
    data = molecules(name)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    train, test = data.take(order[: len(data) * 2 // 3]), data.take(order[len(data) * 2 // 3 :])
    labels = 1 + max(int(g.labels.max()) for g in data.graphs)
    judge = partial(teaches, model=partial(GraphNet, "gin", labels, 2, width=32, hops=hops), test=test, judge="auc", seed=seed)
    made = Mirage(size=size, shared=shared, hops=hops)(Run(seed=seed), data=train)
    nodes = size * sum(g.nodes for g in train.graphs)
    assert made[0].nodes <= nodes
    torch.manual_seed(seed)
    real = [judge(*some_of_each(train, nodes))[0] for _ in range(6)]
    return judge(*made, nets=3)[0], sum(real) / len(real)


def test_molecules_are_seen_through_their_trees():
    data, trees = molecules("MUTAG"), Trees()
    model = GraphNet("gin", 8, 2, width=16).double()
    forests = pack([trees.forest(trees.grow(g, 2)) for g in data.graphs])
    assert torch.allclose(model(forests), model(pack(data.graphs)), rtol=0, atol=1e-10)
    assert len(trees.trees) < 0.2 * sum(g.nodes for g in data.graphs)                 # the same few trees come again and again


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "shared"), [("MUTAG", 0.1, True), ("NCI1", 0.003, False)])
def test_networks_tell_molecules_apart_better_than_from_as_many_nodes_of_real_ones(name, size, shared):
    ours, real = zip(*(against_real(name, seed, size, shared) for seed in range(3)), strict=True)
    assert sum(ours) / 3 > sum(real) / 3, (ours, real)
