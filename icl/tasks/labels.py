"""Label kinds: how a label is shown in a prompt, predicted, trained on and scored.

A family has one kind of label (`TaskFamily.label_kind`). The kind defines the loss, the error with
its name and scale, the token of a label, the number of outputs of the model, and how outputs
become a prediction.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..ranges import SIZE, check_range

LEAST_LOGIT = -1e9
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)


class Measure(NamedTuple):
    """How training shows its loss."""

    label: str  # short name, in the progress bar and in metrics.jsonl
    name: str  # full name, in words
    scale: float  # divisor of the loss


@dataclasses.dataclass(frozen=True)
class LabelKind(ABC):
    """A kind of labels.

    Shapes: labels y are `[..., *shape]`; outputs of the model are `[..., outputs]`, or `[...]` if
    `outputs` is None; predictions are `[..., *prediction_shape]`. `error` takes NumPy or JAX
    arrays and keeps their precision.
    """

    dtype: ClassVar[Any] = np.float32  # of a label

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a label; that of a number unless overridden."""
        return ()

    @property
    def outputs(self) -> int | None:
        """Number of model outputs at each position; None for a scalar without an axis."""
        return None

    @property
    def token_width(self) -> int:
        """Number of features of a label's token."""
        return self.outputs or 1

    @property
    @abstractmethod
    def error_name(self) -> str:
        """Name of the error, in words."""

    @property
    @abstractmethod
    def training_measure(self) -> Measure:
        """How training shows the loss: as the error, if the two differ only by a factor."""

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """Shape of a prediction."""
        return () if self.outputs is None else (self.outputs,)

    def tokens(self, y: jax.Array) -> jax.Array:
        """Tokens of the labels, float `[points, token_width]`, for y `[points, *shape]`."""
        return y.reshape(len(y), -1)

    def prediction(self, outputs: jax.Array) -> jax.Array:
        """Predictions `[..., *prediction_shape]` from outputs of the model."""
        return outputs

    def restricted(self, outputs: jax.Array, y: jax.Array, context: jax.Array) -> jax.Array:
        """Outputs of a prompt `[P, (outputs)]` that allow only what its examples allow.

        They are unchanged unless overridden.

        Args:
          outputs: outputs of the model.
          y: labels of all points `[points, *shape]`.
          context: bool `[points]`, whether a point is an example.
        """
        return outputs

    @abstractmethod
    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        """The training loss at each position, `[...]`."""

    @abstractmethod
    def error(self, prediction: Any, y: Any) -> Any:
        """The error that evaluation reports, `[...]`."""

    def check(self, y: np.ndarray) -> None:
        """Raises ValueError if labels `[..., *shape]` have values that this kind does not allow."""
        if not np.issubdtype(y.dtype, np.number) or not np.isfinite(y).all():
            raise ValueError("labels must be finite real numbers")


