"""Handwritten digits and sentences that name them: two-tower models that learnt both together, and another way to see digits."""

import copy
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.digits import shuffled
from stillroom.measure import base_to_novel
from stillroom.models.towers import TextTower, TwoTowers
from stillroom.models.vit import ViT
from stillroom.parts import optim
from stillroom.parts.heads import ClassVectors
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import cosine
from stillroom.run import Run

DATA = "scikit-learn digits and sentences; digits turned"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCES = ("a photo of a {} .", "a drawing of a {} .", "the number {} in ink .", "someone wrote a {} .")
BASE = (0, 1, 2, 3, 4)           # classes that labels are shown of
SHOTS = 16                       # labels of each
SOURCE, TRAIN = 700, 600         # images with sentences; images of the other domain without labels; the others are for tests
STEPS = 250                      # updates of a two-tower model
LARGE, SMALL = (64, 3, 20.0), (24, 2, 8.0)     # width, blocks, and how far the images of the source are turned to either side
PATCH = 4                        # side of a patch; images are 8 × 8
ANGLE = 30.0                     # by which the other domain is turned, in degrees


def captions(seed: int = 0) -> Cast:
    """Two-tower models for digits as they are, the teacher wider and deeper, and digits turned without labels; of five classes
    sixteen labels each.

    judged(net)      percent right on the shown classes among these, on the others among these, and the harmonic mean of both;
                     a two-tower model is judged by the first sentence of each class
    few_shot()       the student's tokens taught by the shown labels alone, as far as the trial of PromptSRC
    prompt_src()     and held near the untuned student, as that trial does it
    other(**fields)  what PromptKD's trial makes with these fields changed
    """
    ground, labels_alone = split(seed), {"image": 0.0, "text": 0.0, "scores": 0.0, "moments": 1}
    student, teacher = (copy.deepcopy(_towers(seed, large)) for large in (False, True))
    return Cast({"student": student, "teacher": teacher, "data": ground.train, "texts": sentences(), "shots": ground.shots},
                data=DATA, test=ground.test, judged=partial(_judged, seed), other=partial(variant, "prompt_kd", seed),
                few_shot=partial(variant, "prompt_src", seed, **labels_alone), prompt_src=partial(variant, "prompt_src", seed))


def shown(seed: int = 0) -> Cast:
    """The student of `captions`, and the labels.

    judged(net)      as there
    other(**fields)  what PromptSRC's trial makes with these fields changed
    """
    ground = split(seed)
    return Cast({"student": copy.deepcopy(_towers(seed, False)), "data": ground.shots, "texts": sentences()}, data=DATA,
                test=ground.test, judged=partial(_judged, seed), other=partial(variant, "prompt_src", seed))


def sentences() -> Tensor:
    """Tokens of every sentence of every class, [classes, sentences, length]: 1 begins, 2 ends, 0 fills up."""
    texts = [["[begin]", *sentence.format(name).split(), "[end]"] for name in NAMES for sentence in SENTENCES]
    words = {word: 1 + n for n, word in enumerate(dict.fromkeys(["[begin]", "[end]", *(w for text in texts for w in text)]))}
    length = max(map(len, texts))
    rows = [[words[w] for w in text] + [0] * (length - len(text)) for text in texts]
    return torch.tensor(rows).view(len(NAMES), len(SENTENCES), length)


@lru_cache(maxsize=4)
def split(seed: int) -> SimpleNamespace:
    """source, digits as they are with their classes; and turned: train without labels, shots with some, test."""
    x, y = shuffled(torch.Generator().manual_seed(seed))
    (plain, x, x_test), (said, y, y_test) = (t.tensor_split([SOURCE, SOURCE + TRAIN]) for t in (x, y))
    x, x_test = turned(x), turned(x_test)
    known = torch.cat([(y == c).nonzero().flatten()[:SHOTS] for c in BASE])
    return SimpleNamespace(source=TensorDataset(plain, said), train=TensorDataset(x, torch.full_like(y, UNLABELLED)),
                           shots=TensorDataset(x[known], y[known]), test=TensorDataset(x_test, y_test))


def turned(x: Tensor, degrees: Tensor | float = ANGLE) -> Tensor:
    """Images [n, channels, height, width], turned counter-clockwise, each by its own angle or all by one."""
    angle = torch.deg2rad(torch.as_tensor(degrees).expand(len(x)))
    c, s, o = angle.cos(), angle.sin(), torch.zeros(len(x))
    grid = F.affine_grid(torch.stack([c, -s, o, s, c, o], -1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


@lru_cache(maxsize=8)
def _towers(seed: int, large: bool) -> TwoTowers:
    """Taught by contrast: an image among sentences, one of each digit, and a sentence among the images of the batch."""
    torch.manual_seed(seed + 1000 * large)
    tokens, (dim, depth, spread) = sentences(), LARGE if large else SMALL
    net = TwoTowers(ViT(image=8, patch=PATCH, channels=1, dim=dim, depth=depth, heads=4, classes=dim),
                    TextTower(int(tokens.max()) + 1, tokens.shape[-1], dim, 1, 4, dim))
    run, opt = Run(seed=seed, device="cpu"), optim.adamw(net, lr=cosine(3e-3, warmup=0.1), decay=0.05)
    run.keep(net=net, opt=opt)
    for x, y in run.loop(split(seed).source, batch=64, steps=STEPS, whole=True):
        said = tokens[:, torch.randint(len(SENTENCES), ())]
        logits = net(turned(x, spread * torch.randn(len(x))), said)              # [batch, classes]
        own = F.one_hot(y, len(NAMES)).to(logits.dtype)
        run.update(opt, images=F.cross_entropy(logits, y) / 2,
                   texts=F.cross_entropy(logits.T, own.T / own.sum(0).clamp(min=1)[:, None]) / 2)
    return net.eval()


@torch.no_grad()
def _judged(seed: int, net: Module) -> dict[str, float]:
    if isinstance(net, TwoTowers):
        net = ClassVectors(net.image, net.text(sentences()[:, 0].to(net.scale.device)), net.scale.exp())
    return dict(zip(("shown", "others", "both"), base_to_novel(net, split(seed).test, BASE), strict=True))
