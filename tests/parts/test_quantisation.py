"""Product quantisation against its definition: every codeword tried in float64, limits and gradients."""

import itertools

import pytest
import torch

from stillroom.errors import Refused
from stillroom.parts.clusters import kmeans, nearest
from stillroom.parts.quantisation import chosen, decode, encode, joined, pieces, rotation


def books(subspaces=3, words=4, width=2, seed=0):
    return torch.randn(subspaces, words, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(count=20, dim=6, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_code_is_the_best_of_all_that_could_be():
    x, b = vectors(), books()
    everything = [torch.tensor(code) for code in itertools.product(range(4), repeat=3)]
    whole = torch.stack([torch.cat([b[m, code[m]] for m in range(3)]) for code in everything])
    best = torch.cdist(x, whole).argmin(1)
    assert torch.equal(encode(x, b), torch.stack(everything)[best])
    assert torch.equal(decode(encode(x, b), b), whole[best])
    assert torch.equal(joined(pieces(x, 3)), x)


@pytest.mark.parametrize("sharp", [0.0, 1.0, 50.0])
def test_what_is_chosen_is_the_hard_codeword_bit_for_bit_whatever_the_softmax(sharp):
    x, b = vectors().float(), books().float()
    assert torch.equal(chosen(x, b, sharp), decode(encode(x, b), b))


def test_its_gradient_is_that_of_one_hot_plus_softmax_without_softmax_detached():
    """The estimator as the paper writes it, h + a − sg(a) times the codebook, in loops over subspaces."""
    def naive(x, b, sharp):
        out = []
        for m in range(len(b)):
            own = x[:, 2 * m : 2 * m + 2]
            a = (-sharp * (own[:, None] - b[m]).square().sum(-1)).softmax(-1)
            h = torch.nn.functional.one_hot(a.argmax(-1), b.shape[1]).to(a)
            out.append((h - a.detach() + a) @ b[m])
        return torch.cat(out, 1)

    weight, found = vectors(seed=2), []
    for how in (naive, chosen):
        x, b = vectors().requires_grad_(), books().requires_grad_()
        (how(x, b, 1.7) * weight).sum().backward()
        found.append((x.grad, b.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert found[0][0].abs().max() > 0.1


def test_with_sharp_0_only_the_chosen_codewords_have_a_gradient():
    x, b = vectors().requires_grad_(), books().requires_grad_()
    chosen(x, b, 0.0).sum().backward()
    used = torch.zeros(3, 4)
    for code in encode(x.detach(), b.detach()):
        used[range(3), code] += 1
    assert x.grad.abs().max() < 1e-12
    assert torch.allclose(b.grad, used.double()[..., None].expand_as(b))


def test_the_code_of_one_codeword_says_nothing_and_as_many_as_vectors_say_all():
    x = vectors(16, 6)
    assert len(decode(encode(x, books(words=1)), books(words=1)).unique(dim=0)) == 1
    every = pieces(x, 3)
    assert torch.allclose(decode(encode(x, every), every), x)


def test_kmeans_ends_where_every_centre_is_the_mean_of_its_points():
    torch.manual_seed(0)
    x = vectors(200, 2)
    centres = kmeans(x, 7, 200)
    own = nearest(x, centres)[1]
    assert torch.allclose(own, torch.cdist(x, centres).argmin(1).to(own))
    for c in range(7):
        assert torch.allclose(centres[c], x[own == c].mean(0))
    assert torch.allclose(nearest(x, centres)[0], torch.cdist(x, centres).square().min(1).values)


def test_a_centre_without_points_finds_new_ones_and_sets_are_apart():
    x = torch.tensor([[[0.0], [0.1], [9.0], [9.1], [20.0], [20.1]], [[5.0], [5.2], [0.0], [0.2], [-7.0], [-7.2]]])
    lost = torch.tensor([[[0.0], [9.0], [600.0]], [[5.0], [90.0], [0.0]]])
    found = kmeans(x, 3, 10, lost).squeeze(-1).sort(1).values
    assert torch.allclose(found, torch.tensor([[0.05, 9.05, 20.05], [-7.1, 0.1, 5.1]]), atol=1e-5)
    far = kmeans(x, 3, 10, torch.tensor([[[0.0], [500.0], [600.0]], [[5.0], [90.0], [80.0]]]))
    assert all(len(own.unique()) == 3 for own in nearest(x, far)[1])
    with pytest.raises(Refused, match="6 points cannot have 7 centres"):
        kmeans(x, 7)


def test_the_rotation_is_orthogonal_and_helps_where_axes_are_mixed():
    torch.manual_seed(0)
    spread = vectors(400, 8).float() * torch.tensor([4.0, 3, 2, 1, 0.1, 0.1, 0.1, 0.1])
    x = spread @ torch.linalg.qr(torch.randn(8, 8))[0]
    turn = rotation(x, 4, 8)
    assert torch.allclose(turn.T @ turn, torch.eye(8), atol=1e-5)
    assert torch.allclose((x @ turn) @ (x @ turn).T, x @ x.T, atol=1e-3)

    def loss(y):
        b = kmeans(pieces(y, 4), 8)
        return (decode(encode(y, b), b) - y).square().sum(1).mean()

    assert loss(x @ turn) < 0.8 * loss(x)
    with pytest.raises(Refused, match="8 numbers cannot be cut into 3"):
        rotation(x, 3, 8)
