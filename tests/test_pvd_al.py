"""PVD-AL: encodings and fields against naive ones, the renderer against closed forms, pools, stages, any field into any other."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stillroom import saved, zoo
from stillroom.arenas import radiance as arena
from stillroom.arenas import solids
from stillroom.arenas.radiance import EVEN, Fitting
from stillroom.errors import Refused
from stillroom.measure.images import psnr, ssim
from stillroom.models.encodings import PRIMES, HashTable, harmonics, spatial_hash, waves
from stillroom.models.fields import Planes, Volume
from stillroom.parts import cameras
from stillroom.parts.losses.sizes import size
from stillroom.parts.memory import Hard
from stillroom.parts.rendering import Points, composite, crossing, heaviest, sample, trunc_exp
from stillroom.recipes.scene3d.pvd_al import PVDAL
from stillroom.run import Run

SPECS = {"mlp": "field:mlp?octaves=2&depth=4&width=16&hidden=16",
         "table": "field:table?levels=3&coarsest=2&finest=8&entries=64&hidden=16",
         "planes": "field:planes?cells=6&rank=2&rank_colour=3&hidden=16", "volume": "field:volume?cells=5&bands=2"}
QUICK = PVDAL(views=2, rays=24, samples=8, pool_views=2, pool_rays=6, rest=1, lr=0.05, steps=12)
ALL = torch.ones(2, 2, 2, dtype=torch.bool)


def net(kind, seed=0, bound=1.0, grid=4):
    torch.manual_seed(seed)
    return zoo.model(f"{SPECS[kind]}&bound={bound}&grid={grid}")


def around(n=4, radius=3.0, seed=0):
    place = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    place[:, 2] = place[:, 2].abs()
    return cameras.looking(radius * F.normalize(place, dim=-1))


def actors(student, teacher):
    cast = {"student": net(student, 1), "teacher": net(teacher, 2), "poses": around(), "focal": 8.0, "height": 6, "width": 6}
    with torch.no_grad():                                                          # a teacher that can be seen
        for p in cast["teacher"].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return cast


# --- encodings -------------------------------------------------------------------------------------------------------

def test_waves_one_by_one():
    x = torch.tensor([[0.3, -0.5, 0.9]])
    wanted = [*x[0]] + [f(2**k * v) for k in range(3) for f in (torch.sin, torch.cos) for v in x[0]]
    assert torch.allclose(waves(x, 3)[0], torch.stack(wanted))


def test_harmonics_are_orthonormal_on_the_sphere():
    z, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))          # exact up to degree 15
    turn = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    flat = (1 - z * z).sqrt()[:, None]
    on = torch.stack([flat * turn.cos(), flat * turn.sin(), z[:, None].expand(-1, 16)], -1).flatten(0, 1)
    y = harmonics(on, 4)
    gram = y.T @ (y * (weight[:, None].expand(-1, 16).reshape(-1, 1) * 2 * math.pi / 16))
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-12)


def test_harmonics_have_the_signs_and_constants_of_the_released_encoder():
    """Figures of shencoder.cu (megvii-research/AAAI2023-PVD), which other people's fields were trained with."""
    x, y, z = 0.36, -0.48, 0.8
    told = [0.28209479, -0.48860251 * y, 0.48860251 * z, -0.48860251 * x, 1.09254843 * x * y, -1.09254843 * y * z,
            0.94617470 * z * z - 0.31539157, -1.09254843 * x * z, 0.54627422 * (x * x - y * y),
            0.59004359 * y * (y * y - 3 * x * x), 2.89061144 * x * y * z, 0.45704580 * y * (1 - 5 * z * z),
            0.37317633 * z * (5 * z * z - 3), 0.45704580 * x * (1 - 5 * z * z), 1.44530572 * z * (x * x - y * y),
            0.59004359 * x * (3 * y * y - x * x)]
    assert torch.allclose(harmonics(torch.tensor([[x, y, z]], dtype=torch.float64), 4)[0],
                          torch.tensor(told, dtype=torch.float64), atol=1e-7)


