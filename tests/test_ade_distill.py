"""ADE-Distill: answers found again in the text, a linear layer that hears a name, F1 of spans, and noise that averages out."""

import json
import re
from zlib import crc32

import pytest
import torch
from serving import LanguageServer, save_model
from torch import nn

from stillroom import _compat, cli
from stillroom.arenas.manual import entries, passages, plain, split, value
from stillroom.errors import Refused
from stillroom.measure.spans import span_f1
from stillroom.models.readers import Extractor, Pretrained, Reader, anchors, marked
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.oracle import Oracle
from stillroom.parts.spans import Passage, covered, listed, mentions, parse, prompt, runs, words
from stillroom.recipes.language.ade_distill import ADEDistill, token_loss
from stillroom.run import Run

TEXT = "Severe rash (a rash!) followed naproxen; with\n oxaprozin 1.5 mg there was no Rash, but nausea."


# --- strings in texts ------------------------------------------------------------------------------------------------

def test_words_are_cut_where_the_eye_would_cut():
    text = "tol=1e-4. Default: 'min-max' (1.5)"
    assert [text[a:b] for a, b in words(text)] == ["tol", "=", "1e-4", ".", "Default", ":", "'", "min-max", "'", "(", "1.5", ")"]


def test_every_mention_is_found_whole_and_whatever_its_case():
    assert [TEXT[a:b] for a, b in mentions(TEXT, "rash")] == ["rash", "rash", "Rash"]
    assert [TEXT[a:b] for a, b in mentions(TEXT, "with oxaprozin")] == ["with\n oxaprozin"]
    assert mentions(TEXT, "ash") == mentions(TEXT, "vomiting") == mentions(TEXT, "") == mentions(TEXT, " ") == []
    assert mentions("a (0, 1) b", "(0, 1)") == [(2, 8)] and mentions("x-1", "1") == [(2, 3)]


def test_a_string_goes_to_tokens_and_comes_back():
    spans = words(TEXT)
    for wanted in ("Severe rash", "oxaprozin 1.5 mg", "nausea", "naproxen; with\n oxaprozin"):
        places = mentions(TEXT, wanted)
        chosen = set(covered(spans, places))
        back = [TEXT[a:b] for a, b in runs([n in chosen for n in range(len(spans))], spans)]
        assert back == [wanted]
    both = [n in covered(spans, mentions(TEXT, "rash")) for n in range(len(spans))]
    assert [TEXT[a:b] for a, b in runs(both, spans)] == ["rash", "rash", "Rash"]
    assert runs([True, True], [(0, 0), (0, 3)]) == [(0, 3)]               # a special token stands nowhere


def test_an_answer_is_read_and_what_was_made_up_falls_out():
    passage = Passage(TEXT, ("naproxen", "oxaprozin"))
    said = {"naproxen": ["Severe rash", "rash"], "oxaprozin": []}
    assert parse(listed(said), passage) == said
    loose = ('Sure! Here it is:\n* **Naproxen**: ["rash", "fever", "rash", 3]\n- "oxaprozin" : [nausea, "headache"]\n'
             '- aspirin: ["rash"]\nDone.')
    assert parse(loose, passage) == {"naproxen": ["rash"], "oxaprozin": ["nausea"]}
    assert parse("I cannot help with that.", passage) == {"naproxen": [], "oxaprozin": []}


def test_the_prompt_holds_task_form_examples_and_passage():
    shown = [(Passage("A  caused\nB.", ("A",)), {"A": ["B"]})]
    text = prompt("What?", Passage(TEXT, ("naproxen", "oxaprozin")), shown)
    assert text.startswith("What?\nAnswer with one line")
    assert 'Passage: A caused B.\nNames: A\n- A: ["B"]\n\nPassage: Severe' in text
    assert text.endswith(" ".join(TEXT.split()) + "\nNames: naproxen, oxaprozin")


# --- the layer -------------------------------------------------------------------------------------------------------

class Counted(Reader):
    def forward(self, ids):
        self.times = getattr(self, "times", 0) + 1
        return super().forward(ids)


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    return Extractor(Counted(dim=8, layers=2, length=24))


