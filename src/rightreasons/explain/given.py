"""What somebody else's programs found: heatmaps in a folder with one file for each image, and segments in a file of marks."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Int
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from rightreasons.common.text import clean_text
from rightreasons.data.annotations.read import read_annotations
from rightreasons.data.annotations.region import Region, check_upright
from rightreasons.data.decode import MAX_PIXELS
from rightreasons.data.loading import StoredImages
from rightreasons.data.mask_files import shrink_mask
from rightreasons.data.names import Names, read_number
from rightreasons.errors import DataError, UnreadableImage
from rightreasons.networks.classifier import model_device
from rightreasons.records import Attribution

# The name of the array where a file holds several.
ARRAY = "heatmap"
# At most so many files that cannot be used are named.
NAMED = 5
# The modes of grey pictures, with the value that is the strongest effect.
_GREY = {"L": 255.0, "1": 1.0, "I;16": 65535.0, "I;16B": 65535.0, "I": 65535.0, "F": 1.0}


@dataclass(frozen=True)
class GivenHeatmaps:
    """The files of a folder, by their paths below it without the suffix."""

    folder: Path
    files: dict[str, Path]

    def read(self, model: nn.Module, images: StoredImages, names: list[str], note: Callable[[str], None]) -> Attribution:
        """The heatmaps of ``images``, whose dataset's images are called ``names``; the targets are the model's answers.

        An image whose file is missing or damaged gets a heatmap without effect, so that it has no segments; ``note`` names and counts them.
        Raises DataError for a heatmap of another shape than the network's input, one that could belong to several images, or if none can be used.
        """
        height, width = images.shape[1:]
        heatmaps, problems = torch.zeros(len(images), height, width), []
        ends = Counter(end for name in names for end in _ends(name))
        for row, index in enumerate(images.indices.tolist()):
            try:
                path = self._find(names[index], ends)
                heatmaps[row] = torch.from_numpy(_fit(read_heatmap(path), images.shape, path))
            except UnreadableImage as error:
                problems.append(f"image {index}: {error}")
        if len(problems) == len(images):
            raise DataError(f"none of the {len(images)} inspected images has a heatmap in {self.folder} that can be used; the first, {problems[0]}")
        if problems:
            shown = "; ".join(problems[:NAMED]) + ("; ..." if len(problems) > NAMED else "")
            note(f"{len(problems)} of {len(images)} inspected images have no given heatmap that can be used, and are left out ({shown})")
        # Nobody knows which baselines somebody else's heatmaps have, and so whether they add up.
        return Attribution(heatmaps, _answer(model, images), torch.full((len(images),), torch.nan))

    def _find(self, name: str, ends: Counter[str]) -> Path:
        for end in _ends(name):
            if end in self.files:
                if ends[end] > 1:
                    raise DataError(
                        f"the heatmap {self.files[end]} could be that of {ends[end]} training images, {name} among them: put heatmaps into the same "
                        "folders as the images"
                    )
                return self.files[end]
        raise UnreadableImage(f"there is no {posixpath.splitext(name)[0]} with one of the suffixes {', '.join(_READERS)}")


def _ends(name: str) -> list[str]:
    """What the heatmap of an image may be called, the whole path first; that of an image in no file by its number as well."""
    parts = posixpath.splitext(name)[0].split("/")
    number = read_number(name)
    return ["/".join(parts[start:]) for start in range(len(parts))] + ([] if number is None else [f"{number:06d}", str(number)])


def open_heatmaps(path: str, *, root: Path) -> GivenHeatmaps:
    """The folder that ``[attribute] path`` names, from ``root`` on. Raises DataError for one without heatmaps."""
    folder = root / path
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _READERS}
    if not files:
        what = "has no" if folder.is_dir() else "is no folder with"
        raise DataError(f"[attribute] path: {folder} {what} heatmaps: expected one file for each image, {', '.join(_READERS)}")
    return GivenHeatmaps(folder, files)


def read_heatmap(path: Path) -> np.ndarray:
    """The numbers in a file. Raises UnreadableImage for one that is damaged, holds no numbers or some that are not finite, DataError for colours."""
    try:
        array = np.asarray(_READERS[path.suffix.lower()](path))
    except DataError:
        raise
    except Exception as error:  # decoders raise anything
        words = " ".join(str(error).split())[:200] or type(error).__name__
        if "pickle" in words:  # NumPy would advise to load it unsafely
            words = "it is damaged, or holds objects and not numbers"
        raise UnreadableImage(f"{path.name} cannot be read: {words}") from error
    if array.dtype.kind not in "fiub":
        raise UnreadableImage(f"{path.name} holds {array.dtype} and not numbers")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UnreadableImage(f"{path.name} has values that are not finite")
    return array


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[_choose(arrays.files, path)]


def _read_safetensors(path: Path) -> np.ndarray:
    try:
        arrays = safetensors.numpy.load_file(path)
    except SafetensorError as error:
        raise UnreadableImage(f"{path.name} cannot be read: {error}") from error
    return arrays[_choose(list(arrays), path)]


def _choose(names: Sequence[str], path: Path) -> str:
    if ARRAY in names or len(names) == 1:
        return ARRAY if ARRAY in names else names[0]
    raise UnreadableImage(f"{path.name} holds {len(names)} arrays ({clean_text(', '.join(names[:NAMED]))}); expected one, or one called {ARRAY!r}")


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UnreadableImage(f"{path.name} has more than {MAX_PIXELS // 10**6} megapixels")
        if picture.mode not in _GREY:
            raise DataError(
                f"the heatmap {path} is a picture in colours ({picture.mode}), from which nobody can tell its numbers: save it in grey, where "
                "black is no effect, or as .npy"
            )
        return np.array(picture).astype(np.float32) / _GREY[picture.mode]


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".png": _read_png,
}


def _fit(array: np.ndarray, shape: Sequence[int], path: Path) -> np.ndarray:
    """A heatmap as (height, width); channels are summed, as those of computed heatmaps are. Raises DataError for another shape."""
    channels, height, width = shape
    if array.shape == (height, width):
        return array
    if array.shape in ((1, height, width), (channels, height, width)):
        return array.sum(0)
    raise DataError(
        f"the heatmap {path} has the shape {array.shape}; expected {(height, width)}, which is the network's input, or {(channels, height, width)} "
        "with a number for each channel. Resize the heatmaps, or set [data] size"
    )


def _answer(model: nn.Module, images: StoredImages) -> Int[Tensor, " image"]:
    """The class that the model answers for each image, which is what a heatmap is taken to explain."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images[start : start + 64].to(model_device(model))).argmax(1).cpu() for start in range(0, len(images), 64)])


