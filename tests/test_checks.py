"""What is said before the first step: each mistake with its remedy, and nothing changed by looking."""

import random
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import Module
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from stillroom import Recipe, Run, _compat, arenas, checks, zoo
from stillroom.arenas.alone import Alone
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Frozen
from stillroom.recipe import card, load

HAS_TIMM = pytest.mark.skipif(_compat.find_spec("timm") is None, reason="timm is not installed")
HAS_TRANSFORMERS = pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
KD, DINO = load("kd"), load("dino")


def digits(n=20, shape=(1, 8, 8), classes=10, low=0.0, high=1.0):
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(low + (high - low) * torch.rand(n, *shape, generator=draw), torch.arange(n) % classes)


def named(data, classes):
    data.classes = classes
    return data


def taught(net):
    """As if it had been trained."""
    torch.nn.init.normal_(list(net.parameters())[-2])
    return net


def frozen(net):
    return net.requires_grad_(False)


def relabelled(value, at=0):
    data = digits()
    data.tensors[1][at] = value
    return data


def unlabelled():
    data = digits()
    return TensorDataset(data.tensors[0], torch.full_like(data.tensors[1], UNLABELLED))


class Samples(Dataset):
    """Samples as they come, one by one."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(digits())


def zoo_mlp(**wish):
    torch.manual_seed(0)
    return zoo.model("small:mlp", **{"classes": 10, "channels": 1, "size": 8} | wish)


def scaled(classes=10, channels=1, named=None):
    """A model that takes [0, 1] and normalises by itself, as those of the zoo do."""
    from stillroom.zoo.built import normalise

    net = normalise(cnn(4, classes, channels), [0.5] * channels, [0.25] * channels)
    net.classes = named
    return net


SHARED, AGAIN = mlp(), mlp()
X = torch.rand(1, 8, 8)


def kd(student=mlp, teacher=mlp, data=digits):
    return KD, {"student": student, "teacher": teacher, "data": data}


def meal(others, student=mlp):
    return load("meal_v2"), {"student": student, "teacher": mlp, "others": others, "data": digits}


def alone(student=mlp, data=digits):
    return Alone, {"student": student, "data": data}


def of(*samples):
    return lambda: Samples(*samples)


def nets(classes):
    return {"student": lambda: mlp(classes=classes), "teacher": lambda: mlp(classes=classes)}


THREE = {"student": lambda: cnn(4, 3), "teacher": lambda: scaled(3, named=["Dog", "cat", "big_fish"])}

# what is wrong: the recipe and its actors; what is said; the remedy
WRONG = {
    "an actor is missing": ((KD, {"student": mlp, "data": digits}), "KD needs 'teacher'", "student, teacher, data"),
    "an actor is misspelt": ((KD, {"student": mlp, "teachr": mlp}), "no actor 'teachr'", "did you mean 'teacher'"),
    "a model given by name": (kd(student=lambda: "timm:resnet18"), "is a str, no torch.nn.Module", "model('timm:resnet18')"),
    "a class, no model": (kd(student=lambda: nn.Identity), "no torch.nn.Module", "the model itself"),
    "data given by name": (kd(data=lambda: "digits"), "data is a str, no data set", "zoo.data('digits')"),
    "a tensor for data": (kd(data=lambda: X), "data is a Tensor", "TensorDataset(x, y)"),
    "a stream for data": (kd(data=Stream), "data is a Stream", "map-style"),
    "no data": (kd(data=of()), "the data set is empty", "check its path"),
    "bare tensors": (kd(data=of(X, X)), "gives a Tensor for a sample", "return (x, y)"),
    "dicts": (kd(data=of({"x": X})), "gives a dict for a sample", "return (x, y)"),
    "no place for the label": (kd(data=lambda: TensorDataset(digits().tensors[0])), "without a place for the label", "y = -100"),
    "pictures": (kd(data=of((Image.new("L", (8, 8)), 1))), "pictures, not tensors", "tensors in [0, 1]"),
    "texts of two lengths": (kd(data=of(({"ids": X[0, 0]}, 1), ({"ids": X[0, 0, 1:]}, 1))), "'ids' differ in shape", "pad"),
    "samples of two sizes": (kd(data=of((X, 1), (X[:, 1:], 1))), "differ in shape", "zoo.data(…, size=…)"),
    "bytes": (kd(data=of(((X * 255).byte(), 1))), "are bytes, from 0 to 255", "x.float() / 255"),
    "NaN": (kd(data=of((X.clone().fill_(float("nan")), 1))), "64 numbers in the first samples are NaN", "clean the data"),
    "normalised twice": (kd(student=scaled, data=lambda: digits(low=-2.0, high=2.5)),
                         "take [0, 1] and normalise by themselves", "leave the normalisation out"),
    "0 to 255 as floats": (kd(teacher=lambda: Frozen(scaled()), data=lambda: digits(high=255)), "images run from", "such as 255"),
    "a frozen student": (kd(student=lambda: frozen(mlp())), "all its parameters are frozen", "requires_grad_(True)"),
    "nothing to learn": (alone(student=nn.Flatten), "it has no parameters", "another student"),
    "one network twice": (kd(student=lambda: SHARED, teacher=lambda: SHARED), "share 4 parameters", "copy.deepcopy"),
    "a shared body": (kd(student=lambda: nn.Sequential(SHARED, nn.Linear(10, 10)), teacher=lambda: Frozen(SHARED)),
                      "share 4 parameters", "copy.deepcopy"),
    "a teacher that never learnt": (kd(teacher=zoo_mlp), "small:mlp was never trained", "teach --student small:mlp"),
    "classes of the student": (kd(student=lambda: mlp(classes=7)), "student tells 7 classes apart, the teacher 10", "classes=10"),
    "classes of a second teacher": (meal(lambda: [mlp(), mlp(classes=7)]),
                                    "student tells 10 classes apart, the others[1] 7", "teacher for the data's classes"),
    "a second teacher that never learnt": (meal(lambda: [zoo_mlp()]), "small:mlp was never trained", "teach --student small:mlp"),
    "the student as a second teacher": (meal(lambda: [AGAIN], student=lambda: AGAIN), "share 4 parameters", "copy.deepcopy"),
    "classes of both": (kd(**nets(3), data=lambda: named(digits(classes=2), ["a", "b"])),
                        "the student tells 3 classes apart, the data have 2", "classes=2"),
    "classes of the baseline": (alone(data=lambda: named(digits(), [*"abc"])), "10 classes apart, the data have 3", "classes=3"),
    "a label too large": (kd(data=lambda: relabelled(10)), "1 labels are no class of the student's 10, such as 10", "0 to 9"),
    "a label below": (kd(data=lambda: relabelled(-1)), "1 labels are no class", "-100 means no label"),
    "a label of a subset": (alone(data=lambda: Subset(relabelled(11, at=3), [3, 5])), "1 labels are no class", "0 to 9"),
    "classes in another order": (kd(**THREE, data=lambda: named(digits(classes=3), ["cat", "dog", "big fish"])),
                                 "teacher and data number the classes differently: 'Dog' is 0 for the teacher, 1 in the data",
                                 "the teacher's order (2 are out of place)"),
    "no labels at all": (alone(data=unlabelled), "no sample has a label, and Alone learns from labels", "label a few"),
    "channels": (kd(student=lambda: taught(zoo_mlp()), data=lambda: digits(shape=(3, 8, 8))),
                 "student takes images of 1 channels; the data have 3",
                 "--channels 1; in Python zoo.data(…, channels=1), or zoo.model(…, channels=3)"),
    "image size": (kd(student=lambda: cnn(4), teacher=lambda: taught(zoo_mlp(size=6))),
                   "teacher takes images of 1 × 6 × 6; the data have 1 × 8 × 8", "zoo.data(…, size=6), or zoo.model(…, size=8)"),
    "channels of one's own": (kd(student=lambda: cnn(4, channels=3)),
                              "does not take samples of shape [1, 8, 8]: Given groups=1", "built for"),
}


@pytest.mark.parametrize(("call", "wrong", "remedy"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_said_with_its_remedy(call, wrong, remedy):
    recipe, actors = call
    with pytest.raises(Refused) as error:
        recipe(steps=1, batch=4)(Run(), **{name: make() for name, make in actors.items()})
    first, _, then = str(error.value).partition("\n  → ")
    assert wrong in first and remedy in then


@HAS_TIMM
def test_raw_timm_models_with_different_scales():
    timm = _compat.package("timm")
    one = timm.create_model("resnet10t", num_classes=10)
    other = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, embed_dim=8, depth=1, num_heads=1)
    data = digits(shape=(3, 32, 32))
    with pytest.raises(Refused, match=r"want their input on different scales: mean \(0.485(.|\n)*zoo.model"):
        KD(steps=1, batch=4)(Run(), student=one, teacher=other, data=data)
    checks.before(KD(), Run(), {"student": one, "teacher": Frozen(other, mean=(0.5,) * 3, std=(0.5,) * 3), "data": data})
    same = timm.create_model("resnet10t", num_classes=10)
    checks.before(KD(), Run(), {"student": one, "teacher": same, "data": data})
    checks.before(KD(), Run(), {"student": zoo.model("timm:resnet10t", classes=10), "teacher": other, "data": data})


def test_labels_are_wanted_where_the_card_says_so():
    data = relabelled(UNLABELLED, at=slice(0, 5))
    checks._labelled(card("kd").rows, data.tensors[1], 20, "KD")
    with pytest.raises(Refused, match=r"KD needs a label for every sample; 5 of 20 have none\n.*by_label"):
        checks._labelled({"data": "labelled images"}, data.tensors[1], 20, "KD")
    checks._labelled({"data": "some labelled"}, torch.full((8,), UNLABELLED), 20, "Alone")      # only the first eight are known
    Alone(steps=1, batch=4)(Run(), student=mlp(), data=data)


# --- what is right passes --------------------------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class Own(Recipe):
    """A recipe of a user's, which we know nothing of."""

    def distill(self, run, student: Module, data: Dataset, critic: Module | None = None):
        return student


