"""Models by name. Each takes images in [0, 1] and normalises them itself, by hooks that leave the names of its weights alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import Module

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.models.towers import TwoTowers
from stillroom.parts import placement
from stillroom.zoo import from_files, from_timm, from_torchvision, from_transformers
from stillroom.zoo.built import Built, Wish, finish, head_digest
from stillroom.zoo.specs import Spec, near, parse

OF_TRANSFORMERS = {"hf": from_transformers.classifier, "lm": from_transformers.language,
                   "clip": from_transformers.two_towers, "speech": from_transformers.speech}
SOURCES: dict[str, Callable[[Spec, Wish], Built]] = {
    "timm": from_timm.build, "torchvision": from_torchvision.build,
    **{kind: partial(from_transformers.build, make=make) for kind, make in OF_TRANSFORMERS.items()},
    "file": from_files.own, "small": partial(from_files.ours, home="stillroom.models.small"),
    "field": partial(from_files.ours, home="stillroom.models.fields")}
KINDS = (*SOURCES, "run", "store")


def model(spec: str, *, classes: int | Sequence[str] | None = None, channels: int | None = None,
          size: int | tuple[int, int] | None = None, pretrained: bool = False) -> Module:
    """A model by name: logits [batch, classes] of images [batch, channels, height, width] in [0, 1].

    timm:NAME or FOLDER · torchvision:NAME · hf:NAME or FOLDER (a classifier of images, pixels or texts) · lm:NAME or FOLDER (a
    causal language model) · clip:NAME or FOLDER (two towers; `?half=image`: one) · speech:NAME or FOLDER (a HuBERT; `?as=slices`,
    `?as=mean`) · file:PATH.py:callable · run:FOLDER (made before) · store:FOLDER (what a teacher said) · small:mlp, small:cnn,
    small:segmenter, small:detector, small:codec, small:judges · field:mlp, field:table, field:planes, field:volume (radiance
    fields); options as `timm:resnet18?drop_rate=0.1`, weights on this machine as `torchvision:resnet18?weights=FILE`, an input
    scale as `?mean=0.5&std=0.5`. A folder is loaded with its weights, and so is lm:, clip: or speech: from the hub; `pretrained`
    fetches those of classifiers. Fresh ones are drawn from torch's global generator. A teacher's `?place=8bit`, `offload`,
    `blocks` or `blocks:N` says where its weights lie (`parts.placement`).

    classes     their number, or their names
    size        height and width of the images, or one number for both

    The model carries `origin` (what rebuilds it, JSON), `classes` (names or None), `expects` ((channels, height, width) or
    None) and `drawn` (digest of a last layer that was never trained, or None). A text model takes a dict of tensors.
    Raises `Refused` when a name is unknown, a package is missing, or weights are not there or do not fit.
    """
    asked = parse(spec)
    if asked.kind == "oracle":
        raise Refused(f"{asked} answers in words, and this method reads a teacher's numbers",
                      "name a model, or take a method whose teacher is an oracle, such as ade_distill")
    if asked.kind not in KINDS or not asked.name:
        known = "models read " + ", ".join(f"{kind}:…" for kind in KINDS)
        raise Refused(f"{spec!r} names no model", known if asked.kind in KINDS else
                      f"did you mean 'timm:{spec}'? {known}" if not asked.name else near(asked.kind, KINDS) + " " + known)
    place = str(asked.options.pop("place", "live"))
    if asked.kind == "run":
        return _placed(_made_before(asked.name), place)
    if asked.kind == "store":
        from stillroom.parts.teachers import Cached

        return Cached(asked.name)
    names = list(classes) if isinstance(classes, Sequence) else None
    number = len(classes) if isinstance(classes, Sequence) else classes
    sides = (size, size) if isinstance(size, int) else None if size is None else (int(size[0]), int(size[1]))
    for what, value in (("classes", number), ("channels", channels), ("size", sides and min(sides))):
        if value is not None and value < 1:
            raise Refused(f"{what}={value}", "a whole number from 1")
    options = dict(asked.options)
    wish = Wish(number, names, channels, sides, pretrained, options.pop("mean", None), options.pop("std", None))
    return _placed(finish(SOURCES[asked.kind](asked._replace(options=options), wish), wish), place)


def rebuild(origin: dict[str, Any]) -> Module:
    """The model of an `origin` with fresh weights. Asks no network, reads no weights, runs no code that came with them."""
    if origin["spec"] in ("part:index", "part:archive"):
        from stillroom.models.index import Index
        from stillroom.parts.archive import Archive

        first, *others = (torch.zeros(size) for size in origin["sizes"])
        return Archive(first, origin["weights"]) if origin["spec"] == "part:archive" else Index(first, *others)
    if origin["spec"] == "part:two_towers":
        return TwoTowers(rebuild(origin["image"]), rebuild(origin["text"]))
    if origin["spec"].startswith("part:"):
        from stillroom.parts.heads import ClassVectors, Proxies, Subclasses, TwoHeads, headless
        from stillroom.parts.prompts import Prompted

        net: Any = rebuild(origin["model"])
        if origin["spec"] == "part:class_vectors":
            return ClassVectors(net, torch.ones(origin["shape"]), torch.ones(()), origin["dim"])
        x = torch.zeros(1, *origin["sample"])
        if origin["spec"] == "part:prompted":
            if origin["model"].get("options", {}).get("half"):             # of two towers: it has no head, and may read tokens
                return Prompted(net, x if origin["at"] is None else x.long(), origin["count"], origin["depth"], origin["at"])
            return Prompted(headless(net, x)[0], x, origin["count"], origin["depth"])
        if origin["spec"] == "part:proxies":
            return Proxies(net, x, origin["temperature"])
        return Subclasses(net, x, origin["count"]) if origin["spec"] == "part:subclasses" else TwoHeads(net, x)
    asked = parse(origin["spec"])
    if asked.kind not in SOURCES:
        raise Refused(f"the origin {origin['spec']!r} is unknown",
                      "load the weights into a model: saved.load(folder, into=model)")
    options = {k: _tuples(v) for k, v in origin.get("options", {}).items() if k not in from_timm.LOADING}
    wish = Wish(origin.get("classes"), None, origin.get("channels"), _tuples(origin.get("size")), False,
                origin.get("mean"), origin.get("std"))
    asked = asked._replace(options=options)
    if asked.kind in OF_TRANSFORMERS:
        return finish(OF_TRANSFORMERS[asked.kind](origin["config"], asked, wish, None), wish)
    if asked.kind == "timm" and not package("timm").is_model(asked.name):
        raise Refused(f"this timm knows no {asked.name!r}", "install the version that student.json names")
    if asked.kind == "file":
        from_files.refuse_installed(asked.name)
    return finish(SOURCES[asked.kind](asked, wish), wish)


def _made_before(folder: str) -> Module:
    from stillroom import saved

    made = saved.load(folder)
    if not isinstance(made, Module):
        raise Refused(f"{folder} holds a {type(made).__name__}, no model", "name a folder whose run made a model")
    return made


def _placed(net: Any, place: str) -> Module:
    """The model where its weights should lie; one that was never trained stays known as such."""
    if place == "live":
        return net
    untrained = net.drawn is not None and net.drawn == head_digest(net)
    net = placement.placed(net, place)
    net.drawn = head_digest(net) if untrained else None
    return net


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
