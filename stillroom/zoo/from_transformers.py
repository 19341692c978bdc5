"""Models of transformers: a folder, a name of the hub, or a configuration. They classify images, pixels or texts (hf:), go on
with texts (lm:), are two towers (clip:), or hear (speech:). No foreign code is run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.models import hubert, towers
from stillroom.models.segmenter import enlarged
from stillroom.zoo import from_timm, weights
from stillroom.zoo.built import IMAGENET, Built, Scale, Wish, first_line, not_built
from stillroom.zoo.specs import Spec, near

FOREIGN = ("auto_map", "quantization_config", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
           "_attn_implementation_internal", "_name_or_path", "transformers_version", "use_kernels")     # code, or no part of it


WAYS: dict[str, Callable[[Any], Module]] = {"": lambda net: net, "slices": hubert.like, "mean": hubert.MeanStates}
Make = Callable[[dict[str, Any], Spec, Wish, str | None], Built]      # of configuration, name, wish and source of weights


def build(asked: Spec, wish: Wish, make: Make | None = None) -> Built:
    """A folder is loaded with its weights (`?fresh=yes`: without), so is a name of the hub, but a classifier only where
    `pretrained` says so. Raises `Refused`."""
    package("transformers")
    folder, options = Path(asked.name).expanduser(), dict(asked.options)
    fresh = bool(options.pop("fresh", False))
    asked, make = asked._replace(options=options), make or classifier
    if not folder.is_dir():
        if asked.name.startswith((".", "/", "~")) or asked.name.count("/") > 1:
            raise Refused(f"{folder} is no folder", "name a folder with config.json and model.safetensors, or a model of the hub")
        raw = weights.configuration(str(hub_file(asked.name, "config.json", asked)))
        wish = wish._replace(pretrained=not fresh and (wish.pretrained or make is not classifier))
        return make(raw, asked, wish, asked.name if wish.pretrained else None)
    raw = weights.configuration(folder / "config.json")
    if "architecture" in raw and "model_type" not in raw:
        return from_timm.build(asked._replace(name=str(folder)), wish)
    weights.refuse_foreign_shards(folder)
    there = bool(list(folder.glob("*.safetensors")))
    if not there and not fresh and (wish.pretrained or list(folder.glob("*.bin"))):
        raise Refused(f"{folder} holds no safetensors, and pickles are not read",
                      f"write it with model.save_pretrained(folder), or ask for fresh weights: {asked}?fresh=yes")
    return make(raw, asked, wish, str(folder) if there and not fresh else None)


def _configuration(raw: dict[str, Any], asked: Spec) -> Any:
    """What `raw` and the options of the name say, as transformers knows it. Raises `Refused`."""
    package("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(raw.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise Refused(f"{asked}: transformers knows no model type {kind!r}, and code that comes with a model is never run",
                      near(kind, CONFIG_MAPPING))
    config = CONFIG_MAPPING[kind].from_dict({k: v for k, v in raw.items() if k not in FOREIGN} | asked.options)
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config


def language(raw: dict[str, Any], asked: Spec, wish: Wish, source: str | None) -> Built:
    """A causal language model, called as it is; classes, channels and size mean nothing to it."""
    config = _configuration(raw, asked)
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise Refused(f"{asked}: transformers has no causal language model of type {config.model_type!r}",
                      "name a model that goes on with a text, such as a Llama or a GPT")
    net, drawn = _made(AutoModelForCausalLM, config, source, asked, wish)
    return Built(net, f"lm:{asked.name}", {}, None, drawn=drawn, config=_kept(config))


def two_towers(raw: dict[str, Any], asked: Spec, wish: Wish, source: str | None) -> Built:
    """A `TwoTowers` with the halves of CLIP or of a model built like it, or `?half=image` (`text`) alone, which may see crops and
    not the data; images come in [0, 1]."""
    options = dict(asked.options)
    half = options.pop("half", None)
    asked = asked._replace(options=options)
    if half not in (None, "image", "text"):
        raise Refused(f"{asked}: half={half}", "half=image, half=text, or both towers")
    config = _configuration(raw, asked)
    from transformers import AutoModel

    if not hasattr(config, "vision_config") or type(config) not in AutoModel._model_mapping:
        raise Refused(f"{asked}: a {config.model_type!r} has no two towers", "name a CLIP")
    wish = wish._replace(size=None) if half else wish
    _fit(config.vision_config, asked, wish, source)
    net, drawn = _made(AutoModel, config, source, asked, wish)
    pair = towers.towers(net)
    scale, side = _scale(source, asked, wish)
    size = _sides(config.vision_config) or side
    expects = (getattr(config.vision_config, "num_channels", 3), *size) if size else None
    net = getattr(pair, half) if half else pair
    return Built(net, f"clip:{asked.name}", {"half": half} if half else {}, None, None,
                 None if half == "text" else expects, None if half == "text" else scale, drawn, _kept(config))


def speech(raw: dict[str, Any], asked: Spec, wish: Wish, source: str | None) -> Built:
    """An encoder of waves [batch, samples], a HuBERT or its kin, called as it is; `?as=slices`: as a `models.hubert.Hubert`;
    `?as=mean`: the mean of its hidden states, [batch, frames, dim]."""
    options = dict(asked.options)
    way = options.pop("as", "")
    asked = asked._replace(options=options)
    if way not in WAYS:
        raise Refused(f"{asked}: as={way}", "as=slices or as=mean, or the model as it is")
    config = _configuration(raw, asked)
    from transformers import AutoModel

    if not hasattr(config, "conv_kernel") or type(config) not in AutoModel._model_mapping:
        raise Refused(f"{asked}: a {config.model_type!r} reads no waves", "name a HuBERT")
    net, drawn = _made(AutoModel, config, source, asked, wish)
    return Built(WAYS[way](net), f"speech:{asked.name}", {"as": way} if way else {}, None, drawn=drawn, config=_kept(config))


def _made(auto: Any, config: Any, source: str | None, asked: Spec, wish: Wish) -> tuple[Module, bool]:
    try:
        return _net(auto, config, source, asked)
    except Refused:
        raise
    except Exception as error:
        raise not_built(asked, wish, error, f"{asked.kind}:FOLDER") from error


def _kept(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in FOREIGN}


def classifier(raw: dict[str, Any], asked: Spec, wish: Wish, source: str | None) -> Built:
    """A classifier of images, of their pixels or of texts by its configuration, with the weights of `source` (a folder or a name
    of the hub) or fresh ones."""
    config = _configuration(raw, asked)
    from transformers import (
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
        AutoModelForSequenceClassification,
    )

    said = str(config.architectures)
    pixels = "ForSemanticSegmentation" in said
    image = pixels or (type(config) in AutoModelForImageClassification._model_mapping and "Sequence" not in said)
    auto: Any = AutoModelForImageClassification if image else AutoModelForSequenceClassification
    auto = AutoModelForSemanticSegmentation if pixels else auto
    if type(config) not in auto._model_mapping:
        raise Refused(f"{asked}: transformers has no classifier of type {config.model_type!r}",
                      "name a model that classifies images or texts")
    names = _names(config)
    if wish.classes is not None and (source is None or wish.classes != config.num_labels):
        config.num_labels, names = wish.classes, wish.names
        if names:
            config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    if image:
        _fit(config, asked, wish, source)
    net, drawn = _made(auto, config, source, asked, wish)
    net.register_forward_pre_hook(_named, with_kwargs=True)
    net.register_forward_hook(_logits, with_kwargs=True)
    scale, side = _scale(source, asked, wish) if image else (None, None)
    size = wish.size or _sides(config) or side
    return Built(net, f"hf:{asked.name}", {}, config.num_labels, names or wish.names,
                 (getattr(config, "num_channels", 3), *size) if image and size else None, scale, drawn, _kept(config))


def _net(auto: Any, config: Any, source: str | None, asked: Spec) -> tuple[Module, bool]:
    """The network, and whether its last layer is fresh."""
    if source is None:
        return auto.from_config(config, trust_remote_code=False, dtype=torch.float32), True
    with _quietly():
        net, told = auto.from_pretrained(source, config=config, dtype=torch.float32, use_safetensors=True,
                                         ignore_mismatched_sizes=True, trust_remote_code=False, output_loading_info=True)
    fresh = {*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])}
    inside = "" if net.base_model is net else f"{net.base_model_prefix}."
    body = sorted(k for k in fresh if k.startswith(inside) and ".pooler." not in k and k != "masked_spec_embed")
    if body:
        some = ", ".join(body[:3]) + (" …" if body[3:] else "")
        raise Refused(f"the weights in {source} do not fit {type(net).__name__}: {some} would stay untrained",
                      f"check its config.json, or ask for fresh weights: {asked}?fresh=yes")
    return net, bool(fresh)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own report and progress bar: what is fresh is told by `drawn`."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _fit(config: Any, asked: Spec, wish: Wish, source: str | None) -> None:
    """Channels and image size as wished; refused where trained weights have others."""
    channels, size = getattr(config, "num_channels", 3), _sides(config)
    if wish.channels is not None and wish.channels != channels:
        if source is not None:
            raise Refused(f"the weights of {asked} take {channels} channels; {wish.channels} were asked",
                          f"let the data have channels={channels}")
        config.num_channels = wish.channels
    if wish.size is not None and size is not None and wish.size != size:
        if source is not None:
            asks = f"{wish.size[0]} × {wish.size[1]}"
            raise Refused(f"the weights of {asked} take images of {size[0]} × {size[1]}; {asks} was asked",
                          f"let the data have size={size[0] if size[0] == size[1] else size}")
        config.image_size = wish.size[0] if wish.size[0] == wish.size[1] else list(wish.size)


def _scale(source: str | None, asked: Spec, wish: Wish) -> tuple[tuple[Scale, Scale], tuple[int, int] | None]:
    """Mean, std and image size of the image processor; what it does to 0 … 255 is said for [0, 1] here."""
    if source is None:
        return IMAGENET, None
    told: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = Path(source, name) if Path(source).is_dir() else hub_file(source, name, asked, needed=False)
        if not told and file and Path(file).is_file():
            raw = weights.configuration(file)
            told = raw.get("image_processor", raw)
    if not told and (wish.mean is None or wish.std is None):
        raise Refused(f"{source} does not say on which input scale it was trained: it has no preprocessor_config.json",
                      f"save its image processor beside it, or name the scale: {asked}?mean=(0.5,0.5,0.5)&std=(0.5,0.5,0.5)")
    unit = 255 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255.0
    shift = 1.0 if told.get("rescale_offset") else 0.0
    mean: Sequence[float] = (told.get("image_mean") or IMAGENET[0]) if told.get("do_normalize", True) else (0.0,)
    std: Sequence[float] = (told.get("image_std") or IMAGENET[1]) if told.get("do_normalize", True) else (1.0,)
    size = told.get("size")
    side = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    return ([(m + shift) / unit for m in mean], [s / unit for s in std]), (int(side), int(side)) if side else None


def _names(config: Any) -> list[str] | None:
    """Names of the classes; None where they only have numbers."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _sides(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "image_size", None)
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def hub_file(name: str, file: str, asked: Spec, needed: bool = True) -> str | None:
    from transformers.utils import cached_file

    try:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=needed,
                           _raise_exceptions_for_connection_errors=needed)
    except Exception as error:
        raise Refused(f"{asked} could not be fetched: {first_line(error)}",
                      "without a network put its config.json and model.safetensors into a folder and name hf:FOLDER") from error


def _named(_net: Module, inputs: tuple, named: dict[str, Any]):
    """A batch of texts is a dict: its entries become the arguments."""
    return (inputs[1:], {**inputs[0], **named}) if inputs and isinstance(inputs[0], dict) else None


def _logits(net: Any, inputs: tuple, named: dict[str, Any], output: Any) -> Any:
    """Logits alone, of pixels as many as the image has, unless hidden states or attention were asked for, in the call or in the
    configuration."""
    more = named.get("output_hidden_states") or named.get("output_attentions") or net.config.output_hidden_states
    if more or output.logits.ndim != 4:
        return output if more else output.logits
    return enlarged(output.logits, inputs[0] if inputs else named["pixel_values"])
