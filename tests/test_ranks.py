"""Several ranks are one run: two gloo processes against one, replicated and sharded; stops, deaths and NaN on one of them.

| recipe               | two ranks against one process               | why                                                       |
| -------------------- | ------------------------------------------- | --------------------------------------------------------- |
| kd nkd dho ssld g2sd | bit for bit, against `accumulate=2`         | draws follow from the number of the part of the batch     |
| rdd tesla (pixels)   | bit for bit                                 | loops without data: every rank draws and does the same    |
| diswot               | the search bit for bit, its student as kd   |                                                           |
| dmd2                 | not                                         | optimisers take turns within a step, draws are by share   |
| dino                 | not, unless its views are the same          | `whole`: one process draws the views of a batch at once   |
| tesla (experts) uskd | not                                         | `whole`: draws, and means over the share of a rank        |
| with batch norm      | weights as with `accumulate=2`              | running statistics are averaged over ranks                |

All of them hold the same on all ranks afterwards.
"""

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run, ranks, shards, store
from stillroom.errors import Refused
from stillroom.parts import optim
from stillroom.parts.teachers import Cached, Ema, Frozen
from stillroom.recipe import load
from stillroom.run import Diverged

WAYS = {"replicated": {}, "sharded": {"shard": True}}
RECIPES = {"kd": {}, "nkd_uskd": {}, "dho": {}, "ssld": {}}


def data(n=24, d=3):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, d, generator=g), torch.randn(n, 1, generator=g))


