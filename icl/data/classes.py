"""Sets of items as one pytree of arrays, from which samplers gather items by class."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .bank import check_features
from .folders import load_trees
from .image_set import ImageSet
from .load import BUILT_IN, data_files, is_tree, load_images, stamps

ORDER_SEED = 1337  # of the public code of Chan et al. 2022


class ClassBank(NamedTuple):
    """Items of C classes, in the order of the classes."""

    items: np.ndarray  # uint8 [N, size, size], or float32 [N, features]
    first: np.ndarray  # int32 [C]: position of the first item of a class
    count: np.ndarray  # int32 [C]: number of items of a class
    original: np.ndarray  # int32 [C]: number of a class before they were put in random order

    def separated(self) -> "ClassBank":
        """A bank with a class of each item; items of one class before stay side by side."""
        total, in_files = len(self.items), self.count[np.argsort(self.original)]
        before = np.cumsum(in_files) - in_files
        start = np.repeat(before[self.original] - self.first, self.count)
        places = (np.arange(total) + start).astype(np.int32)
        one = np.ones(total, np.int32)
        return ClassBank(self.items, np.arange(total, dtype=np.int32), one, places)


def load_classes(
    names: Sequence[str],
    *,
    size: int,
    features: int | None = None,
    exemplars: int | None = None,
    seed: int = ORDER_SEED,
) -> ClassBank:
    """Loads the classes of sets, in a fixed random order, as grey images or as features.

    The classes of the sets are put after one another. Trees of folders and zip files among the
    names are one set, in the place of the first of them: a class that two of them have is one
    class (see `icl.data.folders.load_trees`). Then the classes change places as in the public code
    of Chan et al. 2022 (arXiv 2205.05055): the class in position p is the one that had been the
    `default_rng(seed).choice(C, size=C, replace=False)[p]`-th.

    A set with a light background, whose median pixel is above 127, is inverted: the background is
    0, and what is drawn on it is bright.

    Args:
      names: the sets, as for `load_images`.
      size: height and width of the images.
      features: number of features of an item, if the files hold features in place of images.
      exemplars: keeps that number of first items of each class; None keeps all. With 1, all items
        of a class are identical, a setting of Chan et al.
      seed: of the order of the classes.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: a file is damaged, or its items do not fit the settings.
    """
    if exemplars is not None and exemplars < 1:
        raise ValueError("task.exemplars must be at least 1, or None for all items of a class")
    files = [file for name in names for file in data_files(name)]
    return _load_bank(tuple(names), size, features, exemplars, seed, stamps(files))


@functools.lru_cache(maxsize=2)
def _load_bank(
    names: tuple[str, ...],
    size: int,
    features: int | None,
    exemplars: int | None,
    seed: int,
    stamp: Any,
) -> ClassBank:
    """The classes; cached until a file changes, since many families share them."""
    items, labels, classes = [], [], 0
    for group in _groups(names):
        found = _load(group, size, features, exemplars)
        items.append(found.images)
        labels.append(found.labels + classes)
        classes += found.classes
    label = np.concatenate(labels)
    order = np.random.default_rng(seed).choice(classes, size=classes, replace=False)
    position = np.argsort(order)
    count = np.bincount(label)[order].astype(np.int32)
    return ClassBank(
        np.concatenate(items)[np.argsort(position[label], kind="stable")],
        (np.cumsum(count) - count).astype(np.int32),
        count,
        order.astype(np.int32),
    )


def _groups(names: Sequence[str]) -> list[list[str]]:
    """The names by set: one for all trees, in the place of the first, and one for each other."""
    if not names:
        raise ValueError("at least one set of items is needed")
    trees, groups = [], []
    for name in names:
        if name in BUILT_IN or not is_tree(Path(name)):
            groups.append([name])
            continue
        if not trees:
            groups.append(trees)
        trees.append(name)
    return groups


def _load(names: list[str], size: int, features: int | None, exemplars: int | None) -> ImageSet:
    """The items of a set in use, images without an axis of channels."""
    what = ", ".join(names)
    if len(names) > 1:
        images, labels = load_trees([Path(name) for name in names], size, 1)
    else:
        images, labels = load_images(names[0], size)
    check_features(what, images, features)
    if features is None:
        images = images[..., 0]
        if np.median(images) > 127:
            images = 255 - images
    chosen = []
    for label in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels == label)
        if len(own) < (exemplars or 1):
            raise ValueError(
                f"{what} has {len(own)} items of class {label}: set task.exemplars to that at "
                "most, or to None"
            )
        chosen.append(own[:exemplars])
    chosen = np.concatenate(chosen)
    return ImageSet(images[chosen], labels[chosen])
