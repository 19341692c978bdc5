"""measure proofs anew: trial and proof over several seeds, written to proofs/NAME.json"""

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom import recipe, status
from stillroom.commands._names import Names
from stillroom.errors import Refused


def prove(names: Names, seeds: int = 3, out: str = "") -> int:
    """Run each recipe's trial and proof with seeds 0, 1, 2, … and write what was measured. Its status follows from that file.

    Args:
        seeds: how many; three are needed for `proven`
        out: the folder of the proofs; the project's own when left out
    """
    for name in names:
        recipe.path(name)
    if seeds < 1 or not names:
        raise Refused(f"--seeds {seeds} of {names or 'no recipe'}", "e.g. stillroom prove kd --seeds 3")
    folder = Path(out) if out else status.home()
    failed = []
    for name in names:
        try:
            found = measured(name, range(seeds))
        except Exception as error:               # one recipe's fault must not cost the others their proof
            failed.append(name)
            print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.json"
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {found['ours']['mean']:.4g} ± {found['ours']['std']:.2g} {found['unit']}, {found['baseline']} "
              f"{found['beats']['mean']:.4g} ± {found['beats']['std']:.2g}: {status.judged(found)}   {file}")
    return 1 if failed else 0


def measured(name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A recipe's trial and proof with each seed, and what is needed to repeat them."""
    runs = []
    for seed in seeds:
        row, method, cast = one(name, seed)
        print(f"{name}, seed {seed}: {status.say(row)}; {row['seconds']:.1f} s", file=sys.stderr)
        runs.append(row)
    first = runs[0]
    keys = ("seed", "ours", "beats", "holds", "also", "seconds", "cpu_seconds")
    return {
        "recipe": name, "unit": first["unit"], "better": first["better"], "baseline": first["baseline"],
        "data": cast.data, "real": cast.real, "fields": asdict(method),
        "ours": spread([r["ours"] for r in runs]), "beats": spread([r["beats"] for r in runs]),
        "also": {k: spread([r["also"][k] for r in runs]) for k in first["also"] if all(k in r["also"] for r in runs)},
        "seeds": [{k: r[k] for k in keys} for r in runs], "seconds": round(sum(r["seconds"] for r in runs), 1),
        "versions": status.versions(), "machine": f"{platform.machine()}, {first['device']}, {first['threads']} threads",
        "date": time.strftime("%Y-%m-%d"), **commit(),
    }


def one(name: str, seed: int) -> tuple[dict[str, Any], Any, Any]:
    """A recipe's trial and proof with one seed: numbers, the recipe with its fields, the cast."""
    import torch

    from stillroom.run import Run

    module = recipe.module(name)
    began, cpu = time.perf_counter(), time.process_time()
    method, cast = module.trial(seed)
    run = Run(seed=seed, show=sys.stderr.isatty())
    made = method(run, **cast.actors)
    proof = module.proof(made, cast)
    found = {"seed": seed, **asdict(proof), "ours": digits(proof.ours), "beats": digits(proof.beats),
             "also": {k: digits(v) for k, v in proof.also.items()}, "holds": proof.holds,
             "seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(time.process_time() - cpu, 2),
             "device": str(run.device), "threads": torch.get_num_threads()}
    if not all(map(math.isfinite, (proof.ours, proof.beats))):
        raise FloatingPointError(f"{name}, seed {seed}: the proof is {proof.ours} against {proof.beats}")
    return found, method, cast


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
    return {"mean": digits(mean), "std": digits(deviation)}


def digits(value: float) -> float:
    """Without the digits that float32 has not."""
    return float(f"{value:.7g}")


def commit() -> dict[str, Any]:
    """The commit that the package stands at, and whether its files differ from it; nothing outside a git tree."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(status.HERE), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_since": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.CalledProcessError):
        return {}
