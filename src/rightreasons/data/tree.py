"""The files below a folder, listed once and not opened; and the file that a table names, which is one of them or refused."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from rightreasons.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".dcm", ".dicom"}


@dataclass(frozen=True)
class Tree:
    """``files`` has the length in bytes of every file below ``root`` by its relative path, in order; ``left_out`` the links that are not followed."""

    root: Path
    files: dict[str, int]
    folders: frozenset[str]
    left_out: dict[str, str]

    def path(self, name: str) -> Path:
        """The file of a relative path."""
        return self.root / name

    def below(self, folder: str) -> list[str]:
        """The names of the folders right below ``folder`` ("" is the root), in order."""
        start = f"{folder}/" if folder else ""
        return sorted(name[len(start) :] for name in self.folders if name.startswith(start) and "/" not in name[len(start) :] and name != folder)

    def images(self, folder: str = "") -> list[str]:
        """The files below ``folder`` that are images by their suffix."""
        start = f"{folder}/" if folder else ""
        first = bisect.bisect_left(self._names, start)
        inside = itertools.takewhile(lambda name: name.startswith(start), itertools.islice(self._names, first, None))
        return [name for name in inside if is_image(name)]

    def find(self, name: str, *, where: Callable[[], str], base: str = "") -> str | None:
        """The relative path of the file that a table in the folder ``base`` calls ``name``; None where there is no such file.

        The suffix may be missing, and so may folders at the start of either path; those that both have must agree. Raises DataError, which
        begins with ``where``, for a name that leaves the folder, or fits several files.
        """
        exact = posixpath.join(base, name)
        if exact in self.files:
            return exact
        tidy = name.strip().replace("\\", "/")
        if PureWindowsPath(tidy).drive:
            raise DataError(f"{where()} names {name!r}, a path on another machine: names are relative to {self.root}")
        if tidy.startswith("/"):
            below = next((root for root in (self.root.as_posix(), self.root.resolve().as_posix()) if tidy.startswith(f"{root}/")), None)
            if below is None:
                raise DataError(f"{where()} names {name!r}, a file outside of {self.root}: only files below it are read")
            tidy, base = tidy[len(below) + 1 :], ""
        relative, written = posixpath.normpath(posixpath.join(base, tidy)), posixpath.normpath(tidy)
        if relative == ".." or relative.startswith("../"):
            raise DataError(f"{where()} names {name!r}, a file outside of {self.root}: only files below it are read")
        if relative in self.files:
            return relative
        # What a link leads to is not looked for elsewhere.
        parts = relative.split("/")
        if self.left_out and any("/".join(parts[: count + 1]) in self.left_out for count in range(len(parts))):
            return None
        candidates = self._by_name.get(posixpath.basename(relative), ())
        # A folder that differs makes it another file: train/cat/1.png is not test/dog/1.png, though there be no other 1.png.
        written = relative if written.startswith("..") else written
        agreeing = {candidate: _common_end(candidate, written) for candidate in candidates if _agrees(candidate, written)}
        # The longest agreement of the paths' ends decides between files of one name.
        fits = [candidate for candidate, common in agreeing.items() if common == max(agreeing.values())]
        if len(fits) > 1:
            raise DataError(f"{where()} names {name!r}, which may be {fits[0]} or {fits[1]}: name it by its path below {self.root}")
        return fits[0] if fits else None

    def named(self, name: str) -> list[str]:
        """The files whose own name is ``name``, with or without the suffix of an image, in whatever folder."""
        return self._by_name.get(name, [])

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self.files)

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Files by their own name, with and without the suffix of an image."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            name = posixpath.basename(path)
            found.setdefault(name, []).append(path)
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(stem, []).append(path)
        return found


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_tree(root: Path) -> Tree:
    """Lists the files below ``root``; hidden ones are passed over, and so are links to folders and out of ``root``.

    Raises DataError for a folder that cannot be read.
    """
    files: dict[str, int] = {}
    folders: set[str] = set()
    left_out: dict[str, str] = {}
    top, resolved = os.fspath(root), root.resolve()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        start = f"{inside}/" if inside else ""
        try:
            with os.scandir(os.path.join(top, inside)) as found:
                for entry in found:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    name = start + entry.name
                    if entry.is_symlink() and (problem := _refuse_link(Path(entry.path), resolved)):
                        left_out[name] = problem
                    elif entry.is_file():
                        files[name] = entry.stat().st_size
                    elif entry.is_dir():
                        folders.add(name)
                        waiting.append(name)
        except OSError as error:
            raise DataError(f"cannot read the folder {root / inside}: {error.strerror}") from error
    return Tree(root, dict(sorted(files.items())), frozenset(folders), left_out)


def _refuse_link(link: Path, root: Path) -> str | None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if not target.is_relative_to(root):
        return "a link out of the folder"
    return "a link to a folder" if target.is_dir() else None


def _agrees(one: str, other: str) -> bool:
    """Whether one path's folders are the last folders of the other."""
    return _common_end(one, other) == min(one.count("/"), other.count("/"))


def _common_end(one: str, other: str) -> int:
    """How many folders at the end of two paths agree, the file's own name left aside."""
    count = 0
    for first, second in zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False):
        if first != second:
            break
        count += 1
    return count
