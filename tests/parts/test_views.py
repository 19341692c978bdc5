"""Views: identity parameters give the image back; known parameters give what the naive formula gives; ranges and counts hold."""

import colorsys

import pytest
import torch
import torch.nn.functional as F

from stillroom.parts import views


@pytest.fixture
def x():
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def box(*sides):
    return torch.tensor([sides], dtype=torch.float32)


# --- geometry --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [(12, 16), (5, 4), (24, 40)])
def test_a_box_of_whole_pixels_is_cropped_and_interpolated(x, size):
    for top, left, h, w in ((0, 0, 12, 16), (2, 3, 7, 11), (11, 0, 1, 16)):
        want = F.interpolate(x[..., top:top + h, left:left + w], size, mode="bilinear", antialias=True, align_corners=False)
        torch.testing.assert_close(views.resample(x, box(top, left, h, w).expand(6, 4), size), want, atol=2e-6, rtol=0)


def test_the_whole_image_at_its_own_size_is_itself(x):
    assert torch.equal(views.resample(x, box(0, 0, 12, 16), (12, 16)), x)
    assert torch.equal(views.crops(x, 2, scale=(1, 1), ratio=(4 / 3, 4 / 3)), x.expand(2, *x.shape))


def test_a_box_within_one_pixel_shows_that_pixel(x):
    got = views.resample(x, box(3.25, 5.5, 0.5, 0.25), (4, 4))
    torch.testing.assert_close(got, x[..., 3:4, 5:6].expand(6, 3, 4, 4))


def test_crops_are_of_the_asked_size_per_sample_and_inside_the_range(x):
    torch.manual_seed(0)
    got = views.crops(x, 5, scale=(0.2, 0.6), size=7)
    assert got.shape == (5, 6, 3, 7, 7) and got.min() >= x.min() and got.max() <= x.max()
    same = views.crops(x[:1].expand(6, -1, -1, -1), 5, scale=(0.2, 0.6), size=7).flatten(0, 1)
    assert len(same.unique(dim=0)) == 30, "one draw was used for several samples"
    assert views.crops(x, 1, scale=(0.2, 0.6), size=(3, 9)).shape == (1, 6, 3, 3, 9)
    torch.manual_seed(0)
    assert torch.equal(views.crops(x, 5, scale=(0.2, 0.6), size=7), got)


def test_boxes_have_the_asked_areas_and_ratios_and_lie_in_the_image():
    torch.manual_seed(0)
    top, left, h, w = views.boxes((4000,), 30, 50, (0.1, 0.5), (3 / 4, 4 / 3)).unbind(-1)
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 30.001).all() and (left + w <= 50.001).all()
    area, ratio = h * w / 1500, w / h
    assert area.min() >= 0.0999 and area.max() <= 0.5001 and ratio.min() >= 0.7499 and ratio.max() <= 1.3334
    assert abs(area.mean() - 0.3) < 0.01 and abs(ratio.log().mean()) < 0.02
    assert ((30 - h) / 2 - top).mean().abs() < 0.5, "boxes lie evenly"
    short = views.boxes((7,), 10, 100, (1.0, 1.0), (3 / 4, 4 / 3))             # no box of that area fits
    torch.testing.assert_close(short, box(0, (100 - 40 / 3) / 2, 10, 40 / 3).expand(7, 4))


def test_zoom_to_the_same_scale_gives_the_images_back(x):
    y, window = views.zoom(x, (1, 1))
    assert torch.equal(y, x) and torch.equal(window, box(0, 0, 12, 16).expand(6, 4))


