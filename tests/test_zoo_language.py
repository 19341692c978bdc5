"""Language models and two-tower models by name, with what they read: from folders as transformers saves them, by the command."""

import json

import pytest
import torch

from stillroom import _compat, zoo
from stillroom.cli import main
from stillroom.errors import Refused
from stillroom.parts import text
from stillroom.zoo import language

pytest.importorskip("transformers")
transformers = _compat.package("transformers")
SIGNS = ["<pad>", "<end>", *"0123456789+=. abcdefghijklmnopqrstuvwxyz@"]


def tokens(folder, signs=SIGNS, **special):
    """A tokenizer of single signs, in a folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({sign: n for n, sign in enumerate(signs)}, unk_token=signs[0]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **{"pad_token": "<pad>", "eos_token": "<end>", **special}
                                         ).save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two language models of one tokenizer, the teacher wider; a third with another one; questions and a text."""
    home = tmp_path_factory.mktemp("language")
    torch.manual_seed(0)
    for name, dim in (("student", 16), ("other", 16), ("teacher", 32)):
        config = transformers.LlamaConfig(vocab_size=len(SIGNS), hidden_size=dim, intermediate_size=dim, num_hidden_layers=1,
                                          num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None)
        transformers.LlamaForCausalLM(config).save_pretrained(home / name)
        tokens(home / name, SIGNS if name != "other" else SIGNS[:2] + SIGNS[:1:-1])
    rows = [{"prompt": f"{a}+{b}=", "answer": a + b} for a in range(5, 12) for b in range(4)]
    (home / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "sums.csv").write_text("ask,gold\n" + "\n".join(f"{row['prompt']},{row['answer']}" for row in rows))
    (home / "mail.txt").write_text("ann wrote to bo@x.org on 12. of may. " * 40)
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


# --- models ------------------------------------------------------------------------------------------------------------

def test_a_language_model_is_the_one_that_was_saved(home):
    own = transformers.LlamaForCausalLM.from_pretrained(home / "student")
    net = zoo.model("lm:student", classes=3, channels=1, size=8).eval()      # what the data are like is no matter
    ids = torch.randint(2, 30, (2, 5))
    assert torch.equal(net(ids).logits, own(ids).logits) and net.drawn is None
    again = zoo.models.rebuild(net.origin)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(ids).logits, net(ids).logits)
    deeper = zoo.model("lm:student?fresh=yes&num_hidden_layers=2")
    assert deeper.drawn and deeper.config.num_hidden_layers == 2


def test_what_is_no_language_model_is_refused(tmp_path):
    transformers.ViTConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(Refused, match="no causal language model of type 'vit'"):
        zoo.model(f"lm:{tmp_path}?fresh=yes")
    with pytest.raises(Refused, match="a 'vit' has no two towers"):
        zoo.model(f"clip:{tmp_path}?fresh=yes")
    with pytest.raises(Refused, match="could not be fetched"):
        zoo.model("lm:nobody/nothing")


# --- what they read ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("file", ["sums.jsonl?", "sums.csv?prompt=ask&answer=gold&"])
def test_prompts_are_padded_on_the_left_beside_their_answers(file):
    spec = f"prompts:{file}tokenizer=student"
    data = zoo.data(spec)
    assert len(data) == 28 and data.shape == (5,)
    ids, answer = data[0]
    assert ids.tolist() == [0, *(SIGNS.index(sign) for sign in "5+0=")] and answer == "5"
    ids, answer = data[27]
    assert "".join(SIGNS[i] for i in ids) == "11+3=" and answer == "14"
    split = zoo.splits(spec)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [22, 3, 3]


