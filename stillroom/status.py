"""What has been shown of a recipe: computed from its proof, proofs/NAME.json, never typed. Imports no torch."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom import recipe

PACKAGES = ("stillroom", "torch", "numpy", "scipy", "scikit-learn", "timm", "torchvision", "transformers", "datasets",
            "gymnasium", "minigrid", "mujoco", "torch-geometric", "faiss-cpu")
HERE = Path(__file__).parent
FOLDERS = (HERE.parent / "proofs", HERE / "proofs")      # of a checkout, of an installed package


def home() -> Path:
    """The folder of the project's proofs: beside the package in a checkout, inside it where it was installed."""
    return FOLDERS[0] if (HERE.parent / "pyproject.toml").exists() else FOLDERS[1]


def proof(name: str) -> dict[str, Any]:
    """What `stillroom prove` measured of a recipe; empty when it was never run."""
    file = home() / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def judged(found: dict[str, Any]) -> str:
    """`proven`: on real data, over three seeds or more, better than the baseline with every one of them; otherwise `checked`."""
    seeds = found.get("seeds", [])
    enough = found.get("real") is True and len({s["seed"] for s in seeds}) >= 3
    return "proven" if enough and wins(found) == len(seeds) else "checked"


def wins(found: dict[str, Any]) -> int:
    """With how many seeds ours is strictly better than the baseline."""
    sign = 1 if found["better"] == "higher" else -1
    return sum(sign * (s["ours"] - s["beats"]) > 0 for s in found["seeds"])


def status(name: str) -> str:
    """`proven` or `checked`; `, reconstruction` is added where the paper leaves constants open."""
    return judged(proof(name)) + (", reconstruction" if recipe.card(name).reconstruction else "")


def say(row: Mapping[str, Any]) -> str:
    """What a proof found with one seed, in one line."""
    also = "".join(f"; {k} {v:.4g}" for k, v in row["also"].items())
    return (f"{row['ours']:.4g} {row['unit']} ({row['better']} is better), {row['baseline']} {row['beats']:.4g}: "
            f"{'it holds' if row['holds'] else 'IT DOES NOT HOLD'}{also}")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
