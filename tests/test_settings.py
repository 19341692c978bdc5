"""Flags and the YAML file that says the same: nothing is lost between them, and nothing that is wrong gets through."""

import dataclasses
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillroom import recipe, settings
from stillroom.commands.run import EXTRA
from stillroom.errors import Refused
from stillroom.recipe import Field
from stillroom.settings import ALONE, OPTIONS, Settings


def parse(name, *words):
    return settings.parse(name, words, command=f"stillroom run {name}", about="", extra=EXTRA)[0]


def refused(tmp_path, text, name="kd"):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(Refused) as error:
        settings.read(file, name)
    return str(error.value)


# --- flags -----------------------------------------------------------------------------------------------------------

def test_without_flags_a_recipe_is_as_its_file_says():
    found = parse("kd")
    assert found.fields == {f.name: f.default for f in recipe.fields("kd")}
    assert found.options == {f.name: f.default for f in OPTIONS}
    assert not found.actors and not found.given


def test_flags_reach_their_places():
    found = parse("kd", "--alpha", "0.25", "--student=small:mlp", "--save-every", "10", "--compile", "--steps", "7",
                  "--watch", "accuracy", "loss", "--trackers", "tensorboard")
    assert found.actors == {"student": "small:mlp"}
    assert found.fields["alpha"] == 0.25 and found.fields["steps"] == 7 and found.fields["temperature"] == 4.0
    assert found.options["save_every"] == 10.0 and found.options["compile"] is True
    assert found.options["watch"] == ("accuracy", "loss") and found.options["trackers"] == ("tensorboard",)
    assert found.given == {"alpha", "student", "save_every", "compile", "watch", "trackers", "steps"}


def test_a_value_that_equals_the_default_counts_as_given():
    assert parse("kd", "--steps", "60000").given == {"steps"}
    assert parse("kd", "--no-compile").given == {"compile"}


@pytest.mark.parametrize(("words", "said"), [
    (["--alpa", "1"], "--alpha"), (["--alpha", "much"], "much"), (["--steps", "1.5"], "1.5"), (["--precision", "fp8"], "bf16"),
    (["--seed"], "--seed"), (["stray"], "stray"), (["--watch", "speed"], "accuracy")])
