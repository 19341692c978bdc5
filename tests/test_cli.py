"""The command as a person uses it: what it prints, what it leaves behind, and what it says to what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom import recipe, settings, status
from stillroom.cli import commands, main
from stillroom.commands import cite, completion, plan
from stillroom.parts.teachers import Cached
from stillroom.recipe import Card

MINE = ["--student", "small:mlp?hidden=8", "--teacher", "TEACHER", "--data", "digits?labels=50"]
HOME: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory):
    """A teacher, taught once; `TEACHER` among the words stands for it."""
    HOME[:] = [tmp_path_factory.mktemp("teacher") / "run"]
    words = ["teach", "--student", "small:cnn?width=8", "--data", "digits", "--steps", "60", "--quiet", "--folder"]
    assert main([*words, str(HOME[0])]) == 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(capsys, *words):
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = main([f"run:{HOME[0]}" if w == "TEACHER" else w for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def stillroom(*words, **more):
    return subprocess.run([sys.executable, "-m", "stillroom", *words], capture_output=True, text=True, timeout=300, **more)


# --- looking -----------------------------------------------------------------------------------------------------------

def test_looking_needs_no_torch():
    words = [[], ["--help"], ["--version"], ["list"], ["list", "--json"], ["show", "kd"], ["cite", "kd"], ["run"], ["plan"],
             ["run", "kd", "--help"], ["plan", "kd", "--help"], ["teach", "--help"], ["compare", "--help"], ["measure", "--help"],
             ["cache", "--help"],
             ["export", "--help"], ["prove", "--help"], ["try", "--help"], ["completion", "bash"], ["run", "kdd"], ["lst"],
             ["completion", "words", "run", "kd", "--"], ["run", "kd", "--alpa", "1"]]
    code = f"import sys, stillroom.cli as c\nfor w in {words!r}: c.main(w)\nprint({{'torch', 'numpy'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "set()"
    assert found.returncode == 0, found.stderr[-2000:]


def test_help_names_every_command_with_its_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    code, out, _ = say(capsys, "--help")
    files = {p.stem for p in Path(recipe.__file__).parent.glob("commands/[a-z]*.py")}
    assert code == 0 and set(commands()) == files
    for name, line in commands().items():
        assert line and f"  {name:<12}{line}"[:100] in out
    assert say(capsys)[1] == out


def test_list_knows_every_recipe(capsys):
    _, out, _ = say(capsys, "list")
    assert len(out.splitlines()) == 1 + len(recipe.names())
    row = next(line for line in out.splitlines() if " kd " in line)
    assert row.split()[0] == "classification" and "KD: Distilling" in row and status.status("kd") in row
    _, out, _ = say(capsys, "list", "--json")
    assert {(r["name"], r["family"]) for r in json.loads(out)} == {(n, recipe.card(n).family) for n in recipe.names()}
    assert say(capsys, "list", "--names")[1].split() == [r["name"] for r in json.loads(out)]


def test_list_filters_by_all_words(capsys):
    assert say(capsys, "list", "HINTON", "vinyals", "--names")[1].split() == ["kd"]
    code, out, err = say(capsys, "list", "hinton", "zebra")
    assert code == 2 and not out and "'zebra'" in err


def test_show_says_what_the_source_says(capsys):
    code, out, _ = say(capsys, "show", "kd")
    card = recipe.card("kd")
    assert code == 0 and card.title in out and card.link in out
    for field in recipe.fields("kd"):
        line = next(x for x in out.splitlines() if x.split()[:1] == ["--" + field.name])
        assert field.help in line and (str(field.default) in line or f"{field.default:_}" in line)
    assert all(f"--{a.name}" in out for a in recipe.actors("kd")) and all(text in out for text in card.rows.values())


def test_cite_is_bibtex(capsys):
    code, out, _ = say(capsys, "cite", "kd", "kd")
    assert code == 0 and out.strip() == """\
