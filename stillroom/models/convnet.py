"""The ConvNet of dataset distillation (Gidaris & Komodakis 2018; Zhao et al. 2021): depth × (conv, instance norm, ReLU, pool)."""

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Images [batch, channels, size, size] → logits [batch, classes]; `depth` 3 for 32 × 32, 4 for 64 × 64, `width` 128.

    Instance norm keeps no running statistics: the whole network is its parameters.
    """

    def __init__(self, classes: int = 10, channels: int = 3, size: int = 32, width: int = 128, depth: int = 3):
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(depth):
            blocks += [nn.Conv2d(channels if i == 0 else width, width, 3, padding=1), nn.GroupNorm(width, width), nn.ReLU(),
                       nn.AvgPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (size // 2**depth) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
