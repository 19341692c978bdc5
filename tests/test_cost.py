"""What a model costs: counts against hand-written ones, and the clock against a model whose time is known."""

import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stillroom import measure
from stillroom.measure.cost import bytes_on_disk, flops, latency, onnx_latency, parameters, samples
from stillroom.models.small import cnn, mlp


class Tied(nn.Module):
    """One matrix, used on the way in and on the way out."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 6, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu())


class Attention(nn.Module):
    """Nothing but one scaled dot product attention of two heads."""

    def forward(self, x):
        q = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, q, q)


class Slow(nn.Module):
    """Takes five milliseconds, whatever the batch."""

    def __init__(self):
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(len(x))
        time.sleep(0.005)
        return x


class Words(nn.Module):
    """Takes named tensors in a dict."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, named):
        return (self.embed(named["ids"]) * named["mask"].unsqueeze(-1)).sum(1)


def test_a_tied_weight_counts_once():
    assert parameters(Tied()) == 36
    assert bytes_on_disk(Tied()) < 36 * 4 + 200


def test_bytes_are_those_of_the_file(tmp_path):
    net = cnn(width=8)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert bytes_on_disk(net) == pytest.approx((tmp_path / "net.safetensors").stat().st_size, abs=64)    # the header's metadata


def test_flops_are_two_per_multiply_add():
    assert flops(mlp(inputs=64, hidden=32, classes=10), (1, 8, 8)) == 2 * (64 * 32 + 32 * 10)
    conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    assert flops(conv, (3, 16, 16)) == 2 * 3 * 8 * 9 * 8 * 8


def test_flops_of_attention_are_counted():
    tokens, dim = 7, 8
    assert flops(Attention(), (tokens, dim)) == 2 * 2 * tokens * tokens * dim        # scores, and the weighted sum


def test_flops_are_of_one_sample_in_eval_mode_and_the_mode_comes_back():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    net[1].eval()
    assert flops(net, (4,)) == 2 * 16                # batch norm in train mode would refuse a single sample
    assert net.training and net[0].training and not net[1].training


def test_latency_is_that_of_the_clock():
    slow = Slow()
    found = latency(slow, (2,), repeats=6)
    assert 5 <= found["p50_1"] <= found["p95_1"] and 5 <= found["p50_32"] <= found["p95_32"]
    assert slow.calls == [1] * 9 + [32] * 9           # three that do not count, six that do


def test_latency_stops_in_time_but_not_before_five_runs():
    slow = Slow()
    latency(slow, (2,), repeats=10_000, seconds=0.001)
    assert slow.calls.count(1) == 6                   # one slow call to warm up, five that count


def test_cost_says_everything():
    found = measure.cost(cnn(width=4), (1, 8, 8), repeats=5)
    assert set(found) == {"parameters", "bytes", "flops", "p50_1", "p95_1", "p50_32", "p95_32", "threads", "device"}
    assert found["threads"] == torch.get_num_threads() and found["device"] == "cpu"
    assert found["parameters"] == sum(p.numel() for p in cnn(width=4).parameters())


def test_named_tensors_are_a_sample_too():
    sample = {"ids": torch.tensor([1, 2, 3]), "mask": torch.tensor([1.0, 1.0, 0.0])}
    found = measure.cost(Words(), sample, repeats=5)
    assert found["parameters"] == 40 and found["p50_32"] > 0
    assert samples(sample, 4)["ids"].tolist() == [[1, 2, 3]] * 4


def test_onnx_latency_of_a_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "relu.onnx")
    found = onnx_latency(tmp_path / "relu.onnx", (4,), repeats=20)
    assert set(found) == {"p50_1", "p95_1", "p50_32", "p95_32"}
    assert all(0 < value < 1000 for value in found.values())
