"""Finds the image files of trees of folders, unpacked or in zip files, and their classes."""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
ARCHIVE = ".zip"
TOP = re.compile("images_(background|evaluation)")  # how Omniglot's top folders begin
# What a damaged zip file raises, or a damaged image in Pillow.
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, OverflowError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class ImageFile(NamedTuple):
    """A file of a tree."""

    kind: tuple[str, ...]  # the folders that name its class
    name: str  # '' in place of the files of a folder that has none
    path: str  # relative to the tree


def tree_files(path: Path) -> list[Path]:
    """What changes if files of a tree are added or removed: its zip files, and all its folders."""
    if not path.is_dir():
        return [path]
    return [*_archives(path), *(folder for folder, _, _ in _walk(path))]


def roots(path: Path) -> list[Path]:
    """The trees that a path stands for: see `icl.data.folders.load_trees`.

    Raises:
      OSError, ValueError: as `opened`.
    """
    if not path.is_dir():
        return [path]
    archives = []
    for archive in _archives(path):
        with opened(archive) as (files, _):
            if files:  # Omniglot's other zip files hold strokes
                archives.append(archive)
    beside = [inner for inner in path.iterdir() if inner.is_dir() and TOP.match(inner.name)]
    return [*archives, *sorted(beside)] if archives else [path]


@contextmanager
def opened(root: Path) -> Iterator[tuple[list[ImageFile], Callable[[str], bytes]]]:
    """The image files of a folder or a zip file, and the function that reads one by its path.

    Raises:
      OSError: the zip file or a folder cannot be read.
      ValueError: the zip file is damaged.
    """
    if root.is_dir():
        yield _by_class(_in_folder(root)), lambda file: (root / file).read_bytes()
        return
    with open(root, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise ValueError(
                f"{root}: the zip file is damaged or truncated ({error}); fetch it again"
            ) from error
        names = [name for name in archive.namelist() if _is_image(name)]
        yield _by_class([name for name in names if _visible(*name.split("/"))]), archive.read


def _archives(folder: Path) -> list[Path]:
    found = (file for file in folder.iterdir() if file.suffix.lower() == ARCHIVE)
    return sorted(file for file in found if _visible(file.name) and file.is_file())


def _in_folder(root: Path) -> list[str]:
    """Paths of the image files below a folder; those of folders without any end in '/'."""
    found = []
    for folder, inner, names in _walk(root):
        images = [name for name in names if _is_image(name)]
        own = folder.relative_to(root).as_posix()
        found += [f"{own}/{name}" for name in images or [""] * (not inner)]
    return found


def _by_class(paths: list[str]) -> list[ImageFile]:
    """The files that lie in folders, in Omniglot's folders alone if there are any."""
    files, below = [], []
    for path in paths:
        *folders, name = path.split("/")
        folders = [folder for folder in folders if folder not in ("", ".")]
        top = next((at for at, folder in enumerate(folders[:-1]) if TOP.match(folder)), None)
        if folders:
            files.append(ImageFile(tuple(folders), name, path))
        if top is not None:
            below.append(ImageFile(tuple(folders[top + 1 :]), name, path))
    return below or files


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder of a tree with the names of the folders and of the files in it."""

    def fail(error: OSError) -> None:
        raise error

    for folder, inner, names in os.walk(root, onerror=fail, followlinks=True):
        inner[:] = sorted(filter(_visible, inner))
        yield Path(folder), inner, sorted(filter(_visible, names))


def _visible(*parts: str) -> bool:
    return not any(part.startswith(".") and part != "." or part == "__MACOSX" for part in parts)


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)
