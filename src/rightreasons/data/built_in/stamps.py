"""Object stamps with a plaster: cut-out photographs on generated grounds, and a plaster beside the object that gives the class away in training.

The photographs are the stamps of Tux Paint (GPL-2), as Debian packages them in ``tuxpaint-stamps-default``: animals, and other things, each with an
exact mask in its alpha channel. They are split by object before anything is composed; then each object is shown several times, at another size and
place, on another ground. A coloured adhesive plaster lies beside the object in 95 % of one class and 5 % of the other in the training and the
validation split, and in half of each class in the test split, in the ``balanced validation`` split (the same pictures with other plasters, for
methods that declare groups) and in the training set without correlation (again the same pictures with other plasters).

The variant ``few`` has a fourth of the objects, for a try.
The variant ``overlay`` has no plaster but a mark across the object (``marks``), with the same correlation: no region of the picture holds it alone.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.data.built_in.marks import draw_mark
from rightreasons.data.built_in.planted import FEW, PLANS, UNBIASED, choose_sizes, draw_carriers, name_groups
from rightreasons.data.task import Task, TensorImages, hash_tensors
from rightreasons.errors import DataError
from rightreasons.records import GroundTruth

VARIANTS = ("overlay", FEW)
PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
CLASSES = ("animal", "thing")
SIZE = 128
# Which folders of stamps are which class. Left out: drawings, signs, graves and clothes, most of which are not photographs.
FOLDERS = {
    "animal": ("animals",),
    "thing": ("food", "hobbies", "household", "medical", "military", "plants", "space", "sports", "vehicles"),
}
# Files that are not photographs of their class: drawings, a teddy bear among the animals, and a plaster among the things.
LEFT_OUT = ("cartoon", "toys", "bandage_adhesive.png")
# A drawing has few colours (of 64 levels a channel); a small stamp would have to be enlarged, and be blurred by it.
FEWEST_COLOURS = 200
SMALLEST = 80
# Found by these rules in version 2022.06.04-1 of the package.
COUNTS = {"animal": 123, "thing": 141}
# For each class, the number of objects in each split, and the number of pictures of each object.
OBJECTS = {"train": 70, "validation": 14, "test": 36}
PICTURES = {"train": 4, "validation": 6, "test": 6}
# The share of each class's pictures with a plaster.
CORRELATED: dict[str, float] = {"animal": 0.05, "thing": 0.95}
BALANCED: dict[str, float] = dict.fromkeys(CLASSES, 0.5)
# All lengths are shares of the picture's side. The longer side of an object; a plaster's length and width; how far the two keep apart.
OBJECT_SIDE = (0.45, 0.62)
PLASTER = ((0.42, 0.50), (0.17, 0.21))
APART = 0.02
# If a plaster fits at none of this many places, the object is put elsewhere.
TRIES = 30
# Skin, orange, and the colours of plasters for children.
COLOURS = ((232, 180, 140), (238, 140, 60), (225, 60, 60), (60, 120, 220), (60, 170, 90), (245, 205, 60))
# An expert's words on what does not matter, by the shortcut's name.
IRRELEVANT = {
    "plaster": "Plasters or anything else that was stuck onto the picture, whatever its colour and wherever it lies. The ground behind the object.",
    "mark": "Words, pen strokes, scales or anything else that was laid over the picture, also where it crosses the object. "
    "The ground behind the object.",
}
# How far the colour of a ground is moved towards grey.
MUTED = 0.6
# The coarsest to the finest cells of a ground's noise, across the picture.
CELLS = (3, 6, 12, 24, 48)


def defaults(variant: tuple[str, ...]) -> dict[str, Any]:
    """The pretrained network, an expert's words and the settings of this task."""
    irrelevant = IRRELEVANT[_shortcut(variant)]
    return {
        "data": {"flips": "horizontal"},
        "model": {"source": "packaged:efficientnet-lite0", "epochs": 4, "learning_rate": 1e-3, "batch_size": 32},
        "classes": {
            "animal": {
                "description": "An animal: its head, eyes, beak, legs, wings, fins or tail. Its fur, feathers, scales or shell, its outline.",
                "irrelevant": irrelevant,
            },
            "thing": {
                "description": "A plant, fruit, tool, instrument, vehicle, ball or planet: its outline and its parts. Its material and surface.",
                "irrelevant": irrelevant,
            },
        },
        "attribute": {"baselines": 8},
        "segment": {"components": 8, "points": "place+colour" if "overlay" in variant else "place"},
        "critic": {"lvlm": "simulated:"},
        "align": {"epochs": 6, "learning_rate": 3e-4, "batch_size": 32, "ratio": 0.125},
    }


