"""torchvision's classifiers, with their first and last layer changed where the data need it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom._compat import package
from stillroom.errors import Refused
from stillroom.zoo import weights
from stillroom.zoo.built import Built, Wish, not_built
from stillroom.zoo.specs import Spec, near

INCEPTION = ("googlenet", "inception_v3")           # with side outputs in training, and a second normalisation of their own


def build(asked: Spec, wish: Wish) -> Built:
    """Classes by a new last layer, channels by a changed first one, image size where the network has one. Raises `Refused`."""
    package("torchvision")
    from torchvision import models

    name, options = asked.name, dict(asked.options)
    known = models.list_models(module=models)
    if name not in known:
        raise Refused(f"torchvision has no classifier {name!r}", near(name, known))
    file = options.pop("weights", None)
    preset = models.get_model_weights(name).DEFAULT
    shown = preset.transforms()
    loaded = wish.pretrained or file is not None
    extra = _extra(name, wish) | options
    try:
        if file is None and not (loaded and "image_size" in extra):
            net = models.get_model(name, weights=preset if loaded else None, **extra,
                                   **({} if loaded or wish.classes is None else {"num_classes": wish.classes}))
            trained = 1000
        else:
            state = weights.read(file) if file is not None else preset.get_state_dict(progress=False, check_hash=True)
            net, trained = _filled(name, state, extra)
    except Refused:
        raise
    except Exception as error:
        raise not_built(asked, wish, error, f"{asked}?weights=FILE") from error
    drawn = not loaded or wish.classes not in (None, trained)
    if loaded and wish.classes is not None and drawn:
        _new_head(net, wish.classes)
    if wish.channels is not None and wish.channels != 3:
        _new_stem(net, wish.channels)
    scale = (shown.mean, shown.std)
    if name in INCEPTION:                           # its second normalisation amounts to this one and only knows three channels
        net.transform_input, scale = False, (0.5, 0.5)
    names = wish.names if drawn or file is not None else list(preset.meta["categories"])
    height, width = wish.size or (int(shown.crop_size[0]),) * 2
    return Built(net, f"torchvision:{name}", options, trained if wish.classes is None else wish.classes, names,
                 (wish.channels or 3, height, width), scale, drawn)


def _extra(name: str, wish: Wish) -> dict[str, Any]:
    if name in INCEPTION:
        return {"aux_logits": False, **({} if wish.pretrained else {"init_weights": True})}
    if wish.size and name.startswith("vit_"):
        return {"image_size": wish.size[0]}
    return {"input_size": wish.size} if wish.size and name.startswith("maxvit") else {}


def _filled(name: str, state: dict[str, Tensor], extra: dict[str, Any]) -> tuple[Any, int]:
    """The network with saved weights, and how many classes they know; position embeddings are stretched to the image size."""
    from torchvision import models

    state = {k: v for k, v in state.items() if not k.startswith(("aux1.", "aux2.", "AuxLogits."))}
    with torch.device("meta"):
        head = f"{_head(models.get_model(name, weights=None, **extra))[0]}.weight"
    if head not in state:
        raise Refused(f"the weights are not those of torchvision:{name}: they have no {head}",
                      "name the network they were trained with")
    trained = state[head].shape[0]
    net = models.get_model(name, weights=None, num_classes=trained, **extra)
    if "image_size" in extra:
        state = models.vision_transformer.interpolate_embeddings(extra["image_size"], net.patch_size, state)
    net.load_state_dict(state)
    return net, trained


def _head(net: Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    return [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]


def _new_head(net: Module, classes: int) -> None:
    """A fresh last layer, of the same kind."""
    name, old = _head(net)
    net.set_submodule(name, nn.Linear(old.in_features, classes, old.bias is not None) if isinstance(old, nn.Linear)
                      else nn.Conv2d(old.in_channels, classes, old.kernel_size, bias=old.bias is not None))  # type: ignore[arg-type]


@torch.no_grad()
def _new_stem(net: Module, channels: int) -> None:
    """A first convolution for another number of channels: its kernels summed for one channel, else repeated and rescaled, so
    that an image of equal channels gives what it gave."""
    name, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
                    bias=old.bias is not None)
    had = old.weight.shape[1]
    new.weight.copy_(old.weight.sum(1, keepdim=True) if channels == 1
                     else old.weight[:, [i % had for i in range(channels)]] * had / channels)
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    net.set_submodule(name, new)
