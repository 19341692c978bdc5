"""What the numbers were made with."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

import stillroom


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that can move a number, and the machine."""
    found = {"stillroom": stillroom.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "timm", "torchvision", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' * (threads > 1)} used{gpu}"
    return found | {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {used}"}
