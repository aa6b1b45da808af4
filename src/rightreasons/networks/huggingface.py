"""Folders that ``save_pretrained`` wrote: the network, the names of its outputs, and the input that the folder's own processor makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rightreasons.errors import MissingExtra, ModelError
from rightreasons.networks.checkpoints import as_names
from rightreasons.networks.presets import Preset

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Pictures of these sides, in pixels, show whether a processor resizes to a size of its own.
PROBE_SIDES = (384, 512)
# The colours to which an affine map of each channel is fitted, and the colours on which it is checked.
FITTED = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
CHECKED = ((255, 255, 255), (51, 102, 204), (128, 128, 128))

# The edge of a picture counts as seen if it is off by at most this share of the range from black to white, as averaging with neighbours makes it.
WHOLE = 0.02


@dataclass(frozen=True)
class ProcessorInput:
    """How a folder's processor prepares a picture, as a preset; ``remark`` is a sentence if this package does otherwise."""

    preset: Preset
    remark: str | None = None


def build_network(name: str, outputs: int, root: Path, *, trained: bool) -> nn.Module:
    """The folder's network with its weights; a head of another size is drawn anew, unless it is ``trained``: then every weight must be there."""
    folder = find_folder(name, root)
    try:
        with _quiet():
            network, loaded = import_transformers().AutoModelForImageClassification.from_pretrained(
                folder, num_labels=outputs, ignore_mismatched_sizes=True, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"[model] source = 'hf:{name}': {str(error).splitlines()[0]}") from error
    new = sorted([*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])])
    if trained and new:
        raise ModelError(
            f"[model] source = 'hf:{name}': the folder has no weights for {new[0]} ({len(new)} such tensors), so that this is no trained "
            "classifier: name its checkpoint, or train it here with [model] pretrained = true"
        )
    return network


def find_weights(name: str, root: Path) -> str | None:
    """The folder's own weights, as a path below ``root``."""
    return next((f"{name}/{weights}" for weights in WEIGHTS if (find_folder(name, root) / weights).is_file()), None)


def read_settings(name: str, root: Path) -> Any:  # noqa: ANN401 -- transformers' configuration
    """The folder's config.json as transformers reads it."""
    try:
        return import_transformers().AutoConfig.from_pretrained(find_folder(name, root), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"[model] source = 'hf:{name}': {str(error).splitlines()[0]}") from error


def read_names(name: str, root: Path) -> tuple[str, ...] | None:
    """The folder's names for the outputs of its network, in their order."""
    return as_names(read_settings(name, root).id2label)


def read_input(name: str, root: Path) -> ProcessorInput:
    """Size, channel order and normalisation as the folder's processor applies them to pictures, whatever its switches are called.

    The affine map of each channel is fitted to flat pictures and checked on others (x -> (x - mean) / std for x in 0 to 1). Raises ModelError
    for a processor that does anything else, or that gives sides which differ.
    """
    folder, settings = find_folder(name, root), read_settings(name, root)
    # The hub's timm networks have no file of the processor's own.
    inside = getattr(settings, "pretrained_cfg", None) is not None
    if not inside and not any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        return ProcessorInput(
            Preset(),
            f"the folder {name} has no image processor: its network is given pixels in 0 to 1, unless [model] mean and std say otherwise",
        )
    try:
        processor = import_transformers().AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _probe(processor, name, getattr(settings, "num_channels", 3))
    except ModelError:
        raise
    except Exception as error:  # each processor has its own way to fail on settings that it does not like
        raise _not_understood(name, f"it fails on a picture ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def find_folder(name: str, root: Path) -> Path:
    """Raises ModelError if the folder has no config.json."""
    folder = root / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"[model] source = 'hf:{name}': {folder} has no config.json; a folder that save_pretrained wrote is needed")
    return folder