class Net(nn.Module):
    """Blocks in a list, a method of its own, a layer that nothing reaches, and sizes that two does not divide."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.norm, self.last, self.idle = nn.LayerNorm(3), nn.Linear(3, 1), nn.Linear(5, 7)
        self.seen = nn.BatchNorm1d(3, affine=False)          # looks on

    def features(self, x):
        for block in self.blocks:
            x = x + block(x).tanh()
        self.seen(x.detach())
        return self.norm(x)

    def forward(self, x):
        return self.last(self.features(x))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


class Stop(Exception):
    pass


def two_learners(run, *, steps=4, batch=8, stop=None, start=0):
    """A student by its own method, a critic on what it says, an EMA teacher, a bare tensor; two optimisers in one step."""
    student, critic = net(start), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    teacher, shift = Ema(student), torch.zeros(3, requires_grad=True)
    opt, opt_critic = optim.adamw(student, lr=0.05, clip=1.0), optim.sgd(critic, lr=0.05)
    opt_shift = optim.sgd(shift, lr=0.05)
    run.keep(student=student, critic=critic, teacher=teacher, shift=shift, opt=opt, opt_critic=opt_critic, opt_shift=opt_shift)
    for x, y in run.loop(data(), batch=batch, steps=steps):
        if run.step == stop:
            raise Stop
        said, critique = student(x), critic(student.features(x) + shift)
        run.update(opt, mse=(said - y).square().mean(), critique=critique.square().mean())
        run.update(opt_critic, critic=(critic(student.features(x).detach()) - y).square().mean())
        if run.update(opt_shift, shift=(critic(student.features(x) + shift) - y).square().mean()):
            teacher.follow(student, 0.9)
        run.log(far=(teacher(x) - said.detach()).square().mean())
    return student, critic, teacher, shift


def one_learner(run):
    """Random draws in the step, and one update of one optimiser, as accumulation wants it."""
    student = net()
    run.keep(student=student, opt=(opt := optim.adamw(student, lr=0.05)))
    for x, y in run.loop(data(), batch=8, steps=4):
        run.update(opt, mse=(student(x + 0.1 * torch.randn_like(x)) - y).square().mean())
    return (student,)


def tensors(made):
    return [t.detach() for one in made for t in (one.state_dict().values() if isinstance(one, nn.Module) else [one])]


def learnt(made):
    """Weights alone: running variances see the parts of a batch, not the whole."""
    return [t.detach() for one in made for t in (one.parameters() if isinstance(one, nn.Module) else [one])]


def whole(made):
    return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in made]


def far(a, b):
    assert len(a) == len(b)
    return max((x.double() - y.double()).abs().max().item() for x, y in zip(a, b, strict=True))


def actors():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    images = TensorDataset(torch.rand(64, 1, 4, 4, generator=g), torch.randint(5, (64,), generator=g))
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 5)) for width in (8, 16))
    return {"student": student, "teacher": teacher, "data": images}


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


def method(name, steps=3):
    short = {"steps": steps, "batch": 16} | ({"steps_finetune": 2} if name == "ssld" else {})
    return load(name)(**short)


# --- what a rank does ------------------------------------------------------------------------------------------------

def all_at_once(folder):
    """Everything that two ranks can do in one life; what came of it is written for the tests below."""
    came = {}
    for way, options in WAYS.items():
        came[f"learn {way}"] = whole(tensors(plain_after(run := Run(**options), two_learners(run))))
        came[f"history {way}"] = run.history
        came[f"accumulate {way}"] = learnt(plain_after(run := Run(accumulate=2, **options), one_learner(run)))
        came[f"draws {way}"] = learnt(plain_after(run := Run(**options), one_learner(run)))
        came[f"bf16 {way}"] = learnt(plain_after(run := Run(precision="bf16", **options), two_learners(run)))
        with pytest.raises(Stop):
            two_learners(Run(folder / way, save_every=-1.0, **options), stop=3)
        for again, others in WAYS.items():
            if ranks.first():
                shutil.copytree(folder / way, folder / (way + again))
            ranks.wait()
            run = Run(folder / (way + again), resume=True, **others)
            came[f"{way} goes on {again}"] = whole(tensors(plain_after(run, two_learners(run, start=7))))
        run = Run(folder / f"from one {way}", resume=True, **options)
        came[f"one goes on {way}"] = whole(tensors(plain_after(run, two_learners(run, start=7))))
        came[f"nan {way}"] = said_of(lambda options=options: nan_on_one(Run(**options)))
        run = Run(watch={"seen": lambda things: things["student"](data().tensors[0]).mean().item()}, every=2, **options)
        two_learners(run)
        came[f"watched {way}"] = [line["seen"] for line in run.history if "seen" in line]
        views = store.Views(actors()["data"], noisy, count=2)
        ranks.once(lambda views=views, way=way: str(store.write(folder / f"store {way}", actors()["teacher"], views, rows=50)))
        for name, teacher in {"live": actors()["teacher"], "stored": Cached(folder / f"store {way}")}.items():
            cast = {**actors(), "data": views, "teacher": teacher}
            came[f"{name} {way}"] = learnt([method("kd", steps=10)(Run(**options), **cast)])
        for name in RECIPES:
            made = method(name)(Run(**options), **actors())
            came[f"{name} {way}"] = learnt([made])
            assert copy.deepcopy(made).__class__ is made.__class__ and "FSDP" not in type(made).__name__
    came["order"] = [y.flatten().tolist() for _, y in Run().loop(data(), batch=8, steps=6)]
    came["draws"] = [torch.rand(1).item() for _ in Run().loop(steps=2)], [torch.rand(1).item() for _ in
                                                                            Run().loop(data(), batch=8, steps=2)]
    came["odd"] = said_of(lambda: list(Run().loop(data(), batch=9, steps=1)))
    came["fp16"] = said_of(lambda: Run(shard=True, precision="fp16"))
    came["gathered"] = gathered(Run())
    (run := Run()).keep(net=(apart := nn.Linear(3 , 2)).requires_grad_(), t=(t := torch.rand(2) + ranks.rank()))
    came["kept"] = [apart.weight.detach(), t]
    came["shapes"] = said_of(lambda: Run().keep(net=nn.Linear(3, 2 + ranks.rank())))
    came["mean"] = run.mean(torch.tensor([float(ranks.rank())]))
    came["twice"] = said_of(lambda: (run := Run(shard=True)).keep(a=(one := net()), b=Holder(one)) or run)
    came["part"] = said_of(lambda: part_alone(Run(shard=True)))
    shards.LARGE = 10
    (run := Run(shard=True)).place(given := nn.Linear(6, 6).requires_grad_(False))
    came["frozen"] = sum(p.to_local().numel() for p in given.parameters()), Frozen(given)(torch.ones(1, 6)).shape
    return came


def plain_after(run, made):
    return run.finish(tuple(made))


def said_of(do):
    try:
        do()
    except (Refused, Diverged) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(1, 1)


def part_alone(run):
    with run:
        run.keep(student=(student := net()))
        student.last(torch.ones(2, 3))


def nan_on_one(run):
    student = net()
    run.keep(student=student, opt=(opt := optim.adamw(student, lr=0.1)))
    for x, y in run.loop(data(), batch=8, steps=3):
        loss = (student(x) - y).square().mean()
        run.update(opt, mse=loss + (float("inf") if run.step == 1 and ranks.rank() == 1 else 0.0))


def gathered(run):
    leaf, idle = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    run.keep(leaf=leaf, idle=idle, opt=(opt := optim.sgd(leaf, idle, lr=1.0, momentum=0.0, decay=0.5)))
    for _ in run.loop(steps=1):
        if ranks.rank() == 1:
            (leaf * torch.tensor([1.0, 2.0])).sum().backward()
        run.update(opt)
    return [leaf.detach(), idle.detach()]


def long(folder):
    """Until it is stopped, one rank being killed by itself at step 20 when asked."""
    resume = (folder / "run" / "checkpoint.pt").exists()
    with Run(folder / "run", save_every=0.3, resume=resume) as run:
        student = net()
        run.keep(student=student, opt=(opt := optim.sgd(student, lr=0.01)))
        for x, y in run.loop(data(), batch=8, steps=10**6):
            if "DIE" in os.environ and not resume and ranks.rank() == 1 and (folder / "run" / "checkpoint.pt").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            run.update(opt, mse=(student(x) - y).square().mean())
            time.sleep(0.01 * ranks.rank())
            (folder / f"step{ranks.rank()}").write_text(str(run.step))


def recipes(folder, names=None):
    """Two steps of every recipe's own trial, with the teacher of one process; mirage knows no loop."""
    from test_battery import NAMES, plain, play, stage

    count, came = os.environ.pop("WORLD_SIZE"), {}
    for name in names or [n for n in NAMES if n != "mirage"]:
        came[name] = stage(name)
    os.environ["WORLD_SIZE"] = count
    for name, (found, cast) in came.items():
        import test_battery

        test_battery.stage = lambda _, found=found, cast=cast: (found, cast)
        came[name] = plain(play(name, Run(), steps=2))
    return came


