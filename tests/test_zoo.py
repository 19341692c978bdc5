"""Models and data by name, with real timm, torchvision, transformers and datasets; what is wrong is refused with its remedy."""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import Module

from stillroom import _compat, arenas, zoo
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.zoo import images, shared
from stillroom.zoo.built import normalise, normalises
from stillroom.zoo.from_torchvision import _new_stem
from stillroom.zoo.models import rebuild
from stillroom.zoo.sets import cut, few_labels
from stillroom.zoo.specs import Spec, parse

needs = {name: pytest.mark.skipif(_compat.find_spec(name) is None, reason=f"{name} is not installed")
         for name in ("timm", "torchvision", "transformers", "datasets", "gymnasium", "minigrid", "onnxruntime")}
VIT = "timm:vit_tiny_patch16_224?patch_size=4&embed_dim=16&depth=2&num_heads=2"


def drawn(spec, seed=0, **wish):
    torch.manual_seed(seed)
    return zoo.model(spec, **wish).eval()


def images_of(net, n=3):
    return torch.rand(n, *net.expects, generator=torch.Generator().manual_seed(1))


# --- names -----------------------------------------------------------------------------------------------------------

def test_a_name_is_taken_apart():
    assert parse("digits") == Spec("digits", "", {})
    assert parse("timm:a.b?x=1&y=0.5&z=(1,2)&w=yes&f=a/b.c") == Spec("timm", "a.b", {"x": 1, "y": 0.5, "z": (1, 2), "w": True, "f": "a/b.c"})
    assert parse("file:a/b.py:net?k=2") == Spec("file", "a/b.py:net", {"k": 2})


