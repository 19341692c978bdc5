"""Taps: what is heard is what the modules say, and nothing stays on the model."""

import copy
import importlib
import sys
import weakref

import pytest
import torch
from torch import nn

from stillroom.errors import Refused
from stillroom.parts.taps import Tap, hidden, stages
from stillroom.parts.teachers import Ema, Frozen


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.high = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.high(self.low(x)).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def places(model):
    """Everything that a tap could have left: hooks and attributes of every module."""
    return [({k: v if isinstance(v, bool | int) else id(v) for k, v in m.__dict__.items() if k != "_forward_hooks"},
             dict(m._forward_hooks)) for m in model.modules()]


def test_it_hears_the_named_modules_in_the_order_asked_with_gradients(net, x):
    out, (high, low) = Tap(net, "high", "low.0")(x)
    a = net.low[0](x)
    assert torch.equal(low, a) and torch.equal(high, net.high(a.relu())) and torch.equal(out, net(x))
    grad = torch.autograd.grad(high.sum(), net.low[0].weight, retain_graph=True)[0]
    assert torch.equal(grad, torch.autograd.grad(net.high(net.low(x)).sum(), net.low[0].weight)[0])


def test_nothing_stays_on_the_model_not_even_after_an_error(net, x):
    seen = []
    handle = net.low.register_forward_hook(lambda *_: seen.append(1))
    before = places(net)
    tap = Tap(net, "low", "high")
    tap(x)
    with pytest.raises(RuntimeError):
        tap(x[:, :2])
    assert places(net) == before and seen == [1]
    handle.remove()
    tap(x)
    assert seen == [1]


def test_nothing_heard_is_held_after_the_call(net, x):
    tap = Tap(net, "low")
    out, (low,) = tap(x)
    held = weakref.ref(low)
    del out, low
    assert held() is None


def test_a_forward_hook_of_the_user_comes_before_it(net, x):
    net.low.register_forward_hook(lambda m, i, out: out * 2)
    assert torch.equal(Tap(net, "low")(x)[1][0], 2 * net.low[0](x).relu())


def test_two_taps_on_one_model_and_a_module_named_twice(net, x):
    one, two = Tap(net, "low"), Tap(net, "high", "low", "high")
    (low,), (high, low_too, high_too) = one(x)[1], two(x)[1]
    assert torch.equal(low, low_too) and high is high_too
    assert torch.equal(high, net.high(low))


def test_a_module_passed_twice_is_heard_the_last_time(x):
    twice = nn.Linear(4, 4)
    net = nn.Sequential(twice, nn.ReLU(), twice)
    assert torch.equal(Tap(net, "0")(x)[1][0], net(x))


def test_deep_copies_of_model_and_tap_are_independent(net, x):
    tap = Tap(net, "low")
    tap(x)
    follower, other = Ema(net), copy.deepcopy(tap)
    with torch.no_grad():
        net.low[0].weight.zero_()
        net.low[0].bias.zero_()
    assert not tap(x)[1][0].any()
    assert other(x)[1][0].any() and Tap(follower, "low")(x)[1][0].any()
    assert other.model is not net


def test_under_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Tap(net, "high")(x)[1][0].dtype == torch.bfloat16


def test_in_a_teacher_the_names_are_those_of_the_network_inside(net, x):
    teacher = Frozen(net, mean=[0.5], std=[0.25])
    pictures = x[:, None]
    out, (low,) = Tap(teacher, "low.0")(pictures)
    assert torch.equal(low, net.low[0]((pictures - 0.5) / 0.25)) and not low.requires_grad and torch.equal(out, teacher(pictures))


def test_a_head_that_was_replaced_is_heard(net, x):
    tap = Tap(net, "head")
    net.head = nn.Linear(6, 2)
    assert tap(x)[1][0].shape == (5, 2)


def test_refusals(net, x):
    with pytest.raises(Refused, match=r"no module called 'hihg'\n  → did you mean 'high'"):
        Tap(net, "low", "hihg")
    with pytest.raises(Refused, match=r"did you mean 'low\.0'"):
        Tap(Frozen(net), "low.00")
    with pytest.raises(Refused, match="at least one module"):
        Tap(net)
    with pytest.raises(Refused, match="does not pass 'idle'"):
        Tap(net, "idle")(x)
    with pytest.raises(Refused, match=r"Tap\(model"):
        stages(net)
    with pytest.raises(Refused, match=r"Tap\(model"):
        hidden(net)


# --- other libraries -------------------------------------------------------------------------------------------------

