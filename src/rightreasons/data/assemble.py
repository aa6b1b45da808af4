"""From a listing to a task: class names, splits, one size and mode, ground truth apart. Checks all that needs no opening of every image."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from rightreasons.config import DataConfig
from rightreasons.data.agree import agree_on_windows, check_masks
from rightreasons.data.cells import most_classes
from rightreasons.data.decode import Header, Mode, decode_mask, read_header
from rightreasons.data.form import tell_forms
from rightreasons.data.images import THREADS, ImageFiles, PixelCache, Reading, labels_of
from rightreasons.data.listing import Entry, Listing
from rightreasons.data.patients import guess_patients, shared_part, split_folders_apart
from rightreasons.data.splits import SPLITS, fill_splits, name_split, shared_patients
from rightreasons.data.task import Task
from rightreasons.data.window import Window
from rightreasons.errors import DataError, UnreadableImage
from rightreasons.records import GroundTruth

# A class with fewer images than this in a validation or test split is reported.
FEW_IMAGES = 5
# At most this many headers are read before work starts, spread evenly over the listing.
MOST_HEADERS = 2000


@dataclass(frozen=True)
class Headers:
    """The headers that were read: images' by their name, masks' by the name of their image."""

    images: dict[str, Header]
    masks: dict[str, Header]


def assemble_task(listing: Listing, config: DataConfig, *, name: str, seed: int) -> Task:
    """The task of a listing.

    Raises DataError for fewer than two classes, a class without images in a split, images of several sizes where [data] size is not set, a
    mask that is not of its image's shape, and whatever else of the configuration does not fit the data.
    """
    left_out = dict(listing.left_out)
    problems = list(listing.problems)
    entries, classes = _name_classes(listing, config, problems)
    entries, made = _take_splits(entries, classes, listing, seed, problems)
    headers = _read_headers(entries, listing, left_out)
    entries = [entry for entry in entries if entry.name not in left_out]
    _check_masks(entries, headers)
    mode = config.mode or _agree_on_mode(headers.images, problems)
    size = (config.size, config.size) if config.size is not None else _agree_on_size(headers.images)
    window, windows = agree_on_windows(headers.images, listing, config, problems)
    check_masks(entries, listing, problems)
    problems += tell_forms(headers.images, {entry.name: entry.label for entry in entries if entry.name in headers.images})
    _tell_mask_column(entries, listing, config, problems)
    reading = Reading(listing.open_source, mode, size, window, resize=config.size is not None)
    cache = PixelCache()
    parts = {split: [entry for entry in entries if entry.split == split] for split in SPLITS}
    splits = {
        split: ImageFiles(_without_truth(part), labels_of(part, classes), reading, skipped=left_out, cache=cache) for split, part in parts.items()
    }
    for split, images in splits.items():
        counts = torch.bincount(images.labels, minlength=len(classes))
        if not counts.all():
            missing = classes[int((counts == 0).nonzero()[0])]
            fix = f"{made}; each class needs images of three patients for that, three images where no patients are known" if made else ""
            lost = next((f". {len(left_out)} files were left out, the first, {file}: {why}" for file, why in left_out.items()), "")
            raise DataError(f"{name}: {describe_empty_class(split, missing)}{fix}{lost}")
    problems += _tell_few(splits, classes)
    truth = {split: _ground_truth(part, listing, size) for split, part in parts.items()} if _has_truth(entries) else {}
    return Task(
        name,
        classes,
        splits,
        _fingerprint(parts, listing, {} if config.window else windows),
        truth,
        skipped=left_out,
        told=f"{listing.told}{made}",
        problems=problems,
        sizes=_count_sizes(headers.images),
        windows=windows,
    )


def check_classes_read(task: Task) -> None:
    """Decodes an image of each class in each split of files: headers that can be read say nothing of the pixels behind them.

    Raises DataError for a class without a readable image: otherwise accuracy would silently be that of the other classes.
    """
    for split, images in task.splits.items():
        if not isinstance(images, ImageFiles):
            continue
        for label in images.unreadable_classes():
            first = images.entries[int((images.labels == label).nonzero()[0])].name
            raise DataError(f"{task.name}: {describe_empty_class(split, task.classes[label])}. The first, {first}: {images.skipped[first]}")


def describe_empty_class(split: str, name: str) -> str:
    """The message about a class without images."""
    return f"the {split} split has no readable image of class {name!r}: each class needs some in each split"


def _tell_few(splits: Mapping[str, ImageFiles], classes: Sequence[str]) -> list[str]:
    """A note on classes of which a validation or test split has so few images that its accuracy says little."""
    few = []
    for split in ("validation", "test"):
        counts = torch.bincount(splits[split].labels, minlength=len(classes)).tolist()
        few += [f"{count} of {name!r} in {split}" for name, count in zip(classes, counts, strict=True) if count < FEW_IMAGES]
    more = ", ..." if len(few) > 6 else ""
    return [f"few images: {', '.join(few[:6])}{more}; the accuracy of such a class says little, since one image is a large part of it"] if few else []


def _name_classes(listing: Listing, config: DataConfig, problems: list[str]) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries with the names of their classes as labels, and the names in order; [data] names goes before what the format calls them."""
    counts = Counter(entry.label for entry in listing.entries)
    labels = listing.classes or sorted(counts, key=_natural)
    if listing.classes and not config.names and (unused := [label for label in labels if not counts[label]]):
        raise DataError(
            f"{listing.told}: no image has the label {unused[0]!r}, which the data name as a class: name every label, with '' for what is left out: "
            f"[data] names = {{ {', '.join(f'{label!r} = {label if counts[label] else str()!r}' for label in labels[:12])} }}"
        )
    unknown = [label for label in config.names if label not in labels]
    if unknown:
        raise DataError(f"[data] names has {unknown[0]!r}, which is no label of the data; the labels are {_some(labels)}")
    unnamed = [label for label in labels if config.names and label not in config.names]
    if unnamed:
        raise DataError(f"[data] names has no name for {_some(unnamed)}: name every label, with '' to leave its images out")
    # In the order in which the configuration names them, where it does.
    names = dict(config.names) or {label: listing.names.get(label, label) for label in labels}
    ignored = [label for label, called in names.items() if not called.strip()]
    if ignored:
        problems.append(f"{sum(counts[label] for label in ignored)} images are labelled {_some(ignored)} and left out, as [data] names says")
    classes = tuple(dict.fromkeys(called for called in names.values() if called.strip()))
    if len(classes) < 2:
        raise DataError(
            f"{listing.told}: {len(classes)} class(es) {_some(classes)}; at least two are needed. "
            f"If this is not the column of the labels, name it: [data.columns] label = ...{'; '.join(['', *problems])}"
        )
    alike = Counter(unicodedata.normalize("NFKC", label).casefold().strip() for label in labels)
    twice = [label for label in labels if alike[unicodedata.normalize("NFKC", label).casefold().strip()] > 1]
    if twice and not config.names:
        problems.append(f"the labels {_some(twice)} differ in case or spelling only, and are classes of their own: [data] names can make them one")
    if len(classes) > most_classes(len(listing.entries)):
        raise DataError(
            f"{listing.told}: {len(classes)} different labels for {len(listing.entries)} images ({_some(classes)}): "
            "name the column that has the classes, [data.columns] label = ..."
        )
    kept = (entry for entry in listing.entries if names[entry.label].strip())
    # A copy of each of a hundred thousand is half a second, and most labels are names already.
    return [entry if names[entry.label] == entry.label else replace(entry, label=names[entry.label]) for entry in kept], classes


