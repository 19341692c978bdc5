"""What a stop costs: runs and stores that are killed, that find no room, whose files are cut short or have a wrong bit.

    python benchmarks/faults.py [--kills 20] [--only kd store …]

Everything happens to real processes (forked, ended by SIGKILL at a random moment, started again by the command that a person
would use) and real files. A fault is counted as survived when what comes out at last has the same bytes as without it, or when it
is refused in words that name the file; the last column is the most work, in seconds, that a kill has cost. Needs Linux; a full
disk needs the right to mount a tmpfs in a namespace of its own (`unshare -rm`).
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import TensorDataset

from stillroom import Run, cli, recipe, saved, store
from stillroom.errors import Refused
from stillroom.models.small import cnn
from stillroom.parts.teachers import Cached

EVERY = 0.2          # seconds between checkpoints
RUNS = {"kd": ["--steps", "1500"], "dmd2": ["--steps", "150", "--batch", "64"],
        "g2sd": ["--steps", "60", "--steps-specific", "60"]}


class Score(NamedTuple):
    fault: str
    tried: int
    survived: int
    lost: float = float("nan")
    words: str = ""       # of the first that was not survived, or of a refusal


# --- what is hit -----------------------------------------------------------------------------------------------------


def run(name: str) -> Callable[[Path], None]:
    """A recipe's own trial by command; what was begun is resumed."""
    def act(folder: Path) -> None:
        begun = (folder / "run.json").exists()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        words = ["--resume", str(folder)] if begun else [name, "--folder", str(folder), "--save-every", str(EVERY), *RUNS[name]]
        code = cli.main(["run", *words, "--quiet", "--no-proof"])
        if code:
            raise SystemExit(code)
    recipe.module(name).trial(0)                   # its teachers are made once, before processes fork from this one
    return act


def materials() -> tuple[torch.nn.Module, TensorDataset]:
    torch.manual_seed(0)
    return cnn(32, channels=3, depth=3).eval(), TensorDataset(torch.rand(3000, 3, 32, 32), torch.randint(10, (3000,)))


def writer(folder: Path) -> None:
    """A store of eight shards."""
    teacher, data = materials()
    store.write(folder, teacher, data, codec="fp16", batch=64, rows=400)


def reader(folder: Path) -> None:
    """A student taught from a store."""
    data = materials()[1]
    if not (folder / "student.json").exists():
        torch.manual_seed(1)
        going = Run(folder, save_every=EVERY, resume=(folder / "checkpoint.pt").exists())
        made = recipe.load("kd")(alpha=1.0, steps=150)(going, student=cnn(8, channels=3), data=data,
                                                      teacher=Cached(folder.parent / "store", data=data))
        saved.save(made, folder)


def outcome(folder: Path) -> str:
    """Digest of what a run or a write leaves: weights or rows."""
    digest = blake2b()
    files = sorted(p for p in folder.iterdir() if p.name == "store.json" or p.suffix in (".rows", ".safetensors"))
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if files else "nothing"


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def begin(act: Callable[[Path], None], folder: Path) -> int:
    """Fork a process that acts; returns its number. It ends with 0 when all went well."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            act(folder)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    return child


def ended(child: int, within: float = float("inf")) -> int | None:
    """The exit status, or None when it runs longer."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.005)
    return None


def kills(name: str, act: Callable[[Path], None], home: Path, count: int, vouched: str) -> Score:
    """Kill it at random moments, again and again, until it was killed `count` times; `vouched`: files that hold finished work."""
    whole = home / f"{name}-whole"
    began = time.monotonic()
    if ended(begin(act, whole)):
        return Score(f"kill -9, {name}", 0, 0, words=said(whole))
    length, right = time.monotonic() - began, outcome(whole)
    killed = wrong = number = 0
    since, lost, words = 0, 0.0, ""
    while killed < count or since:
        folder = home / f"{name}-{number}"
        child, start = begin(act, folder), time.time()
        status = ended(child, random.uniform(0.02, 0.9) * length if killed < count else float("inf"))
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            last = max([p.stat().st_mtime for how in ("run.json", vouched) for p in folder.glob(how)] + [start])
            killed, since, lost = killed + 1, since + 1, max(lost, time.time() - last)
            continue
        if status or outcome(folder) != right:            # every kill since it began is to blame
            wrong, words = wrong + since, words or said(folder) or "another result"
        number, since = number + 1, 0
    return Score(f"kill -9, {name}", killed, killed - wrong, lost, words)


def said(folder: Path) -> str:
    log = folder.with_suffix(".log")
    return log.read_text().strip().replace("\n", " ")[-300:] if log.exists() else ""


# --- damaged files ---------------------------------------------------------------------------------------------------


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    at = random.randrange(len(content))
    if how == "cut":
        del content[at:]
    else:
        content[at] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def refused(act: Callable[[], object]) -> str:
    """The words of a refusal, "" when there was none. Any other exception passes."""
    try:
        act()
    except Refused as error:
        return str(error)
    return ""


