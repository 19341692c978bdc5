"""TokenCut: the cut against its closed form, scipy and a naive search; its boxes; that it takes any transformer."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import _compat
from stillroom.arenas import scenes as arena
from stillroom.errors import Refused
from stillroom.measure.boxes import corloc, iou
from stillroom.models.vit import ViT
from stillroom.parts import bilateral
from stillroom.parts.cuts import bounds, component, normalised_cut
from stillroom.parts.taps import Tap, keys
from stillroom.parts.teachers import Frozen
from stillroom.recipes.dense.tokencut import TokenCut, cut, proof
from stillroom.run import Run

GRID = (4, 5)


def groups(*sizes, trace=1e-5):
    """Weights 1 within a group, a trace between groups."""
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.where(group[:, None] == group, 1.0, trace).double()


def some_weights(n=12, seed=0):
    w = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return w + w.T


def some_keys(seed=0, rows=6, columns=7, dim=16):
    """A block of 2 × 3 patches that resemble each other, on ground that does, too."""
    draw = torch.Generator().manual_seed(seed)
    object, ground = torch.randn(2, dim, generator=draw)
    inside = torch.zeros(rows, columns, 1)
    inside[2:4, 3:6] = 1
    return torch.lerp(ground, object, inside) + 0.3 * torch.randn(rows, columns, dim, generator=draw)


# --- the cut ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a, b, trace", [(6, 14, 1e-5), (3, 4, 1e-2), (1, 9, 1e-3)])
def test_two_groups_are_parted_at_the_value_that_can_be_written_down(a, b, trace):
    value, vector = normalised_cut(groups(a, b, trace=trace))
    assert value == pytest.approx(trace * b / (a + trace * b) + trace * a / (b + trace * a), rel=1e-7)
    small, large = vector[:a], vector[a:]
    assert (small - small[0]).abs().max() < 1e-9 and (large - large[0]).abs().max() < 1e-9
    assert small[0] * large[0] < 0 and (small[0].abs() > large[0].abs()) == (a < b)


def test_the_numbers_of_six_against_fourteen():
    value, vector = normalised_cut(groups(6, 14))
    assert value == pytest.approx(2.7618485e-5, rel=1e-7)
    assert vector.abs()[[0, 6]].tolist() == pytest.approx([0.1532, 0.0281], abs=5e-5)
    assert vector.abs()[[0, 6]].tolist() == pytest.approx([(196 / 36 / 232) ** 0.5, (36 / 196 / 232) ** 0.5], rel=1e-4)


def test_it_is_the_second_vector_of_the_generalised_problem():
    w = some_weights()
    value, vector = normalised_cut(w)
    degree = w.sum(1).diag()
    assert torch.allclose((degree - w) @ vector, value * degree @ vector, atol=1e-12)
    assert (vector @ degree @ vector).item() == pytest.approx(1) and abs((vector @ degree).sum().item()) < 1e-10
    root = degree.diag().rsqrt()
    every = torch.linalg.eigvalsh(torch.eye(len(w)) - root[:, None] * w * root)
    assert every[0].abs() < 1e-12 and value == pytest.approx(every[1].item()) and value > 1e-3
    plain = torch.linalg.eigh(degree - w)[1][:, 1]                 # the standard problem has another answer
    assert F.cosine_similarity(plain, vector, dim=0).abs() < 0.999


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_of_all_ways_to_part_clear_groups(seed):
    """The relaxed cut, rounded at its mean, against Ncut(A, B) = cut / vol A + cut / vol B of every bipartition."""
    draw = torch.Generator().manual_seed(seed)
    w = groups(4, 6, trace=0.1) + 0.05 * some_weights(10, seed)
    order = torch.randperm(10, generator=draw)
    w = w[order][:, order]

    def ncut(part):
        between = w[part][:, ~part].sum()
        return (between / w[part].sum() + between / w[~part].sum()).item()

    parts = [torch.tensor([bool(n >> i & 1) for i in range(10)]) for n in range(1, 2**9)]
    best = min(parts, key=ncut)
    vector = normalised_cut(w)[1]
    assert torch.equal(best, vector > vector.mean()) or torch.equal(best, vector <= vector.mean())


@pytest.mark.parametrize("sizes", [(20, 9, 4), (30, 12, 11), (40, 3, 2, 1), (25, 8, 5, 4)])
def test_of_several_groups_the_second_largest_has_the_largest_value(sizes):
    """v = S / (N − μ·size) on a group, with μ between N / a and N / b for a > b > …: the limit of one cut in two."""
    vector = normalised_cut(groups(*sizes))[1].split(sizes)
    n, mu = sum(sizes), normalised_cut(groups(*sizes))[0] / 1e-5
    assert n / sizes[0] < mu < n / sizes[1]
    values = [group[0].item() * (n - mu * size) for group, size in zip(vector, sizes, strict=True)]
    assert values == pytest.approx([values[0]] * len(sizes), rel=1e-2)
    assert max(range(len(sizes)), key=lambda i: vector[i].abs().max()) == 1


def naive(key, threshold, trace):
    """Sections 3.2 and 3.3 line by line, in numpy; the part that hangs together by walking from the seed."""
    rows, columns, _ = key.shape
    flat = key.reshape(rows * columns, -1).double().numpy()
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    edge = np.array([[1.0 if p @ q > threshold else trace for q in flat] for p in flat])
    degree = edge.sum(1)
    values, vectors = np.linalg.eig(np.diag(1 / degree) @ (np.diag(degree) - edge))
    v = vectors[:, np.argsort(values.real)[1]].real
    seed = int(np.argmax(np.abs(v)))
    mask = v > v.mean()
    mask = mask if mask[seed] else ~mask
    reached, border = {seed}, [seed]
    while border:
        r, c = divmod(border.pop(), columns)
        for r2, c2 in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            n = r2 * columns + c2
            if 0 <= r2 < rows and 0 <= c2 < columns and mask[n] and n not in reached:
                reached.add(n)
                border.append(n)
    return torch.tensor([n in reached for n in range(rows * columns)]).reshape(rows, columns)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_the_mask_is_that_of_the_paper_line_by_line(seed, threshold):
    key = some_keys(seed)
    assert torch.equal(cut(key, threshold)[0], naive(key, threshold, 1e-5))


def test_the_object_is_the_smaller_of_two_groups_and_its_map_is_positive_there():
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[1:3, 1:4] = True
    for sign in (1, -1):                                           # whichever group the first axis stands for
        key = torch.eye(2)[(sign * inside.long()) % 2]
        mask, vector = cut(key)
        assert torch.equal(mask, inside) and (vector[inside] > 0).all() and (vector[~inside] < 0).all()


def test_only_what_hangs_together_with_the_seed_is_the_object():
    key = torch.eye(3)[[0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0]].reshape(3, 4, 3)
    mask, vector = cut(key)
    assert mask.sum() == 1 + (int(vector.abs().argmax()) != 2) and (vector > 0).sum() == 3


def test_the_order_of_the_patches_and_the_length_of_their_keys_change_nothing():
    key = some_keys(3)
    vector = cut(key)[1].flatten()
    order = torch.randperm(len(vector), generator=torch.Generator().manual_seed(0))
    moved = cut(key.flatten(0, 1)[order].reshape_as(key))[1].flatten()
    assert torch.allclose(moved, vector[order], atol=1e-9)
    scaled = cut(key * torch.rand(6, 7, 1, generator=torch.Generator().manual_seed(1)).add(0.1))
    assert torch.equal(scaled[0], cut(key)[0]) and torch.allclose(scaled[1].flatten(), vector, atol=1e-9)


@pytest.mark.parametrize("key", [torch.ones(3, 4, 5), torch.eye(12).reshape(3, 4, 12), torch.ones(1, 1, 5)])
def test_an_image_that_cannot_be_parted_is_whole_and_says_so(key):
    mask, vector = cut(key)
    assert mask.all() and not vector.any() and mask.shape == key.shape[:2]


# --- grids and boxes -------------------------------------------------------------------------------------------------

def test_a_component_ends_at_corners_and_a_seed_outside_has_none():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]]).bool()
    assert component(mask, 0).nonzero().tolist() == [[0, 0], [0, 1]]
    assert component(mask, 6).nonzero().tolist() == [[1, 2], [2, 2], [2, 3]]
    assert not component(mask, 2).any()
    assert bounds(component(mask, 6)).tolist() == [1, 2, 2, 2]


def test_overlap_by_counting_pixels():
    draw = torch.Generator().manual_seed(0)
    boxes = torch.cat([torch.randint(0, 6, (8, 2), generator=draw), torch.randint(1, 6, (8, 2), generator=draw)], 1)
    drawn = torch.zeros(8, 12, 12, dtype=torch.bool)
    for one, (top, left, tall, wide) in zip(drawn, boxes.tolist(), strict=True):
        one[top : top + tall, left : left + wide] = True
    both, either = (drawn[:, None] & drawn).sum((-1, -2)), (drawn[:, None] | drawn).sum((-1, -2))
    assert torch.allclose(iou(boxes, boxes), both.double() / either)


def test_an_object_is_found_from_one_half_on_and_what_was_not_looked_at_is_missed():
    truth = [torch.tensor([[0, 0, 4, 4], [8, 8, 2, 2]])] * 4
    found = [torch.tensor(b) for b in ([0, 0, 4, 8], [0, 0, 4, 9], [8, 8, 2, 2])]
    assert corloc(found, truth) == 50.0 and corloc(found, truth, least=0.51) == 25.0 and corloc([], truth) == 0.0


# --- the recipe ------------------------------------------------------------------------------------------------------

class Images(torch.utils.data.Dataset):
    def __init__(self, *shape, n=2):
        self.x = torch.rand(n, 3, *shape, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], -100


def test_keys_are_those_that_the_last_attention_multiplies_with(monkeypatch):
    net, seen = ViT(image=16, patch=4, dim=24, depth=2, heads=3).eval(), []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: seen.append(k) or plain(q, k, v))
    x = torch.rand(2, 3, 16, 16)
    key = keys(net, x, 4)
    assert torch.equal(key.flatten(1, 2), seen[1][:, :, 1:].transpose(1, 2).flatten(2)) and len(seen) == 2
    assert torch.equal(keys(Frozen(net), x, 4), key)
    padded = torch.zeros(2, 3, 16, 16)
    padded[:, :, :13, :15] = x[:, :, :13, :15]
    assert torch.equal(keys(net, x[:, :, :13, :15], 4), keys(net, padded, 4))


def test_a_network_without_keys_is_refused():
    with pytest.raises(Refused, match="no layer that makes keys"):
        keys(nn.Sequential(nn.Linear(3, 3)), torch.rand(1, 3, 4, 4), 4)


def test_boxes_are_in_pixels_and_end_with_the_image():
    torch.manual_seed(0)
    net = ViT(image=16, patch=4, dim=24, depth=2, heads=3)
    data = Images(18, 15, n=6)
    for (box, mask, vector, map), x in zip(TokenCut(patch=4)(Run(), teacher=net, data=data), data.x, strict=True):
        top, left, tall, wide = box.tolist()
        whole = arena.enlarged([mask], 4)[0][:18, :15]
        assert torch.equal(map, bilateral.solve(x, whole)) and map.shape == (18, 15)
        assert mask.shape == vector.shape == (5, 4) and top + tall <= 18 and left + wide <= 15
        r, c = (mask.any(side).nonzero().flatten() for side in (1, 0))
        assert [top, left] == [4 * r[0], 4 * c[0]]
        assert top + tall == min(18, 4 * int(r[-1]) + 4) and left + wide == min(15, 4 * int(c[-1]) + 4)


def test_without_smoothing_the_map_is_the_mask():
    torch.manual_seed(0)
    net, data = ViT(image=16, patch=4, channels=2, dim=24, depth=1, heads=3), Images(16, 16)
    data.x = data.x[:, :2]                                         # no colours, and no solver that asks for them
    for _, mask, _, map in TokenCut(patch=4, smooth=0.0)(Run(), teacher=net, data=data):
        assert torch.equal(map, arena.enlarged([mask], 4)[0])


def test_a_patch_that_is_not_the_teachers_is_refused():
    with pytest.raises(Refused, match="patch"):
        TokenCut(patch=2)(Run(), teacher=ViT(image=16, patch=4, dim=24, depth=1, heads=3), data=Images(16, 16))


@pytest.mark.skipif(_compat.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("spec, prefix", [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_it_takes_transformers_of_timm_whatever_stands_before_the_patches(spec, prefix):
    net = _compat.package("timm").create_model(spec)
    data = Images(224, 224, n=1)
    last = next(name for name, _ in net.named_modules() if name.endswith("blocks.11.attn.qkv"))
    key = Tap(net, last)(data.x)[1][0][:, prefix:, 192:384]
    assert key.shape == (1, 196, 192)
    (_, mask, vector, _), = TokenCut(threshold=0.9)(Run(), teacher=copy.deepcopy(net), data=data)
    ours = cut(key[0].unflatten(0, (14, 14)), 0.9)
    assert torch.equal(mask, ours[0]) and torch.equal(vector, ours[1])


@pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
def test_keys_of_a_model_of_transformers():
    kinds = _compat.package("transformers")
    torch.manual_seed(0)
    net = kinds.ViTModel(kinds.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
                                         image_size=16, patch_size=4)).eval()
    x = torch.rand(2, 3, 16, 16)
    last = [name for name, _ in net.named_modules() if name.endswith("k_proj")][1]
    assert torch.equal(keys(net, x, 4).flatten(1, 2), Tap(net, last)(x)[1][0][:, 1:])


# --- the arena -------------------------------------------------------------------------------------------------------

def test_scenes_are_drawn_from_their_seed_with_the_ink_in_the_box():
    digits = arena.split("clean", 0).valid.tensors[0][:20]
    here, again, other = arena.drawn(digits, 1), arena.drawn(digits, 1), arena.drawn(digits, 2)
    boxes = torch.cat(here.boxes)
    assert torch.equal(here.x, again.x) and not torch.equal(here.x, other.x) and 0 <= here.x.min() < here.x.max() <= 1
    assert here.x.shape == (20, 3, 32, 32) and (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 32).all()
    assert (boxes[:, 2:] <= arena.DIGIT).all() and (boxes[:, 2] > arena.DIGIT / 2).all()
    assert all(torch.equal(bounds(mask)[None], box) for mask, box in zip(here.masks, here.boxes, strict=True))


def test_an_object_counts_alone_and_in_its_pile():
    objects = torch.zeros(30, 40, dtype=torch.long)
    objects[2:12, 3:13], objects[12:20, 5:15], objects[22:29, 30:38], objects[0, 39] = 2, 3, 4, 5
    boxes = [[2, 3, 10, 10], [12, 5, 8, 10], [22, 30, 7, 8]]
    assert arena._boxes(objects).tolist() == [*boxes, [2, 3, 18, 12], boxes[2]]          # a speck is none


def test_the_ground_is_real_where_the_photographs_lie_and_drawn_elsewhere(monkeypatch, tmp_path):
    try:
        arena.home("mosd_rgbd")
    except Refused as refused:
        pytest.skip(str(refused))
    ground = arena._ground.__wrapped__(0)
    assert ground.real and ground.train.x.shape == (45, 3, 88, 96) and ground.test.x.shape == (62, 3, 88, 96)
    assert all(len(boxes) for boxes in ground.test.boxes) and 0.1 < ground.test.masks.float().mean() < 0.4
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    arena._table.cache_clear()
    drawn = arena._ground.__wrapped__(0)
    arena._table.cache_clear()
    assert not drawn.real and drawn.patch == 4 and "drawn" in drawn.words


@pytest.mark.slow
def test_the_proof_fails_with_a_teacher_that_is_not_one():
    """Its keys are those of pixels, its threshold that of the paper."""
    cast = arena.scenes(0)
    made = TokenCut(threshold=0.2, patch=cast.ground.patch)(Run(), teacher=cast.plain, data=cast.actors["data"])
    assert not proof(made, cast).holds
