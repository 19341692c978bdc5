"""Teachers that only answer, by name."""

from dataclasses import MISSING, fields
from inspect import Parameter, signature
from typing import Any

from stillroom.errors import Refused
from stillroom.parts.oracle import Endpoint, Oracle
from stillroom.zoo.from_files import callable_in
from stillroom.zoo.specs import parse, take

READS = "it reads oracle:http://HOST:PORT/v1#MODEL or oracle:file:PATH.py:callable"
STORE = "answers.db"      # in the working folder


def oracle(spec: str) -> Oracle:
    """A black-box teacher by name: `oracle:URL#MODEL`, or `oracle:file:PATH.py:callable` for a callable from text to text.

    Options are the fields of `Endpoint` and the arguments of `Oracle`: `?key=NAME_OF_VARIABLE&store=FILE&max_tokens=256`.
    Answers are kept in `store`, answers.db when left out. Raises `Refused`.
    """
    asked = parse(spec)
    if asked.kind != "oracle" or not asked.name:
        raise Refused(f"{spec!r} names no oracle", READS)
    own = asked.name.startswith("file:")
    how = {f.name: f.default for f in fields(Endpoint) if f.default is not MISSING}
    asking = {n: p.default for n, p in signature(Oracle).parameters.items() if p.default is not Parameter.empty}
    found = take(asked.options, {**({} if own else how), **asking, "store": STORE, "name": asked.name if own else ""}, asked)
    ask: Any
    if own:
        ask = callable_in(parse(asked.name))[1]
    else:
        url, _, model = asked.name.partition("#")
        stop = found["stop"]
        ask = Endpoint(url, model, **{n: found[n] for n in how} | {"stop": (stop,) if isinstance(stop, str) else tuple(stop)})
    return Oracle(ask, **{n: found[n] for n in asking})
