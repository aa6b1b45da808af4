"""Files beside the images that are not part of the data: masks and thumbnails; and images whose suffix does not say that they are images.

A mask is recognised by its place and name: ``images`` beside ``masks``, ``CLASS/masks`` below its images, ``NAME_mask.png`` beside ``NAME.png``. A
folder called ``masks`` beside class folders is looked into, since there are classes of that name (people with and without a face mask).
"""

from __future__ import annotations

import posixpath
import re
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rightreasons.data.decode import MAX_PIXELS
from rightreasons.data.splits import split_words
from rightreasons.data.tree import Tree, is_image

MASK, THUMBNAIL = "mask", "thumbnail"
# Words for masks and other drawings on images, which a folder or the end of a file's name may have.
_MASK_WORDS = frozenset(
    "mask masks segmentation segmentations groundtruth groundtruths gt annotation annotations trimap trimaps overlay overlays".split()
)
# Beside a folder of images these hold masks as well.
_LABEL_FOLDERS = frozenset("label labels target targets seg manual".split())
_PLURALS = frozenset("masks segmentations groundtruths annotations trimaps overlays".split())
# These words mean a mask only at the end of an image's name: a folder "seg_train" may hold a training split.
_ENDINGS = _MASK_WORDS | frozenset("seg superpixels superpixel".split())
_THUMB_WORDS = frozenset("thumb thumbs thumbnail thumbnails".split())
_IMAGE_WORDS = frozenset("image images img imgs jpeg jpg png photo photos picture pictures input inputs original originals orig raw scans".split())
# Further words in the names of mask folders, such as "lesion_masks_png".
_FILLERS = frozenset("binary class data files folder lesion object the".split()) | _IMAGE_WORDS
_GROUND_TRUTH = re.compile(r"ground[ _-]?truth", re.IGNORECASE)
# At most this many files of a kind are opened.
_SOME = 6
# A mask has few values. In lossy formats nearly all its pixels are close to black or white.
_MOST_VALUES, _NEAR, _NEARLY_ALL = 16, 24, 0.97
_SAMPLED_PIXELS = 2**16
# The first bytes of the formats that are read, and how many bytes are needed to see them.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
_SIGNATURE_BYTES = 132
# Suffixes of files that are not images: these files are not opened.
OTHER_SUFFIXES = {
    "text files": "txt md rst pdf doc docx rtf html htm tex log xml json jsonl yaml yml toml ini cfg bib eml srt".split(),
    "tables": "csv tsv xls xlsx ods parquet feather arrow sqlite db".split(),
    "video and sound files": "mp4 avi mov mkv webm mpg mpeg wmv m4v wav mp3 flac ogg".split(),
    "archives": "zip tar gz tgz bz2 xz 7z rar zst iso".split(),
    "array, volume and weight files": "npy npz mat h5 hdf5 nii mha mhd nrrd raw bin dat pkl pt pth ckpt safetensors onnx tfrecord tfrecords".split(),
    "code files": "py ipynb m r sh bat js c cpp h".split(),
    "images in a format that is not read": "svg heic heif avif psd eps ai svs ndpi czi lif exr hdr dng cr2 nef arw jxl".split(),
}
_OTHER = {f".{suffix}": kind for kind, suffixes in OTHER_SUFFIXES.items() for suffix in suffixes}


def look_beside(tree: Tree, named: Collection[str] = ()) -> Tree:
    """The tree with ``unnamed`` and ``beside`` filled in. Of files without a known suffix the first bytes are read, of masks in doubt the pixels.

    Folders that are ``named`` are classes by the user's word, and are not looked into.
    """
    unnamed = frozenset(name for name in tree.files if kind_by_suffix(name) is None and _is_image_inside(tree.path(name)))
    tree = replace(tree, unnamed=unnamed)
    pictures = tree.images()
    beside = _by_folders(tree, pictures, named)
    beside |= _by_names(tree, [name for name in pictures if name not in beside])
    return replace(tree, beside=beside)


def doubtful_classes(tree: Tree, classes: Sequence[str]) -> list[str]:
    """The class folders that are called masks, though their pictures look like none and no other class speaks of masks."""
    others = any(_words(name) & _MASK_WORDS and not _says_masks(name) for name in classes)
    return [] if others else [name for name in classes if _says_masks(name)]


def holds_images_by_name(folder: str) -> bool:
    """Whether a folder's name says "images", and nothing else."""
    words = set(split_words(folder))
    return bool(words) and words <= _IMAGE_WORDS


def kind_by_suffix(name: str) -> str | None:
    """What a file is by its suffix: "images", or one of ``OTHER_SUFFIXES``; None for any other suffix, and for none."""
    if posixpath.basename(name).upper() == "DICOMDIR":
        return "text files"  # a list of DICOM files, which begins as those do
    return "images" if is_image(name) else _OTHER.get(posixpath.splitext(name)[1].lower())


