"""The bilateral solver: its energy written out and minimised densely, its limits, numbers of TokenCut's own code; judges."""

import numpy as np
import pytest
import torch

from stillroom.errors import Refused
from stillroom.measure.segmentation import saliency
from stillroom.parts import bilateral
from stillroom.parts.cuts import bounds
from stillroom.zoo import arrays
from stillroom.zoo.shared import home


def picture(height=9, width=11, seed=0):
    """Two colours, the second in a block, with noise; and a target that is 1 somewhat beside the block."""
    draw = torch.Generator().manual_seed(seed)
    inside = torch.zeros(height, width)
    inside[2:7, 3:8] = 1
    image = torch.lerp(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.8, 0.4, 0.6]), inside[..., None]).movedim(-1, 0)
    target = torch.zeros(height, width)
    target[1:6, 4:9] = 1
    return (image + 0.02 * torch.randn(image.shape, generator=draw)).clamp(0, 1), target, inside


def naive(image, target, confidence, spatial, luma, chroma, smooth):
    """Equations 1, 5 to 8 with dense matrices and a loop over pairs of vertices; solved, not descended."""
    height, width = target.shape
    cells, owner = [], []
    for r in range(height):
        for c in range(width):
            red, green, blue = (255 * image[:, r, c].double()).tolist()
            y = 0.299 * red + 0.587 * green + 0.114 * blue
            u = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
            v = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
            cell = (int(r / spatial), int(c / spatial), int(y / luma), int(u / chroma), int(v / chroma))
            if cell not in cells:
                cells.append(cell)
            owner.append(cells.index(cell))
    n = len(cells)
    splat = np.zeros((n, height * width))
    splat[owner, np.arange(height * width)] = 1
    blur = np.zeros((n, n))
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            apart = sum(abs(p - q) for p, q in zip(a, b, strict=True))
            blur[i, j] = 10.0 if apart == 0 else float(apart == 1)
    scale = np.ones(n)
    for _ in range(10):
        scale = np.sqrt(scale * splat.sum(1) / (blur @ scale))
    mass = scale * (blur @ scale)
    share = splat / splat.sum(1, keepdims=True)
    affinity = share.T @ np.diag(scale) @ blur @ np.diag(scale) @ share                   # Ŵ, [pixels, pixels]
    c, t = (one.double().numpy().ravel() for one in (confidence, target))
    system = smooth * (np.diag(mass) - np.diag(scale) @ blur @ np.diag(scale)) + np.diag(splat @ c)
    return (splat.T @ np.linalg.solve(system, splat @ (c * t))).reshape(height, width), affinity


@pytest.mark.parametrize("spatial, luma, chroma, smooth", [(3, 16, 8, 4.0), (4, 30, 20, 256.0), (2, 8, 4, 0.1)])
def test_it_is_the_dense_solution_written_out(spatial, luma, chroma, smooth):
    image, target, _ = picture()
    confidence = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) + 0.1
    ours = bilateral.solve(image, target, confidence, spatial, luma, chroma, smooth, rounds=500)
    theirs, _ = naive(image, target, confidence, spatial, luma, chroma, smooth)
    assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_no_other_map_on_the_grid_has_less_energy():
    image, target, _ = picture()
    smooth, one = 4.0, torch.ones_like(target)
    found = bilateral.solve(image, target, one, 3, 16, 8, smooth, rounds=500)
    _, affinity = naive(image, target, one, 3, 16, 8, smooth)
    splat, _ = bilateral.grid(image, 3, 16, 8)

    def energy(x):
        x, t = x.numpy().ravel(), target.double().numpy().ravel()
        between = affinity * (x[:, None] - x) ** 2
        return smooth / 2 * between.sum() + ((x - t) ** 2).sum()

    draw = np.random.default_rng(0)
    for _ in range(20):
        other = found + torch.from_numpy(splat.T @ draw.normal(0, 0.05, splat.shape[0])).view_as(found)
        assert energy(other) > energy(found)


def test_every_pixel_has_one_vertex_and_neighbours_differ_by_one_step():
    image, _, _ = picture()
    splat, blur = bilateral.grid(image, 3, 16, 8)
    assert (splat.sum(0) == 1).all() and (splat.sum(1) > 0).all()
    assert abs(blur - blur.T).sum() == 0 and (blur.diagonal() == 10).all() and blur.max() == 10
    plain, lines = bilateral.grid(torch.full((3, 8, 12), 0.5), 4, 16, 8)       # 2 × 3 vertices of one colour
    assert plain.shape == (6, 96) and sorted(lines.sum(1).tolist()) == [12.0] * 4 + [13.0] * 2


def test_the_scaling_makes_every_vertex_weigh_what_it_gathers():
    splat, blur = bilateral.grid(picture()[0], 3, 16, 8)
    pixels = splat.sum(1)
    n, m = bilateral.bistochastic(blur, pixels, rounds=200)
    assert np.allclose(n * (blur @ n), m, rtol=1e-12) and np.allclose(m, pixels, rtol=1e-6)


