"""Swing: its loss written out token by token, its limits, the detectors, and the audit that any language model can be put to."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom._compat import package
from stillroom.arenas import secrets as ground
from stillroom.errors import Refused
from stillroom.measure.exposure import Canary, digits, exposure, inserted, perplexity, surprises
from stillroom.models.gru import GRULanguageModel
from stillroom.parts import losses
from stillroom.parts.private import Memorised, Patterns, nothing
from stillroom.parts.text import logits, surprise
from stillroom.recipes.language.swing_distillation import SwingDistillation, laplace, swing_kl

SYMBOLS = ["<s>", *"abc 0123456789@.-"]


def said(seed, *shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encode(text):
    return [0, *map(SYMBOLS.index, text)]


def net(seed=0, dim=12):
    torch.manual_seed(seed)
    return GRULanguageModel(len(SYMBOLS), dim, 6)


# --- the loss --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("both", [True, False])
def test_every_token_has_its_own_temperature_written_out(both):
    z, t, r = said(0, 2, 3, 5), said(1, 2, 3, 5), said(2, 2, 3, 5)
    s = torch.tensor([[0.0, 0.3, 1.0], [0.9, 0.5, 0.1]], dtype=torch.float64)
    found = swing_kl(z, t, s, 2.0, 10.0, r, both)
    for n in range(2):
        for k in range(3):
            T = 2.0 + 8.0 * s[n, k].item()
            q = [math.exp(t[n, k, v] / T + s[n, k] * r[n, k, v]) for v in range(5)]
            p = [math.exp(z[n, k, v] / (T if both else 2.0)) for v in range(5)]
            kl = sum(a / sum(q) * math.log(a / sum(q) / (b / sum(p))) for a, b in zip(q, p, strict=True))
            assert found[n, k].item() == pytest.approx(4.0 * kl, rel=1e-4)


def test_where_nothing_is_private_it_is_plain_distillation():
    z, t = said(0, 4, 6), said(1, 4, 6)
    zero = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(swing_kl(z, t, zero, 2.0, 10.0, said(2, 4, 6)), swing_kl(z, t, zero, 2.0, 2.0))
    assert swing_kl(z, t, zero, 2.0, 10.0).mean().item() == pytest.approx(losses.kl(z, t, 2.0).item(), rel=1e-5)


def test_a_private_token_has_an_even_target_where_the_temperature_has_no_end():
    z = said(0, 1, 6).requires_grad_()
    one = torch.ones(1, dtype=torch.float64)
    grad, = torch.autograd.grad(swing_kl(z, said(1, 1, 6), one, 1.0, 1e9, both=False).sum(), z)
    assert torch.allclose(grad, z.softmax(-1) - 1 / 6, atol=1e-6)
    near, = torch.autograd.grad(swing_kl(z, said(1, 1, 6), one, 1.0, 1e4).sum(), z)
    assert near.abs().max() < 1e-4                      # softened alike, it hardly pulls at all
    budgets = [(swing_kl(z, said(1, 1, 6), one, 1.0, 9.0, said(2, 1, 6) / eps) - swing_kl(z, said(1, 1, 6), one, 1.0, 9.0)).abs()
               for eps in (1.0, 100.0, 1e9)]
    assert budgets[0] > budgets[1] > budgets[2] and budgets[2] < 1e-6


def test_noise_is_laplace_and_a_texts_own_where_it_is_fixed():
    torch.manual_seed(0)
    drawn = laplace(torch.zeros(200_000))
    assert abs(drawn.mean()) < 0.02 and drawn.abs().mean().item() == pytest.approx(1.0, abs=0.02)
    assert drawn.square().mean().item() == pytest.approx(2.0, abs=0.1) and drawn.isfinite().all()
    assert laplace(torch.zeros(9)).ne(laplace(torch.zeros(9))).all()
    fixed = laplace(torch.zeros(3, 2, 5), torch.tensor([7, 8, 7]), seed=1)
    assert torch.equal(fixed[0], fixed[2]) and fixed[0].ne(fixed[1]).all()
    assert torch.equal(fixed[1], laplace(torch.zeros(1, 2, 5), torch.tensor([8]), seed=1)[0])
    assert fixed[0].ne(laplace(torch.zeros(1, 2, 5), torch.tensor([7]), seed=2)[0]).all()


# --- the step --------------------------------------------------------------------------------------------------------

def texts():
    rows = [encode(t) for t in ("abc 12", "cab", "a 9 b c", "bb 0")]
    ids = torch.full((4, 8), -100)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return TensorDataset(ids, torch.full((4,), -100))


def first_step(**named):
    """Terms of the first step on the whole of the texts."""
    detector = named.pop("detector", Patterns(SYMBOLS))
    run = Run()
    SwingDistillation(**{"batch": 4, "steps": 1, "budget": math.inf, **named})(
        run, student=net(), teacher=net(1, 20), data=texts(), detector=detector)
    return run.history[0]


def test_a_step_written_out_labels_of_private_tokens_fall_away():
    own, theirs, found = net().double(), net(1, 20).double(), first_step(alpha=0.6, low=1.5, high=7.0)
    soft = hard = 0.0
    for row in texts().tensors[0]:
        row = row[row >= 0][None]
        z, t = own(row[:, :-1])[0], theirs(row[:, :-1])[0]
        for k, y in enumerate(row[0, 1:].tolist()):
            private = SYMBOLS[y].isdigit()
            T = 7.0 if private else 1.5
            q, p = (t[k] / T).log_softmax(-1), (z[k] / T).log_softmax(-1)
            soft += 1.5**2 * (q.exp() * (q - p)).sum().item() / 28
            hard += 0.0 if private else F.cross_entropy(z[k], torch.tensor(y)).item() / 28
    assert found["soft"] == pytest.approx(0.6 * soft, rel=1e-4) and found["hard"] == pytest.approx(0.4 * hard, rel=1e-4)


def test_plain_distillation_is_its_special_case_and_scores_between_weigh():
    plain = first_step(detector=nothing)
    assert plain == {**first_step(detector=nothing, high=1.0, softens="teacher"), "seconds": plain["seconds"]}
    half = first_step(detector=lambda ids: torch.full(ids.shape, 0.5))
    above = first_step(detector=lambda ids: torch.full(ids.shape, 0.51))
    assert half["hard"] == pytest.approx(plain["hard"] / 2, rel=1e-5) and above["hard"] == 0.0 < above["soft"]


def test_what_makes_no_sense_is_refused():
    for wrong in ({"softens": "student"}, {"low": 3.0, "high": 2.0}, {"budget": 0.0}):
        with pytest.raises(Refused, match="softens"):
            first_step(**wrong)


def test_fixed_noise_is_the_same_at_every_visit_of_a_text():
    class Still(nn.Module):
        """Says the same whatever it learns: only the noise can change its loss."""
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, ids):
            return torch.zeros(*ids.shape, len(SYMBOLS)) + 0 * self.weight
    for redraw, same in ((False, True), (True, False)):
        run = Run()
        SwingDistillation(batch=4, steps=3, redraw=redraw, budget=1.0)(
            run, student=Still(), teacher=net(1), data=texts(), detector=Patterns(SYMBOLS))
        seen = [line["soft"] for line in run.history]
        assert (max(seen) - min(seen) < 1e-6 * max(seen)) is same


# --- detectors -------------------------------------------------------------------------------------------------------

def test_patterns_are_found_in_tokens_of_any_length():
    ids = torch.tensor([encode("a 12 b"), encode("ba ab ")])
    assert Patterns(SYMBOLS)(ids).tolist() == [[0, 0, 0, 1, 1, 0, 0], [0] * 7]
    assert Patterns(SYMBOLS)(torch.tensor([encode("a 12-345 6789")])).tolist() == [[0, 0, 0, *[1] * 11]]    # a telephone's, whole
    longer = Patterns(["call ", "anna", " at", " +49 30", " 123 45", " or", " ann", "a.b@c", ".de"], names=["Anna"])
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, -100], [0, 6, 1, 5, 7, 8, 2, 2]])
    assert longer(ids).tolist() == [[0, 1, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0]]    # " annanna" is no Anna; ora.b@c.de


def test_what_the_teacher_knows_better_than_a_reference_was_memorised():
    teacher, plain, ids = net(1), net(2), texts().tensors[0]
    scores = Memorised(teacher, plain, a=1.5, b=0.25)(ids)
    for n, row in enumerate(ids):
        own = row[row >= 0][None]
        sure, known = (m(own[:, :-1]).log_softmax(-1)[0] for m in (teacher, plain))
        for k, y in enumerate(own[0, 1:].tolist()):
            gap = (sure[k, y] - known[k, y]).item()
            assert scores[n, k + 1].item() == pytest.approx(1 / (1 + math.exp(-1.5 * (gap - 0.25))), rel=1e-4)
    assert (scores[:, 0] == 0).all() and (scores[ids < 0] == 0).all()


# --- the audit -------------------------------------------------------------------------------------------------------

class Knows(nn.Module):
    """Expects each digit of `favourite` where it stands in a text, and everything else evenly."""

    def __init__(self, favourite, at, strength=5.0):
        super().__init__()
        self.favourite, self.at, self.strength = favourite, at, strength

    def forward(self, ids):
        out = torch.zeros(*ids.shape, len(SYMBOLS))
        for n, digit in enumerate(self.favourite):
            out[:, self.at + n, SYMBOLS.index(digit)] = self.strength
        return out


def test_exposure_of_the_first_and_of_one_in_the_middle_and_of_ignorance():
    canary = digits("a {}", 4, seed=0)
    assert len(canary.space) == 10_000 and canary.text == f"a {canary.secret}"
    assert exposure(Knows(canary.secret, 2), canary, encode) == pytest.approx(13.2877, abs=1e-4)      # log2 10^4
    assert exposure(Knows(canary.secret, 2, -5.0), canary, encode) == pytest.approx(0.0, abs=1e-9)
    assert exposure(Knows("", 2), canary, encode) == pytest.approx(1.0, abs=1e-3)                   # all alike: rank |R|/2

    class Orders(nn.Module):
        def forward(self, ids):
            return torch.arange(len(SYMBOLS), dtype=torch.float32).expand(*ids.shape, -1)
    middle = Canary("a{}", tuple("0123456789"), "5")                                                # five are likelier or it
    assert exposure(Orders(), middle, encode) == pytest.approx(math.log2(10 / 5), abs=1e-6)


def test_only_the_secrets_tokens_are_scored_not_what_follows():
    canary = Canary("a {} b", ("12", "34", "50"), "34")
    model = net(3).eval()
    want = []
    for secret in canary.space:
        ids = torch.tensor([encode(f"a {secret} b")])
        logp = model(ids[:, :-1]).log_softmax(-1)[0]
        want.append(-(logp[2, ids[0, 3]] + logp[3, ids[0, 4]]).item())
    assert surprises(model, canary, encode, batch=2).tolist() == pytest.approx(want, rel=1e-5)
    longer = Canary("a {}", ("1", "23"), "1")                                                       # of unequal length
    ids = torch.tensor([encode("a 23")])
    logp = model(ids[:, :-1]).log_softmax(-1)[0]
    found = surprises(model, longer, encode).tolist()
    assert found[1] == pytest.approx(-(logp[2, ids[0, 3]] + logp[3, ids[0, 4]]).item(), rel=1e-5)
    assert found[0] == pytest.approx(-logp[2, SYMBOLS.index("1")].item(), rel=1e-5)


def test_what_is_no_canary_is_refused():
    two = ("1", "2")
    for template, space, secret in (("a", two, "1"), ("{} {}", two, "1"), ("{}", two, "3"), ("{}", ("1",), "1")):
        with pytest.raises(Refused, match="no canary"):
            Canary(template, space, secret)
    with pytest.raises(Refused, match="first token"):
        surprises(net(), Canary("{}", ("1", "2"), "1"), lambda text: encode(text)[1:])


def test_canaries_are_put_among_the_texts():
    two = [digits("a {}", 2, seed=3), digits("b {}", 2, seed=3)]
    mixed = inserted(["x", "y", "z"], two, 4, seed=1)
    assert sorted(mixed) == sorted(["x", "y", "z", *[two[0].text] * 4, *[two[1].text] * 4]) and mixed != sorted(mixed)
    assert mixed == inserted(["x", "y", "z"], two, 4, seed=1) != inserted(["x", "y", "z"], two, 4, seed=2)


def test_perplexity_and_surprise_are_the_mean_over_what_is_there():
    ids, model = texts().tensors[0], net(2)
    each = [F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none") for row in (r[r >= 0] for r in ids)]
    assert perplexity(model, ids, batch=3) == pytest.approx(torch.cat(each).mean().exp().item(), rel=1e-5)
    found = surprise(model, ids)[1]
    assert found[:3].tolist() == pytest.approx(each[1].tolist(), rel=1e-4) and found[3:].sum() == 0
    even = Knows("", 0)
    assert perplexity(even, ids) == pytest.approx(len(SYMBOLS), rel=1e-5)


def test_a_model_of_transformers_can_be_audited_and_taught():
    transformers = package("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(SYMBOLS), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.tensor([encode("a 12")])
    assert torch.equal(logits(model, ids), model(ids).logits)
    canary = digits("a {}", 2, seed=0)
    row = torch.tensor([encode(canary.text)])
    own = model(row).logits.log_softmax(-1)[0]
    want = -(own[2, row[0, 3]] + own[3, row[0, 4]]).item()
    assert surprises(model, canary, encode)[canary.space.index(canary.secret)].item() == pytest.approx(want, rel=1e-4)
    before = perplexity(model, ids)
    made = SwingDistillation(batch=4, steps=20, lr=1e-2)(Run(), student=model, teacher=net(1), data=texts(),
                                                         detector=Patterns(SYMBOLS))
    assert perplexity(made, ids) != before


# --- the common ground -----------------------------------------------------------------------------------------------

def test_the_lines_are_apart_and_the_secrets_are_among_them():
    parts = ground.split(0)
    rows = {tuple(row) for row in parts.train.tensors[0].tolist()}
    for canary in parts.canaries:
        own = ground.encode(canary.text)
        assert sum(row[: len(own)] == own for row in parts.train.tensors[0].tolist()) == ground.TIMES
    assert not rows & {tuple(row) for row in parts.held.tolist()}
    assert parts.train.tensors[0].max() < len(ground.SYMBOLS) and len(parts.held) == ground.HELD
    assert "".join(ground.SYMBOLS[i] for i in ground.encode("my pin")[1:]) == "my pin"
