"""Names to models, data and worlds: `timm:resnet18`, `hf:…`, `torchvision:…`, `folder:…`, `digits`, `gym:…`.

The only place that touches optional packages; each is imported when a name asks for it.
"""

from stillroom.zoo.actors import actor, env
from stillroom.zoo.data import data, splits
from stillroom.zoo.models import model

__all__ = ["actor", "data", "env", "model", "splits"]
