"""The engine: every promise of `Run`, on nets small enough to see through."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from stillroom import Run
from stillroom.batches import batches, positions
from stillroom.errors import Refused
from stillroom.parts import optim
from stillroom.parts.schedules import cosine
from stillroom.run import Diverged


def data(n=24, d=3):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, d, generator=g), torch.randn(n, 1, generator=g))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def fit(run, model, *, steps=6, batch=8, noise=0.0, **loop):
    opt = optim.sgd(model, lr=cosine(0.1), momentum=0.9)
    run.keep(model=model, opt=opt)
    for x, y in run.loop(data(), batch=batch, steps=steps, **loop):
        run.update(opt, mse=(model(x + noise * torch.randn_like(x)) - y).square().mean())
    return model


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Stop(Exception):
    pass


def stopping(run, after):
    """The run dies in the middle of step `after`, having saved at the end of every step before."""
    run.save_every = -1.0
    inner = run.loop

    def loop(*args, **named):
        for content in inner(*args, **named):
            if len(run.history_seen) == after:
                raise Stop
            run.history_seen.append(1)
            yield content

    run.history_seen = []
    run.loop = loop
    return run


# --- order of the data -----------------------------------------------------------------------------------------------

def test_a_pass_is_a_permutation_and_passes_follow_without_a_gap():
    seen = torch.cat([positions(10, 4, n, ("s",))[1] for n in range(5)])     # 20 = two passes of ten
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()


def test_order_depends_on_seed_alone_and_starts_anywhere():
    whole = [b[1].tolist() for b in (positions(10, 4, n, (0,)) for n in range(6))]
    assert [positions(10, 4, n, (0,))[1].tolist() for n in range(3, 6)] == whole[3:]
    assert [positions(10, 4, n, (1,))[1].tolist() for n in range(6)] != whole


def test_halves_of_a_batch_are_the_batch():
    whole = positions(10, 4, 3, (0,))[1].tolist()
    assert positions(10, 2, 6, (0,))[1].tolist() + positions(10, 2, 7, (0,))[1].tolist() == whole


class Noisy(Dataset):
    """A data set with randomness of its own, as image folders with random crops have."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.rand(2) + i, i


@pytest.mark.parametrize("workers", [0, 2])
def test_randomness_inside_the_data_follows_the_position_not_the_process(workers):
    def read(start, count, workers):
        return [x for x, _ in batches(Noisy(), 4, start=start, count=count, seed=(0,), workers=workers)]
    reference = read(0, 5, 0)
    assert all(torch.equal(a, b) for a, b in zip(read(2, 3, workers), reference[2:], strict=True))


def test_a_stream_without_length_is_refused_with_the_remedy():
    with pytest.raises(Refused, match="map-style"):
        batches(iter([1, 2]), 2, start=0, count=1, seed=(0,))


# --- loop, update, keep ----------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    assert same(fit(Run(), net(), noise=1.0), fit(Run(), net(), noise=1.0))
    assert not same(fit(Run(seed=1), net(), noise=1.0), fit(Run(), net(), noise=1.0))


def test_update_equals_the_loop_written_by_hand():
    ours, theirs = fit(Run(), net()), net()
    opt = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for step in range(6):
        index = positions(24, 8, step, (0, "loop"))[1]
        x, y = (t[index] for t in data().tensors)
        opt.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 6)) / 2
        opt.zero_grad()
        (theirs(x) - y).square().mean().backward()
        opt.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-7)


def test_accumulated_halves_equal_the_whole():
    assert torch.allclose(fit(Run(accumulate=2), net()).weight, fit(Run(), net()).weight, atol=1e-7)