def _take_splits(entries: Sequence[Entry], classes: Sequence[str], listing: Listing, seed: int, problems: list[str]) -> tuple[list[Entry], str]:
    """The entries with their splits, and a sentence on which splits were made here."""
    called = {word: name_split(word, where=listing.told) for word in {entry.split for entry in entries} if word is not None}
    given = [None if entry.split is None else called[entry.split] for entry in entries]
    made = [split for split in ("validation", "test") if split not in called.values()]
    numbers, labels = labels_of(entries, classes).tolist(), [entry.label for entry in entries]
    patients, inner = [entry.patient for entry in entries], _inner_of(entries, listing)
    may_guess = _may_guess(listing, patients)
    guess = guess_patients([entry.name for entry in entries], labels, inner) if may_guess else None
    splits = fill_splits(given, numbers, guess.patients if guess else patients, seed=seed)
    if guess and made and not _has_all(splits, numbers):
        problems.append(f"what looks like patients ({guess.told}) is too few to keep apart: splits are made image by image, and may share a patient")
        guess, may_guess, splits = None, False, fill_splits(given, numbers, patients, seed=seed)
    by = f", by {guess.told}" if guess else ""
    shared = shared_patients(splits, guess.patients if guess else patients)
    if shared:
        problems.append(f"{len(shared)} patients have images in more than one split, such as {shared[0]!r}{by}: the test may know them from training")
    apart = split_folders_apart(inner, labels, splits) if inner is not None and made and not guess else []
    if apart:
        problems.append(
            f"{len(apart)} folders within classes have images in more than one split, such as {apart[0]!r}: if a folder is a patient's, name the "
            "patients in a table with the columns filename, label and patient"
        )
    elif made and not guess and may_guess and not shared and (part := shared_part([entry.name for entry in entries], labels)):
        problems.append(
            f"splits are made image by image, and several images of a class share a part of their names, such as {part[0]!r} in {part[1]} and "
            f"{part[2]}: if that is a patient or an object, name it in a table with the columns filename, label and patient"
        )
    how = f"with all images of a patient in one split{by}" if guess or any(patient is not None for patient in patients) else "class by class"
    words = f"; {' and '.join(made)} made from the training images by seed {seed}, {how}" if made else ""
    return [entry if entry.split == split else replace(entry, split=split) for entry, split in zip(entries, splits, strict=True)], words