class Picky(nn.Linear):
    def forward(self, x, hidden):
        return super().forward(x)


@pytest.mark.parametrize(("recipe", "actors"), [
    (KD(), {"student": mlp(), "teacher": cnn(4), "data": digits()}),
    (KD(), {"student": mlp(), "teacher": cnn(4), "data": unlabelled()}),
    (KD(), {"student": mlp(), "teacher": cnn(4), "data": Samples(*digits())}),
    (KD(), {"student": mlp(), "teacher": cnn(4), "data": Samples((X, 3))}),
    (KD(), {"student": mlp(), "teacher": frozen(cnn(4)).train(), "data": Subset(digits(), range(3))}),
    (KD(), {"student": mlp(), "teacher": taught(zoo_mlp()), "data": digits()}),
    (KD(), {"student": zoo_mlp(), "teacher": mlp(), "data": zoo.data("digits?labels=50")}),
    (KD(), {"student": mlp(), "teacher": cnn(4), "data": Samples((X, torch.full((10,), 0.1)))}),          # soft labels
    (KD(), {"student": nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "teacher": mlp(), "data": digits()}),
    (Own(), {"student": frozen(mlp(classes=3)), "data": named(digits(), list("ab"))}),
    (Own(), {"student": Picky(2, 2), "data": Samples((X, 1))}),
    (Own(), {"student": mlp(), "data": digits(), "critic": None}),
])
def test_what_may_be_right_is_let_through(recipe, actors):
    checks.before(recipe, Run(), actors)