@pytest.mark.parametrize("why", ["whole", "no data", "twice", "gathered", "odd"])
def test_accumulation_is_refused_where_it_would_be_wrong(why):
    run, model = Run(accumulate=2), net()
    opt = optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    with pytest.raises(Refused, match="accumulate"):
        if why == "whole":
            list(run.loop(data(), batch=4, steps=1, whole=True))
        elif why == "no data":
            list(run.loop(steps=1))
        elif why == "odd":
            list(run.loop(data(), batch=5, steps=1))
        for x, _ in run.loop(data(), batch=4, steps=1):
            loss = model(x).square().mean()
            if why == "twice":
                run.update(opt, a=loss)
                run.update(opt, a=model(x).square().mean())
            else:
                loss.backward()
                run.update(opt)


def test_update_moves_only_what_its_optimiser_owns_and_leaves_no_gradient_elsewhere():
    a, b = net(0), net(1)
    before = b.weight.clone()
    run, opt_a, opt_b = Run(), optim.sgd(a, lr=0.1), optim.sgd(b, lr=0.1)
    run.keep(a=a, b=b, opt_a=opt_a, opt_b=opt_b)
    for x, _ in run.loop(data(), batch=4, steps=1):
        assert run.update(opt_a, both=(a(x) + b(x)).square().mean())
        assert b.weight.grad is None and torch.equal(b.weight, before)
        assert a.weight.grad is None


def test_gathered_gradients_are_stepped_on():
    x = torch.zeros(2, requires_grad=True)
    run, opt = Run(), optim.sgd(x, lr=1.0, momentum=0.0)
    run.keep(x=x, opt=opt)
    for _ in run.loop(steps=1):
        (x * torch.tensor([1.0, 2.0])).sum().backward()
        run.update(opt)
    assert x.tolist() == [-1.0, -2.0]


def test_a_second_forward_in_a_bf16_step_sees_the_new_weights():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(4.0)
    run, opt = Run(precision="bf16"), optim.sgd(model, lr=4.0, momentum=0.0)
    run.keep(model=model, opt=opt)
    x = torch.ones(1, 1)
    for _ in run.loop(steps=1):
        run.update(opt, out=model(x).sum())
        assert model(x).dtype == torch.bfloat16 and model(x).item() == 0.0


def test_autocast_ends_with_the_step_even_when_the_body_fails():
    run = Run(precision="bf16")
    with pytest.raises(Stop), run:
        for _ in run.loop(steps=1):
            assert torch.is_autocast_enabled("cpu")
            raise Stop
    assert not torch.is_autocast_enabled("cpu")


def test_fp16_scales_the_loss_and_learns():
    model = fit(Run(precision="fp16"), net(), steps=20)
    x, y = data().tensors
    assert (model(x) - y).square().mean() < (net()(x) - y).square().mean()


