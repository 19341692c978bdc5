"""How much faster an MLP answers than the network over a graph that taught it, for the same nodes, in pairs, in one process.

    python benchmarks/graphs.py [--pairs 15] [--threads 1] [--sizes 2708 20000 55000]

For every size a graph is drawn: as many nodes, eight links each, 64 features; and a hypergraph: as many hyperedges of eight
vertices. Contestants are those of the trials of vqgraph and light_hgnn: a two-layer GCN with a codebook, an HGNN of 32, and MLPs
of 128. Two questions, both in CPU time: all nodes at once; and one node, for which the network must gather what lies two steps
around it, as it would when it serves answers, while the MLP reads one row. (The outermost nodes then count the links they have in
that part, not in the whole graph: looking these up would cost as much.) Weights are as drawn: they do not matter. Contestants
alternate, and ratios are taken pair by pair.
"""

import argparse
import statistics
import time

import torch

from stillroom.models.nodes import GNN, HGNN, Tokenizer
from stillroom.models.small import mlp
from stillroom.parts.nodes import Nodes, nodes

FEATURES, CLASSES, LINKS = 64, 7, 8


def drawn(n, hyper):
    """A graph of random links, or a hypergraph of random vertices."""
    count = LINKS if hyper else LINKS // 2
    ends = torch.stack([torch.randint(n, (count * n,)), torch.arange(n).repeat_interleave(count)])
    edges = ends if hyper else torch.cat([ends, ends.flip(0)], 1)
    return nodes(Nodes(torch.randn(n, FEATURES), torch.zeros(n, dtype=torch.long), edges, hyper), hyper)


def lists(graph):
    """Who is connected with whom, to be looked up: of every node the columns of `edges` in which it stands, by both rows."""
    found = []
    for row in graph.edges:
        order = row.argsort(stable=True)
        found.append((order, torch.cat([row.new_zeros(1), torch.bincount(row).cumsum(0)])))
    return found


def columns(table, numbers):
    order, start = table
    return torch.cat([order[start[v] : start[v + 1]] for v in numbers.tolist()])


def around(graph, tables, v):
    """The part of the graph that two layers read to answer for node v, and its place there."""
    edges, inner = graph.edges, torch.tensor([v])
    for _ in range(2):
        if graph.hyper:
            met = edges[1][columns(tables[0], inner)].unique()
            part = columns(tables[1], met)
            inner = edges[0][part].unique()
        else:
            part = columns(tables[1], inner)
            inner = torch.cat([inner, edges[0][part]]).unique()
    ends = edges[:, part]
    first = torch.searchsorted(inner, ends[0])
    second = ends[1].unique(return_inverse=True)[1] if graph.hyper else torch.searchsorted(inner, ends[1])
    return graph.x[inner], torch.stack([first, second]), int(torch.searchsorted(inner, v))


def milliseconds(call, seconds=0.05):
    """CPU time of one call, over as many as fill `seconds`."""
    began, count = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        call()
        count += 1
    return 1e3 * spent / count


@torch.inference_mode()
def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=15)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--sizes", type=int, nargs="+", default=[2708, 20_000, 55_000])
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"CPU ms, {options.threads} thread(s), {options.pairs} pairs; ratio of network to MLP: median (quartiles)")
    for name, hyper, net, student in (
            ("vqgraph", False, Tokenizer(GNN((FEATURES, 64), open=True), GNN((64, CLASSES)), 64, codes=512),
             mlp(FEATURES, 128, CLASSES)),
            ("light_hgnn", True, HGNN((FEATURES, 32, CLASSES)), mlp(FEATURES, 128, CLASSES, norm=True))):
        net, student = net.eval(), student.eval()
        for size in options.sizes:
            graph = drawn(size, hyper)
            tables = lists(graph)

            def one(net=net, graph=graph, tables=tables, size=size):
                x, edges, place = around(graph, tables, int(torch.randint(size, ())))
                return net(x, edges)[place]

            questions = {"all nodes": (lambda n=net, g=graph: n(g.x, g.edges), lambda s=student, g=graph: s(g.x)),
                         "one node": (one, lambda s=student, g=graph, size=size: s(g.x[torch.randint(size, (1,))]))}
            for question, (slow, fast) in questions.items():
                slow(), fast()                   # warm-up
                times = [(milliseconds(slow), milliseconds(fast)) for _ in range(options.pairs)]
                low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
                a, b = (statistics.median(column) for column in zip(*times, strict=True))
                print(f"  {name:11} {size:6} nodes, {question:10} {a:10.3f} ms {b:9.3f} ms   "
                      f"{middle:6.1f}  ({low:.1f} … {high:.1f})", flush=True)


if __name__ == "__main__":
    main()
