"""DHO: two heads, what reaches which of them, and the mixture that is read at the end."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from stillroom import arenas
from stillroom.arenas.single import Single
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.models.small import cnn, mlp
from stillroom.parts import losses
from stillroom.parts.heads import TwoHeads, choose_mix
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.pairs import by_label, pairs
from stillroom.parts.places import classifier
from stillroom.recipes.classification.dho import DHO
from stillroom.run import Run


def conflict(first, second, params):
    """Cosine between the gradients of two scalar losses in the same parameters: below 0 they pull against each other."""
    shared = [p for p in params if p.requires_grad]
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)])
            for loss in (first, second))
    return F.cosine_similarity(a, b, dim=0)


@pytest.fixture
def ground():
    torch.manual_seed(0)
    x, y = torch.rand(24, 1, 8, 8), torch.randint(0, 10, (24,))
    return mlp(hidden=16), cnn(width=4), TensorDataset(x, torch.where(torch.arange(24) % 3 == 0, y, UNLABELLED))


def two_heads(alpha=0.5, beta=0.5):
    torch.manual_seed(1)
    both = TwoHeads(mlp(hidden=16), torch.rand(1, 1, 8, 8), alpha, beta)
    nn.init.normal_(both.teacher.weight)
    return both


# --- the two heads -------------------------------------------------------------------------------------------------------

def test_both_heads_begin_as_the_students_own_layer_on_its_own_feature():
    net = mlp(hidden=16)
    x = torch.rand(5, 1, 8, 8)
    wanted = net(x)
    both = TwoHeads(net, x)
    first, second = both.heads(x)
    assert torch.equal(first, wanted) and torch.equal(second, wanted) and both.labels is not both.teacher
    linear = TwoHeads(nn.Linear(4, 3), torch.rand(1, 4))                 # a student that is nothing but its classifier
    assert linear(torch.rand(2, 4)).shape == (2, 3)


def test_the_mixture_is_of_probabilities_and_sums_to_one():
    x = torch.rand(7, 1, 8, 8)
    for alpha, beta in product([0.0, 0.05, 0.5, 1.0], [0.5, 1.0, 4.0]):
        both = two_heads(alpha, beta)
        first, second = both.heads(x)
        wanted = alpha * first.double().softmax(1) + (1 - alpha) * (second.double() / beta).softmax(1)
        assert torch.allclose(both(x).double().exp(), wanted, atol=1e-6)
        assert torch.allclose(both(x).exp().sum(1), torch.ones(7), atol=1e-5)
        assert torch.allclose(both(x).softmax(1).double(), wanted, atol=1e-6), "it reads as logits of the mixture"


def test_the_ends_of_the_mixture_are_the_heads_and_equal_heads_do_not_care():
    x = torch.rand(7, 1, 8, 8)
    first, second = two_heads().heads(x)
    assert torch.allclose(two_heads(1.0, 0.7)(x), first.log_softmax(1), atol=1e-6)
    assert torch.allclose(two_heads(0.0, 1.0)(x), second.log_softmax(1), atol=1e-6)
    tied = [TwoHeads(copy.deepcopy(net), x, alpha, 1.0)(x) for net in [mlp()] for alpha in (0.0, 0.3, 1.0)]
    assert torch.allclose(tied[0], tied[1], atol=1e-6) and torch.allclose(tied[0], tied[2], atol=1e-6)


def test_each_loss_reaches_its_own_head_and_the_shared_feature():
    both, x = two_heads(), torch.rand(6, 1, 8, 8)
    first, second = both.heads(x)
    F.cross_entropy(first, torch.arange(6)).backward(retain_graph=True)
    assert both.teacher.weight.grad is None and both.labels.weight.grad.any() and both.body[1].weight.grad.any()
    both.zero_grad()
    losses.kl(second, torch.randn(6, 10), 2.0).backward()
    assert both.labels.weight.grad is None and both.teacher.weight.grad.any() and both.body[1].weight.grad.any()


def test_the_classifier_is_found_where_it_is_and_refused_where_there_is_none():
    assert classifier(mlp(), torch.rand(2, 1, 8, 8)) == "3"
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.answer, self.trunk, self.unused = nn.Linear(4, 3), nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.answer(self.trunk(x).relu())

    assert classifier(Named(), torch.rand(2, 8)) == "answer"
    with pytest.raises(Refused, match="linear layer"):
        classifier(nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)), torch.rand(2, 8))


def test_finding_it_leaves_modes_and_statistics_alone():
    net = cnn(width=4).train()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    classifier(net, torch.rand(2, 1, 8, 8))
    assert net.training and not net[2].training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())


# --- α and β ---------------------------------------------------------------------------------------------------------------

def test_the_mix_is_the_best_of_the_grid_on_validation_samples():
    both = two_heads()
    x, y = torch.rand(60, 1, 8, 8), torch.randint(0, 10, (60,))
    first, second = both.heads(x)
    found = choose_mix(both, TensorDataset(x, y))
    def right(alpha, beta):
        p = alpha * first.softmax(1) + (1 - alpha) * (second / beta).softmax(1)
        return (p.argmax(1) == y).float().mean().item()

    grid = list(product([i / 20 for i in range(21)], [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0]))
    assert right(*found) == pytest.approx(max(right(*pair) for pair in grid), abs=1e-6)
    assert torch.allclose(both.mix, torch.tensor(found))
    assert accuracy(both, TensorDataset(x, y)) == pytest.approx(100 * right(*found), abs=1e-4)


# --- labelled and unlabelled together ----------------------------------------------------------------------------------

class Listed(Dataset):
    """The same samples, not as tensors."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i]


