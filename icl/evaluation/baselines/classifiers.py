"""Classifiers that learn from every prefix of a prompt.

Each takes x `[B, P, D]` and classes y, int `[B, P]` below `classes`, and returns scores
`[B, P, classes]`, of which the largest is the predicted class: entry i is the prediction for x_i
from the i points before it. If there is no such point, all scores are 0.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp


def nearest_class(x: jax.Array, y: jax.Array, classes: int) -> jax.Array:
    """Class of the nearest earlier point, one-hot (1-nearest neighbour, Cover and Hart 1967)."""
    gram = _gram(x)
    norms = jnp.diagonal(gram, axis1=1, axis2=2)
    distance = jnp.where(_earlier(x), norms[:, None] - 2 * gram, jnp.inf)
    nearest = jnp.take_along_axis(y, distance.argmin(axis=-1), axis=1)
    known = jnp.isfinite(distance).any(axis=-1, keepdims=True)
    return jnp.where(known, jax.nn.one_hot(nearest, classes, dtype=x.dtype), 0)


def ridge_class(x: jax.Array, y: jax.Array, classes: int, penalty: float) -> jax.Array:
    """Ridge regression from x to one-hot labels minus 1 / classes, in its dual form."""
    gram = _gram(x)
    target = jax.nn.one_hot(y, classes, dtype=x.dtype) - 1 / classes
    identity = jnp.eye(x.shape[1], dtype=x.dtype)

    def at(point: jax.Array) -> jax.Array:
        before = jnp.arange(x.shape[1]) < point
        inside = before[:, None] & before[None]
        # Points outside the prefix are unit vectors without a label.
        system = jnp.where(inside[None], gram + penalty * identity[None], identity[None])
        factor = jax.scipy.linalg.cho_factor(system, lower=True)
        weights = jax.scipy.linalg.cho_solve(factor, jnp.where(before[None, :, None], target, 0))
        to_query = jnp.where(before[None], gram[:, point], 0)
        return jnp.einsum("bp,bpc->bc", to_query, weights, precision="highest")

    return jnp.moveaxis(jax.lax.map(at, jnp.arange(x.shape[1])), 0, 1)


def sgd_class(
    x: jax.Array,
    y: jax.Array,
    classes: int,
    positions: Sequence[int],
    *,
    width: int = 64,
    epochs: int = 20,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> jax.Array:
    """A two-layer ReLU network fitted to each prefix by SGD on the cross-entropy, point by point.

    Args:
      positions: numbers of points of the prefixes to fit; scores at other points are NaN.
      width: number of hidden units.
      epochs: number of passes over the prefix, each in the order of the prompt.
      learning_rate: constant learning rate, divided by the mean square of the features of
        the prefix.
      seed: seed of the initial weights, which all fits share.
    """
    first, second = jax.random.split(jax.random.key(seed))
    start = _layer(first, x.shape[-1], width, x.dtype), _layer(second, width, classes, x.dtype)

    def loss(weights, x, label):
        return -jax.nn.log_softmax(_scores(weights, x))[label]

    def fitted(x, y, count):
        shown = jnp.arange(len(x)) < count
        number = (jnp.maximum(count, 1) * x.shape[1]).astype(x.dtype)
        square = jnp.where(shown[:, None], x**2, 0).sum() / number
        rate = learning_rate / jnp.maximum(square, 1e-6)

        def step(weights, point):
            slopes = jax.grad(loss)(weights, x[point], y[point])
            used = jnp.where(point < count, rate, 0)
            return jax.tree.map(lambda leaf, slope: leaf - used * slope, weights, slopes), None

        order = jnp.tile(jnp.arange(x.shape[0]), epochs)
        weights = jax.lax.scan(step, start, order)[0]
        return jnp.where(count > 0, _scores(weights, x[count]), 0)

    chosen = jnp.asarray(sorted(set(positions)))
    with jax.default_matmul_precision("highest"):
        of_prompt = lambda x, y: jax.vmap(partial(fitted, x, y))(chosen)
        found = jax.vmap(of_prompt)(x, y)
    return jnp.full((*y.shape, classes), jnp.nan, x.dtype).at[:, chosen].set(found)


def _layer(key: jax.Array, inputs: int, outputs: int, dtype) -> tuple[jax.Array, jax.Array]:
    """Weights of variance 2 / inputs (He et al. 2015) and biases of 0."""
    weights = jax.random.normal(key, (inputs, outputs), dtype) * (2 / inputs) ** 0.5
    return weights, jnp.zeros(outputs, dtype)


def _scores(weights, x: jax.Array) -> jax.Array:
    """Scores `[classes]` of a network for an input `[D]`."""
    (into, into_bias), (out, out_bias) = weights
    return jax.nn.relu(x @ into + into_bias) @ out + out_bias


def _gram(x: jax.Array) -> jax.Array:
    """Inner products of all points, `[B, P, P]`."""
    return jnp.einsum("bid,bjd->bij", x, x, precision="highest")


def _earlier(x: jax.Array) -> jax.Array:
    """Whether a point (column) is before another (row), bool `[1, P, P]`."""
    return jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool), -1)[None]