@dataclass(frozen=True)
class GivenRegions:
    """Marks on images, which are their segments, by the number of the image."""

    marks: dict[int, list[Region]]

    def cut(self, index: int, size: tuple[int, int], own: tuple[int, int] | None) -> Int[Tensor, "height width"]:
        """The region of each pixel: 0 is what nobody marked, and of marks that overlap the later one counts.

        ``own`` is (height, width) of the image's file, None where it lies in none. Raises DataError for a broken mark, or one that lies on its side.
        """
        regions = torch.zeros(size, dtype=torch.int64)
        for number, mark in enumerate(self.marks.get(index, []), start=1):
            assert mark.draw is not None  # marks without an area are left out
            try:
                mask = mark.draw()
                check_upright((mask.shape[0], mask.shape[1]), own)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(f"[segment] regions: {mark.where}, image {clean_text(mark.image)}: {error}") from error
            regions[mask if tuple(mask.shape) == size else shrink_mask(mask, size)] = number
        return regions


def open_regions(file: str, names: Sequence[str], *, root: Path) -> GivenRegions:
    """The marks in the file that ``[segment] regions`` names, from ``root`` on.

    ``names`` are those of the training images. Raises DataError if no mark is on one of them, or if one could be on several.
    """
    path, known, marks = root / file, Names(names), dict[int, list[Region]]()
    for region in read_annotations(path).regions:
        found = known.find(region.image)
        if len(found) > 1:
            raise DataError(f"[segment] regions: {len(found)} training images are called {clean_text(region.image)!r} in {path}: give more of it")
        if found and region.draw is not None:
            marks.setdefault(found[0], []).append(region)
    if not marks:
        raise DataError(f"[segment] regions: {path} has no mark with an area on a training image, by the names of their files")
    return GivenRegions(marks)
