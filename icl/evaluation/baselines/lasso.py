"""The lasso for every prefix and penalty, from one solution path for each prefix.

With k points and lambda = k * alpha the objective is |y - X w|^2 / 2 + lambda |w|_1. Its solution
is piecewise linear in lambda. As lambda falls from max |X^T y|, a variable becomes active when its
correlation with the residual reaches lambda, and inactive when its coefficient reaches 0 (Osborne,
Presnell and Turlach 2000; Efron et al. 2004). All prompts step from breakpoint to breakpoint
together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # the penalties of Garg et al.
SWEEPS = 100  # limit of coordinate descent sweeps that correct the rounding of a path


def lasso(x: jax.Array, y: jax.Array, alpha: float | jax.Array = 0.01) -> jax.Array:
    """The lasso with one penalty, `[B, P]`; see `lasso_path`."""
    return lasso_path(x, y, jnp.asarray([alpha]))[0]


@jax.jit
def lasso_path(
    x: jax.Array, y: jax.Array, alphas: Sequence[float] | jax.Array = PENALTIES
) -> jax.Array:
    """Predictions with the w that minimises |y - X w|^2 / (2 k) + alpha |w|_1 over each prefix.

    k is the number of points of the prefix; there is no intercept. Scikit-learn and Garg et al.
    2022 (appendix A.3) minimise this objective. If columns of X repeat, the minimiser is not
    unique, and one of the minimisers is used. Time is O(D^2) for each breakpoint, and a path has
    about min(k, D) breakpoints. Memory is O(B D^2).

    Args:
      x: points `[B, P, D]`. Penalties below 0.01 need float64.
      y: labels `[B, P]`.
      alphas: penalties `[A]`, each above 0, in any order.

    Returns:
      `[A, B, P]`: entry i predicts y_i at x_i from the i points before it; 0 if i is 0.
    """
    alphas = jnp.asarray(alphas, x.dtype)
    prompts, _, dim = x.shape

    # Prompts are the last axis throughout, which vectorises best.
    def step(carry, point):
        gram, moment, count = carry
        query, label = point
        weights = _solve(gram, moment, count * alphas)
        prediction = (weights * query[None]).sum(axis=1)
        gram = gram + query[:, None] * query[None]
        return (gram, moment + query * label[None], count + 1), prediction

    start = jnp.zeros((dim, dim, prompts), x.dtype), jnp.zeros((dim, prompts), x.dtype)
    points = jnp.moveaxis(x, 0, -1), jnp.moveaxis(y, 0, -1)
    _, predictions = jax.lax.scan(step, (*start, jnp.zeros((), x.dtype)), points)
    return jnp.transpose(predictions, (1, 2, 0))


class _Path(NamedTuple):
    """State of the solution paths of N prompts, each at its own lambda.

    `fixed + lambda * slope` is the coefficient of an active variable, or the correlation of an
    inactive variable with the residual.
    """

    table: jax.Array  # [D, D, N]: Gram matrix after the sweep operator on the active variables
    fixed: jax.Array  # [D, N]
    slope: jax.Array  # [D, N]
    signs: jax.Array  # [D, N]: signs of active coefficients; 0 for inactive variables
    level: jax.Array  # [N]: current lambda
    weights: jax.Array  # [A, D, N]: solutions at penalties already passed
    running: jax.Array  # bool [N]: penalties remain
    steps: jax.Array


def _solve(gram: jax.Array, moment: jax.Array, penalties: jax.Array) -> jax.Array:
    """Weights `[A, D, N]` at each lambda, from X^T X `[D, D, N]` and X^T y `[D, N]`."""
    dim, prompts = moment.shape
    empty = jnp.zeros_like(moment)
    start = _Path(
        table=gram,
        fixed=moment,
        slope=empty,
        signs=empty,
        level=jnp.full(prompts, jnp.inf, moment.dtype),
        weights=jnp.zeros((len(penalties), dim, prompts), moment.dtype),
        running=jnp.ones(prompts, bool),
        steps=jnp.zeros((), jnp.int32),
    )
    diagonal = jnp.einsum("iin->in", gram)
    smallest = 8 * dim * jnp.finfo(gram.dtype).eps * diagonal
    limit = 10 * dim + 10
    path = jax.lax.while_loop(
        lambda path: path.running.any() & (path.steps < limit),
        lambda path: _to_next_breakpoint(path, penalties, smallest),
        start,
    )
    return _polish(path.weights, gram, moment, penalties)


def _to_next_breakpoint(path: _Path, penalties: jax.Array, smallest: jax.Array) -> _Path:
    """Stores solutions at penalties before the next breakpoint, then steps across it."""
    table, fixed, slope, signs = path.table, path.fixed, path.slope, path.signs
    active = signs != 0

    # Lambda at which a correlation reaches +lambda or -lambda, or a coefficient reaches 0.
    meets = lambda gap, at: jnp.where(gap > 0, at / jnp.where(gap > 0, gap, 1), 0)
    independent = jnp.einsum("iin->in", table) > smallest
    upper = jnp.where(independent, meets(1 - slope, fixed), 0)
    lower = jnp.where(independent, meets(1 + slope, -fixed), 0)
    leaves = meets(signs * slope, -signs * fixed)
    breakpoints = jnp.where(active, leaves, jnp.maximum(upper, lower))
    chosen = jnp.argmax(breakpoints, axis=0)
    level = jnp.clip(jnp.max(breakpoints, axis=0), 0, path.level)

    passed = path.running[None] & (penalties[:, None] <= path.level[None])
    solutions = jnp.where(active, fixed[None] + penalties[:, None, None] * slope[None], 0)
    weights = jnp.where(passed[:, None], solutions, path.weights)
    running = path.running & (level > penalties.min())

    # A principal pivot on the chosen variable, which becomes active or inactive.
    one = (jnp.arange(len(signs))[:, None] == chosen[None]) & running[None]
    at = lambda array: jnp.where(one, array, 0).sum(axis=0, keepdims=True)
    column = jnp.where(one[:, None], table, 0).sum(axis=0)
    side = jnp.where((one & active).any(axis=0, keepdims=True), -1, 1).astype(table.dtype)
    joined = jnp.where(upper >= lower, 1, -1).astype(table.dtype)
    new_signs = jnp.where(one, jnp.where(active, 0, joined), signs)
    pivot = jnp.where(running, at(column), 1)
    row = jnp.where(one, -side / pivot, column / pivot)
    updated = jnp.where(one, side[None] * row[:, None], table - column[:, None] * row[None])
    table = jnp.where(one[:, None], side * row, updated)

    def cross(column_at, array):
        value = at(array)
        return jnp.where(one, side * value / pivot, array - column_at * value / pivot)

    fixed = cross(column, fixed)
    slope = cross(column, slope - jnp.where(one, new_signs, 0)) + jnp.where(one, signs, 0)
    return _Path(table, fixed, slope, new_signs, level, weights, running, path.steps + 1)


def _polish(
    weights: jax.Array, gram: jax.Array, moment: jax.Array, penalties: jax.Array
) -> jax.Array:
    """Coordinate descent until weights meet the optimality conditions; few need it."""
    penalties = penalties[:, None, None]
    diagonal = jnp.einsum("iin->in", gram)[None]
    curvature = jnp.where(diagonal > 0, diagonal, 1)
    tolerance = jnp.finfo(gram.dtype).eps ** (2 / 3) * jnp.abs(moment).max(axis=0)

    def residual(weights):
        # Loops over variables, since batches of small products are slow on a CPU.
        return jax.lax.fori_loop(
            0,
            len(moment),
            lambda j, r: r - gram[j][None] * weights[:, j, None],
            moment[None] + 0 * weights,
        )

    def missed(state):
        weights, residual, _ = state
        inside = jnp.maximum(jnp.abs(residual) - penalties, 0)
        gap = jnp.where(weights == 0, inside, jnp.abs(residual - penalties * jnp.sign(weights)))
        return (gap > tolerance[None, None]).any()

    def descend(j, state):
        weights, residual = state
        old = weights[:, j]
        target = residual[:, j] + diagonal[:, j] * old
        shrunk = jnp.maximum(jnp.abs(target) - penalties[:, 0], 0)
        new = jnp.sign(target) * shrunk / curvature[:, j]
        return weights.at[:, j].set(new), residual - gram[j][None] * (new - old)[:, None]

    def sweep(state):
        weights, _, sweeps = state
        weights, _ = jax.lax.fori_loop(0, len(moment), descend, (weights, residual(weights)))
        return weights, residual(weights), sweeps + 1

    start = weights, residual(weights), jnp.zeros((), jnp.int32)
    keep_on = lambda state: missed(state) & (state[2] < SWEEPS)
    return jax.lax.while_loop(keep_on, sweep, start)[0]
