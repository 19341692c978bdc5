"""Optional packages: imported when they are asked for, with the remedy when they are missing or broken."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stillroom.errors import Refused

EXTRAS = {"timm": "vision", "torchvision": "vision", "transformers": "text", "tokenizers": "text", "datasets": "data",
          "ray": "cluster", "pyarrow": "parquet", "accelerate": "offload", "gymnasium": "rl", "minigrid": "rl", "mujoco": "rl",
          "torch_geometric": "graphs", "faiss": "retrieval", "onnx": "export", "onnxscript": "export", "onnxruntime": "export"}
SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
           "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_kept: list[torch.library.Library] = []      # a Library that is collected takes its schemas with it


def package(name: str) -> ModuleType:
    """An optional package, imported. Raises `Refused` with the remedy when it is missing or does not import."""
    if find_spec(name) is None:
        raise Refused(f"{name} is not installed", f"pip install 'stillroom[{EXTRAS[name]}]'")
    if EXTRAS[name] in ("vision", "text"):   # timm imports torchvision, and so do parts of transformers
        mend_torchvision()
    try:
        found = import_module(name)
        if name == "torchvision":
            _stand_in()
        return found
    except Exception as error:
        raise Refused(f"{name} is installed but does not import ({_first_line(error)})", _remedy(name)) from error


def mend_torchvision() -> None:
    """Let PyPI's torchvision import beside a CPU build of torch: its compiled operators want CUDA, and without the schema of two
    of them nothing of it imports (pytorch/vision#9077). Models and transforms work then, its detectors with our own nms
    (`_stand_in`); torchvision.io does not, and says so. Does nothing when torch has CUDA or torchvision's operators are there.
    Raises `Refused` when an earlier import of torchvision has failed half way."""
    found = find_spec("torchvision")
    if _kept or found is None or torch.version.cuda is not None:
        return
    folder = Path(found.origin or "").parent
    for file in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.ops.load_library(file)
        except OSError:
            continue
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        _kept.append(library)


def _stand_in() -> None:
    """Where torchvision's compiled operators are missing, its detectors suppress boxes and align regions by `parts.boxes`: it has
    nothing for the first, and compiles what it has for the second."""
    ops: Any = import_module("torchvision.ops")
    if not import_module("torchvision.extension")._has_ops():
        from stillroom.parts.boxes import nms, roi_align

        ops.nms = ops.boxes.nms = nms
        ops.poolers.roi_align = roi_align


def _remedy(name: str) -> str:
    if name in ("timm", "torchvision") or EXTRAS[name] == "text":
        return ("torchvision must be built for this torch: install both from one index "
                f"(torch here is {torch.__version__}; see https://pytorch.org/get-started/locally), or pip uninstall torchvision")
    return f"pip install --force-reinstall 'stillroom[{EXTRAS[name]}]'"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '…').splitlines()[0]}"