def test_fp16_overflow_skips_the_step_and_says_so():
    model = net()
    run, opt = Run(precision="fp16"), optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    before, moved = model.weight.clone(), []
    for x, _ in run.loop(data(), batch=4, steps=1):
        opt.scaler._scale = torch.full((), 2.0**127)
        opt.scaler._growth_tracker = torch.zeros((), dtype=torch.int32)
        moved.append(run.update(opt, big=1e4 * model(x).square().mean()))
    assert moved == [False] and torch.equal(model.weight, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_is_refused_with_step_and_term_before_any_weight_moves(bad):
    model = net()
    run, opt = Run(), optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    before = None
    with pytest.raises(Diverged, match=r"step 2: term 'rough'"):
        for x, y in run.loop(data(), batch=4, steps=5):
            smooth = (model(x) - y).square().mean()
            before = model.weight.clone()
            run.update(opt, smooth=smooth, rough=smooth * (bad if run.step == 2 else 1))
    assert torch.equal(model.weight, before)


def test_a_gradient_that_is_not_finite_is_refused_too():
    x = torch.zeros(1, requires_grad=True)
    run, opt = Run(), optim.sgd(x, lr=0.1)
    run.keep(x=x, opt=opt)
    with pytest.raises(Diverged, match="gradient"):
        for _ in run.loop(steps=1):
            run.update(opt, root=(x.sqrt() * 0).sum())
    assert x.item() == 0.0


def test_clipping_bounds_the_step():
    x = torch.zeros(4, requires_grad=True)
    run, opt = Run(), optim.sgd(x, lr=1.0, momentum=0.0, clip=0.5)
    run.keep(x=x, opt=opt)
    for _ in run.loop(steps=1):
        run.update(opt, steep=(100 * x).sum())
    assert x.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_an_optimiser_or_weight_that_is_not_kept_is_caught():
    for keep_opt in (True, False):
        model = net()
        run, opt = Run(), optim.sgd(model, lr=0.1)
        run.keep(**({"opt": opt} if keep_opt else {"model": model}))
        with pytest.raises(RuntimeError, match="not kept"):
            for x, _ in run.loop(data(), batch=4, steps=1):
                run.update(opt, a=model(x).mean())


def test_a_term_must_be_a_scalar():
    model = net()
    run, opt = Run(), optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    with pytest.raises(RuntimeError, match=r"'wide' has shape \[4, 1\]"):
        for x, _ in run.loop(data(), batch=4, steps=1):
            run.update(opt, wide=model(x))


def test_two_loops_and_two_things_of_one_name_are_refused():
    run = Run()
    list(run.loop(steps=1))
    with pytest.raises(RuntimeError, match="two loops"):
        list(run.loop(steps=1))
    run.keep(a=net())
    with pytest.raises(RuntimeError, match="two things"):
        run.keep(a=net())


def test_progress_runs_from_zero_to_one():
    run, seen = Run(), []
    for step in run.loop(steps=4):
        seen.append((step, run.step, run.progress))
    assert seen == [(0, 0, 0.0), (1, 1, 0.25), (2, 2, 0.5), (3, 3, 0.75)] and run.progress == 1.0


# --- stop and go on --------------------------------------------------------------------------------------------------

def two_stages(run, steps=4):
    """A second stage whose new head is drawn after the first: it must be drawn the same after any stop."""
    model = net()
    opt = optim.adamw(model, lr=0.1)
    run.keep(model=model, opt=opt)
    for x, y in run.loop(data(), batch=8, steps=steps, name="one"):
        run.update(opt, mse=(model(x + torch.randn_like(x)) - y).square().mean())
    head, tail = nn.Linear(1, 1), []
    opt = optim.adamw(model, head, lr=0.1)
    run.keep(head=head, tail=tail, opt_two=opt)
    for x, y in run.loop(data(), batch=8, steps=steps, name="two"):
        tail.append(run.step)
        run.update(opt, mse=(head(model(x)) - y * torch.rand(1)).square().mean())
    return nn.ModuleList([model, head]), tail


@pytest.mark.parametrize("after", range(8))
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(tmp_path, after):
    with Run() as run:
        whole, tail = two_stages(run)
    with pytest.raises(Stop), stopping(Run(tmp_path), after) as run:
        two_stages(run)
    resume = (tmp_path / "checkpoint.pt").exists()
    assert resume == (after > 0)
    torch.rand(3)                                # whatever happened meanwhile
    with Run(tmp_path, resume=resume) as run:
        made, again = two_stages(run)
    assert same(made, whole) and again == tail == [0, 1, 2, 3]


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    with pytest.raises(Stop), stopping(Run(tmp_path), 3) as run:
        two_stages(run)
    with open(tmp_path / "log.jsonl", "a") as file:          # a line written after the last checkpoint
        file.write(json.dumps({"loop": "one", "step": 3, "mse": 0}) + "\n")
    with Run(tmp_path, resume=True) as run:
        two_stages(run)
        run.finish(None)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(x["loop"], x["step"]) for x in lines] == [(n, s) for n in ("one", "two") for s in range(4)]
    assert lines == run.history