def test_zoo_imports_no_optional_package_before_it_is_asked():
    code = ("import sys, stillroom.zoo, stillroom.saved, stillroom.checks; "
            "print([m for m in ('timm', 'torchvision', 'transformers', 'datasets', 'gymnasium') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(_compat, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"timm is not installed\n.*pip install 'stillroom\[vision\]'"):
        zoo.model("timm:resnet18")
    with pytest.raises(Refused, match=r"datasets is not installed\n.*stillroom\[data\]"):
        zoo.data("hf:some")


@pytest.mark.slow
@needs["torchvision"]
def test_torchvision_imports_whatever_build_of_torch_is_here():
    code = "from stillroom import _compat; tv = _compat.package('torchvision'); tv.models.resnet18; import torchvision.transforms.v2; print('ok')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "ok"


@pytest.mark.slow
@needs["torchvision"]
def test_the_shim_helps_after_a_failed_import_too_and_is_applied_once():
    code = ("try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
            "from stillroom import _compat\n_compat.package('timm'); _compat.package('torchvision'); _compat.mend_torchvision()\n"
            "print(len(_compat._kept) <= 1)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_a_package_that_does_not_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "gymnasium.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gymnasium", raising=False)
    with pytest.raises(Refused, match=r"gymnasium is installed but does not import \(RuntimeError: half installed\)\n.*stillroom\[rl\]"):
        _compat.package("gymnasium")


# --- models: what every one can do -----------------------------------------------------------------------------------

MODELS = [
    ("small:mlp?hidden=5", {}, (1, 8, 8), 10),
    ("small:mlp", {"classes": 3, "channels": 3, "size": 6}, (3, 6, 6), 3),
    ("small:cnn?width=4", {"classes": ["a", "b"], "channels": 3, "size": (8, 6)}, (3, 8, 6), 2),
    pytest.param("timm:resnet10t", {"classes": 7, "channels": 1, "size": 32}, (1, 32, 32), 7, marks=needs["timm"]),
    pytest.param(VIT, {"classes": 2, "size": 16}, (3, 16, 16), 2, marks=needs["timm"]),
    pytest.param("torchvision:resnet18", {"classes": 5, "channels": 1, "size": 32}, (1, 32, 32), 5, marks=needs["torchvision"]),
    pytest.param("torchvision:squeezenet1_1", {"classes": 5, "size": 64}, (3, 64, 64), 5, marks=needs["torchvision"]),
]


@pytest.mark.parametrize(("spec", "wish", "shape", "classes"), MODELS)
def test_a_model_fits_the_data_and_can_be_built_again(spec, wish, shape, classes):
    net = drawn(spec, **wish)
    assert net.expects == shape and net(images_of(net)).shape == (3, classes)
    assert net.classes == (wish["classes"] if isinstance(wish.get("classes"), list) else None)
    assert json.loads(json.dumps(net.origin)) == net.origin
    torch.manual_seed(0)
    again = rebuild(net.origin).eval()
    assert again.origin == net.origin and list(again.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(again(images_of(net)), net(images_of(net)), rtol=0, atol=0)


@needs["timm"]
def test_timm_sees_what_it_was_made_for_and_keeps_its_names():
    net = drawn("timm:resnet10t", classes=4)
    torch.manual_seed(0)
    own = _compat.package("timm").create_model("resnet10t", num_classes=4).eval()
    assert list(net.state_dict()) == list(own.state_dict())
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(own.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(net(x), own((x - mean) / std))


@needs["torchvision"]
def test_torchvision_sees_what_it_was_made_for():
    net = drawn("torchvision:mobilenet_v3_small", classes=4)
    torch.manual_seed(0)
    own = _compat.package("torchvision").models.mobilenet_v3_small(num_classes=4).eval()
    x = torch.rand(2, 3, 32, 32)
    seen = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(net(x), own(seen))


def test_a_scale_can_be_named_and_a_copy_has_its_own():
    net = normalise(nn.Flatten(), [0.25], [0.5])
    twin = copy.deepcopy(net)
    net.input_mean += 1
    assert normalises(twin) and twin(torch.ones(1, 1, 1, 1)).item() == 1.5 and net(torch.ones(1, 1, 1, 1)).item() == -0.5
    assert net.state_dict() == {}
    assert twin.double().input_mean.dtype == torch.float64        # it follows the model


@needs["timm"]
def test_mean_and_std_as_options():
    net = drawn("timm:resnet10t?mean=0.5&std=(0.1,0.2,0.3)", classes=2)
    assert net.input_mean.flatten().tolist() == [0.5] * 3
    torch.testing.assert_close(net.input_std.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert rebuild(net.origin).input_std.flatten().tolist() == net.input_std.flatten().tolist()


def tiny_hf(kind, **named):
    transformers = _compat.package("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    if kind == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**size, image_size=16, patch_size=4, **named)).eval()
    if kind == "resnet":
        return transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **named)).eval()
    return transformers.BertForSequenceClassification(transformers.BertConfig(**size, vocab_size=50, **named)).eval()


@pytest.fixture
def vit_folder(tmp_path):
    """A transformers model as a user has one: config, safetensors, image processor."""
    folder = tmp_path / "vit"
    tiny_hf("vit", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}).save_pretrained(folder)
    _compat.package("transformers").ViTImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25],
                                                      size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


ANY = [pytest.param(VIT, marks=needs["timm"]), pytest.param("hf", marks=needs["transformers"])]


@pytest.mark.parametrize("spec", ANY)
def test_copies_graphs_and_exports_normalise_too(spec, vit_folder):
    net = drawn(spec, classes=2, size=16) if spec != "hf" else zoo.model(f"hf:{vit_folder}").eval()
    x = images_of(net)
    want = net(x)
    torch.testing.assert_close(copy.deepcopy(net)(x), want)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(torch.cat([x, x])), torch.cat([want, want]))
    net.compile(backend="eager", fullgraph=spec != "hf")
    torch.testing.assert_close(net(x), want)


@pytest.mark.slow
@needs["onnxruntime"]
@pytest.mark.parametrize("spec", ANY)
def test_onnx_normalises_too(spec, vit_folder, tmp_path):
    import onnxruntime

    net = drawn(spec, classes=2, size=16) if spec != "hf" else zoo.model(f"hf:{vit_folder}").eval()
    x = images_of(net)
    torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False).save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (said,) = session.run(None, {session.get_inputs()[0].name: torch.cat([x, x]).numpy()})
    torch.testing.assert_close(torch.from_numpy(said), torch.cat([net(x)] * 2), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs["timm"]
def test_inductor_normalises_too():
    net = drawn("timm:resnet10t", classes=2, size=32)
    want = net(images_of(net))
    net.compile()
    torch.testing.assert_close(net(images_of(net)), want, rtol=1e-4, atol=1e-5)


# --- models: weights -------------------------------------------------------------------------------------------------

@needs["timm"]
def test_a_timm_folder_is_loaded_with_its_weights(tmp_path):
    timm = _compat.package("timm")
    own = timm.create_model("resnet10t", num_classes=7, in_chans=1).eval()
    timm.models.save_for_hf(own, tmp_path / "own", safe_serialization=True)
    for spec in (f"timm:{tmp_path}/own", f"hf:{tmp_path}/own"):
        net = zoo.model(spec).eval()
        x = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(net(x), own((x - net.input_mean) / net.input_std))
        assert net.drawn is None and "state_dict" not in net.pretrained_cfg and net.origin["spec"] == "timm:resnet10t"
    new = zoo.model(f"timm:{tmp_path}/own", classes=3, channels=3)
    assert new(torch.rand(2, 3, 32, 32)).shape == (2, 3) and new.drawn
    torch.testing.assert_close(new.layer1[0].conv1.weight, own.layer1[0].conv1.weight)
    assert rebuild(net.origin)(torch.rand(2, 1, 32, 32)).shape == (2, 7)        # needs the folder no more


@needs["timm"]
@needs["torchvision"]
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_ones_own_from_a_file(tmp_path, suffix):
    from safetensors.torch import save_file

    for spec in ("timm:resnet10t", "torchvision:mobilenet_v3_small"):
        own = drawn(spec, classes=6)
        file = tmp_path / f"{parse(spec).kind}.{suffix}"
        state = {f"module.{k}": v for k, v in own.state_dict().items()}
        save_file(state, file) if suffix == "safetensors" else torch.save({"state_dict": state, "epoch": 3}, file)
        net = drawn(f"{spec}?weights={file}", seed=1)
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(net(x), own(x))
        assert net.drawn is None and drawn(f"{spec}?weights={file}", classes=2).drawn
        assert drawn(f"{spec}?weights={file}", classes=2)(x).shape == (2, 2) and "weights" not in str(net.origin)


@needs["torchvision"]
def test_a_vision_transformer_takes_trained_weights_to_another_image_size(tmp_path):
    own = drawn("torchvision:vit_b_32", classes=2, size=64)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    same, larger = (drawn(f"torchvision:vit_b_32?weights={tmp_path}/own.pth", size=s, seed=1) for s in (64, 96))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(same(x), own(x))
    assert larger(torch.rand(1, 3, 96, 96)).shape == (1, 2) and larger.encoder.pos_embedding.shape[1] == 10


def test_a_new_stem_sees_a_grey_image_as_it_saw_it_in_colour():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1))
    grey = torch.rand(2, 1, 9, 9)
    want = net(grey.expand(-1, 3, -1, -1))
    for channels in (1, 5):
        other = copy.deepcopy(net)
        _new_stem(other, channels)
        if channels == 1:
            torch.testing.assert_close(other(grey), want)
        else:                                  # repeated kernels r g b r g, rescaled by 3/5
            w = net[0].weight[:, [0, 1, 2, 0, 1]] * 3 / 5
            torch.testing.assert_close(other(grey.expand(-1, 5, -1, -1)), nn.functional.conv2d(
                grey.expand(-1, 5, -1, -1), w, net[0].bias, stride=2, padding=1))


