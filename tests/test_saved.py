"""What a run made, written and read again: exact, whole or not at all, and never by running what is in the folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom import _compat, saved, zoo
from stillroom.errors import Refused
from stillroom.recipe import Recipe

HAS_TIMM = pytest.mark.skipif(_compat.find_spec("timm") is None, reason="timm is not installed")
HAS_TRANSFORMERS = pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
VIT, SWIN = "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def about(folder):
    return json.loads((folder / "student.json").read_text())


def edit(folder, name="student", **changes):
    file = folder / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def same(a, b):
    assert list(a) == list(b)
    for k in a:
        assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k


# --- models ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spec", "wish"), [
    ("small:mlp?hidden=7", {"classes": ["a", "b"], "channels": 3, "size": 32}),
    ("small:cnn?width=3", {"classes": 4, "channels": 3}),
    pytest.param("timm:resnet10t", {"classes": 3}, marks=HAS_TIMM),
    pytest.param(f"{VIT}?embed_dim=16&depth=1&num_heads=2&mean=0.5", {"classes": 3, "size": 32}, marks=HAS_TIMM),
    pytest.param(f"{SWIN}?depths=(1,1)&embed_dim=8&num_heads=(1,2)", {"classes": 3, "size": 32}, marks=HAS_TIMM),
    pytest.param("torchvision:mobilenet_v3_small", {"classes": 3}, marks=HAS_TIMM)])
def test_a_model_comes_back_as_it_was(tmp_path, spec, wish):
    net = zoo.model(spec, **wish)
    net(X)                                                   # moves running statistics, which must come back, too
    assert saved.save(net, tmp_path / "a") == tmp_path / "a"
    back = saved.load(tmp_path / "a")
    same(net.state_dict(), back.state_dict())
    torch.testing.assert_close(back(X), net.eval()(X), rtol=0, atol=0)
    assert (back.origin, back.classes, back.drawn) == (net.origin, net.classes, None) and not back.training
    assert back.expects == net.expects
    assert sorted(os.listdir(tmp_path / "a")) == ["student.json", "student.safetensors"]
    saved.save(back, tmp_path / "b")
    assert (tmp_path / "a" / "student.safetensors").read_bytes() == (tmp_path / "b" / "student.safetensors").read_bytes()
    assert about(tmp_path / "a")["versions"]["torch"] == torch.__version__


def test_a_student_plays_on_by_the_name_of_its_folder(tmp_path):
    net = zoo.model("small:cnn", channels=3, classes=["a", "b"])
    saved.save(net, tmp_path, shape=(3, 32, 32))
    back = zoo.model(f"run:{tmp_path}").eval()
    torch.testing.assert_close(back(X), net.eval()(X))
    assert back.classes == ["a", "b"] and back.expects == (3, 32, 32)
    saved.save((torch.ones(2), 3), tmp_path / "tensors")
    with pytest.raises(Refused, match="holds a tuple, no model"):
        zoo.model(f"run:{tmp_path}/tensors")


@HAS_TRANSFORMERS
def test_a_transformers_student_needs_its_old_folder_no_more(tmp_path):
    transformers = _compat.package("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=32, patch_size=8, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "own")
    net = zoo.model(f"hf:{tmp_path}/own?mean=(0.4,0.5,0.6)&std=0.3").eval()
    saved.save(net, tmp_path / "run")
    (tmp_path / "own").rename(tmp_path / "gone")
    back = saved.load(tmp_path / "run")
    torch.testing.assert_close(back(X), net(X), rtol=0, atol=0)
    assert back.classes == ["cat", "dog"] and back.origin == net.origin


def test_a_model_of_ones_own_file(tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(classes, wide=2):\n"
                                     "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes * wide))\n")
    net = zoo.model(f"file:{tmp_path}/own.py:net?wide=3", classes=2)
    saved.save(net, tmp_path / "run")
    torch.testing.assert_close(saved.load(tmp_path / "run")(X), net(X))
    (tmp_path / "own.py").unlink()
    with pytest.raises(Refused, match=r"own.py does not exist"):
        saved.load(tmp_path / "run")


def test_a_model_without_origin_is_loaded_into_one(tmp_path):
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    saved.save(net, tmp_path, classes=["a", "b"], shape=(3,))
    with pytest.raises(Refused, match=r"weights of a Linear of your own.*\n.*into=model"):
        saved.load(tmp_path)
    back = saved.load(tmp_path, into=other)
    assert back is other and torch.equal(other.weight, net.weight) and other.classes == ["a", "b"] and other.expects == (3,)
    with pytest.raises(Refused, match=r"do not fit this Linear: bias is \[4\], saved \[2\]; weight is"):
        saved.load(tmp_path, into=nn.Linear(3, 4))
    with pytest.raises(Refused, match=r"0\.weight is not saved"):
        saved.load(tmp_path, into=nn.Sequential(nn.Linear(3, 2)))


def test_a_changed_network_keeps_its_weights_and_loses_its_origin(tmp_path):
    net = zoo.model("small:mlp", channels=3, size=32)
    net[3] = nn.Linear(32, 5)                               # a recipe put another head on it
    saved.save(net, tmp_path)
    assert about(tmp_path)["origin"] is None
    with pytest.raises(Refused, match="into=model"):
        saved.load(tmp_path)
    saved.save(net, tmp_path, origin={"spec": "timm:no_such_model"})       # no origin may lose the weights
    assert about(tmp_path)["origin"] is None and (tmp_path / "student.safetensors").exists()


def test_saving_draws_nothing_from_the_generators(tmp_path):
    net = zoo.model("small:mlp", channels=3, size=32)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    saved.save(net, tmp_path)
    assert torch.equal(torch.rand(3), want)


def test_shared_and_crooked_tensors(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.into.weight
            whole = torch.arange(24.0)
            self.register_buffer("front", whole[:12].view(3, 4))
            self.register_buffer("back", whole[6:18].view(4, 3).t())       # overlaps, and is not contiguous

    net, other = Tied(), Tied()
    saved.save(net, tmp_path)
    assert about(tmp_path)["shared"] == {"out.weight": "into.weight"}
    nn.init.zeros_(other.into.weight)
    other.front, other.back = torch.zeros(3, 4), torch.zeros(3, 4)
    saved.load(tmp_path, into=other)
    same(net.state_dict(), other.state_dict())
    assert other.out.weight is other.into.weight


# --- everything else -------------------------------------------------------------------------------------------------

def test_tensors_and_what_holds_them_come_back(tmp_path):
    pixels = torch.rand(4, 3, 2, 2)
    inner = {"rate": torch.tensor(0.1), 3: [pixels, "words", None, True, 2.5]}
    made = (pixels, torch.tensor([1, 0]), inner, np.arange(3, dtype=np.int16))
    saved.save(made, tmp_path)
    back = saved.load(tmp_path)
    assert type(back) is tuple and torch.equal(back[0], pixels) and back[1].tolist() == [1, 0]
    assert torch.equal(back[2][3][0], pixels) and back[2][3][1:] == ["words", None, True, 2.5]
    assert back[2]["rate"].item() == pytest.approx(0.1)
    assert isinstance(back[3], np.ndarray) and back[3].dtype == np.int16
    assert sorted(os.listdir(tmp_path)) == ["made.json", "made.safetensors"]
    saved.save(pixels, tmp_path / "one")
    assert torch.equal(saved.load(tmp_path / "one"), pixels)


def test_plain_things_come_back(tmp_path):
    made = {"best": ["conv3", "conv5"], "score": -1.5, "tries": [[1, (2, 3)], {"a": None}], "numpy": np.float64(0.5)}
    saved.save(made, tmp_path)
    assert saved.load(tmp_path) == {**made, "numpy": 0.5} and os.listdir(tmp_path) == ["made.json"]


def test_models_among_other_things(tmp_path):
    net = zoo.model("small:mlp", channels=3, size=32).eval()
    saved.save({"net": net, "history": [1, 2]}, tmp_path)
    back = saved.load(tmp_path)
    torch.testing.assert_close(back["net"](X), net(X))
    saved.save([nn.Linear(2, 2)], tmp_path)
    with pytest.raises(Refused, match=r"a Linear at 'made.0', which cannot be built by name\n.*load_file"):
        saved.load(tmp_path)


def test_what_needs_a_pickle_is_refused(tmp_path):
    for made, what in ((object(), "a object at made"), ({"f": [print]}, "builtin_function_or_method at made.f.0"),
                       (Recipe(), "a Recipe at made"), ({(1, 2): 3}, "neither words nor whole numbers"),
                       (np.array([object()]), "an array of object")):
        with pytest.raises(Refused, match=what):
            saved.save(made, tmp_path)
    assert not list(tmp_path.glob("made*"))


def test_a_folder_holds_one_thing(tmp_path):
    saved.save((torch.ones(2),), tmp_path)
    saved.save(zoo.model("small:mlp"), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["student.json", "student.safetensors"]
    saved.save(7, tmp_path)
    assert saved.load(tmp_path) == 7 and os.listdir(tmp_path) == ["made.json"]


# --- whole or not at all ---------------------------------------------------------------------------------------------

def test_a_stop_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    old = zoo.model("small:mlp?hidden=3")
    saved.save(old, tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        saved.save(zoo.model("small:mlp?hidden=3"), tmp_path)
    same(old.state_dict(), saved.load(tmp_path).state_dict())
    assert sorted(os.listdir(tmp_path)) == ["student.json", "student.safetensors"]


def test_weights_without_their_json_are_noticed(tmp_path, monkeypatch):
    """The stop came between the two files: new weights, old JSON."""
    saved.save(zoo.model("small:mlp?hidden=3"), tmp_path)
    replace = os.replace

    def stop(new, file):
        if str(file).endswith(".json"):
            raise KeyboardInterrupt
        replace(new, file)
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        saved.save(zoo.model("small:mlp?hidden=3"), tmp_path)
    with pytest.raises(Refused, match="is not the file that its JSON describes"):
        saved.load(tmp_path)


def damage(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("harm", "said"), [
    (lambda f: damage(f / "student.safetensors"), "damaged or exchanged"),
    (lambda f: (f / "student.safetensors").write_bytes((f / "student.safetensors").read_bytes()[:-9]), "damaged or exchanged"),
    (lambda f: (f / "student.safetensors").unlink(), "student.safetensors is missing"),
    (lambda f: (f / "student.json").write_text("{"), r"student.json is damaged \(JSONDecodeError\)"),
    (lambda f: (f / "student.json").write_text('{"format": 1}'), r"is damaged \(without classes, kind, origin, shape\)"),
    (lambda f: edit(f, format=99), r"has format 99; this stillroom reads format 1\n.*versions"),
    (lambda f: (f / "student.json").unlink(), r"holds nothing that was made\n.*student.json or made.json"),
])
def test_damage_is_noticed(tmp_path, harm, said):
    saved.save(zoo.model("small:mlp"), tmp_path)
    harm(tmp_path)
    with pytest.raises(Refused, match=said):
        saved.load(tmp_path)


def test_into_is_for_models(tmp_path):
    saved.save({"a": 1}, tmp_path)
    with pytest.raises(Refused, match="holds no model but a dict"):
        saved.load(tmp_path, into=nn.Linear(1, 1))


# --- folders of strangers --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["../student.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x", "C:x", ".hidden", 3])
def test_weights_outside_the_folder_are_refused(tmp_path, name):
    saved.save(zoo.model("small:mlp"), tmp_path)
    edit(tmp_path, weights=about(tmp_path)["weights"] | {"file": name})
    with pytest.raises(Refused, match="which is no file inside it"):
        saved.load(tmp_path)


@pytest.mark.parametrize("spec", [
    f"file:{os.__file__}:system", "file:evil.py:net", "file:HERE/../HERE/evil.py:net", "run:HERE", "unknown:x",
    "timm:local-dir:HERE", "timm:HERE", "torchvision:nothing"])
def test_an_origin_may_not_do_what_it_likes(tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    saved.save(zoo.model("small:mlp"), tmp_path)
    edit(tmp_path, origin=about(tmp_path)["origin"] | {"spec": spec.replace("HERE", str(tmp_path))})
    with pytest.raises(Refused):
        saved.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@HAS_TIMM
def test_an_origin_may_not_load_other_weights(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    net = zoo.model("timm:resnet10t", classes=3)
    saved.save(net, tmp_path)
    origin = about(tmp_path)["origin"]
    options = {"pretrained": True, "checkpoint_path": str(tmp_path / "other.pth"), "weights": "x"}
    edit(tmp_path, origin=origin | {"options": options})
    same(saved.load(tmp_path).state_dict(), net.state_dict())


def test_paths_may_be_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert saved.save(1, "deep/down") == Path("deep/down") and saved.load("deep/down") == 1
