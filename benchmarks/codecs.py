"""What the codecs of the teacher's store cost and lose, on what trained teachers say.

    python benchmarks/codecs.py [--seconds 180]

1. logits: of the digits' teacher (10 classes), and of a small GPT over its 1000 commonest tokens (1000 classes).
2. features: what the digits' teacher has in its layers; the hidden states of the GPT.
3. tokens: the GPT over its whole vocabulary of 4096, and Zipf's law over 128,256 ids, in an order of its own for each token.

The GPT (2 layers of 128) learns 256 texts of gsm8k below STILLROOM_DATA, again and again, until it loses 2 nats a token, as a
large model does on texts that are new to it, or for so many seconds. It is measured on 64 of them and on 64 others.
KL is mean KL(teacher ‖ stored) in nats: over all ids, the tail shared out evenly, and over the listed ids and the tail as one,
which is what `losses.tokens` compares with a `Top`.
"""

import argparse
import gzip
import itertools
import json
import math
import time

import torch

from stillroom import arenas
from stillroom._compat import package
from stillroom.parts.taps import Tap, hidden
from stillroom.store import codecs
from stillroom.store.kept import Kept, keep
from stillroom.zoo.shared import home

LENGTH, IDS, ZIPF, LOSS = 64, 4096, 128_256, 2.0


