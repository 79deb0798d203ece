"""Files of NumPy arrays: .npz, or .npy with a second file of labels."""

import zipfile
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
    found = _read(path)
    for pairs in NAMES:
        parts = [pair for pair in pairs if pair[0] in found and pair[1] in found]
        if parts:
            images, labels = (
                np.concatenate([np.asarray(found[pair[side]]) for pair in parts])
                for side in range(2)
            )
            return checked(images, labels, path)
    beside = labels_file(path)
    if len(found) > 1 or beside is None:
        raise ValueError(
            f"{path}: the arrays {', '.join(found)} are no images with labels: an archive needs "
            "arrays called images and labels; a single array needs 'images' in the name of its "
            "file, and labels in a file with 'labels' in that place"
        )
    [images] = found.values()
    other = _read(beside)
    if len(other) != 1:
        raise ValueError(f"{beside}: one array of labels was expected, not {', '.join(other)}")
    [labels] = other.values()
    return checked(images, labels, path)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    try:
        found: Any = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {path.name: found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: NumPy cannot read the file ({error})") from error