@pytest.fixture
def timm():
    """timm, also beside a torchvision whose operators do not fit this torch (it then fails at `torchvision::nms`)."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        pytest.skip("timm is not installed")
    except RuntimeError:
        from importlib.metadata import version
        lib = torch.library.Library("torchvision", "DEF")
        lib.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        lib.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        timm = importlib.import_module("timm")
        timm.kept = lib, version("torchvision")
        return timm


def test_stages_of_timm_models(timm):
    pictures = torch.rand(2, 3, 64, 64)
    for name, last in (("resnet10t", (512, 2, 2)), ("vit_tiny_patch16_224", (192, 4, 4))):
        size = {"img_size": 64} if name.startswith("vit") else {}
        net = timm.create_model(name, pretrained=False, num_classes=7, **size).eval()
        before = places(net)
        logits, maps = stages(net)(pictures)
        torch.testing.assert_close(logits, net(pictures), atol=1e-5, rtol=1e-5)
        assert len(maps) == len(net.feature_info) and maps[-1].shape == (2, *last) and maps[-1].requires_grad
        _, (second, end) = stages(net, 1, -1)(pictures)
        assert torch.equal(second, maps[1]) and torch.equal(end, maps[-1]) and places(net) == before
        scaled = Frozen(net, mean=[0.5] * 3, std=[0.2] * 3)
        taught, (seen,) = stages(scaled, -1)(pictures)
        torch.testing.assert_close(taught, scaled(pictures), atol=1e-5, rtol=1e-5)
        assert not seen.requires_grad and not torch.allclose(seen, end)


class Around(nn.Module):
    """A model inside another, that returns its logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x * 2).logits


def vit():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8)).eval()


def test_hidden_states_of_transformers_alone_and_inside_another():
    net, pictures = vit(), torch.rand(2, 3, 16, 16)
    want = net(pictures, output_hidden_states=True)
    for given in (((pictures,), {}), (({"pixel_values": pictures},), {}), ((), {"pixel_values": pictures})):
        logits, states = hidden(net)(*given[0], **given[1])
        assert torch.equal(logits, want.logits) and len(states) == 3
        assert all(torch.equal(a, b) for a, b in zip(states, want.hidden_states))
    logits, (end,) = hidden(Around(net), -1)(pictures / 2)
    assert torch.equal(logits, want.logits) and torch.equal(end, want.hidden_states[-1])
    logits, (end,) = hidden(Frozen(Around(net)), -1)(pictures / 2)
    assert torch.equal(end, want.hidden_states[-1]) and not end.requires_grad
    assert net.config.output_hidden_states is False and net(pictures).hidden_states is None
    last, states = hidden(net.vit)(pictures)                    # a body without a head
    assert last.shape == (2, 5, 16) and len(states) == 3


# --- compiled --------------------------------------------------------------------------------------------------------

@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def equal(a, b):
    (out, feats), (out_too, feats_too) = a, b
    assert len(feats) == len(feats_too)
    for s, t in zip([out, *feats], [out_too, *feats_too]):
        torch.testing.assert_close(s, t, atol=1e-6, rtol=1e-5)


def test_dynamo_traces_it_whole_and_leaves_nothing(net, x, dynamo):
    net.high.register_forward_hook(lambda *_: None)
    one, two = Tap(net, "low.0", "high"), Tap(Frozen(copy.deepcopy(net)), "low")

    def step(x):
        out, feats = one(x)
        taught, more = two(2 * x)
        return out + taught, feats + more

    before = places(net)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for scale in (1, 2, 3):
        equal(compiled(scale * x), step(scale * x))
        assert places(net) == before
    assert all(type(m._forward_hooks).__name__ == "OrderedDict" for m in net.modules())
    net.low.register_forward_hook(lambda *_: None, prepend=True)


def test_dynamo_and_the_other_libraries(timm, dynamo):
    net, pictures = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval(), torch.rand(2, 3, 32, 32)
    tap = stages(net, 1, -1)
    equal(torch.compile(lambda x: tap(x), backend="eager", fullgraph=True)(pictures), tap(pictures))
    net, pictures = vit(), torch.rand(2, 3, 16, 16)
    for model in (net, Around(net)):
        torch._dynamo.reset()
        tap = hidden(model)
        equal(torch.compile(lambda x, tap=tap: tap(x), backend="eager", fullgraph=True)(pictures), tap(pictures))
        assert net.config.output_hidden_states is False


@pytest.mark.slow
def test_inductor_gives_the_same_outputs_and_gradients(net, x):
    other = copy.deepcopy(net)
    results = []
    for model, call in ((net, lambda f: f), (other, lambda f: torch.compile(f, fullgraph=True))):
        tap = Tap(model, "low", "high")
        out, (low, high) = call(lambda x, tap=tap: tap(x))(x)
        (out.square().mean() + low.sin().mean() + high.mean()).backward()
        results.append((out, [low, high, model.low[0].weight.grad, model.high.bias.grad]))
    equal(*results)


@pytest.mark.slow
def test_a_model_compiled_in_place_is_heard_wherever_it_stands(net, x):
    """Compiled, and called, before anybody listened: its graph knows of no tap."""
    plain = copy.deepcopy(net)
    net.compile()
    net(x)
    around = nn.Sequential(net, nn.Linear(3, 2))
    around(x)
    for scale in (1, 2):
        for name in ("low", "high"):
            equal(Tap(net, name)(scale * x), Tap(plain, name)(scale * x))
        out, (high, inner) = Tap(around, "0.high", "0")(scale * x)
        equal((inner, [high]), Tap(plain, "high")(scale * x))
        torch.testing.assert_close(out, around[1](inner))


def test_many_taps_on_models_compiled_in_place_are_all_compiled(x):
    """The cache of compiled code has room for all of them: none falls back to a forward that is not compiled."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(12):
            net = Net()
            net.compile(backend="eager")
            tap = Tap(net, "low")
            for scale in (1, 2):
                equal(tap(scale * x), (net.head(net.high(net.low(scale * x)).relu()), [net.low(scale * x)]))
