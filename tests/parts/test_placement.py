"""Placements of a teacher: the live one's answers, and weights where the placement says."""

import copy
import json
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from stillroom import Run, _compat, zoo
from stillroom._compat import package
from stillroom.cli import main
from stillroom.errors import Refused
from stillroom.measure import prices
from stillroom.models.small import cnn, mlp
from stillroom.parts import losses, optim, placement
from stillroom.parts.placement import BLOCK, Blocks, Offloaded, by_type, eight_bit
from stillroom.parts.shared import Shared, together
from stillroom.parts.taps import Tap, stages
from stillroom.parts.teachers import Ensemble, Frozen
from stillroom.recipes.classification.kd import KD
from stillroom.recipes.classification.ssld import SSLD


def images(n=40, side=8):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 1, side, side, generator=g), torch.randint(10, (n,), generator=g))


def teacher():
    torch.manual_seed(0)
    return cnn(8).eval()


def student(seed=0):
    torch.manual_seed(10 + seed)
    return nn.Sequential(nn.Dropout(0.2), mlp(hidden=16))


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def counted(net):
    """The network, and a list that grows by its batch's size at each forward."""
    sizes = []
    net.register_forward_hook(lambda _, inputs, out: sizes.append(len(out)))
    return net, sizes


class Noisy(Dataset):
    """Images that are drawn anew each time: the same sample differs from pass to pass."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.rand(1, 8, 8), i % 10


# --- in 8 bits -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(10, 7), (6, 3, 3, 3)])
def test_a_weight_in_8_bits_is_off_by_half_a_step_of_its_row(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[1] = 0
    q, scale = placement.Rows().right_inverse(weight)
    told = placement.Rows()(q, scale)
    for row, code, step, back in zip(weight.double(), q, scale.flatten().tolist(), told.double(), strict=True):
        assert step == pytest.approx(row.abs().max().item() / 127, rel=1e-6, abs=1e-30)
        assert (back - row).abs().max() <= step / 2 * (1 + 1e-4)
        assert code.dtype == torch.int8 and (not row.any() or int(code.abs().max()) == 127)
    assert not told[1].any() and told.isfinite().all()


@pytest.mark.parametrize(("name", "at_least"), [("vit_tiny_patch16_224", 3.7), ("resnet18", 3.9)])
def test_a_timm_model_in_8_bits_is_almost_four_times_as_small_and_says_almost_the_same(name, at_least):
    torch.manual_seed(0)
    live = package("timm").create_model(name, num_classes=10).eval()
    small, x = eight_bit(live), torch.rand(2, 3, 224, 224)
    whole, left = by_type(live), by_type(small)
    layers = [m for m in live.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    numbers, rows = sum(m.weight.numel() for m in layers), sum(len(m.weight) for m in layers)
    assert left["int8"] == numbers and left["float32"] == whole["float32"] - 4 * numbers + 4 * rows
    assert sum(whole.values()) > at_least * sum(left.values())
    with torch.no_grad():
        assert (live(x) - small(x)).norm() < 0.03 * (live(x) - live(x).mean()).norm()
        assert torch.equal(copy.deepcopy(small)(x[:1]), small(x[:1]))
    assert dict(live.named_modules()).keys() <= dict(small.named_modules()).keys() and not small.training


def test_a_transformers_model_in_8_bits_keeps_its_embeddings_and_what_two_modules_share():
    transformers = package("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    bert = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(bert).eval()
    small, ids = eight_bit(net), torch.arange(12).view(2, 6)
    with torch.no_grad():
        live, bytes_ = net(ids).logits, small(ids).logits
    assert torch.allclose(live, bytes_, atol=5e-3) and not torch.equal(live, bytes_)
    assert type(small.bert.embeddings.word_embeddings.weight) is nn.Parameter
    with pytest.raises(Refused, match="as large"):           # its matrices are no nn.Linear, and its head is the embedding
        eight_bit(transformers.GPT2LMHeadModel(config))


def test_attention_in_8_bits_and_under_bf16():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    small, x = eight_bit(net), torch.randn(2, 5, 32)
    assert by_type(small)["int8"] == 32 * 96 + 32 * 32 + 2 * 32 * 64
    with torch.no_grad():
        assert torch.allclose(net(x), small(x), atol=0.05) and not torch.equal(net(x), small(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(net(x).float(), small(x).float(), atol=0.1)


@pytest.mark.slow
def test_the_digits_teacher_in_8_bits_is_right_as_often():
    from stillroom import arenas

    cast = arenas.digits("clean", 0)
    live = cast.actors["teacher"]
    small, x = eight_bit(live), cast.test.tensors[0]
    with torch.no_grad():
        agreement = (live(x).argmax(-1) == small(x).argmax(-1)).double().mean()
    assert agreement >= 0.99 and abs(cast.accuracy(small) - cast.accuracy(live)) <= 0.6
    assert sum(by_type(live).values()) > 3.5 * sum(by_type(small).values())


def test_8_bits_teach_and_leave_the_given_teacher_alone():
    live = teacher()
    before = copy.deepcopy(live)
    made = KD(steps=4, batch=8)(Run(), student=student(), teacher=eight_bit(live), data=images())
    assert same(live, before) and all(p.isfinite().all() for p in made.parameters())
    maps = Tap(Frozen(eight_bit(live)), "0")(images()[:2][0])[1][0]
    assert torch.allclose(maps, live[0](images()[:2][0]), atol=0.02)


# --- on the host -----------------------------------------------------------------------------------------------------

def test_offloaded_weights_are_nowhere_between_forwards_and_the_answers_are_the_live_ones():
    live, x = package("timm").create_model("vit_tiny_patch16_224", num_classes=10).eval(), torch.rand(2, 3, 224, 224)
    placed = Offloaded(copy.deepcopy(live)).to("cpu")
    with torch.no_grad():
        expected = live(x)
    for _ in range(2):
        assert {n for n, p in placed.model.named_parameters() if not p.is_meta} == {"cls_token", "pos_embed"}
        assert torch.equal(placed(x), expected) and torch.equal(copy.deepcopy(placed)(x), expected)
        placed.to("cpu")


def test_an_offloaded_model_with_attention_shared_weights_buffers_and_an_input_scale():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.one, self.two, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(5)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.norm(self.one(self.attend(x, x, x)[0])))

    torch.manual_seed(0)
    live, x = Net().eval(), torch.randn(3, 5, 8)
    placed = Offloaded(copy.deepcopy(live)).to("cpu")
    assert torch.equal(placed(x), live(x)) and all(p.is_meta for p in placed.parameters())
    net = zoo.model("timm:resnet10t?place=offload", classes=10, channels=1, size=32)
    bare, image = copy.deepcopy(net.model), torch.rand(2, 1, 32, 32)
    assert torch.equal(net.to("cpu")(image), bare.eval()(image))


def test_a_layer_that_is_read_but_not_called_cannot_be_offloaded():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.one.weight

    with pytest.raises(Refused, match="without calling"):
        Offloaded(Tied()).to("cpu")(torch.rand(2, 4))


def test_without_accelerate_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(_compat, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"pip install 'stillroom\[offload\]'"):
        Offloaded(teacher())


# --- in blocks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("data", "count", "run"), [
    *((data, count, run) for data in (images(), Noisy()) for count in (1, 3, 100) for run in ({}, {"accumulate": 2})),
    (Noisy(), 3, {"workers": 1})])
def test_a_student_taught_in_blocks_is_the_one_taught_live(data, count, run):
    recipe = KD(steps=8, batch=8)
    live = recipe(Run(**run), student=student(), teacher=teacher(), data=data)
    net, sizes = counted(teacher())
    placed = recipe(Run(**run), student=student(), teacher=Blocks(net, count), data=data)
    assert same(live, placed)
    parts = run.get("accumulate", 1)
    assert sizes == [2] + [8 // parts] * 8 * parts           # two samples before the first step


def test_the_teacher_has_left_the_device_when_the_student_learns():
    moves = []

    class Watched(nn.Sequential):
        def _apply(self, fn, recurse=True):
            moves.append(fn(torch.empty(0)).device.type)
            return super()._apply(fn, recurse)

        def forward(self, x):
            moves.append("asked")
            return super().forward(x)

    placed, opt = Blocks(Watched(teacher()), 2), optim.sgd(net := student(), lr=0.1)
    run = Run()
    placed = Frozen(run.place(placed))
    moves.clear()
    run.keep(net=net, opt=opt)
    for x, _ in run.loop(images(), batch=8, steps=4):
        run.update(opt, soft=losses.kl(net(x), placed(x), 1.0))
        moves.append("learnt")
    assert moves == ["cpu", "asked", "asked", "cpu", "learnt", "learnt"] * 2


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_blocks_go_on_after_a_stop(tmp_path, stop):
    class Stop(Exception):
        pass

    recipe, data = KD(steps=7, batch=8), Noisy()
    whole = recipe(Run(), student=student(), teacher=teacher(), data=data)

    def watch(_):
        if not (tmp_path / "over").exists() and len(run.history) >= stop:
            (tmp_path / "over").touch()
            raise Stop
        return 0.0

    run = Run(tmp_path / "run", save_every=-1.0, watch={"w": watch}, every=1)
    with pytest.raises(Stop):
        recipe(run, student=student(), teacher=Blocks(teacher(), 3), data=data)
    made = recipe(Run(tmp_path / "run", resume=True), student=student(), teacher=Blocks(teacher(), 3), data=data)
    assert same(whole, made)


def test_blocks_under_bf16_are_the_live_answers_under_bf16():
    live = KD(steps=4, batch=8)(Run(precision="bf16"), student=student(), teacher=teacher(), data=images())
    assert same(live, KD(steps=4, batch=8)(Run(precision="bf16"), student=student(), teacher=Blocks(teacher(), 3), data=images()))


def test_several_teachers_in_blocks_read_ahead_together():
    def several(first, second):
        return Ensemble([first(teacher()), second(cnn(4))])

    torch.manual_seed(5)
    live = KD(steps=7, batch=8)(Run(), student=student(), teacher=several(nn.Sequential, nn.Sequential), data=images())
    torch.manual_seed(5)
    placed = several(partial(Blocks, count=2), partial(Blocks, count=3))
    made = KD(steps=7, batch=8)(Run(), student=student(), teacher=placed, data=images())
    assert same(live, made)


def test_blocks_refuse_what_the_method_made_and_are_live_outside_of_loops():
    placed, data, run = Blocks(teacher(), 2), images(), Run()
    run.place(placed)
    x = data[:8][0]
    assert torch.equal(placed(x), teacher()(x))
    for change in (lambda x: x.flip(-1), lambda x: x[:4], lambda x: x.mul_(2)):
        with pytest.raises(Refused, match="made itself"):
            for x, _ in run.part("p" + str(id(change))).loop(data, batch=8, steps=2):
                placed(change(x))
    made = SSLD(batch=8, steps=4, steps_finetune=2, per_class=1)
    placed = Blocks(teacher(), 3)
    live, other = (made(Run(), student=student(), teacher=t, data=data, pool=images(30)) for t in (teacher(), placed))
    assert same(live, other) and not placed.answers and not placed.loops


def test_what_reads_inside_a_placed_teacher_reads_the_live_maps_or_is_refused():
    x = torch.rand(2, 1, 8, 8)
    tap = Tap(Frozen(Offloaded(teacher()).to("cpu")), "1")
    assert torch.equal(tap(x)[1][0], Tap(teacher(), "1")(x)[1][0])
    net = package("timm").create_model("resnet10t", num_classes=10)
    with pytest.raises(Refused, match="Blocks cannot be read"):
        stages(Frozen(Blocks(net)))


# --- shared ----------------------------------------------------------------------------------------------------------

def test_a_shared_teacher_answers_the_same_input_once():
    net, sizes = counted(teacher())
    shared, x = Shared(net, last=2), torch.rand(4, 1, 8, 8)
    first = shared(x)
    first.zero_()                                            # what a method does to an answer is its own affair
    assert torch.equal(shared(x.clone()), teacher()(x)) and sizes == [4]
    x.mul_(0.5)
    assert torch.equal(shared(x), teacher()(x)) and sizes == [4, 4]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shared(x).dtype == torch.bfloat16 and sizes == [4, 4, 4]
    assert torch.equal(shared(2 * x), teacher()(2 * x)) and len(sizes) == 4        # the first of three is forgotten


@pytest.mark.parametrize("run", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_students_taught_together_are_those_taught_alone_and_the_teacher_is_asked_once(run):
    data, steps = Noisy(), 6
    methods = [KD(steps=steps, batch=8), SSLD(steps=steps, steps_finetune=0, batch=8), KD(steps=4, batch=8, temperature=1.0)]
    alone = [m(Run(seed=3, **run), student=student(i), teacher=teacher(), data=data) for i, m in enumerate(methods)]
    net, sizes = counted(teacher())
    shared = Shared(net)
    made = together([partial(m, Run(seed=3, **run), student=student(i), teacher=shared, data=data)
                     for i, m in enumerate(methods)])
    assert all(map(same, alone, made))
    parts = run.get("accumulate", 1)
    assert [n for n in sizes if n > 2] == [8 // parts] * steps * parts       # two samples were asked before the first step


def test_the_others_steps_are_nobodys_seconds():
    slow, fast = Run(), Run()

    def play(run, rest):
        for _ in run.loop(steps=5):
            time.sleep(rest)

    together([partial(play, slow, 0.02), partial(play, fast, 0.0)])
    assert slow.seconds >= 0.1 > 10 * fast.seconds


def test_an_error_ends_all_of_them():
    seen = []

    def fails():
        for _ in Run().loop(steps=5):
            seen.append("fails")
            if len(seen) > 4:
                raise ValueError("here")

    def goes_on():
        for _ in Run().loop(steps=1000):
            seen.append("goes on")

    with pytest.raises(ValueError, match="here"):
        together([goes_on, fails])
    assert seen == ["goes on", "fails"] * 3
    assert together([lambda: 1, lambda: 2]) == [1, 2] and together([]) == []


# --- by name, and their price ----------------------------------------------------------------------------------------

def test_a_place_by_name():
    kinds = {"8bit": nn.Sequential, "offload": Offloaded, "blocks": Blocks, "blocks:3": Blocks, "live": nn.Sequential}
    for place, kind in kinds.items():
        assert type(zoo.model(f"small:cnn?place={place}", classes=10, channels=1, size=8)) is kind
    assert zoo.model("small:cnn?place=blocks:3&width=4", classes=10, channels=1, size=8).count == 3
    for wrong in ("4bit", "blocks:x", "offload:2"):
        with pytest.raises(Refused, match="is unknown"):
            zoo.model(f"small:cnn?place={wrong}", classes=10, channels=1, size=8)
    with pytest.raises(Refused, match="1 at least"):
        zoo.model("small:cnn?place=blocks:0", classes=10, channels=1, size=8)


@pytest.mark.parametrize("place", ["8bit", "offload", "blocks"])
def test_an_untrained_teacher_is_refused_wherever_it_lies_and_so_is_a_placed_student(place):
    named = partial(zoo.model, classes=10, channels=1, size=32)
    with pytest.raises(Refused, match="never trained"):
        KD(steps=1, batch=8)(Run(), student=student(), teacher=named(f"timm:resnet10t?place={place}"), data=images(side=32))
    with pytest.raises(Refused, match="nothing to learn"):
        KD(steps=1, batch=8)(Run(), student=named(f"small:cnn?place={place}"), teacher=teacher(), data=images())


@pytest.mark.slow
def test_a_run_by_name_with_its_teacher_in_blocks_goes_its_whole_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    teach = ["teach", "--student", "small:cnn", "--data", "digits", "--steps", "20", "--folder", "t", "--quiet"]
    assert main(teach) == 0
    for name, spec in (("live", "run:t"), ("blocks", "run:t?place=blocks:2"), ("offload", "run:t?place=offload"),
                       ("bytes", "run:t?place=8bit")):
        assert main(["run", "kd", "--student", "small:mlp", "--teacher", spec, "--data", "digits", "--steps", "5", "--folder",
                     name, "--quiet"]) == 0
        assert main(["measure", name, "--json"]) == 0
    from safetensors.torch import load_file

    live, blocks, offload, small = (load_file(f"{n}/student.safetensors") for n in ("live", "blocks", "offload", "bytes"))
    assert all(torch.equal(live[k], blocks[k]) and torch.equal(live[k], offload[k]) for k in live)
    assert any(not torch.equal(live[k], small[k]) for k in live)


def test_prices_are_these_sums():
    seen = prices.Seen(seconds=1000.0, asked=400, forward={"live": 1.0, "8bit": 1.5, "offload": 2.0},
                       weights={"live": 800, "8bit": 210, "offload": 90}, move=4.0, batch=50, answer=10, views=3000, view=22,
                       passes=75)
    rows = {r.pop("place"): r for r in prices.prices(seen, 8)}
    assert rows == {
        "live": {"device": 800, "host": 0, "disk": 0, "seconds": 600 + 400},
        "8bit": {"device": 210, "host": 0, "disk": 0, "seconds": 600 + 600},
        "offload": {"device": 90, "host": 800, "disk": 0, "seconds": 600 + 800},
        "blocks:8": {"device": 0, "host": 800 + 8 * 60, "disk": 0, "seconds": 600 + 400 + 400 * 4 / 8},
        "shared": {"device": 800, "host": 0, "disk": 0, "seconds": 600 + 200},
        "store": {"device": 0, "host": 0, "disk": 66_000, "seconds": 600 + 75},
    }


def test_most_that_visits_at_a_time():
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "b": nn.Linear(2, 2)})
    net.token = nn.Parameter(torch.zeros(5))
    assert prices.visiting(net) == 4 * (5 + 16) + 4 * 8 + 8          # the token and the buffers stay


def test_a_plan_prices_every_placement(capsys):
    words = ["plan", "kd", "--student", "small:mlp", "--teacher", "timm:resnet10t", "--data", "digits", "--size", "32",
             "--few", "3", "--steps", "100"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {r["place"]: r for r in found["placements"]}
    assert list(rows) == ["live", "8bit", "offload", f"blocks:{BLOCK}", "shared", "store"]
    live = zoo.model("timm:resnet10t", classes=10, channels=1, size=32)
    whole = sum(by_type(live).values())
    assert rows["live"]["device"] == whole and rows["8bit"]["device"] == sum(by_type(eight_bit(live)).values())
    assert rows["offload"]["host"] == whole > 2 * rows["offload"]["device"]
    assert rows[f"blocks:{BLOCK}"]["host"] == whole + BLOCK * (64 * 32 * 32 * 4 + 64 * 10 * 4)
    assert rows["store"]["disk"] == 1197 * (2 + 2 * 10)
    assert rows["live"]["seconds"] == pytest.approx(3600 * found["hours"])
    assert rows["shared"]["seconds"] < rows["live"]["seconds"]
    assert main(words) == 0
    assert "offload" in capsys.readouterr().out
