"""The battery: what is asked of every recipe, by file name. A new file in `recipes/` is tested by being there."""

import copy
import dataclasses
import json
import re
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from pathlib import Path
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F

from stillroom import job, recipe, settings, status
from stillroom.errors import Refused
from stillroom.parts.optim import Optimiser
from stillroom.run import Run

NAMES = recipe.names()
every = pytest.mark.parametrize("name", NAMES)


def cost(name):
    """CPU seconds of its proof with one seed, as they were measured."""
    return min((s["cpu_seconds"] for s in status.proof(name).get("seeds", [])), default=0)


class Stop(Exception):
    """The machine went away."""


class Observed(Run):
    """A run that saves after every step, can stop before any step, forget a kept thing, and looks at every update."""

    def __init__(self, *args, stop=None, forget=None, check=False, **named):
        super().__init__(*args, save_every=-1.0, **named)
        self.stop, self.forget, self.check = stop, forget, check
        self.yielded: list[str] = []             # the loop of every step, in order
        self.kept_at: dict[str, int] = {}        # steps done when a thing was kept

    def keep(self, **things):
        for name, thing in things.items():
            key = self._path + name
            self.kept_at[key] = len(self.yielded)
            if key != self.forget:
                super().keep(**{name: thing})

    def loop(self, *args, **named):
        for content in super().loop(*args, **named):
            if self.stop is not None and len(self.yielded) == self.stop:
                raise Stop
            self.yielded.append(self._loop.key)
            yield content

    def update(self, opt: Optimiser, **terms):
        if not self.check:
            return super().update(opt, **terms)
        owned = {id(p) for p in opt.params}
        others = [p for t in self._root._things.values() for p in (t.parameters() if isinstance(t, torch.nn.Module) else [t])
                  if isinstance(p, torch.Tensor) and p.requires_grad and id(p) not in owned]
        before = [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in others]
        moved = super().update(opt, **terms)
        for p, (weight, grad) in zip(others, before, strict=True):
            assert torch.equal(p, weight), "update moved a weight that its optimiser does not own"
            assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad)), "update left a gradient"
        return moved


@lru_cache(maxsize=2)
def stage(name):
    return recipe.module(name).trial(0)


def play(name, run, steps=None):
    """One run of a recipe's trial from fresh actors; `steps` shortens every loop of it."""
    method, cast = stage(name)
    if steps is not None:
        method = shortened(method, steps)
    return method(run, **copy.deepcopy(cast.actors))


def shortened(method, steps):
    lengths = [f.name for f in dataclasses.fields(method) if f.name == "steps" or f.name.startswith("steps_")]
    assert lengths, "the length of a loop is a field called `steps` or `steps_…`"
    return dataclasses.replace(method, **{n: min(steps, getattr(method, n)) for n in lengths})


def plain(made):
    """What was made, as tensors and plain values that can be compared bit for bit."""
    if isinstance(made, torch.nn.Module):
        return {k: v.detach() for k, v in made.state_dict().items()}
    if dataclasses.is_dataclass(made) and not isinstance(made, type):
        return {f.name: plain(getattr(made, f.name)) for f in dataclasses.fields(made)}
    if isinstance(made, dict):
        return {k: plain(v) for k, v in made.items()}
    return [plain(v) for v in made] if isinstance(made, list | tuple) else made


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def far(a, b):
    """Largest difference between two things made."""
    if isinstance(a, torch.Tensor):
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    pairs = zip(a.values(), b.values()) if isinstance(a, dict) else zip(a, b) if isinstance(a, list) else ()
    return max((far(x, y) for x, y in pairs), default=0.0)


# --- the file --------------------------------------------------------------------------------------------------------

@every
def test_the_card_parses_and_the_source_keeps_the_rules_of_the_house(name):
    card = recipe.card(name)
    assert card.year and card.authors and card.link.startswith("https://")
    text = card.path.read_text()
    assert len(text.splitlines()) <= 120, "a recipe is one screen: is a part missing?"
    assert not re.search(r"^\s+self\.\w+ *=", text, re.M), "the step reads downward: no state on self"
    assert "hasattr(" not in text
    order = [text.index(mark) for mark in ("\nfrom ", "@dataclass", "def distill", "def trial", "def proof")]
    assert order == sorted(order), "card, imports, fields, distill, small functions, trial, proof"


@every
def test_it_needs_no_argument_and_every_flag_has_a_meaning(name):
    method = recipe.load(name)()
    fields = recipe.fields(name)
    assert [f.name for f in fields] == [f.name for f in dataclasses.fields(method)]
    for field in fields:
        assert getattr(method, field.name) == field.default and field.help, f"{field.name} needs a comment that says what it is"
    assert recipe.actors(name), "distill's actors are annotated"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, fields[0].name, None)


@every
def test_its_proof_was_measured_over_three_seeds(name):
    file = Path(__file__).parents[1] / "proofs" / f"{name}.json"
    assert file.exists(), f"run: stillroom prove {name} --seeds 3"
    assert len(json.loads(file.read_text())["seeds"]) >= 3


