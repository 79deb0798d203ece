"""A set of labelled images, and the checks that every loader shares."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class ImageSet(NamedTuple):
    """Labelled images, or labelled vectors of features."""

    images: np.ndarray  # uint8 [N, height, width, channels], or float32 [N, features]
    labels: np.ndarray  # int32 [N], from 0 to the number of classes - 1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


def checked(images: np.ndarray, labels: np.ndarray, where: Path | str) -> ImageSet:
    """An image set from arrays of a file.

    Args:
      images: uint8 `[N, height, width]` or `[N, height, width, channels]`, or floating-point
        features `[N, features]`.
      labels: whole numbers `[N]`; the numbers in use become 0, 1, 2, ... in their order.
      where: the file, for errors.

    Raises:
      ValueError: the arrays are not such arrays; the message names the file.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    is_images = images.ndim == 4 and images.dtype == np.uint8
    is_features = images.ndim == 2 and np.issubdtype(images.dtype, np.floating)
    if not (is_images or is_features):
        raise ValueError(
            f"{where}: images must be uint8 [N, height, width] or [N, height, width, channels], or "
            f"features of floating-point numbers [N, features]; got {images.dtype} "
            f"{list(images.shape)}"
        )
    if is_features:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ValueError(f"{where}: a feature is NaN or infinite")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: labels must be whole numbers [N]; got {labels.dtype} {list(labels.shape)}"
        )
    if len(labels) != len(images):
        raise ValueError(
            f"{where}: {len(images)} images do not fit {len(labels)} labels; each image needs one"
        )
    if not len(labels):
        raise ValueError(f"{where}: there are no images")
    return ImageSet(images, np.unique(labels, return_inverse=True)[1].astype(np.int32))