def texts():
    """Token ids of gsm8k by a byte-pair code learnt on it."""
    package("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    with gzip.open(home("gsm8k") / "train.jsonl.gz", "rt") as file:
        lines = [line for row in map(json.loads, file) for line in f"{row['question']}\n{row['answer']}".split("\n")]
    code = Tokenizer(models.BPE())
    code.pre_tokenizer = pre_tokenizers.ByteLevel()
    code.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=IDS, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return torch.tensor(list(itertools.chain.from_iterable(found.ids for found in code.encode_batch(lines))))


def language(seconds):
    """A GPT that has learnt for so long, 64 texts of those that it has learnt, and 64 of others."""
    transformers = package("transformers")
    ids = texts()
    learnt, other = ids[: 256 * LENGTH].view(256, LENGTH), ids[-64 * LENGTH :].view(64, LENGTH)
    torch.manual_seed(0)
    shape = transformers.GPT2Config(vocab_size=IDS, n_positions=LENGTH, n_embd=128, n_layer=2, n_head=4, resid_pdrop=0.0,
                                    embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    net = transformers.GPT2LMHeadModel(shape)
    opt, began, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), time.time(), [math.inf]
    while time.time() - began < seconds and sum(losses[-10:]) > 10 * LOSS:
        x = learnt[torch.randint(len(learnt), (16,))]
        opt.zero_grad()
        (loss := net(x, labels=x).loss).backward()
        opt.step()
        losses.append(loss.item())
    net.eval()
    return net, {"learnt": learnt[:64], "others": other}, len(losses) - 1


def zipf(entropy, tokens=128):
    """Logits [tokens, ZIPF] of p ∝ rank⁻ˢ with that entropy in nats."""
    rank = torch.arange(1, ZIPF + 1, dtype=torch.float64).log()
    low, high = 0.5, 12.0
    for _ in range(50):
        p = (-(s := (low + high) / 2) * rank).log_softmax(0)
        low, high = (s, high) if -(p.exp() * p).sum() > entropy else (low, s)
    g = torch.Generator().manual_seed(0)
    return torch.stack([p[torch.randperm(ZIPF, generator=g)] for _ in range(tokens)])


def back(z, codec):
    """Encoded and decoded, text by text of LENGTH tokens: values, bytes a row, rows encoded and decoded a second."""
    way, found, size, times = codecs.find(codec), [], 0, [0.0, 0.0]
    for part in z.split(LENGTH):
        began = time.process_time()
        raw = way.encode(part)
        middle = time.process_time()
        found.append(way.decode(raw, len(part), tuple(z.shape[1:])))
        times[0], times[1] = times[0] + middle - began, times[1] + time.process_time() - middle
        size += raw.size
    return found, size / len(z), [len(z) / max(t, 1e-9) for t in times]


def divergence(p, q):
    return (p.exp() * (p - q)).nan_to_num(0.0).sum(-1)


def logits(z, names):
    print(f"    {'codec':12}{'bytes a row':>13}{'KL':>12}{'argmax agrees':>16}")
    for name in names:
        found, size, _ = back(z, name)
        q = torch.cat([f.dense() if isinstance(f, Kept) else f.float() for f in found]).double().log_softmax(-1)
        same = (q.argmax(-1) == z.argmax(-1)).double().mean()
        print(f"    {name:12}{size:13,.0f}{divergence(z.double().log_softmax(-1), q).mean():12.2e}{same:16.2%}", flush=True)


def features(name, x):
    for codec in ("fp16", "int8"):
        found, size, _ = back(x, codec)
        error = (torch.cat(found).float() - x).square().mean() / x.square().mean()
        print(f"    {name:22}{codec:6}{size / x[0].numel():8.2f} bytes a number   relative error {error.sqrt():.1e}", flush=True)


def tokens(z, names):
    p = z.double().log_softmax(-1)
    mass, least = p.topk(64).values.exp().sum(-1).mean(), math.log2(math.comb(z.shape[1], 64)) / 8
    print(f"    entropy {-(p.exp() * p).sum(-1).mean():.2f} nats; 64 ids hold {mass:.2%} and take {least:.1f} bytes if every set "
          "is as likely")
    print(f"    {'codec':12}{'bytes':>8}{'ids':>6}{'most':>6}{'KL, all ids':>13}{'listed':>10}{'argmax':>9}"
          f"{'in /s':>9}{'out /s':>9}")
    for name in names:
        found, size, rates = back(z, name)
        listed, every, same, count, most = [], [], [], 0, 0
        for part, f in zip(p.split(LENGTH), found, strict=True):
            f = f.summed() if isinstance(f, Kept) else keep(f.double(), z.shape[1] - 1)
            used = f.ids < f.classes
            own = part.gather(1, f.ids.clamp(max=f.classes - 1)).where(used, -torch.inf)
            rest = torch.cat([part, part[:, :1]], 1).scatter(1, f.ids, -torch.inf)[:, :-1].logsumexp(1, keepdim=True)
            listed.append(divergence(torch.cat([own, rest], 1), torch.cat([f.logp, f.rest], 1).double()))
            q = f.dense().double()
            every.append(divergence(part, q))
            same.append((q.argmax(1) == part.argmax(1)).double())
            count, most = count + used.sum().item(), max(most, used.sum(1).max().item())
        kl, least, right = (torch.cat(x).mean() for x in (every, listed, same))
        print(f"    {name:12}{size:8.1f}{count / len(z):6.1f}{most:6}{kl:13.2e}{least:10.1e}{right:9.2%}"
              f"{rates[0]:9,.0f}{rates[1]:9,.0f}", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=180)
    seconds = options.parse_args().seconds
    torch.set_num_threads(1)
    cast = arenas.digits("clean")
    teacher, images = cast.actors["teacher"].eval(), cast.test.tensors[0]
    net, texts, steps = language(seconds)
    with torch.no_grad():
        report(teacher, images, net, texts, steps)


def report(teacher, images, net, texts, steps):
    said = {}
    print(f"GPT after {steps} steps")
    for name, ids in texts.items():
        out, states = hidden(net, 1, -1)(input_ids=ids)
        loss = -out[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).mean()
        said[name] = out.flatten(0, 1)
        print(f"    {loss:.2f} nats a token on {len(ids)} texts that it has {'learnt' if name == 'learnt' else 'not seen'}")
    print("1. logits of the digits' teacher")
    logits(teacher(images), ("fp32", "fp16", "bf16", "int8", "top3", "top5"))
    print("   logits of the GPT over 1000 classes, texts learnt")
    logits(said["learnt"][:, said["learnt"].mean(0).topk(1000).indices], ("fp32", "fp16", "bf16", "int8", "top10", "top50"))
    print("2. features")
    names = [name for name, m in teacher.named_modules() if isinstance(m, torch.nn.ReLU)][-2:]
    for name, x in zip(names, Tap(teacher, *names)(images)[1], strict=True):
        features(f"digits {name}", x)
    for layer, x in enumerate(states, 1):
        features(f"GPT hidden {layer}", x.flatten(0, 1))
    for name, z in said.items():
        print(f"3. tokens of the GPT, {IDS} ids, texts {name}")
        tokens(z, ("fp16", "int8", "top64", "top64@100", "top64@99.9", "top64@99", "top64@95"))
    for entropy in (1.5, 3.0):
        print(f"   Zipf's law, {ZIPF:,} ids")
        tokens(zipf(entropy), ("top64", "top64@100", "top64@99.9", "top64@99", "top64@95"))


if __name__ == "__main__":
    main()
