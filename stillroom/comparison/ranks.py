"""Who is ahead, by how much, and whether chance could do it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def rank(contestants: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contestants by mean accuracy over seeds, those with a failed or missing run last; differences are paired by seed.

    Equal means: who stands first in `contestants`, where the baselines do, for they are simpler.
    """
    done = {(c["contestant"], c["seed"]): c for c in cells if c["status"] == "done"}
    names = {c["role"]: c["name"] for c in contestants if c["role"] != "method"}
    ranking = []
    for one in contestants:
        mine = [c for c in cells if c["contestant"] == one["name"]]
        good = [c for c in mine if c["status"] == "done"]
        row = {**one, "complete": bool(good) and len(good) == len(mine), "runs": len(mine), "done": len(good),
               "failed": sum(c["status"] == "failed" for c in mine), "cost": good[0]["cost"] if good else {}}
        for key in ("accuracy", "ece", "agreement", "seconds"):
            row[key] = mean_std([c[key] for c in good])
        for role in ("alone", "tuned"):
            pairs = [(c["accuracy"], done[names[role], c["seed"]]["accuracy"]) for c in good if (names[role], c["seed"]) in done]
            row[f"vs_{role}"] = paired(*zip(*pairs)) if pairs and one["role"] != role else None
        ranking.append(row)
    return sorted(ranking, key=lambda r: (not r["complete"], -(r["accuracy"]["mean"] if r["done"] else -math.inf)))


def mean_std(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (n − 1); None where there are too few."""
    n = len(values)
    return {"mean": float(np.mean(values)) if n else None, "std": float(np.std(values, ddof=1)) if n > 1 else None}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean difference of pairs with its 95 % interval and p value (two-sided paired t-test).

    Interval and p are None with one pair, and when all differences are equal but not zero: without spread nothing can be
    said about chance.
    """
    from scipy import stats

    d = np.subtract(ours, theirs)
    found = {"n": len(d), "difference": float(d.mean()), "low": None, "high": None, "p": None}
    if len(d) < 2 or np.ptp(d) < 1e-6:
        return found | ({"low": 0.0, "high": 0.0, "p": 1.0} if len(d) > 1 and abs(d[0]) < 1e-6 else {})
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(0.95)
    return found | {"low": float(low), "high": float(high), "p": float(test.pvalue)}
