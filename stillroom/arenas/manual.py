"""The manuals on this machine: what numpy, scipy and scikit-learn say of each parameter, and its value when it is left out."""

import importlib
import inspect
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import SimpleNamespace
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.measure.spans import span_f1
from stillroom.models.readers import Reader, marked
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.oracle import Oracle
from stillroom.parts.schedules import linear
from stillroom.parts.spans import Passage, covered, listed, mentions, parse, prompt
from stillroom.run import Run

TASK = "Which value does each parameter have when it is left out? List it word for word, or nothing where the text does not say."
MODULES = (
    "sklearn.cluster", "sklearn.decomposition", "sklearn.ensemble", "sklearn.feature_extraction.text", "sklearn.linear_model",
    "sklearn.metrics", "sklearn.model_selection", "sklearn.neighbors", "sklearn.neural_network", "sklearn.preprocessing",
    "sklearn.svm", "sklearn.tree", "sklearn.datasets", "sklearn.manifold", "scipy.stats", "scipy.signal", "scipy.optimize",
    "scipy.interpolate", "scipy.linalg", "scipy.ndimage", "scipy.sparse.linalg", "scipy.fft", "scipy.integrate", "scipy.spatial",
    "numpy", "numpy.linalg", "numpy.fft", "numpy.ma")
SHOWN, VALID, TEST = 150, 200, 1000   # passages: examples with gold values, for choosing, for the report
LONGEST = 40                            # words of a passage


