"""The kit of language models, with our GPT and with small models of transformers: what is drawn with a cache is what is drawn
without one, padding and packing change nothing, and log-probabilities are those of a softmax."""

import copy
import logging

import pytest
import torch

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.models.gpt import GPT
from stillroom.parts import text
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Frozen

SIZE, PAD, STOP = 13, 0, 1
SMALL = dict(vocab_size=SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=PAD,
             bos_token_id=2, eos_token_id=STOP)
FOREIGN = {"GPT2": SMALL | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
           "Llama": SMALL, "Qwen2": SMALL | {"num_key_value_heads": 1},
           "Gemma2": SMALL | {"head_dim": 8, "num_key_value_heads": 1},
           "GPTNeoX": SMALL, "Bloom": SMALL | {"n_layer": 2, "n_head": 2}}


def foreign(name):
    pytest.importorskip("transformers", reason="the extra `text` is not installed")
    transformers = package("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**FOREIGN[name]))


def model(name="GPT", spread=0.5):
    """One of random weights, so wide that its answers differ."""
    torch.manual_seed(0)
    net = GPT(SIZE, dim=16, layers=2, heads=2, length=64, eos=STOP, pad=PAD) if name == "GPT" else foreign(name)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.normal_(std=spread)
    return net.eval()


def prompts(rows=3, width=5, seed=1):
    """Of different lengths, padded on the left."""
    x = torch.randint(2, SIZE, (rows, width), generator=torch.Generator().manual_seed(seed))
    for row in range(rows):
        x[row, : row % width] = PAD
    return x


every = pytest.mark.parametrize("name", ["GPT", *FOREIGN])
both = pytest.mark.parametrize("name", ["GPT", "GPT2", "Llama"])


def alone(net, row):
    """Logits of a text without padding, without a cache [tokens, vocabulary]."""
    with torch.no_grad():
        return net(input_ids=row[None]).logits[0]


# --- sampling --------------------------------------------------------------------------------------------------------

@every
def test_the_likeliest_tokens_are_those_found_without_cache_and_padding(name):
    net, x = model(name), prompts()
    told = text.sample(net, x, 6, temperature=0)
    for n in range(len(x)):
        row = x[n][x[n] != PAD]
        for token, there in zip(told.said[n], told.mask[n]):
            if there:
                assert token == alone(net, row)[-1].argmax()
                row = torch.cat([row, token[None]])
            else:
                assert token == PAD and row[-1] == STOP
    assert told.ids[:, : told.width].equal(x) and told.there[:, : told.width].equal(x != PAD)


@both
def test_samples_are_those_drawn_without_cache_from_the_same_numbers(name):
    net, x = model(name), prompts()
    told = text.sample(net, x, 5, count=2, temperature=1.3, top_k=6, top_p=0.9, seeds=range(6))
    for n in range(6):
        row, dice = x[n // 2][x[n // 2] != PAD], torch.Generator().manual_seed(n)
        for token, there in zip(told.said[n], told.mask[n]):
            u = torch.rand((), dtype=torch.float64, generator=dice)
            if there:
                sums = text.chances(alone(net, row)[-1:], 1.3, 6, 0.9)[0].cumsum(0)
                assert token == int((sums <= u * sums[-1]).sum())
                row = torch.cat([row, token[None]])


def test_a_seed_draws_the_same_whatever_stands_beside_it():
    net, x = model(), prompts()
    together = text.sample(net, x, 6, seeds=[5, 6, 7])
    single = text.sample(net, x[1:2, 1:], 6, seeds=[6])
    long = single.said.shape[1]
    assert together.said[1, :long].equal(single.said[0]) and not together.mask[1, long:].any()
    assert not together.said.equal(text.sample(net, x, 6, seeds=[8, 9, 10]).said)


def test_without_seeds_torchs_generator_draws():
    net, x = model(), prompts(rows=20)
    torch.manual_seed(3)
    one, other = text.sample(net, x, 6), text.sample(net, x, 6)
    torch.manual_seed(3)
    assert text.sample(net, x, 6).ids.equal(one.ids) and not one.ids.equal(other.ids)


def test_draws_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    torch.manual_seed(0)
    drawn = torch.bincount(text.draw(logits.expand(40_000, -1), 0.7), minlength=4) / 40_000
    assert (drawn - (logits[0] / 0.7).softmax(-1)).abs().max() < 0.01


@pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (None, 0.6), (4, 0.7), (1, 1.0), (None, 1e-6)])
def test_top_k_and_top_p_are_those_of_transformers(top_k, top_p):
    package("transformers")
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    want = TemperatureLogitsWarper(0.8)(None, logits)
    want = want if top_k is None else TopKLogitsWarper(top_k)(None, want)
    want = TopPLogitsWarper(top_p)(None, want) if top_p < 1 else want
    assert torch.allclose(text.chances(logits, 0.8, top_k, top_p).float(), want.softmax(-1), atol=1e-6)


@both
def test_a_completion_ends_with_its_stop_token_and_padding_follows(name):
    told = text.sample(model(name, spread=0.1), prompts(rows=200), 12, seeds=range(200))
    for said, mask in zip(told.said, told.mask):
        ends = (said == STOP).nonzero()
        last = int(ends[0]) if len(ends) else len(said)
        assert mask[: last + 1].all() and not mask[last + 1 :].any() and (said[last + 1 :] == PAD).all()
    assert 20 < told.mask.logical_not().any(1).sum() < 200


