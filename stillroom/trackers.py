"""Where a run's log also goes, when asked: TensorBoard, Weights & Biases, MLflow, trackio; each imported when it is named.

A tracker has `log(line)`, a line of log.jsonl, and `close()`. All write into the run's folder unless the tool's own environment
variables name another place; nothing is sent anywhere unless they say so. A resumed run goes on in the same record.
"""

import json
import os
import secrets
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from stillroom.errors import Refused, nearest

FACTS = ("loop", "step", "seconds")     # of a line; the rest are scalars


class Tracker(Protocol):
    def log(self, line: dict[str, Any]) -> None:
        """One line of the log: loop, step, seconds, and scalars by name."""

    def close(self) -> None:
        """Write what is still in memory."""


def tracker(name: str, folder: Path | None) -> Tracker:
    """A tracker by name. Raises `Refused` when it is unknown, its package is missing, or the run has no folder."""
    if name not in KNOWN:
        raise Refused(f"no tracker is called {name!r}", nearest(name, KNOWN))
    if folder is None:
        raise Refused(f"{name} needs a run with a folder", "Run(folder, …), or `stillroom run`")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return KNOWN[name](folder)
    except ImportError as error:
        raise Refused(f"{name} is not installed ({error})", f"pip install 'stillroom[{name}]'") from error


class TensorBoard:
    """Event files in FOLDER/tensorboard: `tensorboard --logdir runs` shows all runs side by side."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("settings", "\n\n".join(f"{k}: {v}" for k, v in _settings(folder).items()))

    def log(self, line: dict[str, Any]) -> None:
        for tag, value in _scalars(line).items():
            self.writer.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Offline in FOLDER/wandb unless WANDB_MODE or WANDB_API_KEY is set; `wandb sync FOLDER/wandb/offline-*` sends it later."""

    def __init__(self, folder: Path):
        wandb = import_module("wandb")
        known = _known(folder, "wandb") or secrets.token_hex(4)
        online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self.run = wandb.init(project=os.environ.get("WANDB_PROJECT", "stillroom"), name=folder.name, dir=str(folder),
                              config=_settings(folder), mode=None if online else "offline", id=known, resume="allow",
                              settings=wandb.Settings(silent=True, console="off"))
        _remember(folder, "wandb", known)

    def log(self, line: dict[str, Any]) -> None:
        self.run.log({**_scalars(line), f"{line['loop']}/step": line["step"]})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """SQLite in FOLDER/mlflow.db unless MLFLOW_TRACKING_URI is set: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`."""

    def __init__(self, folder: Path):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")      # read when mlflow is imported
        self.mlflow = import_module("mlflow")
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stillroom")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self.mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
            if self.mlflow.get_experiment_by_name(project) is None:
                self.mlflow.create_experiment(project, artifact_location=(folder / "mlflow").resolve().as_uri())
        self.mlflow.set_experiment(project)
        known = _known(folder, "mlflow")
        run = self.mlflow.start_run(run_id=known) if known else self.mlflow.start_run(run_name=folder.name)
        if not known:
            self.mlflow.log_params({k: str(v)[:500] for k, v in _settings(folder).items()})
        _remember(folder, "mlflow", run.info.run_id)

    def log(self, line: dict[str, Any]) -> None:
        self.mlflow.log_metrics(_scalars(line), step=line["step"])

    def close(self) -> None:
        self.mlflow.end_run()


class Trackio:
    """SQLite in FOLDER/trackio unless TRACKIO_DIR is set: `TRACKIO_DIR=FOLDER/trackio trackio show`."""

    def __init__(self, folder: Path):
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))    # read when trackio is imported
        self.trackio = import_module("trackio")
        self.trackio.init(project="stillroom", name=folder.name, config=_settings(folder), resume="allow")

    def log(self, line: dict[str, Any]) -> None:
        self.trackio.log(_scalars(line), step=line["step"])

    def close(self) -> None:
        self.trackio.finish()


KNOWN: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """Scalars of a line, under `stage/name` where a run has named stages: they must not write over each other."""
    stage = "" if line["loop"] == "loop" else f"{line['loop']}/"
    return {stage + name: float(value) for name, value in line.items() if name not in FACTS}


def _settings(folder: Path) -> dict[str, Any]:
    """Recipe, actors, fields and options of the run, flat; empty for a run that was started from Python."""
    file = folder / "run.json"
    if not file.exists():
        return {}
    said = json.loads(file.read_text(encoding="utf-8"))
    return {"recipe": said["recipe"], **said["actors"], **said["fields"], **said["options"]}


def _known(folder: Path, name: str) -> str:
    """What a tracker calls this run, if it has seen it before."""
    file = folder / "trackers.json"
    return json.loads(file.read_text(encoding="utf-8")).get(name, "") if file.exists() else ""


def _remember(folder: Path, name: str, known: str) -> None:
    file = folder / "trackers.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**before, name: known}) + "\n", encoding="utf-8")