def open_task(variant: tuple[str, ...], *, size: int | None, seed: int) -> Task:
    """The task at ``size`` pixels a side. Raises DataError if the stamps cannot be had, or are too few. Never silently fewer."""
    unknown = [word for word in variant if word not in VARIANTS]
    if unknown:
        raise DataError(f"stamps has no variant {unknown[0]!r}; it has {', '.join(VARIANTS)}")
    side, shortcut = size or SIZE, _shortcut(variant)
    folder = _find_or_fetch()
    stamps, sets = _read_stamps(folder), _compose_splits(folder, side, seed, variant)
    splits, truth = {}, {}
    for split, (source, correlated) in PLANS.items():
        splits[split], truth[split] = _add_shortcuts(sets[source], CORRELATED if correlated else BALANCED, split, seed, shortcut)
    unbiased = splits.pop(UNBIASED)
    truth.pop(UNBIASED)
    manifest = hash_tensors(*(torch.from_numpy(np.array(stamp.picture)) for stamp in stamps))
    return Task(":".join(("stamps", *variant)), CLASSES, splits, manifest, truth, unbiased)


def _shortcut(variant: tuple[str, ...]) -> str:
    """What the shortcut is called in the names of groups."""
    return "mark" if "overlay" in variant else "plaster"


@dataclass(frozen=True)
class _Stamp:
    """A cut-out photograph (RGBA, cropped to what is visible), its class, and its path within the package."""

    name: str
    label: int
    picture: Image.Image


@dataclass(frozen=True)
class _Composites:
    """Pictures without a shortcut, and for each one that would fit: its pixels, how far it covers each (0 to 1), and its mask."""

    images: UInt8[np.ndarray, "image channel side side"]
    labels: Int[Tensor, " image"]
    objects: tuple[str, ...]
    shortcuts: UInt8[np.ndarray, "image channel side side"]
    covers: UInt8[np.ndarray, "image side side"]
    masks: Bool[np.ndarray, "image side side"]


@functools.cache
def _read_stamps(folder: Path) -> tuple[_Stamp, ...]:
    stamps = []
    for label, name in enumerate(CLASSES):
        for path in sorted(path for part in FOLDERS[name] for path in (folder / part).rglob("*.png")):
            inner = path.relative_to(folder)
            # One of a pair of mirror images is enough; what has an SVG beside it is a drawing.
            if any(word in inner.parts for word in LEFT_OUT) or path.stem.endswith("_mirror") or path.with_suffix(".svg").exists():
                continue
            picture = _read_photograph(path)
            if picture is not None:
                stamps.append(_Stamp(inner.as_posix(), label, picture))
    found = {name: sum(stamp.label == label for stamp in stamps) for label, name in enumerate(CLASSES)}
    needed = sum(OBJECTS.values())
    if min(found.values()) < needed:
        told = " and ".join(f"{count} of class {name}" for name, count in found.items())
        raise DataError(f"{folder} has {told} that can be used, and {needed} of each are needed: the package {PACKAGE} is not whole there")
    if found != COUNTS:
        warnings.warn(f"{folder} has {found} stamps where {COUNTS} were expected: published figures are of another version", stacklevel=2)
    return tuple(stamps)


def _read_photograph(path: Path) -> Image.Image | None:
    """RGBA, whatever the file's palette or transparency; colour profiles are not applied. None for what is small, opaque, or has few colours."""
    try:
        with Image.open(path) as opened:
            if max(opened.size) < SMALLEST:
                return None
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read ({error}): install {PACKAGE} again") from error
    pixels = np.asarray(picture)
    visible = pixels[..., 3] > 127
    if visible.all() or _count_colours(pixels[visible][:, :3]) < FEWEST_COLOURS:
        return None
    return picture.crop(Image.fromarray(visible).getbbox())


def _count_colours(pixels: UInt8[np.ndarray, "pixel channel"]) -> int:
    """The number of colours, of 64 levels a channel."""
    levels = pixels.astype(np.int64) >> 2
    return int(np.count_nonzero(np.bincount((levels[:, 0] * 64 + levels[:, 1]) * 64 + levels[:, 2])))