def _inner_of(entries: Sequence[Entry], listing: Listing) -> list[str] | None:
    """The folders between each entry and its class, where folders are classes; some of the listing's entries may be gone."""
    if listing.inner is None:
        return None
    place = {entry.name: folder for entry, folder in zip(listing.entries, listing.inner, strict=True)}
    return [place[entry.name] for entry in entries]


def _may_guess(listing: Listing, patients: Sequence[str | None]) -> bool:
    """Whether files' names and folders may tell whose they are, as no column does."""
    return listing.format in ("class-folders", "table") and not any(patient is not None for patient in patients)


def _has_all(splits: Sequence[str], labels: Sequence[int]) -> bool:
    """Whether every class is in every split."""
    return len({*zip(splits, labels, strict=True)}) == len(SPLITS) * len(set(labels))


def _read_headers(entries: Sequence[Entry], listing: Listing, left_out: dict[str, str]) -> Headers:
    """Headers of images and masks, evenly over the listing; files that cannot be read go to ``left_out``."""
    step = max(1, -(-len(entries) // MOST_HEADERS))
    some = [entry for entry in entries[::step] if entry.name not in left_out]

    def read(entry: Entry) -> tuple[Header, Header | None] | str:
        try:
            image = read_header(listing.open_source(entry.name))
        except UnreadableImage as error:
            return str(error)
        try:
            return image, read_header(listing.open_source(entry.mask)) if entry.mask else None
        except UnreadableImage as error:
            return f"its mask {entry.mask}: {error}"

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(read, some))
    headers = Headers({}, {})
    for entry, result in zip(some, results, strict=True):
        if isinstance(result, str):
            left_out[entry.name] = result
            continue
        headers.images[entry.name] = result[0]
        if result[1] is not None:
            headers.masks[entry.name] = result[1]
    if not headers.images:
        why = f"; the first, {some[0].name}: {left_out[some[0].name]}" if some else ""
        raise DataError(f"{listing.told}: none of {len(entries)} files is a readable image{why}")
    return headers


def _check_masks(entries: Sequence[Entry], headers: Headers) -> None:
    for entry in entries:
        mask = headers.masks.get(entry.name)
        if mask is not None:
            check_mask_shape(entry, headers.images[entry.name], mask)


def check_mask_shape(entry: Entry, image: Header, mask: Header) -> None:
    """Raises DataError for a mask that does not have the proportions of its image."""
    if abs(mask.width * image.height - mask.height * image.width) > max(mask.width, mask.height, image.width, image.height):
        raise DataError(
            f"the mask {entry.mask} has {mask.width}x{mask.height} pixels and its image {entry.name} {image.width}x{image.height}: "
            "a mask of its image's size is needed, or of the same proportions"
        )


def _agree_on_mode(headers: Mapping[str, Header], problems: list[str]) -> Mode:
    """Colour where any image has colours."""
    modes = Counter(header.mode for header in headers.values())
    if len(modes) > 1:
        problems.append(
            f"{modes['grey']} of {modes.total()} images are grey and the others in colour: all are read in colour, unless [data] mode says grey"
        )
    return "rgb" if modes["rgb"] else "grey"


def _agree_on_size(headers: Mapping[str, Header]) -> tuple[int, int]:
    """Height and width of all images. Raises DataError if they differ."""
    counts = _count_sizes(headers)
    if len(counts) > 1:
        examples = {f"{header.width}x{header.height}": name for name, header in reversed(list(headers.items()))}
        shown = ", ".join(f"{size} ({count} files, such as {examples[size]})" for size, count in counts.most_common(3))
        raise DataError(f"images of mixed size: {shown}; set [data] size = 224 (or another side in pixels) to resize all of them")
    first = next(iter(headers.values()))
    return first.height, first.width


def _count_sizes(headers: Mapping[str, Header]) -> Counter[str]:
    return Counter(f"{header.width}x{header.height}" for header in headers.values())


def _tell_mask_column(entries: Sequence[Entry], listing: Listing, config: DataConfig, problems: list[str]) -> None:
    """A note where masks are the shortcut's by a column's name alone: sets for segmentation call the object's mask so."""
    masked = sum(entry.mask is not None for entry in entries)
    if masked and config.columns.mask is None and listing.format in ("table", "parquet", "huggingface"):
        problems.append(
            f"the masks of {masked} images are taken for masks of the shortcut, by their column's name: they count in scores, and for a simulated "
            "critic or a baseline that is given masks. If they mark the object itself, rename that column"
        )


def _has_truth(entries: Sequence[Entry]) -> bool:
    return any(entry.attribute is not None or entry.attributes or entry.mask for entry in entries)


def _without_truth(entries: Sequence[Entry]) -> list[Entry]:
    """The images as a dataset may know them, without ground truth."""
    return [replace(entry, attribute=None, attributes=(), mask=None) if entry.attribute or entry.mask else entry for entry in entries]


def _ground_truth(entries: Sequence[Entry], listing: Listing, size: tuple[int, int]) -> GroundTruth:
    """Groups, masks and who carries the shortcut, as far as the data tell; a group is the class alone where no attribute is known."""
    groups = [entry.label if entry.attribute is None else f"{entry.label}, {entry.attribute}" for entry in entries]
    others = {name: [f"{entry.label}, {entry.attributes[number]}" for entry in entries] for number, name in enumerate(listing.other_attributes)}
    spurious = None if listing.carries is None else torch.tensor([entry.attribute == listing.carries for entry in entries])
    masked = [index for index, entry in enumerate(entries) if entry.mask is not None]
    return GroundTruth(groups, functools.partial(_read_mask, entries, listing, size), spurious, others, masked)


def _read_mask(entries: Sequence[Entry], listing: Listing, size: tuple[int, int], index: int) -> Bool[Tensor, "height width"] | None:
    """The mask of one image; None if it has no mask, or an empty one."""
    entry = entries[index]
    if entry.mask is None:
        return None
    try:
        check_mask_shape(entry, read_header(listing.open_source(entry.name)), read_header(listing.open_source(entry.mask)))
        mask = decode_mask(listing.open_source(entry.mask), size=size)
    except UnreadableImage as error:
        raise DataError(f"the mask {entry.mask} of {entry.name}: {error}") from error
    return mask if mask.any() else None


def _fingerprint(parts: Mapping[str, Sequence[Entry]], listing: Listing, guessed: Mapping[str, Window]) -> str:
    """SHA-256 over splits, names, labels, lengths and guessed windows: it changes when a file is added, taken away or rewritten at another length."""
    digest = hashlib.sha256(listing.format.encode())
    for kind, (low, high) in guessed.items():
        digest.update(f"{kind}\0{low!r}\0{high!r}\n".encode())
    for split, entries in parts.items():
        for entry in entries:
            digest.update(f"{split}\0{entry.name}\0{entry.label}\0{entry.bytes}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _natural(label: str) -> tuple[int, float, str]:
    """Numbers in the order of their value, before words."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")
