"""LightHuBERT: the checks of its card, the network against transformers' own, slices, masks, search."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom._compat import package
from stillroom.arenas import spoken
from stillroom.errors import Refused
from stillroom.models.hubert import Hubert, Shape, Subnets, like
from stillroom.parts import elastic, views
from stillroom.parts.mel import filterbank, log_mel
from stillroom.parts.taps import Tap
from stillroom.recipes.audio.lighthubert import LightHuBERT, error, target

CONVS = ((8, 10, 5), (8, 4, 4))
SMALL: Shape = {"dim": 8, "heads": [1, 2], "hidden": [20, 12]}


def net(seed=0, **named) -> Hubert:
    torch.manual_seed(seed)
    return Hubert(**{"dim": 16, "heads": [2, 3], "hidden": [24, 32], "each": 4, "convs": CONVS, "kernel": 4, "groups": 2,
                     "drop": 0.0, **named})


def waves(n=4, samples=200):
    return torch.randn(n, samples, generator=torch.Generator().manual_seed(7))


def clips(n=8):
    return TensorDataset(waves(n), torch.full((n,), -100))


def theirs(**named):
    transformers = package("transformers")
    torch.manual_seed(1)
    return transformers.HubertModel(transformers.HubertConfig(**{
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, "conv_dim": (8, 8),
        "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        **named})).eval()


# --- the network -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", ["group", "layer"])
def test_it_computes_what_transformers_computes_in_every_block(norm):
    model = theirs(feat_extract_norm=norm, conv_bias=norm == "layer", num_conv_pos_embeddings=5)
    ours, x = like(model).eval(), waves()
    with torch.no_grad():
        for a, b in zip(ours.states(x), model(x, output_hidden_states=True).hidden_states, strict=True):
            torch.testing.assert_close(a, b)


def test_what_the_network_does_not_know_of_transformers_is_refused():
    with pytest.raises(Refused, match="do_stable_layer_norm"):
        like(theirs(do_stable_layer_norm=True, feat_extract_norm="layer"))


def test_the_default_is_hubert_base_with_fifty_frames_a_second():
    with torch.device("meta"):
        base = Hubert()
    assert base.count(base.shape) == sum(p.numel() for p in base.parameters()) == 94_371_712       # transformers' HubertModel
    assert base.frames(400) == 1 and base.frames(400 + 320 * 49) == 50
    assert len(Subnets(base, (512, 640, 768), (8, 10, 12), (3.5, 4.0), (12,))) == 3 * 6**12 > 10**9


# --- slices ----------------------------------------------------------------------------------------------------------

def test_a_slice_of_each_layer_is_the_slice_of_its_weights():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    layer = elastic.Linear(8, 10)
    torch.testing.assert_close(layer(x, 4), x @ layer.weight[:4, :6].T + layer.bias[:4])
    norm = elastic.LayerNorm(8)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), z * norm.weight[:6] + norm.bias[:6])
    conv = elastic.Conv1d(8, 12, 3, padding=1, groups=2)
    by_group = [F.conv1d(part, w[:, :3], padding=1) for part, w in zip(x.mT.split(3, 1), conv.weight[:6].split(3), strict=True)]
    torch.testing.assert_close(conv(x.mT, 6), torch.cat(by_group, 1) + conv.bias[:6, None])


def test_fewer_heads_keep_the_scale_of_one_head():
    torch.manual_seed(0)
    layer, x = elastic.Attention(6, 3, each=4), torch.randn(1, 5, 6)
    q, k, v = (F.linear(x, p.weight[:4], p.bias[:4]) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    seen = (q @ k.mT / math.sqrt(4)).softmax(-1) @ v
    torch.testing.assert_close(layer(x, 1), F.linear(seen, layer.out_proj.weight[:, :4], layer.out_proj.bias))


def test_the_whole_shape_is_the_network_bit_for_bit():
    ours, x = net().eval(), waves()
    assert torch.equal(ours(x), ours(x, ours.shape))


@pytest.mark.parametrize("shape", [SMALL, {"dim": 16, "heads": [1], "hidden": [24]},
                                   {"dim": 4, "heads": [2, 1], "hidden": [1, 32]}])
def test_a_slice_cut_out_says_what_it_said_inside_and_has_the_parameters_counted(shape):
    ours, x = net(norm="layer", bias=True).eval(), waves()
    alone, masked = ours.cut(shape).eval(), torch.rand(4, 9) < 0.5
    torch.testing.assert_close(alone(x, masked=masked), ours(x, shape, masked), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in alone.parameters()) == ours.count(shape) == Subnets(ours, (4,), (1,), (1.0,), (1,)).cost(shape)


def test_gradients_outside_of_a_slice_are_zero():
    ours = net()
    ours(waves(), SMALL).square().sum().backward()
    block = ours.encoder.layers[0]
    assert not block.attention.q_proj.weight.grad[4:].any() and not block.attention.q_proj.weight.grad[:, 8:].any()
    assert block.attention.q_proj.weight.grad[:4, :8].all()
    assert not block.feed_forward.intermediate_dense.weight.grad[20:].any() and not block.layer_norm.weight.grad[8:].any()
    assert not ours.feature_projection.projection.weight.grad[8:].any()


def test_what_does_not_fit_into_the_network_is_refused():
    with pytest.raises(Refused, match="do not fit"):
        Subnets(net(), (16,), (3,), (1.0,), (2,))
    with pytest.raises(Refused, match="has no slices"):
        LightHuBERT()(Run(), student=torch.nn.Linear(2, 2), teacher=net(), data=clips())


def test_a_mutation_stays_in_the_space_and_differs():
    space, seen = Subnets(net(heads=[3, 3, 3], hidden=[32] * 3), (8, 16), (1, 2), (1.0, 2.0), (1, 2, 3)), set()
    shape = space.random()
    for _ in range(200):
        shape = space.mutate(shape)
        assert shape["dim"] in (8, 16) and 1 <= len(shape["heads"]) == len(shape["hidden"]) <= 3 and set(shape["heads"]) <= {1, 2}
        assert {f / shape["dim"] for f in shape["hidden"]} <= {1.0, 2.0}
        seen.add(str(shape))
    assert len(seen) > 50


# --- the method ------------------------------------------------------------------------------------------------------

def test_spans_have_their_length_and_every_clip_is_masked_as_often():
    torch.manual_seed(0)
    assert views.spans(3, 40, 0.25, 10).sum(1).tolist() == [10] * 3                # one span each
    masked = views.spans(500, 50, 0.65, 10).float()
    longest = max(len(run) for row in masked.int().tolist() for run in "".join(map(str, row)).split("0"))
    assert longest >= 10 and masked.sum(1).min() >= 10
    # a frame in the middle is free of three or four spans among 41 begins with probability C(31, k) / C(41, k)
    free = sum((p * math.comb(31, k) / math.comb(41, k) for k, p in ((3, 0.75), (4, 0.25))))
    assert abs(1 - masked[:, 10:40].mean().item() - free) < 0.06
    assert views.spans(2, 4, 0.65, 10).all()


def test_the_target_is_the_mean_of_normalised_blocks_of_either_kind_of_teacher():
    model, x = theirs(), waves()
    with torch.no_grad():
        states = [s.double() for s in model(x, output_hidden_states=True).hidden_states[-2:]]
        naive = sum((s - s.mean(-1, keepdim=True)) / (s.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() for s in states) / 2
        for teacher in (model, like(model).eval()):
            torch.testing.assert_close(target(Tap(teacher, "encoder.layers.1", "encoder.layers.2"), x).double(), naive,
                                       atol=1e-4, rtol=1e-4)


def test_only_masked_frames_are_compared():
    torch.manual_seed(0)
    said, seen, masked = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2, 5) < 0.5
    naive = sum(((said[b, t] - seen[b, t]) ** 2).sum() for b in range(2) for t in range(5) if masked[b, t]) / (masked.sum() * 3)
    torch.testing.assert_close(error(said, seen, masked), naive)


# --- clips of different lengths --------------------------------------------------------------------------------------

LENGTHS = torch.tensor([137, 200, 61, 160])


def filled():
    """Clips of LENGTHS, zeros after them, and where there is sound."""
    there = torch.arange(200) < LENGTHS[:, None]
    return waves().double() * there, there.long()


def test_a_clip_filled_with_zeros_says_in_its_frames_what_it_says_alone():
    for norm in ("group", "layer"):
        ours, (x, there) = net(norm=norm, bias=norm == "layer").double().eval(), filled()
        masked = views.spans(4, ours.frames(LENGTHS), 0.5, 2)
        said = ours(x, SMALL, masked, attention_mask=there)
        for n, (long, frames) in enumerate(zip(LENGTHS.tolist(), ours.frames(LENGTHS).tolist(), strict=True)):
            assert frames == ours.frames(long)
            alone = ours(x[n : n + 1, :long], SMALL, masked[n : n + 1, :frames])
            torch.testing.assert_close(said[n, :frames], alone[0], atol=1e-12, rtol=1e-12)
        assert not torch.allclose(said[0, :6], ours(x, SMALL, masked)[0, :6])               # without the mask it is heard


def test_transformers_hears_filled_clips_as_we_do_where_it_norms_each_frame():
    model = theirs(feat_extract_norm="layer", conv_bias=True).double()
    ours, (x, there) = like(model).double().eval(), filled()
    with torch.no_grad():
        pairs = zip(ours.states(x, attention_mask=there), model(x, there, output_hidden_states=True).hidden_states, strict=True)
    for a, b in pairs:
        for n, frames in enumerate(ours.frames(LENGTHS).tolist()):
            torch.testing.assert_close(a[n, :frames], b[n, :frames])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_filled_clip_has_the_loss_and_the_gradients_of_the_clip_alone(norm):
    """In a batch beside others none of whose frames is masked."""
    x, there = filled()
    found = []
    for alone in (False, True):
        student = net(norm=norm, bias=norm == "layer").double()
        tap = Tap(net(1, norm=norm, bias=norm == "layer").double().eval(), "encoder.layers.0", "encoder.layers.1")
        masked = torch.zeros(4, 9, dtype=torch.bool)
        masked[0, [0, 1, 4]] = True
        if alone:
            seen = target(tap, x[:1, :137])
            loss = error(student(x[:1, :137], None, masked[:1, : student.frames(137)]), seen, masked[:1, : student.frames(137)])
        else:
            loss = error(student(x, None, masked, attention_mask=there), target(tap, x, attention_mask=there), masked)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in student.named_parameters()}))
    (one, grads), (other, wanted) = found
    torch.testing.assert_close(one, other, atol=0, rtol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], atol=1e-12, rtol=1e-9)


def test_masks_and_batches_end_where_the_clips_end():
    frames = torch.tensor([5, 9, 2, 7])
    masked = views.spans(4, frames, 0.6, 2)
    assert masked.shape == (4, 9) and masked.any(1).all() and not (masked & (torch.arange(9) >= frames[:, None])).any()
    x, there = views.heard(waves(), None, LENGTHS - 40)
    assert x.shape == there["attention_mask"].shape == (4, 160) and there["attention_mask"].sum(1).tolist() == [97, 160, 21, 120]
    assert views.heard(waves(), None)[1] == {}


def test_the_method_learns_of_a_filled_clip_what_it_learns_of_the_clip_alone():
    (x, _), none, was = filled(), torch.tensor([-100]), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        one, other = (small(batch=1, steps_search=2, probe=1)(Run(), student=net(), teacher=net(1), data=TensorDataset(*tensors))
                      for tensors in ((x[:1, :137], none), (x[:1], none, LENGTHS[:1])))
    finally:
        torch.set_default_dtype(was)
    assert one.shape == other.shape and not torch.equal(one.encoder.layer_norm.bias, torch.zeros(one.dim).double())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_clips_of_all_lengths_learn_together_and_one_without_a_frame_is_refused():
    x, _ = filled()
    data = TensorDataset(x.float(), torch.full((4,), -100), LENGTHS)
    run = Run()
    small()(run, student=net(), teacher=theirs(feat_extract_norm="layer", conv_bias=True), data=data)
    assert all(math.isfinite(line["masked"]) for line in run.history)
    with pytest.raises(Refused, match="too short to have a frame"):
        small()(Run(), student=net(), teacher=net(1), data=TensorDataset(x.float(), data.tensors[1], LENGTHS - 40))


# --- the whole method ------------------------------------------------------------------------------------------------

def small(**named):
    return LightHuBERT(**{"dims": (8, 16), "heads": (1, 2), "ratios": (1.0, 1.5), "depths": (1, 2), "layers": 2, "span": 3,
                          "batch": 4, "steps_whole": 2, "steps": 2, "lr": 1e-2, "probe": 4, **named})


def test_a_teacher_of_transformers_teaches_and_stays_as_it_was():
    model = theirs()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    student = net()
    start = student.encoder.layers[0].attention.q_proj.weight.clone()
    small()(Run(), student=student, teacher=model, data=clips())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(student.encoder.layers[0].attention.q_proj.weight, start)


def test_a_teacher_of_other_strides_is_refused():
    with pytest.raises(Refused, match="the teacher gives 9 frames of a clip, the student 19"):
        small()(Run(), student=net(convs=((8, 10, 5), (8, 2, 2))), teacher=net(), data=clips())


def test_the_search_gives_the_best_slice_within_the_budget_and_goes_on_after_a_stop(tmp_path):
    budget = net().count({"dim": 8, "heads": [2, 2], "hidden": [12, 12]})
    method = small(steps_search=6, budget=budget, population=3, tournament=2)
    run = Run()
    found = method(run, student=net(), teacher=net(1), data=clips())
    scored = run._things["scored"]
    best = max(scored, key=lambda one: one[0])
    assert len(scored) == 6 and found.shape == best[1] and found.count(found.shape) <= method.budget
    assert all(net().count(shape) <= method.budget for _, shape in scored)

    class Stop(Exception):
        pass

    class Stopped(Run):
        def log(self, **scalars):
            super().log(**scalars)
            if self.step == 3:
                raise Stop

    with pytest.raises(Stop):
        method(Stopped(tmp_path, save_every=-1.0), student=net(), teacher=net(1), data=clips())
    again = method(Run(tmp_path, resume=True), student=net(), teacher=net(1), data=clips())
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), again.state_dict().values(), strict=True))


# --- the ground ------------------------------------------------------------------------------------------------------

def test_the_filterbank_is_triangles_of_area_one_on_the_mel_scale():
    bank = filterbank(257, 20, 8000).double()

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    marks = [700 * (10 ** (mel(4000) * k / 21 / 2595) - 1) for k in range(22)]
    for m in (0, 7, 19):
        a, b, c = marks[m : m + 3]
        naive = [max(0.0, min((f - a) / (b - a), (c - f) / (c - b))) * 2 / (c - a) for f in (4000 * k / 256 for k in range(257))]
        torch.testing.assert_close(bank[m], torch.tensor(naive, dtype=torch.float64), atol=1e-8, rtol=1e-5)
    assert torch.allclose(bank[5:].sum(1) * 4000 / 256, torch.ones(15, dtype=torch.float64), atol=0.05)


def test_a_tone_is_loudest_in_its_own_band():
    x = torch.sin(2 * math.pi * 1000 * torch.arange(4000) / 8000)[None]
    bank, mel = filterbank(257, 40, 8000), log_mel(x, 8000, 512, 128, 40)
    assert mel.shape == (1, 40, 4000 // 128)
    assert (mel[0, :, 5:-5].argmax(0) == bank[:, 1000 // (8000 // 512)].argmax()).all() or \
        (mel[0, :, 5:-5].mean(1).argmax() - bank[:, 64].argmax()).abs() <= 1


def test_where_no_recordings_lie_voices_are_drawn_by_a_formula(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    spoken.clips.cache_clear()
    ground = spoken.clips()
    assert not ground.real and len(ground.train) == 600 and len(ground.test) == len(ground.valid) == 300
    assert set(ground.test.tensors[1].tolist()) == set(range(10)) and ground.train.tensors[0].isfinite().all()
    mel = [log_mel(part.tensors[0], spoken.RATE, 512, 128, 40).mean(2) for part in (ground.train, ground.test)]
    assert spoken.few_labels((mel[0], ground.train.tensors[1]), (mel[1], ground.test.tensors[1]), 0) > 60
    spoken.clips.cache_clear()