@every
def test_the_command_knows_what_to_do_with_its_trial(name):
    ready = job.prepare(settings.defaults(name))
    assert ready.cast is not None and ready.words and job.labelled(ready.test) <= (0 if ready.test is None else len(ready.test))


# --- the trial -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (cost(name) > 15)) for name in NAMES])
def test_the_proof_holds_after_the_trial_and_fails_after_one_step(name):
    proof = recipe.module(name).proof
    _, cast = stage(name)
    claim = proof(play(name, Run(), steps=1), cast)
    assert not claim.holds, f"a claim that one step fulfils is empty: {claim}"
    claim = proof(play(name, Run()), cast)
    measured = status.proof(name)
    better = 1 if measured["better"] == "higher" else -1
    won = {s["seed"]: better * (s["ours"] - s["beats"]) > 0 for s in measured["seeds"]}
    assert claim.holds or not won[0], f"the proof was measured to hold: {claim}"


# --- the engine under it ---------------------------------------------------------------------------------------------

@every
def test_a_stop_anywhere_goes_on_bit_for_bit(name, tmp_path):
    with Observed() as run:
        whole = plain(play(name, run, steps=4))
    first = [i for i, loop in enumerate(run.yielded) if loop not in run.yielded[:i]]
    last = len(run.yielded) - 1
    for stop in sorted({1, 2, last, *first, *(i + 1 for i in first)} - {0}):
        if stop > last:
            continue
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            play(name, Observed(folder, stop=stop), steps=4)
        torch.rand(7)                            # whatever happened meanwhile
        again = plain(play(name, Observed(folder, resume=True), steps=4))
        assert same(whole, again), f"stopped before step {stop} ({run.yielded[stop]}), it went on elsewhere"


@every
def test_everything_that_learns_or_remembers_is_kept(name, tmp_path):
    with Observed() as run:
        whole = plain(play(name, run, steps=4))
    for thing, at in run.kept_at.items():
        stops = range(at + 3, at, -1)
        assert any(missed(name, thing, stop, whole, tmp_path / f"{thing}{stop}") for stop in stops if stop < len(run.yielded)), \
            f"{thing!r} is kept without need"


def missed(name, thing, stop, whole, folder):
    """Whether a run that forgot a thing, stopped and went on, ended elsewhere, or could not be made at all."""
    try:
        play(name, Observed(folder, stop=stop, forget=thing), steps=4)
    except RuntimeError as error:
        assert "kept" in str(error), error
        return True
    except Stop:
        pass
    try:
        return not same(whole, plain(play(name, Observed(folder, resume=True, forget=thing), steps=4)))
    except Exception:                            # it could not even go on without it
        return True


@every
def test_update_moves_only_what_its_optimiser_owns(name):
    play(name, Observed(check=True), steps=4)


class Fresh(Run):
    """After every update in bf16: a layer computes with the weights as they are now, not with a cast from before."""

    def update(self, opt, **terms):
        moved = super().update(opt, **terms)
        for p in opt.params:
            if p.ndim == 2:
                first = torch.zeros(1, p.shape[1])
                first[0, 0] = 1
                assert torch.equal(F.linear(first, p)[0], p.detach().bfloat16()[:, 0]), "a stale cast of a weight was used"
        return moved


@every
def test_it_runs_in_bf16_with_fp32_weights_and_no_stale_casts(name):
    tensors = [plain(play(name, Fresh(precision="bf16"), steps=3))]
    while tensors:
        x = tensors.pop()
        assert not isinstance(x, torch.Tensor) or x.dtype != torch.bfloat16
        tensors += list(x.values()) if isinstance(x, dict) else x if isinstance(x, list) else []


@contextmanager
def same_luck_for_all(monkeypatch):
    """Every call to a generator gives one number to all samples, so that a batch and its halves draw the same."""
    calls = count()

    def reseed(self, key, step, micro):
        nonlocal calls
        calls = count()
        torch.manual_seed(crc32(f"{key}/{step}".encode()))

    def constant(draw):
        def drawn(*args, **named):
            shape = draw(*args, **named)
            state = torch.random.get_rng_state()
            torch.manual_seed(next(calls))
            kind = {k: v for k, v in named.items() if k in ("dtype", "device")}
            value = draw(1, **kind) if draw in sized else draw(torch.zeros(1))
            torch.random.set_rng_state(state)
            return torch.full_like(shape, value.item())
        return drawn

    sized = (torch.rand, torch.randn)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_reseed", reseed)
        for draw in (torch.rand, torch.randn, torch.rand_like, torch.randn_like):
            patch.setattr(torch, draw.__name__, constant(draw))
        yield


@every
def test_two_halves_are_one_whole_or_refused(name, monkeypatch):
    stage(name)      # before the draws are constant: an arena keeps what it made for the tests that follow
    with same_luck_for_all(monkeypatch):
        whole = plain(play(name, Run(), steps=2))
        try:
            halves = plain(play(name, Run(accumulate=2), steps=2))
        except Refused as refusal:
            assert "accumulate" in str(refusal)
            return
    assert far(whole, halves) < 1e-4, "the halves of a batch did not add up to the whole: is the update a mean over samples?"
