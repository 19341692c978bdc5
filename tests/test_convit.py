"""ConViT: its attention as a convolution, as plain attention and in between; the published sizes; other grids."""

import math

import pytest
import torch
import torch.nn.functional as F

from stillroom.errors import Refused
from stillroom.models.convit import ConViT, GatedAttention, convit, offsets, reach

ROWS, COLUMNS = 5, 6
INNER = [r * COLUMNS + c for r in range(1, ROWS - 1) for c in range(1, COLUMNS - 1)]


def layer(heads=9, dim=36, strength=1.0, seed=0):
    torch.manual_seed(seed)
    return GatedAttention(dim, heads, strength).double()


def tokens(dim=36, batch=2, seed=1):
    return torch.randn(batch, ROWS * COLUMNS, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def away():
    return offsets(ROWS, COLUMNS).double()


@pytest.mark.parametrize("size, count", [("tiny", 5_710_512), ("small", 27_777_322), ("base", 86_540_040)])
def test_the_published_sizes_have_the_parameters_of_the_authors_code(size, count):
    """facebookresearch/convit, models.py: convit_tiny, convit_small, convit_base at 1000 classes."""
    with torch.device("meta"):
        assert sum(p.numel() for p in convit(size, classes=1000).parameters()) == count


def test_offsets_point_from_the_query_to_the_key():
    r = offsets(2, 3)
    assert r.shape == (6, 6, 3) and r[0, 5].tolist() == [2, 1, 5]
    assert r[5, 0].tolist() == [-2, -1, 5] and r[4, 1].tolist() == [0, -1, 1]


def test_each_of_nine_heads_begins_at_one_place_of_a_3_by_3_kernel():
    sharp, soft = layer(strength=20.0).by_place(away()), layer().by_place(away())
    for head in range(9):
        down, right = head % 3 - 1, head // 3 - 1
        for query in INNER:
            key = query + down * COLUMNS + right
            assert sharp[head, query, key] > 1 - 1e-8 and soft[head, query].argmax() == key
    middle = 2 * COLUMNS + 2
    wide = GatedAttention(36, 9).by_place(offsets(21, 21))[4, 10 * 21 + 10].max().item()
    near = sum(math.exp(-n * n) for n in range(-10, 11))
    assert wide == pytest.approx(1 / near**2, rel=1e-5) and round(wide, 3) == 0.318
    assert soft[4, middle].argmax() == middle


def test_four_heads_begin_between_four_patches_each():
    shares = layer(heads=4).by_place(away())
    middle = 2 * COLUMNS + 2
    for head in range(4):
        top = middle - (1 - head % 2) * COLUMNS - (1 - head // 2)
        four = [top, top + 1, top + COLUMNS, top + COLUMNS + 1]
        assert shares[head, middle].topk(4)[1].sort()[0].tolist() == four
        assert (shares[head, middle, four] - shares[head, middle, four[0]]).abs().max() < 1e-12


@torch.no_grad()
def test_without_content_it_is_a_convolution():
    net, x = layer(strength=30.0), tokens()
    net.gate.fill_(50.0)
    net.value.weight.copy_(torch.randn(36, 36, dtype=torch.float64))
    net.out.weight.normal_()
    kernel = torch.zeros(36, 36, 3, 3, dtype=torch.float64)            # [out, in, rows, columns]
    for head in range(9):
        part = slice(4 * head, 4 * head + 4)
        kernel[:, :, head % 3, head // 3] = net.out.weight[:, part] @ net.value.weight[part]
    theirs = F.conv2d(x.mT.unflatten(2, (ROWS, COLUMNS)), kernel, net.out.bias, padding=1).flatten(2).mT
    assert torch.allclose(net(x, away())[:, INNER], theirs[:, INNER], atol=1e-8)


@torch.no_grad()
def test_without_place_it_is_plain_attention_and_the_order_of_patches_says_nothing():
    net, x = layer(), tokens()
    mixed = net(x, away())
    order = torch.randperm(ROWS * COLUMNS, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(net(x[:, order], away()), mixed[:, order], atol=1e-3)
    net.gate.fill_(-60.0)
    q, k = net.qk(x).chunk(2, -1)
    v, said = net.value(x), []
    for head in range(9):
        part = slice(4 * head, 4 * head + 4)
        said.append((q[..., part] @ k[..., part].mT / 2).softmax(-1) @ v[..., part])
    plain = net.out(torch.cat(said, -1))
    assert torch.allclose(net(x, away()), plain, atol=1e-12)
    assert torch.allclose(net(x[:, order], away()), plain[:, order], atol=1e-12)


@torch.no_grad()
def test_the_maps_are_those_it_attends_by_and_sum_to_one():
    net, x = layer(seed=3), tokens()
    net.gate.normal_()
    maps = net.maps(x, away())
    assert maps.shape == (2, 9, 30, 30) and torch.allclose(maps.sum(-1), torch.ones(2, 9, 30).double())
    heads = maps @ net.value(x).unflatten(-1, (9, 4)).transpose(1, 2)
    assert torch.allclose(net(x, away()), net.out(heads.transpose(1, 2).flatten(2)), atol=1e-12)


def test_a_network_begins_with_its_local_blocks_as_they_were_meant():
    net = ConViT(image=8, patch=2, channels=1, dim=36, depth=3, heads=9, local=2, classes=4)
    for block in net.blocks[:2]:
        assert torch.equal(block.attention.value.weight, torch.eye(36)) and (block.attention.gate == 1).all()
        assert torch.equal(block.attention.place.weight, GatedAttention(36, 9).place.weight)


@torch.no_grad()
def test_the_class_token_comes_after_the_local_blocks_and_other_sizes_are_taken():
    net = ConViT(image=8, patch=2, channels=1, dim=36, depth=3, heads=9, local=2, classes=4).eval()
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append(out.shape[1]))
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 4) and net(torch.rand(1, 1, 6, 10)).shape == (1, 4)
    assert seen == [16, 16, 17, 15, 15, 16]


def test_the_reach_of_uniform_and_of_own_attention():
    r = offsets(2, 2)
    maps = torch.stack([torch.full((4, 4), 0.25), torch.eye(4)])[None]
    assert reach(maps, r).tolist() == pytest.approx([(2 + math.sqrt(2)) / 4, 0])


def test_heads_that_fill_no_kernel_are_refused():
    with pytest.raises(Refused, match="square"):
        ConViT(dim=36, heads=6)
    assert ConViT(dim=36, heads=6, local=0, depth=1)