@needs["transformers"]
def test_a_transformers_folder_of_images(vit_folder):
    transformers = _compat.package("transformers")
    own = transformers.ViTForImageClassification.from_pretrained(vit_folder).eval()
    net = zoo.model(f"hf:{vit_folder}", classes=["a", "b"]).eval()
    assert list(net.state_dict()) == list(own.state_dict())
    assert net.classes == ["cat", "dog"] and net.drawn is None and net.expects == (3, 16, 16)      # its own, not the wish
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    processor = transformers.ViTImageProcessor.from_pretrained(vit_folder)
    want = own(**processor(Image.fromarray(pixels), return_tensors="pt")).logits
    torch.testing.assert_close(net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255), want, rtol=1e-4, atol=1e-5)
    fresh = zoo.model(f"hf:{vit_folder}?fresh=yes", classes=3, channels=1, size=8)
    assert fresh(torch.rand(2, 1, 8, 8)).shape == (2, 3) and fresh.drawn


@needs["transformers"]
@pytest.mark.parametrize("told", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}])
def test_unusual_input_scales_of_processors_are_met(vit_folder, told):
    transformers = _compat.package("transformers")
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 16, "width": 16}, **told).save_pretrained(vit_folder)
    own = transformers.ViTForImageClassification.from_pretrained(vit_folder).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    want = own(**transformers.ViTImageProcessor.from_pretrained(vit_folder)(Image.fromarray(pixels), return_tensors="pt")).logits
    net = zoo.model(f"hf:{vit_folder}").eval()
    torch.testing.assert_close(net(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255), want, rtol=1e-3, atol=1e-4)


