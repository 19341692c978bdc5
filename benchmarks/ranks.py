"""What several ranks cost: one KD step of two ranks under `Run` against the same step with DistributedDataParallel, in pairs.

    torchrun --nproc-per-node 2 benchmarks/ranks.py [--pairs 30]

Both do the same work on every rank: batch by index, teacher forward, student forward, KL and cross-entropy, backward with the
gradients averaged in buckets, SGD (fused) with a cosine rate. Blocks of steps alternate A B A B …, wall time, and the ratio is
taken pair by pair, for wall time and for CPU time, which a busy machine does not lengthen. DDP is here as one writes it by hand:
the student wrapped, no search for unused parameters, no check of NaN, no stop to agree on. `sharded` is Run(shard=True).
"""

import argparse
import copy
import math
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from overhead import ALPHA, LR, T, by_hand, keep_the_heap  # the benchmark beside this one
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from stillroom import Run, ranks
from stillroom.models.small import cnn, mlp
from stillroom.parts import losses, optim
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen

BATCH = 128      # of all ranks together


def ours(student, teacher, data, steps, shard=False):
    """The body of KD's recipe, on its engine."""
    run, opt = Run(shard=shard), optim.sgd(student, lr=cosine(LR), decay=5e-4)
    teacher = Frozen(run.place(teacher))
    run.keep(student=student, opt=opt)
    for x, y in run.loop(data, batch=BATCH, steps=steps):
        logits = student(x)
        run.update(opt, soft=ALPHA * losses.kl(logits, teacher(x), T), hard=(1 - ALPHA) * losses.labels(logits, y))
        yield


def sharded(student, teacher, data, steps):
    return ours(student, teacher, data, steps, shard=True)


def bare(student, teacher, data, steps):
    """The same, as one would write it by hand."""
    teacher.eval().requires_grad_(False)
    own = BATCH // dist.get_world_size()
    student = DistributedDataParallel(student, gradient_as_bucket_view=True)
    opt = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, fused=True)
    x_all, y_all = data.tensors
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[dist.get_rank() :: dist.get_world_size()]
    for step in range(steps):
        at = step * own % (len(order) - own)
        x, y = x_all[order[at : at + own]], y_all[order[at : at + own]]
        opt.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.no_grad():
            taught = teacher(x)
        loss = by_hand(student(x), taught, y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        yield


def milliseconds(stream, steps):
    """Of a step: wall and CPU."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(stream)
    return 1e3 * (time.perf_counter() - wall) / steps, 1e3 * (time.process_time() - cpu) / steps


def main():
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        sys.exit("several ranks: torchrun --nproc-per-node 2 benchmarks/ranks.py")
    keep_the_heap()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=30)
    options.add_argument("--jobs", nargs="*", default=["tiny", "small", "larger"])
    options = options.parse_args()
    pairs = options.pairs
    torch.set_num_threads(1)
    ranks.join()
    torch.manual_seed(0)
    jobs = {
        "tiny: MLP-128 taught by CNN-16, 8×8": (mlp(hidden=128), cnn(16), 1, 8, 20),
        "small: CNN-16 taught by CNN-32, 16×16": (cnn(16, channels=3), cnn(32, channels=3, depth=3), 3, 16, 4),
        "larger: CNN-32 taught by CNN-64, 32×32": (cnn(32, channels=3, depth=3), cnn(64, channels=3, depth=4), 3, 32, 1),
    }
    contestants, rows = {"ours": ours, "DDP by hand": bare, "sharded": sharded}, []
    for job, (student, teacher, channels, side, steps) in jobs.items():
        if job.partition(":")[0] not in options.jobs:
            continue
        data = TensorDataset(torch.rand(1200, channels, side, side), torch.randint(10, (1200,)))
        total = 10**6                            # so that the log is as rare as in a long run
        streams = {n: make(copy.deepcopy(student), copy.deepcopy(teacher), data, total) for n, make in contestants.items()}
        for stream in streams.values():
            milliseconds(stream, steps)          # warm-up
        times = {n: [] for n in streams}
        for pair in range(pairs):
            for n in list(streams)[:: 1 if pair % 2 else -1]:
                times[n].append(milliseconds(streams[n], steps))
        for n, own in times.items():
            for clock, kind in enumerate(("wall", "CPU")):
                ratios = [a[clock] / b[clock] for a, b in zip(own, times["DDP by hand"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                rows.append((job, n, statistics.median(t[clock] for t in own), kind, middle, low, high))
    if ranks.first():
        print(f"\nms a step, {ranks.count()} ranks of one thread, {pairs} pairs; ratio to DDP by hand: median (quartiles)")
        for job, n, ms, kind, ratio, low, high in rows:
            print(f"  {job:42} {n:13} {ms:9.3f} ms {kind:4}   {ratio:.3f}  ({low:.3f} … {high:.3f})")


if __name__ == "__main__":
    main()