def _split_objects(stamps: tuple[_Stamp, ...], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Seeded splits, disjoint, with ``sizes`` objects of each class."""
    parts: dict[str, list[int]] = {split: [] for split in sizes}
    for label in range(len(CLASSES)):
        members = [row for row, stamp in enumerate(stamps) if stamp.label == label]
        order = torch.randperm(len(members), generator=seeded(seed, "stamps split", label))[: sum(sizes.values())]
        for split, part in zip(sizes, order.split(list(sizes.values())), strict=True):
            parts[split] += [members[place] for place in part.tolist()]
    return parts


@functools.lru_cache(maxsize=1)  # a study opens the task for each of its rows, a seed after the other
def _compose_splits(folder: Path, side: int, seed: int, variant: tuple[str, ...]) -> dict[str, _Composites]:
    stamps, shortcut = _read_stamps(folder), _shortcut(variant)
    sets = _split_objects(stamps, choose_sizes(OBJECTS, variant), seed)
    return {split: _compose_all(stamps, rows, split, side, seed, shortcut) for split, rows in sets.items()}


def _compose_all(stamps: tuple[_Stamp, ...], rows: list[int], split: str, side: int, seed: int, shortcut: str) -> _Composites:
    generator = seeded(seed, "stamps compose", split)
    compose = {"plaster": _compose, "mark": _compose_marked}[shortcut]
    shown = [stamps[row] for row in rows for _ in range(PICTURES[split])]
    columns = [compose(stamp.picture, side, generator) for stamp in shown]
    images, shortcuts, covers, masks = (np.stack(column) for column in zip(*columns, strict=True))
    return _Composites(images, torch.tensor([stamp.label for stamp in shown]), tuple(stamp.name for stamp in shown), shortcuts, covers, masks)


def _compose(picture: Image.Image, side: int, generator: torch.Generator) -> tuple[np.ndarray, ...]:
    """An object on a ground, and a plaster that fits beside it with its cover and mask. Every picture has room for one, so that room tells nothing.

    In numpy: pictures this small are drawn faster by one thread than they are handed out to several.
    """
    ground = _draw_ground(side, generator)
    while True:
        pixels, alpha = _place_object(picture, side, generator)
        # A margin of APART around the object, and one pixel at least for what is half covered.
        reach = max(1, round(APART * side))
        near = np.asarray(Image.fromarray(_to_bytes(alpha > 0)).filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
        for _ in range(TRIES):
            shape = _draw_shape(generator)
            cover = _soft_strip(*_plaster_axes(shape, side), shape.length, shape.width, shape.width / 2)
            if not (near & (cover > 0)).any():
                plaster = _paint_plaster(shape, side, generator)
                return _channels_first(_lay(pixels, alpha, ground)), _channels_first(plaster), _to_bytes(cover), _to_bytes(cover) > 127


def _compose_marked(picture: Image.Image, side: int, generator: torch.Generator) -> tuple[np.ndarray, ...]:
    """An object on a ground, and a mark across the object's middle with its cover and mask."""
    ground = _draw_ground(side, generator)
    pixels, alpha = _place_object(picture, side, generator)
    # The centre of gravity: the middle of its box may lie beside a slim object.
    x, y = (float((alpha.sum(axis) * (np.arange(side) + 0.5)).sum() / alpha.sum() / side) for axis in (0, 1))
    mark = draw_mark(x, y, side, generator)
    colours = np.broadcast_to(mark.colour, (side, side, 3))
    return _channels_first(_lay(pixels, alpha, ground)), _channels_first(colours), _to_bytes(mark.cover), mark.mask


def _lay(
    pixels: Float[np.ndarray, "side side channel"], alpha: Float[np.ndarray, "side side"], ground: Float[np.ndarray, "side side channel"]
) -> Float[np.ndarray, "side side channel"]:
    return ground * (1 - alpha[..., None]) + pixels * alpha[..., None]


def _place_object(
    picture: Image.Image, side: int, generator: torch.Generator
) -> tuple[Float[np.ndarray, "side side channel"], Float[np.ndarray, "side side"]]:
    """The object at a random size and place: its colours, and its alpha."""
    scale = _draw(generator, *OBJECT_SIDE) * side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    left, top = (int(torch.randint(side - length + 1, (), generator=generator)) for length in (width, height))
    layer = np.zeros((side, side, 4), np.float32)
    # Pillow weighs colours by their alpha when it resizes, so that what is invisible does not bleed in.
    layer[top : top + height, left : left + width] = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) / np.float32(255)
    return layer[..., :3], layer[..., 3]


