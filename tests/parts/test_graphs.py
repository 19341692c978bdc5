"""Graphs side by side, computation trees and their codes, and sets that come often, against networkx and brute force."""

import itertools
import random

import networkx as nx
import pytest
import torch

from stillroom.parts.graphs import Trees, fill, frequent, graph, most_frequent, pack


def some_graph(seed, nodes=9, edges=14, labels=2, kinds=2):
    draw = random.Random(seed)
    pairs = draw.sample(list(itertools.combinations(range(nodes), 2)), edges)
    return graph([draw.randrange(labels) for _ in range(nodes)], pairs, [draw.randrange(kinds) for _ in pairs])


def random_tree(draw, nodes):
    """A rooted tree: parents, node labels and edge labels, node 0 the root."""
    return ([-1] + [draw.randrange(i) for i in range(1, nodes)], [draw.randrange(2) for _ in range(nodes)],
            [draw.randrange(2) for _ in range(nodes)])


def numbered(trees, tree):
    parents, labels, kinds = tree
    number = {}
    for node in reversed(range(len(parents))):           # children come after their parents
        children = [(kinds[c], number[c]) for c in range(len(parents)) if parents[c] == node]
        number[node] = trees.number(labels[node], len(children), children)
    return number[0]


def as_networkx(tree):
    parents, labels, kinds = tree
    g = nx.Graph()
    for node, (parent, label) in enumerate(zip(parents, labels, strict=True)):
        g.add_node(node, label=(label, node == 0))       # the root is marked
        if parent >= 0:
            g.add_edge(node, parent, kind=kinds[node])
    return g


def isomorphic(a, b):
    same = nx.algorithms.isomorphism
    return nx.is_isomorphic(a, b, same.categorical_node_match("label", 0), same.categorical_edge_match("kind", 0))


def unrolled(g, root, hops):
    """The computation tree of a node, written out: every neighbour is a child, the parent too."""
    labels, tree = g.labels.tolist(), nx.Graph()
    arrows = list(zip(*g.edges.tolist(), g.kinds.tolist(), strict=True))
    tree.add_node(0, label=(labels[root], True))
    level = [(0, root)]
    for _ in range(hops):
        below = []
        for at, node in level:
            for source, target, kind in arrows:
                if target == node:
                    tree.add_node(len(tree), label=(labels[source], False))
                    tree.add_edge(at, len(tree) - 1, kind=kind)
                    below.append((len(tree) - 1, source))
        level = below
    return tree


def forest_as_networkx(forest):
    g = nx.Graph()
    for node, (label, root) in enumerate(zip(forest.labels.tolist(), forest.roots.tolist(), strict=True)):
        g.add_node(node, label=(label, root))
    for child, parent, kind in zip(*forest.edges.tolist(), forest.kinds.tolist(), strict=True):
        g.add_edge(child, parent, kind=kind)
    return g


# --- graphs ----------------------------------------------------------------------------------------------------------

def test_an_edge_is_there_both_ways_and_every_node_is_pooled():
    g = graph([5, 6, 7], [(0, 1), (1, 2)], [3, 4])
    assert g.edges.tolist() == [[0, 1, 1, 2], [1, 2, 0, 1]] and g.kinds.tolist() == [3, 4, 3, 4]
    assert g.degree.tolist() == [1, 2, 1] and g.roots.all() and g.nodes == 3 and g.number == 1
    assert graph([1], []).edges.shape == (2, 0)


def test_an_edge_to_nowhere_or_a_label_too_few_is_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        graph([0, 0], [(0, 2)])
    with pytest.raises(ValueError, match="do not fit"):
        graph([0, 0, 0], [(0, 1), (1, 2)], [1])


def test_packing_shifts_the_nodes_and_packs_of_packs_are_packs():
    a, b, c = (some_graph(i, nodes=4 + i, edges=4) for i in range(3))
    once, twice = pack([a, b, c]), pack([pack([a, b]), c])
    assert all(torch.equal(x, y) for x, y in zip(once[:6], twice[:6], strict=True)) and once.number == twice.number == 3
    assert once.member.tolist() == [0] * 4 + [1] * 5 + [2] * 6
    assert torch.equal(once.edges[:, -8:], c.edges + 9) and torch.equal(once.labels[-6:], c.labels)


# --- trees -----------------------------------------------------------------------------------------------------------

def test_trees_share_a_number_and_a_code_exactly_when_they_are_isomorphic():
    draw, trees, alike = random.Random(0), Trees(), 0
    drawn = [random_tree(draw, draw.randint(1, 6)) for _ in range(120)]
    numbers, graphs = [numbered(trees, t) for t in drawn], [as_networkx(t) for t in drawn]
    codes = [elsewhere.code(numbered(elsewhere, t)) for t in drawn for elsewhere in [Trees()]]
    for i, j in itertools.combinations(range(len(drawn)), 2):
        same = isomorphic(graphs[i], graphs[j])
        alike += same
        assert (numbers[i] == numbers[j]) == (codes[i] == codes[j]) == same
    assert alike > 20                                    # both answers were asked for