def test_it_ends_as_soon_as_all_have():
    net = model()
    told = text.sample(net, prompts(), 50, stops=range(SIZE), temperature=0)
    assert told.said.shape == (3, 1) and told.mask.all()


def test_the_mode_of_every_module_stays():
    net = model().train()
    net.norm.eval()
    text.sample(net, prompts(), 2)
    assert net.training and net.blocks[0].training and not net.norm.training


def test_empty_prompts_unknown_ends_and_wrong_seeds_are_refused():
    net = model()
    for wrong in ([[PAD, PAD], [PAD, 3]], [[3, PAD], [PAD, 3]]):
        with pytest.raises(Refused, match="1 prompts are empty, or padded on the right"):
            text.sample(net, torch.tensor(wrong), 2)
    with pytest.raises(Refused, match="1 prompts are empty, or padded on the right"):
        text.sample(net, torch.tensor([[3, 4], [3, 4]]), 2, there=torch.tensor([[1, 1], [1, 0]]))
    with pytest.raises(Refused, match="2 seeds for 3 × 2"):
        text.sample(net, prompts(), 2, count=2, seeds=[1, 2])
    net.config.eos_token_id = None
    with pytest.raises(Refused, match="eos_token_id"):
        text.sample(net, prompts(), 2)
    assert text.special(net, [4, 5]) == ([4, 5], PAD)


# --- log-probabilities -----------------------------------------------------------------------------------------------

@every
def test_log_probabilities_are_those_of_each_text_alone(name):
    net, x = model(name), prompts()
    told = text.sample(net, x, 5, count=2, seeds=range(6))
    logp = text.log_probs(net, told)
    for n in range(6):
        row = told.ids[n][told.there[n]]
        many = int(told.mask[n].sum())
        want = alone(net, row[:-1]).double().log_softmax(-1)[-many:].gather(1, row[-many:, None])[:, 0]
        assert torch.allclose(logp[n][told.mask[n]].double(), want, atol=1e-5)
        assert (logp[n][~told.mask[n]] == 0).all()


def test_a_frozen_teacher_says_the_same_and_gives_no_gradient():
    net, told = model(), text.sample(model(), prompts(), 4, seeds=range(3))
    logp = text.log_probs(Frozen(copy.deepcopy(net)), told)
    assert torch.equal(logp, text.log_probs(net, told)) and not logp.requires_grad


def test_in_chunks_value_and_gradient_are_the_same():
    logits = torch.randn(4, 7, SIZE, dtype=torch.float64, requires_grad=True)
    ids, slope = torch.randint(SIZE, (4, 7)), torch.randn(4, 7, dtype=torch.float64)
    want = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    for chunk in (1, 5 * SIZE, 10**6):
        found = text.selected(logits, ids, chunk)
        assert torch.allclose(found, want, atol=1e-12)
        ours, theirs = (torch.autograd.grad(x, logits, slope, retain_graph=True)[0] for x in (found, want))
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_of_bf16_logits_it_is_computed_in_fp32():
    logits = torch.randn(3, SIZE).bfloat16()
    found = text.selected(logits, torch.tensor([0, 1, 2]))
    assert found.dtype == torch.float32 and torch.equal(found, logits.float().log_softmax(-1)[range(3), range(3)])


# --- packing ---------------------------------------------------------------------------------------------------------

TEXTS = [[2, 3, 4, 5, 1], [6, 7, 1], [8, 1], [9, 10, 11, 12, 2, 3, 1], [5, 1]]


@pytest.mark.parametrize("name", ["GPT", "GPT2", "Llama", "Qwen2", "GPTNeoX"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_texts_are_as_if_each_stood_alone(name, attention):
    net = model(name)
    if name != "GPT":
        net.set_attn_implementation(attention)
    packed = text.pack(TEXTS, 10, pad=PAD)
    with torch.no_grad():
        logits = packed.call(net)
    for n, own in enumerate(TEXTS):
        assert torch.allclose(logits[packed.texts == n], alone(net, torch.tensor(own)), atol=1e-5)
    assert logits.isfinite().all()


def test_every_text_stands_in_one_row_with_its_labels():
    packed = text.pack(TEXTS, 10, pad=PAD, skip=[2, 1, 0, 3, 1])
    assert packed.ids.shape == (2, 10)
    for n, own in enumerate(TEXTS):
        at = packed.texts == n
        assert at.any(1).sum() == 1 and packed.ids[at].tolist() == own and packed.positions[at].tolist() == list(range(len(own)))
        first = max(1, (2, 1, 0, 3, 1)[n])
        assert packed.labels[at].tolist() == [UNLABELLED] * (first - 1) + own[first:] + [UNLABELLED]
    rest = packed.texts == -1
    assert (packed.ids[rest] == PAD).all() and (packed.labels[rest] == UNLABELLED).all()
    with pytest.raises(Refused, match="7 tokens does not fit into 6"):
        text.pack(TEXTS, 6)


def test_a_token_sees_only_what_stands_before_it_in_its_text():
    mask = text.apart(torch.tensor([[0, 0, 1, 1, -1]]))[0, 0]
    assert (mask == 0).tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert mask.min() == torch.finfo(torch.float32).min
