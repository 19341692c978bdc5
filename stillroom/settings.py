"""What a run is told: the flags of a recipe, and the YAML file that says the same. Imports no torch."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from stillroom import recipe
from stillroom.errors import Refused, nearest
from stillroom.recipe import Field

OPTIONS = [
    Field("seed", "int", 0, "everything random follows from it"),
    Field("device", "str", "auto", "auto, cpu, cuda, cuda:1, mps"),
    Field("precision", "Literal['fp32', 'bf16', 'fp16']", "fp32", "of the step; weights stay fp32"),
    Field("accumulate", "int", 1, "micro-batches per update"),
    Field("compile", "bool", False, "torch.compile every actor"),
    Field("shard", "bool", False, "under torchrun: models in pieces over the ranks, not a copy on each"),
    Field("save_every", "float", 300.0, "seconds between checkpoints"),
    Field("watch", "tuple[Literal['accuracy', 'loss'], ...]", (), "measured on the validation split during training"),
    Field("every", "int", 200, "steps between two watches"),
    Field("trackers", "tuple[Literal['tensorboard', 'wandb', 'mlflow', 'trackio'], ...]", (), "beside log.jsonl"),
    Field("workers", "int", 0, "processes that load data"),
    Field("size", "int", 0, "height and width of the images; 0: as they are"),
    Field("channels", "int", 0, "of the images; 0: as they are"),
    Field("pretrained", "bool", False, "begin from published weights where a name has them"),
    Field("skip_corrupt", "bool", False, "leave damaged images out instead of stopping"),
]
NAMES = {            # what reads as an actor, in a line of help; all of it: docs/guides/names.md
    "Module": "timm:…, hf:…, lm:…, clip:…, speech:…, torchvision:…, small:…, run:FOLDER, file:PATH.py:callable",
    "Dataset": "folder:…, masks:…, boxes:…, prompts:…, passages:…, texts:…, wavs:…, hf:…, npz:…, digits, file:PATH.py:callable",
    "Callable": "number, exact, matching:EXPRESSION, patterns, nothing, file:PATH.py:callable",
    "Tensor": "npz:FILE?array=NAME, sentences, or the images of a data set",
}
ALONE = "alone"      # labels and nothing else, by `stillroom teach`: arenas/alone.py
_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "spec": str, "tuple": tuple, "Literal": Literal}


@dataclass(frozen=True)
class Settings:
    """One use of a recipe, in words and numbers."""

    recipe: str
    actors: dict[str, str]       # name → spec; empty: the recipe's own trial
    fields: dict[str, Any]       # every hyper-parameter of the recipe
    options: dict[str, Any]      # how the machine is used and the data are read
    given: frozenset[str]        # names that the user set; the trial may set the others


def signature(name: str) -> tuple[list[Field], list[Field]]:
    """Actors and fields of a recipe, or of `teach`. An actor that may be left out and that no word can name (such as expert
    trajectories) is only for Python, and is not among them. Raises `Refused` for an unknown recipe."""
    return [a for a in recipe.actors(name) if a.default is ... or _nameable(a.type)], recipe.fields(name)


def options(name: str) -> list[Field]:
    """The options that a recipe leaves: a word that is one of its fields means the field."""
    taken = {f.name for part in signature(name) for f in part}
    return [f for f in OPTIONS if f.name not in taken]


def _nameable(kind: str) -> bool:
    """Whether `zoo.actor` knows what a word means for this annotation."""
    known = ("Module", "Dataset", "Env", "Tensor", "Callable", "Space", "Ontology", "Task", "Oracle", "Nodes")
    return kind in ("int", "float", "bool", "str") or any(word in kind for word in known)


def defaults(name: str) -> Settings:
    """A recipe as it stands in its file, on its own trial."""
    _, fields = signature(name)
    return Settings(name, {}, {f.name: f.default for f in fields}, {f.name: f.default for f in OPTIONS}, frozenset())


def flags(known: Iterable[Field], words: Sequence[str], *, command: str, about: str) -> dict[str, Any]:
    """Values of a command's own flags. Prints help or the parser's error and raises `SystemExit` where the words ask for it."""
    return asdict(_parsed(_members(known, {}), words, command, about))


def parse(name: str, words: Sequence[str], *, command: str, about: str,
          extra: Sequence[Field] = ()) -> tuple[Settings, dict[str, Any]]:
    """Settings from flags, and the values of the command's `extra` flags; `--config FILE` is read first, flags win.

    Prints help or the parser's error and raises `SystemExit` where the words ask for it.
    """
    file = value_of("--config", words)
    base = read(file, name) if file else defaults(name)
    actors, fields = signature(name)
    specs = [Field(a.name, "spec", base.actors.get(a.name, ""), _actor_help(a)) for a in actors]
    groups: dict[str, Any] = {
        "actors": _group("actors", specs, {}, "Who plays: names of models and data."),
        "recipe": _group("recipe", fields, base.fields, "Hyper-parameters, the paper's."),
        "run": _group("run", options(name), base.options, "The machine, and how data are read."),
    }
    found = _parsed([*_members(extra, {}), *((n, type(g), g) for n, g in groups.items())], words, command, about)
    named = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    known = {f.name for f in (*actors, *fields, *options(name))}
    given = base.given | (known & (named | {n.removeprefix("no_") for n in named}))
    chosen = Settings(name, {k: v for k, v in asdict(found.actors).items() if v}, asdict(found.recipe),
                      base.options | asdict(found.run), given)
    return chosen, {f.name: getattr(found, f.name) for f in extra}


def write(settings: Settings) -> str:
    """The settings as YAML, one line a flag with its meaning; `read` gives the same settings back."""
    actors, fields = signature(settings.recipe)
    lines = [f"recipe: {settings.recipe}"]
    for title, known, values in (("who plays", actors, settings.actors), ("hyper-parameters", fields, settings.fields),
                                 ("the machine, and how data are read", options(settings.recipe), settings.options)):
        rows = [(f"{f.name}: {_scalar(values[f.name])}", f.help) for f in known if f.name in values]
        lines += ["", f"# {title}" if rows else f"# {title}: the recipe's own trial"]
        lines += [f"{row:<32}  # {meaning}" if meaning else row for row, meaning in rows]
    return "\n".join(lines) + "\n"


def read(file: str | Path, name: str = "") -> Settings:
    """Settings from a YAML file, strictly. Raises `Refused`: an unknown key, a wrong type, another recipe than `name`."""
    content = _load(Path(file))
    said = content.pop("recipe", name)
    if not isinstance(said, str) or not said:
        raise Refused(f"{file} does not say which recipe it is for", "add a line `recipe: kd`")
    if name and said != name:
        raise Refused(f"{file} is for {said!r}, not for {name!r}", f"run {said}, or take its line `recipe:` out")
    actors, fields = signature(said)
    known = {f.name: f for f in (*actors, *fields, *options(said))}
    for key in content:
        if key not in known:
            raise Refused(f"{file}: {key!r} is not a setting of {said}", nearest(str(key), [*known, "recipe"]))
    base = defaults(said)

    def values(of: Iterable[Field]) -> dict[str, Any]:
        return {f.name: typed(content[f.name], hint(f.type), f"{file}: {f.name}") for f in of if f.name in content}

    specs = [Field(a.name, "spec", "", a.help) for a in actors]
    return Settings(said, values(specs), base.fields | values(fields), base.options | values(options(said)), frozenset(content))


def typed(value: Any, kind: Any, where: str) -> Any:
    """The value as `kind` (int, float, bool, str, Literal, tuple); a whole number may stand for a float. Raises `Refused`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in inner:
            return value
        raise Refused(f"{where} is {value!r}", nearest(str(value), map(str, inner)))
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(kinds) != len(value):
            raise Refused(f"{where} has {len(value)} values", f"it takes {len(kinds)}")
        return tuple(typed(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a list in brackets")
    raise Refused(f"{where} is {value!r}, {_word(value)}", f"it takes {wanted}")


def hint(words: str) -> Any:
    """The type that a recipe's source names: int, float, bool, str, tuple[…], Literal[…]."""
    return eval(words, {"__builtins__": {}}, dict(_TYPES))


def _parsed(members: list[Any], words: Sequence[str], command: str, about: str) -> Any:
    import tyro

    return tyro.cli(make_dataclass("flags", members, frozen=True), args=list(words), prog=command, description=about,
                    config=(tyro.conf.OmitArgPrefixes,))


def _group(name: str, of: Iterable[Field], values: Mapping[str, Any], about: str) -> Any:
    kind = make_dataclass(name, _members(of, values), frozen=True)
    kind.__doc__ = about
    return kind()


def _members(of: Iterable[Field], values: Mapping[str, Any]) -> list[Any]:
    import tyro

    def member(f: Field) -> tuple[str, Any, Any]:
        value = values.get(f.name, f.default)
        hidden = "" if value in ("", ()) else None       # "(default: )" tells nobody anything
        about = tyro.conf.arg(help=f.help or "-", metavar="SPEC" if f.type == "spec" else None, help_behavior_hint=hidden)
        return f.name, Annotated[hint(f.type), about], value

    return [member(f) for f in of]


def _actor_help(actor: Field) -> str:
    known = next((names for word, names in NAMES.items() if word in actor.type), "")
    return "; ".join(filter(None, (actor.type, actor.help, "" if actor.default is ... else "may be left out", known)))


def value_of(flag: str, words: Sequence[str]) -> str:
    """What follows a flag among the words, empty when it is not there."""
    for i, word in enumerate(words):
        if word == flag:
            return words[i + 1] if i + 1 < len(words) else ""
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return ""


def _scalar(value: Any) -> str:
    """A value as YAML that every reader understands alike: 1.0e-05 with a point, text in quotes."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[str(value)]
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa or not e else mantissa + '.0'}{e}{exponent}"
    return json.dumps(value, ensure_ascii=False)


def _load(file: Path) -> dict[str, Any]:
    import re

    import yaml

    class Strict(yaml.SafeLoader):
        """5e-4 is a number, as in YAML 1.2, and a key stands once."""

        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((k for k in keys if keys.count(k) > 1), None)
            if twice is not None:
                raise Refused(f"{file}: {twice!r} stands there twice", "keep one of the two lines")
            return super().construct_mapping(node, deep)

    Strict.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    number = re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$")
    for first in "-+0123456789":
        Strict.yaml_implicit_resolvers.setdefault(first, []).insert(0, ("tag:yaml.org,2002:float", number))
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Strict)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}",
                      "name a settings file, such as the settings.yaml of a run's folder") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Refused(f"{file} is not YAML: {getattr(error, 'problem', error)}{f', line {mark.line + 1}' if mark else ''}",
                      "one `name: value` a line") from error
    if not isinstance(content, dict):
        raise Refused(f"{file} holds no settings", "one `name: value` a line, such as `recipe: kd`")
    return content


def _word(value: Any) -> str:
    return {bool: "which is true or false", int: "a whole number", float: "a number", str: "text", list: "a list",
            dict: "a block", type(None): "nothing"}.get(type(value), type(value).__name__)
