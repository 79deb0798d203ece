"""Standardised columns of tables: what learners of tables are shown, in training and in use."""

from typing import Any

TAIL = 4.0  # deviations from which values grow as a logarithm
LEAST_DEVIATION = 1e-5  # relative to the mean's size


def standardised(xp: Any, x: Any, context: Any) -> Any:
    """Columns with mean 0 and standard deviation 1 over the examples; NaN where unknown.

    A value beyond 4 deviations becomes `4 + log(value / 4)`. A column that is constant over the
    examples tells nothing about their labels, so all its values become NaN: it is not in use. A
    column whose deviation is below 1e-5 of its mean counts as constant.

    Args:
      xp: `numpy` or `jax.numpy`.
      x: `[..., rows, columns]`; NaN marks a missing value.
      context: bool `[..., rows]`, whether a row is an example.

    Returns:
      An array like x.
    """
    known = context[..., None] & ~xp.isnan(x)
    count = xp.maximum(known.sum(axis=-2, keepdims=True), 1).astype(x.dtype)
    mean = xp.where(known, x, 0).sum(axis=-2, keepdims=True) / count
    off = x - mean
    deviation = xp.sqrt(xp.where(known, off**2, 0).sum(axis=-2, keepdims=True) / count)
    varies = deviation > LEAST_DEVIATION * xp.maximum(abs(mean), LEAST_DEVIATION)
    z = off / xp.where(varies, deviation, 1)
    size = abs(z)
    far = xp.sign(z) * (TAIL + xp.log(xp.maximum(size, TAIL) / TAIL))
    return xp.where(varies, xp.where(size > TAIL, far, z), xp.nan).astype(x.dtype)


def deviations(xp: Any, values: Any) -> Any:
    """Standard deviations from the mean, of values as `standardised` returns them.

    Args:
      xp: `numpy` or `jax.numpy`.
      values: `[...]`.

    Returns:
      An array like values.
    """
    size = abs(values)
    far = xp.sign(values) * TAIL * xp.exp(xp.maximum(size - TAIL, 0))
    return xp.where(size > TAIL, far, values)
