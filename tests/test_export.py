"""The exported file says what PyTorch says, for any batch size; what does not is refused and not written."""

import json
import sys

import pytest
import torch
from torch import nn

from stillroom.arenas import digits
from stillroom.batches import whole
from stillroom.commands.export import difference, export, inputs, to_int8, to_onnx
from stillroom.errors import Refused
from stillroom.models.small import cnn, mlp

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def images():
    return whole(digits("clean").test)[0][:64]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, images):
    """A net with every kind of statistic set, and its file."""
    torch.manual_seed(0)
    net = cnn(width=8)
    net(images)                                             # batch norm sees some images
    net.classes = [f"digit {i}" for i in range(10)]
    file = tmp_path_factory.mktemp("export") / "student.onnx"
    return net, file, to_onnx(net, file, images, sample=(1, 8, 8))


class Branches(nn.Module):
    """Its path depends on a value."""

    def forward(self, x):
        return x.sum(-1) if x.mean() > 0 else x.prod(-1)


class Fixed(nn.Module):
    """Only ever takes two samples."""

    def forward(self, x):
        return x.view(2, 1, 8, 8) + 1


class Other(nn.Module):
    """Says something else while it is exported."""

    def forward(self, x):
        return x * 2 if torch.compiler.is_exporting() else x


class Nan(nn.Module):
    def forward(self, x):
        return (x - 2).log()


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, named):
        return (self.embed(named["ids"]) * named["mask"].unsqueeze(-1)).sum(1)


def test_it_says_what_pytorch_says_on_real_images(exported, images):
    net, file, found = exported
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options)
    for count in (1, 5, 64):
        (said,) = session.run(None, {"x": images[:count].numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(said), net(images[:count]), atol=1e-5)
    assert found["absolute"] < 1e-4 and found["samples"] == 64
    assert (found["absolute"], found["relative"]) == difference(net, file, images)


def test_it_is_one_file_with_the_classes_inside(exported):
    _, file, found = exported
    assert [f.name for f in file.parent.iterdir()] == ["student.onnx"]
    assert found["bytes"] == file.stat().st_size
    props = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert json.loads(props["classes"])[3] == "digit 3"


def test_latencies_stand_beside_each_other(exported):
    _, _, found = exported
    assert all(found[f"{who}_{batch}"] > 0 for who in ("torch", "onnx") for batch in (1, 32))
    assert found["threads"] == torch.get_num_threads()


def test_a_difference_above_the_tolerance_is_refused_and_not_written(tmp_path, images):
    file = tmp_path / "student.onnx"
    with pytest.raises(Refused, match="something else than PyTorch: largest error 1") as error:
        to_onnx(Other(), file, images)
    assert "--tolerance" in str(error.value) and not list(tmp_path.iterdir())


def test_a_refused_export_leaves_the_older_file_alone(tmp_path, images):
    file = tmp_path / "student.onnx"
    to_onnx(nn.Flatten(), file, images)
    before = file.read_bytes()
    with pytest.raises(Refused):
        to_onnx(Other(), file, images)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_text_model_of_transformers_is_exported(tmp_path):
    from stillroom import zoo
    from stillroom._compat import package
    from stillroom.measure import cost

    try:
        transformers = package("transformers")
    except Refused:
        pytest.skip("transformers is not installed")
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, num_labels=3)
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    net = zoo.model(f"hf:{tmp_path / 'bert'}")
    x = {"input_ids": torch.randint(0, 50, (6, 5)), "attention_mask": torch.ones(6, 5, dtype=torch.long)}
    found = to_onnx(net, tmp_path / "student.onnx", x)
    assert found["absolute"] < 1e-5
    assert {i.name for i in onnx.load(tmp_path / "student.onnx").graph.input} == {"input_ids", "attention_mask"}
    assert cost(net, {k: v[0] for k, v in x.items()}, repeats=5)["flops"] > 0


def test_nan_is_a_difference(tmp_path, images):
    with pytest.raises(Refused, match="something else"):
        to_onnx(Nan(), tmp_path / "student.onnx", images, tolerance=1e9)


@pytest.mark.parametrize("model", [Branches(), Fixed()])
def test_a_model_that_cannot_be_traced_with_a_free_batch_is_refused(model, tmp_path, images):
    with pytest.raises(Refused, match="cannot be exported"):
        to_onnx(model, tmp_path / "student.onnx", images)
    assert not list(tmp_path.iterdir())


def test_named_tensors_become_named_inputs(tmp_path):
    torch.manual_seed(0)
    x = {"ids": torch.randint(0, 10, (6, 5)), "mask": torch.ones(6, 5)}
    found = to_onnx(Named(), tmp_path / "student.onnx", x)
    assert found["absolute"] < 1e-5
    assert {i.name for i in onnx.load(tmp_path / "student.onnx").graph.input} == {"ids", "mask"}


def test_int8_is_for_linear_layers(tmp_path, images):
    torch.manual_seed(0)
    net, file = mlp(hidden=256), tmp_path / "student.onnx"
    before = to_onnx(net, file, images)
    after = to_int8(net, file, images)
    assert after["bytes"] < before["bytes"] / 2 and after["relative"] < 0.1 and after["agreement"] > 80
    with pytest.raises(Refused, match="convolutions"):
        to_int8(cnn(width=8), file, images)


def test_a_missing_package_names_the_extra(tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Refused, match=r"pip install 'stillroom\[export\]'"):
        to_onnx(mlp(), tmp_path / "student.onnx", images)


def test_a_saved_student_is_exported_without_its_run(tmp_path, images, capsys):
    """As the winner of a comparison lies there: weights and student.json, no settings; checked on drawn inputs."""
    from stillroom import saved, zoo

    net = zoo.model("small:mlp?hidden=8", classes=10, channels=1, size=8)
    saved.save(net, tmp_path, shape=(1, 8, 8))
    export(str(tmp_path), onnx=True)
    assert "largest error" in capsys.readouterr().out
    assert (tmp_path / "student.onnx").exists()


def test_inputs_are_test_samples_where_there_are_some(images):
    from stillroom.job import Finished

    assert torch.equal(inputs(Finished(mlp(), test=digits("clean").test)), images)
    assert inputs(Finished(mlp(), sample=(1, 4, 4)), count=3).shape == (3, 1, 4, 4)
