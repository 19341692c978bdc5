"""A small recurrent language model."""

from torch import Tensor, nn
from torch.nn import Module


class GRULanguageModel(Module):
    """Embedding, one GRU (Cho et al. 2014), a linear layer: ids [texts, length] → logits of the next [texts, length, symbols]."""

    def __init__(self, symbols: int, dim: int = 128, embed: int = 32):
        super().__init__()
        self.embed, self.cell = nn.Embedding(symbols, embed), nn.GRU(embed, dim, batch_first=True)
        self.head = nn.Linear(dim, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(ids))[0])
