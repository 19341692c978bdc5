"""D2DGN: what stays is learnt from a network that knows, what goes from one that never did; judges of forgetting."""

import copy

import pytest
import torch
from torch_geometric.data import Data

from stillroom import Run
from stillroom.errors import Refused
from stillroom.measure.unlearning import auc, members, membership_ratio, score_distance
from stillroom.models.nodes import GNN
from stillroom.parts.losses import kl
from stillroom.parts.nodes import Nodes, score, unlinked, without
from stillroom.recipes.graph.d2dgn import D2DGN, of_classes, of_edges, of_features, touched


def cast(seed=0, what="edges"):
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(24, (2, 60), generator=draw)
    ends = torch.cat([ends, ends.flip(0)], 1)[:, (ends[0] != ends[1]).repeat(2)].unique(dim=1)
    graph = Nodes(torch.randn(24, 5, generator=draw), torch.randint(3, (24,), generator=draw), ends)
    torch.manual_seed(seed)
    nets = {name: GNN((5, 8, 3), dropout=0.0) for name in ("student", "teacher", "destroyer")}
    deleted = ends[:, ends[0] < ends[1]][:, :9] if what == "edges" else torch.tensor([2, 7, 11])
    return nets | {"data": graph, "deleted": deleted}


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def close(a, b, atol=1e-5):
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a, b, strict=True))


# --- what goes and what stays ----------------------------------------------------------------------------------------

def test_deleted_edges_go_in_both_directions_and_nothing_else():
    graph, deleted = cast()["data"], cast()["deleted"]
    for given in (deleted, deleted.flip(0), torch.cat([deleted, deleted.flip(0)], 1)):
        kept, gone = without(graph.edges, given, 24)
        pairs = {frozenset(p) for p in deleted.T.tolist()}
        assert {frozenset(p) for p in gone.T.tolist()} == pairs and gone.shape[1] == 18
        assert not pairs & {frozenset(p) for p in kept.T.tolist()} and kept.shape[1] == graph.edges.shape[1] - 18


def test_deleted_nodes_take_every_edge_of_theirs_along():
    graph, deleted = cast(what="nodes")["data"], torch.tensor([2, 7, 11])
    kept, gone = without(graph.edges, deleted, 24)
    assert not torch.isin(kept, deleted).any() and torch.isin(gone, deleted).any(0).all()
    assert kept.shape[1] + gone.shape[1] == graph.edges.shape[1]
    stay, go = touched(kept, gone, deleted, 24)
    assert go.tolist() == [2, 7, 11] and sorted([*stay.tolist(), 2, 7, 11]) == list(range(24))


def test_an_end_of_a_deleted_edge_stays_while_it_has_others():
    edges = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    deleted = torch.tensor([[0], [1]])
    stay, go = touched(*without(edges, deleted, 6), deleted, 6)
    assert go.tolist() == [0, 1] and stay.tolist() == [1, 2, 3, 4, 5]        # 0 has lost all it had; 5 never had an edge


def test_drawn_pairs_have_no_edge():
    graph = cast()["data"]
    pairs = unlinked(graph.edges, 24, 3000)
    there = {tuple(p) for p in graph.edges.T.tolist()} | {(v, v) for v in range(24)}
    assert {tuple(p) for p in pairs.T.tolist()} == {(u, v) for u in range(24) for v in range(24)} - there


# --- comparisons -----------------------------------------------------------------------------------------------------