def test_a_random_teacher_is_right_where_it_is_meant():
    checks.taught(zoo_mlp(), {"teacher": "a random network"})
    with pytest.raises(Refused):
        checks.taught(zoo_mlp(), {"teacher": "frozen network"})


def test_looking_changes_nothing():
    class Noisy(Samples):
        def __getitem__(self, i):
            return torch.rand(1, 8, 8) * float(np.random.rand()) * random.random(), 1

    net, teacher = cnn(4), cnn(4)
    net[1].eval()
    before = [b.clone() for b in (*net.buffers(), *net.parameters())]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    want = torch.rand(1).item(), float(np.random.rand()), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    checks.before(KD(), Run(), {"student": net, "teacher": teacher, "data": Noisy(*range(9))})
    assert (torch.rand(1).item(), float(np.random.rand()), random.random()) == want
    assert all(torch.equal(a, b) for a, b in zip(before, (*net.buffers(), *net.parameters()), strict=True))
    assert [m.training for m in net][:3] == [True, False, True] and teacher.training
    assert all(p.requires_grad and p.grad is None for p in (*net.parameters(), *teacher.parameters()))


def test_looking_is_cheap():
    cast = arenas.digits("few", 0)
    checks.before(KD(), Run(), cast.actors)
    began = time.process_time()
    for _ in range(10):
        checks.before(KD(), Run(), cast.actors)
    assert (time.process_time() - began) / 10 < 0.1


