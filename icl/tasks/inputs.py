"""Input kinds: shape, dtype and valid values of the inputs x of a family."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ..ranges import SIZE, check_range


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Vectors of real numbers, float32 `[dim]`."""

    dtype: ClassVar[Any] = np.float32

    dim: int
    """Number of coordinates."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if an array `[..., dim]` is not of finite real numbers."""
        if not np.issubdtype(x.dtype, np.number) or not np.isfinite(x).all():
            raise ValueError("inputs must be finite real numbers")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of bytes, uint8 `[height, width]` or `[height, width, channels]`."""

    height: int
    """Number of rows of pixels."""
    width: int
    """Number of columns of pixels."""
    channels: int | None = None
    """Numbers a pixel; None for grey images without an axis of channels."""
    floats: bool = False
    """Whether pixels are float32, near 0 to 1, in place of bytes."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), SIZE)

    @property
    def dtype(self) -> Any:
        """Type of a pixel."""
        return np.float32 if self.floats else np.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        depth = () if self.channels is None else (self.channels,)
        return (self.height, self.width, *depth)

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if an array `[..., *shape]` is not of such pixels."""
        if self.floats:
            if np.issubdtype(x.dtype, np.integer):
                raise ValueError("images must be numbers from 0 to 1: divide bytes by 255")
            return Vectors(1).check(x)
        if x.dtype != np.uint8:
            raise ValueError(f"images must be uint8, from 0 to 255; got {x.dtype}")


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Integers from 0 to `vocabulary - 1`, int32 `[]`."""

    dtype: ClassVar[Any] = np.int32

    vocabulary: int
    """Number of different symbols."""

    def __post_init__(self) -> None:
        check_range("vocabulary", self.vocabulary, SIZE)

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if an array `[...]` is not of integers below `vocabulary`."""
        inside = np.issubdtype(x.dtype, np.integer) and ((x >= 0) & (x < self.vocabulary)).all()
        if not inside:
            raise ValueError(
                f"inputs of this task are symbols: each must be an integer from 0 to "
                f"{self.vocabulary - 1}"
            )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a table, float32 `[columns]`; NaN marks a missing value.

    A column that is missing in all rows of a table is not in use.
    """

    dtype: ClassVar[Any] = np.float32

    columns: int
    """Number of columns."""

    def __post_init__(self) -> None:
        check_range("columns", self.columns, SIZE)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.columns,)

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError if an array `[..., columns]` has values that are not real numbers."""
        if not np.issubdtype(x.dtype, np.number) or np.isinf(x).any():
            raise ValueError("inputs must be real numbers, or NaN where a value is missing")


InputKind = Vectors | Images | Symbols | Rows
