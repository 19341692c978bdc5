"""TESLA: its gradient is that of matching with the inner weights held still, step by step, in memory that does not grow."""

import copy
import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom import Run
from stillroom.arenas.synthetic import synthetic
from stillroom.errors import Refused
from stillroom.models.convnet import ConvNet
from stillroom.parts import siamese, whiten
from stillroom.parts.flat import flat_call, flatten
from stillroom.parts.teachers import Experts
from stillroom.recipes.dataset.tesla import TESLA

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
START, END = flatten(NET), flatten(NET) + 0.3 * torch.randn(53).double()
X, Y, RATE = torch.randn(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 0]), 0.4


def step(weights, x, graph):
    """∇_weights of the inner loss, with a graph back to the images and the weights."""
    return torch.autograd.grad(F.cross_entropy(flat_call(NET, weights, x), Y), weights, create_graph=graph)[0]


def by_autograd(inner, still):
    """Gradients in pixels and rate of ‖θ_N − θ*‖²/‖θ_0 − θ*‖² through the whole walk, or with the inner weights held `still`."""
    x, rate = X.clone().requires_grad_(), torch.tensor(RATE).double().requires_grad_()
    weights = reached = START.clone().requires_grad_()
    for _ in range(inner):
        g = step(weights, x, graph=True)
        reached = reached - rate * g
        weights = (weights - RATE * g).detach().requires_grad_() if still else weights - rate * g
    loss = ((reached if still else weights) - END).square().sum() / (START - END).square().sum()
    return torch.autograd.grad(loss, (x, rate))


def by_tesla(inner, monkeypatch):
    """Gradients that the recipe itself hands to its two optimisers in one step."""
    from stillroom.recipes.dataset import tesla

    seen = {}

    class Watched(Run):
        def update(self, opt, **terms):
            if terms:
                seen["rate"] = torch.autograd.grad(terms["match"], opt.params, retain_graph=True)[0]
            else:
                seen["pixels"] = opt.params[0].grad.clone()
            return super().update(opt, **terms)

    monkeypatch.setattr(tesla, "some_of_each", lambda data, per_class: (X.clone(), Y))
    monkeypatch.setattr(torch, "randperm", torch.arange)      # the order of the images in a draw; all of them are in each
    method = TESLA(inner=inner, inner_rate=RATE, augment="", steps=1, span=1, before=0)
    method(Watched(), model=NET, data=torch.utils.data.TensorDataset(X, Y), experts=Experts([[START, END]]))
    return seen["pixels"], seen["rate"]


def close(a, b, tolerance=1e-7):      # the rate itself is a float32 leaf
    return torch.allclose(a.double(), b, rtol=0, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("inner", [1, 2, 5])
def test_its_gradient_is_that_of_matching_with_the_inner_weights_held_still(inner, monkeypatch):
    ours, theirs = by_tesla(inner, monkeypatch), by_autograd(inner, still=True)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_is_not_the_gradient_through_the_whole_walk_but_points_its_way(monkeypatch):
    (ours, _), (whole, _) = by_tesla(5, monkeypatch), by_autograd(5, still=False)
    assert (ours - whole).norm() / whole.norm() > 0.05
    assert F.cosine_similarity(ours.flatten(), whole.flatten(), 0) > 0.5


def test_both_are_one_when_there_is_one_inner_step(monkeypatch):
    assert all(close(a, b) for a, b in zip(by_tesla(1, monkeypatch), by_autograd(1, still=False), strict=True))


def test_both_are_one_when_the_loss_is_linear_in_the_weights():
    """Then the inner gradient does not depend on the weights, and holding them still changes nothing."""
    x, rate, w0, goal = (torch.randn(3, 4).double().requires_grad_(), 0.3, torch.randn(4).double(), torch.randn(4).double())

    def walk(still):
        weights, reached = w0.clone().requires_grad_(), w0
        for _ in range(4):
            g = torch.autograd.grad((x.square() @ weights).sum(), weights, create_graph=True)[0]
            reached = reached - rate * g
            weights = (weights - rate * g).detach().requires_grad_() if still else weights - rate * g
        return torch.autograd.grad((reached - goal).square().sum() if still else (weights - goal).square().sum(), x)[0]
    assert torch.allclose(walk(True), walk(False), atol=1e-12)


def test_memory_does_not_grow_with_the_inner_steps():
    """What autograd holds for backward passes, at its most: as much for twelve inner steps as for two."""
    class Held:
        alive = peak = 0

        def __init__(self, x):
            self.x = x
            Held.alive += 1
            Held.peak = max(Held.peak, Held.alive)

        def __del__(self):
            Held.alive -= 1

    peaks = []
    for inner in (2, 12):
        Held.alive = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.x):
            TESLA(inner=inner, augment="", steps=1, span=1, before=0, per_class=1)(
                Run(), model=copy.deepcopy(NET), data=torch.utils.data.TensorDataset(X, Y), experts=Experts([[START, END]]))
        peaks.append(Held.peak)
    assert 0 < peaks[1] <= peaks[0]