def looks_like_mask(path: Path) -> bool:
    """Whether a picture has few values, or nearly black and nearly white pixels only. False for a file that cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return False
            pixels = np.asarray(image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("RGB"))
    except Exception:  # decoders raise anything; a picture that cannot be read is reported when it is decoded
        return False
    flat = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
    flat = flat[:: max(1, len(flat) // _SAMPLED_PIXELS)].astype(np.int64)
    if len(np.unique(flat, axis=0)) <= _MOST_VALUES:
        return True
    dark, bright = (flat < _NEAR).all(1), (flat > 255 - _NEAR).all(1)
    return bool(dark.any() and bright.any() and (dark | bright).mean() >= _NEARLY_ALL)


def _by_folders(tree: Tree, pictures: Sequence[str], named: Collection[str]) -> dict[str, str]:
    """Masks and thumbnails by the folder that they lie in."""
    holding = {posixpath.dirname(name) for name in pictures}
    found: dict[str, str] = {}
    for folder in sorted(tree.folders):
        own, parent = posixpath.basename(folder), posixpath.dirname(folder)
        words = _words(own)
        if own in named or not words & (_MASK_WORDS | _LABEL_FOLDERS | _THUMB_WORDS):
            continue
        inside = [name for name in tree.inside(folder) if is_image(name) or name in tree.unnamed]
        siblings = [name for name in tree.below(parent) if name != own]
        beside_images = any(holds_images_by_name(name) for name in siblings)
        if words <= _THUMB_WORDS:
            found |= dict.fromkeys(inside, THUMBNAIL)
        elif beside_images and (_says_masks(own) or words & _LABEL_FOLDERS):
            found |= dict.fromkeys(inside, MASK)
        elif _says_masks(own) and parent in holding:
            found |= dict.fromkeys(inside, MASK)
        elif words & _MASK_WORDS and _look_like_masks(tree, inside):
            others = [name for name in siblings if not _words(name) & _MASK_WORDS]
            if not any(_look_like_masks(tree, tree.images(f"{parent}/{name}" if parent else name)) for name in others):
                found |= dict.fromkeys(inside, MASK)
    return found


def _by_names(tree: Tree, pictures: Sequence[str]) -> dict[str, str]:
    """Masks and thumbnails by a name that continues another image's, and images of one name of which one kind looks like masks."""
    by_folder: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    everywhere: set[str] = set()
    for name in pictures:
        stem = posixpath.splitext(posixpath.basename(name))[0]
        by_folder[posixpath.dirname(name)][stem].append(name)
        everywhere.add(stem)
    found: dict[str, str] = {}
    in_doubt: dict[tuple[str, str], list[tuple[str, str | None]]] = defaultdict(list)
    for folder, stems in by_folder.items():
        for stem, files in stems.items():
            for base, rest in _continued(stem):
                words = _words(rest)
                kind = MASK if words & _ENDINGS else THUMBNAIL if words & _THUMB_WORDS else None
                if base in stems and kind is not None:
                    found |= dict.fromkeys(files, kind)
                elif base in stems:
                    in_doubt[folder, " ".join(sorted(words))] += [(file, stems[base][0]) for file in files]
                elif kind == MASK and base in everywhere:
                    in_doubt[folder, " ".join(sorted(words))] += [(file, None) for file in files]
            if len(files) > 1:
                for file in files:
                    other = next(one for one in files if one != file)
                    in_doubt[folder, posixpath.splitext(file)[1]].append((file, other))
    for pairs in in_doubt.values():
        some = pairs[:: -(-len(pairs) // _SOME)]
        if all(looks_like_mask(tree.path(file)) and not (base and looks_like_mask(tree.path(base))) for file, base in some):
            found |= {file: MASK for file, _ in pairs}
    return found


def _continued(stem: str) -> Iterable[tuple[str, str]]:
    """The ways to read a name as another image's name and what follows it, or stands before it ("mask_NAME")."""
    marks = [place for place, letter in enumerate(stem) if letter in "_-. " and 0 < place < len(stem) - 1]
    yield from ((stem[:place].rstrip("_-. "), stem[place + 1 :]) for place in marks[-3:])
    if marks and _words(stem[: marks[0]]) & _ENDINGS:
        yield stem[marks[0] + 1 :], stem[: marks[0]]


def _look_like_masks(tree: Tree, names: Sequence[str]) -> bool:
    return bool(names) and all(looks_like_mask(tree.path(name)) for name in names[:: -(-len(names) // _SOME)])


def _says_masks(folder: str) -> bool:
    """Whether a folder's name speaks of masks and nothing else, or of several masks."""
    words = _words(folder)
    return bool(words & _PLURALS) or (bool(words & _MASK_WORDS) and words <= _MASK_WORDS | _FILLERS)


def _words(name: str) -> set[str]:
    """The words of a name; "ground_truth" is "groundtruth"."""
    return set(split_words(_GROUND_TRUTH.sub("groundtruth", name)))


def _is_image_inside(path: Path) -> bool:
    """Whether the first bytes of a file are those of an image."""
    try:
        with path.open("rb") as file:
            start = file.read(_SIGNATURE_BYTES)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or start[128:132] == b"DICM" or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