def test_labels_of_two_digits_do_not_run_together():
    trees = Trees()
    leaf = [trees.number(label, 0, ()) for label in (1, 11, 2, 12)]
    one, other = ([(1, leaf[0]), (1, leaf[1])], [(11, leaf[0]), (1, leaf[0])])
    assert trees.code(trees.number(1, 2, one)) != trees.code(trees.number(1, 2, other))
    assert len({trees.code(n) for n in range(len(trees.trees))}) == len(trees.trees)


@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_the_tree_of_a_node_is_its_computation_written_out(hops):
    g, trees = some_graph(3, nodes=7, edges=9), Trees()
    for node, number in enumerate(trees.grow(g, hops)):
        forest, naive = trees.forest([number]), unrolled(g, node, hops)
        assert forest.nodes == trees.nodes(number) == len(naive) and forest.roots.sum() == 1 and forest.roots[0]
        assert isomorphic(forest_as_networkx(forest), naive)


def test_a_child_has_its_parent_for_a_child():
    trees = Trees()
    root = trees.grow(graph([7, 8], [(0, 1)]), 2)[0]
    assert trees.code(root) == "(7:1 0(8:1 0(7:0 )))"


def test_leaves_keep_their_degree_when_it_is_asked_for():
    star = graph([0, 0, 0, 0], [(0, 1), (0, 2), (0, 3)])
    plain, known = Trees(), Trees()
    assert plain.code(plain.grow(star, 1)[1]) == "(0:1 0(0:0 ))"
    assert known.code(known.grow(star, 1, degrees=True)[1]) == "(0:1 0(0:3 ))"
    forest = known.forest([known.grow(star, 1, degrees=True)[1]])
    assert forest.degree.tolist() == [1, 3]


def test_a_collection_goes_on_from_its_state():
    trees, again = Trees(), Trees()
    numbers = trees.grow(some_graph(0), 2)
    again.load_state_dict(trees.state_dict())
    assert again.grow(some_graph(0), 2) == numbers and again.trees == trees.trees
    assert again.grow(some_graph(1), 2) == trees.grow(some_graph(1), 2)


# --- sets ------------------------------------------------------------------------------------------------------------

def bags(seed, sets=30, items=8):
    draw = random.Random(seed)
    return [[i for i in range(items) if draw.random() < (i + 2) / (items + 4)] for _ in range(sets)]


def by_counting(sets, least):
    found = {}
    for size in range(1, 9):
        for items in itertools.combinations(range(8), size):
            count = sum(set(items) <= set(s) for s in sets)
            if count >= least:
                found[items] = count
    return found


@pytest.mark.parametrize("least", [1, 3, 10, 25])
def test_frequent_sets_are_those_that_counting_finds_small_ones_first(least):
    found = list(frequent(bags(0), least))
    assert dict(found) == by_counting(bags(0), least) and len(dict(found)) == len(found)
    sizes = [len(items) for items, _ in found]
    assert sizes == sorted(sizes)


def test_reading_frequent_sets_can_stop_where_all_of_them_would_never_end():
    everything = [range(200)] * 50                       # 2^200 sets
    assert next(frequent(everything, 50)) == ((0,), 50)
    assert len(most_frequent(everything, lambda item: 1, 40)) == 40


def test_no_set_is_contained_in_fewer_than_one():
    with pytest.raises(ValueError, match="one of the given"):
        frequent(bags(0), 0)


@pytest.mark.parametrize("budget", [0, 2, 7, 20, 60, 1e9])
def test_the_most_frequent_sets_fill_the_budget(budget):
    def cost(item):
        return 1 + item % 3

    taken, every = most_frequent(bags(1), cost, budget), by_counting(bags(1), 2)
    spent = sum(cost(i) for items in taken for i in items)
    assert spent <= budget and all(every[items] == count for items, count in taken.items())
    left = {items: n for items, n in every.items() if items not in taken}
    assert not taken or not left or max(left.values()) <= min(taken.values())       # nothing more frequent was passed by
    best = max(left.values(), default=0)
    level = [items for items in every if every[items] == best]
    assert not left or spent + min(sum(map(cost, items)) for items in level if items in left) > budget or len(level) > 1


def test_what_two_classes_have_is_left_out_of_both_and_its_room_is_filled():
    def one(item):
        return 1

    mined = [{(1,): 9, (2,): 8, (3,): 7, (4,): 2}, {(1,): 9, (5,): 8, (6,): 7, (7,): 6}]
    assert fill(mined, one, 4, shared=False) == [{(2,): 8, (3,): 7}, {(5,): 8, (6,): 7}]
    assert fill(mined, one, 4, shared=True) == [{(1,): 9, (2,): 8}, {(1,): 9, (5,): 8}]


def test_every_class_has_a_set_even_where_the_budget_is_less_and_nothing_where_it_has_none_of_its_own():
    def ten(item):
        return 10

    assert fill([{(1,): 3, (2,): 2}, {(3,): 3, (4,): 1}], ten, 1, shared=False) == [{(1,): 3}, {(3,): 3}]
    assert fill([{(1,): 3}, {(1,): 3, (2,): 3}], ten, 20, shared=False) == []
