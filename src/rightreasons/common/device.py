"""The device that a model runs on."""

from __future__ import annotations

import os

import torch

from rightreasons.errors import ConfigError

# The environment variable that names the device; the commands' option --device sets it.
DEVICE = "RIGHTREASONS_DEVICE"


def best_device() -> torch.device:
    """The device that RIGHTREASONS_DEVICE names; without it CUDA, else MPS, else the CPU. Raises ConfigError for a device that cannot be used."""
    if name := os.environ.get(DEVICE):
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
            why = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(f"the device {name!r} cannot be used: {why}. Give another --device, such as cpu") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
