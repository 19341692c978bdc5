"""compare: equal budgets and first weights, choices on the validation split, numbers by hand, stop and go on, refusals."""

import csv
import hashlib
import json
import math
import os
import shlex
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from stillroom.arenas.alone import Alone
from stillroom.comparison import compare
from stillroom.comparison.cells import choose, curve, updates_done
from stillroom.comparison.judge import numbers
from stillroom.comparison.plan import GRID, assignments, parse_budget, share
from stillroom.comparison.ranks import mean_std, paired, rank
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.models.small import mlp
from stillroom.recipes.classification.kd import KD
from stillroom.run import Run

BUDGET = 40


@pytest.fixture(scope="module")
def actors():
    """Digits, a hundred labels, an MLP teacher of a few steps; the student is drawn anew for every seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.tensor(raw.target)
    known = y[:600].clone()
    known[100:] = -100
    data = SimpleNamespace(train=TensorDataset(x[:600], known), valid=TensorDataset(x[600:800], y[600:800]),
                           test=TensorDataset(x[800:1200], y[800:1200]))
    torch.manual_seed(7)
    teacher = Alone(steps=150)(Run(), student=mlp(hidden=64), data=TensorDataset(x[:600], y[:600]))
    return {"teacher": teacher, "student": lambda: mlp(hidden=16), "data": data}


@pytest.fixture(scope="module")
def done(actors, tmp_path_factory):
    """A comparison of two methods on three seeds, with its folder."""
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare("kd", "nkd_uskd:gamma=1.0", **actors, seeds=3, budget=BUDGET, batch=32, out=out, show=False), out


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_every_run_gets_the_same_budget_and_batch(done):
    result, out = done
    folders = sorted(out.glob("runs/*/seed*"))
    assert len(folders) == len(result["cells"]) == 4 * 3
    for folder in folders:
        assert log(folder)[-1]["step"] + 1 == BUDGET                       # counted in the log, not in what compare says
        fields = json.loads((folder / "result.json").read_text())["fields"]
        assert (fields["steps"], fields["batch"]) == (BUDGET, 32)


def test_runs_of_a_seed_begin_with_the_same_weights(done):
    first = {}
    for cell in done[0]["cells"]:
        first.setdefault(cell["seed"], set()).add(cell["initial"])
    assert all(len(weights) == 1 for weights in first.values())
    assert len(set.union(*first.values())) == 3


def test_numbers_are_those_of_the_saved_student_after_the_last_update(done, actors):
    result, out = done
    for cell in result["cells"]:
        name, _, own = cell["contestant"].partition(":")
        mark = "-" + hashlib.blake2b(cell["contestant"].encode(), digest_size=3).hexdigest() if own else ""
        net = mlp(hidden=16)
        net.load_state_dict(load_file(out / "runs" / (name + mark) / f"seed{cell['seed']}" / "student.safetensors"))
        assert cell["accuracy"] == pytest.approx(accuracy(net, actors["data"].test), abs=1e-4)
        assert sum(cell["classes_right"]) / sum(cell["classes_count"]) * 100 == pytest.approx(cell["accuracy"])
        assert sum(cell["bins_count"]) == 400 and cell["curve"][-1][0] == BUDGET


def test_tuned_kd_is_the_best_of_the_grid_on_the_validation_split(done, actors):
    result, out = done
    tuning = json.loads((out / "tuning.json").read_text())
    assert len(tuning["trials"]) == len(GRID["alpha"]) * len(GRID["temperature"])
    top = max(t["accuracy"] for t in tuning["trials"])
    near = [t for t in tuning["trials"] if t["accuracy"] >= top - math.sqrt(top * (100 - top) / 200)]
    best = min(near, key=lambda t: t["loss"])
    assert tuning["chosen"] == {"alpha": best["alpha"], "temperature": best["temperature"]}
    torch.manual_seed(1000)
    student = mlp(hidden=16)
    made = KD(steps=BUDGET, batch=32, **tuning["chosen"])(
        Run(seed=0), student=student, teacher=actors["teacher"], data=actors["data"].train)
    assert best["accuracy"] == pytest.approx(accuracy(made, actors["data"].valid), abs=1e-4)
    assert {t["accuracy"] for t in tuning["trials"]} != {accuracy(made, actors["data"].test)}
    tuned = [c for c in result["cells"] if c["contestant"] == "kd_tuned"]
    assert all(tuning["chosen"].items() <= c["fields"].items() for c in tuned)
    assert tuned[0]["accuracy"] == pytest.approx(accuracy(made, actors["data"].test), abs=1e-4)     # the trial itself


def test_the_choice_does_not_see_the_test_split(done, actors, tmp_path):
    data = actors["data"]
    x, y = data.test.tensors
    other = SimpleNamespace(train=data.train, valid=data.valid, test=TensorDataset(x, y.roll(1)))
    compare(**{**actors, "data": other}, seeds=1, budget=BUDGET, batch=32, out=tmp_path / "o", only=["kd_tuned/0"], show=False)
    ours, theirs = (json.loads((f / "tuning.json").read_text()) for f in (tmp_path / "o", done[1]))
    keep = ("alpha", "temperature", "accuracy", "loss")
    assert [[t[k] for k in keep] for t in ours["trials"]] == [[t[k] for k in keep] for t in theirs["trials"]]
    assert ours["chosen"] == theirs["chosen"]


def test_the_highest_accuracy_on_few_images_is_not_taken_for_more_than_chance():
    trials = [{"accuracy": 93.0, "loss": 0.36}, {"accuracy": 92.0, "loss": 0.23}, {"accuracy": 60.0, "loss": 0.10}]
    assert choose(trials, 100) == (trials[1], pytest.approx(2.5515, abs=1e-4))       # √(0.93·0.07/100)
    assert choose(trials, 10_000)[0] is trials[0]
    assert choose([], 100) == ({}, 0.0)


def test_mean_spread_and_paired_interval_by_hand(done):
    result, _ = done
    score = {(c["contestant"], c["seed"]): c["accuracy"] for c in result["cells"]}
    for row in result["ranking"]:
        mine = np.array([score[row["name"], s] for s in range(3)])
        assert row["accuracy"] == pytest.approx({"mean": mine.sum() / 3, "std": math.sqrt(((mine - mine.mean()) ** 2).sum() / 2)})
        if row["role"] != "alone":
            d = mine - np.array([score["alone", s] for s in range(3)])
            half = stats.t.ppf(0.975, 2) * d.std(ddof=1) / math.sqrt(3)
            assert row["vs_alone"]["difference"] == pytest.approx(d.mean())
            assert (row["vs_alone"]["low"], row["vs_alone"]["high"]) == pytest.approx((d.mean() - half, d.mean() + half))
    means = [row["accuracy"]["mean"] for row in result["ranking"]]
    assert means == sorted(means, reverse=True) and result["winner"] == result["ranking"][0]["name"]


def test_what_is_left_behind(done):
    result, out = done
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    rows = list(csv.DictReader((out / "runs.csv").open()))
    assert [float(r["accuracy"]) for r in rows] == [c["accuracy"] for c in result["cells"]]
    first = next(c for c in result["cells"] if c["contestant"] == result["winner"] and c["seed"] == 0)
    assert json.loads((out / "winner" / "result.json").read_text())["accuracy"] == first["accuracy"]
    assert (out / "winner" / "student.safetensors").exists() and (out / "report.html").exists()
    assert not list(out.rglob("checkpoint.pt")) and not list(out.rglob("*.new"))


def test_the_same_call_does_nothing_again_and_methods_and_seeds_may_be_added(done, actors):
    _, out = done
    times = {f: f.stat().st_mtime_ns for f in out.rglob("log.jsonl")}
    exported = out / "winner" / "student.onnx"
    exported.write_text("kept")
    again = compare("kd", "nkd_uskd:gamma=1.0", **actors, seeds=3, budget=BUDGET, batch=32, out=out, show=False)
    assert {f: f.stat().st_mtime_ns for f in out.rglob("log.jsonl")} == times and exported.exists()
    more = compare("kd", "kd:alpha=0.1", **actors, seeds=1, budget=BUDGET, batch=32, out=out, show=False)
    assert {r["name"] for r in more["ranking"]} == {"alone", "kd_tuned", "kd", "kd:alpha=0.1"}
    old = {(c["contestant"], c["seed"]): c["accuracy"] for c in again["cells"]}
    assert all(old[c["contestant"], c["seed"]] == c["accuracy"] for c in more["cells"] if c["contestant"] in ("alone", "kd"))


@pytest.mark.parametrize("change, said", [
    ({"budget": 41}, "budget was '40 steps', is '41 steps'"), ({"batch": 16}, "batch was 32, is 16"),
    ({"precision": "bf16"}, "precision was 'fp32'"), ({"shared": "lr=0.1"}, "lr was 0.05, is 0.1"),
    ({"student": lambda: mlp(hidden=8), "teacher": mlp(hidden=64)}, "teacher was")])
def test_changed_settings_in_the_same_folder_are_refused(done, actors, change, said):
    with pytest.raises(Refused, match="another folder with --out") as error:
        compare("kd", **{**actors, "budget": BUDGET, "batch": 32, **change}, seeds=3, out=done[1], show=False)
    assert said in str(error.value)


class Stopper(nn.Module):
    """A student that asks its process to stop at one training step."""

    at, seen = 0, 0

    def __init__(self):
        super().__init__()
        self.net = mlp(hidden=16)

    def forward(self, x):
        Stopper.seen += self.training
        if Stopper.at and Stopper.seen == Stopper.at:
            Stopper.at = 0
            os.kill(os.getpid(), signal.SIGINT)
        return self.net(x)


def test_a_stopped_comparison_goes_on_to_the_same_end(actors, tmp_path):
    given = {**actors, "student": Stopper}
    want = compare("kd", **given, seeds=2, budget=BUDGET, batch=32, out=tmp_path / "whole", show=False)
    runs = len(GRID["alpha"]) * len(GRID["temperature"])
    for stop in (3 * BUDGET + 7, (runs - 2) * BUDGET + 7):          # in the fourth trial of the tuning, then in a cell
        Stopper.seen, Stopper.at = 0, stop
        with pytest.raises(KeyboardInterrupt, match="Go on with the same command") as said:
            compare("kd", **given, seeds=2, budget=BUDGET, batch=32, out=tmp_path / "parts", show=False)
        assert "saved at step" in str(said.value) and "stillroom compare kd" in str(said.value)
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.glob("parts/runs/*/*/result.json")}
    assert kept
    cell = next(iter(kept)).parent                                 # and one that was killed before it could save
    (cell / "result.json").unlink()
    del kept[cell / "result.json"]
    got = compare("kd", **given, seeds=2, budget=BUDGET, batch=32, out=tmp_path / "parts", show=False)
    assert all(f.stat().st_mtime_ns == then for f, then in kept.items())
    same = ("contestant", "seed", "status", "accuracy", "loss", "ece", "curve", "updates", "initial", "classes_right")
    assert [[c[k] for k in same] for c in got["cells"]] == [[c[k] for k in same] for c in want["cells"]]
    for file in (tmp_path / "whole" / "runs").rglob("student.safetensors"):
        twin = tmp_path / "parts" / file.relative_to(tmp_path / "whole")
        assert all(torch.equal(v, load_file(twin)[k]) for k, v in load_file(file).items())


def test_a_failure_is_a_row_and_stops_nobody(actors, tmp_path):
    out = tmp_path / "out"
    given = {**actors, "seeds": 2, "budget": 20, "batch": 32, "out": out, "show": False}
    result = compare("kd:lr=1e30", "kd", **given)
    last = result["ranking"][-1]
    assert (last["name"], last["failed"], last["complete"]) == ("kd:lr=1e30", 2, False)
    assert all(r["complete"] for r in result["ranking"][:-1]) and result["winner"] != last["name"]
    errors = [c["error"] for c in result["cells"] if c["status"] == "failed"]
    assert len(errors) == 2 and all(e.startswith("Diverged: ") and "step" in e for e in errors)
    assert "lower lr" in (out / "report.html").read_text()
    file = next(out.glob("runs/kd-*/seed0/result.json"))
    then = file.stat().st_mtime_ns
    compare("kd:lr=1e30", "kd", **given)
    assert file.stat().st_mtime_ns == then
    compare("kd:lr=1e30", "kd", **given, retry=True)
    assert file.stat().st_mtime_ns != then


def test_only_some_cells_now_the_others_later(actors, tmp_path):
    given = {**actors, "seeds": 2, "budget": 10, "batch": 32, "out": tmp_path / "out", "show": False}
    part = compare("kd", **given, only=["kd/0", "kd/1", "alone/0"])
    assert {(c["contestant"], c["seed"]) for c in part["cells"] if c["status"] == "done"} == {("kd", 0), ("kd", 1), ("alone", 0)}
    assert part["winner"] == "" and not (tmp_path / "out" / "winner").exists() and part["tuning"] == {}
    assert compare("kd", **given)["winner"]


def test_a_budget_of_time_becomes_updates_and_stays(actors, tmp_path):
    given = {**actors, "seeds": 1, "budget": "0.2s", "out": tmp_path / "out", "show": False, "only": ["alone/0", "kd/0"]}
    result = compare("kd", **given)
    for name in ("alone", "kd"):
        assert result["updates"][name] == max(1, int(0.2 / result["timed"][name]))
        assert next(c for c in result["cells"] if c["contestant"] == name)["updates"] == result["updates"][name]
        assert result["timed"][name] > 0
    assert compare("kd", **given)["updates"] == result["updates"]


@pytest.mark.parametrize("methods, options, said", [
    (["kdd"], {}, "did you mean 'kd'"),
    (["kd:alfa=1"], {}, "did you mean 'alpha'"),
    (["kd:alpha=much"], {}, "takes a number"),
    (["kd:alpha"], {}, "name=value"),
    (["kd:steps=3"], {}, "steps is set by --budget"),
    (["kd:batch=3"], {}, "batch is set by --batch"),
    (["kd_tuned:alpha=0.5"], {}, "alpha is set by the tuning"),
    (["kd", "kd"], {}, "named twice"),
    (["dmd2"], {}, "dmd2 cannot take part"),
    (["kd"], {"budget": "fast"}, "updates per run (600) or time per run"),
    (["kd"], {"budget": 0}, "not understood"),
    (["kd"], {"seeds": 0}, "a whole number from 1"),
    (["kd"], {"regime": "noisy"}, "your data are what they are"),
    (["kd"], {"shared": "lrr=1"}, "did you mean 'lr'"),
    (["kd"], {"only": ["kd/9"]}, "has no run 'kd/9'"),
    (["kd"], {"teacher": "", "student": ""}, "need a teacher and a student"),
    (["ssld"], {"budget": 1}, "cannot be shared by 2 loops"),
])
def test_refusals_come_before_anything_is_written(actors, tmp_path, methods, options, said):
    with pytest.raises(Refused) as error:
        compare(*methods, **{**actors, "seeds": 1, "budget": 10, "out": tmp_path / "out", "show": False, **options})
    assert said in str(error.value) and "→" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, broken, said", [
    ("teacher", mlp(hidden=8, classes=7), "classes"),
    ("student", lambda: mlp(inputs=9), "does not take samples of shape [1, 8, 8]")])
def test_actors_that_do_not_fit_are_refused(actors, tmp_path, name, broken, said):
    with pytest.raises(Refused) as error:
        compare("kd", **{**actors, name: broken}, budget=10, out=tmp_path / "out", show=False)
    assert said in str(error.value) and not (tmp_path / "out").exists()


def test_splits_without_labels_are_refused(actors, tmp_path):
    data = actors["data"]
    blank = TensorDataset(data.valid.tensors[0], torch.full((200,), -100))
    for wrong in ({"valid": blank}, {"test": blank}, {"train": TensorDataset(data.train.tensors[0], torch.full((600,), -100))}):
        given = {**actors, "data": SimpleNamespace(**{**vars(data), **wrong})}
        with pytest.raises(Refused, match="label"):
            compare("kd", **given, budget=10, out=tmp_path / "o", show=False)


def test_a_folder_with_something_else_is_refused(actors, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(Refused, match="holds no comparison"):
        compare("kd", **actors, budget=10, out=tmp_path, show=False)


def test_budgets_in_words():
    assert parse_budget(600) == parse_budget("600") == parse_budget("600 steps") == ("steps", 600)
    assert [parse_budget(t)[1] for t in ("300s", "1.5 m", "2h", "1min")] == [300, 90, 7200, 60]
    for wrong in ("", "-3", "1.5", "3 weeks", "0s"):
        with pytest.raises(Refused):
            parse_budget(wrong)


@pytest.mark.parametrize("total", [3, 4, 10, 601, 9999])
def test_a_budget_is_shared_in_proportion_and_to_the_last_update(total):
    loops = {"steps": 90_000, "steps_late": 9_000, "steps_end": 1}
    got = share(total, loops)
    assert sum(got.values()) == total and min(got.values()) >= 1 and list(got) == list(loops)
    assert abs(got["steps"] - (total - 3) * 90_000 / 99_001 - 1) <= 1


def test_assignments_keep_brackets_together():
    assert assignments("a=1, betas=(0.9,0.99),b=x=y") == {"a": "1", "betas": "(0.9,0.99)", "b": "x=y"}


def test_paired_differences_against_scipy_and_where_chance_cannot_be_judged():
    ours, theirs = [97.4, 96.6, 97.8, 95.0], [96.0, 96.4, 95.0, 95.2]
    got, test = paired(ours, theirs), stats.ttest_rel(ours, theirs)
    assert got["p"] == pytest.approx(test.pvalue)
    assert (got["low"], got["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert paired([3.0], [1.0]) == {"n": 1, "difference": 2.0, "low": None, "high": None, "p": None}
    assert paired([3.0, 4.0], [1.0, 2.0])["low"] is None           # the same difference twice: no spread to judge by
    assert paired([3.0, 4.0], [3.0, 4.0]) == {"n": 2, "difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert mean_std([]) == {"mean": None, "std": None} and mean_std([2.0]) == {"mean": 2.0, "std": None}


def test_ranking_puts_ties_behind_the_simpler_and_failures_last():
    who = [{"name": n, "role": r} for n, r in (("alone", "alone"), ("kd_tuned", "tuned"), ("a", "method"), ("b", "method"))]
    facts = {"ece": 1.0, "agreement": 90.0, "seconds": 1.0, "cost": {}}
    cells = [{"contestant": n, "seed": s, "status": "done", "accuracy": v, **facts}
             for n, values in (("alone", (90, 91)), ("kd_tuned", (90, 91)), ("a", (90.5, 90.5))) for s, v in enumerate(values)]
    cells += [{"contestant": "b", "seed": 0, "status": "done", "accuracy": 99.0, **facts},
              {"contestant": "b", "seed": 1, "status": "failed"}]
    ranking = rank(who, cells)
    assert [r["name"] for r in ranking] == ["alone", "kd_tuned", "a", "b"]
    assert ranking[3]["vs_alone"]["n"] == 1 and ranking[0]["vs_alone"] is None


def test_numbers_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.2], [3.0, 0.0], [0.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1])
    got = numbers(logits, y)
    sure = [1 / (1 + math.exp(-gap)) for gap in (2.0, 0.2, 3.0, 1.0)]      # .88 right, .55 wrong, .95 wrong, .73 right
    assert got["accuracy"] == 50 and got["classes_right"] == [1, 1] and got["classes_count"] == [2, 2]
    assert got["bins_count"] == [0, 0, 0, 0, 0, 1, 0, 1, 1, 1] and got["bins_right"] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert got["bins_sure"] == pytest.approx([0, 0, 0, 0, 0, sure[1], 0, sure[3], sure[0], sure[2]], abs=1e-6)
    with pytest.raises(FloatingPointError, match="1 of 4"):
        numbers(torch.where(logits == 3, torch.nan, logits), y)


def test_logs_of_several_loops_are_one_curve():
    lines = [{"loop": "a", "step": 4, "valid": 50.0}, {"loop": "a", "step": 9, "valid": 60.0}, {"loop": "b", "step": 0},
             {"loop": "b", "step": 4, "valid": 70.0}]
    assert updates_done(lines) == 15 and curve(lines) == [[5, 50.0], [10, 60.0], [15, 70.0]]


@pytest.mark.slow
def test_on_the_digits_kd_gains_with_few_labels_and_the_winner_can_be_shipped(tmp_path, capsys):
    from stillroom.cli import main

    assert main(["compare", "kd", "--seeds", "3", "--budget", "600", "--out", str(tmp_path / "few")]) == 0
    said = capsys.readouterr().out
    assert "above the student alone" in said and "report.html" in said
    result = json.loads((tmp_path / "few" / "result.json").read_text())
    kd = next(r for r in result["ranking"] if r["name"] == "kd")
    assert kd["vs_alone"]["low"] > 5
    cell = next(c for c in result["cells"] if c["contestant"] == "kd_tuned" and c["seed"] == 1)
    words = shlex.split(cell["command"])
    assert words[:2] == ["stillroom", "compare"] and words[words.index("--out") + 1] == "again"
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main(words[1:]) == 0                                    # the command of one run, as the report prints it
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert [c["accuracy"] for c in again["cells"] if c["status"] == "done"] == [cell["accuracy"]] and again["winner"] == ""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(tmp_path / "few" / "winner"), "--onnx"]) == 0


@pytest.mark.slow
def test_on_clean_digits_it_says_that_there_is_no_gain(tmp_path):
    from stillroom.report import words

    result = compare("kd", regime="clean", seeds=3, budget=600, out=tmp_path / "clean", show=False)
    assert words.headline(result).startswith("No gain")