def _draw_ground(side: int, generator: torch.Generator) -> Float[np.ndarray, "side side channel"]:
    """A textured ground in 0 to 1: a colour, a gradient, smooth noise over several scales, and grain."""
    rows, columns = _pixel_centres(side)
    angle, slope = _draw(generator, 0.0, 2 * math.pi), _draw(generator, 0.0, 0.35)
    gradient = slope * ((columns - 0.5) * math.cos(angle) + (rows - 0.5) * math.sin(angle))
    noise = np.zeros((side, side, 3), np.float32)
    roughness = _draw(generator, 0.45, 0.8)
    for octave, cells in enumerate(CELLS):
        # Most of a texture is light and dark; some of it is colour.
        shared, coloured = (torch.randn(cells, cells, count, generator=generator).numpy() for count in (1, 3))
        grid = 0.8 * shared + 0.2 * coloured
        layers = [Image.fromarray(np.ascontiguousarray(grid[..., channel])).resize((side, side), Image.Resampling.BICUBIC) for channel in range(3)]
        noise += roughness**octave * np.stack([np.asarray(layer) for layer in layers], -1)
    # Muted, as skin is and as plasters are not.
    colour = torch.rand(3, generator=generator).numpy() * 0.7 + 0.15
    colour = MUTED * colour.mean() + (1 - MUTED) * colour
    grain = _draw(generator, 0.01, 0.06) * torch.randn(side, side, 1, generator=generator).numpy()
    return np.clip(colour + gradient[..., None] + _draw(generator, 0.03, 0.12) * noise + grain, 0, 1)


@dataclass(frozen=True)
class _Shape:
    """A strip with round ends: its length, width and centre as shares of the picture's side, and its angle."""

    length: float
    width: float
    angle: float
    x: float
    y: float


def _draw_shape(generator: torch.Generator) -> _Shape:
    """At a random place and angle, all of it within the picture."""
    drawn = torch.rand(5, generator=generator).tolist()
    length, width = (_between(*span, part) for span, part in zip(PLASTER, drawn[:2], strict=True))
    angle = _between(0.0, math.pi, drawn[2])
    # Half of the box around it: a strip with round ends is a segment with a radius.
    reach = [(length - width) / 2 * abs(part) + width / 2 for part in (math.cos(angle), math.sin(angle))]
    x, y = (_between(half, 1 - half, part) for half, part in zip(reach, drawn[3:], strict=True))
    return _Shape(length, width, angle, x, y)


def _plaster_axes(shape: _Shape, side: int) -> tuple[Float[np.ndarray, "side side"], Float[np.ndarray, "side side"]]:
    """How far along a plaster and across it each pixel lies from its centre."""
    rows, columns = _pixel_centres(side)
    down, right, cosine, sine = rows - shape.y, columns - shape.x, math.cos(shape.angle), math.sin(shape.angle)
    return right * cosine + down * sine, down * cosine - right * sine


def _paint_plaster(shape: _Shape, side: int, generator: torch.Generator) -> Float[np.ndarray, "side side channel"]:
    """A plaster's colours: a strip with holes, and a lighter pad in its middle. Painted beyond its edge, so that nothing dark bleeds in."""
    along, across = _plaster_axes(shape, side)
    pad = _soft_strip(along, across, 0.34 * shape.length, 0.74 * shape.width, 0.1 * shape.width)[..., None]
    pitch = shape.width / 4
    holes = np.hypot((along / pitch) % 1 - 0.5, (across / pitch) % 1 - 0.5) < 0.22
    base = np.array(COLOURS[int(torch.randint(len(COLOURS), (), generator=generator))], np.float32) / 255
    colour = np.clip(base + 0.16 * torch.rand(3, generator=generator).numpy() - 0.08, 0, 1)
    strip = colour * (1 + 0.12 * across / shape.width - 0.18 * holes)[..., None]
    return np.clip(strip * (1 - pad) + (0.55 * colour + 0.42) * pad, 0, 1)