def test_images_are_drawn_without_replacement_until_all_had_their_turn():
    drawn = TESLA(inner=7, inner_batch=4).draws(10)
    assert [len(d) for d in drawn] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(drawn[:3]).tolist()) == list(range(10)) == sorted(torch.cat(drawn[3:6]).tolist())
    assert [len(d) for d in TESLA(inner=3, inner_batch=50).draws(10)] == [10, 10, 10]


def test_soft_labels_are_what_the_expert_says():
    method = TESLA(soft=True, inner=1, augment="", steps=1, span=1, before=0, per_class=1)
    pixels, labels, _ = method(Run(), model=copy.deepcopy(NET), data=torch.utils.data.TensorDataset(X, Y),
                               experts=Experts([[START, END]]))
    assert torch.allclose(labels, flat_call(NET, END, pixels).softmax(-1))
    assert torch.allclose(labels.sum(-1), torch.ones(3).double())


def test_experts_are_taught_in_the_recipe_with_a_snapshot_after_every_epoch():
    net, data = ConvNet(3, 1, 8, width=4, depth=1), torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    method = TESLA(experts=2, epoch=3, steps_expert=7, batch_expert=6, lr_expert=0.1, augment="crop")
    with Run() as run:
        found = method.teach(run, net, data)
    assert [len(path) for path in found.paths] == [4, 4]           # at 0, 3, 6 and 7 updates
    assert not torch.equal(found.paths[0][0], found.paths[1][0]) and not torch.equal(found.paths[0][0], found.paths[0][1])


def test_segments_start_and_end_where_they_may(tmp_path):
    experts = Experts([[torch.full((2,), 10.0 * i + j) for j in range(6)] for i in range(3)])
    seen = {tuple(w[0].item() for w in experts.segment(2, 2)) for _ in range(300)}
    assert seen == {(10.0 * i + t, 10.0 * i + t + 2) for i in range(3) for t in range(3)}
    short = Experts([[torch.zeros(1), torch.ones(1)]])
    assert [w.item() for w in short.segment(5, 20)] == [0.0, 1.0]
    with pytest.raises(Refused, match="two moments"):
        Experts([[torch.zeros(1)]])
    with pytest.raises(Refused, match="there is no expert"):
        Experts().segment(1, 0)