def test_prompts_are_padded_by_what_the_model_takes_for_padding(home, tmp_path):
    tokens(tmp_path)
    config = json.loads((home / "student/config.json").read_text()) | {"pad_token_id": None, "eos_token_id": [7, 1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = zoo.model(f"lm:{tmp_path}?fresh=yes")
    assert 7 == text.special(net)[1] == language.padding(str(tmp_path))
    assert zoo.data(f"prompts:sums.jsonl?tokenizer={tmp_path}")[0][0][0] == 7


def test_prompts_go_into_the_chat_template_where_that_is_asked(tmp_path):
    with pytest.raises(Refused, match="no chat template"):
        zoo.data("prompts:sums.jsonl?tokenizer=student&chat=yes")
    tokens(tmp_path, chat_template="{% for m in messages %}a {{ m.content }}{% endfor %}{{ ' b' if add_generation_prompt }}")
    ids, answer = zoo.data(f"prompts:sums.jsonl?tokenizer={tmp_path}&chat=yes")[27]
    assert "".join(SIGNS[i] for i in ids) == "a 11+3= b" and answer == "14"


def test_a_text_is_cut_into_blocks_and_nothing_stands_behind_its_end(tmp_path):
    (tmp_path / "a.txt").write_text("ab+1 c")
    data = zoo.data(f"passages:{tmp_path / 'a.txt'}?tokenizer=student&length=4")
    assert data.tensors[0].tolist() == [[SIGNS.index(s) for s in "ab+1"], [*(SIGNS.index(s) for s in " c"), -100, -100]]


def test_splits_of_what_is_read_are_files(tmp_path):
    for part, words in (("train", "abc"), ("valid", "de"), ("test", "f+")):
        (tmp_path / f"{part}.txt").write_text(words)
    split = zoo.splits(f"passages:{tmp_path}?tokenizer=student&length=2")
    assert [part.tensors[0][0].tolist() for part in (split.train, split.valid, split.test)] == [
        [SIGNS.index(s) for s in words] for words in ("ab", "de", "f+")]


@pytest.mark.parametrize(("name", "content", "option", "wrong", "remedy"), [
    ("a.jsonl", '{"prompt": "1+1="}', "", "row 1 of", "?answer=NAME"), ("a.jsonl", '{"prompt"', "", "line 1 of", '"answer"'),
    ("a.jsonl", "[1]", "", "no object", '"answer"'), ("a.csv", "prompt,answer\n ,2", "", "row 1", "remove it"),
    ("a.csv", "prompt,answer", "", "no row", "a row"), ("a.csv", "prompt,answer\n1+1=,2", "&length=3", "longest 4", "length=4"),
    ("a.parquet", "x", "", "is no .jsonl or .csv file", "JSONL"), ("a.jsonl", "{}", "&labels=3", "no option 'labels'", "length"),
    ("a.csv", "prompt,answer\n1+1=,2", "&tokenizer=nowhere", "tokenizer nowhere does not work", "tokenizer.json")])
def test_prompts_that_will_not_do_are_refused(tmp_path, name, content, option, wrong, remedy):
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused) as error:
        zoo.splits(f"prompts:{tmp_path / name}?tokenizer=student{option}")
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


def test_texts_reach_a_recipe_by_the_command(tmp_path):
    (tmp_path / "own.py").write_text("from stillroom.parts.concepts import Ontology\n\ndef signs():\n"
                                     "    return Ontology({'fever': 'A', 'cough': 'B'}, {'A': 'T184', 'B': 'T184'})\n")
    (tmp_path / "notes.txt").write_text("Fever and cough.\n\nNo fever.\nCough.\n" * 4)
    data = zoo.data(f"texts:{tmp_path / 'notes.txt'}")
    assert len(data) == 12 and data[1] == ("No fever.", -100) and data.words == "notes.txt: 12 texts, no labels"
    (tmp_path / "rows.csv").write_text('note\n"No fever,\u2028\nno cough."\n')
    (tmp_path / "rows.jsonl").write_text('{"note": "No fever,\u2028no cough."}\n')
    for name, line in (("csv", "No fever,\u2028\nno cough."), ("jsonl", "No fever,\u2028no cough.")):
        data = zoo.data(f"texts:{tmp_path}/rows.{name}?text=note")
        assert len(data) == 1 and data[0][0] == line
    assert main(["run", "ontology_concept", "--data", f"texts:{tmp_path / 'notes.txt'}", "--ontology",
                 f"file:{tmp_path / 'own.py'}:signs", "--quiet", "--folder", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/made.json").exists()


# --- rules and detectors -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spec", "said", "gold", "grades"), [
    ("number", ["it is 14.", "41"], "14", [1.0, 0.0]), ("exact", ["14", "it is 14"], "14", [1.0, 0.0]),
    ("matching:=(.*?)=", ["so =14= yes", "14"], "14", [1.0, 0.0])])
def test_rules_grade_what_the_tokenizer_reads(spec, said, gold, grades):
    rows = [[SIGNS.index(s) for s in one] + [1] for one in said]
    ids = torch.tensor([[row + [0] * (max(map(len, rows)) - len(row)) for row in rows]])
    assert zoo.actor("Callable", spec, speaks="student")(ids, [gold]).tolist() == [grades]


def test_patterns_find_what_is_private():
    find = zoo.actor("Callable", "patterns?names=ann", speaks="student")
    words, private = "ann to bo@x.org 7", "11100001111111101"
    assert find(torch.tensor([[SIGNS.index(s) for s in words]])).tolist() == [[float(s) for s in private]]
    assert not zoo.actor("Callable", "nothing")(torch.tensor([[3, 4]])).any()


@pytest.mark.parametrize(("spec", "wrong", "remedy"), [
    ("numbr", "names no callable", "number"), ("number", "needs a tokenizer", "?tokenizer=FOLDER"),
    ("matching:(", "no regular expression", "matching:"), ("matching:a", "no group", "brackets")])
def test_rules_that_will_not_do_are_refused(spec, wrong, remedy):
    with pytest.raises(Refused) as error:
        zoo.actor("Callable", spec)
    assert wrong in str(error.value) and remedy in str(error.value).partition("→")[2]


# --- by the command ----------------------------------------------------------------------------------------------------

def test_kdrl_learns_by_the_command_from_questions_of_ones_own(tmp_path, capsys):
    run = ["run", "kdrl", "--student", "lm:student", "--teacher", "lm:teacher", "--data", "prompts:sums.jsonl", "--reward",
           "number", "--steps", "2", "--batch", "4", "--group", "2", "--length", "3", "--lr", "1e-3", "--quiet"]
    assert main([*run, "--folder", str(tmp_path / "run")]) == 0
    assert "kdrl on sums.jsonl: 22 prompts of 5" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(0 <= line["reward"] <= 1 for line in lines)
    made, begun = zoo.model(f"run:{tmp_path / 'run'}"), zoo.model("lm:student")
    assert type(made) is type(begun) and not torch.equal(made.lm_head.weight, begun.lm_head.weight)
    assert main([*run[:5], "lm:other", *run[6:], "--folder", str(tmp_path / "wrong")]) == 2
    assert "number their tokens differently" in capsys.readouterr().err and not (tmp_path / "wrong").exists()


def test_swing_learns_by_the_command_from_a_text(tmp_path, capsys):
    assert main(["run", "swing_distillation", "--student", "lm:student?fresh=yes", "--teacher", "lm:teacher", "--data",
                 "passages:mail.txt?length=32", "--detector", "patterns?names=ann", "--steps", "2", "--batch", "4", "--quiet",
                 "--folder", str(tmp_path / "run")]) == 0
    assert "mail.txt: 37 samples of 32" in capsys.readouterr().out
    assert isinstance(zoo.model(f"run:{tmp_path / 'run'}"), transformers.LlamaForCausalLM)


def test_three_language_models_are_merged_by_the_command(tmp_path):
    for n in range(3):
        torch.manual_seed(n)
        transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained("student")).save_pretrained(tmp_path / str(n))
    assert main(["run", "balanced_actor_init", "--base", f"lm:{tmp_path}/0", "--instructed", f"lm:{tmp_path}/1", "--distilled",
                 f"lm:{tmp_path}/2", "--quiet", "--folder", str(tmp_path / "run")]) == 0
    specs = [f"run:{tmp_path}/run", *(f"lm:{tmp_path}/{n}" for n in range(3))]
    made, *three = (zoo.model(spec).lm_head.weight for spec in specs)
    torch.testing.assert_close(made, 0.1 * three[0] + 0.45 * three[1] + 0.45 * three[2])
