"""Where in a network features belong to places of the image: the maps of convolutions, and the tokens of transformers.

A map has axes of its own for rows and columns: (image, feature, row, column), or with features last, as Swin and MaxViT keep them. Tokens share one
axis, (image, token, feature), row by row, with a few beside them that belong to no place: class, distillation and register tokens. Which those are,
and that the others stand in the order of the image, is tried on noise and not guessed from names, so that it holds for any library's network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rightreasons.networks.classifier import model_device

# Tokens of two images that differ by less than this share of the largest differ by rounding: such a token has not seen the image.
ROUNDING = 1e-5
# Of two halves of a map, the one whose part of the image changed has to change more by this contrast. Before tokens are mixed it is 1; in deep layers
# of networks with random weights it was at least 0.29 in what goes on from block to block, and at most 0.09 where attention is uniform.
CONTRAST = 0.1
# Noise: two images of their own, and the first with its upper half and with its left half from the second.
FIRST, SECOND, UPPER, LEFT = range(4)
TRIALS = 4


@dataclass(frozen=True)
class Places:
    """A layer whose input has features of places. ``tokens`` are the tokens that do, row by row; None for a map."""

    layer: nn.Module
    grid: tuple[int, int]
    tokens: tuple[int, ...] | None = None
    features_last: bool = True

    @property
    def is_convolution(self) -> bool:
        """Whether a convolution reads them, which recognises what is at a place by what is beside it."""
        return isinstance(self.layer, nn.Conv2d)

    def as_map(self, features: Tensor) -> Float[Tensor, "image feature row column"]:
        """The layer's input as a map, whatever form it has."""
        if self.tokens is not None:
            features = features[:, list(self.tokens)].unflatten(1, self.grid)
        return features.movedim(-1, 1) if self.features_last else features

    def read(self, model: nn.Module, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image feature row column"]:
        """The map for these images, on the model's device; the pass through the network ends at the layer. Raises NotReached if it leads by."""
        model.eval()
        with torch.no_grad(), _stopped_at(self.layer) as caught:
            try:
                model(images.to(model_device(model)))
            except _Reached:
                return self.as_map(caught[-1]).float()
        raise NotReached


class NotReached(Exception):
    """The network's path depends on the image, and with these it does not come to the layer."""


@torch.no_grad()
def find_places(model: nn.Module, shape: torch.Size | tuple[int, ...]) -> list[Places]:
    """Every convolution and linear layer that reads features of places, in the order of their first calls, for images of ``shape``.

    ``shape`` is (channel, height, width). What reads the image itself is left out, and so is what keeps its places in another order, such as
    windows of tokens that are folded into the batch.
    """
    trial = _noise(shape).to(model_device(model))
    finder = _Finder(shape)
    hooks = [module.register_forward_pre_hook(finder.look) for module in model.modules()]
    try:
        model.eval()(trial)
    finally:
        for hook in hooks:
            hook.remove()
    return [places for places in finder.found.values() if places is not None]


class _Finder:
    """Looks at what goes into each module in the order of the calls, on a batch of ``_noise``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.channels, self.height, self.width = shape
        self.found: dict[nn.Module, Places | None] = {}
        # Which tokens of so many have places. After the first layers a class token has seen the image, so that the first answer holds for later ones.
        self.known: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = {}

    def look(self, module: nn.Module, inputs: tuple[object, ...]) -> None:
        """Notes whether this module's input has features of places."""
        features = inputs[0] if inputs else None
        if not isinstance(features, Tensor) or len(features) != TRIALS or not features.is_floating_point():
            return
        if features.ndim == 3 and features.shape[1] not in self.known:
            self.known[features.shape[1]] = self._find_tokens(features)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in self.found:
            self.found[module] = self._read(module, features)

    def _read(self, layer: nn.Module, features: Tensor) -> Places | None:
        if features.ndim == 3:
            grid, tokens = self.known[features.shape[1]]
            places = Places(layer, grid, tokens) if tokens else None
            # Some networks put tokens into the order of their windows later on.
            return places if places is not None and _in_order(places.as_map(features)) else None
        if features.ndim != 4:
            return None
        if isinstance(layer, nn.Conv2d):
            # Before its first layers a network may repeat a grey image, so that the image itself has three channels as well.
            return Places(layer, (features.shape[2], features.shape[3]), features_last=False) if features.shape[1] > max(self.channels, 3) else None
        grid = (features.shape[1], features.shape[2])
        # Pairs of tokens, as attention has them, have two axes as well: more of them than the image has places by now.
        finest = max((min(places.grid) for places in self.found.values() if places), default=min(grid))
        return Places(layer, grid) if min(grid) <= finest and self._fits(grid) and _in_order(features.movedim(-1, 1)) else None

    def _find_tokens(self, features: Float[Tensor, "trial token feature"]) -> tuple[tuple[int, int], tuple[int, ...]]:
        """The grid of a token axis and the tokens that stand on it; no tokens if there is no such grid, or they have another order."""
        changed = (features[FIRST] - features[SECOND]).abs().amax(1) > ROUNDING * features.abs().max()
        seen = tuple(changed.nonzero()[:, 0].tolist())
        # Where tokens are pooled in the middle of a network, their class token has seen the image before: it stands where it stood.
        leading = {tokens[0] for _, tokens in self.known.values() if tokens}
        for tokens in (seen, *(seen[count:] for count in leading if count)):
            grid = self._lay_out(len(tokens))
            if self._fits(grid) and _in_order(features[:, list(tokens)].unflatten(1, grid).movedim(-1, 1)):
                return grid, tokens
        return (0, 0), ()

    def _lay_out(self, count: int) -> tuple[int, int]:
        """The rows and columns of so many tokens that are nearest to the image's proportions; none for no tokens."""
        sides = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        return min(sides, key=lambda side: abs(math.log(side[0] * self.width / (side[1] * self.height))), default=(0, 0))

    def _fits(self, grid: tuple[int, int]) -> bool:
        """Whether a grid has the image's proportions, but for rounding, and rows and columns at all."""
        return min(grid) > 1 and abs(grid[0] * self.width - grid[1] * self.height) < max(self.height, self.width)


def _in_order(maps: Float[Tensor, "trial feature row column"]) -> bool:
    """Whether a change in the image's upper half changes the map's upper half most, and one in its left half the left one."""
    upper, left = ((maps[FIRST] - maps[half]).square().mean(0) for half in (UPPER, LEFT))
    # By chance two halves of a coarse map differ by more than the least contrast; those that did change differ by more than any others.
    return all(_contrast(change) > max(CONTRAST, abs(_contrast(change.T))) for change in (upper, left.T))


def _contrast(change: Float[Tensor, "row column"]) -> float:
    """1 if all that changed is in the upper half, 0 if as much is in the lower half."""
    rows = change.shape[0] // 2
    inside, outside = change[:rows].mean(), change[-rows:].mean()
    return ((inside - outside) / (inside + outside).clamp_min(torch.finfo(change.dtype).tiny)).item()


def _noise(shape: tuple[int, ...]) -> Float[Tensor, "4 channel height width"]:
    first, second = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    upper, left = first.clone(), first.clone()
    upper[:, : shape[1] // 2] = second[:, : shape[1] // 2]
    left[:, :, : shape[2] // 2] = second[:, :, : shape[2] // 2]
    return torch.stack([first, second, upper, left])


class _Reached(Exception):
    """The layer was reached: the rest of the network is not needed."""


@contextmanager
def _stopped_at(layer: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].clone())
        raise _Reached

    hook = layer.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()
