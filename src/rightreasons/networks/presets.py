"""What a network is fed: the size, channel order and normalisation that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass

from rightreasons.errors import ModelError

# The place of each of the network's channels among red, green and blue, by what a configuration calls the order. OpenCV reads files as "bgr".
CHANNELS = {"rgb": (), "bgr": (2, 1, 0)}


@dataclass(frozen=True)
class Preset:
    """What a network was made for: the side of its images in pixels, and the mean and deviation that its input is normalised with.

    ``channels`` are the image's channels in the network's order where that is not red, green, blue; mean and deviation are in the network's.
    """

    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ModelError unless there is one positive deviation for each mean."""
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ModelError(f"a preset needs as many positive deviations as means, one a channel, and got mean={self.mean}, std={self.std}")