@pytest.mark.parametrize("kind", [lambda d: d, Listed])
def test_a_pass_holds_every_unlabelled_sample_once_and_the_labelled_ones_equally_often(ground, kind):
    data = kind(ground[2])
    labelled, unlabelled = by_label(data)
    assert len(labelled) == 8 and len(unlabelled) == 16
    both = pairs(data)
    assert len(both) == 16
    (x, y, x_u), = batches(both, 16, start=0, count=1, seed=(0,))
    all_x, all_y = ground[2].tensors
    assert {tuple(v.flatten().tolist()) for v in x_u} == {tuple(v.flatten().tolist()) for v in all_x[all_y == UNLABELLED]}
    times = [sum(torch.equal(v, w) for v in x) for w in all_x[all_y != UNLABELLED]]
    assert times == [2] * 8 and (y != UNLABELLED).all()
    assert all(torch.equal(all_y[(all_x == v).flatten(1).all(1)][0], c) for v, c in zip(x, y)), "each image with its own label"


def test_more_labels_than_none_all_labels_and_no_label():
    x = torch.rand(10, 4)
    both = pairs(TensorDataset(x, torch.tensor([1, 2, 3, 4, 5, 6, 7, UNLABELLED, UNLABELLED, UNLABELLED])))
    assert len(both) == 7 and torch.equal(both[4][2], x[8])
    everything = pairs(TensorDataset(x, torch.arange(10)))
    assert torch.equal(everything.tensors[0], everything.tensors[2])
    with pytest.raises(Refused, match="no sample of the data has a label"):
        pairs(TensorDataset(x, torch.full((10,), UNLABELLED)))


# --- the step --------------------------------------------------------------------------------------------------------------

def test_the_loss_is_the_papers(ground):
    student, teacher, data = ground
    run = Run()
    DHO(steps=1, batch=16, share=0.3)(run, student=copy.deepcopy(student), teacher=teacher, data=data)
    x, y, x_u = pairs(data).tensors
    z, z_u, t, t_u = student(x), student(x_u), teacher.eval()(x), teacher(x_u)

    def soft(a, b):                                                      # T²·KL of softened probabilities, T = 2
        p, q = (a.double() / 2).softmax(1), (b.double() / 2).softmax(1)
        return 4 * (q * (q / p).log()).sum(1).mean().item()

    assert run.history[0]["labels"] == pytest.approx(0.3 * F.cross_entropy(z, y).item(), rel=1e-5)
    assert run.history[0]["soft"] == pytest.approx(0.7 * (soft(z, t) + soft(z_u, t_u)), rel=1e-4)


def test_two_heads_pull_against_each_other_less_than_one(ground):
    """The paper's argument: on the shared weights, the gradients of both losses are less often opposed with two heads."""
    cast = arenas.digits("weak", 0)
    made = DHO(lr=0.01, steps=60)(Run(), **cast.actors)
    one = Single(lr=0.01, steps=60)(Run(), **(actors := arenas.digits("weak", 0).actors))
    x, y, x_u = (t[:200] for t in pairs(actors["data"]).tensors)
    taught = actors["teacher"](x_u).detach()
    heads = made.heads(x)[0], made.heads(x_u)[1]
    dual = conflict(F.cross_entropy(heads[0], y), losses.kl(heads[1], taught, 2.0), made.body.parameters())
    single = conflict(F.cross_entropy(one(x), y), losses.kl(one(x_u), taught, 2.0), one[1].parameters())
    assert dual > single


def test_the_cosine_of_gradients():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    idle = torch.zeros(3, requires_grad=True)
    assert conflict(w[0] * 3, w[0] * 5, [w, idle]).item() == pytest.approx(1)
    assert conflict(w[0], -w[0], [w]).item() == pytest.approx(-1)
    assert conflict(w[0], w[1], [w]).item() == 0
    assert conflict(w[0], w.sum(), [w]).item() == pytest.approx(0.5**0.5)
