"""Data by name: images, arrays and tables as users have them, made here; what is wrong is refused with its remedy."""

import io
import json
import lzma
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom import _compat, arenas, zoo
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import images, shared
from stillroom.zoo.sets import cut, few_labels

# --- data and spaces of one's own ------------------------------------------------------------------------------------

OWN = """
import torch
from torch.utils.data import TensorDataset
from stillroom.parts.graphs import graph
from stillroom.arenas.architectures import Cells

def images(count=30, size=None):
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 1, *(size or (8, 8)), generator=draw), torch.arange(count) % 3)

def parts():
    return {"train": images(12), "val": images(6), "test": images(6)}

def rings():
    def ring(n, kind):
        return graph([kind] * n, [(i, (i + 1) % n) for i in range(n)])
    return [(ring(4 + i % 5, i % 2), i % 2) for i in range(30)]

def strange():
    return {"learn": images()}

def nothing():
    return 5

def boxes():
    return [(torch.rand(3), [1.0, 2.0]) for _ in range(4)]

def cells(width=4):
    return Cells(width=width)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: f"file:{tmp_path / 'own.py'}:{name}"


def test_data_of_ones_own_by_a_function(own):
    data = zoo.data(own("images") + "?count=12", size=6)
    assert len(data) == 12 and data.shape == (1, 6, 6)
    assert data.classes == ["0", "1", "2"] and data.targets.tolist() == [0, 1, 2] * 4
    split = zoo.splits(own("parts"))
    assert [len(split.train), len(split.valid), len(split.test)] == [12, 6, 6]
    assert data.fingerprint != split.train.fingerprint == zoo.splits(own("parts")).train.fingerprint


def test_graphs_of_ones_own_reach_a_recipe_by_the_command(own, tmp_path):
    from stillroom.cli import main

    assert main(["run", "mirage", "--data", own("rings"), "--folder", str(tmp_path / "run"), "--size", "0.2"]) == 0
    assert (tmp_path / "run" / "made.json").exists()


def test_a_space_of_ones_own(own):
    assert zoo.actor("Space", own("cells") + "?width=6").width == 6


@pytest.mark.parametrize(("name", "wrong", "remedy"), [
    ("images?size_=3", "takes no 'size_'", "did you mean 'size'"), ("strange", "gave a split 'learn'", "train"),
    ("nothing", "gave a int, no data set", "TensorDataset"), ("boxes", "no class numbers", "-100 for none")])
def test_data_of_ones_own_that_will_not_do(own, name, wrong, remedy):
    with pytest.raises(Refused) as error:
        zoo.splits(own(name))
    assert wrong in str(error.value) and remedy in str(error.value)


# --- data: digits and what every set can do --------------------------------------------------------------------------

@pytest.mark.parametrize(("option", "regime", "seed"), [("", "clean", 1), ("?labels=50", "few", 0), ("?noise=0.4", "noisy", 2)])
def test_digits_are_those_of_the_arena(option, regime, seed):
    split, cast = zoo.splits(f"digits{option}", seed=seed), arenas.digits(regime, seed)
    for mine, theirs in ((split.train, cast.actors["data"]), (split.valid, cast.valid), (split.test, cast.test)):
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors, theirs.tensors, strict=True))
    assert torch.equal(zoo.data("digits", split="val").tensors[0], zoo.splits("digits").valid.tensors[0])


def test_a_set_knows_what_it_is():
    data = zoo.data("digits?labels=50")
    assert data.classes == [str(i) for i in range(10)] and data.shape == (1, 8, 8)
    assert torch.equal(data.targets, data.tensors[1]) and (data.targets != UNLABELLED).sum() == 50
    assert data.words == "scikit-learn digits, train: 1,197 images of 1 × 8 × 8, 10 classes, 50 labelled"
    prints = {zoo.data(s).fingerprint for s in ("digits", "digits?labels=50", "digits?noise=0.1")}
    assert len(prints) == 3 and zoo.data("digits").fingerprint in prints
    assert len(int(data.fingerprint, 16).to_bytes(16, "big")) == 16
    resized = zoo.data("digits", size=(4, 6), channels=3)
    assert resized.shape == (3, 4, 6) and resized.tensors[0].min() >= 0 and resized.tensors[0].max() <= 1


def test_labels_are_kept_evenly_over_the_classes():
    data = few_labels(zoo.data("digits"), 23, seed=0)
    counts = data.targets[data.targets != UNLABELLED].bincount(minlength=10)
    assert counts.sum() == 23 and counts.tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]


def test_resizing_keeps_the_middle_and_the_mean():
    x = torch.zeros(1, 1, 4, 8)
    x[..., 2:6] = 1                                       # the middle square is white
    assert images.fit(x, (4, 4), None).min() == 1
    y = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(images.fit(y, (8, 8), None).mean(), y.mean(), atol=5e-3, rtol=0)
    grey = images.fit(y, None, 1)
    torch.testing.assert_close(grey, (0.299 * y[:, :1] + 0.587 * y[:, 1:2] + 0.114 * y[:, 2:]))
    assert torch.equal(images.fit(grey, None, 3)[:, 2:], grey)


# --- data: folders ---------------------------------------------------------------------------------------------------

def picture(file, value, size=(10, 12), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value).save(file)


@pytest.fixture
def folder(tmp_path):
    """Twelve cats, dark, and twelve dogs, bright."""
    root = tmp_path / "pets"
    for i in range(12):
        picture(root / "cat" / f"{i:02}.png", (i, 0, 0))
        picture(root / "dog" / f"{i:02}.png", (200 + i, 255, 255))
    return root


def test_a_folder_per_class(folder):
    data = zoo.data(f"folder:{folder}")
    assert data.classes == ["cat", "dog"] and data.shape == (3, 10, 12) and len(data) == 24
    assert data.targets.tolist() == [0] * 12 + [1] * 12
    x, y = data[13]
    torch.testing.assert_close(x[:, 0, 0], torch.tensor([201 / 255, 1.0, 1.0]))
    assert y == 1 and data.words == "pets: 24 images of 3 × 10 × 12, 2 classes"
    assert zoo.data(f"folder:{folder}", size=5, channels=1)[0][0].shape == (1, 5, 5)
    (x, y), = batches(data, 4, start=0, count=1, seed=(0,))
    assert x.shape == (4, 3, 10, 12) and y.dtype == torch.int64
    (xw, yw), = batches(data, 4, start=0, count=1, seed=(0,), workers=1)
    assert torch.equal(x, xw) and torch.equal(y, yw)
    assert torch.equal(pickle.loads(pickle.dumps(data))[13][0], data[13][0])       # as processes that load data get it


def test_the_fingerprint_follows_the_content(folder):
    before = zoo.data(f"folder:{folder}").fingerprint
    assert zoo.data(f"folder:{folder}").fingerprint == before
    picture(folder / "cat" / "03.png", (77, 0, 0))
    assert zoo.data(f"folder:{folder}").fingerprint != before


def test_splits_are_cut_evenly_and_the_same_for_everybody(folder):
    split = zoo.splits(f"folder:{folder}", seed=3)
    assert [len(s) for s in vars(split).values()] == [20, 2, 2]
    assert all(sorted(s.targets.unique().tolist()) == [0, 1] for s in vars(split).values())
    places = [i for s in vars(split).values() for i in s.index.tolist()]
    assert sorted(places) == list(range(24))
    again, other = zoo.splits(f"folder:{folder}", seed=3), zoo.splits(f"folder:{folder}", seed=4)
    assert torch.equal(again.test.index, split.test.index) and not torch.equal(other.test.index, split.test.index)
    assert split.train.fingerprint != split.test.fingerprint
    torch.testing.assert_close(split.test[0][0], zoo.data(f"folder:{folder}")[int(split.test.index[0])][0])


def test_given_splits_are_respected(folder, tmp_path):
    for part in ("train", "val", "test"):
        for kind in ("cat", "dog") if part != "test" else ("dog",):
            for i in range(20):
                picture(tmp_path / "own" / part / kind / f"{i}.png", i, mode="L")
    split = zoo.splits(f"folder:{tmp_path}/own", size=4)
    assert [len(s) for s in vars(split).values()] == [40, 40, 20]
    assert split.test.targets.tolist() == [1] * 20 and split.test.shape == (1, 4, 4) and split.test.classes == ["cat", "dog"]
    assert len(zoo.data(f"folder:{tmp_path}/own", split="valid")) == 40
    (tmp_path / "own" / "test").rename(tmp_path / "gone")
    split = zoo.splits(f"folder:{tmp_path}/own")                     # the given one is the test; a tenth of train is for choosing
    assert [len(s) for s in vars(split).values()] == [36, 4, 40]
    picture(tmp_path / "own" / "val" / "doge" / "0.png", 3, mode="L")
    with pytest.raises(Refused, match=r"has the class 'doge', which the training data have not\n.*did you mean 'dog'"):
        zoo.splits(f"folder:{tmp_path}/own")


def test_images_alone_are_unlabelled(tmp_path):
    for i in range(10):
        picture(tmp_path / f"{i}.png", i, mode="L")
    data = zoo.data(f"folder:{tmp_path}")
    assert (data.targets == UNLABELLED).all() and data.classes == [] and "no labels" in data.words and data.shape == (1, 10, 12)
    assert [len(s) for s in vars(zoo.splits(f"folder:{tmp_path}")).values()] == [8, 1, 1]


def test_a_folder_called_unlabelled_is_no_class(folder):
    for i in range(5):
        picture(folder / "unlabelled" / f"{i}.png", (9, 9, 9))
    data = zoo.data(f"folder:{folder}")
    assert data.classes == ["cat", "dog"] and (data.targets == UNLABELLED).sum() == 5 and "24 labelled" in data.words
    split = zoo.splits(f"folder:{folder}")
    assert (split.train.targets == UNLABELLED).sum() == 5 and (split.test.targets != UNLABELLED).all()
    noisy = zoo.data(f"folder:{folder}?labels=4")
    assert (noisy.targets != UNLABELLED).sum() == 4 and noisy[0][0].shape == (3, 10, 12)


def test_pictures_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "a"
    root.mkdir()
    Image.fromarray(rng.integers(0, 255, (6, 4), dtype=np.uint8)).save(root / "grey.png")
    Image.fromarray(np.full((6, 4), 32896, dtype=np.uint16)).save(root / "sixteen.png")
    Image.fromarray(rng.integers(0, 255, (6, 4, 4), dtype=np.uint8)).save(root / "clear.png")
    Image.new("P", (4, 6), 3).save(root / "few.gif")
    turned = Image.new("RGB", (6, 4), (255, 0, 0))         # red on the left, black on the right
    turned.paste((0, 0, 0), (3, 0, 6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6                                       # lies on its side: 6 × 4 is meant, red on top
    turned.save(root / "photo.jpg", exif=exif, quality=100, subsampling=0)
    data = zoo.data(f"folder:{root}")
    assert data.shape == (3, 6, 4)
    by_name = {os.path.basename(f): data[i][0] for i, f in enumerate(data.read.args[0])}
    torch.testing.assert_close(by_name["sixteen.png"], torch.full((3, 6, 4), 128 / 255))
    assert by_name["photo.jpg"][0, :2].min() > 0.9 and by_name["photo.jpg"][0, 4:].max() < 0.1


def test_corrupt_images_are_named_and_left_out_only_when_asked(folder):
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "words.jpg").write_bytes(b"not an image")
    (folder / "dog" / "half.png").write_bytes((folder / "dog" / "00.png").read_bytes()[:60])
    with pytest.raises(Refused) as error:
        zoo.data(f"folder:{folder}")
    said = str(error.value)
    for part in ("3 of 27 images", "cat/empty.png (empty)", "cat/words.jpg (no image)", "dog/half.png (truncated)"):
        assert part in said
    assert "skip_corrupt=True, --skip-corrupt" in said
    data = zoo.data(f"folder:{folder}", skip_corrupt=True)
    assert len(data) == 24 and data.words.endswith("3 corrupt left out")
    for i in range(8):
        (folder / "dog" / f"x{i}.png").write_bytes(b"")
    with pytest.raises(Refused, match="… 6 more"):
        zoo.data(f"folder:{folder}")


def test_many_pictures_are_looked_at_by_head_and_end(folder, monkeypatch):
    monkeypatch.setattr(images, "DECODED", 0)
    (folder / "dog" / "half.png").write_bytes((folder / "dog" / "00.png").read_bytes()[:60])
    with pytest.raises(Refused, match=r"1 of 25 images .*half.png \(truncated\)"):
        zoo.data(f"folder:{folder}")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(folder / "dog" / "half.png", "JPEG")
    whole = (folder / "dog" / "half.png").read_bytes()
    (folder / "dog" / "half.png").write_bytes(whole + bytes(9000))              # a photograph with a film behind it
    assert len(zoo.data(f"folder:{folder}")) == 25
    (folder / "dog" / "half.png").write_bytes(whole[:-40])
    with pytest.raises(Refused, match=r"1 of 25 images .*half.png \(.*truncated"):
        zoo.data(f"folder:{folder}")


def test_an_image_that_breaks_later_is_named(folder):
    data = zoo.data(f"folder:{folder}")
    (folder / "cat" / "00.png").write_bytes(b"gone")
    with pytest.raises(Refused, match=r"cat/00.png cannot be read"):
        data[0]


# --- data: npz -------------------------------------------------------------------------------------------------------

def saved(path, **named):
    np.savez(path, **named)
    return f"npz:{path}"


def test_arrays_of_many_forms(tmp_path):
    rng = np.random.default_rng(0)
    bytes_, y = rng.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8), np.arange(20) % 4
    data = zoo.data(saved(tmp_path / "a.npz", x=bytes_, y=y))
    assert data.shape == (3, 5, 4) and data.classes == ["0", "1", "2", "3"]
    torch.testing.assert_close(data.tensors[0][7, 2, 1, 3], torch.tensor(bytes_[7, 1, 3, 2] / 255, dtype=torch.float32))
    assert zoo.data(saved(tmp_path / "b.npz", images=bytes_[..., 0], labels=y[:, None])).shape == (1, 5, 4)
    assert zoo.data(saved(tmp_path / "c.npz", data=rng.random((20, 3, 5, 4)), target=np.eye(4)[y])).targets.tolist() == y.tolist()
    words = zoo.data(saved(tmp_path / "d.npz", x=bytes_, y=np.array(["b", "a"] * 10)))
    assert words.classes == ["a", "b"] and words.targets[:2].tolist() == [1, 0]
    assert zoo.data(saved(tmp_path / "e.npz", x=bytes_)).targets.unique().tolist() == [UNLABELLED]
    assert zoo.data(saved(tmp_path / "f.npz", x=bytes_, y=np.where(y, y, -1))).targets.min() == UNLABELLED
    table = zoo.data(saved(tmp_path / "g.npz", x=rng.normal(size=(20, 7)), y=y, class_names=np.array(list("wxyz"))))
    assert table.shape == (7,) and table.classes == list("wxyz") and "20 samples of 7" in table.words
    assert zoo.data(saved(tmp_path / "h.npz", x=bytes_.astype(float), y=y) + "?scale=255").tensors[0].max() <= 1
    assert zoo.data(saved(tmp_path / "i.npz", x=np.zeros((20, 3, 5, 3), np.uint8), y=y) + "?layout=hwc").shape == (3, 3, 5)


@pytest.mark.parametrize("form", ["x_{}", "{}_x"])
def test_splits_inside_an_npz_file(tmp_path, form):
    x, y = np.zeros((30, 4, 4), np.uint8), np.arange(30) % 3
    parts = {form.format(s): x[: n] for s, n in (("train", 30), ("test", 6))} | \
            {form.format(s).replace("x", "y", 1) if form[0] == "x" else f"{s}_y": y[: n] for s, n in (("train", 30), ("test", 6))}
    spec = saved(tmp_path / "a.npz", **parts)
    assert [len(s) for s in vars(zoo.splits(spec)).values()] == [27, 3, 6]
    assert len(zoo.data(spec, split="test")) == 6 and zoo.data(spec, split="test").words.startswith("a.npz, test")


# --- data: tables ----------------------------------------------------------------------------------------------------

@pytest.fixture
def cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def png(value, size=(6, 5)):
    held = io.BytesIO()
    Image.new("RGB", size[::-1], value).save(held, "PNG")
    return held.getvalue()


def test_images_in_a_parquet_file(cache, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = {"image": [{"bytes": png((i, 0, 0)), "path": None} for i in range(20)], "label": [i % 2 for i in range(20)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    data = zoo.data(f"hf:{tmp_path}/a.parquet")
    assert data.shape == (3, 6, 5) and data.classes == ["0", "1"] and len(data) == 20
    torch.testing.assert_close(data[7][0][0], torch.full((6, 5), 7 / 255))
    split = zoo.splits(f"hf:{tmp_path}/a.parquet", size=4)
    assert [len(s) for s in vars(split).values()] == [16, 2, 2] and split.test[0][0].shape == (3, 4, 4)
    rows["image"][3] = None
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "b.parquet")
    with pytest.raises(Refused, match=r"1 of 20 images .*row 3 \(empty\)"):
        zoo.data(f"hf:{tmp_path}/b.parquet")
    kept = zoo.data(f"hf:{tmp_path}/b.parquet", skip_corrupt=True)
    assert len(kept) == 19 and kept[3][0][0, 0, 0] == torch.tensor(4 / 255)


def test_a_saved_dataset_with_names_and_splits(cache, tmp_path):
    features = cache.Features({"img": cache.Image(), "label": cache.ClassLabel(names=["cat", "dog"])})
    held = {}
    for split, n in (("train", 12), ("validation", 6)):
        labels = [None, *(i % 2 for i in range(1, n))]
        rows = {"img": [{"bytes": png((i, 0, 0)), "path": None} for i in range(n)], "label": labels}
        held[split] = cache.Dataset.from_dict(rows, features=features)
    cache.DatasetDict(held).save_to_disk(tmp_path / "disk")
    data = zoo.data(f"hf:{tmp_path}/disk")
    assert data.classes == ["cat", "dog"] and data.targets.tolist() == [UNLABELLED, *[1, 0] * 5, 1]
    assert len(zoo.data(f"hf:{tmp_path}/disk", split="val")) == 6


def test_numbers_in_a_jsonl_file(cache, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((9, 4, 4)).round(4)
    lines = [json.dumps({"x": row.tolist(), "label": "ab"[i % 2]}) for i, row in enumerate(x)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    data = zoo.data(f"hf:{tmp_path}/a.jsonl")
    torch.testing.assert_close(data.tensors[0][:, 0], torch.from_numpy(x).float())
    assert data.classes == ["a", "b"] and data.shape == (1, 4, 4)


@pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
def test_texts_with_a_tokenizer(cache, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers = _compat.package("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "words")
    (tmp_path / "a.jsonl").write_text('{"text": "good good", "label": 1}\n{"text": "bad thing", "label": 0}\n')
    data = zoo.data(f"hf:{tmp_path}/a.jsonl?tokenizer={tmp_path}/words&length=4")
    x, y = data[1]
    assert x["input_ids"].tolist() == [3, 1, 0, 0] and x["attention_mask"].tolist() == [1, 1, 0, 0] and y == 0
    assert "2 texts of 4" in data.words
    tiny = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=4)
    transformers.BertForSequenceClassification(tiny).save_pretrained(tmp_path / "bert")
    (batch, y), = batches(data, 2, start=0, count=1, seed=(0,))
    assert zoo.model(f"hf:{tmp_path}/bert")(batch).shape == (2, 2)
    with pytest.raises(Refused, match=r"holds texts, which need a tokenizer\n.*tokenizer=FOLDER"):
        zoo.data(f"hf:{tmp_path}/a.jsonl")


# --- data: shared sets -----------------------------------------------------------------------------------------------

def there(name):
    try:
        shared.home(name)
    except Refused as error:
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.slow


@pytest.mark.parametrize(("name", "shape", "classes", "size"), [
    pytest.param("fashion_mnist", (1, 28, 28), 10, 10_000, marks=there("fashion_mnist")),
    pytest.param("cifar10", (3, 32, 32), 10, 10_000, marks=there("cifar10")),
    pytest.param("cifar100", (3, 32, 32), 100, 10_000, marks=there("cifar100"))])
def test_shared_sets(name, shape, classes, size):
    data = zoo.data(name, split="test")
    assert data.shape == shape and len(data.classes) == classes and len(data) == size
    assert data.targets.bincount().tolist() == [size // classes] * classes
    assert data.tensors[0].min() >= 0 and data.tensors[0].max() <= 1 and 0.2 < data.tensors[0].mean() < 0.6


def test_shared_sets_are_read_from_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    with pytest.raises(Refused, match=r"cifar10 is not on this machine: .* does not exist\n.*STILLROOM_DATA"):
        zoo.data("cifar10")
    jpegs = []
    for i in range(4):
        held = io.BytesIO()
        Image.new("RGB", (32, 32), (60 * i,) * 3).save(held, "JPEG")
        jpegs.append(held.getvalue())
    at = np.cumsum([0, *map(len, jpegs)])
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "cifar10_jpeg.npz", train_jpeg=np.frombuffer(b"".join(jpegs), np.uint8), train_offsets=at,
             train_labels=np.array([1, 0, 1, 0], np.uint8), class_names=np.array(["a", "b"]))
    data = zoo.data("cifar10")
    assert data.classes == ["a", "b"] and data.targets.tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(data.tensors[0].mean((1, 2, 3)), torch.tensor([0, 60, 120, 180]) / 255, atol=0.01, rtol=0)
    (tmp_path / "fashion_mnist").mkdir()
    for what, held in (("images", np.full((3, 28, 28), 51, np.uint8)), ("labels", np.array([0, 9, 4], np.uint8))):
        file = io.BytesIO()
        np.save(file, held)
        (tmp_path / "fashion_mnist" / f"train_{what}.npy.xz").write_bytes(lzma.compress(file.getvalue()))
    data = zoo.data("fashion_mnist")
    assert data.classes[9] == "Ankle boot" and data.tensors[0].unique().item() == pytest.approx(0.2)


# --- data: what is refused -------------------------------------------------------------------------------------------

WRONG_DATA = [
    ("digit", {}, "names no data", "did you mean 'digits'"),
    ("HERE", {}, "names no data", "did you mean 'folder:"),
    ("folder:", {}, "names no data", "data read digits"),
    ("digits:3", {}, "names no data", "data read digits"),
    ("digits", {"split": "tset"}, "split='tset'", "did you mean 'test'"),
    ("digits", {"size": 0}, "size=0", "whole numbers"),
    ("digits", {"channels": 0}, "channels=0", "whole numbers"),
    ("digits?label=50", {}, "digits has no option 'label'", "did you mean 'labels'"),
    ("digits?labels=many", {}, "labels='many' is not a number", "?labels=0"),
    ("digits?labels=5", {}, "labels=5", "at least one for each of the 10 classes"),
    ("digits?noise=1.5", {}, "noise=1.5", "from 0 to 1"),
    ("folder:HERE/nowhere", {}, "is no folder", "name a folder of images"),
    ("folder:HERE/empty", {}, "holds no images", "a folder per class"),
    ("folder:HERE/hollow", {}, "the class folder 'dog' of", "put images there"),
    ("folder:HERE/beside", {}, "1 images lie beside the class folders", "'unlabelled'"),
    ("folder:HERE/sizes", {}, "differ in size, from 10 × 12 to 20 × 12", "size=224"),
    ("folder:HERE/hollow2", {"skip_corrupt": True}, "no image that can be read for the class 'dog'", "repair"),
    ("folder:HERE/flat", {"split": "test"}, "has no split 'test': it comes without", "zoo.splits"),
    ("folder:HERE/flat", {"channels": 5}, "images have 1 or 3 channels, not 5", "channels=1"),
    ("folder:HERE/flat?labels=3", {}, "has no labels to leave out", "drop ?labels="),
    ("npz:HERE/nowhere.npz", {}, "does not exist", "npz file"),
    ("npz:HERE/objects.npz", {}, "it holds Python objects, which are not read", "plain arrays"),
    ("npz:HERE/no.npz", {}, "cannot be read", "numpy.savez"),
    ("npz:HERE/names.npz", {}, "holds pictures", "name its arrays x and y"),
    ("npz:HERE/range.npz", {}, "run from 0 to 16, not from 0 to 1", "?scale=16"),
    ("npz:HERE/negative.npz", {}, "run from -1 to 1", "models normalise"),
    ("npz:HERE/nan.npz", {}, "2 numbers in the samples of npz:", "clean the data"),
    ("npz:HERE/short.npz", {}, "has 6 samples and 5 labels", "one label a sample"),
    ("npz:HERE/below.npz", {}, "1 labels of", "0 to 2"),
    ("npz:HERE/real.npz", {}, "the labels of", "one whole number a sample"),
    ("npz:HERE/good.npz?layout=cwh", {}, "layout='cwh'", "chw or hwc"),
]


@pytest.fixture
def here(tmp_path):
    x = np.zeros((6, 4, 4))
    for kind in ("cat", "dog"):
        for root in ("hollow", "hollow2", "beside", "sizes"):
            picture(tmp_path / root / kind / "a.png", (1, 2, 3), (20 if root == "sizes" and kind == "dog" else 10, 12))
    (tmp_path / "hollow" / "dog" / "a.png").unlink()
    (tmp_path / "hollow2" / "dog" / "a.png").write_bytes(b"")
    picture(tmp_path / "beside" / "alone.png", (1, 2, 3))
    picture(tmp_path / "flat" / "a.png", (1, 2, 3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.npz").write_bytes(b"words")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    for name, held in {"names": {"pictures": x}, "range": {"x": x + np.arange(6)[:, None, None] * 3.2, "y": np.arange(6)},
                       "negative": {"x": x + np.linspace(-1, 1, 6)[:, None, None]},
                       "nan": {"x": np.where(np.arange(4) > 2, np.nan, x)[:1, :2]},
                       "short": {"x": x, "y": np.arange(5)}, "below": {"x": x, "y": np.array([0, 1, 2, 0, 1, -7])},
                       "real": {"x": x, "y": np.arange(6) / 2}, "good": {"x": x, "y": np.arange(6)}}.items():
        np.savez(tmp_path / f"{name}.npz", **held)
    return tmp_path


@pytest.mark.parametrize(("spec", "wish", "wrong", "remedy"), WRONG_DATA)
def test_wrong_data_are_refused_with_their_remedy(spec, wish, wrong, remedy, here):
    with pytest.raises(Refused) as error:
        zoo.data(spec.replace("HERE", str(here)), **wish)
    first, _, then = str(error.value).partition("\n  → ")
    assert wrong in first and remedy in then


def test_tables_that_will_not_do(cache, here):
    (here / "a.jsonl").write_text('{"photo": [0.1, 0.2], "label": 1}\n{"photo": [0.1], "label": 0}\n')
    (here / "two").mkdir()
    for name in ("north", "south"):
        (here / "two" / f"{name}.jsonl").write_text('{"x": [0.1, 0.2], "label": 1}\n')
    parts = {name: cache.Dataset.from_json(str(here / "two" / f"{name}.jsonl")) for name in ("north", "south")}
    cache.DatasetDict(parts).save_to_disk(here / "four")
    for spec, wrong in ((f"hf:{here}/four", r"has the splits north, south\n.*call them train"),
                        (f"hf:{here}/nowhere.parquet", "does not exist"), (f"hf:{here}/good.npz", "is no table"),
                        (f"hf:{here}/a.jsonl", "no column of images or texts"),
                        (f"hf:{here}/a.jsonl?image=foto", "did you mean 'photo'"),
                        (f"hf:{here}/a.jsonl?image=photo", "is no array of numbers"), ("hf:nobody/nothing", "cannot be loaded")):
        with pytest.raises(Refused, match=wrong):
            zoo.data(spec)


def test_too_few_samples_for_splits(here):
    with pytest.raises(Refused, match=r"too few samples for splits: 1 leave none for valid"):
        zoo.splits(f"folder:{here}/flat")
    data = zoo.data("digits")
    assert [len(p) for p in cut(data.take(torch.arange(2)), (0.1, 0.1), 0)] == [2, 0, 0]
