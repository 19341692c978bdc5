"""What a word on the command line stands for, by the annotation of the actor that it plays."""

import ast
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.zoo import arrays, language, own
from stillroom.zoo.data import data
from stillroom.zoo.from_files import callable_in
from stillroom.zoo.models import model
from stillroom.zoo.oracles import oracle
from stillroom.zoo.specs import near, parse

MODEL = ("classes", "channels", "size", "pretrained")
DATA = ("channels", "size", "skip_corrupt", "split", "seed")


def actor(annotation: str, spec: str, **context: Any) -> Any:
    """The actor that `spec` names, by its annotation in `distill`.

    Module            a model; `list[Module]` several, separated by commas
    Dataset           data; `list[Dataset]` several, separated by commas
    Nodes             planetoid:NAME, hypergraph:NAME, or what file:PATH.py:callable returns, PyTorch Geometric's too
    Env, Envs         a world: gym:ID
    Tensor            npz:PATH?array=NAME, `sentences` about the classes, or all images of a data set
    Callable          file:PATH.py:callable, not called; rewards: number, exact, matching:EXPRESSION; detectors: patterns, nothing
    Oracle            a teacher that only answers: oracle:URL#MODEL, or oracle:file:PATH.py:callable
    Space, Ontology, Task  what file:PATH.py:callable returns, called with its options
    int, float, str   the value itself

    context: `classes`, `channels`, `size`, `pretrained` for models; `channels`, `size`, `skip_corrupt`, `split`, `seed` for data;
    `speaks`, folder or name of the model whose tokenizer reads and writes where a name says no other. Raises `Refused`.
    """
    unknown = [k for k in context if k not in (*MODEL, *DATA, "speaks")]
    if unknown:
        raise TypeError(f"actor() has no argument {unknown[0]!r}")
    of_model, of_data = ({k: v for k, v in context.items() if k in keys} for keys in (MODEL, DATA))
    speaks = context.get("speaks", "")
    annotation = annotation.removesuffix(" | None")
    kind = annotation.partition("[")[0].rpartition(".")[2]
    if kind == "Module":
        return model(spec, **of_model)
    if kind in ("list", "Sequence", "tuple") and "Module" in annotation:
        return [model(part, **of_model) for part in spec.split(",")]
    if kind == "Dataset":
        return data(language.told(spec, speaks), **of_data)
    if kind == "list" and "Dataset" in annotation:
        return [data(language.told(part, speaks), **of_data) for part in spec.split(",")]
    if kind == "Nodes":
        return graph(spec)
    if kind.startswith("Env"):
        return env(spec)
    if kind == "Tensor":
        if parse(spec).kind == "sentences":
            return language.sentences(parse(spec), context.get("classes"), speaks)
        return _tensor(spec, of_data)
    if kind == "Callable":
        return callable_in(parse(spec))[1] if spec.startswith("file:") else language.named(spec, speaks)
    if kind in ("Space", "Ontology", "Task"):
        return own.called(parse(spec), classes=context.get("classes"), channels=context.get("channels"))
    if kind == "Oracle":
        return oracle(spec)
    if kind in ("int", "float", "str", "bool"):
        return _value(kind, spec)
    raise Refused(f"a {annotation} cannot be named on the command line", "call the recipe from Python and hand it over")


def graph(spec: str) -> Any:
    """A graph or hypergraph of nodes by name; of a shared one the labels of its public training nodes. Raises `Refused`."""
    from stillroom.zoo import graphs

    asked = parse(spec)
    if asked.kind == "planetoid":
        found = graphs.planetoid(asked.name)
        return found.graph.known(found.train)
    if asked.kind == "hypergraph":
        found = graphs.hypergraph(asked.name)
        return found.graph.known(found.splits[0][0])
    if asked.kind == "file":
        return own.called(asked)
    raise Refused(f"{spec!r} names no graph", "graphs read planetoid:cora, hypergraph:cocitation/cora or file:PATH.py:callable")


def env(spec: str) -> Any:
    """A world by name: `gym:CartPole-v1`, `gym:MiniGrid-DoorKey-6x6-v0`. Raises `Refused`."""
    asked = parse(spec)
    if asked.kind != "gym" or not asked.name:
        raise Refused(f"{spec!r} names no world", f"did you mean 'gym:{spec}'?" if not asked.name else "worlds read gym:ID")
    from stillroom._compat import package

    gymnasium = package("gymnasium")
    if asked.name.startswith("MiniGrid"):
        package("minigrid")                       # it registers its worlds when it is imported
    if asked.name not in gymnasium.registry:
        raise Refused(f"gymnasium has no world {asked.name!r}", near(asked.name, gymnasium.registry))
    from stillroom.parts.ppo import Envs

    return Envs(asked.name, **asked.options)


def _tensor(spec: str, context: dict[str, Any]) -> Tensor:
    asked = parse(spec)
    if asked.kind == "npz" and "array" in asked.options:
        found = arrays.read(asked.name)
        name = asked.options["array"]
        if name not in found:
            raise Refused(f"{asked} has no array {name!r}", near(str(name), found, "it has"))
        return torch.from_numpy(found[name])
    held = data(spec, **context)
    return torch.stack([held[i][0] for i in range(len(held))])


def _value(kind: str, spec: str) -> Any:
    if kind == "str":
        return spec
    try:
        value = ast.literal_eval(spec.capitalize() if kind == "bool" else spec)
    except (ValueError, SyntaxError) as error:
        raise Refused(f"{spec!r} is no {kind}", f"give a {kind}") from error
    if type(value).__name__ != kind and not (kind == "float" and isinstance(value, int)):
        raise Refused(f"{spec!r} is no {kind}", f"give a {kind}")
    return float(value) if kind == "float" else value