@inproceedings{hinton2014kd,
  title         = {{Distilling the Knowledge in a Neural Network}},
  author        = {Hinton and Vinyals and Dean},
  booktitle     = {NIPS workshop},
  year          = {2014},
  eprint        = {1503.02531},
  archivePrefix = {arXiv},
  url           = {https://arxiv.org/abs/1503.02531}
}"""


@pytest.mark.parametrize(("authors", "venue", "link", "kind", "rows"), [
    ("Müller, van den Oord et al.", "arXiv 2025", "https://arxiv.org/abs/2505.07675v2", "@misc{muller2025x",
     ["author        = {Müller and van den Oord and others}", "eprint        = {2505.07675}", "year          = {2025}"]),
    ("Stanton", "TMLR 2023", "https://openreview.net/x", "@article{stanton2023x",
     ["journal       = {TMLR}", "author        = {Stanton}"]),
    ("Li and Wu", "NeurIPS 2022", "https://a.org/b", "@inproceedings{li2022x",
     ["author        = {Li and Wu}", "booktitle     = {NeurIPS}"]),
])
def test_every_kind_of_paper_is_cited(authors, venue, link, kind, rows):
    found = cite.bibtex(Card("x", "f", Path("x.py"), "X", "A Title", authors, venue, link, {}))
    assert found.startswith(kind) and all(row in found for row in rows)


@pytest.mark.parametrize("name", recipe.names())
def test_every_card_gives_a_whole_entry(name):
    found = cite.bibtex(recipe.card(name))
    assert found.count("{") == found.count("}") and recipe.card(name).year in found


def test_completion_knows_commands_recipes_flags_and_choices():
    assert completion.possible(["ex"]) == list(commands())
    assert completion.possible(["run", "k"]) == recipe.names()
    assert {"--alpha", "--student", "--precision", "--folder"} <= set(completion.possible(["run", "kd", "--"]))
    assert completion.possible(["run", "kd", "--precision", ""]) == ["fp32", "bf16", "fp16"]
    assert completion.possible(["plan", "kd", "--few", ""]) == [] and completion.possible(["run", "kd", "--student", ""]) == []
    assert "--tolerance" in completion.possible(["export", "--"]) and "--seeds" in completion.possible(["compare", "--"])
    assert completion.possible(["cite", "kd", "d"]) == recipe.names()


def test_completion_works_in_bash():
    script = "source <(stillroom completion bash); COMP_WORDS=(stillroom run kd --al) COMP_CWORD=3; _stillroom; echo $COMPREPLY"
    paths = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=paths)
    assert found.stdout.split() == ["--alpha"]


def test_a_closed_pipe_is_no_error():
    script = f"{sys.executable} -m stillroom.cli list | true; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert found.returncode == 0 and not found.stderr


# --- what is wrong -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("words", "wrong", "remedy"), [
    (["lst"], "no command 'lst'", "'list'"),
    (["_names"], "no command '_names'", ""),
    (["show", "kdd"], "no recipe is called 'kdd'", "'kd'"),
    (["run", "nkd_usk"], "no recipe is called 'nkd_usk'", "'nkd_uskd'"),
    (["run", "--alpha", "1"], "name comes first", "stillroom run NAME"),
    (["run", "kd", "--config", "none.yaml"], "none.yaml cannot be read", "settings.yaml"),
    (["run", "kd", "--student", "small:mlp"], "also needs --teacher and --data", "leave all actors out"),
    (["run", "kd", *MINE, "--steps", "5", "--data", "digit"], "digit", "digits"),
    (["run", "kd", *MINE, "--steps", "5", "--device", "tpu"], "device 'tpu' is unknown", "cuda"),
    (["run", "kd", *MINE, "--steps", "5", "--accumulate", "3"], "batch of 64", "multiple of accumulate"),
    (["run", "--resume", "nowhere"], "nowhere/run.json does not exist", "stillroom run kd"),
    (["run", "--resume"], "run.json does not exist", "stillroom run kd"),
    (["teach", "--student", "small:mlp"], "also needs --data", "name them"),
    (["teach"], "teach needs --student and --data", "small:cnn"),
    (["measure", "nowhere"], "nowhere/run.json does not exist", "stillroom run kd"),
    (["export", "nowhere"], "nowhere/run.json does not exist", "stillroom run kd"),
    (["plan", "kd", "--few", "1"], "--few 1", "2 at least"),
    (["run", "kd", "--steps", "0"], "--steps 0", "1 at least"),
    (["run", "kd", *MINE, "--batch", "-4"], "--batch -4", "1 at least"),
    (["plan", "kd", "--every", "0"], "--every 0", "1 at least"),
    (["run", "kd", *MINE, "--watch", "accuracy", "--device", "cuda:99"], "'cuda:99' is not on this machine", "device=auto"),
    (["run", "kd", *MINE, "--teacher", "run:nowhere"], "nowhere holds nothing", "finished run"),
    (["run", "kd", *MINE, "--student", "timm:no_such_net"], "timm", ""),
    (["prove"], "no recipe", "stillroom prove kd"),
    (["prove", "kd", "--seeds", "0"], "--seeds 0", "--seeds 3"),
    (["cite"], "which recipes?", "stillroom list"),
    (["cache", "c", "--teacher", "small:cnn", "--data", "digits"], "never trained", "stillroom teach"),
    (["cache", "c", "--teacher", "TEACHER", "--data", "digits", "--views", "4"], "--views 4", "--augment crops flip"),
    (["cache", "c", "--teacher", "TEACHER", "--data", "digits", "--augment", "flipp"], "'flipp'", "'flip'"),
    (["cache", "c", "--teacher", "TEACHER", "--data", "digits", "--codec", "top10"], "leave no tail", "a smaller K"),
    (["cache", "c", "--teacher", "TEACHER", "--data", "digits", "--rank", "1"], "--rank 1", "0 to 0"),
    (["run", "kd", "--teacher", "store:nowhere", "--student", "small:mlp"], "nowhere holds no store", "stillroom cache nowhere"),
    (["completion", "powershell"], "no completion for 'powershell'", "bash"),
])
def test_bad_input_is_one_sentence_and_a_remedy(words, wrong, remedy, capsys, here):
    code, _, err = say(capsys, *words)
    first, _, second = err.strip().partition("\n")
    assert code == 2 and wrong in first and first.startswith("stillroom: ")
    assert remedy in second and "Traceback" not in err
    assert not list(here.rglob("run.json")), "what was refused leaves nothing behind"


@pytest.mark.parametrize("words", [["run", "kd", "--alpa", "1"], ["list", "--jsn"], ["prove", "kd", "--seeds", "many"], ["show"],
                                   ["export", "x", "--tolerence", "1"], ["try", "kd", "extra"]])
def test_the_parser_says_what_it_does_not_know(words, capsys):
    code, out, err = say(capsys, *words)
    assert code == 2 and "stillroom" in err and not out


def test_a_run_that_diverges_says_so_and_where(capsys, here):
    code, _, err = say(capsys, "run", "kd", *MINE, "--steps", "20", "--lr", "1e30", "--quiet")
    assert code == 3 and "stillroom: diverged: loop, step" in err and "lower lr" in err
    said = json.loads((here / "runs" / "kd-1" / "run.json").read_text())
    assert said["state"] == "diverged" and said["error"].startswith("loop, step")


def test_a_folder_in_use_is_not_written_to(capsys, here):
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("mine")
    code, _, err = say(capsys, "run", "kd", *MINE, "--steps", "2", "--folder", "full", "--quiet")
    assert code == 2 and "is not empty" in err and [p.name for p in (here / "full").iterdir()] == ["thesis.txt"]
    assert say(capsys, "run", "kd", *MINE, "--steps", "2", "--folder", "mine", "--quiet")[0] == 0
    code, _, err = say(capsys, "run", "kd", *MINE, "--steps", "2", "--folder", "mine", "--quiet")
    assert code == 2 and "already holds a run" in err and "--resume mine" in err


# --- running -----------------------------------------------------------------------------------------------------------

def test_a_run_leaves_everything_that_is_needed_to_repeat_it(capsys, here):
    code, out, _ = say(capsys, "run", "kd", *MINE, "--steps", "30", "--seed", "3", "--watch", "accuracy", "loss", "--every", "10",
                       "--quiet")
    folder = here / "runs" / "kd-1"
    assert code == 0 and "runs/kd-1" in out and "test samples right" in out
    assert {p.name for p in folder.iterdir()} == {"student.safetensors", "student.json", "run.json", "settings.yaml", "log.jsonl",
                                                  "checkpoint.pt", "report.html"}
    said = json.loads((folder / "run.json").read_text())
    assert (said["recipe"], said["state"], said["options"]["seed"], said["fields"]["steps"]) == ("kd", "finished", 3, 30)
    assert said["actors"]["student"] == "small:mlp?hidden=8" and len(said["data"]["fingerprint"]) >= 16
    assert said["versions"]["torch"] == torch.__version__ and said["seconds"]["all"] >= said["seconds"]["steps"] > 0
    assert 0 <= said["result"]["accuracy"] <= 100
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "accuracy" in line] == [9, 19, 29]
    assert all(0 <= line["accuracy"] <= 100 and line["loss"] > 0 for line in log if "accuracy" in line)


def test_the_settings_of_a_run_make_the_same_student_again(capsys, here):
    assert say(capsys, "run", "kd", *MINE, "--steps", "12", "--seed", "7", "--quiet")[0] == 0
    assert say(capsys, "run", "--config", "runs/kd-1/settings.yaml", "--quiet")[0] == 0
    assert say(capsys, "run", "kd", "--config", "runs/kd-1/settings.yaml", "--seed", "8", "--quiet")[0] == 0
    first, again, other = (load_file(here / "runs" / f"kd-{i}" / "student.safetensors") for i in (1, 2, 3))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_without_actors_it_runs_on_its_own_trial_and_says_so(capsys, here):
    code, out, _ = say(capsys, "run", "kd", "--steps", "40", "--quiet")
    assert code == 0 and "its own trial: scikit-learn digits" in out and "the student alone" in out
    said = json.loads((here / "runs" / "kd-1" / "run.json").read_text())
    assert said["trial"] and said["fields"]["steps"] == 40 and said["result"]["beats"] > 50
    trial, _ = recipe.module("kd").trial(0)
    assert settings.read(here / "runs" / "kd-1" / "settings.yaml").fields == {**vars(trial), "steps": 40}
    assert say(capsys, "measure", "runs/kd-1", "--repeats", "5")[0] == 0
    code, out, _ = say(capsys, "run", "kd", "--steps", "40", "--quiet", "--no-proof")
    assert code == 0 and "of 500 test samples right" in out and "the student alone" not in out
    code, out, _ = say(capsys, "run", "dmd2", "--steps", "2", "--quiet", "--no-proof")        # its test split is images alone
    assert code == 0 and "nothing here judges what was made" in out


def test_a_teacher_is_made_and_used(capsys, here):
    mine = ["--student", "small:mlp", "--teacher", "TEACHER", "--data", "digits?labels=50"]
    assert say(capsys, "run", "kd", *mine, "--steps", "60", "--quiet")[0] == 0
    code, out, _ = say(capsys, "measure", "runs/kd-1", "--json", "--repeats", "5")
    found = json.loads(out)
    student, teacher = (json.loads((f / "run.json").read_text())["result"]["accuracy"] for f in (here / "runs" / "kd-1", HOME[0]))
    assert code == 0 and found["teacher"]["accuracy"] == pytest.approx(teacher)
    assert found["student"]["accuracy"] == pytest.approx(student)
    assert found["student"]["parameters"] == 64 * 32 + 32 + 32 * 10 + 10 and found["student"]["flops"] == 2 * (64 * 32 + 320)
    assert 0 < found["agreement"] <= 100 and 0 <= found["student"]["ece"] <= 100
    _, table, _ = say(capsys, "measure", "runs/kd-1", "--repeats", "5")
    assert f"{found['student']['accuracy']:.2f} %" in table and "2,410" in table and "95th percentile" in table


CACHE = ["cache", "answers", "--teacher", "TEACHER", "--data", "digits", "--quiet"]


def test_a_teacher_is_asked_once_and_teaches_from_its_answers(capsys, here, monkeypatch):
    code, out, _ = say(capsys, *CACHE, "--codec", "top5", "--views", "2", "--augment", "flip?p=0.2", "grey", "--cutmix", "0.5",
                       "--mixup", "0.5")
    assert code == 0 and "× 2 views" in out and "16 bytes a view (top5, 10 classes)" in out and "samples/s" in out
    assert say(capsys, *CACHE, "--codec", "top5", "--views", "2", "--augment", "flip?p=0.2", "grey", "--cutmix", "0.5",
               "--mixup", "0.5")[1].splitlines()[1].endswith("all of it was there before")
    words = out.splitlines()[-1].removeprefix("next: stillroom ").split()
    assert words[:4] == ["run", "kd", "--teacher", "store:answers"]
    code, out, _ = say(capsys, *words, "--steps", "6", "--quiet")       # the command that was named
    assert code == 0 and "2 views each (flip?p=0.2, grey, mixup 0.5, cutmix 0.5)" in out
    kept = settings.read(here / "runs" / "kd-1" / "settings.yaml")
    assert kept.actors == {"data": "digits", "teacher": "store:answers", "student": "small:cnn"}
    code, out, _ = say(capsys, "measure", "runs/kd-1", "--json", "--repeats", "5")
    found, taught = json.loads(out), json.loads((HOME[0] / "run.json").read_text())["result"]
    assert found["teacher"]["accuracy"] == pytest.approx(taught["accuracy"]) and 0 < found["agreement"] <= 100
    assert found["teacher"]["parameters"] == 9 * 8 + 16 + 9 * 8 * 16 + 32 + 64 * 10 + 10 and found["stored"] == "answers"
    assert "when that was written" in say(capsys, "measure", "runs/kd-1", "--repeats", "5")[1]
    assert say(capsys, "plan", "kd", "--teacher", "store:answers", "--student", "small:mlp", "--few", "3")[0] == 0
    code, _, err = say(capsys, "compare", "kd", "--teacher", "store:answers", "--student", "small:mlp", "--budget", "5")
    assert code == 2 and "mixes samples" in err and "without --mixup" in err
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert say(capsys, "measure", "../runs/kd-1", "--repeats", "5")[0] == 0


def test_a_store_is_refused_for_other_data_and_taken_for_the_same_with_fewer_labels(capsys, here):
    assert say(capsys, *CACHE, "--size", "6")[0] == 0
    use = ["run", "kd", "--teacher", "store:answers", "--student", "small:mlp", "--steps", "3", "--quiet"]
    code, out, _ = say(capsys, *use, "--data", "digits?labels=50")
    assert code == 0 and "1 × 6 × 6" in out and "50 labelled" in out           # read as the store was
    for more in (["--size", "8"], ["--data", "npz:other.npz"]):
        np.savez(here / "other.npz", x=np.random.default_rng(0).random((1797, 1, 6, 6), np.float32), y=np.arange(1797) % 10)
        code, _, err = say(capsys, *use, *more)
        assert code == 2 and "another data set" in err and "take its own, digits" in err
    code, _, err = say(capsys, *CACHE, "--size", "6", "--codec", "fp32")
    assert code == 2 and "another codec" in err
    (here / "answers" / "test" / "000000.rows").unlink()
    code, out, _ = say(capsys, "measure", "runs/kd-1", "--repeats", "5")
    assert code == 0 and "agreement" not in out and "the store is not finished" in out


def test_a_stopped_run_goes_on_with_a_store(capsys, here, monkeypatch):
    assert say(capsys, *CACHE, "--views", "2", "--augment", "flip")[0] == 0
    use = ["run", "kd", "--teacher", "store:answers", "--student", "small:mlp", "--steps", "8", "--quiet", "--folder"]
    assert say(capsys, *use, "whole")[0] == 0
    calls, forward = [], Cached.forward

    def stopping(self, x):
        calls.append(x)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(Cached, "forward", stopping)
    assert say(capsys, *use, "parts", "--save-every", "0")[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert json.loads((here / "parts" / "run.json").read_text())["state"] == "stopped"
    assert say(capsys, "run", "--resume", "parts", "--quiet")[0] == 0
    made, whole = (load_file(here / name / "student.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(made[k], whole[k]) for k in whole)


def test_two_writers_share_the_work(capsys, here):
    code, out, _ = say(capsys, *CACHE, "--rank", "1", "--ranks", "2")
    assert code == 0 and "writer 1 of 2 is done" in out
    use = ["run", "kd", "--teacher", "store:answers", "--student", "small:mlp", "--steps", "3", "--quiet"]
    code, _, err = say(capsys, *use)
    assert code == 2 and "not finished" in err
    assert say(capsys, *CACHE, "--ranks", "2")[0] == 0 and say(capsys, *use)[0] == 0


@pytest.mark.slow
def test_methods_are_compared_on_a_store(capsys, here):
    assert say(capsys, *CACHE, "--codec", "fp32", "--views", "2", "--augment", "crops?least=0.8")[0] == 0
    words = ["compare", "dho", "ssld", "--student", "small:mlp?hidden=8", "--seeds", "1", "--budget", "6", "--save-every", "300"]
    assert say(capsys, *words, "--teacher", "store:answers", "--out", "stored")[0] == 0
    result = json.loads((here / "stored" / "result.json").read_text())
    assert all(cell["status"] == "done" for cell in result["cells"]) and "answers" in result["words"]
    assert result["teacher"]["accuracy"] == [json.loads((HOME[0] / "run.json").read_text())["result"]["accuracy"]]
    assert say(capsys, *words, "--teacher", "store:answers", "--out", "stored")[0] == 0
    assert say(capsys, "measure", "stored/runs/kd_tuned/seed0", "--repeats", "5")[0] == 0
    code, _, err = say(capsys, *words, "--teacher", "store:answers", "--data", "digits", "--size", "6", "--out", "other")
    assert code == 2 and "another data set" in err and not (here / "other").exists()


def test_a_run_on_changed_data_is_refused(capsys, here):
    def write(shift):
        drawn = np.random.default_rng(0).random((60, 1, 4, 4)) * 0.5 + shift
        np.savez(here / "mine.npz", x=drawn.astype("float32"), y=np.arange(60) % 3)

    write(0.0)
    mine = ["--student", "small:mlp", "--data", "npz:mine.npz", "--steps", "4", "--batch", "8", "--folder", "runs/mine"]
    assert say(capsys, "teach", *mine, "--quiet")[0] == 0
    write(0.25)
    code, _, err = say(capsys, "measure", "runs/mine")
    assert code == 2 and "have changed" in err and "--data" in err
    file = here / "runs" / "mine" / "run.json"
    file.write_text(file.read_text().replace('"finished"', '"stopped"'))
    code, _, err = say(capsys, "run", "--resume", "runs/mine")
    assert code == 2 and "have changed" in err


def test_a_run_is_found_again_from_another_folder(capsys, here, monkeypatch):
    np.savez(here / "mine.npz", x=np.random.default_rng(0).random((60, 1, 4, 4), dtype="float32"), y=np.arange(60) % 3)
    source = "from torch import nn\ndef tiny(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))\n"
    (here / "net.py").write_text(source)
    words = ["--student", "file:net.py:tiny", "--data", "npz:mine.npz", "--steps", "4", "--batch", "8", "--folder", "run"]
    assert say(capsys, "teach", *words, "--quiet")[0] == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    code, out, _ = say(capsys, "measure", "../run", "--repeats", "5")
    assert code == 0 and "of 6 test samples" in out


def test_a_network_is_not_judged_on_other_classes(capsys, here):
    np.savez(here / "two.npz", x=np.random.default_rng(0).random((60, 1, 8, 8), dtype="float32"), y=np.arange(60) % 2)
    code, _, err = say(capsys, "measure", str(HOME[0]), "--data", "npz:two.npz")
    assert code == 2 and "10 classes apart, the data 2" in err


def test_short_memory_is_said_with_what_helps(capsys, monkeypatch):
    from stillroom import job

    monkeypatch.setattr(job, "prepare", lambda chosen: torch.empty(10**15))        # the allocator's own error
    code, _, err = say(capsys, "run", "kd")
    assert code == 2 and "out of memory" in err and "--accumulate" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_full_disk_is_said_and_what_was_saved_stays(here):
    import resource

    def little():
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    words = ["teach", "--student", "small:mlp", "--data", "digits", "--steps", "2000", "--save-every", "0", "--folder", "run"]
    bare = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}          # what Python compiles would be cut short, too, and stay so
    found = stillroom(*words, preexec_fn=little, env=bare)
    assert found.returncode == 2 and "cannot write" in found.stderr and "File too large" in found.stderr
    assert "Traceback" not in found.stderr and (here / "run" / "settings.yaml").exists()


def test_a_finished_run_has_nothing_to_go_on_with(capsys):
    say(capsys, "run", "kd", *MINE, "--steps", "3", "--quiet")
    code, out, _ = say(capsys, "run", "--resume", "runs/kd-1")
    assert code == 0 and "is finished" in out


def test_only_what_belongs_to_the_machine_changes_on_a_resumed_run(capsys, here):
    say(capsys, "run", "kd", *MINE, "--steps", "3", "--quiet")
    file = here / "runs" / "kd-1" / "run.json"
    file.write_text(file.read_text().replace('"finished"', '"stopped"'))
    for flag in ("--alpha", "--student", "--seed", "--folder"):
        code, _, err = say(capsys, "run", "--resume", "runs/kd-1", flag, "1")
        assert code == 2 and f"{flag} cannot be changed" in err and "--config runs/kd-1/settings.yaml" in err
    code, _, err = say(capsys, "run", "--resume", "runs/kdd-1")
    assert code == 2 and "did you mean 'runs/kd-1'" in err
    assert say(capsys, "run", "--resume", "runs/kd-1", "--workers", "1", "--quiet")[0] == 0


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(capsys, here):
    say(capsys, "run", "kd", *MINE, "--steps", "6", "--quiet")
    folder = here / "runs" / "kd-1"
    before = load_file(folder / "student.safetensors")
    log = (folder / "log.jsonl").read_text()
    (folder / "checkpoint.pt").unlink()
    (folder / "student.json").unlink()
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"finished"', '"running"'))
    assert say(capsys, "measure", "runs/kd-1")[0] == 2
    assert say(capsys, "run", "--resume", "runs/kd-1", "--quiet")[0] == 0
    again = load_file(folder / "student.safetensors")
    assert all(torch.equal(before[k], again[k]) for k in before)
    assert len((folder / "log.jsonl").read_text().splitlines()) == len(log.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_saves_and_a_resume_makes_the_same_student(workers, here):
    images = here / "images"
    rng = np.random.default_rng(0)
    from PIL import Image

    for i in range(60):
        (images / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(images / "ab"[i % 2] / f"{i}.png")
    words = ["teach", "--student", "small:cnn?width=4", "--data", f"folder:{images}", "--steps", "400", "--batch", "16",
             "--workers", workers, "--folder"]
    whole = stillroom(*words, "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([sys.executable, "-m", "stillroom.cli", *words, "cut"], stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    log = here / "cut" / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 20):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)                # as a terminal does: to every process of the command
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Go on with: stillroom run --resume cut" in err and "Traceback" not in err
    said = json.loads((here / "cut" / "run.json").read_text())
    assert said["state"] == "stopped" and not (here / "cut" / "student.json").exists()
    resumed = stillroom("run", "--resume", "cut")
    assert resumed.returncode == 0, resumed.stderr
    one, two = (load_file(here / f / "student.safetensors") for f in ("whole", "cut"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    steps = [[json.loads(line)["step"] for line in (here / f / "log.jsonl").read_text().splitlines()] for f in ("whole", "cut")]
    assert steps[0] == steps[1]


# --- planning, proving -------------------------------------------------------------------------------------------------

def test_a_plan_writes_nothing_and_scales_with_the_steps(capsys, here):
    code, out, _ = say(capsys, "plan", "kd", *MINE, "--steps", "1000000", "--few", "12", "--json")
    found = json.loads(out)
    assert code == 0 and not list(here.iterdir())
    assert found["steps"] == {"loop": 1_000_000} and 0 < found["seconds_per_step"]["loop"] < 5
    assert found["hours"] == pytest.approx((1e6 * found["seconds_per_step"]["loop"] + found["seconds_outside"]) / 3600)
    assert found["memory"] >= found["memory_before"] > 10**7
    _, table, _ = say(capsys, "plan", "kd", *MINE, "--steps", "1000000", "--few", "12")
    assert "1,000,000 steps" in table and "checkpoint" in table


def test_a_plan_counts_the_bytes_that_a_run_writes(capsys, here):
    found = json.loads(say(capsys, "plan", "kd", *MINE, "--steps", "4", "--json")[1])
    say(capsys, "run", "kd", *MINE, "--steps", "4", "--quiet")
    assert found["checkpoint"] == pytest.approx((here / "runs" / "kd-1" / "checkpoint.pt").stat().st_size, rel=0.15)
    state = load_file(here / "runs" / "kd-1" / "student.safetensors")
    assert found["made"] > sum(t.nbytes for t in state.values())


def test_a_plan_sees_every_loop_of_a_recipe_in_a_recipe():
    """Loops keep their full length in the plan though only a few of their steps are taken."""
    taken = [{"loop": "a", "step": s, "seconds": 1.0 + 0.5 * s} for s in range(4)]
    assert plan._pace(taken) == 0.5 and plan._pace(taken[:1]) == 1.0 and plan._pace([]) == 0.0
    assert plan.span(30) == "30 s" and plan.span(600) == "10 min" and plan.span(36_000) == "10 h"
    assert plan.size(999) == "999 B" and plan.size(2.5e6) == "2.5 MB" and plan.size(3e13) == "30 TB"


def test_a_proof_is_written_and_read_back(capsys, here, monkeypatch):
    code, out, err = say(capsys, "prove", "kd", "--seeds", "1", "--out", "proofs")
    found = json.loads((here / "proofs" / "kd.json").read_text())
    assert code == 0 and err.count("it holds") == 1 and "checked" in out       # one seed is not enough
    seed = found["seeds"][0]
    assert seed["holds"] and found["ours"] == {"mean": seed["ours"], "std": 0.0} and found["baseline"] == "the student alone"
    assert found["real"] is True and found["fields"] == vars(recipe.module("kd").trial(0)[0]) and found["versions"]["torch"]
    monkeypatch.setattr(status, "home", lambda: here / "proofs")
    assert status.proof("kd") == found
    _, out, _ = say(capsys, "show", "kd")
    assert "better with 1 of 1 seeds" in out and "scikit-learn digits" in out


@pytest.mark.parametrize(("change", "judged"), [
    ({}, "proven"), ({"real": False}, "checked"), ({"seeds": [0, 1]}, "checked"), ({"seeds": [0, 0, 1]}, "checked"),
    ({"better": "lower"}, "checked"), ({"lost": True}, "checked"), ({"tied": True}, "checked")])
def test_status_follows_from_the_numbers(change, judged):
    seeds = [{"seed": s, "ours": 90.0 + s, "beats": 80.0} for s in change.get("seeds", [0, 1, 2])]
    if "lost" in change or "tied" in change:
        seeds[1]["ours"] = 79.0 if "lost" in change else 80.0
    assert status.judged({"real": change.get("real", True), "better": change.get("better", "higher"), "seeds": seeds}) == judged


def test_a_recipe_without_a_proof_is_checked(monkeypatch, here):
    monkeypatch.setattr(status, "home", lambda: here)
    assert status.judged(status.proof("kd")) == "checked"


def test_try_shows_the_numbers_and_whether_they_hold(capsys, monkeypatch):
    code, out, _ = say(capsys, "try", "kd")
    assert code == 0 and "it holds" in out and "the student alone" in out and "KD(temperature=4.0" in out
    module = recipe.module("kd")
    trial = module.trial
    monkeypatch.setattr(module, "trial", lambda seed: (type(trial(seed)[0])(steps=1), trial(seed)[1]))
    code, out, _ = say(capsys, "try", "kd")
    assert code == 1 and "IT DOES NOT HOLD" in out


def test_a_trial_on_graphs_is_a_run_too():
    from stillroom import job, settings

    ready = job.prepare(settings.defaults("mirage"))
    assert ready.shape is None and ready.cast is not None
