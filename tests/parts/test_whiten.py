"""ZCA whitening: what comes out is white, the axes stay where they are, and it can be undone."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.utils.data import TensorDataset

from stillroom.parts import whiten


@pytest.fixture
def images():
    """Correlated, of full rank: [500, 3, 2, 2]."""
    torch.manual_seed(0)
    return (torch.randn(500, 12).double() @ torch.randn(12, 12).double() + 3).view(500, 3, 2, 2)


def test_without_eps_the_covariance_is_the_identity_and_the_mean_zero(images):
    white = whiten.apply(images, whiten.zca(images, 0.0)).flatten(1)
    assert torch.allclose(white.T.cov(), torch.eye(12).double(), atol=1e-9) and white.mean(0).abs().max() < 1e-9


def test_eps_leaves_each_axis_with_its_share_of_variance(images):
    """S/(S + ε) along the axes of the covariance U S Uᵀ: one where it was large, nothing where it was small."""
    variance, axes = torch.linalg.eigh(images.flatten(1).T.cov())
    got = whiten.apply(images, whiten.zca(images, 0.1)).flatten(1).T.cov()
    assert torch.allclose(axes.T @ got @ axes, torch.diag(variance / (variance + 0.1)), atol=1e-9)


def test_it_is_sklearn_s_whitened_pca_up_to_a_rotation(images):
    flat, white = images.flatten(1).numpy(), whiten.apply(images, whiten.zca(images, 0.0)).flatten(1)
    pca = PCA(whiten=True).fit(flat)
    theirs = torch.from_numpy(pca.transform(flat))
    assert torch.allclose(white @ white.T, theirs @ theirs.T, atol=1e-9)         # no rotation is seen in inner products
    assert torch.allclose(theirs @ torch.from_numpy(pca.components_), white, atol=1e-9)      # and it is that back to pixels


def test_the_matrix_is_symmetric_and_positive_so_that_no_axis_is_turned(images):
    found = whiten.zca(images, 0.1)
    assert torch.allclose(found.matrix, found.matrix.T, atol=1e-12)
    assert torch.linalg.eigvalsh(found.matrix).min() > 0


def test_the_inverse_gives_the_images_back():
    """Digits, float32, some of whose pixels never vary."""
    x = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    found = whiten.zca(x)
    back = whiten.invert(whiten.apply(x, found), found)
    assert found.matrix.dtype == torch.float32 and back.shape == x.shape and (back - x).abs().max() < 1e-5


def test_what_was_found_in_some_images_is_applied_to_others_and_parts_add_up(images):
    found = whiten.zca(images, 0.1)
    assert torch.allclose(whiten.apply(images[:7], found), whiten.apply(images, found)[:7], atol=1e-12)
    many = images.repeat(10, 1, 1, 1)                                            # more than one part of the sum
    again = whiten.zca(many, 0.1)
    covariance = many.flatten(1).T.cov()
    assert torch.allclose(again.matrix @ again.matrix @ (covariance + 0.1 * torch.eye(12).double()), torch.eye(12).double(),
                          atol=1e-9)


def test_a_data_set_keeps_its_labels(images):
    data = whiten.whitened(TensorDataset(images, torch.arange(500)), 0.1)
    assert torch.equal(data.tensors[1], torch.arange(500))
    assert torch.equal(data.tensors[0], whiten.apply(images, whiten.zca(images, 0.1)))
