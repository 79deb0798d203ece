"""Image classification under a random linear map and permuted labels (GPICL).

"General-purpose in-context learning by meta-learning transformers", Kirsch, Harrison,
Sohl-Dickstein and Metz 2022 (arXiv 2212.04458, section 3). A task is drawn from a key, so that a
pool of 2^25 tasks takes no memory.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..data import data_files, load_images
from ..ranges import SIZE, Range, check_ranges
from .base import Difficulty, Episode, TaskFamily
from .draws import normal
from .inputs import Images, InputKind, Vectors
from .labels import Classes

STRIDES = 64  # number of orders in which the images of a class are drawn without repetition
SHARE = Range(0.0, 1.0)


class Task(NamedTuple):
    """A linear map of the inputs and a choice of classes with their labels."""

    projection: jax.Array  # [n, n], [n] for a diagonal map, [0] for none
    classes: jax.Array  # int32 [ways]: the class shown with each label
    source: jax.Array  # int32 []: which set of images


class ImageBank(NamedTuple):
    """Images of S sets with at most C classes each, in the order of sets and of classes."""

    images: np.ndarray  # uint8 [N, *shape of an input], or float32 [N, features]
    mean: np.ndarray  # float32 [S, n]: the mean image of a set
    std: np.ndarray  # float32 [S]: of all pixels about their means
    number: np.ndarray  # int32 [S]: number of classes
    first: np.ndarray  # int32 [S, C]: position of the first image of a class
    count: np.ndarray  # int32 [S, C]: number of images of a class; 1 for classes that do not exist
    strides: np.ndarray  # int32 [S, C, STRIDES]: have no factor in common with `count`


@dataclasses.dataclass(frozen=True)
class ProjectedImages(TaskFamily):
    """Images of `ways` classes, each mapped by the task's matrix A, with permuted labels.

    A task draws a set of images, `ways` of its classes, the label of each, and A with entries
    N(0, 1/n) for images of n numbers. A point is an image of a uniform class. The mean image of
    the set is subtracted from each image, and the result divided by the standard deviation of all
    pixels about their means. No image is drawn twice in a prompt before all of its class were.
    """

    points: int = 100
    """Number of images in a prompt."""
    images: tuple[str, ...] = ("digits",)
    """Sets of images: digits, random, or paths (see icl.data.load_images). A task draws one."""
    size: int = 8
    """Height and width that images are resized to."""
    channels: int = 1
    """Numbers a pixel: 1 for grey images, 3 for colours."""
    features: int | None = None
    """Number of features of an input, if the files hold vectors of features and not images."""
    random_features: int | None = None
    """Replace each image by that number of random ReLU features; None to keep its pixels."""
    ways: int = 10
    """Number of classes in a prompt."""
    shots: int | None = None
    """Number of images of each class before the last point; None to draw all classes uniformly.
    With shots, points must be ways * shots + 1."""
    projection: Literal["full", "diagonal", "none"] = "full"
    """The task's linear map: a full matrix, a diagonal one with entries N(0, 1), or none."""
    biased: float = 0.0
    """Share of training tasks with the same labels: class i has the label i (section 4)."""
    held_out: float = 0.2
    """Share of each class's images that training does not see; evaluation draws from them."""
    part: Literal["train", "held out", "all"] = "train"
    """The images in use: those of training, those held out, or all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task",
            self,
            size=SIZE,
            channels=SIZE,
            features=SIZE,
            random_features=SIZE,
            ways=Range(2, SIZE.high),
            shots=SIZE,
            biased=SHARE,
            held_out=Range(0.0, 0.9),
        )
        if not self.images:
            raise ValueError("task.images must name at least one set of images")
        if self.shots is not None and self.points != self.ways * self.shots + 1:
            raise ValueError(
                f"{self.ways} classes of {self.shots} images and the query are "
                f"{self.ways * self.shots + 1} points: set task.points to that, not {self.points}"
            )
        if self.part == "held out" and not self.held_out:
            raise ValueError("no images are held out: set task.held_out above 0, or part to all")
        for name, options in (
            ("projection", ("full", "diagonal", "none")),
            ("part", ("train", "held out", "all")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"task.{name} must be {' or '.join(options)}")

    @property
    def is_vector(self) -> bool:
        """Whether inputs are vectors of floating-point numbers, and not images."""
        return self.projection != "none" or bool(self.features or self.random_features)

    @property
    def dim(self) -> int:
        """Number of numbers of an input, n."""
        return self.random_features or self.features or self.size**2 * self.channels

    @property
    def input_kind(self) -> InputKind:
        if self.is_vector:
            return Vectors(self.dim)
        return Images(self.size, self.size, self.channels)

    @property
    def label_kind(self) -> Classes:
        return Classes(self.ways)

    @property
    def full(self) -> Difficulty:
        return Difficulty(0, self.points, self.ways)

    @property
    def evaluation(self) -> "ProjectedImages":
        part = "held out" if self.part == "train" and self.held_out else self.part
        return dataclasses.replace(self, biased=0.0, part=part)

    @property
    def data_source(self) -> str:
        return ", ".join(self.images)

    @property
    def data_files(self) -> list[Path]:
        return [file for name in self.images for file in data_files(name)]

    def load_data(self) -> ImageBank:
        """The images in use, on the host.

        Raises:
          OSError: a file is missing or cannot be read.
          ValueError: a file is damaged, or its images do not fit the settings.
        """
        parts = [self._set(name) for name in self.images]
        classes = max(len(counts) for _, counts in parts)
        padded = [np.pad(counts, (0, classes - len(counts))) for _, counts in parts]
        count = np.array(padded, np.int32)
        first = np.cumsum(count).reshape(count.shape) - count
        images = np.concatenate([images for images, _ in parts])
        flat = [images.reshape(len(images), -1) for images, _ in parts]
        if self.random_features:
            flat = [self._random_features((own - own.mean(axis=0)) / _spread(own)) for own in flat]
            images = np.concatenate(flat)
        mean = np.array([own.mean(axis=0) for own in flat], np.float32)
        std = np.array([_spread(own) for own in flat], np.float32)
        number = (count > 0).sum(axis=1)
        count = np.maximum(count, 1)
        strides = np.array([[_coprime(n, self.points) for n in of_set] for of_set in count])
        shape = (self.dim,) if self.is_vector else self.input_kind.shape
        return ImageBank(
            images.reshape(-1, *shape),
            mean,
            std,
            number.astype(np.int32),
            first.astype(np.int32),
            count,
            strides.astype(np.int32),
        )

    def _set(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The images of a set in use, in the order of classes, and the number of each class."""
        images, labels = load_images(name, self.size, self.channels)
        width = images.shape[1] if images.ndim == 2 else None
        if width != self.features:
            has = "images" if width is None else f"{width} features an input"
            raise ValueError(f"{name} has {has}: set task.features to {width}")
        number = int(labels.max()) + 1
        if number < self.ways:
            raise ValueError(f"{name} has {number} classes: set task.ways to that at most")
        rng = np.random.default_rng(0)
        chosen = []
        for label in range(number):
            own = rng.permutation(np.flatnonzero(labels == label))
            kept = len(own) - int(round(self.held_out * len(own)))
            limits = {"train": slice(kept), "held out": slice(kept, None), "all": slice(None)}
            chosen.append(own[limits[self.part]])
            if not len(chosen[-1]):
                raise ValueError(
                    f"{name} has {len(own)} images of class {label}, and none is left if a share "
                    f"of {self.held_out:g} is held out: change task.held_out, or set task.part to "
                    "all"
                )
        return images[np.concatenate(chosen)], np.array([len(own) for own in chosen])

    def _random_features(self, x: np.ndarray) -> np.ndarray:
        """ReLU features `[N, dim]` of a random layer, of mean square 1 for inputs of variance 1."""
        weights = np.random.default_rng(1).normal(size=(x.shape[1], self.dim))
        return np.maximum(x @ weights * (2 / x.shape[1]) ** 0.5, 0).astype(np.float32)

    def sample_task(
        self, key: jax.Array, difficulty: Difficulty, data: ImageBank | None = None
    ) -> Task:
        bank = _on_device(data)
        matrix_key, class_key, source_key, bias_key = jax.random.split(key, 4)
        n = self.dim
        shape = {"full": (n, n), "diagonal": (n,), "none": (0,)}[self.projection]
        matrix = normal(matrix_key, shape)
        if self.projection == "full":
            matrix = matrix / math.sqrt(n)
        source = jax.random.randint(source_key, (), 0, len(self.images))
        scores = jax.random.uniform(class_key, bank.count.shape[1:])
        exists = jnp.arange(len(scores)) < bank.number[source]
        order = jnp.argsort(jnp.where(exists, scores, 2.0))[: self.ways]
        same = jax.random.uniform(bias_key) < self.biased
        classes = jnp.where(same, jnp.arange(self.ways), order).astype(jnp.int32)
        return Task(matrix, classes, source)

    def sample_episode(
        self,
        key: jax.Array,
        task: Task,
        difficulty: Difficulty,
        data: ImageBank | None = None,
    ) -> Episode:
        bank = _on_device(data)
        label_key, start_key, stride_key = jax.random.split(key, 3)
        y = self._labels(label_key, difficulty)
        own = (task.source, task.classes)
        count, first = bank.count[own], bank.first[own]
        start = jax.random.randint(start_key, (self.ways,), 0, count)
        which = jax.random.randint(stride_key, (self.ways,), 0, STRIDES)
        stride = bank.strides[task.source, task.classes, which]
        shown = jax.nn.one_hot(y, self.ways, dtype=jnp.int32)
        earlier = (jnp.cumsum(shown, axis=0) - shown)[jnp.arange(self.points), y]
        x = bank.images[first[y] + (start[y] + stride[y] * earlier) % count[y]]
        if self.is_vector:
            x = (x.astype(jnp.float32) - bank.mean[task.source][None]) / bank.std[task.source]
        if self.projection == "full":
            x = jnp.matmul(x, task.projection.T, precision="highest")
        elif self.projection == "diagonal":
            x = x * task.projection[None]
        used = jnp.arange(self.points) < difficulty.points
        return Episode(x, y, used, used)

    def _labels(self, key: jax.Array, difficulty: Difficulty) -> jax.Array:
        """Labels of the points, int32 `[points]`; the key is consumed."""
        if self.shots is None:
            return jax.random.randint(key, (self.points,), 0, difficulty.classes)
        order_key, query_key = jax.random.split(key)
        shown = jnp.tile(jnp.arange(self.ways), self.shots)
        query = jax.random.randint(query_key, (1,), 0, self.ways)
        return jnp.concatenate([jax.random.permutation(order_key, shown), query])


def _on_device(data: ImageBank | None) -> Any:
    if data is None:
        raise ValueError("images are drawn from data: give the result of load_data")
    return jax.tree.map(jnp.asarray, data)


def _spread(x: np.ndarray) -> float:
    """Root mean square of inputs `[N, n]` about their mean; 1 if they are all equal."""
    return float(np.sqrt(x.var(axis=0, dtype=np.float64).mean())) or 1.0


def _coprime(count: int, points: int) -> np.ndarray:
    """Numbers without a factor in common with `count`, and small enough for int32, `[STRIDES]`."""
    most = max(2, min(int(count), (2**31 - 1) // points - 1))
    rng = np.random.default_rng(int(count))
    drawn = rng.integers(1, most, 40 * STRIDES)
    return np.resize(drawn[np.gcd(drawn, count) == 1], STRIDES)
