"""Image classification under a random linear map and permuted labels (GPICL).

"General-purpose in-context learning by meta-learning transformers", Kirsch, Harrison,
Sohl-Dickstein and Metz 2022 (arXiv 2212.04458, section 3). A task is drawn from a key, so that a
pool of 2^25 tasks takes no memory.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..data import STRIDES, ImageBank, Part, data_files, load_bank
from ..ranges import SIZE, Range, check_ranges
from .base import Difficulty, Episode, TaskFamily, on_device
from .draws import normal
from .inputs import Images, InputKind, Vectors
from .labels import Classes

SHARE = Range(0.0, 1.0)


class Task(NamedTuple):
    """A linear map of the inputs and a choice of classes with their labels."""

    projection: jax.Array  # [n, n], [n] for a diagonal map, [0] for none
    classes: jax.Array  # int32 [ways]: the class shown with each label
    source: jax.Array  # int32 []: which set of images


@dataclasses.dataclass(frozen=True)
class ProjectedImages(TaskFamily):
    """Images of `ways` classes, each mapped by the task's matrix A, with permuted labels.

    A task draws a set of images, `ways` of its classes, the label of each, and A with entries
    N(0, 1/n) for images of n numbers. A point is an image of a uniform class. No image is drawn
    twice in a prompt before all of its class were.

    The mean image of the set (of its images in use) is subtracted from each image, and the result
    divided by the root mean square of all pixels. Without a map and features, images stay bytes.
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
    """Replace each input by that number of random ReLU features; None to keep it."""
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
    part: Part = "train"
    """The images in use: those of training, those held out, or all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task",
            self,
            size=SIZE,
            channels=Range(1, 3),
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
        if self.part == "held-out" and not self.held_out:
            raise ValueError("no images are held out: set task.held_out above 0, or part to all")
        for name, options in (
            ("projection", ("full", "diagonal", "none")),
            ("channels", (1, 3)),
            ("part", ("train", "held-out", "all")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"task.{name} must be {' or '.join(map(str, options))}")

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
        return Difficulty(0, self.points, 0 if self.shots else self.ways)

    @property
    def evaluation(self) -> "ProjectedImages":
        part = "held-out" if self.part == "train" and self.held_out else self.part
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
        bank = load_bank(
            self.images,
            size=self.size,
            channels=self.channels,
            features=self.features,
            random_features=self.random_features,
            ways=self.ways,
            held_out=self.held_out,
            part=self.part,
            draws=self.points,
        )
        return bank._replace(images=bank.images.reshape(-1, *self.input_kind.shape))

    def sample_task(
        self, key: jax.Array, difficulty: Difficulty, data: ImageBank | None = None
    ) -> Task:
        bank = on_device(data)
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
        bank = on_device(data)
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