def test_every_recipe_passes_on_its_own_trial():
    from stillroom.recipe import module, names

    for name in [n for n in ("kd", "nkd_uskd", "dho", "ssld") if n in names()]:
        recipe, cast = module(name).trial(0)
        checks.before(recipe, Run(), cast.actors)


# --- vocabularies ----------------------------------------------------------------------------------------------------

def test_shared_ids_agree_and_the_tail_falls_away():
    words = {w: i for i, w in enumerate(("<pad>", "a", "b", "c", "d"))}
    assert checks.vocabulary(words, words) == 5
    assert checks.vocabulary(words, words | {"<extra>": 5, "<more>": 9}) == 5
    assert checks.vocabulary(words | {"<extra>": 5, "<more>": 9}, words) == 5
    assert checks.vocabulary(words, {k: v for k, v in words.items() if k != "b"}) == 5         # a hole is no disagreement


@pytest.mark.parametrize(("other", "said"), [
    ({"a": 0, "b": 1, "x": 2}, r"1 ids disagree \(2 is 'c' and 'x'\)"),
    ({"b": 0, "a": 1, "c": 2}, r"2 ids disagree \(0 is 'a' and 'b'"),
    ({"a": 0, "b": 1, "c": 7}, r"1 ids disagree \(2 is 'c' and 'nothing'\)"),
    ({"x": 40}, "none shared"), ({}, "has no vocabulary")])
def test_other_numbers_are_refused(other, said):
    with pytest.raises(Refused, match=said):
        checks.vocabulary({"a": 0, "b": 1, "c": 2}, other)
    with pytest.raises(Refused):
        checks.vocabulary(other, {"a": 0, "b": 1, "c": 2})


TEXT = ["the still stands in the stillroom", "what is distilled is less and better",
        "the teacher knows more than the student", "a student that is small and quick"] * 3


def trained(kind, size, text=TEXT):
    """A tokenizer made here: byte-pair or word-piece."""
    tokenizers = pytest.importorskip("tokenizers")
    model, trainer = {"bpe": (tokenizers.models.BPE(unk_token="[UNK]"), tokenizers.trainers.BpeTrainer),
                      "pieces": (tokenizers.models.WordPiece(unk_token="[UNK]"), tokenizers.trainers.WordPieceTrainer)}[kind]
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.train_from_iterator(text, trainer(vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False))
    return made


def test_real_tokenizers():
    small, large = trained("bpe", 40), trained("bpe", 60)                       # merges are learnt in order: one begins the other
    assert checks.vocabulary(small, small) == 40
    assert checks.vocabulary(small, large) == 40
    large.add_special_tokens(["<think>", "</think>"])
    assert checks.vocabulary(large, small) == 40
    with pytest.raises(Refused, match=r"ids disagree(.|\n)*a method that compares texts"):
        checks.vocabulary(small, trained("bpe", 40, [t[::-1] for t in TEXT] + ["xyz qqq zz"]))
    with pytest.raises(Refused, match="ids disagree"):
        checks.vocabulary(trained("pieces", 60), large)


@HAS_TRANSFORMERS
def test_real_transformers_tokenizers():
    transformers = _compat.package("transformers")
    one = transformers.PreTrainedTokenizerFast(tokenizer_object=trained("bpe", 50), pad_token="[PAD]", unk_token="[UNK]")
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=trained("bpe", 50), pad_token="[PAD]", unk_token="[UNK]")
    other.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    assert len(other) == 51 and checks.vocabulary(one, other) == 50
    changed = transformers.PreTrainedTokenizerFast(tokenizer_object=trained("bpe", 45), pad_token="[PAD]", unk_token="[UNK]")
    changed.add_special_tokens({"additional_special_tokens": ["<|end|>"]})       # takes an id that means something to the other
    with pytest.raises(Refused, match=r"45 is '<\|end\|>' and"):
        checks.vocabulary(changed, one)
