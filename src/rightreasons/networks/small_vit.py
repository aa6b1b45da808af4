"""A small vision transformer for small pictures, of the studies: trained from nothing in minutes on a processor."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The side of a patch in pixels; features of a token, and the hidden ones between blocks; heads of attention; blocks.
PATCH, WIDTH, HIDDEN, HEADS, DEPTH = 4, 64, 128, 4, 4
# The longest wave of the positions, in patches.
LONGEST_WAVE = 1000.0


class SmallViT(nn.Module):
    """Patches of 4 x 4 pixels, a class token, and four pre-norm blocks of torch's own transformer layer (Dosovitskiy et al. 2021).

    Positions are fixed sines and cosines of row and column, so that pictures of any size will do whose sides are multiples of four.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image class_"]:
        """Logits, read from the class token."""
        maps = self.patches(images)
        tokens = maps.flatten(2).mT + _positions(maps.shape[2], maps.shape[3]).to(maps)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))


def small_vit(classes: int = 10) -> nn.Module:
    """The network of the studies with a transformer."""
    return SmallViT(classes)


def _positions(rows: int, columns: int) -> Float[Tensor, "place feature"]:
    """Half of the features tell the row and half the column, each as sines and cosines of waves from one radian a patch to ``LONGEST_WAVE``."""
    rates = torch.exp(-torch.arange(WIDTH // 4) * (4 * math.log(LONGEST_WAVE) / WIDTH))
    row, column = (torch.arange(side)[:, None] * rates for side in (rows, columns))
    row, column = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (row, column))
    return torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], 2).flatten(0, 1)
