"""The small networks of the trials."""

from torch import nn


def mlp(inputs: int = 64, hidden: int = 32, classes: int = 10, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    """[batch, …] with `inputs` numbers a sample → logits [batch, classes]; `norm`: of the batch, before the ReLU."""
    between = [nn.BatchNorm1d(hidden)] * norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), *between, nn.Linear(hidden, classes))


def cnn(width: int = 32, classes: int = 10, channels: int = 1, depth: int = 2) -> nn.Sequential:
    """Images [batch, channels, height, width] of any size → logits [batch, classes]; `depth` convolutions, doubling once."""
    layers: list[nn.Module] = []
    for i in range(depth):
        out = width * (2 if i else 1)
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))