def test_logits_are_those_of_the_concatenation(extractor):
    net = extractor.double()
    passages = [Passage(TEXT, ("naproxen", "oxaprozin", "rash")), Passage("naproxen helps", ("naproxen",))]
    ids, spans = net.encoder.read([p.text for p in passages])
    firsts, names = anchors(passages, spans)
    assert names == [["naproxen", "oxaprozin", "rash", "rash", "rash"], ["naproxen"]]
    assert firsts[1].tolist() == [0, -1, -1, -1, -1]
    got = net(ids, firsts)
    assert net.encoder.times == 1                                         # one pass for all names
    h = net.encoder(ids)
    for n, row in enumerate(firsts.tolist()):
        for m, s in enumerate(row):
            if s >= 0:
                for t in range(24):
                    wanted = nn.functional.linear(torch.cat([h[n, t], h[n, s]]), net.head.weight, net.head.bias)
                    assert torch.allclose(got[n, m, t], wanted[0], atol=1e-12)
    assert (got[0, 0] - got[0, 1]).abs().min() > 1e-6                     # the name is heard


def test_the_gradient_is_p_minus_y_times_u_on_a_passage_of_one_token(extractor):
    net = extractor.double()
    ids, firsts, parts = marked(net.encoder, [Passage("naproxen", ("naproxen",))], [{"naproxen": []}])
    assert (parts != UNLABELLED).sum() == 1
    for y in (0, 1):
        parts[0, 0, 0] = y
        net.zero_grad()
        logits = net(ids, firsts)
        token_loss(logits, parts).backward()
        h = net.encoder(ids)[0, 0].detach()
        wanted = (logits[0, 0, 0].sigmoid().detach() - y) * torch.cat([h, h])
        assert torch.allclose(net.head.weight.grad[0], wanted, atol=1e-12)


def test_the_loss_is_the_mean_over_tokens_of_names_positive_and_negative(extractor):
    passages = [Passage(TEXT, ("naproxen", "oxaprozin")), Passage("no drug but naproxen here", ("naproxen",))]
    ids, firsts, parts = marked(extractor.encoder, passages, [{"naproxen": ["rash"], "oxaprozin": ["nausea"]}, {"naproxen": []}])
    assert [parts[0, m].eq(1).sum().item() for m in range(2)] == [3, 1]   # every rash, not only the first
    assert parts[1, 0].eq(0).sum() == 5 and parts[1, 1].eq(UNLABELLED).all()         # a name without an answer counts
    logits = extractor(ids, firsts)
    total, count = 0.0, 0
    for z, y in zip(logits.double().flatten().tolist(), parts.flatten().tolist()):
        if y != UNLABELLED:
            p = 1 / (1 + torch.tensor(-z).double().exp())
            total, count = total - float((p if y else 1 - p).log()), count + 1
    assert token_loss(logits, parts).item() == pytest.approx(total / count, abs=1e-6) and count == 2 * len(words(TEXT)) + 5


def test_what_is_extracted_stands_in_the_text_and_padding_changes_nothing(extractor):
    passages = [Passage(TEXT, ("naproxen", "oxaprozin")), Passage("naproxen and a rash", ("naproxen", "aspirin"))]
    with torch.no_grad():
        extractor.head.bias += 0.3
    found = extractor.extract(passages)
    assert found == extractor.extract(passages, batch=1) and found[1]["aspirin"] == []
    assert all(s in p.text for p, own in zip(passages, found) for strings in own.values() for s in strings)
    ids, _ = extractor.encoder.read([TEXT])
    far = torch.cat([ids, torch.zeros(1, 8, ids.shape[2], dtype=torch.long)], 1)
    assert torch.allclose(extractor.encoder(far)[:, :24], extractor.encoder(ids), atol=1e-6)
    assert extractor.extract([Passage("x " * 40 + "naproxen", ("naproxen",))]) == [{"naproxen": []}]      # beyond the length


@pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
def test_an_encoder_of_transformers_reads_with_its_own_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    transformers = _compat.package("transformers")
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator([TEXT], trainers.WordPieceTrainer(
        vocab_size=80, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                         sep_token="[SEP]").save_pretrained(tmp_path)
    shape = transformers.BertConfig(vocab_size=pieces.get_vocab_size(), hidden_size=16, num_hidden_layers=1,
                                    num_attention_heads=2, intermediate_size=32)
    torch.manual_seed(0)
    transformers.BertModel(shape).save_pretrained(tmp_path)
    reader = Pretrained(tmp_path, length=64)
    passage = Passage(TEXT, ("naproxen", "oxaprozin"))
    ids, firsts, parts = marked(reader, [passage], [{"naproxen": ["Severe rash"], "oxaprozin": ["nausea"]}])
    _, spans = reader.read([TEXT])
    for m, wanted in enumerate(("Severe rash", "nausea")):
        assert [TEXT[a:b] for a, b in runs(parts[0, m].eq(1).tolist(), spans[0])] == [wanted]
    special = [n for n, (a, b) in enumerate(spans[0]) if a == b]
    assert len(special) > 2 and (parts[0, :, special] == UNLABELLED).all()
    net = Extractor(reader)
    assert net(ids, firsts).shape == (1, 2, 64) and set(net.extract([passage])[0]) == {"naproxen", "oxaprozin"}


# --- F1 --------------------------------------------------------------------------------------------------------------

def test_f1_strict_and_lenient():
    gold = [{"d": ["rash"]}, {"d": []}]
    assert span_f1([{"d": ["severe rash"]}, {"d": []}], gold, lenient=True) == 100
    assert span_f1([{"d": ["severe rash"]}, {"d": []}], gold) == 0
    assert span_f1([{"d": ["Rash"]}, {"d": []}], gold) == 100
    assert span_f1([{"e": ["rash"]}, {}], gold, lenient=True) == 0        # of another name
    assert span_f1([{}], [{}]) == 100 and span_f1([{"d": ["x"]}], [{}]) == 0 and span_f1([{}], [{"d": ["x"]}]) == 0
    found, true = [{"a": ["x", "y z", "q"], "b": ["k"]}], [{"a": ["x", "z", "m", "n"], "b": []}]
    assert span_f1(found, true) == pytest.approx(100 * 2 * (1 / 4) * (1 / 4) / (1 / 2))
    assert span_f1(found, true, lenient=True) == pytest.approx(100 * 2 * (2 / 4) * (2 / 4) / 1)


# --- the whole -------------------------------------------------------------------------------------------------------

def test_each_passage_is_asked_once_in_groups_and_no_label_is_read():
    asked = []

    def teacher(text):
        asked.append(text)
        return '- naproxen: ["rash"]'

    class NoLabels(list):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], UNLABELLED

    data = NoLabels((Passage(f"naproxen {n} and rash", ("naproxen",)), {"naproxen": ["gold"]}) for n in range(10))
    examples = [(Passage("shown", ("shown",)), {"shown": []})]
    torch.manual_seed(0)
    made = ADEDistill(group=4, steps=30, lr=0.01)(Run(), student=Reader(dim=16, layers=2, length=8), teacher=Oracle(teacher),
                                                 data=data, examples=examples)
    assert len(asked) == 10 and all("Passage: shown\nNames: shown" in text for text in asked)
    assert made.extract([data[3][0]]) == [{"naproxen": ["rash"]}]
    with pytest.raises(Refused, match="needs 'teacher'"):
        ADEDistill()(Run(), student=Reader(), data=data)


def test_noise_averages_out_and_a_habit_does_not():
    """The card's check: a teacher that is wrong now and then is surpassed, one that is always wrong about the same is not."""
    draw = torch.Generator().manual_seed(0)
    drugs, effects = ["naproxen", "aspirin", "lithium", "codeine"], ["rash", "nausea", "tremor", "fever"]
    other = ["milk", "water", "bread"]

    def pick(some):
        return some[int(torch.randint(len(some), (), generator=draw))]

    def sample(n):
        drug, effect, plain = pick(drugs), pick(effects), pick(other)
        return Passage(f"in {n} {drug} with {plain} was followed by {effect} that day", (drug,)), {drug: [effect]}, plain

    world = [sample(n) for n in range(560)]
    truth = {p.text: (p, gold, plain) for p, gold, plain in world}

    def careless(text):                                                   # three in ten answers are another word
        p, gold, plain = truth[text]
        wrong = crc32(text.encode()) % 10 < 3
        return {p.names[0]: [plain]} if wrong else gold

    def stubborn(text):                                                   # a fever is never seen
        p, gold, _ = truth[text]
        return {p.names[0]: [s for s in gold[p.names[0]] if s != "fever"]}

    test = world[:60]
    for teach, better in ((careless, True), (stubborn, False)):
        oracle = Oracle(lambda text, teach=teach: listed(teach(re.findall(r"^Passage: (.*)$", text, re.M)[-1])))
        torch.manual_seed(0)
        made = ADEDistill(steps=150, lr=0.01)(Run(), student=Reader(dim=16, layers=3, length=12), teacher=oracle,
                                              data=[(p, UNLABELLED) for p, *_ in world[60:]])
        gold = [g for _, g, _ in test]
        student, taught = span_f1(made.extract([p for p, *_ in test]), gold), span_f1([teach(p.text) for p, *_ in test], gold)
        assert taught < 95 and (student > taught + 10 if better else abs(student - taught) < 8), (teach.__name__, student, taught)