def test_a_wrong_flag_is_said(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("kd", *words)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_help_shows_the_meaning_of_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("kd", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    for field in (*recipe.fields("kd"), *OPTIONS):
        assert "--" + field.name.replace("_", "-") in text and field.help in text


@pytest.mark.parametrize("name", [*recipe.names(), ALONE])
def test_no_two_flags_of_a_recipe_share_a_name(name):
    """Actors, fields and options stand side by side on the command line and in the file. Only how images are read may give
    way to a field of the same name."""
    actors, fields = settings.signature(name)
    own = [f.name for f in (*actors, *fields)] + ["recipe", "folder", "config", "quiet", "resume", "few", "json"]
    flags = own + [f.name for f in settings.options(name)]
    assert len(flags) == len(set(flags))
    assert {f.name for f in OPTIONS} - set(flags) == set()
    assert set(own) & {f.name for f in OPTIONS} <= {"size", "channels"}


@pytest.mark.parametrize("name", recipe.names())
def test_every_field_has_a_type_that_flags_and_files_can_hold(name):
    for field in recipe.fields(name):
        assert settings.typed(field.default, settings.hint(field.type), field.name) == field.default


def test_what_teach_says_of_itself_is_read_from_the_source_of_alone():
    from stillroom.arenas.alone import Alone

    assert recipe.load(ALONE) is Alone and ALONE not in recipe.names()
    assert {f.name: (f.type, f.default) for f in recipe.fields(ALONE)} == {
        f.name: (f.type.__name__, f.default) for f in dataclasses.fields(Alone)}
    assert all(f.help for f in recipe.fields(ALONE)) and [a.name for a in recipe.actors(ALONE)] == ["student", "data"]


# --- the file --------------------------------------------------------------------------------------------------------

def test_the_file_says_what_the_flags_said(tmp_path):
    first = parse("kd", "--lr", "1e-5", "--data", 'folder:a "b" ü', "--trackers", "wandb", "mlflow", "--decay", "inf")
    file = tmp_path / "settings.yaml"
    file.write_text(settings.write(first), encoding="utf-8")
    again = settings.read(file, "kd")
    assert (again.recipe, again.actors, again.fields, again.options) == (first.recipe, first.actors, first.fields, first.options)


def test_a_field_of_a_recipe_goes_before_an_option_of_its_name(tmp_path, monkeypatch):
    fields = [Field("size", "float", 0.5, "of the result"), Field("steps", "int", 9, "")]
    monkeypatch.setattr(recipe, "fields", lambda name: fields)
    found = parse("kd", "--size", "0.25", "--channels", "1")
    assert found.fields == {"size": 0.25, "steps": 9} and found.options["size"] == 0 and found.options["channels"] == 1
    (tmp_path / "settings.yaml").write_text(settings.write(found))
    again = settings.read(tmp_path / "settings.yaml")
    assert (again.fields, again.options) == (found.fields, found.options)


def test_every_reader_of_yaml_understands_the_file_alike():
    first = parse("kd", "--lr", "1e-5", "--decay", "3e20", "--student", "no", "--save-every", "1e300")
    plain = yaml.safe_load(settings.write(first))
    assert plain["lr"] == 1e-5 and plain["decay"] == 3e20 and plain["save_every"] == 1e300 and plain["student"] == "no"
    assert plain["recipe"] == "kd" and plain["watch"] == []


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(lr=st.floats(allow_nan=False), steps=st.integers(), student=TEXT)
def test_any_value_comes_back(tmp_path_factory, lr, steps, student):
    base = settings.defaults("kd")
    first = dataclasses.replace(base, actors={"student": student}, fields={**base.fields, "lr": lr, "steps": steps})
    file = tmp_path_factory.mktemp("yaml") / "settings.yaml"
    file.write_text(settings.write(first), encoding="utf-8")
    again = settings.read(file)
    assert (again.fields, again.actors) == (first.fields, first.actors)
    assert [type(v) for v in again.fields.values()] == [type(v) for v in first.fields.values()]


def test_the_file_is_read_as_a_person_writes_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: kd\nlr: 5e-4\nalpha: 1   # whole\ndecay: 1_0.5\nsteps: 1_000\n"
                    "watch: [loss]\nstudent: timm:resnet18?a=1\n")
    found = settings.read(file)
    assert found.fields["lr"] == 5e-4 and found.fields["decay"] == 10.5 and found.fields["steps"] == 1000
    assert found.fields["alpha"] == 1.0 and type(found.fields["alpha"]) is float
    assert found.options["watch"] == ("loss",) and found.actors == {"student": "timm:resnet18?a=1"}
    assert found.given == {"lr", "alpha", "decay", "steps", "watch", "student"}


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("alpha: 0.3\nlr: 0.2\nseed: 5\nstudent: small:mlp\ncompile: true\n")
    found = parse("kd", "--config", str(file), "--lr", "0.4", "--no-compile")
    assert (found.fields["alpha"], found.fields["lr"], found.options["seed"]) == (0.3, 0.4, 5)
    assert found.actors == {"student": "small:mlp"} and found.options["compile"] is False
    assert found.given == {"alpha", "lr", "seed", "student", "compile"}


@pytest.mark.parametrize(("text", "wrong", "remedy"), [
    ("alpa: 0.5", "'alpa' is not a setting of kd", "'alpha'"),
    ("folder: here", "'folder' is not a setting", ""),
    ("alpha: much", "alpha is 'much', text", "a number"),
    ("alpha: true", "true or false", "a number"),
    ("steps: 1.5", "steps is 1.5, a number", "a whole number"),
    ("steps: '60'", "steps is '60', text", "a whole number"),
    ("compile: 1", "compile is 1, a whole number", "true or false"),
    ("student: 18", "student is 18, a whole number", "text"),
    ("alpha:", "alpha is None, nothing", "a number"),
    ("watch: accuracy", "watch is 'accuracy', text", "a list in brackets"),
    ("watch: [accurcy]", "watch[0] is 'accurcy'", "'accuracy'"),
    ("precision: bf-16", "precision is 'bf-16'", "'bf16'"),
    ("lr: {start: 1}", "a block", "a number"),
    ("alpha: 0.5\nalpha: 0.6", "'alpha' stands there twice", "one of the two"),
    ("alpha: [0.5", "is not YAML", "one `name: value` a line"),
    ("- alpha", "holds no settings", "recipe: kd"),
    ("", "holds no settings", "recipe: kd"),
    ("recipe: nkd_uskd", "is for 'nkd_uskd', not for 'kd'", "run nkd_uskd"),
    ("recipe: [kd]", "does not say which recipe", "recipe: kd"),
    ("!!python/object/apply:os.system [echo]", "is not YAML", ""),
])
def test_a_wrong_file_is_refused_with_its_remedy(tmp_path, text, wrong, remedy):
    said = refused(tmp_path, text)
    first, _, second = said.partition("\n")
    assert wrong in first and remedy in second
    assert "settings.yaml" in first


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(Refused, match="No such file"):
        settings.read(tmp_path / "none.yaml", "kd")
    with pytest.raises(Refused, match="cannot be read"):
        settings.read(tmp_path, "kd")
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(Refused, match="not text"):
        settings.read(tmp_path / "picture.yaml", "kd")


def test_a_file_without_a_recipe_needs_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("alpha: 0.5\n")
    with pytest.raises(Refused, match="does not say which recipe"):
        settings.read(file)
    assert settings.read(file, "kd").fields["alpha"] == 0.5


@pytest.mark.parametrize(("words", "value", "kept"), [
    ("tuple[float, ...]", [1, 2.5], (1.0, 2.5)), ("tuple[float, float]", [0.4, 1], (0.4, 1.0)), ("tuple[str, ...]", [], ()),
    ("Literal['a', 'b']", "b", "b"), ("float", -3, -3.0), ("bool", False, False)])
def test_types_that_a_recipe_may_name(words, value, kept):
    found = settings.typed(value, settings.hint(words), "x")
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(("words", "value"), [
    ("tuple[float, float]", [1.0]), ("tuple[int, ...]", [1.5]), ("tuple[int, ...]", 3), ("Literal['a']", "c"), ("int", True),
    ("str", None)])
def test_values_that_are_not_of_their_type(words, value):
    with pytest.raises(Refused):
        settings.typed(value, settings.hint(words), "x")


def test_a_type_in_a_recipe_runs_no_code():
    with pytest.raises(NameError):
        settings.hint("__import__('os')")


def test_write_keeps_infinities_apart():
    base = settings.defaults("kd")
    text = settings.write(Settings("kd", {}, {**base.fields, "lr": math.inf, "decay": -math.inf}, base.options, frozenset()))
    assert "lr: .inf" in text and "decay: -.inf" in text