PLAIN = ("kd", "dho", "nkd_uskd", "ssld", "rdd", "g2sd")      # the same on two ranks as in one process
SOME = (*PLAIN[:-1], "hpcr", "light_hgnn")                     # whose casts are made in no time
JOBS = {"all": all_at_once, "long": long, "recipes": recipes, "some": partial(recipes, names=SOME)}


# --- two of them -----------------------------------------------------------------------------------------------------

def together(job, folder, patience=150):
    """Two processes with what torchrun tells them; what each of them wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    def begin(rank):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return subprocess.Popen([sys.executable, __file__, job, str(folder)], env=os.environ | told, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    both = [begin(rank) for rank in (0, 1)]
    try:
        for rank, one in enumerate(both):
            out, _ = one.communicate(timeout=patience)
            assert one.returncode == 0, f"rank {rank}: {out[-3000:]}"
    finally:
        for one in both:
            one.kill()
    return [torch.load(folder / f"{job}{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def came(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for way in WAYS:
        with pytest.raises(Stop):
            two_learners(Run(folder / f"from one {way}", save_every=-1.0), stop=3)
    first, second = together("all", folder)
    return first, second, folder


ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_two_ranks_are_one_process(came, way):
    one = two_learners(Run())
    for said in came[:2]:
        parts = whole_parts(said[f"learn {way}"], one)
        assert far(parts, learnt(one)) < 2e-6
    assert far(came[0][f"learn {way}"], came[1][f"learn {way}"]) == 0.0, "batch norms and EMA teachers are alike, too"


def whole_parts(state, like):
    """Of all tensors of a state, those that learn."""
    names = [not isinstance(one, nn.Module) or name not in dict(one.named_buffers())
             for one in like for name in (one.state_dict() if isinstance(one, nn.Module) else [""])]
    return [t for t, learns in zip(state, names, strict=True) if learns]


@ways
def test_running_statistics_are_the_mean_over_ranks(came, way):
    student = two_learners(Run())[0]
    at = list(student.state_dict()).index("seen.running_mean")
    for said in came[:2]:
        assert (said[f"learn {way}"][at] - student.seen.running_mean).abs().max() < 1e-6


@ways
def test_accumulation_and_draws_go_on_top(came, way):
    assert far(came[0][f"draws {way}"], learnt(one_learner(Run(accumulate=2)))) < 2e-6
    assert far(came[0][f"accumulate {way}"], learnt(one_learner(Run(accumulate=4)))) < 2e-6


@ways
def test_bf16(came, way):
    assert far(came[0][f"bf16 {way}"], learnt(two_learners(Run(precision="bf16")))) < 2e-2


@ways
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_on_two_ranks_are_as_on_one(came, name, way):
    one = learnt([method(name)(Run(accumulate=2), **actors())])
    assert far(came[0][f"{name} {way}"], came[1][f"{name} {way}"]) == 0.0
    assert far(came[0][f"{name} {way}"], one) <= (0.0 if way == "replicated" else 1e-6)
    assert far(one, learnt([method(name, steps=1)(Run(), **actors())])) > 1e-4, "later steps learn, too"


@ways
def test_a_store_gives_every_rank_what_the_live_teacher_would_say_of_its_share(came, way):
    assert far(came[0][f"live {way}"], came[0][f"stored {way}"]) == 0.0
    assert far(came[0][f"stored {way}"], came[1][f"stored {way}"]) == 0.0


@ways
@pytest.mark.parametrize("again", WAYS)
def test_two_ranks_go_on_as_if_they_had_never_stopped(came, way, again):
    for said in came[:2]:
        assert far(said[f"{way} goes on {again}"], said[f"learn {way}"]) < 1e-6


@ways
def test_one_process_goes_on_where_two_stopped(came, way, tmp_path):
    shutil.copytree(came[2] / way, tmp_path / way)
    run = Run(tmp_path / way, resume=True)
    assert far(learnt(two_learners(run, start=7)), learnt(two_learners(Run()))) < 2e-6
    assert run.history[0]["mse"] == pytest.approx(came[0][f"history {way}"][0]["mse"], rel=1e-5)


@ways
def test_two_go_on_where_one_process_stopped(came, way):
    one = two_learners(Run())
    for said in came[:2]:
        assert far(whole_parts(said[f"one goes on {way}"], one), learnt(one)) < 2e-6


def test_sharded_checkpoints_are_pieces_without_pickle_and_the_old_ones_go(came):
    pieces = sorted((came[2] / "sharded").glob("pieces-*"))
    assert len(pieces) == 1 and len(list(pieces[0].glob("*.safetensors"))) == 2
    assert {p.suffix for p in pieces[0].iterdir()} == {".safetensors"}
    assert not list((came[2] / "replicated").glob("pieces-*"))


@ways
def test_only_the_first_rank_writes_and_the_log_is_the_mean_over_ranks(came, way):
    two_learners(one := Run())
    lines = (came[2] / way / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    ours = [{k: v for k, v in line.items() if k != "seconds"} for line in came[1][f"history {way}"]]
    theirs = [{k: v for k, v in line.items() if k != "seconds"} for line in one.history]
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("loop") == b.pop("loop") and a == pytest.approx(b, rel=1e-4, abs=1e-6)


@ways
def test_a_nan_on_one_rank_ends_all_before_a_weight_moves(came, way):
    first, second = (said[f"nan {way}"] for said in came[:2])
    assert second.startswith("Diverged: loop, step 1: term 'mse' is inf")
    assert first.startswith("Diverged: loop, step 1: the gradient is not finite though every term is here: 2 ranks average it")


@ways
def test_judges_see_the_same_on_all_ranks(came, way):
    assert len(came[0][f"watched {way}"]) == 2 and came[0][f"watched {way}"] == came[1][f"watched {way}"]


def test_each_rank_has_its_share_and_together_they_see_what_one_sees(came):
    one = [y.flatten().tolist() for _, y in Run().loop(data(), batch=8, steps=6)]
    assert [a + b for a, b in zip(came[0]["order"], came[1]["order"], strict=True)] == one


def test_ranks_draw_alike_without_data_and_apart_with_it(came):
    (alike, apart), (alike_too, apart_too) = (said["draws"] for said in came[:2])
    assert alike == alike_too == [torch.rand(1).item() for _ in Run().loop(steps=2)]
    assert set(apart).isdisjoint(apart_too)


def test_kept_things_are_those_of_the_first_rank(came):
    assert far(came[0]["kept"], came[1]["kept"]) == 0.0
    assert "different shapes" in came[0]["shapes"] and "different shapes" in came[1]["shapes"]


def test_gathered_gradients_are_averaged_and_what_no_rank_reached_stays(came):
    for said in came[:2]:
        assert [t.tolist() for t in said["gathered"]] == [[-0.5, -1.0], [0.0]]
        assert said["mean"].tolist() == [0.5]


def test_a_batch_that_cannot_be_shared_and_fp16_in_pieces_are_refused_with_the_remedy(came):
    assert "a batch of 9 cannot be split into 2 equal parts" in came[0]["odd"] and "× 2 ranks" in came[0]["odd"]
    assert "bf16" in came[1]["fp16"]


def test_what_pieces_do_not_allow_is_refused_with_the_remedy(came):
    for said in came[:2]:
        assert "Holder holds a part of a model that is sharded already" in said["twice"] and "without shard" in said["twice"]
        assert "calls or copies a part of a model that lies in pieces" in said["part"]


def test_a_large_frozen_teacher_lies_in_pieces_as_soon_as_it_is_placed(came):
    assert [said["frozen"][0] for said in came[:2]] == [21, 21] and came[0]["frozen"][1] == (1, 6)


# --- under torchrun --------------------------------------------------------------------------------------------------

def torchrun(*words, **env):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*start, *map(str, words)], env=os.environ | env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_within_a_minute_and_the_run_goes_on(tmp_path):
    began = time.monotonic()
    out, _ = torchrun(__file__, "long", tmp_path, DIE="1").communicate(timeout=100)
    assert time.monotonic() - began < 60 and "Signal 9 (SIGKILL)" in out
    assert "rank 0 waits in vain for another" in out, out[-3000:]
    before = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loops"]["loop"]
    child = torchrun(__file__, "long", tmp_path)
    try:
        until(lambda: int((tmp_path / "step0").read_text() or 0) > before + 30)
    finally:
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=60)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loops"]["loop"] > before, out[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_agreed_on_and_all_save_the_same_step(tmp_path, wish):
    child = torchrun(__file__, "long", tmp_path)
    until(lambda: (tmp_path / "run" / "checkpoint.pt").exists() and (tmp_path / "step1").exists())
    child.send_signal(wish)
    out, _ = child.communicate(timeout=60)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["loops"]["loop"]
    assert [int((tmp_path / f"step{rank}").read_text()) + 1 for rank in (0, 1)] == [saved, saved], out[-2000:]
    assert out.count("all of it is saved") == 2, out[-2000:]


def until(holds, patience=60):
    ends = time.monotonic() + patience
    while not (value := tried(holds)) and time.monotonic() < ends:
        time.sleep(0.2)
    assert value


def tried(holds):
    try:
        return holds()
    except (OSError, ValueError):
        return False


@pytest.mark.slow
def test_the_command_runs_under_torchrun(tmp_path):
    words = ["run", "kd", "--folder", tmp_path / "kd", "--student", "small:mlp", "--teacher", "small:cnn", "--data", "digits"]
    out, _ = torchrun("-m", "stillroom", "list").communicate(timeout=60)
    assert "is the work of one process" in out
    out, _ = torchrun("-m", "stillroom", *words).communicate(timeout=100)
    assert "never trained" in out and out.count("rank 1: stillroom:") == 1 and not (tmp_path / "kd").exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["some", pytest.param("recipes", marks=pytest.mark.long)])
def test_trials_on_two_ranks(which, tmp_path):
    from test_battery import far as apart
    from test_battery import plain, play, same

    first, second = together(which, tmp_path, patience=900)
    for name, made in first.items():
        assert same(made, second[name]), f"{name}: the ranks hold different things"
    for name in [n for n in PLAIN if n in first]:
        how = {} if name == "rdd" else {"accumulate": 2}
        assert apart(first[name], plain(play(name, Run(**how), steps=2))) < 1e-4, name


if __name__ == "__main__":
    job, folder = sys.argv[1], Path(sys.argv[2])
    torch.save(JOBS[job](folder), folder / f"{job}{ranks.rank()}.pt")
