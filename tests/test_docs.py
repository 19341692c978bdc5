"""The generated pages are those of today's cards, sources and proofs; what the README names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

from stillroom import recipe
from stillroom._compat import package
from stillroom.cli import commands

ROOT = Path(__file__).parents[1]


def test_the_pages_are_current():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    for path, text in build.pages().items():
        assert path.exists() and path.read_text(encoding="utf-8") == text, f"{path.name} is old: make docs"


def test_every_command_and_recipe_that_the_readme_calls_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    called = set(re.findall(r"^stillroom (\w+)", text, re.M))
    assert called and called <= set(commands())
    for line in re.findall(r"^stillroom (?:run|compare|try|show|cite|prove) ([\w ]+?)(?: --|\s*$)", text, re.M):
        assert set(line.split()) <= set(recipe.names()), line


def test_every_link_of_readme_and_guides_to_a_file_leads_somewhere():
    for page in (ROOT / "README.md", *ROOT.glob("docs/guides/*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guide_to_names_knows_every_recipe_and_every_name():
    from stillroom import recipe
    from stillroom.zoo import language, models
    from stillroom.zoo.data import NAMED

    text = (ROOT / "docs" / "guides" / "names.md").read_text(encoding="utf-8")
    assert not [name for name in recipe.names() if f"`{name}`" not in text]
    assert not [kind for kind in (*models.KINDS, *NAMED) if f"`{kind}:" not in text]
    assert not [word for word in language.CALLABLES if f"`{word}" not in text]


def test_the_guide_to_the_store_names_every_augmentation_with_its_numbers():
    from stillroom.store.augments import NAMED, numbers

    text = (ROOT / "docs" / "guides" / "store.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.M))
    assert {name: " ".join(f"{k}={v:g}" for k, v in numbers(name).items()) for name in NAMED} == told


def test_the_example_of_the_guide_to_language_models_runs():
    pytest.importorskip("transformers", reason="the extra `text` is not installed")
    package("transformers")
    text = (ROOT / "docs" / "guides" / "text.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    assert names["logp"].shape == names["told"].said.shape and len(names["logp"]) == 6 and (names["logp"] <= 0).all()
