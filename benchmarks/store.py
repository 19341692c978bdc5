"""What the teacher's store costs: bytes a view, samples a second on one core, and a KD step taught from it.

    python benchmarks/store.py [--pairs 20]

Steps alternate between ways of having a teacher, in one process: none (the target is a constant
tensor), the store, the live network. Ratios are taken pair by pair to the first: the store's aim is at most 1.05.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from overhead import milliseconds  # the benchmark beside this one
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import Run, store
from stillroom.models.small import cnn
from stillroom.parts import losses, optim
from stillroom.parts.teachers import Cached

BATCH, SAMPLES, CLASSES = 64, 1024, 1000


def steps(student, teacher, data, count):
    """KD without labels, on its engine."""
    run, opt = Run(), optim.sgd(student, lr=0.01)
    run.keep(student=student, opt=opt)
    for x, _ in run.loop(data, batch=BATCH, steps=count):
        run.update(opt, soft=losses.kl(student(x), teacher(x), 4.0))
        yield


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=20)
    pairs = options.parse_args().pairs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(SAMPLES, 3, 32, 32), torch.zeros(SAMPLES, dtype=torch.long))
    student, live = (cnn(width, channels=3, depth=3, classes=CLASSES).eval() for width in (16, 32))
    constant = torch.randn(BATCH, CLASSES)
    with tempfile.TemporaryDirectory() as home:
        teachers = {"student alone": lambda x: constant}
        for codec in ("fp32", "fp16", "top10"):
            folder = store.write(Path(home) / codec, live, data, codec=codec)
            teachers[codec] = Cached(folder)
            size = sum(f.stat().st_size for f in folder.glob("*.rows")) / SAMPLES
            order = torch.randperm(SAMPLES).split(BATCH)
            teachers[codec].rows[order[0]]
            began = time.process_time()
            for index in order:
                teachers[codec].rows[index]
            rate = SAMPLES / (time.process_time() - began)
            print(f"  {codec:14} {size:8.0f} bytes a view of {CLASSES} classes   {rate:12,.0f} samples/s on one core", flush=True)
        teachers["live"] = nn.Module.requires_grad_(live, False)
        streams = {n: steps(copy.deepcopy(student), t, data, pairs + 1) for n, t in teachers.items()}
        for stream in streams.values():
            milliseconds(stream, 1)              # warm-up
        times = {n: [] for n in streams}
        for pair in range(pairs):
            for n in list(streams)[:: 1 if pair % 2 else -1]:
                times[n].append(milliseconds(streams[n], 1))
    for n, own in times.items():
        ratios = [a / b for a, b in zip(own, times["student alone"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {n:14} {statistics.median(own):8.2f} ms a step   {middle:.3f}  ({low:.3f} … {high:.3f})")


if __name__ == "__main__":
    main()
