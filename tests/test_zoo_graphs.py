"""Graphs of the shared data, and the reader of their pickles: it reads numbers, and runs nothing that a file names."""

import contextlib
import os
import pickle
import random
import sys
import types

import numpy as np
import pytest
import torch

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import graphs
from stillroom.zoo.pickled import read
from stillroom.zoo.shared import home


def written(tmp_path, thing, protocol=2):
    file = tmp_path / "thing"
    file.write_bytes(thing if isinstance(thing, bytes) else pickle.dumps(thing, protocol=protocol))
    return file


class Hostile:
    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_numbers_and_containers_come_back_as_they_were(protocol, tmp_path):
    draw = np.random.default_rng(0)
    thing = {"a": [1, 2.5, "word", None, True], 3: {4, 5}, "t": (1, (2,)), np.int32(7): [np.int64(8), np.float32(0.5)],
             "i": draw.integers(0, 9, (3, 4)).astype(np.int32), "f": np.asfortranarray(draw.normal(size=(2, 5))),
             "b": np.array([True, False]), ">": np.arange(3, dtype=">i4"), "0": np.array(5)}
    found = read(written(tmp_path, thing, protocol))
    assert list(found) == ["a", 3, "t", 7, "i", "f", "b", ">", "0"]
    assert found["a"] == thing["a"] and found[3] == {4, 5} and found["t"] == (1, (2,)) and found[7] == [8, 0.5]
    for key in ("i", "f", "b", ">", "0"):
        assert type(found[key]) is np.ndarray and found[key].dtype == thing[key].dtype.newbyteorder("=")
        assert np.array_equal(found[key], thing[key])


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_sparse_matrix_comes_back_dense(kind, tmp_path):
    from scipy import sparse

    thing = sparse.random(20, 30, 0.1, "csr", random_state=0).astype(kind)
    found = read(written(tmp_path, thing))
    assert isinstance(found, torch.Tensor) and np.array_equal(found.numpy(), thing.toarray())


@pytest.mark.parametrize("call", [os.system, eval, exec, __import__, getattr, random.seed, np.load, np.fromfile,
                                  torch.load, types.SimpleNamespace, pickle.loads, open])
def test_a_hostile_pickle_is_refused_and_never_acts(call, tmp_path):
    mark = tmp_path / "acted"
    for given in ((f"open({str(mark)!r}, 'w')",), (str(mark), "w"), ()):
        with pytest.raises(Refused, match="wants to call"):
            read(written(tmp_path, [np.arange(3), Hostile(call, *given)]))
    assert not mark.exists()


@pytest.mark.parametrize("thing", [np.array([{}, 1], dtype=object), np.array(["word"]), np.zeros(2, dtype=[("a", "i4")]),
                                   np.array([1 + 2j]), np.datetime64("2020-01-01")])
def test_an_array_of_anything_but_numbers_is_refused(thing, tmp_path):
    with pytest.raises(Refused):
        read(written(tmp_path, thing))


def test_a_sparse_matrix_that_points_outside_is_refused(tmp_path):
    from scipy import sparse

    for part, wrong in (("indices", np.array([99], np.int32)), ("indptr", np.array([0, 1, 5], np.int32)),
                        ("indptr", np.array([0, 3, 1], np.int32)), ("_shape", (2**20, 2**20)),
                        ("indices", np.array([-99], np.int32))):
        thing = sparse.csr_matrix(np.array([[0.0, 1.0], [0.0, 0.0]]))
        thing.__dict__[part] = wrong
        with pytest.raises(Refused):
            read(written(tmp_path, thing))


def test_what_a_file_writes_on_our_classes_does_not_outlive_it(tmp_path):
    """BUILD with slots sets attributes, here of the class that stands for scipy's matrix."""
    from scipy import sparse

    evil = b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n(N}X\x05\x00\x00\x00denseK\x01stb."
    with contextlib.suppress(Refused):
        read(written(tmp_path, evil))
    assert read(written(tmp_path, sparse.csr_matrix(np.eye(3)))).tolist() == np.eye(3).tolist()


