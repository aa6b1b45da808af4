"""SpuCo (Joshi et al. 2023): ``FOLDER/train/CLASS/SPURIOUS/*`` beside ``val`` and ``test``. The inner folders are ground truth of the shortcut."""

from __future__ import annotations

import posixpath
from collections import Counter

from rightreasons.config import DataConfig
from rightreasons.data.formats.class_folders import list_class_folders, split_folders
from rightreasons.data.listing import Listing
from rightreasons.data.patients import is_person
from rightreasons.data.tree import Tree

# More kinds of inner folders than this are patients, dates or machines.
MOST_ATTRIBUTES = 32


def recognise(tree: Tree, config: DataConfig) -> bool:
    """Whether all images of all splits lie two folders deep, and the inner folders are of the same few names in training and elsewhere."""
    splits = split_folders(tree, config.names)
    if len(splits) < 2:
        return False
    inner: dict[str | None, set[str]] = {}
    by_class: dict[str, set[str]] = {}
    for split, folder in splits.items():
        depths = [name[len(folder) + 1 :].split("/") for name in tree.images(folder)]
        if not depths or any(len(parts) != 3 for parts in depths):
            return False
        inner[split] = {parts[1] for parts in depths}
        for name, attribute, _ in depths:
            by_class.setdefault(name, set()).add(attribute)
    train = inner.pop("train")
    # Patients are those of one class, mostly, and have names of their own. Of SpuCoAnimals' four classes two and two share their backgrounds.
    times = Counter(name for names in by_class.values() for name in names)
    if any(map(is_person, train)) or not all(any(times[name] > 1 for name in names) for names in by_class.values()):
        return False
    return 1 < len(train) <= MOST_ATTRIBUTES and all(names & train for names in inner.values())


def list_images(tree: Tree, config: DataConfig) -> Listing:
    """Every image with its class and its inner folder. Raises DataError as class folders do."""
    return list_class_folders(tree, config, format="spuco", told="SpuCo folders", attribute=lambda name: posixpath.basename(posixpath.dirname(name)))
