"""Files in MNIST's format, IDX, plain or gzipped (LeCun, Cortes and Burges 1998)."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .image_set import ImageSet, checked

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
UBYTE = 0x08  # code of the type of a value, the third byte of a file


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An array of bytes with that number of axes.

    Raises:
      ValueError: the file is truncated, too long, damaged, or no IDX file of such an array.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: the gzip file is damaged or truncated ({error})") from error
    magic = bytes([0, 0, UBYTE, axes])
    if raw[:4] != magic:
        raise ValueError(
            f"{path}: an IDX file of bytes with {axes} axes begins with {magic.hex(' ')}, this "
            f"file begins with {raw[:4].hex(' ') or 'nothing'}"
        )
    header = 4 + 4 * axes
    if len(raw) < header:
        raise ValueError(f"{path}: the file is truncated: it ends inside its header")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", axes, offset=4)]
    found, wanted = len(raw) - header, math.prod(shape)
    if found != wanted:
        what = "truncated" if found < wanted else "too long"
        raise ValueError(
            f"{path}: the file is {what}: its header says {' x '.join(map(str, shape))} bytes, and "
            f"{found} follow"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def is_idx(path: Path) -> bool:
    """Whether a file is named as MNIST's files of images are."""
    return IMAGES in path.name


def labels_file(path: Path) -> Path:
    """The file of labels beside a file of images."""
    return path.with_name(path.name.replace(IMAGES, LABELS))


def load_idx(paths: Sequence[Path]) -> ImageSet:
    """Images of files named `...images-idx3-ubyte...`, with the labels of the files beside them.

    A label has one meaning in all files.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file cannot be read, images and labels do not fit, or images differ in size.
    """
    parts = [(read_idx(path, 3), read_idx(labels_file(path), 1)) for path in paths]
    for path, (images, labels) in zip(paths, parts):
        checked(images, labels, path)
        if images.shape[1:] != parts[0][0].shape[1:]:
            raise ValueError(f"{path}: its images have another size than those of {paths[0]}")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return checked(images, labels, paths[0].parent)