def test_a_finished_run_resumed_does_nothing_again(tmp_path):
    with Run(tmp_path) as run:
        made = run.finish(fit(run, net()))
    with Run(tmp_path, resume=True) as run:
        assert list(run.loop(data(), batch=8, steps=6)) == []
    with Run(tmp_path, resume=True) as run:
        assert same(fit(run, net(5)), made)


def test_a_used_folder_an_empty_one_and_a_damaged_one_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(Refused, match="nothing to resume"):
        Run(tmp_path, resume=True)
    with Run(tmp_path) as run:
        run.finish(fit(run, net()))
    with pytest.raises(Refused, match="already holds a run"):
        Run(tmp_path)
    with pytest.raises(Refused, match="seed 0"):
        Run(tmp_path, resume=True, seed=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(Refused, match="damaged"):
        Run(tmp_path, resume=True)


def test_a_checkpoint_cannot_carry_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch " + str(tmp_path / "owned"),))
    torch.save({"format": 1, "seed": 0, "things": {"a": Evil()}}, tmp_path / "checkpoint.pt")
    with pytest.raises(Refused, match="damaged"):
        Run(tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()


def test_parts_keep_their_own_names(tmp_path):
    with Run(tmp_path) as run:
        first, second = fit(run.part("first"), net(0)), fit(run.part("second"), net(1))
        assert {"first/model", "second/model"} <= set(run._things) and not same(first, second)
        run.finish(None)
    with Run(tmp_path, resume=True) as run:
        assert same(fit(run.part("first"), net(7)), first)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    script = textwrap.dedent(f"""
        import sys, time, torch
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_run import *
        with Run({str(tmp_path / "r")!r}, save_every=1e9) as run:
            model, opt = net(), None
            opt = optim.sgd(model, lr=0.1)
            run.keep(model=model, opt=opt)
            for x, y in run.loop(data(), batch=8, steps=10**6):
                run.update(opt, mse=(model(x) - y).square().mean())
                print(run.step, flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "0\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and "stillroom run --resume" in err
    last = int(["0", *out.split()][-1])
    state = torch.load(tmp_path / "r" / "checkpoint.pt", weights_only=True)
    assert state["loops"] == {"loop": last + 1}


# --- what it says ----------------------------------------------------------------------------------------------------

def test_judges_watch_in_eval_mode_and_disturb_nothing():
    class Fickle(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if self.training else 1.0)

    def learn(watch):
        torch.manual_seed(0)
        run = Run(watch=watch, every=2)
        return fit(run, Fickle(3, 1), noise=1.0), run

    def judge(things):
        torch.rand(5)
        assert not torch.is_grad_enabled()
        return float(things["model"].training)
    plain, _ = learn({})
    watched, run = learn({"mode": judge})
    assert same(plain, watched) and watched.training
    assert [(x["step"], x["mode"]) for x in run.history if "mode" in x] == [(1, 0.0), (3, 0.0), (5, 0.0)]


def test_the_log_holds_terms_and_scalars_by_name():
    run, model = Run(), net()
    opt = optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    for x, _ in run.loop(data(), batch=4, steps=2):
        run.update(opt, size=model(x).square().mean())
        run.log(norm=x.norm(), count=len(x))
    assert [sorted(line) for line in run.history] == [["count", "loop", "norm", "seconds", "size", "step"]] * 2


@pytest.mark.parametrize("named", [{"precision": "fp8"}, {"device": "tpu9"}, {"device": "cuda:7"}, {"accumulate": 0},
                                   {"every": 0}, {"workers": -1}])
def test_options_that_cannot_be_are_refused(named):
    with pytest.raises(Refused):
        Run(**named)


@pytest.mark.slow
def test_compiled_in_place_gives_the_same():
    model = net()
    made = fit(Run(compile=True), model)
    assert made is model and model._compiled_call_impl is not None
    assert torch.allclose(made.weight, fit(Run(), net()).weight, atol=1e-6)