def entries(doc: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the section Parameters of a docstring in numpy's form."""
    _, _, rest = inspect.cleandoc(doc).partition("\nParameters\n")
    lines = rest.split("\n")[1:]
    ends = next((n for n, line in enumerate(lines) if line and not line.strip("-")), len(lines)) - 1
    name, text = "", ""
    for line in [*lines[: max(ends, 0)], "end : "]:
        head = re.match(r"(\w+)\s?:\s?(.*)", line)
        if head or (line and not line.startswith(" ")):
            if name:
                yield name, text
            name, text = (head[1], f"{head[1]} : {head[2]}.") if head else ("", "")
        else:
            text += f" {line.strip()}"


def plain(text: str) -> str:
    """Without marks of reStructuredText, cut to its first words."""
    text = re.sub(r":\w+:`([^`<]+?)\s*(?:<[^>]*>)?`", r"\1", text)
    return " ".join(re.sub(r"`|\*\*|\.\. \w+::|\.\. _\w+:", "", text).split()[:LONGEST])


def value(text: str, default: object) -> str:
    """How the text writes a default, or "" when it does not."""
    if isinstance(default, str):
        wanted = default
    elif isinstance(default, bool) or default is None:
        wanted = repr(default)
    elif isinstance(default, int | float):
        numbers = re.findall(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)", text)
        wanted = next((n for n in numbers if float(n) == default), "")
    else:
        return ""
    places = mentions(text, wanted)
    return text[slice(*places[0])] if places else ""


@lru_cache(maxsize=1)
def passages() -> list[tuple[Passage, dict[str, list[str]], str]]:
    """Every entry once: the passage, its name and other parameters of the function that it speaks of; the values that they
    have when left out, by the function's signature, where the text has it; and whose entry it is."""
    found, seen = [], set()
    for module in MODULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            things = sorted(vars(importlib.import_module(module)).items())
        for thing, what in things:
            if thing.startswith("_") or not callable(what) or not (doc := inspect.getdoc(what)):
                continue
            try:
                takes = inspect.signature(what).parameters
            except (TypeError, ValueError):
                continue
            for name, raw in entries(doc):
                text = plain(raw)
                if name not in takes or text in seen or len(text.split()) < 8:
                    continue
                seen.add(text)
                default = takes[name].default
                gold = value(text.partition(":")[2], default) if default is not inspect.Parameter.empty else ""
                others = [n for n in takes if n != name and len(n) > 2 and n in text and mentions(text, n)][:3]
                found.append((Passage(text, (name, *others)), {name: [gold] if gold else [], **{n: [] for n in others}}, thing))
    return found


@lru_cache(maxsize=4)
def split(seed: int) -> SimpleNamespace:
    """Examples with gold values, passages without, and passages to choose by and to report on; the parts share no function but
    the one at a cut."""
    everything = passages()
    order = sorted({of for *_, of in everything})
    random.Random(seed).shuffle(order)
    rank = {of: n for n, of in enumerate(order)}
    ranked = sorted(everything, key=lambda p: rank[p[2]])
    a, b, c = SHOWN, SHOWN + VALID, SHOWN + VALID + TEST
    parts = [[(p, gold) for p, gold, _ in ranked[m:n]] for m, n in ((0, a), (a, b), (b, c), (c, None))]
    return SimpleNamespace(**dict(zip(("shown", "valid", "test", "pool"), parts, strict=True)))


class Pointer(Module):
    """A teacher unlike the student: it points at the first word of an answer, or at none, and says how many words it has.

    forward   tokens, first tokens of the names [texts, names] → logits [texts, names, length + 1] (the last: none), and of the
              number of further words behind each token [texts, length, 4]
    """

    def __init__(self, encoder: Reader):
        super().__init__()
        self.encoder: Reader = encoder
        self.first = nn.Linear(encoder.dim, 1)
        self.none, self.further = nn.Linear(encoder.dim, 1), nn.Linear(encoder.dim, 4)

    def forward(self, ids: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(ids)                                                               # [texts, length, dim]
        there = (ids != 0).any(-1)
        first = self.first(h)[..., 0].masked_fill(~there, -1e4)[:, None].expand(-1, names.shape[1], -1)
        none = self.none(h)[..., 0].gather(1, names.clamp(min=0))[..., None]
        return torch.cat([first, none], -1), self.further(h)


class Teacher:
    """What stands behind the oracle: it reads a prompt and answers in words, each drawn from its distribution at `warm`. The
    same prompt gets the same answer."""

    def __init__(self, net: Pointer, warm: float):
        self.net, self.warm = net.eval(), warm

    @torch.no_grad()
    def __call__(self, prompt: str) -> str:
        text, names = re.findall(r"^Passage: (.*)\nNames: (.*)$", prompt, re.M)[-1]
        passage = Passage(text, tuple(names.split(", ")))
        dice = torch.Generator().manual_seed(crc32(prompt.encode()))
        ids, spans = self.net.encoder.read([text])
        found: dict[str, list[str]] = {name: [] for name in passage.names}
        for name in passage.names:
            at = covered(spans[0], mentions(text, name)[:1])
            if not at:
                continue
            first, further = self.net(ids, torch.tensor([at[:1]]))
            start = self._drawn(first[0, 0], dice)
            if start < len(spans[0]):
                end = min(start + self._drawn(further[0, start], dice), len(spans[0]) - 1)
                found[name] = [text[spans[0][start][0] : spans[0][end][1]]]
        return listed(found)

    def _drawn(self, logits: Tensor, dice: torch.Generator) -> int:
        if not self.warm:
            return int(logits.argmax())
        return int(torch.multinomial((logits / self.warm).softmax(-1), 1, generator=dice))


WARM = 1.5      # temperature at which the oracle draws its words: it errs now here, now there


def manual(seed: int = 0, warm: float = WARM) -> Cast:
    """A small reader as student, passages without values, and an oracle that has seen a hundred and fifty with theirs.

    f1(found)    lenient F1 on the test passages, in percent; strict with lenient=False
    teacher()    what the oracle answers on them; surest(): what it would answer if it drew no word
    alone()      what the student extracts when it is taught by the teacher's own examples and their true values
    """
    ground = split(seed)
    torch.manual_seed(1000 + seed)
    student = Reader()
    gold = [values for _, values in ground.test]
    return Cast({"student": student, "teacher": Oracle(Teacher(_pointer(seed), warm)), "data": Passages(ground.pool)},
                data="parameters in the manuals of numpy, scipy, scikit-learn", test=Passages(ground.test), valid=ground.valid,
                f1=lambda found, lenient=True: span_f1(found, gold, lenient), teacher=lambda: _answers(seed, warm),
                surest=lambda: _answers(seed, 0.0), alone=lambda: _alone(seed))


class Passages(list):
    """Samples (passage, −100) of passages with their values: the values are left out."""

    def __init__(self, known: Sequence[tuple[Passage, dict[str, list[str]]]]):
        super().__init__((passage, UNLABELLED) for passage, _ in known)


@lru_cache(maxsize=4)
def _pointer(seed: int) -> Pointer:
    """The teacher: taught by the values of the shown passages."""
    shown = split(seed).shown
    torch.manual_seed(seed)
    net = Pointer(Reader())
    passages, values = zip(*shown, strict=True)
    ids, firsts, parts = marked(net.encoder, passages, values)
    inside = parts == 1
    start = torch.where(inside.any(-1), inside.int().argmax(-1), ids.shape[1]).where(firsts >= 0, UNLABELLED)
    run = Run(seed=seed, device="cpu")
    opt = optim.adamw(net, lr=linear(3e-3))
    run.keep(net=net, opt=opt)
    for tokens, names, first, own in run.loop(TensorDataset(ids, firsts, start, inside), batch=32, steps=300, whole=True):
        begins, further = net(tokens, names)
        known = ((first >= 0) & (first < ids.shape[1])).nonzero(as_tuple=True)
        at = first[known]
        behind = torch.stack([own[known].gather(1, (at + n).clamp(max=ids.shape[1] - 1)[:, None])[:, 0] for n in range(1, 4)], 1)
        count = behind.int().cumprod(1).sum(1)                              # words of the first span behind its first
        run.update(opt, first=losses.labels(begins.flatten(0, 1), first.flatten()),
                   further=F.cross_entropy(further[known[0], at], count) if len(at) else further.sum() * 0)
    return net.eval()


@lru_cache(maxsize=8)
def _answers(seed: int, warm: float) -> list[dict[str, list[str]]]:
    test = [passage for passage, _ in split(seed).test]
    said = Oracle(Teacher(_pointer(seed), warm))([prompt(TASK, passage) for passage in test])
    return [parse(answer.text, passage) for answer, passage in zip(said, test, strict=True)]


@lru_cache(maxsize=4)
def _alone(seed: int) -> list[dict[str, list[str]]]:
    """The student taught by the teacher's own examples: an oracle that knows them stands behind the same recipe."""
    from stillroom.recipes.language.ade_distill import ADEDistill  # which stands on this ground itself

    shown = split(seed).shown
    known = {prompt(TASK, passage): listed(values) for passage, values in shown}
    torch.manual_seed(1000 + seed)
    made = ADEDistill(task=TASK, lr=3e-3, steps=400)(Run(seed=seed), student=Reader(), teacher=Oracle(known.__getitem__),
                                                     data=Passages(shown))
    return made.extract([passage for passage, _ in split(seed).test])
