"""What an objective over a vocabulary costs, from hidden states to gradients: `losses.tokens.terms` beside the dense formula.

    python benchmarks/vocabulary.py [--vocabulary 32768 131072] [--tokens 1024] [--dim 256] [--steps 1] [--chunk 0]
                                    [--dtype float32] [--device cpu] [--objectives forward both]

Student and teacher have a head [vocabulary, dim] each; the gradient is asked in hidden states and in the student's head, whose
gradient every way must hold: it is in all figures. Each case is a process of its own. Memory is what the first step adds to the
peak once all inputs exist: on the CPU by `ru_maxrss`, which counts every page touched, the allocator's and the libraries' too,
where a profiler sees tensors alone; the parent imports no torch, because a child starts with its parent's peak. On CUDA it is
`max_memory_allocated` less what was allocated before. Time is CPU time on the CPU and that of events on CUDA, median of the steps
after the first.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time

OBJECTIVES = ("forward", "reverse", "jensen_shannon", "skew", "both")


def dense(name, student, teacher, labels, T):
    """As one writes it over whole logits; `both` is forward KL at T and cross-entropy."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        taught = teacher[0] @ teacher[1].T
    logits = student[0] @ student[1].T
    q, p = (logits.float() / T).log_softmax(-1), (taught.float() / T).log_softmax(-1)
    if name in ("forward", "both"):
        soft = F.kl_div(q, p, reduction="batchmean", log_target=True)
    elif name == "reverse":
        soft = F.kl_div(p, q, reduction="batchmean", log_target=True)
    else:
        share = 0.5 if name == "jensen_shannon" else 0.1
        m = torch.logaddexp(p + torch.tensor(share).log(), q + torch.tensor(1 - share).log())
        soft = F.kl_div(m, p, reduction="batchmean", log_target=True)
        if name == "jensen_shannon":
            soft = (soft + F.kl_div(m, q, reduction="batchmean", log_target=True)) / 2
    return 0.9 * T**2 * soft + 0.1 * F.cross_entropy(logits.float(), labels) if name == "both" else T**2 * soft


def chunked(name, student, teacher, labels, T, chunk):
    from functools import partial

    from stillroom.parts.losses import tokens

    compare = {"forward": tokens.forward_kl, "both": tokens.forward_kl, "reverse": tokens.reverse_kl, "skew": tokens.skew_kl,
               "jensen_shannon": partial(tokens.jensen_shannon, beta=0.5)}[name]
    return sum(tokens.terms(student[0], tokens.Head(student[1]), (teacher[0], tokens.Head(teacher[1])),
                            labels if name == "both" else None, compare=compare, temperature=T, per="tokens",
                            together=(0.9, 0.1) if name == "both" else None, chunk=chunk))


def liger(student, teacher, labels, T):
    """Liger's fused linear Jensen–Shannon; T² as in ours."""
    import torch
    from liger_kernel.transformers import LigerFusedLinearJSD

    return T**2 * LigerFusedLinearJSD(jsd_beta=0.5, temperature=T)(*student, *teacher, torch.zeros_like(labels))


def case(way, name, vocabulary, options):
    """One way in this process: value, norm of the head's gradient, MB above the inputs, seconds a step."""
    import torch

    from stillroom.parts.losses import tokens  # noqa: F401  (what it loads is no cost of a step)

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cuda, dtype = options.device.startswith("cuda"), getattr(torch, options.dtype)

    def draw(*shape, std=1.0):
        return torch.empty(*shape, dtype=dtype, device=options.device).normal_(0, std)
    teacher = draw(options.tokens, options.dim), draw(vocabulary, options.dim, std=options.dim**-0.5)
    student = draw(options.tokens, options.dim), draw(vocabulary, options.dim, std=options.dim**-0.5)
    for x in student:
        x.requires_grad_()
    labels = torch.randint(vocabulary, (options.tokens,), device=options.device)
    small = torch.ones(8, 8, device=options.device, requires_grad=True)
    (small @ small).log_softmax(-1).sum().backward()               # libraries load before memory is counted

    def step():
        student[0].grad = student[1].grad = None
        if way == "dense":
            loss = dense(name, student, teacher, labels, options.temperature)
        elif way == "liger":
            loss = liger(student, teacher, labels, options.temperature)
        else:
            loss = chunked(name, student, teacher, labels, options.temperature, options.chunk or None)
        loss.backward()
        return loss.item()

    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    value = step()
    after = torch.cuda.max_memory_allocated() / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = []
    for _ in range(options.steps):
        if cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.process_time()
            step()
            seconds.append(time.process_time() - began)
    print(json.dumps([value, student[1].grad.float().norm().item(), after - before, statistics.median(seconds)]))


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--vocabulary", type=int, nargs="+", default=[32_768, 131_072])
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--dim", type=int, default=256)
    options.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["forward", "both"])
    options.add_argument("--temperature", type=float, default=2.0)
    options.add_argument("--chunk", type=int, default=0, help="tokens at a time; 0: the default of terms")
    options.add_argument("--steps", type=int, default=1, help="timed steps after the first")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--device", default="cpu")
    options.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.case:
        return case(*options.case, options.vocabulary[0], options)

    with_liger = options.device.startswith("cuda") and importlib.util.find_spec("liger_kernel") is not None
    lines = []
    for vocabulary in options.vocabulary:
        for name in options.objectives:
            rows = {}
            for way in ["dense", "chunked"] + ["liger"] * (with_liger and name == "jensen_shannon"):
                passed = ("tokens", "dim", "temperature", "chunk", "steps", "threads", "dtype", "device")
                words = [f"--{k}={getattr(options, k)}" for k in passed]
                ran = subprocess.run([sys.executable, __file__, f"--vocabulary={vocabulary}", *words, "--case", way, name],
                                     stdout=subprocess.PIPE, text=True, check=True)
                rows[way] = json.loads(ran.stdout.splitlines()[-1])
            value, norm, memory, seconds = rows["dense"]
            for way, (v, n, mb, s) in rows.items():
                gap = max(abs(v - value) / abs(value), abs(n - norm) / norm)
                lines.append(f"  {vocabulary:>7}  {name:15} {way:8} {mb:9.0f} MB {s:8.3f} s   {mb / memory:6.3f} × memory"
                             f" {s / seconds:6.3f} × time   {gap:.0e} apart")
    clock = "events" if options.device.startswith("cuda") else f"CPU time, {options.threads} thread(s)"
    print(f"\n{options.tokens} tokens, dim {options.dim}, {options.dtype} on {options.device}; peak above the inputs, {clock}; "
          "goal ≤ 0.15 × memory, ≤ 1.0 × time\nvocabulary  objective       way")
    print(*lines, sep="\n")
    if not options.device.startswith("cuda"):
        print("not measured: CUDA, and Liger's fused kernels, which need it (--device cuda)")
    elif not with_liger:
        print("not measured: Liger's fused Jensen–Shannon (jensen_shannon among --objectives, liger-kernel installed)")


if __name__ == "__main__":
    main()
