"""The stability gap: judges against traces by hand, the reservoir, the loss of each way, evaluation that disturbs nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import report, saved
from stillroom.arenas.rotated import rotated, turned
from stillroom.batches import batches
from stillroom.errors import Refused
from stillroom.measure import continual
from stillroom.models.small import mlp
from stillroom.parts.memory import Memory
from stillroom.recipes.continual.stability_gap import StabilityGap
from stillroom.run import Run


@pytest.fixture
def ground():
    torch.manual_seed(0)
    tasks = [TensorDataset(torch.rand(24, 1, 8, 8), torch.randint(2 * k, 2 * k + 2, (24,))) for k in range(3)]
    return {"student": mlp(hidden=12, classes=6), "tasks": tasks, "exams": tasks}


def play(ground, run=None, **fields):
    return StabilityGap(**{"batch": 8, "steps": 6, "memory": 20, "lr": 0.1, **fields})(run or Run(), **copy.deepcopy(ground))


def exact(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# --- judges -----------------------------------------------------------------------------------------------------------------

def test_judges_of_a_trace_by_hand():
    """Task 1: .5, .9, then .2, .6, .8 while task 2 is learnt: .1, .7, .9. (Task 1 began with a moment like its second.)"""
    trace = torch.tensor([[[50.0, 0], [50, 0], [90, 0]], [[20, 10], [60, 70], [80, 90]]])
    assert continual.final(trace) == pytest.approx(85)
    assert continual.forgetting(trace) == pytest.approx(10)
    assert continual.lowest(trace) == pytest.approx(20)
    assert continual.worst_case(trace) == pytest.approx(55)
    assert continual.gap(trace) == pytest.approx(60)
    assert continual.windowed_forgetting(trace, 10) == pytest.approx(70)                   # .9 → .2
    assert continual.windowed_plasticity(trace, 10) == pytest.approx((60 + 80) / 2)        # .2 → .8, and .1 → .9
    assert continual.first_moments(trace, 2) == pytest.approx((50 + 40) / 2)


def test_judges_written_out():
    torch.manual_seed(0)
    trace = 100 * torch.rand(3, 7, 3, dtype=torch.float64)
    for width in (2, 4, 10, 30):
        falls, rises = [], []
        for i in range(3):
            whole = [trace[k, m, i].item() for k in range(i, 3) for m in range(7)]
            since = whole[6:]                                                              # from the own end on
            pairs = [(a, b) for a in range(len(since)) for b in range(a + 1, len(since)) if b - a < width]
            falls += [max(since[a] - since[b] for a, b in pairs)] if i < 2 else []
            rises.append(max(whole[b] - whole[a] for a in range(len(whole)) for b in range(a + 1, len(whole)) if b - a < width))
        assert continual.windowed_forgetting(trace, width) == pytest.approx(sum(falls) / 2)
        assert continual.windowed_plasticity(trace, width) == pytest.approx(sum(rises) / 3)
    lows = [min(trace[1:, :, 0].flatten().tolist()), min(trace[2, :, 1].tolist())]
    assert continual.lowest(trace) == pytest.approx(sum(lows) / 2)
    assert continual.worst_case(trace) == pytest.approx(trace[2, 6, 2].item() / 3 + (1 - 1 / 3) * sum(lows) / 2)


def test_what_only_falls_has_no_gap_and_a_wider_window_never_shows_less():
    falling = torch.linspace(90, 40, 20).view(2, 10, 1).expand(2, 10, 2)
    assert continual.gap(falling) == 0 and continual.lowest(falling) == pytest.approx(40)
    assert continual.windowed_plasticity(falling) == 0
    trace = 100 * torch.rand(2, 50, 2)
    for judge in (continual.windowed_forgetting, continual.windowed_plasticity):
        found = [judge(trace, width) for width in range(2, 60)]
        assert found == sorted(found)


# --- memory -----------------------------------------------------------------------------------------------------------------

def test_every_sample_of_a_stream_is_remembered_alike_often():
    torch.manual_seed(0)
    size, stream, times = 10, 40, 3000
    count = torch.zeros(stream)
    for _ in range(times):
        memory = Memory(size, x=torch.zeros(1, dtype=torch.long))
        for part in torch.arange(stream).split(7):
            memory.add(x=part)
        count[memory.held.x] += 1
        assert len(set(memory.held.x.tolist())) == size == len(memory)
    expected = times * size / stream
    chi = ((count - expected).square() / (expected * (1 - size / stream))).sum().item()
    assert chi < 72.1                                   # χ² of 39 degrees of freedom, 0.1 %


def test_the_memory_fills_in_order_and_draws_none_twice():
    memory = Memory(6, x=torch.zeros(1, 2), y=torch.zeros(1, dtype=torch.long))
    assert [len(t) for t in memory.draw(3)] == [0, 0]
    memory.add(x=torch.ones(4, 2, requires_grad=True) * torch.arange(4)[:, None], y=torch.arange(4))
    assert len(memory) == 4 and memory.held.y.tolist() == [0, 1, 2, 3, 0, 0] and not memory.held.x.requires_grad
    x, y = memory.draw(3)
    assert len(set(y.tolist())) == 3 and torch.equal(x[:, 0], y.float())
    assert sorted(memory.draw(99)[1].tolist()) == [0, 1, 2, 3]
    assert sorted(memory.draw(99, among=memory.held.y < 2)[1].tolist()) == [0, 1]       # the empty places are not drawn
    with pytest.raises(Refused, match="0 samples"):
        Memory(0, x=x)


# --- the recipe -------------------------------------------------------------------------------------------------------------

def test_the_loss_of_replay_and_past_student_written_out(ground):
    """The first step of the second task, all of the first task remembered and drawn."""
    ground = {who: things if who == "student" else things[:2] for who, things in ground.items()}
    fields = {"memory": 50, "batch": 24, "new": 0.3, "soft": 1.5, "lr": 0.05}
    seen = {}

    class Stops(Run):
        def update(self, opt, **terms):
            if self.step == 0 and "replay" in terms:
                seen.update({k: v.item() for k, v in terms.items()}, student=copy.deepcopy(self._things["student"]))
                seen["past"] = copy.deepcopy(self._things["past1"].model)
            return super().update(opt, **terms)

    play(ground, Stops(), **fields, steps=3)
    net = seen["student"].double()
    assert torch.equal(exact(seen["student"]), exact(seen["past"]).double())
    (x, y), = batches(ground["tasks"][1], 24, start=0, count=1, seed=(0, "task1"))
    log_p = net(x.double()).log_softmax(-1)
    assert seen["new"] == pytest.approx(-0.3 * log_p[range(24), y].mean().item(), rel=1e-5)
    x_then, y_then = ground["tasks"][0].tensors
    assert seen["replay"] == pytest.approx(-0.7 * net(x_then.double()).log_softmax(-1)[range(24), y_then].mean().item(), rel=1e-5)
    old = (net(x.double())[:, :2] / 2).softmax(-1)                           # equal to the past: the entropy
    assert seen["soft"] == pytest.approx(-1.5 * (old * old.log()).sum(-1).mean().item(), rel=1e-5)


def test_a_past_student_that_is_the_student_pulls_nowhere(ground):
    """At the first step of a task; the labels pull."""
    trained = play({**ground, "tasks": ground["tasks"][:2], "exams": ground["exams"][:2]}, new=1.0, steps=1)[0]

    class Watched(Run):
        def update(self, opt, **terms):
            if "soft" in terms and self.step == 0:
                grads = torch.autograd.grad(terms["soft"], opt.params, retain_graph=True)
                assert all(g.abs().max() < 1e-6 for g in grads)
                grads = torch.autograd.grad(terms["new"], opt.params, retain_graph=True)
                assert any(g.abs().max() > 1e-3 for g in grads)
                self.log(checked=1)
            return super().update(opt, **terms)

    run = Watched()
    play({**ground, "student": trained}, run, soft=1.0)
    assert sum("checked" in line for line in run.history) == 2


def test_evaluation_changes_neither_weights_nor_draws_nor_batch_statistics(ground):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 6))
    one, often = (play({**ground, "student": net}, period=period) for period in (6, 1))
    assert all(torch.equal(a, b) for a, b in zip(one[0].state_dict().values(), often[0].state_dict().values(), strict=True))
    assert one[1].shape == (3, 1, 3) and often[1].shape == (3, 6, 3) and torch.equal(one[1][:, -1], often[1][:, -1])
    x, y = ground["exams"][1].tensors
    right = 100 * (often[0](x).argmax(-1) == y).float().mean()
    assert often[1][-1, -1, 1] == pytest.approx(right.item())


def test_the_exam_is_the_same_samples_each_time_and_the_last_moment_is_always_seen(ground):
    made, trace = play(ground, exam=5, period=4)
    assert trace.shape == (3, 2, 3)                     # after updates 4 and 6 of each task
    x, y = ground["exams"][2][:5]
    assert trace[-1, -1, 2] == pytest.approx(100 * (made(x).argmax(-1) == y).float().mean().item())


@pytest.mark.parametrize("stop", [(0, 3), (1, 0), (1, 4), (2, 0), (2, 5)])
def test_a_stop_with_a_past_student_changes_nothing(ground, stop, tmp_path):
    class Stops(Run):
        def loop(self, *given, **named):
            for content in super().loop(*given, **named):
                if (int(named["name"][4:]), self.step) == stop:
                    raise KeyboardInterrupt
                yield content

    whole = play(ground, soft=1.0)
    with pytest.raises(KeyboardInterrupt):
        play(ground, Stops(tmp_path, save_every=-1.0), soft=1.0)
    again = play(ground, Run(tmp_path, resume=True), soft=1.0)
    assert torch.equal(exact(whole[0]), exact(again[0])) and torch.equal(whole[1], again[1])


def test_the_exams_are_in_the_log_and_a_run_has_its_page(ground, tmp_path):
    run = Run(tmp_path)
    made = play(ground, run)
    assert [line["exam1"] for line in run.history] == pytest.approx(made[1][..., 1].flatten().tolist())
    saved.save(made, tmp_path)
    assert "exam1" in report.page(tmp_path).read_text()


def test_a_task_without_an_exam_is_refused(ground):
    with pytest.raises(Refused, match="3 tasks and 2 exams"):
        play({**ground, "exams": ground["exams"][:2]})


def test_a_right_angle_is_a_right_angle():
    x = torch.rand(2, 1, 8, 8)
    data = TensorDataset(x, torch.arange(2))
    assert torch.allclose(turned(data, 0.0).tensors[0], x, atol=1e-5)
    assert torch.allclose(turned(data, 90.0).tensors[0], torch.rot90(x, 1, (2, 3)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [10, 11])
def test_the_gap_opens_within_thirty_updates_and_grows_with_the_angle(seed):
    cast = rotated(seed)
    small, middle, large = (cast.other(angle=angle)[1] for angle in (15.0, 45.0, 90.0))
    assert large[1, :, 0].argmin() < 30
    assert continual.gap(small) < continual.gap(middle) < continual.gap(large) - 1.5
    assert continual.forgetting(large) < continual.gap(large)            # what evaluation at the ends sees is the smaller part
