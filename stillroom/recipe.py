"""What a method is: the contract, its card, and how it is found by its file name. Imports no torch."""

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from stillroom.errors import Refused, nearest

ROOT = Path(__file__).parent / "recipes"
BASELINE = {"alone": ROOT.parent / "arenas" / "alone.py"}      # a recipe without paper, hence without card, trial and proof
ROWS = ("teacher", "reads", "adapter", "compares", "views", "data", "weights", "learns", "stages", "note")


class Recipe:
    """A method. Fields are the paper's hyper-parameters, all with defaults; `distill` is the paper's algorithm.

    A recipe is used by calling it: `KD(alpha=0.5)(Run(), student=net, teacher=big, data=images)`. The call checks the
    actors, puts them on the run's device, and hands them to `distill`, which returns what was made.
    """

    distill: Any     # def distill(self, run, **actors): loops with `run.loop`, learns with `run.update`, returns what was made

    def __call__(self, run=None, **actors) -> Any:
        """Check the actors, place them on the device, distil. Raises `Refused` before any work is lost."""
        from stillroom import checks
        from stillroom.run import Run

        run = run or Run()
        checks.before(self, run, actors)
        with run:
            return run.finish(self.distill(run, **{k: run.place(v) for k, v in actors.items()}))


@dataclass(frozen=True)
class Card:
    """What the docstring on top of a recipe's file says: the paper, and the answers to the eight questions."""

    name: str
    family: str
    path: Path
    short: str       # "KD"
    title: str       # "Distilling the Knowledge in a Neural Network"
    authors: str
    venue: str
    link: str
    rows: dict[str, str]

    @property
    def year(self) -> str:
        return next((w for w in self.venue.replace(",", " ").split()[::-1] if w.isdigit() and len(w) == 4), "")

    @property
    def reconstruction(self) -> bool:
        """True when the paper leaves constants open and the card says so."""
        return "reconstruction" in self.rows.get("note", "")


@dataclass(frozen=True)
class Field:
    """One flag: a hyper-parameter of the recipe, or an actor of its `distill`."""

    name: str
    type: str
    default: Any     # `...` when the caller must give it
    help: str


def names() -> list[str]:
    """Names of all recipes: the names of their files."""
    return sorted(_files())


@cache
def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(ROOT.glob("*/*.py")):
        if path.stem != "__init__":
            if path.stem in found:
                raise RuntimeError(f"two recipes are called {path.stem!r}: {found[path.stem]} and {path}")
            found[path.stem] = path
    return found


def path(name: str) -> Path:
    """The file of a recipe. Raises `Refused` with the nearest known name."""
    if name not in _files():
        raise Refused(f"no recipe is called {name!r}", nearest(name, _files()))
    return _files()[name]


def card(name: str) -> Card:
    """The card of a recipe, read from its file's first docstring without importing it. Raises `ValueError` if malformed."""
    file = path(name)
    text = file.read_text(encoding="utf-8")
    if not text.startswith('"""'):
        raise ValueError(f"{file}: a recipe starts with its card, a docstring")
    lines = text[3 : text.index('"""', 3)].splitlines()
    short, _, title = lines[0].partition(": ")
    source = next((line for line in lines[1:] if line.strip()), "").split(" — ")
    if not title or len(source) != 3 or not source[2].startswith("http"):
        raise ValueError(f"{file}: a card starts with 'SHORT: Title', then 'Authors — venue — https://…'")
    rows: dict[str, str] = {}
    for line in lines[1:]:
        word, _, rest = line.strip().partition(" ")
        if line.startswith("    ") and word in ROWS and rest.startswith(" "):
            rows[word] = rest.strip()
        elif line.startswith("          ") and rows:
            rows[list(rows)[-1]] += " " + line.strip()
    missing = {"teacher", "compares", "learns"} - set(rows)
    if missing:
        raise ValueError(f"{file}: the card has no row {', '.join(sorted(missing))}")
    authors, venue, link = map(str.strip, source)
    return Card(name, file.parent.name, file, short, title, authors, venue, link, rows)


def _source(name: str) -> Path:
    return BASELINE.get(name) or path(name)


@cache
def _tree(name: str) -> tuple[ast.ClassDef, dict[int, str]]:
    """The recipe's class and the comment of every line, from the source alone."""
    text = _source(name).read_text(encoding="utf-8")
    classes = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef)
               and any(isinstance(b, ast.Name) and b.id == "Recipe" for b in n.bases)]
    if len(classes) != 1:
        raise ValueError(f"{_source(name)}: a file holds exactly one Recipe, this one {len(classes)}")
    comments = {t.start[0]: t.string.lstrip("# ").strip()
                for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT}
    return classes[0], comments


def fields(name: str) -> list[Field]:
    """Hyper-parameters of a recipe: name, type, default and the comment beside it, without importing it."""
    node, comments = _tree(name)
    return [Field(n.target.id, ast.unparse(n.annotation), ast.literal_eval(n.value), comments.get(n.end_lineno or 0, ""))
            for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.value]


def actors(name: str) -> list[Field]:
    """Annotated arguments of `distill` after `self` and `run`: who plays in this method, without importing it."""
    node, comments = _tree(name)
    distill = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "distill")
    args = distill.args.args[2:]
    defaults = [...] * (len(args) - len(distill.args.defaults)) + [ast.literal_eval(d) for d in distill.args.defaults]
    return [Field(a.arg, ast.unparse(a.annotation) if a.annotation else "Any", d, comments.get(a.lineno, ""))
            for a, d in zip(args, defaults, strict=True)]


def claim(name: str) -> tuple[str, str]:
    """What its trial is and what its proof claims, in the words of their docstrings, without importing it."""
    told = {n.name: ast.get_docstring(n) for n in ast.parse(path(name).read_text(encoding="utf-8")).body
            if isinstance(n, ast.FunctionDef)}
    trial, proof = (" ".join((told.get(what) or "").split()) for what in ("trial", "proof"))
    return trial, proof


def module(name: str):
    """The recipe's module, imported: its class, `trial` and `proof`."""
    return import_module(".".join(_source(name).relative_to(ROOT.parents[1]).with_suffix("").parts))


def load(name: str) -> type[Recipe]:
    """The recipe's class."""
    return getattr(module(name), _tree(name)[0].name)