def test_the_kl_of_edges_is_its_closed_form():
    z, t = (torch.randn(24, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    pairs, total = torch.randint(24, (2, 50), generator=torch.Generator().manual_seed(2)), 0.0
    for u, v in pairs.T.tolist():
        q, p = (torch.sigmoid(a[u].double() @ a[v].double()).clamp(1e-5, 1 - 1e-5) for a in (z, t))
        total += p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    assert of_edges(z, t, pairs) == pytest.approx((total / 50).item(), rel=1e-4)
    assert of_edges(100 * z, -100 * t, pairs).isfinite()
    own = t.clone().requires_grad_()
    loss = of_edges(own, t, pairs)
    loss.backward()
    assert loss.abs() < 1e-7 and own.grad.abs().max() < 1e-6                 # who is its preserver has nothing to learn
    rows = torch.tensor([3, 5])
    assert of_classes(z, t, rows) == kl(z[rows], t[rows])
    assert of_features([z, t], [t, t], rows) == pytest.approx((z - t)[rows].square().mean().item(), rel=1e-6)


@pytest.mark.parametrize("what", ["edges", "nodes"])
@pytest.mark.parametrize("compares", ["edges", "classes", "features"])
def test_it_is_the_paper_step_by_step(compares, what):
    actors = cast(what=what)
    hand = copy.deepcopy(actors["student"])
    made = D2DGN(compares=compares, steps=4, alpha=0.7, negatives=0.0)(Run(), **actors)
    graph, deleted = actors["data"], actors["deleted"]
    x, (kept, gone) = graph.x, without(graph.edges, deleted, 24)
    knows, never = actors["teacher"], actors["destroyer"]
    if compares == "edges":
        go, stay = gone, kept
    else:
        go = deleted if what == "nodes" else deleted.flatten().unique()
        stay = torch.tensor([v for v in range(24) if v not in go or v in kept])
    opt = torch.optim.Adam(hand.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(4):
        opt.zero_grad()
        ours, up, down = hand.each(x, kept), knows.each(x, graph.edges), never.each(x, kept)

        def apart(taught, items, ours=ours):
            taught = [t.detach() for t in taught]
            if compares == "features":
                return sum((a[items] - b[items]).square().mean() for a, b in zip(ours, taught))
            if compares == "classes":
                p = taught[-1][items].softmax(1)
                return (p * (p.log() - ours[-1][items].log_softmax(1))).sum(1).mean()
            q, p = (torch.sigmoid((z[items[0]] * z[items[1]]).sum(1)) for z in (ours[-1], taught[-1]))
            return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        (0.7 * apart(up, stay) + 0.3 * apart(down, go)).backward()
        opt.step()
    assert close(weights(made), weights(hand), 1e-4)


def test_messages_never_pass_a_deleted_edge():
    """What lies beyond deleted edges may change as it will: a node that lost all its edges is told by itself."""
    actors = cast(what="nodes")
    made = D2DGN(steps=3)(Run(), **actors)
    kept, _ = without(actors["data"].edges, actors["deleted"], 24)
    x = actors["data"].x
    changed = x.clone()
    changed[2] += 5
    others = torch.arange(24) != 2
    assert torch.equal(made(x, kept)[others], made(changed, kept)[others])
    full = actors["data"].edges                                 # over the deleted edges its features would reach others
    assert not torch.equal(made(x, full)[others], made(changed, full)[others])


def test_with_all_weight_on_what_stays_the_destroyer_says_nothing():
    a, b = cast(), cast()
    with torch.no_grad():
        for p in b["destroyer"].parameters():
            p.add_(1)
    whole, less = ((D2DGN(steps=3, alpha=alpha)(Run(), **copy.deepcopy(actors))) for alpha in (1.0,) for actors in (a, b))
    assert close(weights(whole), weights(less))
    whole, less = ((D2DGN(steps=3, alpha=0.5)(Run(), **copy.deepcopy(actors))) for actors in (a, b))
    assert not close(weights(whole), weights(less))


def test_teachers_stay_as_they_are_and_pytorch_geometric_says_the_same():
    actors = cast()
    before = weights(actors["teacher"]) + weights(actors["destroyer"])
    made = D2DGN(steps=3)(Run(), **actors)
    assert close(before, weights(actors["teacher"]) + weights(actors["destroyer"]), 0)
    graph = actors["data"]
    data = Data(x=graph.x, y=graph.targets, edge_index=graph.edges)
    assert close(weights(made), weights(D2DGN(steps=3)(Run(), **cast() | {"data": data})), 0)


def test_bad_requests_are_refused():
    with pytest.raises(Refused, match="compares='edge'"):
        D2DGN(compares="edge", steps=1)(Run(), **cast())
    with pytest.raises(Refused, match="nothing that is to be deleted"):
        D2DGN(steps=1)(Run(), **cast() | {"deleted": torch.zeros(2, 0, dtype=torch.long)})


# --- judges ----------------------------------------------------------------------------------------------------------

def test_the_area_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    draw = torch.Generator().manual_seed(0)
    above, below = (torch.randn(40, generator=draw) + 0.5).round(decimals=1), torch.randn(70, generator=draw).round(decimals=1)
    expected = roc_auc_score([1] * 40 + [0] * 70, torch.cat([above, below]).numpy())
    assert auc(above, below) == pytest.approx(100 * expected, abs=1e-9)
    assert auc(torch.ones(3), torch.ones(4)) == 50 and auc(torch.tensor([2.0]), torch.tensor([1.0])) == 100


def test_an_attacker_with_one_threshold():
    known, strange = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([0.1, 0.3, 0.4, 0.75])
    assert members(torch.tensor([0.95, 0.71, 0.69, 0.0]), known, strange) == 50       # the best threshold is 0.7
    assert members(known, known, torch.zeros(4)) == 100
    assert membership_ratio(80, 40, 10) == 2 and membership_ratio(80, 0, 10) == 8     # never is at most once in ten
    assert score_distance(torch.tensor([0.2, 0.9]), torch.tensor([0.4, 0.5])) == pytest.approx(0.3)


def test_scores_are_products_of_embeddings():
    z = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert score(z, torch.tensor([[0, 0], [1, 0]])).tolist() == pytest.approx(torch.sigmoid(torch.tensor([1.0, 5.0])).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["near", "nodes"])
def test_links_near_test_links_and_whole_nodes_are_forgotten_as_well(where):
    from stillroom.arenas.unlearning import unlearning

    ground = unlearning(0, where)
    made = D2DGN(alpha=0.9, steps=60)(Run(), **ground.actors)
    assert ground.forgotten(made) > ground.forgotten(ground.original()) + 10, ground.forgotten(made)
    assert ground.held(made) > ground.held(ground.original()) - 8, ground.held(made)
