"""Loads a set of images by the name of a built-in set or by a path."""

import os
from collections.abc import Iterable
from pathlib import Path

from . import arrays, idx
from .arrays import load_arrays
from .digits import load_digits
from .folders import load_trees
from .idx import load_idx
from .image_set import ImageSet
from .random_images import random_images
from .resize import as_images
from .trees import ARCHIVE, tree_files

BUILT_IN = ("digits", "random")


def load_images(name: str, size: int, channels: int = 1) -> ImageSet:
    """Labelled images, resized.

    Args:
      name: `digits` or `random`, or the path of: a file in MNIST's format whose name has
        `images-idx3-ubyte`, or a folder of such files, all of which are used; a `.npz` or `.npy`
        (see `icl.data.arrays`); or a tree with a folder of image files for each class: a folder, a
        `.zip` file, or a folder of such zip files (see `icl.data.folders.load_trees`).
      size: height and width of the images in the result.
      channels: 1 for grey images, 3 for red, green and blue.

    Returns:
      Images uint8 `[N, size, size, channels]`, or features float32 `[N, features]` if the file has
      features in place of images.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: a file is damaged, or labels do not fit the images; the message names the file.
    """
    if name == "digits":
        found = load_digits()
    elif name == "random":
        found = random_images(size, channels)
    else:
        found = _from_path(Path(name), size, channels)
    if found.images.ndim == 2:
        return found
    try:
        return found._replace(images=as_images(found.images, size, channels))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _from_path(path: Path, size: int, channels: int) -> ImageSet:
    if is_tree(path):
        return load_trees([path], size, channels)
    if path.is_dir():
        return load_idx(_idx_files(path))
    if not path.exists():
        raise FileNotFoundError(
            2,
            f"there is no such file or folder, and no built-in set ({', '.join(BUILT_IN)})",
            str(path),
        )
    if idx.is_idx(path):
        return load_idx([path])
    if path.suffix in arrays.SUFFIXES:
        return load_arrays(path)
    raise ValueError(
        f"{path}: images are read from files whose name has {idx.IMAGES}, from .npz, .npy and "
        f"{ARCHIVE}, and from folders"
    )


def is_tree(path: Path) -> bool:
    """Whether a path is a tree of folders of images: a folder without MNIST's files, or a zip."""
    if path.is_dir():
        return not _idx_files(path)
    return path.suffix.lower() == ARCHIVE and path.exists()


def _idx_files(path: Path) -> list[Path]:
    """MNIST's files of images in a folder; the plain one if a file is there gzipped too."""
    found = {file.name.removesuffix(".gz"): file for file in sorted(path.iterdir(), reverse=True)}
    return sorted(file for file in found.values() if idx.is_idx(file))


def data_files(name: str) -> list[Path]:
    """The files that `load_images` reads for a name; for a tree its zip files and its folders."""
    path = Path(name)
    if name in BUILT_IN:
        return []
    if is_tree(path):
        return tree_files(path)
    files = _idx_files(path) if path.is_dir() else [path]
    labels = [
        idx.labels_file(file) if idx.is_idx(file) else arrays.labels_file(file) for file in files
    ]
    return [*files, *(file for file in labels if file is not None)]


def stamps(files: Iterable[str | os.PathLike[str]]) -> tuple[tuple[int, int], ...]:
    """Time and size of each file that exists: what was read is read again if they change."""
    found = [os.stat(file) for file in files if os.path.exists(file)]
    return tuple((one.st_mtime_ns, one.st_size) for one in found)
