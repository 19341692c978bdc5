"""What each placement of a teacher costs and keeps: weights and peak memory, step time beside the live one, agreement with it.

    python benchmarks/placement.py [--teacher timm:resnet50] [--size 64] [--batch 16] [--steps 17]

KD without labels teaches a small network for a few steps, in a process of its own for each placement. A ratio of times is to the
live teacher of the same round, the median over three rounds, in processor time; a block's cost counts, the first step of the
others does not. Peak: of the process with all that it imports, on a GPU of what torch allocated there. Off by: the largest
difference of a logit to the live one, as a share of the logits' deviation. Then what 8 bits do to a teacher that was trained.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

WAYS = ("live", "8bit", "offload", "blocks:8", "shared by 2")
ROUNDS = 3


def one(way, spec, size, batch, steps, device):
    """Bytes on the device, peak bytes of the process or the device, seconds a step, and the answers to sixteen images."""
    from functools import partial

    import torch
    from torch.utils.data import TensorDataset

    from stillroom import Run, zoo
    from stillroom.models.small import cnn
    from stillroom.parts import losses, optim
    from stillroom.parts.placement import by_type, placed
    from stillroom.parts.shared import Shared, together
    from stillroom.parts.teachers import Frozen

    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = zoo.model(spec, classes=10, channels=3, size=size).eval()
    students = [cnn(8, channels=3) for _ in range(2 if way.startswith("shared") else 1)]
    images = torch.rand(16, 3, size, size, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(torch.rand(batch * 4, 3, size, size), torch.zeros(batch * 4, dtype=torch.long))
    teacher = Shared(teacher) if way.startswith("shared") else placed(teacher, way)
    moments = []

    def step(run, student, teacher):
        teacher, opt = Frozen(run.place(teacher)), optim.sgd(student, lr=0.01)
        run.keep(student=student, opt=opt)
        for x, _ in run.loop(data, batch=batch, steps=steps):
            run.update(opt, soft=losses.kl(student(x), teacher(x), 4.0))
            moments.append(time.process_time())

    calls = [partial(step, Run(device=device), student, teacher) for student in students]
    began = time.process_time()
    together(calls) if len(calls) > 1 else calls[0]()
    if way.startswith("blocks"):
        seconds = (moments[-1] - began) / steps
    else:
        seconds = (moments[-1] - moments[len(calls) - 1]) / (steps - 1) / len(calls)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"weights": sum(by_type(teacher).values()), "peak": peak, "seconds": seconds,
                      "says": teacher(images.to(device)).float().cpu().tolist()}))


def trained():
    """The digits arena's teacher, live and in 8 bits, on 500 test images of each of three seeds."""
    from stillroom import arenas
    from stillroom.measure import answers
    from stillroom.measure.classification import right
    from stillroom.parts.placement import by_type, eight_bit

    print(f"{'digits, seed':14}{'weights':>12}{'8bit':>12}{'right':>10}{'8bit':>10}{'agreement':>12}")
    for seed in range(3):
        cast = arenas.digits("clean", seed)
        live, small = cast.actors["teacher"], eight_bit(cast.actors["teacher"])
        (said, y), (other, _) = answers(live, cast.test), answers(small, cast.test)
        print(f"{seed:<14}" + "".join(f"{sum(by_type(net).values()) / 1e3:9.1f} KB" for net in (live, small))
              + f"{right(said, y):8.2f} %{right(other, y):8.2f} %{right(other, said.argmax(-1)):10.2f} %")
    print(flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--teacher", default="timm:resnet50")
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=17)
    options.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    said = options.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if said.way:
        return one(said.way, said.teacher, said.size, said.batch, said.steps, device)
    found = {way: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS[:: 1 if turn % 2 else -1]:
            out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, check=True)
            found[way].append(json.loads(out.stdout.splitlines()[-1]))
    live = torch.tensor(found["live"][0]["says"])
    trained()
    print(f"{said.teacher}, {said.size} × {said.size}, batch {said.batch}, {said.steps} steps, {device}, one thread\n")
    print(f"{'placement':14}{'weights':>12}{'peak':>12}{'step':>12}{'/ live':>9}{'off by':>10}")
    for way, rounds in found.items():
        ratio = statistics.median(r["seconds"] / base["seconds"] for r, base in zip(rounds, found["live"], strict=True))
        off = (torch.tensor(rounds[0]["says"]) - live).abs().max() / live.std()
        print(f"{way:14}{rounds[0]['weights'] / 1e6:9.1f} MB{min(r['peak'] for r in rounds) / 1e6:9.0f} MB"
              f"{1e3 * statistics.median(r['seconds'] for r in rounds):9.1f} ms{ratio:9.3f}{100 * off:8.2f} %")
    if device == "cpu":
        print("\nnot measured: CUDA. On the CPU device and main memory are one, so offload and blocks can save nothing here; what"
              "\nthey cost in time is the hooks' work, without the transfer of weights. The peak of 8bit is that of making it.")
    return None


if __name__ == "__main__":
    main()