@needs["transformers"]
def test_a_pretrained_body_gets_a_new_head_quietly(vit_folder, capfd):
    net = zoo.model(f"hf:{vit_folder}", classes=["x", "y", "z"]).eval()
    own = zoo.model(f"hf:{vit_folder}").eval()
    assert net(images_of(net)).shape == (3, 3) and net.classes == ["x", "y", "z"] and net.drawn and own.drawn is None
    torch.testing.assert_close(net.vit.layernorm.weight, own.vit.layernorm.weight)
    assert "MISMATCH" not in "".join(capfd.readouterr())


@needs["transformers"]
def test_a_convolutional_transformers_model_takes_any_size(tmp_path):
    tiny_hf("resnet", num_labels=3).save_pretrained(tmp_path)
    net = zoo.model(f"hf:{tmp_path}?mean=0.5&std=0.5", size=24).eval()
    assert net(torch.rand(2, 3, 24, 24)).shape == (2, 3) and net.expects == (3, 24, 24) and net.drawn is None


@needs["transformers"]
def test_a_text_model_takes_a_dict_and_gives_logits(tmp_path):
    own = tiny_hf("bert", num_labels=3)
    own.save_pretrained(tmp_path)
    net = zoo.model(f"hf:{tmp_path}", classes=3, channels=1, size=8).eval()        # what the data are like is no matter to texts
    batch = {"input_ids": torch.randint(0, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    torch.testing.assert_close(net(batch), own(**batch).logits)
    torch.testing.assert_close(net(**batch), own(**batch).logits)
    assert net.expects is None and not normalises(net)
    assert len(net(batch, output_hidden_states=True).hidden_states) == 3


@needs["transformers"]
def test_hidden_states_can_be_tapped(vit_folder):
    from stillroom.parts import taps

    net = zoo.model(f"hf:{vit_folder}").eval()
    x = images_of(net)
    logits, states = taps.hidden(net)(x)
    torch.testing.assert_close(logits, net(x))
    torch.testing.assert_close(states[-1], net(x, output_hidden_states=True).hidden_states[-1])


@needs["transformers"]
def test_code_that_comes_with_a_model_is_never_run(vit_folder):
    config = json.loads((vit_folder / "config.json").read_text())
    (vit_folder / "evil.py").write_text(f"open({str(vit_folder / 'ran')!r}, 'w')\n")
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    config["attn_implementation"] = config["_attn_implementation"] = "someone/kernels"
    (vit_folder / "config.json").write_text(json.dumps(config))
    net = zoo.model(f"hf:{vit_folder}")
    assert not (vit_folder / "ran").exists() and "auto_map" not in net.origin["config"]
    config["model_type"] = "their_own"
    (vit_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="code that comes with a model is never run"):
        zoo.model(f"hf:{vit_folder}")


# --- models: one's own -----------------------------------------------------------------------------------------------

OWN = """
import torch
from neighbour import WIDTH

class Net(torch.nn.Sequential):
    pass

def net(classes, size=4, *, hidden=WIDTH):
    return Net(torch.nn.Flatten(), torch.nn.Linear(size * size, hidden), torch.nn.Linear(hidden, classes))

def anything(**named):
    made = torch.nn.Linear(3, named["classes"])
    made.classes = ["mine", "yours"]
    return made

def no_model():
    return 3

def needy(depth, width):
    return torch.nn.Linear(depth, width)
"""


@pytest.fixture
def own_file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_model_from_ones_own_file(own_file, monkeypatch):
    monkeypatch.chdir(own_file.parent)
    net = drawn("file:own.py:net?hidden=5", classes=3, channels=1, size=4)
    assert net(torch.rand(2, 1, 4, 4)).shape == (2, 3) and net[1].out_features == 5 and net.expects == (1, 4, 4)
    assert net.origin["spec"] == f"file:{own_file}:net" and not normalises(net)
    monkeypatch.chdir("/")
    assert rebuild(net.origin)[1].out_features == 5
    assert zoo.model(f"file:{own_file}:anything", classes=["a", "b"]).classes == ["mine", "yours"]
    assert zoo.model(f"file:{own_file}:needy?depth=2&width=3").weight.shape == (3, 2)


def test_errors_of_ones_own_file_are_not_hidden(own_file):
    own_file.write_text("raise ZeroDivisionError('mine')")
    with pytest.raises(ZeroDivisionError, match="mine"):
        zoo.model(f"file:{own_file}:net")


# --- models: what is refused -----------------------------------------------------------------------------------------

timm, torchvision, transformers = (needs[n] for n in ("timm", "torchvision", "transformers"))
WRONG_MODELS = [
    ("resnet18", {}, "names no model", "did you mean 'timm:resnet18'"),
    ("tim:resnet18", {}, "names no model", "did you mean 'timm'"),
    ("timm:", {}, "names no model", "models read timm:…"),
    ("small:mlpp", {}, "no small model is called 'mlpp'", "did you mean 'mlp'"),
    ("small:mlp?hiden=3", {}, "no option 'hiden'", "did you mean 'hidden'"),
    ("small:mlp?hidden", {}, "the option 'hidden' has no value", "name?option=value"),
    ("small:cnn?width=wide", {}, "small:cnn cannot be built", "check its options"),
    ("small:mlp", {"classes": 0}, "classes=0", "a whole number from 1"),
    ("small:mlp", {"size": 0}, "size=0", "a whole number from 1"),
    ("small:mlp?weights=/nowhere.pth", {}, "/nowhere.pth does not exist", "give the path"),
    ("file:nowhere.py:net", {}, "does not exist", "give the path of your Python file"),
    ("file:net", {}, "names no callable", "file:PATH.py:callable"),
    ("file:OWN:nett", {}, "has no callable 'nett'", "did you mean 'net'"),
    ("file:OWN:no_model", {}, "gave a int", "let the callable return the model"),
    ("file:OWN:needy", {}, "needs depth, width", "?depth=…"),
    ("file:OWN:net?hide=3", {}, "takes no 'hide'", "did you mean 'hidden'"),
    ("run:/nowhere", {}, "holds nothing that was made", "folder of a finished run"),
    pytest.param("timm:resnet1", {}, "timm has no model 'resnet1'", "did you mean 'resnet18'", marks=timm),
    pytest.param("timm:resnet18.a1_in2k", {}, "timm has no weights", "did you mean 'resnet18.a1_in1k'", marks=timm),
    pytest.param("timm:resnet10t?depht=3", {}, "unexpected keyword argument 'depht'", "check its options", marks=timm),
    pytest.param("timm:vit_tiny_patch16_224", {"size": 30}, "patches of 16 × 16; 30 × 30", "patch_size=…", marks=timm),
    pytest.param("timm:resnet10t", {"pretrained": True}, "could not be loaded", "timm:FOLDER", marks=timm),
    pytest.param("torchvision:resnt18", {}, "no classifier 'resnt18'", "did you mean 'resnet18'", marks=torchvision),
    pytest.param("torchvision:fasterrcnn_resnet50_fpn", {}, "no classifier", "did you mean", marks=torchvision),
    pytest.param("hf:./nowhere", {}, "nowhere is no folder", "config.json", marks=transformers),
    pytest.param("hf:nobody/nothing", {}, "could not be fetched", "hf:FOLDER", marks=transformers),
]


@pytest.mark.parametrize(("spec", "wish", "wrong", "remedy"), WRONG_MODELS)
def test_a_wrong_name_is_refused_with_its_remedy(spec, wish, wrong, remedy, own_file):
    with pytest.raises(Refused) as error:
        zoo.model(spec.replace("OWN", str(own_file)), **wish)
    first, _, then = str(error.value).partition("\n  → ")
    assert wrong in first and remedy in then


@transformers
def test_folders_of_transformers_that_will_not_do(vit_folder):
    spec = f"hf:{vit_folder}"
    with pytest.raises(Refused, match=r"take images of 16 × 16; 32 × 32 was asked\n.*size=16"):
        zoo.model(spec, size=32)
    with pytest.raises(Refused, match=r"take 3 channels; 1 were asked\n.*channels=3"):
        zoo.model(spec, channels=1)
    (vit_folder / "preprocessor_config.json").unlink()
    with pytest.raises(Refused, match=r"does not say on which input scale(.|\n)*mean="):
        zoo.model(spec)
    assert zoo.model(f"{spec}?mean=0.5&std=0.5").input_mean.flatten().tolist() == [0.5] * 3
    config = json.loads((vit_folder / "config.json").read_text())
    (vit_folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(Refused, match=r"would stay untrained\n.*fresh=yes"):
        zoo.model(f"{spec}?mean=0.5&std=0.5")
    (vit_folder / "config.json").write_text("{")
    with pytest.raises(Refused, match=r"config.json cannot be read"):
        zoo.model(spec)


@transformers
def test_pickles_and_foreign_shards_are_refused(vit_folder):
    (vit_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(Refused, match="which is no file beside it"):
        zoo.model(f"hf:{vit_folder}")
    (vit_folder / "model.safetensors.index.json").unlink()
    (vit_folder / "model.safetensors").rename(vit_folder / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"pickles are not read\n.*save_pretrained"):
        zoo.model(f"hf:{vit_folder}")


def test_weights_that_do_not_fit_or_hold_code_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(Refused, match=r"do not fit small:mlp.*\n.*options they were trained with"):
        zoo.model(f"small:mlp?weights={tmp_path}/other.pth")
    torch.save({"f": partial(os.system, "true")}, tmp_path / "code.pth")
    with pytest.raises(Refused, match=r"code.pth cannot be read"):
        zoo.model(f"small:mlp?weights={tmp_path}/code.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(Refused, match="holds no weights by name"):
        zoo.model(f"small:mlp?weights={tmp_path}/empty.pth")


# --- data: digits and what every set can do --------------------------------------------------------------------------

@pytest.mark.parametrize(("option", "regime"), [("", "clean"), ("?labels=50", "few"), ("?noise=0.4", "noisy")])
def test_digits_are_those_of_the_arena(option, regime):
    for seed in (0, 1):
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
    turned = Image.new("RGB", (6, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6                                       # lies on its side: 6 × 4 is meant
    turned.save(root / "photo.jpg", exif=exif)
    data = zoo.data(f"folder:{root}")
    assert data.shape == (3, 6, 4)
    by_name = {os.path.basename(f): data[i][0] for i, f in enumerate(data.read.args[0])}
    torch.testing.assert_close(by_name["sixteen.png"], torch.full((3, 6, 4), 128 / 255))
    assert by_name["photo.jpg"][0].mean() > 0.95 and by_name["photo.jpg"][1].mean() < 0.05


def test_corrupt_images_are_named_and_left_out_only_when_asked(folder):
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "words.jpg").write_bytes(b"not an image")
    (folder / "dog" / "half.png").write_bytes((folder / "dog" / "00.png").read_bytes()[:60])
    with pytest.raises(Refused) as error:
        zoo.data(f"folder:{folder}")
    said = str(error.value)
    assert "3 of 27 images" in said and "cat/empty.png (empty)" in said and "cat/words.jpg (no image)" in said and "dog/half.png" in said
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
    import io

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
    rows["image"][3]["bytes"] = b""
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "b.parquet")
    with pytest.raises(Refused, match=r"1 of 20 images .*row 3 \(empty\)"):
        zoo.data(f"hf:{tmp_path}/b.parquet")
    kept = zoo.data(f"hf:{tmp_path}/b.parquet", skip_corrupt=True)
    assert len(kept) == 19 and kept[3][0][0, 0, 0] == torch.tensor(4 / 255)


def test_a_saved_dataset_with_names_and_splits(cache, tmp_path):
    features = cache.Features({"img": cache.Image(), "label": cache.ClassLabel(names=["cat", "dog"])})
    held = cache.DatasetDict({split: cache.Dataset.from_dict({"img": [{"bytes": png((i, 0, 0)), "path": None} for i in range(n)],
                                                              "label": [i % 2 if i else None for i in range(n)]}, features=features)
                              for split, n in (("train", 12), ("validation", 6))})
    held.save_to_disk(tmp_path / "disk")
    data = zoo.data(f"hf:{tmp_path}/disk")
    assert data.classes == ["cat", "dog"] and data.targets[0] == UNLABELLED and len(zoo.data(f"hf:{tmp_path}/disk", split="val")) == 6


def test_numbers_in_a_jsonl_file(cache, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((9, 4, 4)).round(4)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"x": row.tolist(), "label": "ab"[i % 2]}) + "\n" for i, row in enumerate(x)))
    data = zoo.data(f"hf:{tmp_path}/a.jsonl")
    torch.testing.assert_close(data.tensors[0][:, 0], torch.from_numpy(x).float())
    assert data.classes == ["a", "b"] and data.shape == (1, 4, 4)


@needs["transformers"]
def test_texts_with_a_tokenizer(cache, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    _compat.package("transformers").PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]",
                                                            unk_token="[UNK]").save_pretrained(tmp_path / "words")
    (tmp_path / "a.jsonl").write_text('{"text": "good good", "label": 1}\n{"text": "bad thing", "label": 0}\n')
    data = zoo.data(f"hf:{tmp_path}/a.jsonl?tokenizer={tmp_path}/words&length=4")
    x, y = data[1]
    assert x["input_ids"].tolist() == [3, 1, 0, 0] and x["attention_mask"].tolist() == [1, 1, 0, 0] and y == 0
    assert "2 texts of 4" in data.words
    tiny_hf("bert", num_labels=2).save_pretrained(tmp_path / "bert")
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
    assert 0 <= data.tensors[0].min() and data.tensors[0].max() <= 1 and 0.2 < data.tensors[0].mean() < 0.6


def test_shared_sets_are_read_from_where_the_variable_says(tmp_path, monkeypatch):
    import io
    import lzma

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
    assert all(a < b for a, b in pairwise(at))
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
    for name, held in {"names": {"pictures": x}, "range": {"x": x + np.arange(17)[:6, None, None] * 3.2, "y": np.arange(6)},
                       "negative": {"x": x + np.linspace(-1, 1, 6)[:, None, None]}, "nan": {"x": np.where(np.arange(4) > 2, np.nan, x)[:1, :2]},
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
    for spec, wrong in ((f"hf:{here}/nowhere.parquet", "does not exist"), (f"hf:{here}/good.npz", "is no table"),
                        (f"hf:{here}/a.jsonl", "no column of images or texts"), (f"hf:{here}/a.jsonl?image=foto", "did you mean 'photo'"),
                        (f"hf:{here}/a.jsonl?image=photo", "is no array of numbers"), ("hf:nobody/nothing", "cannot be loaded")):
        with pytest.raises(Refused, match=wrong):
            zoo.data(spec)


def test_too_few_samples_for_splits(here):
    with pytest.raises(Refused, match=r"too few samples for splits: 1 leave none for valid"):
        zoo.splits(f"folder:{here}/flat")
    data = zoo.data("digits")
    assert [len(p) for p in cut(data.take(torch.arange(2)), (0.1, 0.1), 0)] == [2, 0, 0]


# --- actors ----------------------------------------------------------------------------------------------------------

def test_a_word_is_what_its_annotation_says(own_file, tmp_path):
    context = {"classes": 3, "channels": 1, "size": 4, "split": "test", "seed": 1}
    assert zoo.actor("Module", "small:mlp", **context)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    assert zoo.actor("Module | None", "small:cnn", **context)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    assert [type(m).__name__ for m in zoo.actor("list[Module]", "small:mlp,small:cnn", **context)] == ["Sequential"] * 2
    data = zoo.actor("Dataset", "digits", **context)
    assert data.shape == (1, 4, 4) and len(data) == 500
    assert zoo.actor("Tensor", "digits", **context).shape == (500, 1, 4, 4)
    np.savez(tmp_path / "a.npz", pixels=np.ones((2, 3)))
    assert zoo.actor("Tensor", f"npz:{tmp_path}/a.npz?array=pixels").tolist() == [[1.0] * 3] * 2
    made = zoo.actor("Callable[[int], Module]", f"file:{own_file}:net")
    assert isinstance(made(2), Module)
    assert zoo.actor("int", "3") == 3 and zoo.actor("float", "3") == 3.0 and zoo.actor("bool", "true") is True and zoo.actor("str", "a") == "a"


@needs["gymnasium"]
@needs["minigrid"]
def test_worlds():
    envs = zoo.actor("Envs", "gym:MiniGrid-Empty-5x5-v0?count=2")
    assert len(envs) == 2
    with pytest.raises(Refused, match=r"has no world 'MiniGrid-Emty-5x5-v0'\n.*'MiniGrid-Empty-5x5-v0'"):
        zoo.env("gym:MiniGrid-Emty-5x5-v0")


@pytest.mark.parametrize(("annotation", "spec", "said"), [
    ("Experts", "anything", "cannot be named on the command line"), ("int", "three", "'three' is no int"),
    ("int", "3.5", "'3.5' is no int"), ("Envs", "CartPole-v1", "did you mean 'gym:CartPole-v1'"),
    ("Callable[[int], Module]", "small:mlp", "names no callable"), ("Tensor", "npz:HERE/good.npz?array=z", "has no array 'z'")])
def test_what_no_word_can_name(annotation, spec, said, here):
    with pytest.raises(Refused, match=said):
        zoo.actor(annotation, spec.replace("HERE", str(here)))
