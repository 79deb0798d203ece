"""Sets of images as one pytree of arrays, from which samplers gather images by class."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from .load import load_images

STRIDES = 64  # number of orders in which the images of a class are drawn without repetition
Part = Literal["train", "held-out", "all"]


class ImageBank(NamedTuple):
    """Images of S sets with at most C classes each, in the order of sets and of classes.

    The images `first + (start + stride * k) % count`, for k = 0, 1, ..., are all images of a class
    in turn, for each start and each of its strides.
    """

    images: np.ndarray  # uint8 [N, height, width, channels], or float32 [N, features]
    mean: np.ndarray  # float32 [S, n]: the mean image of a set, of the images in use
    std: np.ndarray  # float32 [S]: root mean square of all numbers about the mean image
    number: np.ndarray  # int32 [S]: number of classes
    first: np.ndarray  # int32 [S, C]: position of the first image of a class
    count: np.ndarray  # int32 [S, C]: number of images of a class; 1 for classes that do not exist
    strides: np.ndarray  # int32 [S, C, STRIDES]: have no factor in common with `count`


def load_bank(
    names: Sequence[str],
    *,
    size: int,
    channels: int = 1,
    features: int | None = None,
    random_features: int | None = None,
    ways: int = 1,
    held_out: float = 0.0,
    part: Part = "all",
    draws: int = 1,
) -> ImageBank:
    """Loads sets of images.

    Args:
      names: the sets, as for `load_images`.
      size, channels: of the images, as for `load_images`.
      features: number of features of an input, if the files hold features in place of images.
      random_features: replaces each input by that number of random ReLU features; None to keep it.
      ways: the least number of classes that a set must have.
      held_out: share of the images of each class that are held out, always the same ones.
      part: which images to keep.
      draws: largest number of images that are drawn from a class at once.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: a file is damaged, or its images do not fit the settings.
    """
    parts = [_load(name, size, channels, features, ways, held_out, part) for name in names]
    images = np.concatenate([images for images, _ in parts])
    flat = [images.reshape(len(images), -1) for images, _ in parts]
    if random_features:
        flat = [_random_features(own, random_features) for own in flat]
        images = np.concatenate(flat)
    classes = max(len(counts) for _, counts in parts)
    count = np.array([np.pad(counts, (0, classes - len(counts))) for _, counts in parts], np.int32)
    existing = np.maximum(count, 1)
    return ImageBank(
        images,
        np.array([own.mean(axis=0) for own in flat], np.float32),
        np.array([_spread(own) for own in flat], np.float32),
        (count > 0).sum(axis=1).astype(np.int32),
        (np.cumsum(count).reshape(count.shape) - count).astype(np.int32),
        existing,
        np.array([[_coprime(n, draws) for n in of_set] for of_set in existing], np.int32),
    )


def check_features(name: str, images: np.ndarray, features: int | None) -> None:
    """Raises ValueError if a set has not that number of features; None stands for images."""
    width = images.shape[1] if images.ndim == 2 else None
    if width != features:
        has = "images" if width is None else f"{width} features an input"
        raise ValueError(f"{name} has {has}: set task.features to {width}")


def _load(
    name: str,
    size: int,
    channels: int,
    features: int | None,
    ways: int,
    held_out: float,
    part: Part,
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a set in use, in the order of classes, and the number of each class."""
    images, labels = load_images(name, size, channels)
    check_features(name, images, features)
    number = int(labels.max()) + 1
    if number < ways:
        raise ValueError(f"{name} has {number} classes: set task.ways to that at most")
    rng = np.random.default_rng(0)
    chosen = []
    for label in range(number):
        own = rng.permutation(np.flatnonzero(labels == label))
        kept = len(own) - round(held_out * len(own))
        limits = {"train": slice(kept), "held-out": slice(kept, None), "all": slice(None)}
        chosen.append(own[limits[part]])
        # Whatever the part, so that a run that could not be evaluated does not train.
        if held_out and not 0 < kept < len(own):
            raise ValueError(
                f"{name} has {len(own)} images of class {label}, which cannot be split if a "
                f"share of {held_out:g} is held out: change task.held_out; 0 holds none out"
            )
    return images[np.concatenate(chosen)], np.array([len(own) for own in chosen])


def _random_features(x: np.ndarray, number: int) -> np.ndarray:
    """ReLU features `[N, number]` of a random layer, of mean square about 1."""
    weights = np.random.default_rng(1).normal(size=(x.shape[1], number))
    standard = (x - x.mean(axis=0)) / _spread(x)
    return np.maximum(standard @ weights * (2 / x.shape[1]) ** 0.5, 0).astype(np.float32)


def _spread(x: np.ndarray) -> float:
    """Root mean square of inputs `[N, n]` about their mean; 1 if they are all equal."""
    return float(np.sqrt(x.var(axis=0, dtype=np.float64).mean())) or 1.0


def _coprime(count: int, draws: int) -> np.ndarray:
    """Numbers without a factor in common with `count`, and small enough for int32, `[STRIDES]`."""
    most = max(2, min(int(count), (2**31 - 1) // draws - 1))
    drawn = np.random.default_rng(int(count)).integers(1, most, 40 * STRIDES)
    return np.resize(drawn[np.gcd(drawn, count) == 1], STRIDES)
