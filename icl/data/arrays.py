"""Files of NumPy arrays: .npz, or .npy with a second file of labels."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .image_set import ImageSet, checked

SUFFIXES = (".npz", ".npy")
# Names of images and labels in an archive; parts with both names are concatenated.
NAMES = (
    (("images", "labels"),),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("x", "y"),),
    (("X", "y"),),
    (("image", "label"),),
    (("data", "target"),),
)
BESIDE = (("images", "labels"), ("imgs", "labels"))  # in the names of two files


def labels_file(path: Path) -> Path | None:
    """The file of labels beside a file of images, by its name; None if it has none."""
    for images, labels in BESIDE:
        if images in path.name:
            return path.with_name(path.name.replace(images, labels))
    return None


def load_arrays(path: Path) -> ImageSet:
    """Images and labels of a `.npz`, or of `...images....npy` and `...labels....npy`.

    An archive holds `images` and `labels`, or another pair of `NAMES`. An archive or a file of a
    single array takes its labels from the file beside it.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file cannot be read, has no such arrays, or images and labels do not fit.
    """
    names = _names(path)
    for pairs in NAMES:
        parts = [pair for pair in pairs if set(pair) <= set(names)]
        if parts:
            found = _read(path, [name for pair in parts for name in pair])
            images, labels = (
                np.concatenate([found[pair[side]] for pair in parts]) for side in range(2)
            )
            return checked(images, labels, path)
    beside = labels_file(path)
    if len(names) > 1 or beside is None:
        raise ValueError(
            f"{path}: the arrays {', '.join(names)} are no images with labels: an archive needs "
            "arrays called images and labels; a single array needs 'images' in the name of its "
            "file, and labels in a file with 'labels' in that place"
        )
    other = _names(beside)
    if len(other) != 1:
        raise ValueError(f"{beside}: one array of labels was expected, not {', '.join(other)}")
    [images], [labels] = (_read(*of).values() for of in ((path, names), (beside, other)))
    return checked(images, labels, path)


def _names(path: Path) -> list[str]:
    """The names of the arrays of a file; that of the file for a single one."""
    return list(_read(path, None))


def _read(path: Path, names: Sequence[str] | None) -> dict[str, Any]:
    """The arrays of those names; without names, all names, without arrays."""
    try:
        found: Any = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {path.name: found}
        with found:
            if names is None:
                return dict.fromkeys(found.files)
            return {name: found[name] for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: NumPy cannot read the file ({error})") from error
