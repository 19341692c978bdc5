"""The generated pages are those of today's cards, sources and proofs; what the README names exists."""

import importlib.util
import re
from pathlib import Path

from stillroom import recipe
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


def test_every_link_of_the_readme_to_a_file_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