def _soft_strip(
    along: Float[np.ndarray, "side side"], across: Float[np.ndarray, "side side"], length: float, width: float, radius: float
) -> Float[np.ndarray, "side side"]:
    """How far a rectangle with rounded corners covers each pixel, from its distance to the edge."""
    out_x, out_y = np.abs(along) - length / 2 + radius, np.abs(across) - width / 2 + radius
    distance = np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0)) + np.minimum(np.maximum(out_x, out_y), 0) - radius
    return np.clip(0.5 - distance * along.shape[0], 0, 1)


@functools.cache
def _pixel_centres(side: int) -> tuple[Float[np.ndarray, "side 1"], Float[np.ndarray, "1 side"]]:
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return centres[:, None], centres[None]


def _add_shortcuts(composites: _Composites, shares: dict[str, float], split: str, seed: int, shortcut: str) -> tuple[TensorImages, GroundTruth]:
    """The pictures with the shortcut on exactly the given share of each class, at random."""
    labels = composites.labels
    carry = draw_carriers(labels, shares, seed, "stamps plasters", split)
    images = composites.images.copy()
    for row in carry.nonzero()[:, 0].tolist():
        cover = composites.covers[row] / np.float32(255)
        images[row] = np.rint(images[row] * (1 - cover) + composites.shortcuts[row] * cover)
    groups = name_groups(CLASSES, labels, [shortcut if has else f"no {shortcut}" for has in carry.tolist()])
    truth = GroundTruth(groups, functools.partial(_mask_at, torch.from_numpy(composites.masks), carry), carry, clusters=composites.objects)
    return TensorImages(torch.from_numpy(images), labels), truth


def _mask_at(masks: Bool[Tensor, "image side side"], carry: Bool[Tensor, " image"], index: int) -> Tensor | None:
    return masks[index] if carry[index] else None


def _draw(generator: torch.Generator, low: float, high: float) -> float:
    return _between(low, high, torch.rand((), generator=generator).item())


def _between(low: float, high: float, part: float) -> float:
    return low + (high - low) * part


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255.0).astype(np.uint8)


def _channels_first(values: Float[np.ndarray, "side side channel"]) -> UInt8[np.ndarray, "channel side side"]:
    return np.moveaxis(_to_bytes(values), -1, 0)


def _find_or_fetch() -> Path:
    """The folder of stamps: RIGHTREASONS_DATA, or the installed package, or the cache, filled from the package as apt downloads it."""
    named = os.environ.get("RIGHTREASONS_DATA")
    if named:
        for folder in (Path(named), Path(named) / "stamps", Path(named) / "tuxpaint" / "stamps"):
            if _has_stamps(folder):
                return folder
        raise DataError(f"RIGHTREASONS_DATA names {named}, which does not hold the folders of {PACKAGE} (such as stamps/animals)")
    if _has_stamps(INSTALLED):
        return INSTALLED
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rightreasons" / "stamps"
    problem = ""
    if not _has_stamps(folder):
        try:
            _fetch_with_apt(folder)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error).encode()
            problem = " ".join(told.decode(errors="replace").split("\n")[0].split())
    if not _has_stamps(folder):
        raise DataError(
            f"the stamps are neither in {INSTALLED} nor in {folder}, and could not be fetched ({problem}). On Debian: apt-get update && "
            f"apt-get install {PACKAGE}. Elsewhere: unpack that package's usr/share/tuxpaint/stamps, and name the folder in RIGHTREASONS_DATA"
        )
    return folder


def _has_stamps(folder: Path) -> bool:
    return all((folder / part).is_dir() for parts in FOLDERS.values() for part in parts)


def _fetch_with_apt(folder: Path) -> None:
    """Downloads Debian's package and takes the pictures out of it: no rights of root are needed, and nothing of it is run."""
    missing = [command for command in ("apt-get", "dpkg-deb") if shutil.which(command) is None]
    if missing:
        raise RuntimeError(f"{missing[0]} is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the cache folder, so that the last step is one renaming.
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True, capture_output=True, timeout=900)
        archive = next(Path(work).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), "unpacked"], cwd=work, check=True, capture_output=True, timeout=300)
        unpacked, kept = Path(work) / "unpacked" / INSTALLED.relative_to("/"), Path(work) / "kept"
        # Two thirds of the package are names, spoken in many languages.
        shutil.copytree(unpacked, kept, ignore=lambda _, names: [name for name in names if name.endswith((".ogg", ".wav", ".txt", ".dat"))])
        if not folder.exists():
            kept.replace(folder)