def test_limits():
    image, target, inside = picture()
    same = bilateral.solve(image, torch.full_like(target, 0.3))
    assert torch.allclose(same, torch.full_like(same, 0.3), atol=1e-6)                      # nothing to smooth
    fine = bilateral.solve(image, target, spatial=0.5, luma=1, chroma=1, smooth=1e-9)       # every pixel a vertex of its own
    assert torch.allclose(fine, target.double(), atol=1e-6)
    flat = torch.full_like(image, 0.5)
    confidence = 0.1 + inside
    mean = bilateral.solve(flat, target, confidence, spatial=3, smooth=1e9, rounds=500)     # one colour, all smoothness
    assert torch.allclose(mean, ((confidence * target).sum() / confidence.sum()).double().expand_as(mean), atol=1e-4)
    cells = bilateral.solve(flat, target, spatial=3, smooth=0)                              # none: the mean of every cell
    assert torch.allclose(cells[3:6, 3:6], target[3:6, 3:6].mean().double().expand(3, 3))


def test_what_has_no_confidence_is_told_by_what_looks_like_it():
    image, _, inside = picture()
    known = torch.zeros_like(inside)
    known[0, :], known[4, 5] = 1, 1                              # the upper edge, and one pixel of the block
    found = bilateral.solve(image, inside, known, spatial=16, luma=16, chroma=8, smooth=1.0, rounds=500)
    assert torch.equal(found > 0.5, inside.bool())


def test_grey_is_three_equal_colours_and_other_channels_are_refused():
    grey, target = picture()[0][:1], picture()[1]
    assert torch.equal(bilateral.solve(grey, target), bilateral.solve(grey.repeat(3, 1, 1), target))
    with pytest.raises(Refused, match="4 channels"):
        bilateral.solve(grey.repeat(4, 1, 1), target)


def test_a_mask_beside_the_block_becomes_the_block():
    image, target, inside = picture(40, 50)
    inside, target = torch.zeros(40, 50), torch.zeros(40, 50)
    inside[10:30, 12:34], target[8:27, 15:37] = 1, 1
    image = torch.lerp(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.8, 0.4, 0.6]), inside[..., None]).movedim(-1, 0)
    found = bilateral.solve(image, target) > 0.5
    assert torch.equal(found, inside.bool())


def test_the_numbers_of_the_authors_solver():
    """unsupervised_saliency_detection/bilateral_solver.py of TokenCut, every fifth row and sixth column."""
    image, target = striped()
    found = bilateral.solve(image, target, torch.full_like(target, 0.999), spatial=5, luma=16, chroma=8)
    assert bilateral.grid(image, 5, 16, 8)[0].shape[0] == 220
    assert found[::5, ::6].flatten().tolist() == pytest.approx(
        [0.0, 0.07542, 0.01543, 0.0, 0.0851, 0.28344, 1.0, 0.0, 0.08428, 0.19526, 1.0, 0.0, 0.04344, 0.0, 0.0, 0.0], abs=2e-5)


def striped():
    """Whole numbers of 255, so that the authors' code reads the same."""
    down, right = torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij")
    image = torch.stack([(11 * down + 3 * right) % 251, (5 * down + 7 * right + 40) % 253, (2 * down + right * right) % 241])
    target = ((down > 4) & (down < 12) & (right > 6) & (right < 15)).float()
    return image / 255, target


# --- judges ----------------------------------------------------------------------------------------------------------

def test_judges_of_maps_by_counting():
    """Two images: one found whole with something beside it, one missed by its darker half."""
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[:, :, :2] = True
    maps = torch.tensor([[[0.9, 0.9, 0.6, 0.0], [0.9, 0.9, 0.0, 0.0]], [[0.8, 0.3, 0.0, 0.0], [0.8, 0.3, 0.0, 0.0]]])
    told = saliency(maps, masks)
    assert told.iou == pytest.approx(100 * (4 / 5 + 2 / 4) / 2) and told.accuracy == pytest.approx(100 * (7 / 8 + 6 / 8) / 2)
    best = [1.3 * p * r / (0.3 * p + r) for p, r in ((4 / 5, 1), (1, 1))]            # both at a threshold below 0.3
    assert told.fbeta == pytest.approx(100 * sum(best) / 2)


def test_the_numbers_of_the_authors_judges():
    """unsupervised_saliency_detection/metric.py of TokenCut, on maps drawn here."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 20, 30, generator=draw, dtype=torch.float64)
    masks = torch.rand(4, 20, 30, generator=draw) < 0.3
    assert saliency((maps + 0.4 * masks) / 1.4, masks) == pytest.approx((40.894218, 73.716444, 70.25), rel=1e-6)


def test_judges_of_maps_at_their_ends():
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 1, 1] = True
    assert saliency(mask.float(), mask) == (100, 100, 100)
    none = saliency(torch.zeros(1, 3, 3), mask)
    assert none.iou == 0 and none.fbeta == 0 and none.accuracy == pytest.approx(100 * 8 / 9)


# --- on photographs --------------------------------------------------------------------------------------------------

def test_around_real_objects_it_finds_their_outline():
    """Boxes on a table (mosd_rgbd, learn): the box around all of them, as target, against what it becomes."""
    try:
        found = arrays.read(home("mosd_rgbd") / "mosd_160x120.npz")
    except Refused as refused:
        pytest.skip(str(refused))
    masks = torch.from_numpy(found["learn_object"][::5] >= 2)
    images = torch.from_numpy(found["learn_rgb"][::5]).movedim(-1, 1) / 255
    boxes = torch.zeros(masks.shape)
    for box, mask in zip(boxes, masks, strict=True):
        top, left, tall, wide = bounds(mask).tolist()
        box[top : top + tall, left : left + wide] = 1
    before = saliency(boxes, masks)
    after = saliency([bilateral.solve(x, box) for x, box in zip(images, boxes, strict=True)], masks)
    assert after.iou > before.iou + 5 and after.fbeta > before.fbeta and after.accuracy > before.accuracy
