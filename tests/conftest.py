"""One thread a process: the tests run beside each other. Those of one recipe run in one process, which makes its cast once."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RECIPES = {path.stem for path in Path(__file__).parents[1].glob("stillroom/recipes/*/*.py")}


def pytest_collection_modifyitems(items):
    import pytest

    for item in items:
        named = getattr(item, "callspec", None) and item.callspec.params.get("name")
        name = item.path.stem.removeprefix("test_") if named not in RECIPES else named
        if name in RECIPES:
            item.add_marker(pytest.mark.xdist_group(name))