def test_what_is_made_smaller_lies_at_the_top_left_of_grey(x):
    y, window = views.zoom(x, (0.5, 0.5))
    small = F.interpolate(x, (6, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(y[..., :6, :8], small, atol=2e-6, rtol=0)
    assert (y[..., 6:, :] == 0.5).all() and (y[..., 8:] == 0.5).all() and torch.equal(window, box(0, 0, 24, 32).expand(6, 4))


def test_of_what_is_made_larger_a_random_part_is_seen(x):
    torch.manual_seed(0)
    y, window = views.zoom(x, (2, 2))
    torch.testing.assert_close(y, views.resample(x, window, (12, 16)))
    assert (window[:, 2:] == torch.tensor([6.0, 8.0])).all() and (window[:, :2] >= 0).all()
    assert (window[:, :2] <= torch.tensor([6.0, 8.0])).all() and len(window.unique(dim=0)) == 6
    whole = views.through(x, box(2, 3, 6, 8).expand(6, 4))                      # a part of whole pixels
    torch.testing.assert_close(whole, F.interpolate(x[..., 2:8, 3:11], (12, 16), mode="bilinear"), atol=2e-6, rtol=0)


def test_scales_of_zoom_are_even_in_their_range():
    torch.manual_seed(0)
    y, window = views.zoom(torch.zeros(4000, 1, 8, 6))
    scale = 8 / window[:, 2]
    torch.testing.assert_close(scale, 6 / window[:, 3])
    assert 0.1 <= scale.min() < 0.11 and 1.99 < scale.max() <= 2 and abs(scale.mean() - 1.05) < 0.03
    grey = (y[:, 0] == 0.5).float().mean((1, 2))
    assert (grey[scale >= 1] == 0).all() and (grey[scale < 0.9] > 0).all() and y.isfinite().all()


def test_flip(x):
    assert torch.equal(views.flip(x, 1.0), x.flip(-1)) and torch.equal(views.flip(x, 0.0), x)
    torch.manual_seed(0)
    many = views.flip(x[:1].expand(2000, -1, -1, -1), 0.3)
    assert abs((many == x[0].flip(-1)).all(-1).all(-1).all(-1).float().mean() - 0.3) < 0.04


# --- colour ----------------------------------------------------------------------------------------------------------

def test_factors_of_one_and_a_full_turn_change_nothing(x):
    for turn in (0.0, 1.0, -2.0):
        torch.testing.assert_close(views.adjust(x, 1, 1, 1, turn), x, atol=2e-6, rtol=0)
    torch.testing.assert_close(views.jitter(x, 0, 0, 0, 0), x, atol=1e-6, rtol=0)
    assert torch.equal(views.jitter(x, p=0.0), x)


def test_adjust_is_the_naive_formula_pixel_by_pixel():
    x = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0, :, 0, 0] = 0.5                                                         # a grey pixel has no hue
    factors = [torch.tensor(f, dtype=torch.float64).view(2, 1, 1, 1) for f in ((1.3, 0.7), (0.6, 1.4), (1.2, 0.5), (0.1, -0.4))]
    got = views.adjust(x, *factors)
    for i in range(2):
        b, c, s, t = (f[i].item() for f in factors)
        clamp = lambda v: min(1.0, max(0.0, v))                                 # noqa: E731
        light = [[[clamp(v * b) for v in row] for row in channel] for channel in x[i].tolist()]
        luma = lambda p: 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]             # noqa: E731
        pixels = [(r, q, [light[k][r][q] for k in range(3)]) for r in range(3) for q in range(4)]
        mean = sum(luma(p) for _, _, p in pixels) / 12
        for r, q, p in pixels:
            p = [clamp(mean + (v - mean) * c) for v in p]
            g = luma(p)
            p = [clamp(g + (v - g) * s) for v in p]
            h, l_, v = colorsys.rgb_to_hsv(*p)
            want = colorsys.hsv_to_rgb((h + t) % 1, l_, v)
            torch.testing.assert_close(got[i, :, r, q], torch.tensor(want, dtype=torch.float64), atol=1e-9, rtol=0)


def test_jitter_draws_per_sample_and_stays_in_the_range(x):
    torch.manual_seed(0)
    same = x[:1].expand(50, -1, -1, -1)
    got = views.jitter(same, 0.8, 0.8, 0.8, 0.5, p=0.8)
    assert got.min() >= 0 and got.max() <= 1
    kept = sum(torch.equal(g, x[0]) for g in got)
    assert 3 <= kept <= 20 and len(got.unique(dim=0)) == 51 - kept
    one = views.jitter(x[:, :1])                                                # brightness and contrast alone
    assert one.shape == (6, 1, 12, 16) and not torch.equal(one, x[:, :1])
    assert views.jitter(x.expand(2, *x.shape)).shape == (2, *x.shape)