@dataclasses.dataclass(frozen=True)
class Scalar(LabelKind):
    """A real number: the output is the predicted value; loss and error are squared errors."""

    scale: float = 1.0
    """Divisor of errors: the mean squared label, so that predicting 0 has error 1."""
    scale_name: str = "mean squared label"
    """Name of `scale`, in words."""

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
    """A vector: the outputs are its predicted coordinates.

    The loss is the mean of the coordinates' squared errors; the error is the sum of the
    coordinates' squared errors divided by `scale`.
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
    def error_name(self) -> str:
        return f"squared error / {self.scale_name}"

    @property
    def training_measure(self) -> Measure:
        return Measure("error", self.error_name, self.scale / self.size)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return ((outputs - y) ** 2).mean(axis=-1)

    def error(self, prediction: Any, y: Any) -> Any:
        return ((prediction - y) ** 2).sum(axis=-1) / self.scale


class _Categories(LabelKind):
    """What kinds trained by cross-entropy share."""

    @property
    def error_name(self) -> str:
        return "fraction misclassified"

    @property
    def training_measure(self) -> Measure:
        return Measure("loss", "cross-entropy, nats", 1.0)


@dataclasses.dataclass(frozen=True)
class Signs(_Categories):
    """-1 or 1: the output is the log-odds of 1, trained by cross-entropy.

    The error is 1 if the sign of the prediction is wrong, and 0.5 for a prediction of 0. Any score
    whose sign predicts the label can be scored in place of log-odds, such as least squares'.
    """

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return jax.nn.softplus(-y * outputs)

    def error(self, prediction: Any, y: Any) -> Any:
        margin = prediction * y
        right, wrong = ((side > 0).astype(margin.dtype) for side in (margin, -margin))
        return 0.5 * (1 - right + wrong)

    def check(self, y: np.ndarray) -> None:
        if not ((y == 1) | (y == -1)).all():
            raise ValueError("labels of this task are signs: each must be -1 or 1")


@dataclasses.dataclass(frozen=True)
class Classes(_Categories):
    """An integer from 0 to `number - 1`, predicted by probabilities, trained by cross-entropy.

    The token of a label is one-hot. The error is 1 if the most probable class is not the label, so
    the mean error is 1 minus the accuracy.
    """

    dtype: ClassVar[Any] = np.int32

    number: int
    """Number of classes."""

    def __post_init__(self) -> None:
        check_range("number of classes", self.number, SIZE._replace(low=2))

    @property
    def outputs(self) -> int | None:
        return self.number

    def tokens(self, y: jax.Array) -> jax.Array:
        return jax.nn.one_hot(y, self.number)

    def prediction(self, outputs: jax.Array) -> jax.Array:
        return jax.nn.softmax(outputs)

    def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y)

    def error(self, prediction: Any, y: Any) -> Any:
        # A NaN prediction marks a skipped one; its error is NaN.
        wrong = prediction.argmax(axis=-1) != y
        return wrong.astype(prediction.dtype) + 0 * prediction[..., 0]

    def check(self, y: np.ndarray) -> None:
        inside = np.issubdtype(y.dtype, np.integer) and ((y >= 0) & (y < self.number)).all()
        if not inside:
            raise ValueError(
                f"labels of this task are classes: each must be an integer from 0 to "
                f"{self.number - 1}"
            )


@dataclasses.dataclass(frozen=True)
class ShownClasses(Classes):
    """Classes of a prompt are those of its examples: the probability of any other class is 0."""

    def restricted(self, outputs: jax.Array, y: jax.Array, context: jax.Array) -> jax.Array:
        return jnp.where(self.shown(y, context)[None], outputs, LEAST_LOGIT)

    def shown(self, y: jax.Array, context: jax.Array) -> jax.Array:
        """Whether a point of the context has each class, bool `[classes]`; y int `[points]`."""
        return (jax.nn.one_hot(y, self.number, dtype=bool) & context[:, None]).any(axis=0)


@dataclasses.dataclass(frozen=True)
class NextSymbol(Classes):
    """The symbol that comes next, predicted by probabilities, trained by cross-entropy.

    The error is the cross-entropy too, in nats: minus the logarithm of the probability of the
    symbol.
    """

    @property
    def error_name(self) -> str:
        return "cross-entropy, nats"

    def error(self, prediction: Any, y: Any) -> Any:
        xp: Any = jnp if isinstance(prediction, jax.Array) else np
        chosen = xp.take_along_axis(
            prediction, xp.broadcast_to(y, prediction.shape[:-1])[..., None], axis=-1
        )[..., 0]
        # A probability that underflows has a finite error.
        return -xp.log(xp.maximum(chosen, LEAST_PROBABILITY))


@dataclasses.dataclass(frozen=True)
class EmbeddedClasses(Classes):
    """Classes whose tokens are rows of a learned table, which `Episode.label_tokens` holds."""

    features: int = 1
    """Number of features of a token."""

    @property
    def token_width(self) -> int:
        return self.features

    def tokens(self, y: jax.Array) -> jax.Array:
        raise TypeError("tokens of embedded classes are made by a learner, as label_tokens")