def test_the_hash_is_that_of_the_paper_in_32_bits():
    draw = torch.Generator().manual_seed(0)
    for entries in (2**14, 2**19, 1000):
        x, y, z = torch.randint(0, 2049, (3, 50), generator=draw)
        wanted = [((a * PRIMES[0]) % 2**32 ^ (b * PRIMES[1]) % 2**32 ^ (c * PRIMES[2]) % 2**32) % entries
                  for a, b, c in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)]
        assert spatial_hash(x, y, z, entries).tolist() == wanted
    assert PRIMES == (1, 2654435761, 805459861)


def test_a_table_point_by_point():
    torch.manual_seed(0)
    table, x = HashTable(levels=3, width=2, coarsest=2, finest=8, entries=100), torch.rand(20, 3) * 2 - 1
    x[0], x[1] = 1.0, -1.0                                                         # the corners of the box
    assert table.cells.tolist() == [2, 4, 8] and len(table.table) == 27 + 100 + 100
    torch.nn.init.normal_(table.table)
    found = table(x)
    for point, features in zip(x.tolist(), found, strict=True):
        for level, (n, begin) in enumerate(((2, 0), (4, 27), (8, 127))):
            place = [(v + 1) / 2 * n for v in point]
            low = [min(int(p), n - 1) for p in place]
            total = torch.zeros(2)
            for corner in range(8):
                far = [corner >> i & 1 for i in range(3)]
                at = [a + b for a, b in zip(low, far, strict=True)]
                share = math.prod(p - a if b else 1 - p + a for p, a, b in zip(place, low, far, strict=True))
                row = at[0] + 3 * (at[1] + 3 * at[2]) if n == 2 else (at[0] ^ at[1] * PRIMES[1] ^ at[2] * PRIMES[2]) % 2**32 % 100
                total += share * table.table[begin + row]
            assert torch.allclose(features[2 * level : 2 * level + 2], total, atol=1e-5)


def test_planes_are_the_sum_of_products_of_planes_and_lines():
    torch.manual_seed(0)
    block, n = Planes(5, 2, 3), 5
    i, j, k = torch.randint(0, n, (3, 10))
    said = block(torch.stack([i, j, k], 1) / (n - 1) * 2 - 1)                      # at centres of cells nothing is interpolated
    p, v = block.planes, block.lines[..., 0]
    product = torch.stack([p[0, :, j, i] * v[0, :, k], p[1, :, k, i] * v[1, :, j], p[2, :, k, j] * v[2, :, i]])
    assert torch.allclose(said[:, 0], product[:, :2].sum((0, 1)), atol=1e-5)
    assert torch.allclose(said[:, 1:], product[:, 2:].flatten(0, 1).T @ block.mix.weight.T, atol=1e-5)


def test_a_volume_is_linear_between_the_centres_of_its_cells():
    volume = Volume(4, 1)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, 4)] * 3, indexing="ij")
    with torch.no_grad():
        volume.cells.copy_((2 * x + 3 * y - z + 1).permute(2, 1, 0)[None, None])   # the first coordinate runs along the last axis
    at = torch.rand(30, 3) * 2 - 1
    assert torch.allclose(volume(at)[:, 0], 2 * at[:, 0] + 3 * at[:, 1] - at[:, 2] + 1, atol=1e-5)


def test_a_volume_sees_a_colour_by_harmonics_and_has_no_features_to_share():
    field, x, d = net("volume"), torch.rand(6, 3), F.normalize(torch.randn(6, 3), dim=-1)
    said, raw = field(x, d), field.block1(x)
    by_hand = torch.stack([(raw[:, 1 + 4 * c : 5 + 4 * c] * harmonics(d, 2)).sum(1) for c in range(3)], 1).sigmoid()
    assert said.features is None and torch.equal(said.logit, raw[:, 0]) and torch.allclose(said.colour, by_hand)
    for kind in ("mlp", "table", "planes"):
        said = net(kind)(x, d)
        assert said.features.shape == (6, 16) and torch.equal(said.features[:, 0], said.logit)


