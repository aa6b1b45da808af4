"""The input that a network was trained with: size, channel order and normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from rightreasons.errors import ModelError

# For each channel order that a configuration can name: the position of each network channel in red, green, blue. OpenCV reads files as "bgr".
CHANNELS = {"rgb": (), "bgr": (2, 1, 0)}


@dataclass(frozen=True)
class Preset:
    """The input of a network: the side of its images in pixels, and the mean and deviation by which they are normalised.

    ``channels`` are the image's channels in the network's order, if that is not red, green, blue; mean and deviation are in the network's order.
    """

    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ModelError unless there is one positive deviation for each mean."""
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ModelError(f"a preset needs as many positive deviations as means, one a channel, and got mean={self.mean}, std={self.std}")