def import_transformers() -> Any:  # noqa: ANN401 -- a module
    """The library, or MissingExtra."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "models") from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars and reports on the terminal: what they say is read from its records."""
    logging = import_transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _probe(processor: Any, name: str, channels: int) -> ProcessorInput:  # noqa: ANN401 -- a processor of any class
    def process(pixels: np.ndarray) -> Tensor:
        values = torch.as_tensor(np.asarray(processor(Image.fromarray(pixels if channels == 3 else pixels[..., 0]))["pixel_values"][0]))
        if values.ndim != 3 or len(values) != channels:
            raise _not_understood(name, f"it gives values of shape {tuple(values.shape)}, and ({channels}, height, width) was expected")
        return values.double()

    def flat(colour: tuple[int, ...], side: int) -> np.ndarray:
        return np.full((side, side, 3), colour, np.uint8)

    shapes = [tuple(process(flat((0, 0, 0), side)).shape[1:]) for side in PROBE_SIDES]
    if any(height != width for height, width in shapes):
        height, width = shapes[0]
        raise _not_understood(name, f"its pictures have {height} x {width} pixels, and square ones were expected")
    free = [height for height, _ in shapes] == list(PROBE_SIDES)
    if not free and shapes[0] != shapes[1]:
        raise _not_understood(name, f"pictures of {PROBE_SIDES[0]} and {PROBE_SIDES[1]} px become {shapes[0][0]} and {shapes[1][0]} px")
    side = 64 if free else shapes[0][0]

    def value(colour: tuple[int, ...]) -> Tensor:
        values = process(flat(colour, side))
        if not torch.allclose(values, values[:, :1, :1].expand_as(values), rtol=1e-3, atol=1e-3):
            raise _not_understood(name, "a picture of one colour does not stay one, as with a border around it")
        return values[:, side // 2, side // 2]

    offset, *ends = [value(colour) for colour in (FITTED if channels == 3 else (FITTED[0], CHECKED[0]))]
    slopes = torch.stack(ends, 1) - offset[:, None]  # (the network's channel, the picture's channel)
    order = slopes.abs().argmax(1)
    scale = slopes.gather(1, order[:, None])[:, 0]
    spread = slopes.abs().amax()
    used = torch.zeros_like(slopes).scatter_(1, order[:, None], scale[:, None])
    if not spread.isfinite() or scale.eq(0).any() or len(order.unique()) < channels or not torch.allclose(used, slopes, atol=1e-3 * float(spread)):
        raise _not_understood(name, "it mixes the channels of a picture")

    def mapped(pixels: np.ndarray) -> Tensor:
        images = torch.as_tensor(pixels).double().permute(2, 0, 1)[:channels] / 255
        return images[order] * scale[:, None, None] + offset[:, None, None]

    def same(pixels: np.ndarray, where: tuple[slice, slice] = (slice(None), slice(None))) -> bool:
        ours, theirs = mapped(pixels)[:, *where], process(pixels)[:, *where]
        return torch.allclose(ours, theirs, rtol=0, atol=2e-2 * float(spread))

    # Two colours beside each other: a map that depends on the whole picture, or turns it, shows far from where they meet.
    halves = np.concatenate([flat(CHECKED[1], side)[:, : side // 2], flat(FITTED[1], side)[:, side // 2 :]], 1)
    quarters = [(slice(side // 4, side // 2), slice(middle, middle + 1)) for middle in (side // 4, 3 * side // 4)]
    if not all(same(flat(colour, side)) for colour in CHECKED) or not all(same(halves, where) for where in quarters):
        raise _not_understood(name, "what it does to a pixel's value depends on more than that value")
    # The product resizes a whole picture to a square: does the left edge of a wide one, dark to bright, stay dark?
    wide = np.broadcast_to(np.linspace(0, 255, 4 * side).astype(np.uint8)[None, :, None], (2 * side, 4 * side, 3))
    edge = (process(np.ascontiguousarray(wide))[:, side // 2, 0] - offset) / scale
    whole = free or bool(edge.abs().max() < max(WHOLE, 1 / side))  # half a pixel of the output, doubled
    remark = f"the image processor of {name} shows its network the middle of a picture; here it is given the whole, resized to {side} px"
    preset = Preset(
        None if free else side,
        _rounded(-offset / scale),
        _rounded(1 / scale),
        () if order.tolist() == list(range(channels)) else tuple(order.tolist()),
    )
    return ProcessorInput(preset, None if whole else remark)


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Six digits, so that 0.485 is read as 0.485; processors compute in single precision."""
    return tuple(float(f"{value:.6g}") if abs(value) > 1e-6 else 0.0 for value in values.tolist())


def _not_understood(name: str, what: str) -> ModelError:
    return ModelError(
        f"[model] source = 'hf:{name}': the folder's image processor cannot be followed: {what}. State what the network was trained on in "
        "[model] mean and std and in [data] size, or give a network with its own processing as python:module:function"
    )
