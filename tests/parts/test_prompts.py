"""Learnt tokens: where they stand, that they are dropped and replaced, that the transformer around them stays as it is."""

import copy

import pytest
import torch
from torch import nn

from stillroom import _compat
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.models.towers import TextTower
from stillroom.models.vit import ViT
from stillroom.parts.prompts import Prompted, blocks, first_tokens

TEXTS = torch.tensor([[1, 3, 4, 5, 2], [1, 3, 4, 6, 2]])


def vit(classes=5):
    torch.manual_seed(0)
    return ViT(image=8, patch=4, channels=1, dim=16, depth=3, heads=2, classes=classes).eval()


def clip(layers=3):
    transformers = _compat.package("transformers")
    torch.manual_seed(0)
    side = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    return transformers.CLIPModel(transformers.CLIPConfig(
        text_config={**side, "vocab_size": 40, "max_position_embeddings": 9, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**side, "image_size": 8, "patch_size": 4, "num_channels": 1}, projection_dim=12)).eval()


def images(n=4):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_a_transformer_with_tokens_block_by_block(depth):
    """By hand: tokens behind the others before each of the first blocks, in place of those before; none at the end."""
    net, x = vit(), images()
    prompted = Prompted(net, x[:1], 2, depth)
    assert prompted.tokens.shape == (min(depth, 3), 2, 16)
    h = torch.cat([net.cls.expand(4, -1, -1), net._embedded(x)], 1)
    for n, block in enumerate(net.blocks):
        if n < depth:
            h = torch.cat([h[:, :5], prompted.tokens[n].expand(4, -1, -1)], 1)
        h = block(h)
        assert h.shape == (4, 7, 16)
    assert torch.allclose(prompted(x), net.head(net.norm(h)[:, 0]), atol=1e-6)
    assert not torch.allclose(prompted(x), net(x), atol=1e-3)


def test_tokens_in_the_place_of_words_begin_as_these_words():
    torch.manual_seed(0)
    net = TextTower(7, 5, dim=16, depth=2, heads=2, width=6).eval()
    prompted = Prompted(net, TEXTS, 2, 2, at=1)
    h = net.embed(TEXTS) + net.places
    assert torch.equal(prompted.tokens[0], h[0, 1:3])
    for n, block in enumerate(net.blocks):
        h = block(torch.cat([h[:, :1], prompted.tokens[n].expand(2, -1, -1), h[:, 3:]], 1))
    assert torch.allclose(prompted(TEXTS), net.head(net.norm(h).mean(1)), atol=1e-6)
    assert torch.equal(Prompted(net, TEXTS, 2, 1, at=1)(TEXTS), net(TEXTS)), "at the first block alone, words for the same words"


def test_without_tokens_it_is_the_transformer_bit_for_bit():
    net, x = vit(), images()
    nothing = Prompted(net, x[:1], 0)
    assert torch.equal(nothing(x), net(x)) and not nothing.tokens.requires_grad
    two = clip()
    assert torch.equal(Prompted(two.vision_model, x[:1], 0)(x).pooler_output, two.vision_model(x).pooler_output)


def test_only_the_tokens_learn_and_the_transformer_alone_is_as_it_was():
    net, x = vit(), images()
    before, state = net(x), copy.deepcopy(net.state_dict())
    prompted = Prompted(net, x[:1], 3, 2).train()
    assert not net.training and [n for n, p in prompted.named_parameters() if p.requires_grad] == ["tokens"]
    prompted(x).square().sum().backward()
    assert all(p.grad is None for p in net.parameters())
    assert prompted.tokens.grad.abs().sum((1, 2)).min() > 0, "each block's tokens are reached"
    assert torch.equal(net(x), before) and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_nothing_is_left_on_the_transformer_when_it_fails_and_copies_are_apart():
    net, x = vit(), images()
    prompted = Prompted(net, x[:1], 2)
    with pytest.raises(RuntimeError):
        prompted(torch.rand(2, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    twin = copy.deepcopy(prompted)
    twin.tokens.data.mul_(-3)
    assert torch.equal(prompted(x), Prompted.forward(prompted, x)) and not torch.allclose(twin(x), prompted(x), atol=1e-4)


def test_transformers_clip_and_timm_take_them():
    x = images()
    model = clip()
    for body, given, at in ((model.vision_model, x, None), (model.text_model, TEXTS, 1)):
        prompted = Prompted(body, given, 2, 2, at)
        assert prompted.tokens.shape == (2, 2, 16) and blocks(body) == list(body.encoder.layers)
        out = prompted(given)
        assert out.pooler_output.shape == (len(given), 16)
        assert out.last_hidden_state.shape[1] == first_tokens(body, given).shape[1], "nobody after the blocks sees them"
        assert not torch.allclose(out.pooler_output, body(given).pooler_output, atol=1e-4)
    timm = _compat.package("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3,
                            global_pool="avg").eval()
    wide = torch.rand(2, 3, 32, 32)
    prompted = Prompted(net, wide, 2, 2)
    h = first_tokens(net, wide)
    for n, block in enumerate(net.blocks):
        h = block(torch.cat([h[:, :5], prompted.tokens[n].expand(2, -1, -1)], 1))
    said = net.forward_head(net.norm(h[:, :5]))
    assert torch.allclose(prompted(wide), said, atol=1e-6), "a mean over tokens is over the old ones"


def test_under_autocast_it_says_the_same():
    net, x = vit(), images()
    prompted = Prompted(net, x[:1], 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = prompted(x)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), prompted(x), atol=0.1)


@pytest.mark.slow
def test_compiled_or_around_a_compiled_transformer_it_says_the_same():
    net, x = vit(), images()
    prompted = Prompted(net, x[:1], 2)
    compiled = torch.compile(prompted, backend="eager")
    assert torch.allclose(compiled(x), prompted(x), atol=1e-6)
    net.compile(backend="eager")
    before = net(x)
    assert torch.allclose(prompted(x), compiled(x), atol=1e-6) and not torch.allclose(prompted(x), before, atol=1e-4)
    assert torch.equal(net(x), before)


def test_networks_without_tokens_and_texts_too_short_are_refused():
    for net in (mlp(), cnn(width=4)):
        with pytest.raises(Refused, match="has no list of blocks"):
            Prompted(net, images())
    with pytest.raises(Refused, match="take no tokens"):
        Prompted(nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(2))), images())
    with pytest.raises(Refused, match="4 prompts from token 2 on, and a text has 5"):
        Prompted(TextTower(7, 5), TEXTS, 4, at=2)
