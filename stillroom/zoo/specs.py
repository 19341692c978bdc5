"""What a name on the command line says: `kind:name?option=value&option=value`."""

import ast
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from stillroom.errors import Refused


class Spec(NamedTuple):
    """`timm:resnet18?drop_rate=0.1` is Spec("timm", "resnet18", {"drop_rate": 0.1})."""

    kind: str
    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse(text: str) -> Spec:
    """Take a name apart. A value is a Python literal where it reads as one, else the text itself."""
    head, _, tail = text.partition("?")
    kind, _, name = head.partition(":")
    options = {}
    for item in filter(None, tail.split("&")):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise Refused(f"{text!r}: the option {item!r} has no value", "options read name?option=value&option=value")
        options[key] = _literal(value)
    return Spec(kind, name, options)


def moved(text: str, home: str | Path) -> str:
    """A name whose path is not here but lies below `home`, meant from there; any other name as it is."""
    head, mark, options = text.partition("?")
    kind, _, name = head.partition(":")
    path = name.rpartition(":")[0] if ".py:" in name else name
    lies = path and not Path(path).exists() and (Path(home) / path).exists()
    return f"{kind}:{Path(home) / name}{mark}{options}" if lies else text


def take(options: dict[str, Any], known: dict[str, Any], of: Spec | str) -> dict[str, Any]:
    """`known` (option: default) filled in from `options`. Raises `Refused` for an unknown option, or one of another type."""
    for key, value in options.items():
        if key not in known:
            raise Refused(f"{of} has no option {key!r}", near(key, known, "its options"))
        default = known[key]
        if isinstance(default, bool | int | float) and (isinstance(value, str) or not isinstance(value, int | float)):
            raise Refused(f"{of}: option {key}={value!r} is not a number", f"e.g. ?{key}={default}")
    return {**known, **options}


def near(word: str, known, what: str = "known") -> str:
    """The nearest known words; all of them when there are few."""
    known = sorted(known)
    found = get_close_matches(word, known, n=3, cutoff=0.6) or get_close_matches(word, known, n=1, cutoff=0.4)
    if found:
        return "did you mean " + " or ".join(map(repr, found)) + "?"
    return f"{what}: {', '.join(known)}" if len(known) <= 25 else f"{what}: {len(known)} names, such as {', '.join(known[:6])}"


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "yes": "True", "no": "False"}.get(value, value))
    except (ValueError, SyntaxError):
        return value