def test_damaged_and_missing_files_are_refused(tmp_path):
    whole = pickle.dumps(list(range(100)))
    for blob in (b"", b"no pickle", whole[:-5]):
        with pytest.raises(Refused, match="damaged"):
            read(written(tmp_path, blob))
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path / "nothing")
    with pytest.raises(Refused, match="points to something outside"):
        read(written(tmp_path, b"\x80\x02X\x01\x00\x00\x00aQ."))


def test_reading_does_not_import_what_the_file_names(tmp_path):
    name = "wave"                                               # a module of the standard library that nobody here needs
    sys.modules.pop(name, None)
    with pytest.raises(Refused):
        read(written(tmp_path, b"cwave\nopen\n."))
    assert name not in sys.modules


# --- the sets --------------------------------------------------------------------------------------------------------

def there(name):
    try:
        return home(name)
    except Refused as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("name, nodes, edges, words, classes", [("cora", 2708, 5278, 1433, 7), ("citeseer", 3327, 4552, 3703, 6)])
def test_the_graphs_are_those_of_the_papers(name, nodes, edges, words, classes):
    there("planetoid")
    found = graphs.planetoid(name)
    graph = found.graph
    assert graph.x.shape == (nodes, words) and graph.edges.shape == (2, 2 * edges)           # each both ways, none twice
    assert {*graph.targets.unique().tolist()} - {UNLABELLED} == set(range(classes))
    assert (graph.targets == UNLABELLED).sum() == (15 if name == "citeseer" else 0)
    assert len(found.train) == 20 * classes and len(found.valid) == 500 and len(found.test) == 1000
    assert torch.bincount(graph.targets[found.train]).tolist() == [20] * classes
    assert torch.equal(graph.edges.flip(0).unique(dim=1), graph.edges) and (graph.edges[0] != graph.edges[1]).all()
    alike = (graph.targets[graph.edges[0]] == graph.targets[graph.edges[1]]).float().mean()
    assert alike > 0.7                                          # papers cite their field: features, labels and edges fit together


@pytest.mark.parametrize("name, nodes, edges", [("cocitation/cora", 2708, 1579), ("cocitation/citeseer", 3312, 1079),
                                                ("coauthorship/cora", 2708, 1072)])
def test_the_hypergraphs_are_those_of_the_papers(name, nodes, edges):
    there("hypergraph")
    found = graphs.hypergraph(name)
    vertex, edge = found.graph.edges
    assert len(found.graph) == nodes and int(edge.max()) + 1 == len(edge.unique()) == edges and found.graph.hyper
    assert all(len(train) + len(test) == nodes and not set(train.tolist()) & set(test.tolist()) for train, test in found.splits)
    purity = [found.graph.targets[vertex[edge == e]].bincount().max().item() / (edge == e).sum().item() for e in range(200)]
    assert np.mean(purity) > 0.75


def test_names_and_folders_that_are_not_there_are_refused(tmp_path, monkeypatch):
    for read_set, near in ((graphs.planetoid, "coora"), (graphs.hypergraph, "cocitation/coora")):
        with pytest.raises(Refused, match="did you mean"):
            read_set(near)
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    graphs.planetoid.cache_clear()
    with pytest.raises(Refused, match="not on this machine"):
        graphs.planetoid("cora")


def test_a_graph_of_ones_own_is_named_by_file_and_callable(tmp_path):
    from stillroom import zoo
    from stillroom.parts.nodes import Nodes

    file = tmp_path / "mine.py"
    file.write_text("import torch\nfrom stillroom.parts.nodes import Nodes\n"
                    "def graph(size: int = 3):\n"
                    "    return Nodes(torch.eye(size), torch.zeros(size, dtype=torch.long), torch.tensor([[0, 1], [1, 0]]))\n")
    found = zoo.actor("Nodes", f"file:{file}:graph?size=5")
    assert isinstance(found, Nodes) and len(found) == 5
