"""The benchmark of faults, with one of each: what is killed, cut short or flipped comes out whole, or is refused by name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills")
def test_nothing_is_lost():
    found = subprocess.run([sys.executable, SCRIPT, "--kills", "1", "--only", "kd", "store", "damage"], capture_output=True,
                           text=True, timeout=500)
    scores = re.findall(r"^(?:kill -9, .*?|store, \w+|checkpoint, \w+) {2,}(\d+) +(\d+) ", found.stdout, re.M)
    assert scores == [("1", "1")] * 6, found.stdout + found.stderr
