"""Models and data by name, with real timm, torchvision, transformers and datasets; what is wrong is refused with its remedy."""

import copy
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import Module

from stillroom import _compat, zoo
from stillroom.errors import Refused
from stillroom.zoo.built import normalise, normalises
from stillroom.zoo.from_torchvision import _new_stem
from stillroom.zoo.models import rebuild
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
    assert parse("timm:a.b?x=1&z=(1,2)&w=yes&f=a/b.c") == Spec("timm", "a.b", {"x": 1, "z": (1, 2), "w": True, "f": "a/b.c"})
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
    code = ("from stillroom import _compat; tv = _compat.package('torchvision'); tv.models.resnet18; "
            "import torchvision.transforms.v2; print('ok')")
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
    with pytest.raises(Refused, match=r"is installed but does not import \(RuntimeError: half installed\)\n.*stillroom\[rl\]"):
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


ANY = [pytest.param(VIT, marks=needs["timm"]), pytest.param("hf", marks=[needs["transformers"], pytest.mark.slow])]


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
    free = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=free, verbose=False).save(tmp_path / "net.onnx")
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


@pytest.mark.slow
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
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3, size=size, **told).save_pretrained(vit_folder)
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


# --- actors ----------------------------------------------------------------------------------------------------------

def test_a_word_is_what_its_annotation_says(own_file, tmp_path):
    context = {"classes": 3, "channels": 1, "size": 4, "split": "test", "seed": 1}
    assert zoo.actor("Module", "small:mlp", **context)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    assert zoo.actor("Module | None", "small:cnn", **context)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    assert [type(m).__name__ for m in zoo.actor("list[Module]", "small:mlp,small:cnn", **context)] == ["Sequential"] * 2
    data = zoo.actor("Dataset", "digits", **context)
    assert data.shape == (1, 4, 4) and len(data) == 500
    assert [len(part) for part in zoo.actor("list[Dataset]", "digits,digits", **context)] == [len(data)] * 2
    assert zoo.actor("Tensor", "digits", **context).shape == (500, 1, 4, 4)
    np.savez(tmp_path / "a.npz", pixels=np.ones((2, 3)))
    assert zoo.actor("Tensor", f"npz:{tmp_path}/a.npz?array=pixels").tolist() == [[1.0] * 3] * 2
    made = zoo.actor("Callable[[int], Module]", f"file:{own_file}:net")
    assert isinstance(made(2), Module)
    for kind, word, value in (("int", "3", 3), ("float", "3", 3.0), ("bool", "true", True), ("str", "a", "a")):
        assert zoo.actor(kind, word) == value and type(zoo.actor(kind, word)) is type(value)


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
    ("Callable[[int], Module]", "small:mlp", "names no callable"), ("Tensor", "npz:HERE/a.npz?array=z", "has no array 'z'"),
    ("Nodes", "planetoid:corra", "did you mean 'cora'"), ("Nodes", "digits", "graphs read planetoid:cora")])
def test_what_no_word_can_name(annotation, spec, said, tmp_path):
    np.savez(tmp_path / "a.npz", pixels=np.ones((2, 3)))
    with pytest.raises(Refused, match=said):
        zoo.actor(annotation, spec.replace("HERE", str(tmp_path)))