def test_sizes_of_the_paper():
    """Of the fields as the released code builds them: 14 levels, ranks 16 and 48 of 300 cells, 128³ cells of 28 numbers."""
    with torch.device("meta"):
        sizes = {kind: sum(p.numel() for p in zoo.model(f"field:{kind}").block1.parameters()) for kind in SPECS}
    assert sizes["planes"] == 3 * 64 * (300 * 300 + 300) + 144 * 15 and sizes["volume"] == 128**3 * 28
    wide = 63 * 256 + 3 * 256 * 256 + (256 + 63) * 256 + 2 * 256 * 256 + 256 * 28
    assert sizes["mlp"] == wide + 7 * 256 + 28 + 28 * 64 + 64 * 16
    assert 28 * 64 + 64 * 16 < sizes["table"] - 2 * 2**19 * 10 < 2 * 2**19 * 4


def test_a_field_is_saved_and_built_again(tmp_path):
    for kind in SPECS:
        field = net(kind, 3)
        field.occupied[1] = False
        again = saved.load(saved.save(field, tmp_path / kind))
        x, d = torch.rand(5, 3), F.normalize(torch.randn(5, 3), dim=-1)
        assert torch.equal(again(x, d).colour, field(x, d).colour) and torch.equal(again.occupied, field.occupied)
    with pytest.raises(Refused, match=r"no field model is called 'tabel'\n.*did you mean 'table'"):
        zoo.model("field:tabel")


# --- cameras ---------------------------------------------------------------------------------------------------------

def test_rays_of_a_camera_that_stands_still():
    rays = cameras.rays(torch.eye(4), torch.arange(6), 2.0, 2, 3)                  # two rows of three pixels
    wanted = torch.tensor([[-1, 0.5, -2], [0, 0.5, -2], [1, 0.5, -2], [-1, -0.5, -2], [0, -0.5, -2], [1, -0.5, -2]])
    assert torch.allclose(rays[:, 3:], F.normalize(wanted, dim=-1)) and not rays[:, :3].any()