def shards(home: Path, count: int, how: str) -> Score:
    """A shard, what vouches for it, or store.json: read, and then mended by writing again."""
    right, index, good = outcome(home / "store"), torch.arange(3000), 0
    expected, words, wrong = store.Rows(home / "store")[index].dense(), "", ""
    for at in range(count):
        folder = home / f"{how}-{at}"
        shutil.copytree(home / "store", folder)
        file = random.choice(sorted(p for p in folder.iterdir() if p.suffix in (".rows", ".json")))
        damage(file, how)
        same: list[bool] = []
        told = refused(lambda folder=folder, same=same: same.append(torch.equal(store.Rows(folder)[index].dense(), expected)))
        named = bool(told) and folder.name in told
        again = refused(lambda folder=folder: writer(folder))
        mended = outcome(folder) == right or "another" in again or "store.json" in again or file.name == "store.json"
        good += (named or same == [True]) and mended
        words, wrong = words or told, wrong or ("" if (named or same == [True]) and mended else f"{file.name}: {told} {again}")
        shutil.rmtree(folder)
    return Score(f"store, {how}", count, good, words=wrong or words)


def checkpoints(home: Path, count: int, how: str) -> Score:
    """A checkpoint that is damaged is refused, or what was hit does not matter."""
    right, good, words, wrong = outcome(home / "kd-whole"), 0, "", ""
    for at in range(count):
        folder = home / f"checkpoint-{how}-{at}"
        child = begin(run("kd"), folder)
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        damage(folder / "checkpoint.pt", how)
        stream = io.StringIO()
        with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["run", "--resume", str(folder), "--quiet", "--no-proof"])
        told = stream.getvalue().strip().replace("\n", " ")
        survived = outcome(folder) == right if code == 0 else code == 2 and "checkpoint.pt" in told
        good, words, wrong = good + survived, words or told, wrong or ("" if survived else f"code {code}: {told}")
    return Score(f"checkpoint, {how}", count, good, words=wrong or words)


# --- a full disk -----------------------------------------------------------------------------------------------------


def full(home: Path) -> list[Score]:
    """The same on a tmpfs that fills up, in a namespace of its own; then it gets room, and goes on."""
    here = ["unshare", "-rm", sys.executable, __file__, "--full", str(home)]
    found = subprocess.run(here, capture_output=True, text=True)
    if found.returncode:
        return [Score("full disk", 0, 0, words=f"not tried: {found.stderr.strip().splitlines()[-1]}")]
    rows = [line.split("\t") for line in found.stdout.splitlines() if "\t" in line]
    return [Score(fault, int(tried), int(good), words=words) for fault, tried, good, words in rows]


def inside(home: Path) -> None:
    place = Path(tempfile.mkdtemp())
    need = {"kd": (home / "kd-whole" / "checkpoint.pt").stat().st_size, "store": (home / "store" / "000000.rows").stat().st_size}
    jobs: dict[str, tuple[Callable[[Path], None], int, str]] = {
        "kd": (run("kd"), int(1.6 * need["kd"]), outcome(home / "kd-whole")),
        "store": (writer, int(3.5 * need["store"]), outcome(home / "store"))}
    for name, (act, size, right) in jobs.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
        folder = place / name
        log = home / f"full-{name}"
        failed = ended(begin(lambda _, act=act, folder=folder: act(folder), log))
        told = said(log)
        subprocess.run(["mount", "-o", f"remount,size={64 * 2**20}", "none", str(place)], check=True)
        again = ended(begin(lambda _, act=act, folder=folder: act(folder), home / f"room-{name}"))
        good = bool(failed) and "No space left" in told and "Traceback" not in told and not again and outcome(folder) == right
        print(f"full disk, {name}\t1\t{int(good)}\t{told or 'nothing was said'} {'' if good else said(home / f'room-{name}')}")
        subprocess.run(["umount", str(place)], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--only", nargs="*", default=[*RUNS, "store", "reader", "damage", "full"])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--full", type=Path, help=argparse.SUPPRESS)
    options = options.parse_args()
    torch.set_num_threads(1)
    if options.full:
        inside(options.full)
        return
    random.seed(options.seed)
    scores: list[Score] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        writer(home / "store")
        if {"damage", "full"} & set(options.only) and "kd" not in options.only:
            ended(begin(run("kd"), home / "kd-whole"))
        for name in options.only:
            if name in RUNS:
                scores.append(kills(name, run(name), home, options.kills, "checkpoint.pt"))
            elif name == "store":
                scores.append(kills("the store's writer", writer, home, options.kills, "*.rows*"))
            elif name == "reader":
                scores.append(kills("the store's reader", reader, home, options.kills, "checkpoint.pt"))
            elif name == "damage":
                scores += [hit(home, options.kills, how) for hit in (shards, checkpoints) for how in ("cut", "flipped")]
            else:
                scores += full(home)
            print(f"{name} …", file=sys.stderr)
    print(f"\n{'fault':32} {'tried':>5} {'survived':>8} {'lost, s':>8}")
    for score in scores:
        print(f"{score.fault:32} {score.tried:5} {score.survived:8} {score.lost:8.2f}  {score.words}")


if __name__ == "__main__":
    main()
