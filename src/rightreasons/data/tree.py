"""The files below a folder, listed once and not opened; and the file that a table names, which is one of them or refused."""

from __future__ import annotations

import bisect
import functools
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from rightreasons.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".dcm", ".dicom"}


@dataclass(frozen=True)
class Tree:
    """``files`` has the length in bytes of every file below ``root`` by its relative path, in order; ``left_out`` the links that are not followed.

    ``hidden`` has the hidden files and folders, which are not listed. ``beside`` has the files that lie beside images and are none of the data's,
    with what they are ("mask", "thumbnail"); ``unnamed`` those that are images by their first bytes and not by their suffix.
    """

    root: Path
    files: dict[str, int]
    folders: frozenset[str]
    left_out: dict[str, str]
    hidden: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    unnamed: frozenset[str] = frozenset()

    def path(self, name: str) -> Path:
        """The file of a relative path."""
        return self.root / name

    def below(self, folder: str) -> list[str]:
        """The names of the folders right below ``folder`` ("" is the root), in order."""
        return self._below.get(folder, [])

    def images(self, folder: str = "") -> list[str]:
        """The files below ``folder`` that are images, by their suffix or their first bytes, and no masks or thumbnails of other images."""
        return _below(self._pictures, folder)

    def inside(self, folder: str) -> list[str]:
        """All files below ``folder``."""
        return _below(self._names, folder)

    def find(self, name: str, *, where: Callable[[], str], base: str = "", mask: bool = False) -> str | None:
        """The relative path of the file that a table in the folder ``base`` calls ``name``; None if there is no such file.

        The suffix may be missing, and so may folders at the start of either path; those that both have must agree. Where an image and its mask
        have the same name, ``mask`` says which is meant. Raises DataError, which begins with ``where``, for a name that leaves the folder, or
        fits several files.
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
        # A folder that differs makes it another file: train/cat/1.png is not test/dog/1.png, even if there is no other 1.png.
        written = relative if written.startswith("..") else written
        depth = written.count("/")
        fits = self._tails(depth).get(written, [])
        # The longest agreement of the paths' ends decides between files of one name.
        shorter = (written.split("/", count)[-1] for count in range(1, depth + 1))
        fits = fits or next((self._whole[end] for end in shorter if end in self._whole), [])
        if len(fits) > 1:
            fits = [candidate for candidate in fits if (self.beside.get(candidate) == "mask") == mask] or fits
        if len(fits) > 1:
            raise DataError(f"{where()} names {name!r}, which may be {fits[0]} or {fits[1]}: name it by its path below {self.root}")
        return fits[0] if fits else None

    def named(self, name: str) -> list[str]:
        """The files whose own name is ``name``, with or without the suffix of an image, in whatever folder."""
        return self._tails(0).get(name, [])

    @functools.cached_property
    def _below(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for folder in sorted(self.folders):
            found.setdefault(posixpath.dirname(folder), []).append(posixpath.basename(folder))
        return found

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self.files)

    @functools.cached_property
    def _pictures(self) -> list[str]:
        return [name for name in self.files if (is_image(name) or name in self.unnamed) and name not in self.beside]

    @functools.cached_property
    def _whole(self) -> dict[str, list[str]]:
        """Files by their path, with and without the suffix of an image."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            for key in self._spellings(path):
                found.setdefault(key, []).append(path)
        return found

    def _tails(self, depth: int) -> dict[str, list[str]]:
        """Files by the end of their path: their own name, with and without the suffix of an image, and ``depth`` folders."""
        if depth not in self._by_tail:
            found: dict[str, list[str]] = {}
            for path in self.files:
                parts = path.split("/")
                if len(parts) > depth:
                    for key in self._spellings("/".join(parts[-depth - 1 :]), path):
                        found.setdefault(key, []).append(path)
            self._by_tail[depth] = found
        return self._by_tail[depth]

    def _spellings(self, name: str, path: str = "") -> tuple[str, ...]:
        stem, suffix = posixpath.splitext(name)
        return (name, stem) if suffix.lower() in IMAGE_SUFFIXES or (suffix and (path or name) in self.unnamed) else (name,)

    @functools.cached_property
    def _by_tail(self) -> dict[int, dict[str, list[str]]]:
        return {}


def _below(names: list[str], folder: str) -> list[str]:
    """Those of sorted paths that are below a folder. In their order "0" follows "/"."""
    return names[bisect.bisect_left(names, f"{folder}/") : bisect.bisect_left(names, f"{folder}0")] if folder else list(names)


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
    hidden: list[str] = []
    top, resolved = os.fspath(root), root.resolve()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        start = f"{inside}/" if inside else ""
        try:
            with os.scandir(os.path.join(top, inside)) as found:
                for entry in found:
                    name = start + entry.name
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        hidden.append(name)
                        continue
                    if entry.is_symlink() and (problem := _refuse_link(Path(entry.path), resolved)):
                        left_out[name] = problem
                    elif entry.is_file():
                        files[name] = entry.stat().st_size
                    elif entry.is_dir():
                        folders.add(name)
                        waiting.append(name)
        except OSError as error:
            raise DataError(f"cannot read the folder {root / inside}: {error.strerror}") from error
    return Tree(root, dict(sorted(files.items())), frozenset(folders), left_out, tuple(sorted(hidden)))


def _refuse_link(link: Path, root: Path) -> str | None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if not target.is_relative_to(root):
        return "a link out of the folder"
    return "a link to a folder" if target.is_dir() else None
