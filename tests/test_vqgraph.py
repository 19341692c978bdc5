"""VQGraph: tokens of neighbourhoods, a teacher that speaks in them, a student that reads features alone; GLNN without them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data

from stillroom import Run
from stillroom.arenas.citations import citations, drawn
from stillroom.models.nodes import GNN, Tokenizer
from stillroom.models.small import mlp
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.nodes import Nodes
from stillroom.recipes.graph.vqgraph import VQGraph, scaled_error


def cast(seed=0, dropout=0.0):
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(40, (2, 90), generator=draw)
    graph = Nodes(torch.randn(40, 6, generator=draw), torch.randint(3, (40,), generator=draw), torch.cat([ends, ends.flip(0)], 1))
    torch.manual_seed(seed)
    teacher = Tokenizer(GNN((6, 8), open=True, dropout=dropout), GNN((8, 3), dropout=dropout), 8, codes=16)
    return {"student": mlp(6, 10, 3, dropout=dropout), "teacher": teacher, "data": graph.known(torch.arange(12))}


def weights(net):
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


class Watched(Run):
    def __init__(self):
        super().__init__()
        self.terms = []

    def keep(self, **things):
        self.adapter = copy.deepcopy(things.get("to_codes"))
        super().keep(**things)

    def update(self, opt, **terms):
        self.terms.append({k: v.item() for k, v in terms.items()})
        return super().update(opt, **terms)


def test_the_first_stage_descends_labels_commitment_and_both_reconstructions():
    actors, run = cast(), Watched()
    before = copy.deepcopy(actors["teacher"])
    VQGraph(steps_teacher=1, steps=0, gamma=2.0)(run, **actors)
    graph, (said,) = actors["data"], run.terms
    h = before.embed(graph.x, graph.edges)
    run._reseed("teacher", 0, 0)
    before.book.begin(h)
    codes = before.book.codes.double()
    unit = h.double() / h.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    near = (unit @ codes.T).argmax(1)
    assert said["commit"] == pytest.approx(0.25 * (unit - codes[near]).square().mean().item(), rel=1e-4)
    found = codes[near].float()
    rebuilt = before.to_nodes(found)
    cosine = (h * rebuilt).sum(1) / h.norm(dim=1) / rebuilt.norm(dim=1)
    assert said["node"] == pytest.approx(0.001 * (1 - cosine).square().mean().item(), rel=1e-4)
    logits = before.head(before.to_edges(found), graph.edges)
    assert said["labels"] == pytest.approx(F.cross_entropy(logits[:12], graph.targets[:12]).item(), rel=1e-4)
    assert 0 < said["edge"] < 0.03


def test_the_loss_of_rebuilt_embeddings_ends_at_the_same_direction():
    h = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert scaled_error(h, 3 * h, 1.0) < 1e-6 and scaled_error(h, -h, 3.0) == pytest.approx(8.0, rel=1e-5)


def test_without_codes_it_is_glnn_step_by_step():
    """KL of the teacher's classes on every node, Adam, nothing else (Zhang et al. 2022, eq. 1, λ = 0)."""
    actors = cast()
    hand = copy.deepcopy(actors["student"])
    method = VQGraph(alpha=0.0, steps_teacher=5, steps=8, batch=40)
    made = method(Run(), **actors)
    graph, teacher = actors["data"], actors["teacher"].eval()
    with torch.no_grad():
        taught = teacher(graph.x, graph.edges)
    opt = torch.optim.Adam(hand.parameters(), lr=0.01, weight_decay=5e-3)
    for _ in range(8):                                          # a batch is all nodes: their order does not matter
        opt.zero_grad()
        p = taught.softmax(1)
        (p * (p.log() - hand(graph.x).log_softmax(1))).sum(1).mean().backward()
        opt.step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(made).values(), weights(hand).values(), strict=True))


def test_the_token_loss_is_the_kl_of_soft_assignments_on_one_metric():
    actors, run = cast(), Watched()
    student = copy.deepcopy(actors["student"])
    VQGraph(steps_teacher=3, steps=1, batch=40, alpha=2.0, temperature=0.5)(run, **actors)
    graph, teacher = actors["data"], actors["teacher"].eval()
    codes = teacher.book.codes.double()

    def soft(h):
        h = h.double()
        return (h / h.norm(dim=1, keepdim=True).clamp(min=1e-12) @ codes.T / 0.5).softmax(1)

    with torch.no_grad():
        p = soft(teacher.embed(graph.x, graph.edges))
        q = soft(run.adapter(student[:-1](graph.x)))
        expected = 2.0 * 0.5**2 * (p * (p.log() - q.log())).sum(1).mean()
    assert run.terms[-1]["tokens"] == pytest.approx(expected.item(), rel=1e-4)
    assert run.terms[-1]["labels"] == 0


def test_labels_are_read_where_lam_says_so_and_only_the_known_ones():
    def made(spoil, lam):
        actors = cast()
        graph = actors["data"]
        if spoil:
            graph.targets[:12] = (graph.targets[:12] + 1) % 3
        teacher = copy.deepcopy(actors["teacher"])
        VQGraph(steps_teacher=3, steps=0)(Run(), **cast() | {"teacher": teacher})
        return weights(VQGraph(steps_teacher=0, steps=3, lam=lam)(Run(), **actors | {"teacher": teacher}))
    assert same(made(False, 0.0), made(True, 0.0)) and not same(made(False, 0.5), made(True, 0.5))


def test_a_trained_teacher_is_taken_as_it_is():
    actors = cast()
    before = weights(actors["teacher"])
    VQGraph(steps_teacher=0, steps=3)(Run(), **actors)
    assert same(before, weights(actors["teacher"]))
    VQGraph(steps_teacher=2, steps=3)(Run(), **actors)
    assert not same(before, weights(actors["teacher"]))


def test_the_student_reads_features_alone_and_pytorch_geometric_says_the_same():
    actors = cast()
    made = VQGraph(steps_teacher=3, steps=3)(Run(), **actors)
    graph = actors["data"]
    out = made(graph.x)
    changed = graph.x.clone()
    changed[1:] += 1
    assert torch.equal(made(changed)[0], out[0])
    data = Data(x=graph.x, y=graph.targets, edge_index=graph.edges, train_mask=graph.targets != UNLABELLED)
    assert same(weights(made), weights(VQGraph(steps_teacher=3, steps=3)(Run(), **cast() | {"data": data})))


def test_the_codebook_is_used_and_logged():
    run = Run()
    VQGraph(steps_teacher=5, steps=0)(run, **cast())
    seen = [line["perplexity"] for line in run.history if "perplexity" in line]
    assert seen and all(1 < p <= 16 for p in seen)


def test_without_the_shared_data_drawn_papers_stand_in():
    graph = drawn()
    same_field = (graph.targets[graph.edges[0]] == graph.targets[graph.edges[1]]).float().mean()
    assert len(graph) == 2000 and 0.75 < same_field < 0.9 and graph.x.sum(1).max() <= 18
    assert torch.equal(graph.edges.flip(0).unique(dim=1), graph.edges)


@pytest.mark.slow
def test_papers_that_the_graph_never_held_are_told_as_well():
    """The inductive protocol: a fifth of the test nodes is neither taught on nor linked."""
    from stillroom.recipes.graph.vqgraph import trial

    hidden = citations(0, unseen=0.2)
    assert len(hidden.actors["data"]) < len(citations(0).actors["data"])
    made = trial(0)[0](Run(), **hidden.actors)
    assert hidden.accuracy(made) > hidden.accuracy(hidden.alone()) + 5
