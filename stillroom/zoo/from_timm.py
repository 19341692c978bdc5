"""timm's models: by name, or from a folder that timm has written (`timm.models.save_for_hf`)."""

from pathlib import Path
from typing import Any

from torch import Tensor

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.zoo import weights
from stillroom.zoo.built import IMAGENET, Built, Wish, not_built
from stillroom.zoo.specs import Spec, near

LOADING = ("weights", "fresh", "pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
DATA = ("mean", "std", "input_size", "fixed_input_size", "classifier", "first_conv", "label_names")     # read of a description


def build(asked: Spec, wish: Wish) -> Built:
    """Channels, classes and image size as wished; timm adapts trained weights to them. Raises `Refused`."""
    timm = package("timm")
    name, options = asked.name, dict(asked.options)
    state: dict[str, Tensor] | None = None
    saved: dict[str, Any] = {}
    described: dict[str, Any] = {}
    hub = False
    if timm.is_model(name):
        state = weights.read(options.pop("weights")) if "weights" in options else None
    elif Path(name).is_dir():
        name, saved, described, state = _folder(Path(name))
    elif "/" in name and wish.pretrained:
        hub = True
    else:
        raise Refused(f"timm has no model {name!r}", near(name.split(".")[0], timm.list_models()))
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if "." in name and not hub and name not in tags:
        raise Refused(f"timm has no weights {name!r}", near(name, tags, "it has"))
    known = None if hub else timm.get_pretrained_cfg(name)
    about = {**(known.to_dict() if known else {}), **described}
    trained = about.get("num_classes", 1000)
    overlay = dict(described)
    if state is not None:
        trained = _classes(state, about.get("classifier"), trained)
        overlay |= {"state_dict": state, "num_classes": trained, "custom_load": False}
    classes = wish.classes if wish.classes is not None or state is None else trained
    wished = {"num_classes": classes, "in_chans": wish.channels, "img_size": wish.size if about.get("fixed_input_size") else None}
    arguments = saved | {k: v for k, v in wished.items() if v is not None} | options
    try:
        net = timm.create_model(f"hf-hub:{name}" if hub else name, pretrained=wish.pretrained or state is not None, **arguments,
                                **({"pretrained_cfg_overlay": overlay} if overlay else {}))
    except Exception as error:
        local = f"timm:FOLDER (written by timm.models.save_for_hf) or {asked}?weights=FILE"
        raise not_built(asked, wish, error, local) from error
    net.pretrained_cfg.pop("state_dict", None)      # a second copy of the weights
    if hub:
        about, name = net.pretrained_cfg, net.pretrained_cfg["architecture"]
        trained = about["num_classes"]
    drawn = (state is None and not wish.pretrained) or net.num_classes != trained
    side = arguments.get("img_size") or wish.size or about.get("input_size", (3, 224, 224))[1:]
    height, width = (side, side) if isinstance(side, int) else side
    _refuse_odd_patches(net, asked, about, (height, width))
    names = wish.names if drawn else about.get("label_names") or wish.names
    return Built(net, f"timm:{name}", {k: v for k, v in arguments.items() if k != "num_classes"}, net.num_classes,
                 list(names) if names else None, (arguments.get("in_chans", 3), int(height), int(width)),
                 (about.get("mean", IMAGENET[0]), about.get("std", IMAGENET[1])), drawn)


def _folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Architecture, its arguments, what it says of its data, and its weights."""
    raw = weights.configuration(folder / "config.json")
    if "architecture" not in raw:
        raise Refused(f"{folder / 'config.json'} is not timm's: it names no architecture",
                      f"did you mean hf:{folder}?" if "model_type" in raw else "write it with timm.models.save_for_hf")
    files = [f for f in ("model.safetensors", "pytorch_model.bin") if (folder / f).is_file()]
    if not files:
        raise Refused(f"{folder} holds no weights", "put model.safetensors there")
    arguments = {k: v for k, v in (raw.get("model_args") or {}).items() if k not in LOADING}
    described = {k: v for k, v in {**raw, **raw.get("pretrained_cfg", {})}.items() if k in DATA}
    return raw["architecture"], arguments, described, weights.read(folder / files[0])


def _classes(state: dict[str, Tensor], classifier: Any, otherwise: int) -> int:
    """Number of classes of saved weights, by their last layer."""
    head = f"{classifier[0] if isinstance(classifier, tuple | list) else classifier}.weight"
    return state[head].shape[0] if head in state else otherwise


def _refuse_odd_patches(net: Any, asked: Spec, about: dict[str, Any], size: tuple[int, int]) -> None:
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if about.get("fixed_input_size") and isinstance(patch, tuple) and any(s % p for s, p in zip(size, patch, strict=True)):
        raise Refused(f"{asked} cuts images into patches of {patch[0]} × {patch[1]}; {size[0]} × {size[1]} is no multiple",
                      f"give a size that is, or smaller patches: {asked}?patch_size=…")
