"""Label kinds: how a label is shown in a prompt, predicted, trained on and scored.

A family names its kind (`TaskFamily.label_kind`). The kind owns everything that follows from it:
the loss, the error with its name and scale, the token of a label, the number of outputs of the
model, and what a prediction is.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax

from ..ranges import SIZE, check_range


class Measure(NamedTuple):
    """How training shows its loss."""

    label: str  # beside a number of a progress bar, and in metrics.jsonl
    name: str  # name of the number in words
    scale: float  # divisor of the loss


@dataclasses.dataclass(frozen=True)
class LabelKind(ABC):
    """A kind of labels.

    Shapes: labels y are `[..., *shape]`, outputs of the model `[..., outputs]` or `[...]` where
    `outputs` is None, and predictions `[..., *prediction_shape]`. Errors work on NumPy and on JAX
    arrays, on NumPy in float64.
    """

    dtype: ClassVar[Any] = np.float32  # of a label

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of a label."""

    @property
    @abstractmethod
    def outputs(self) -> int | None:
        """Number of outputs of the model at a position; None for one without an axis."""

    @property
    @abstractmethod
    def token_width(self) -> int:
        """Features of a label's token."""

    @property
    @abstractmethod
    def error_name(self) -> str:
        """Name of the error, in words."""

    @property
    @abstractmethod
    def training_measure(self) -> Measure:
        """How training shows the loss: as an error if both differ by a factor alone."""

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """Shape of a prediction."""
        return () if self.outputs is None else (self.outputs,)

    def tokens(self, y: jax.Array) -> jax.Array:
        """The tokens of labels, float `[points, token_width]`, from y `[points, *shape]`."""
        return y.reshape(len(y), -1)

    def prediction(self, outputs: jax.Array) -> jax.Array:
        """The prediction that outputs of the model stand for."""
        return outputs

    @abstractmethod
    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        """The training loss at each position, `[...]`."""

    @abstractmethod
    def error(self, prediction: Any, y: Any) -> Any:
        """The error that evaluation reports, `[...]`."""

    def check(self, y: np.ndarray) -> None:
        """Raises ValueError if an array of labels `[..., *shape]` has values of another kind."""
        if not np.issubdtype(y.dtype, np.number) or not np.isfinite(y).all():
            raise ValueError("labels must be finite real numbers")


@dataclasses.dataclass(frozen=True)
class Scalar(LabelKind):
    """A real number, predicted by its value, trained on and scored by the squared error."""

    scale: float = 1.0
    """Divisor of errors: the mean squared label, which is the error of predicting 0."""
    scale_name: str = "mean squared label"
    """Name of `scale`, in words."""

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def outputs(self) -> int | None:
        return None

    @property
    def token_width(self) -> int:
        return 1

    @property
    def error_name(self) -> str:
        return f"squared error / {self.scale_name}"

    @property
    def training_measure(self) -> Measure:
        return Measure("error", self.error_name, self.scale)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return (outputs - y) ** 2

    def error(self, prediction: Any, y: Any) -> Any:
        return (prediction - y) ** 2 / self.scale


@dataclasses.dataclass(frozen=True)
class Vector(LabelKind):
    """A vector, predicted by its value.

    The loss is the mean of the squared errors of its coordinates; the error is their sum over
    `scale`.
    """

    size: int
    """Number of coordinates."""
    scale: float = 1.0
    """Divisor of errors: the mean squared norm of a label."""
    scale_name: str = "mean squared label"
    """Name of `scale`, in words."""

    def __post_init__(self) -> None:
        check_range("size", self.size, SIZE)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def outputs(self) -> int | None:
        return self.size

    @property
    def token_width(self) -> int:
        return self.size

    @property
    def error_name(self) -> str:
        return f"squared error / {self.scale_name}"

    @property
    def training_measure(self) -> Measure:
        return Measure("error", self.error_name, self.scale / self.size)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return ((outputs - y) ** 2).mean(axis=-1)

    def error(self, prediction: Any, y: Any) -> Any:
        return ((prediction - y) ** 2).sum(axis=-1) / self.scale


@dataclasses.dataclass(frozen=True)
class Signs(LabelKind):
    """-1 or 1, predicted by log-odds of 1 and trained by cross-entropy.

    The error is that of the prediction's sign; a prediction of 0 is half an error. Any score whose
    sign is the label may stand for the log-odds, as that of least squares does.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def outputs(self) -> int | None:
        return None

    @property
    def token_width(self) -> int:
        return 1

    @property
    def error_name(self) -> str:
        return "fraction misclassified"

    @property
    def training_measure(self) -> Measure:
        return Measure("loss", "cross-entropy, nats", 1.0)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return jax.nn.softplus(-y * outputs)

    def error(self, prediction: Any, y: Any) -> Any:
        return 0.5 * (1 - ((prediction > 0) * 1.0 - (prediction < 0)) * y)

    def check(self, y: np.ndarray) -> None:
        if not ((y == 1) | (y == -1)).all():
            raise ValueError("labels of this task are signs: each must be -1 or 1")


@dataclasses.dataclass(frozen=True)
class Classes(LabelKind):
    """An integer from 0 to `number - 1`, predicted by probabilities, trained by cross-entropy.

    The token of a label is one-hot. The error is 1 where the most probable class is another than
    the label: its mean is 1 minus the accuracy.
    """

    dtype: ClassVar[Any] = np.int32

    number: int
    """Number of classes."""

    def __post_init__(self) -> None:
        check_range("number of classes", self.number, SIZE._replace(low=2))

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def outputs(self) -> int | None:
        return self.number

    @property
    def token_width(self) -> int:
        return self.number

    @property
    def error_name(self) -> str:
        return "fraction misclassified"

    @property
    def training_measure(self) -> Measure:
        return Measure("loss", "cross-entropy, nats", 1.0)

    def tokens(self, y: jax.Array) -> jax.Array:
        return jax.nn.one_hot(y, self.number)

    def prediction(self, outputs: jax.Array) -> jax.Array:
        return jax.nn.softmax(outputs)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y)

    def error(self, prediction: Any, y: Any) -> Any:
        # NaN marks a prediction that was not asked for, and stays NaN.
        return (prediction.argmax(axis=-1) != y) + 0 * prediction[..., 0]

    def check(self, y: np.ndarray) -> None:
        inside = np.issubdtype(y.dtype, np.integer) and ((y >= 0) & (y < self.number)).all()
        if not inside:
            raise ValueError(
                f"labels of this task are classes: each must be an integer from 0 to "
                f"{self.number - 1}"
            )
