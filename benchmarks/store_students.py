"""What a student loses when its teacher is a store: test accuracy of plain KD taught live and from each codec, over three seeds;
bytes of a view, and how far the answers are from the teacher's own: KL in nats at KD's temperature, 4, mean over the samples.

    python benchmarks/store_students.py [--steps 400]

Handwritten digits with fifty labels (the trial of KD), and 6,000 images of Fashion-MNIST with a hundred labels, where the shared
data are. Everything but the teacher's answers is the same within a column: split, labels, first weights, order of batches.
"""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from stillroom import Run, arenas, store, zoo
from stillroom.arenas.alone import Alone
from stillroom.batches import tagged
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.models.small import cnn
from stillroom.parts.teachers import Cached, Frozen
from stillroom.recipes.classification.kd import KD

SEEDS, CODECS, BATCH = (0, 1, 2), ("fp32", "fp16", "bf16", "top5", "top3", "top1"), 64
TRAIN, TEST, LABELS = 6000, 2000, 100


def digits(seed):
    """Student, teacher, training data, test data."""
    cast = arenas.digits("few", seed)
    return cast.actors["student"], cast.actors["teacher"], cast.actors["data"], cast.test


def fashion(seed):
    """The teacher has seen every label of the 6,000 images, the student's data keep a hundred."""
    parts = zoo.splits("fashion_mnist", seed=seed)
    draw = torch.Generator().manual_seed(seed)
    train = parts.train.take(torch.randperm(len(parts.train), generator=draw)[:TRAIN])
    test = parts.test.take(torch.arange(TEST))
    torch.manual_seed(seed)
    teacher = Alone(steps=300)(Run(seed=seed), student=cnn(16), data=train)
    known = torch.full_like(train.targets, -100)
    known[:LABELS] = train.targets[:LABELS]
    return cnn(4), teacher, TensorDataset(train.tensors[0], known), test


def row(title, found, live, about=""):
    pairs = [pair for (one, _), (other, _) in zip(found, live, strict=True) for pair in zip(one, other, strict=True)]
    same = all(torch.equal(p, q) for p, q in pairs)
    values = [right for _, right in found]
    print(f"  {title:10}" + "".join(f"{v:8.2f}" for v in values)
          + f"   {statistics.mean(values):6.2f} ± {statistics.stdev(values):4.2f}"
          + about + ("   the same weights, bit for bit" if same and found is not live else ""), flush=True)


def distance(stored, live, data):
    """KL(live ‖ stored), mean over the samples."""
    x = data.tensors[0]
    ours, theirs = ((who(tagged(x + 0, torch.arange(len(x)))).double() / 4).log_softmax(-1) for who in (stored, live))
    return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()


def student(who, actors, seed, steps):
    net, _, data, test = actors
    made = KD(steps=steps, batch=BATCH)(Run(seed=seed), student=copy.deepcopy(net), teacher=who, data=data)
    return [t.clone() for t in made.state_dict().values()], accuracy(made, test)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=400)
    steps = options.parse_args().steps
    torch.set_num_threads(1)
    for name, ground in (("scikit-learn digits", digits), ("Fashion-MNIST", fashion)):
        try:
            casts = {seed: ground(seed) for seed in SEEDS}
        except Refused as absent:
            print(f"{name}: {absent}")
            continue
        print(f"{name}: test accuracy, % (seeds {', '.join(map(str, SEEDS))}; mean ± std), teacher "
              + ", ".join(f"{accuracy(c[1], c[3]):.2f}" for c in casts.values()), flush=True)
        live = [student(casts[seed][1], casts[seed], seed, steps) for seed in SEEDS]
        row("live", live, live)
        with tempfile.TemporaryDirectory() as home:
            for codec in CODECS:
                found, apart = [], []
                for seed in SEEDS:
                    _, teacher, data, _ = casts[seed]
                    folder = store.write(Path(home) / f"{codec}-{seed}", teacher, data, codec=codec, batch=BATCH)
                    found.append(student(Cached(folder), casts[seed], seed, steps))
                    apart.append(distance(Cached(folder), Frozen(teacher), data))
                size = sum(file.stat().st_size for file in folder.glob("*.rows")) / len(data)
                row(codec, found, live, f"{size:6.0f} bytes   KL {statistics.mean(apart):.1e}")


if __name__ == "__main__":
    main()