def test_a_looking_camera_sees_the_origin_in_its_middle_and_z_upwards():
    poses = around(7)
    assert torch.allclose(poses[:, :3, :3] @ poses[:, :3, :3].mT, torch.eye(3).expand(7, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(poses[:, :3, :3]), torch.ones(7), atol=1e-6)
    middle = cameras.rays(poses[:, None], torch.tensor([4]), 5.0, 3, 3)[:, 0]
    assert torch.allclose(middle[:, 3:], -F.normalize(middle[:, :3], dim=-1), atol=1e-6)
    assert (poses[:, 2, 1] > 0).all() and poses[:, 2, 0].abs().max() < 1e-6


def test_an_orbit_stays_where_the_cameras_stand():
    torch.manual_seed(0)
    poses = torch.cat([around(5, 3.0), around(5, 4.0, seed=1)])
    new, old = (p[:, :3, 3] for p in (cameras.orbit(poses, 200), poses))
    for of in (lambda x: x.norm(dim=-1), lambda x: x[:, 2] / x.norm(dim=-1)):
        assert of(old).min() - 1e-5 <= of(new).min() and of(new).max() <= of(old).max() + 1e-5
    assert len(torch.atan2(new[:, 1], new[:, 0]).mul(4 / math.pi).floor().unique()) == 8       # from all sides
    assert torch.allclose(cameras.orbit(poses, 3)[:, 3], torch.tensor([0.0, 0, 0, 1]))


def test_turned_cameras_stay_on_their_spot_and_turn_about_three_axes():
    torch.manual_seed(0)
    poses, most = around(50), math.pi / 20
    new = cameras.turned(poses, most)
    turn = new[:, :3, :3] @ poses[:, :3, :3].mT
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).arccos()
    assert torch.equal(new[:, :3, 3], poses[:, :3, 3])
    assert torch.allclose(turn @ turn.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert angle.mean() > 0.05 and angle.max() <= math.sqrt(3) * most * 1.01 and torch.equal(cameras.turned(poses, 0.0), poses)


# --- rendering -------------------------------------------------------------------------------------------------------

def filled(rays=3, samples=5, length=2.0):
    step = torch.full((rays, 1), length / samples, dtype=torch.float64)
    depth = (torch.arange(samples) + 0.5) * step
    at = torch.zeros(rays * samples, 3)
    return Points(at, at, torch.ones(rays, samples, dtype=torch.bool), depth, step)


@pytest.mark.parametrize("density", [0.0, 0.3, 5.0])
def test_constant_density_stops_what_the_law_says_and_weights_sum_up(density):
    points, colour = filled(samples=40), torch.tensor([0.2, 0.5, 0.9]).double()
    seen = composite(points, torch.full((120,), density).double(), colour.expand(120, 3), 0.7)
    alpha = 1 - math.exp(-density * 2.0)
    assert seen.opacity.tolist() == pytest.approx([alpha] * 3, abs=1e-6)
    assert torch.allclose(seen.weight.sum(1), seen.opacity) and (seen.weight >= 0).all()
    assert torch.allclose(seen.colour.double(), (alpha * colour + (1 - alpha) * 0.7).expand(3, 3), atol=1e-6)


def test_of_two_opaque_slabs_the_nearer_one_is_seen():
    points, density, colour = filled(rays=1, samples=10), torch.zeros(10), torch.zeros(10, 3)
    density[3], density[7] = 1e4, 1e4
    colour[3, 0], colour[7, 1] = 1, 1
    seen = composite(points, density, colour, 1.0)
    assert torch.allclose(seen.colour[0].float(), torch.tensor([1.0, 0, 0])) and seen.depth.item() == pytest.approx(0.7)
    assert seen.weight[0].argmax() == 3 and seen.opacity.item() == pytest.approx(1)


def test_rays_are_composed_sample_by_sample_and_points_that_are_not_asked_are_empty():
    torch.manual_seed(0)
    asked, depth = torch.rand(4, 6) > 0.4, torch.rand(4, 6).sort(1).values
    step, n = torch.rand(4, 1), int(asked.sum())
    points = Points(torch.zeros(n, 3), torch.zeros(n, 3), asked, depth, step)
    density, colour, ground = 4 * torch.rand(n), torch.rand(n, 3), torch.rand(4, 3)
    seen, at = composite(points, density, colour, ground), 0
    for ray in range(4):
        left, rgb, far = 1.0, torch.zeros(3), 0.0
        for i in range(6):
            if asked[ray, i]:
                w = left * (1 - math.exp(-density[at].item() * step[ray, 0].item()))
                rgb, far, left, at = rgb + w * colour[at], far + w * depth[ray, i].item(), left - w, at + 1
        assert torch.allclose(seen.colour[ray], rgb + left * ground[ray], atol=1e-5)
        assert [seen.depth[ray].item(), seen.opacity[ray].item()] == pytest.approx([far, 1 - left], abs=1e-5)


def test_rays_cross_the_box_where_geometry_says_or_miss_it():
    rays = torch.tensor([[-3.0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [-3, 2, 0, 1, 0, 0], [3, 0.5, 0, 1, 0, 0],
                         [-2, -2, 0, 1, 1, 0]])
    rays[:, 3:] = F.normalize(rays[:, 3:], dim=-1)
    near, far = crossing(rays, 1.0)
    root = math.sqrt(2)
    assert near[[0, 1, 4]].tolist() == pytest.approx([2, 0, root]) and far[[0, 1, 4]].tolist() == pytest.approx([4, 1, 3 * root])
    assert (far - near)[[2, 3]].tolist() == [0, 0]                                 # beside it, and behind the camera


def test_samples_lie_one_in_each_part_inside_the_box_and_only_occupied_ones_are_asked():
    torch.manual_seed(0)
    rays = cameras.rays(around(20)[:, None], torch.arange(16), 4.0, 4, 4).flatten(0, 1)
    points = sample(rays, 1.0, ALL, 12, jitter=True)
    near, far = crossing(rays, 1.0)
    part = ((points.depth - near[:, None]) / points.step)[far > near]
    assert torch.equal(part.floor(), torch.arange(12.0).expand_as(part)) and points.x.abs().max() <= 1 + 1e-5
    assert torch.equal(points.asked.any(1), far > near)
    half = ALL.clone()
    half[0] = False                                                                # x < 0 is empty
    some = sample(rays, 1.0, half, 12, jitter=False)
    everything = sample(rays, 1.0, ALL, 12, jitter=False)
    assert torch.equal(some.x, everything.x[everything.x[:, 0] >= 0]) and (some.x[:, 0] >= 0).all()


def test_the_density_has_a_gradient_far_out():
    x = torch.tensor([-20.0, 0.0, 3.0, 20.0], requires_grad=True)
    y = trunc_exp(x)
    y.sum().backward()
    assert torch.allclose(y, x.exp()) and torch.allclose(x.grad, torch.tensor([-12.0, 0, 3, 12]).exp())


def test_the_points_that_count_are_the_heaviest_of_opaque_rays():
    points, density = filled(rays=3, samples=10), torch.zeros(3, 10)
    density[0, 4] = 100.0                                                          # one dominant sample
    density[1] = 0.01                                                              # fog: less opaque than half
    density[2] = torch.linspace(1, 9, 10)
    seen = composite(points, density.flatten(), torch.rand(30, 3))
    chosen = heaviest(points, seen, 0.3, 0.5).view(3, 10)
    assert chosen[0, 4] and chosen.sum(1).tolist() == [4, 0, 4]                    # ranks up to 0.3·10, as the released kernel
    assert set(chosen[2].nonzero().flatten().tolist()) == set(seen.weight[2].topk(4).indices.tolist())
    assert heaviest(points, seen, 1.0).all()
    few = points._replace(asked=torch.arange(10).expand(3, 10) < 5)
    seen = composite(few, density[:, :5].flatten(), torch.rand(15, 3))
    assert heaviest(few, seen, 0.3, 0.5).view(3, 5).sum(1).tolist() == [2, 0, 2]   # of five points on a ray


def test_an_empty_cell_is_left_out_and_its_neighbours_of_full_ones_are_kept():
    field = net("volume", grid=8)
    with torch.no_grad():
        field.block1.cells[:, 0] = -9
        field.block1.cells[:, 0, 4, 4, 4] = 9                                      # full in the corner at (1, 1, 1)
    field.prune()
    assert field.occupied[7, 7, 7] and not field.occupied[:4].any() and 0.01 < field.occupied.float().mean() < 0.3


# --- judges and pools ------------------------------------------------------------------------------------------------

def test_psnr_and_ssim_by_their_formulas():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, 13, 12, generator=draw, dtype=torch.float64)
    wanted = np.mean([10 * math.log10(1 / ((x - y) ** 2).mean()) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert psnr(a, b) == pytest.approx(wanted) and psnr(a, a + 0.1) == pytest.approx(20)
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    found = []
    for x, y in zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True):
        for r in range(3):
            for c in range(2):
                p, q = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = ((window * (u - mean) ** 2).sum() for u, mean in ((p, mp), (q, mq)))
                common = (window * (p - mp) * (q - mq)).sum()
                found.append((2 * mp * mq + 1e-4) * (2 * common + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(a, b) == pytest.approx(np.mean(found)) and ssim(a, a) == pytest.approx(1)


def test_a_pool_fills_gives_back_and_never_holds_more():
    pool = Hard(5, torch.zeros(1, 2))
    assert len(pool.draw(3)) == 0
    pool.put(torch.full((3, 2), 1.0), pool.draw(3))
    assert len(pool) == 3 and len(pool.draw(3)) == 0
    pool.put(torch.stack([torch.full((2,), float(v)) for v in (2, 3, 4)]), pool.draw(3))
    assert len(pool) == 5 and pool.held[:, 0].tolist() == [1, 1, 1, 2, 3]          # the third found no room
    torch.manual_seed(0)
    places = pool.draw(2)
    assert len(set(places.tolist())) == 2
    kept = [v for i, v in enumerate(pool.held[:, 0].tolist()) if i not in places.tolist()]
    pool.put(torch.full((2, 2), 9.0), places)
    assert len(pool) == 5 and sorted(pool.held[:, 0].tolist()) == sorted([*kept, 9, 9])
    with pytest.raises(Refused, match="0 samples"):
        Hard(0, torch.zeros(1))


def test_a_tour_comes_back_to_the_views_that_were_worst():
    torch.manual_seed(0)
    tour, fresh = cameras.Tour(10, 2, around(1)), [around(10, seed=s) for s in range(3)]
    tour.begin(fresh[0], 0.2, 0.1)
    assert torch.equal(tour.pose, fresh[0]) and len(tour.pool) == 0                # nobody has looked yet
    tour.error[:8] = torch.tensor([1.0, 5, 2, 7, 3, 1, 1, 1])
    tour.begin(fresh[1], 0.2, 0.1)
    assert torch.equal(tour.pool.held, fresh[0][[3, 1]]) and torch.equal(tour.pose, fresh[1])
    tour.error.copy_(torch.arange(10.0))
    tour.begin(fresh[2], 0.2, 0.0)
    again = (tour.pose != fresh[2]).flatten(1).any(1)
    assert again.sum() == 2 and sorted(tour.pose[again][:, 0, 3].tolist()) == sorted(fresh[0][[3, 1]][:, 0, 3].tolist())
    assert sorted(tour.pool.held[:, 0, 3].tolist()) == sorted(fresh[1][[9, 8]][:, 0, 3].tolist())


# --- the recipe ------------------------------------------------------------------------------------------------------

class Watched(Run):
    """Keeps the terms of every step, and which parts of the student got a gradient."""

    def __init__(self):
        super().__init__()
        self.terms, self.reached = [], []

    def keep(self, **things):
        self.student = things["student"]
        super().keep(**things)

    def update(self, opt, **terms):
        before = {n: p.detach().clone() for n, p in self.student.named_parameters()}
        self.terms.append({k: v.item() for k, v in terms.items()})
        moved = super().update(opt, **terms)
        self.reached.append({n.partition(".")[0] for n, p in self.student.named_parameters() if not torch.equal(p, before[n])})
        return moved


def test_stages_add_their_terms_and_block_2_rests_in_the_first():
    run = Watched()
    replace(QUICK, features=0.25, blocks=0.5)(run, **actors("mlp", "table"))
    assert [set(t) for t in run.terms] == [{"features"}] * 3 + [{"features", "density", "colour"}] * 3 + \
        [{"features", "density", "colour", "rgb"}] * 6
    assert all(r == {"block1"} for r in run.reached[:3]) and all(r == {"block1", "block2"} for r in run.reached[3:])
    run = Watched()
    replace(QUICK, features=0.25, blocks=0.5)(run, **actors("mlp", "volume"))      # which has no features
    assert [set(t) for t in run.terms] == [{"density", "colour"}] * 6 + [{"density", "colour", "rgb"}] * 6


def test_the_terms_are_those_of_the_paper(monkeypatch):
    """A step of the third stage with all points, once more in float64."""
    run, seen = Watched(), []
    monkeypatch.setattr("stillroom.recipes.scene3d.pvd_al.sample", lambda *a, **k: seen.append(sample(*a, **k)) or seen[-1])
    cast = actors("planes", "table")
    with torch.no_grad():
        cast["student"].block1.planes.mul_(2000)                                     # so that the clamp acts
    student, teacher = copy.deepcopy(cast["student"]).double(), copy.deepcopy(cast["teacher"]).double()
    replace(QUICK, **EVEN, blocks=0.0, features=0.0, steps=1, density=0.5, colour=0.25, feature=2.0)(run, **cast)
    points = seen[0]
    x, d = points.x.double(), points.direction.double()
    a, b = teacher(x, d), student(x, d)
    assert b.features.abs().max() > 7
    want = {"features": 2.0 * (b.features.clamp(-2, 7) - a.features.clamp(-2, 7)).square().sum().sqrt(),
            "density": 0.5 * (b.logit.clamp(-2, 7) - a.logit.clamp(-2, 7)).square().sum().sqrt(),
            "colour": 0.25 * (b.colour - a.colour).square().sum().sqrt()}
    assert {k: run.terms[0][k] for k in want} == pytest.approx({k: v.item() for k, v in want.items()}, rel=1e-4)


NAIVE = {"l1": lambda d: d.abs().sum(), "mse": lambda d: (d * d).sum() / d.numel(),
         "smooth_l1": lambda d: sum(v * v / 0.1 if abs(v) < 0.05 else abs(v) - 0.025 for v in d.flatten().tolist()) / d.numel(),
         "l2": lambda d: (d * d).sum().sqrt()}


@pytest.mark.parametrize("norm", NAIVE)
def test_every_difference_is_measured_by_the_norm(norm, monkeypatch):
    """The four of the release's get_loss, written out, in a step of the third stage; of rendered colours, too."""
    run, seen = Watched(), []
    monkeypatch.setattr("stillroom.recipes.scene3d.pvd_al.size", lambda d, by: seen.append(d.detach().double()) or size(d, by))
    method = replace(QUICK, norm=norm, blocks=0.0, features=0.0, steps=1, feature=2.0, density=0.5, colour=0.25)
    method(run, **actors("mlp", "table"))
    want = [weight * float(NAIVE[norm](d)) for d, weight in zip(seen, (1.0, 0.5, 0.25, 2.0), strict=True)]
    assert [run.terms[0][k] for k in ("rgb", "density", "colour", "features")] == pytest.approx(want, rel=1e-5)


def test_an_unknown_norm_is_refused():
    with pytest.raises(Refused, match="did you mean 'l2'"):
        replace(QUICK, norm="L2")(Run(), **actors("mlp", "table"))


def photographed(cast):
    """What the teacher shows from each pose, [n, height, width, 3]."""
    rays = cameras.rays(cast["poses"][:, None], torch.arange(36), 8.0, 6, 6).flatten(0, 1)
    return cast["teacher"].render(rays, 32).view(-1, 6, 6, 3)


def test_photographs_tune_the_student_in_the_end():
    """After the same distillation, as `Fitting` does it with the student that comes out; and closer to them than before."""
    cast, again = actors("table", "planes"), actors("table", "planes")
    images = 1 - photographed(cast)                                                # not what the teacher shows
    tuned = replace(QUICK, steps_tune=30)(Run(), **cast, images=images)
    left = QUICK(Run(), **again)
    after, before = ((photographed({**cast, "teacher": field}) - images).square().mean() for field in (tuned, left))
    assert after < 0.7 * before
    here = Fitting(lr=QUICK.lr, rays=QUICK.rays, samples=QUICK.samples, steps=30)(
        Run().part("tune"), field=left, images=images, poses=cast["poses"], focal=8.0)
    assert all(torch.equal(v, here.state_dict()[k]) for k, v in tuned.state_dict().items())


def test_photographs_of_other_poses_are_refused():
    cast = actors("mlp", "table")
    with pytest.raises(Refused, match="3 images of 6 × 6 for 4 poses"):
        QUICK(Run(), **cast, images=photographed(cast)[:3])


def test_the_weight_of_the_features_fades_at_every_step():
    run = Watched()
    replace(QUICK, lr=1e-12, lr_end=0.0, fade=0.5, features=1.0, blocks=1.0, rays=400, steps=6)(run, **actors("mlp", "table"))
    ratio = [b["features"] / a["features"] for a, b in zip(run.terms, run.terms[1:], strict=False)]
    assert ratio == pytest.approx([0.5] * 5, rel=0.3)


@pytest.mark.parametrize("kind", SPECS)
def test_of_two_that_are_alike_none_has_anything_to_learn(kind):
    run, cast = Watched(), actors(kind, kind)
    cast["student"].load_state_dict(cast["teacher"].state_dict())
    before = copy.deepcopy(cast["student"].state_dict())
    made = PVDAL.distill(replace(QUICK, steps=4, lr=0.0, lr_end=0.0), run, **cast)
    assert all(v == 0 for terms in run.terms for v in terms.values())
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


@pytest.mark.parametrize("teacher", SPECS)
@pytest.mark.parametrize("student", SPECS)
def test_any_field_learns_from_any_other(student, teacher):
    cast = actors(student, teacher)
    cast["teacher"].occupied[0] = False
    rays = cameras.rays(around(3, seed=5)[:, None], torch.arange(36), 8.0, 6, 6).flatten(0, 1)
    taught, untaught = cast["teacher"].render(rays, 16), copy.deepcopy(cast["student"])
    untaught.occupied.copy_(cast["teacher"].occupied)
    before = (untaught.render(rays, 16) - taught).square().mean()
    made = replace(QUICK, rays=64, samples=12, steps=60, lr=0.1 if student in ("mlp", "planes") else 0.03)(Run(), **cast)
    assert torch.equal(made.occupied, cast["teacher"].occupied)
    assert (made.render(rays, 16) - taught).square().mean() < 0.5 * before


def test_a_stopped_run_goes_on_bit_for_bit_with_all_its_pools(tmp_path):
    class Stopped(Run):
        def loop(self, *given, **named):
            for i in super().loop(*given, **named):
                if i == 9 and not self.resumed:
                    raise InterruptedError
                yield i

    quick = replace(QUICK, hard_views=0.5, steps=14)
    whole = quick(Run(), **actors("mlp", "table"))
    for resumed in (False, True):
        run = Stopped(tmp_path, save_every=-1.0, resume=resumed)
        run.resumed = resumed
        try:
            made = quick(run, **actors("mlp", "table"))
        except InterruptedError:
            hard = run._things["hard"]
            assert len(hard[0].pool) == 2 and len(hard[1]) == 6                    # both were in use
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("kind", SPECS)
def test_directions_and_places_keep_their_precision_in_bf16(kind):
    made = replace(QUICK, steps=6)(Run(precision="bf16"), **actors(kind, "planes"))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in made.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        rays = cameras.rays(around(2)[:, None], torch.arange(4), 3.0, 2, 2)
    assert torch.equal(rays, cameras.rays(around(2)[:, None], torch.arange(4), 3.0, 2, 2))


def test_other_boxes_are_refused():
    with pytest.raises(Refused, match="different boxes"):
        QUICK(Run(), **{**actors("mlp", "table"), "student": net("mlp", bound=2.0)})


# --- the arena -------------------------------------------------------------------------------------------------------

def test_a_drawn_sphere_and_box_lie_where_geometry_says():
    down = torch.tensor([0.0, 0, -1])
    rays = torch.tensor([[-0.4, 0.35, 3], [0.42, 0.35, 3], [0.0, 0.0, 3]])
    seen = solids.seen(torch.cat([rays, down.expand(3, 3)], 1))
    assert torch.equal(seen[2], torch.ones(3))                                     # between all of them
    light = F.normalize(torch.tensor(solids.LIGHT), dim=0)[2]
    for i, paint in ((0, solids.SPHERES[0][2]), (1, solids.BOXES[0][2])):          # both are met from above
        ratio = seen[i] / (torch.tensor(paint) * (0.35 + 0.65 * light))
        assert any(torch.allclose(ratio, torch.full((3,), chequer), atol=1e-3) for chequer in (1.0, 0.7))
    far, normal = solids._sphere(torch.tensor([[0.0, 0, 3]]), down[None], torch.tensor(0.5))
    assert far.item() == pytest.approx(2.5) and torch.allclose(normal, torch.tensor([[0.0, 0, 1]]))


def test_photographs_are_drawn_from_their_seed_and_agree_with_each_other():
    (x, poses, focal), again = solids.photographs(3, 8, 0), solids.photographs(3, 8, 0)
    assert torch.equal(x, again[0]) and x.shape == (3, 8, 8, 3) and 0 <= x.min() < x.max() == 1
    rays = cameras.rays(poses[:, None], torch.tensor([27, 28, 35, 36]), focal, 8, 8)
    assert rays[..., :3].norm(dim=-1).mean().item() == pytest.approx(3.5)


def test_a_volume_learns_a_drawn_scene_from_photographs():
    images, poses, focal = solids.photographs(12, 16, 0)
    torch.manual_seed(0)
    field = zoo.model(f"field:volume?cells=16&bands=1&bound={solids.BOUND}&grid=16")
    made = Fitting(lr=0.1, rays=128, samples=24, prune=40, steps=120)(Run(), field=field, images=images, poses=poses, focal=focal)
    seen = arena.Photographs(images[:4], poses[:4], focal, solids.BOUND, "")
    blank = psnr(torch.ones_like(seen.images), seen.images)
    assert psnr(arena.shot(made, seen), seen.images) > blank + 5 and made.occupied.float().mean() < 0.9
