"""What the engine costs: one KD step under `Run` against the same step in a bare PyTorch loop, in pairs, in one process.

    python benchmarks/overhead.py [--pairs 30] [--threads 1]

Both loops do the same work: batch by index, teacher forward, student forward, KL and cross-entropy, backward, SGD (fused) with
a cosine rate. Blocks of steps alternate A B A B …, and the ratio is taken pair by pair, so that a machine whose speed drifts does
no harm. torchdistill's distillation box runs the same job beside them where it is installed. Freed memory stays with the process
(glibc's thresholds): else who pays for fetching it anew turns on what lies on the heap, and is up to a fifth of a step.
"""

import argparse
import copy
import math
import os
import statistics
import sys
import time
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom.models.small import cnn, mlp
from stillroom.parts import losses, optim
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen

T, ALPHA, LR, BATCH = 4.0, 0.9, 0.05, 64
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**34)}


def ours(student, teacher, data, steps):
    """The body of KD's recipe, on its engine."""
    run, teacher, opt = Run(), Frozen(teacher), optim.sgd(student, lr=cosine(LR), decay=5e-4)
    run.keep(student=student, opt=opt)
    for x, y in run.loop(data, batch=BATCH, steps=steps):
        logits = student(x)
        run.update(opt, soft=ALPHA * losses.kl(logits, teacher(x), T), hard=(1 - ALPHA) * losses.labels(logits, y))
        yield


def by_hand(logits, taught, y):
    """KD's loss as one would write it by hand."""
    p, q = (logits / T).log_softmax(-1), (taught / T).log_softmax(-1)
    soft = F.kl_div(p, q, reduction="batchmean", log_target=True) * T * T
    return ALPHA * soft + (1 - ALPHA) * F.cross_entropy(logits, y)


def bare(student, teacher, data, steps):
    """The same, as one would write it by hand."""
    teacher.eval().requires_grad_(False)
    opt = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, fused=True)
    x_all, y_all = data.tensors
    order = torch.randperm(len(data))
    for step in range(steps):
        at = step * BATCH % (len(data) - BATCH)
        x, y = x_all[order[at : at + BATCH]], y_all[order[at : at + BATCH]]
        opt.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.no_grad():
            taught = teacher(x)
        loss = by_hand(student(x), taught, y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step % 50 == 0:
            loss.item()                          # a loop that a person watches
        yield


def peer(student, teacher, data, steps):
    """torchdistill's box with its KDLoss, on the same nets and data."""
    from torch.utils.data import DataLoader
    from torchdistill.core.distillation import get_distillation_box

    config = {
        "num_epochs": 10**6, "train_data_loader": {}, "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True, "frozen_modules": []},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {
            "criterion": {"key": "KDLoss", "kwargs": {
                "student_module_path": ".", "student_module_io": "output",
                "teacher_module_path": ".", "teacher_module_io": "output", "temperature": T,
                "alpha": 1 - ALPHA, "reduction": "batchmean"}}, "weight": 1.0}}}},
    }
    box = get_distillation_box(teacher, student, {}, config, torch.device("cpu"), None, False, 1.0)
    while True:
        for x, y in DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True):
            box.post_forward_process(box.forward_process(x, y, None))
            yield


def milliseconds(stream, steps):
    began = time.process_time()
    for _ in range(steps):
        next(stream)
    return 1e3 * (time.process_time() - began) / steps


def keep_the_heap():
    """Begin this process anew unless its freed memory stays with it: the C library reads that when a process starts."""
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **HEAP})


def main():
    keep_the_heap()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=30)
    options.add_argument("--threads", type=int, default=1)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    jobs = {
        "tiny: MLP-128 taught by CNN-16, 8×8": (mlp(hidden=128), cnn(16), 1, 8, 40),
        "small: CNN-16 taught by CNN-32, 16×16": (cnn(16, channels=3), cnn(32, channels=3, depth=3), 3, 16, 4),
        "larger: CNN-32 taught by CNN-64, 32×32": (cnn(32, channels=3, depth=3), cnn(64, channels=3, depth=4), 3, 32, 1),
    }
    contestants = {"ours": ours, "bare": bare}
    if find_spec("torchdistill"):
        contestants["torchdistill"] = peer
    rows = []
    for job, (student, teacher, channels, side, steps) in jobs.items():
        data = TensorDataset(torch.rand(1200, channels, side, side), torch.randint(10, (1200,)))
        total = (options.pairs + 2) * steps
        streams = {n: make(copy.deepcopy(student), copy.deepcopy(teacher), data, total) for n, make in contestants.items()}
        for stream in streams.values():
            milliseconds(stream, steps)          # warm-up
        times = {n: [] for n in streams}
        for pair in range(options.pairs):
            for n in list(streams)[:: 1 if pair % 2 else -1]:
                times[n].append(milliseconds(streams[n], steps))
        for n, own in times.items():
            ratios = [a / b for a, b in zip(own, times["bare"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append((job, n, statistics.median(own), middle, low, high))
    print(f"\nCPU ms a step, {options.threads} thread(s), {options.pairs} pairs; ratio to the bare loop: median (quartiles)")
    for job, n, ms, ratio, low, high in rows:
        print(f"  {job:42} {n:13} {ms:9.3f} ms   {ratio:.3f}  ({low:.3f} … {high:.3f})")


if __name__ == "__main__":
    main()