# --- the ground ------------------------------------------------------------------------------------------------------

DOC = """Do a thing.

Parameters
----------
tol : float, default=1e-4
    Stop below it. See :ref:`User Guide <tol>` and `mode`.

    More of it.
mode : {'full', 'part'}, optional
    Default is ``'full'``.
*args : any

Returns
-------
x : int
"""


def test_entries_are_read_from_a_docstring_without_its_marks():
    found = {name: plain(text) for name, text in entries(DOC)}
    assert found == {"tol": "tol : float, default=1e-4. Stop below it. See User Guide and mode. More of it.",
                     "mode": "mode : {'full', 'part'}, optional. Default is 'full'."}
    assert not list(entries("Nothing here.")) and not list(entries("x\n\nParameters\n----------\n"))


@pytest.mark.parametrize("text, default, wanted", [
    ("default=1e-4.", 0.0001, "1e-4"), ("the default is -1 (the last)", -1, "-1"), ("of x1 and 10", 1, ""),
    ("3.0 of them", 3, "3.0"), ("at e5", 5, ""), ("Default is 'full'", "full", "full"), ("carefully", "full", ""),
    ("If True, all", True, "True"), ("0 or 1", True, ""), ("None: all", None, "None"), ("(0, 1)", (0, 1), "")])
def test_a_default_is_found_as_the_text_writes_it(text, default, wanted):
    assert value(text, default) == wanted


@pytest.mark.slow
def test_the_parts_share_no_function_but_the_one_at_a_cut_and_every_value_stands_in_its_text():
    of = {passage: function for passage, _, function in passages()}
    parts = {name: vars(split(0))[name] for name in ("shown", "valid", "test", "pool")}
    assert [len(parts[name]) for name in ("shown", "valid", "test")] == [150, 200, 1000] and len(parts["pool"]) > 2048
    functions = {name: {of[p] for p, _ in part} for name, part in parts.items()}
    assert not functions["test"] & functions["shown"] and len(functions["test"] & functions["pool"]) <= 1
    for passage, values, _ in passages():
        assert all(mentions(passage.text, s) for strings in values.values() for s in strings)
        assert set(values) == set(passage.names) and all(mentions(passage.text, name) for name in passage.names)


OWN = '''
from stillroom.models.readers import Reader
from stillroom.parts.spans import Passage

def reader():
    return Reader(dim=16, layers=2, length=16)

def passages():
    return [(Passage(f"drug {n} and a rash", ("drug",)), -100) for n in range(9)]
'''


@pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")
def test_the_command_runs_it_with_a_language_model_over_http(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    with LanguageServer(save_model(tmp_path / "llama")) as server:
        words_ = ["run", "ade_distill", "--teacher", f"oracle:{server.url}#tiny?store=said.db&max_tokens=8&pause=0.01",
                  "--student", "file:own.py:reader", "--data", "file:own.py:passages", "--group", "3", "--steps", "4", "--quiet"]
        server.faults = ["busy:0.1", "cut"]
        assert cli.main([*words_, "--folder", "runs/a"]) == 0, capsys.readouterr().err
        rows = len(server.asked) - 2
        assert rows >= 7                                                  # a part of the data is kept for the test
        assert cli.main([*words_, "--folder", "runs/b"]) == 0
        assert len(server.asked) == rows + 2                              # the second run asks nothing
    assert json.loads((tmp_path / "runs/a/student.json").read_text())["kind"] == "Extractor"