def test_grey_and_solarise(x):
    torch.testing.assert_close(views.grey(x, 1.0), (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand_as(x))
    assert torch.equal(views.grey(x, 0.0), x) and views.grey(x[:, :1], 1.0) is not None
    assert torch.equal(views.grey(x[:, :1], 1.0), x[:, :1])
    want = torch.where(x >= 0.5, 1 - x, x)
    assert torch.equal(views.solarise(x, 1.0), want) and torch.equal(views.solarise(x, 0.0), x)
    assert torch.equal(views.solarise(x, 1.0, threshold=2.0), x)


def test_smooth_is_a_gaussian_and_none_changes_nothing(x):
    assert torch.equal(views.smooth(x, torch.zeros(6, 1, 1, 1)), x)
    big = torch.zeros(2, 1, 41, 41)
    big[..., 20, 20] = 1
    sigma = torch.tensor([1.0, 2.5]).view(2, 1, 1, 1)
    got = views.smooth(big, sigma)
    at = torch.arange(41) - 20.0
    for i, s in enumerate((1.0, 2.5)):
        line = torch.exp(-at.square() / (2 * s * s))
        line = line / line.sum()
        torch.testing.assert_close(got[i, 0], line[:, None] * line, atol=1e-6, rtol=0)
    flat = torch.full((2, 3, 8, 8), 0.7)
    torch.testing.assert_close(views.smooth(flat, sigma), flat)
    mixed = views.blur(x, p=1.0)
    assert mixed.min() >= 0 and mixed.max() <= 1 and torch.equal(views.blur(x, p=0.0), x)


def test_erase_fills_one_box_per_sample():
    torch.manual_seed(0)
    x = torch.full((400, 2, 20, 20), -1.0)
    gone = (views.erase(x, p=0.5, scale=(0.1, 0.3)) != x).all(1).float()
    share = gone.mean((1, 2))
    assert 0.4 < (share > 0).float().mean() < 0.6 and 0.15 < share[share > 0].mean() < 0.25 and share.max() < 0.4
    rows, columns = gone.amax(2).sum(1), gone.amax(1).sum(1)
    assert torch.equal(rows * columns, gone.sum((1, 2))), "what is erased is a box"
    assert torch.equal(views.erase(x, p=0.0), x)


def test_precision_is_kept_under_autocast(x):
    def seen():
        cut, sigma = views.resample(x, box(1, 1, 9, 9), (6, 6)), torch.ones(6, 1, 1, 1)
        return cut, views.smooth(x, sigma), views.adjust(x, 1.1, 0.9, 1.2, 0.1), views.through(x, box(0, 0, 15, 20))

    plain = seen()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, seen()))


def test_views_can_be_differentiated():
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    def view(x):
        y = views.resample(views.through(x, box(0, 0, 5, 5).double()), box(0.3, 0.6, 2.7, 3.1).double(), (3, 3))
        return views.smooth(views.adjust(y, 0.9, 0.8, 0.9, 0.07), torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert torch.autograd.gradcheck(view, x)


# --- mixing ----------------------------------------------------------------------------------------------------------

def test_soft_labels():
    got = views.soft_labels(torch.tensor([2, -100]), 4, smoothing=0.1)
    assert torch.allclose(got, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("mix", [views.mixup, views.cutmix])
def test_mixed_images_and_labels_have_the_same_share(mix):
    torch.manual_seed(0)
    n = 64
    x = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 10, 10)           # each image is its own number
    soft = torch.eye(n)
    got, labels = mix(x, soft, 1.0)
    torch.testing.assert_close(labels.sum(1), torch.ones(n))
    torch.testing.assert_close(got.mean((1, 2, 3)), labels @ torch.arange(n).float(), atol=1e-3, rtol=1e-5)
    own = labels.diagonal()
    assert own.std() > 0.1, "one λ for all samples"
    assert all(torch.equal(a, b) for a, b in zip(mix(x, soft, 0.0), (x, soft)))


def test_mixup_shares_follow_the_beta_law():
    torch.manual_seed(0)
    n = 3000
    got = views.mixup(torch.zeros(n, 1, 1, 1), torch.eye(n), 0.8)[1].diagonal()
    variance = 1 / (4 * (2 * 0.8 + 1))                                          # of Beta(α, α)
    assert abs(got.mean() - 0.5) < 0.02 and abs(got.var() - variance) < 0.01


def test_cutmix_cuts_one_box():
    torch.manual_seed(1)
    n = 200
    x = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 16, 16)
    got, labels = views.cutmix(x, torch.eye(n), 1.0)
    foreign = (got != x)[:, 0].float()
    assert torch.equal(foreign.amax(2).sum(1) * foreign.amax(1).sum(1), foreign.sum((1, 2)))
    moved = foreign.sum((1, 2)) > 0
    torch.testing.assert_close(labels.diagonal()[moved], 1 - foreign.mean((1, 2))[moved])


# --- masks -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("tokens", "share", "hidden"), [
    (196, 0.75, 147), (16, 0.75, 12), (10, 0.33, 4), (16, 0.0, 0), (10, 0.9, 9)])
def test_masks_hide_the_exact_count_and_agree(tokens, share, hidden):
    torch.manual_seed(0)
    noise = torch.rand(32, tokens)
    mask, seen = views.mask(noise, share), views.visible(noise, share)
    assert mask.dtype == torch.bool and (mask.sum(1) == hidden).all() and seen.shape == (32, tokens - hidden)
    assert not mask.gather(1, seen).any() and (seen.diff(dim=1) > 0).all()
    if hidden > 0:
        assert (noise.masked_fill(mask, -1).amax(1) < noise.masked_fill(~mask, 2).amin(1)).all(), "not the smallest noise is seen"
        assert len(mask.unique(dim=0)) > 1
    torch.manual_seed(0)
    assert torch.equal(views.random_mask(32, tokens, share), mask)