def test_experts_of_a_folder_are_read_from_there(tmp_path):
    paths = [[torch.full((2,), 10.0 * i + j).double() for j in range(i + 2)] for i in range(3)]
    Experts(paths, tmp_path / "experts")
    again = Experts(folder=tmp_path / "experts")
    assert [[w.tolist() for w in path] for path in again.paths] == [[w.tolist() for w in path] for path in paths]
    assert again.last().dtype == torch.float64 and again.last().tolist() == [1.0, 1.0]
    again.put(1, paths[2])                                          # anew from here on: what came later is of another run
    assert [len(path) for path in again.paths] == [2, 4]
    (tmp_path / "experts" / "00001.safetensors").unlink()
    with pytest.raises(Refused, match=r"00001\.safetensors is missing"):
        Experts(folder=tmp_path / "experts").first(3)
    (tmp_path / "experts" / "00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(Refused, match="holds no expert"):
        Experts(folder=tmp_path / "experts")


def test_of_a_file_no_more_is_read_than_is_asked_for(tmp_path):
    def private():
        """Memory of this process that no file stands for, in kilobytes."""
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say whose memory is a file's")
    Experts([[torch.zeros(2_000_000), torch.ones(2_000_000)]], tmp_path)            # 16 MB
    before = private()
    experts = Experts(folder=tmp_path)
    start, end = experts.segment(1, 0)
    assert end.sum() == 2_000_000 and start.sum() == 0 and private() - before < 4_000


class Stop(Exception):
    pass


class Stopped(Run):
    """Saves after every step, and goes away before its step number `stop`."""

    def __init__(self, folder, stop=None, **named):
        super().__init__(folder, save_every=-1.0, **named)
        self.stop, self.done = stop, 0

    def loop(self, *args, **named):
        for content in super().loop(*args, **named):
            if self.done == self.stop:
                raise Stop
            self.done += 1
            yield content


@pytest.mark.parametrize("stop", [6, 7, 11, 20, 22])
def test_a_stop_loses_no_expert_and_the_checkpoint_holds_none(stop, tmp_path):
    """Three experts of seven steps, then matching. In memory, in a folder, and in one that was stopped, the same comes out."""
    torch.manual_seed(0)
    net, data = ConvNet(3, 1, 8, width=4, depth=1), torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    method = TESLA(experts=3, epoch=3, steps_expert=7, batch_expert=6, lr_expert=0.1, augment="crop", per_class=1, inner=2,
                   before=2, lr=1.0, steps=4)
    wanted = method(Run(), model=copy.deepcopy(net), data=data)
    with pytest.raises(Stop):
        method(Stopped(tmp_path, stop), model=copy.deepcopy(net), data=data)
    files = sorted((tmp_path / "experts").glob("*"))
    assert [f.name for f in files] == [f"{n:05}.safetensors" for n in range(min(3, stop // 7))]
    written = [f.read_bytes() for f in files]
    held = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["things"]
    assert len(held["path"]) == (-(-(stop % 7) // 3) if stop < 21 else 0)            # of the expert that is being taught
    again = method(Stopped(tmp_path, resume=True), model=copy.deepcopy(net), data=data)
    assert all(map(torch.equal, wanted, again))
    assert [f.read_bytes() for f in files] == written, "what was done before the stop was done again"
    assert not torch.load(tmp_path / "checkpoint.pt", weights_only=True)["things"]["path"]


def test_an_expert_that_is_missing_when_a_run_goes_on_is_refused(tmp_path):
    net, data = ConvNet(3, 1, 8, width=4, depth=1), torch.utils.data.TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    method = TESLA(experts=2, epoch=2, steps_expert=2, batch_expert=6, augment="", per_class=1, inner=1, steps=2)
    method(Run(tmp_path), model=copy.deepcopy(net), data=data)
    (tmp_path / "experts" / "00000.safetensors").unlink()
    with pytest.raises(Refused, match=r"00000\.safetensors is missing"):
        method(Run(tmp_path, resume=True), model=copy.deepcopy(net), data=data)


def test_a_network_that_cannot_be_drawn_anew_is_refused_before_it_is_taught(tmp_path):
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.shift = nn.ParameterList([nn.Parameter(torch.zeros(3))])

    with pytest.raises(Refused, match="shift"):
        TESLA(per_class=1)(Run(tmp_path), model=nn.Sequential(nn.Flatten(), Shifted()), data=torch.utils.data.TensorDataset(X, Y))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_whitened_images_are_what_experts_and_networks_learn_from():
    """The paper's CIFAR setting is that of data that were whitened before; with no step made, real images come out."""
    cast = synthetic(0, per_class=2, zca=0.1)
    model, data = cast.actors["model"], cast.actors["data"]
    found, method = whiten.zca(data.tensors[0], 0.1), TESLA(zca=0.1, per_class=2, experts=1, epoch=1, steps_expert=2, inner=2)
    made = [dataclasses.replace(method, zca=eps, steps=2)(Run(), model=copy.deepcopy(model), data=images)
            for eps, images in ((0.1, data), (0.0, whiten.whitened(data, 0.1)))]
    assert all(map(torch.equal, *made))
    pixels, labels, rate = dataclasses.replace(method, steps=0)(Run(), model=copy.deepcopy(model), data=data)
    assert (torch.cdist(cast.looks(pixels).flatten(1), data.tensors[0].flatten(1)).min(1).values < 1e-3).all()
    seen = torch.utils.data.TensorDataset(whiten.apply(cast.test.tensors[0], found), cast.test.tensors[1])
    plain = synthetic(0, per_class=2).teaches(pixels, labels, rate, test=seen, steps=5, nets=1)
    assert cast.teaches(pixels, labels, rate, steps=5, nets=1) == plain


def test_two_in_one_run_have_experts_of_their_own(tmp_path):
    run = Run(tmp_path)
    assert run.part("a").part("b").folder == tmp_path / "a" / "b" and Run().part("a").folder is None


def test_it_refuses_to_be_split_before_an_expert_is_taught():
    with pytest.raises(Refused, match="accumulate"):
        TESLA()(Run(accumulate=2), model=NET, data=torch.utils.data.TensorDataset(X, Y))


def test_its_views_are_the_same_when_they_are_walked_again(monkeypatch):
    seen, plain = [], siamese.augment
    monkeypatch.setattr(siamese, "augment", lambda x, v: seen.append(plain(x.detach(), v)) or plain(x, v))
    net = ConvNet(3, 1, 8, width=4, depth=1)
    TESLA(inner=3, steps=1, span=1, before=0, per_class=1, augment="crop_rotate_scale")(
        Run(), model=net, data=torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3),
        experts=Experts([[flatten(net), flatten(net) + 0.1]]))
    assert len(seen) == 6 and all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_the_paper_s_numbers_are_the_defaults():
    d = {f.name: f.default for f in dataclasses.fields(TESLA)}
    assert (d["inner"], d["span"], d["before"], d["lr"], d["lr_rate"]) == (30, 2, 20, 100.0, 1e-5)
    assert (d["experts"], d["lr_expert"], d["steps_expert"] // d["epoch"]) == (100, 0.01, 50)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps_as_far_as_full(precision):
    """The gathered gradients are not those of a scaled loss, and must not be divided by the scale."""
    made = []
    for chosen in ("fp32", precision):
        torch.manual_seed(0)
        net = ConvNet(channels=1, size=4, width=4, depth=1, classes=3)
        x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
        start = flatten(net)
        experts = Experts([[start, start + 0.1 * torch.randn(len(start))]])
        method = TESLA(per_class=1, inner=3, span=1, before=0, lr=50.0, augment="", steps=2)
        pixels, _, rate = method(Run(precision=chosen, device="cpu"), model=net, data=torch.utils.data.TensorDataset(x, y),
                                 experts=experts)
        still, _, _ = dataclasses.replace(method, steps=0)(Run(device="cpu"), model=net, experts=experts,
                                                           data=torch.utils.data.TensorDataset(x, y))
        made.append((pixels - still, rate - method.inner_rate))
    (full, rate), (half, rate_half) = made
    assert full.abs().max() > 1e-3 and (half - full).norm() < 0.1 * full.norm()
    assert (rate_half - rate).abs() < 0.1 * rate.abs()


def test_no_more_weights_are_remembered_for_more_inner_steps(monkeypatch):
    plain, seen, held = TESLA.gradient, [], {}

    def gradient(self, model, weights, *given, **named):
        seen.append(weakref.ref(weights))
        held[self.inner] = max(held.get(self.inner, 0), len({id(r()) for r in seen if r() is not None}))
        return plain(self, model, weights, *given, **named)
    monkeypatch.setattr(TESLA, "gradient", gradient)
    for inner in (3, 20):
        seen.clear()
        TESLA(inner=inner, augment="", steps=1, span=1, before=0, per_class=1)(
            Run(), model=copy.deepcopy(NET), data=torch.utils.data.TensorDataset(X, Y), experts=Experts([[START, END]]))
    assert 0 < held[20] <= held[3]
