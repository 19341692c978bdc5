"""The log goes where it was asked to go: read back with each tool's own reader."""

import json
import sqlite3
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom.errors import Refused
from stillroom.parts import optim
from stillroom.trackers import KNOWN, tracker

LINES = [{"loop": "loop", "step": s, "seconds": 0.1 * s, "soft": 1.0 / (s + 1), "accuracy": float(s)} for s in range(4)]
LATER = [{"loop": "second", "step": s, "seconds": 1.0, "soft": 10.0 + s} for s in range(2)]


@pytest.fixture
def folder(tmp_path):
    """A run's folder, as `stillroom run` leaves it."""
    said = {"recipe": "kd", "actors": {"student": "small:mlp"}, "fields": {"alpha": 0.5}, "options": {"seed": 3}}
    (tmp_path / "run.json").write_text(json.dumps(said))
    return tmp_path


def written(name, folder):
    """The lines through a tracker that is closed in between, as by a stop and a resume."""
    for lines in (LINES, LATER):
        found = tracker(name, folder)
        for line in lines:
            found.log(line)
        found.close()


def events(folder):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_holds_every_scalar_at_its_step(folder):
    pytest.importorskip("tensorboard")
    written("tensorboard", folder)
    reader = events(folder)
    assert set(reader.Tags()["scalars"]) == {"soft", "accuracy", "second/soft"}
    assert [(e.step, e.value) for e in reader.Scalars("accuracy")] == [(s, float(s)) for s in range(4)]
    assert [e.value for e in reader.Scalars("soft")] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert [(e.step, e.value) for e in reader.Scalars("second/soft")] == [(0, 10.0), (1, 11.0)]
    text = reader.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "alpha: 0.5" in text and "student: small:mlp" in text


def test_a_run_hands_its_log_to_its_trackers(tmp_path):
    pytest.importorskip("tensorboard")
    torch.manual_seed(0)
    model, run = nn.Linear(2, 1), Run(tmp_path / "run", trackers=("tensorboard",))
    opt = optim.sgd(model, lr=0.1)
    run.keep(model=model, opt=opt)
    for x, y in run.loop(TensorDataset(torch.randn(8, 2), torch.randn(8, 1)), batch=4, steps=5):
        run.update(opt, mse=(model(x) - y).square().mean())
    run.finish(model)
    log = [json.loads(line)["mse"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e.value for e in events(tmp_path / "run").Scalars("mse")] == pytest.approx(log)
    assert len(log) == 5


def test_wandb_writes_into_the_folder_and_stays_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    written("wandb", folder)
    files = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({f.name for f in files}) == 1         # one record, told in two parts
    assert b"accuracy" in b"".join(f.read_bytes() for f in files)


def test_mlflow_keeps_one_record_over_a_stop(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    written("mlflow", folder)
    with sqlite3.connect(folder / "mlflow.db") as base:
        assert base.execute("select count(*) from runs").fetchone() == (1,)
        assert dict(base.execute("select key, value from params").fetchall())["alpha"] == "0.5"
        rows = base.execute("select step, value from metrics where key = 'second/soft' order by step").fetchall()
    assert rows == [(0, 10.0), (1, 11.0)]


def test_trackio_keeps_one_record_over_a_stop(folder, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    written("trackio", folder)
    with sqlite3.connect(folder / "trackio" / "stillroom.db") as base:
        assert len(base.execute("select distinct run_name from metrics").fetchall()) == 1
        assert base.execute("select count(*) from metrics").fetchone() == (len(LINES) + len(LATER),)


@pytest.mark.parametrize("name", [n for n in KNOWN if n != "tensorboard"])
def test_a_missing_package_names_its_extra(name, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)            # what an import meets where it is not installed
    with pytest.raises(Refused, match=f"pip install 'stillroom\\[{name}\\]'"):
        tracker(name, folder)


def test_missing_tensorboard_names_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Refused, match=r"pip install 'stillroom\[tensorboard\]'"):
        tracker("tensorboard", folder)


def test_an_unknown_tracker_and_a_run_without_folder_are_refused(tmp_path):
    with pytest.raises(Refused, match="did you mean 'wandb'"):
        tracker("wandbb", tmp_path)
    with pytest.raises(Refused, match="needs a run with a folder"):
        Run(trackers=("tensorboard",))


def test_every_tracker_is_an_extra_of_the_package_and_a_flag():
    from stillroom.settings import OPTIONS

    assert all(f"'{name}'" in next(f.type for f in OPTIONS if f.name == "trackers") for name in KNOWN)
