"""A small network fitted to every prefix; all fits take their steps together."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax


def two_layer_network(
    x: jax.Array,
    y: jax.Array,
    *,
    width: int = 100,
    steps: int = 5000,
    batch: int = 10,
    learning_rate: float = 5e-3,
    seed: int = 0,
    positions: Sequence[int] | None = None,
) -> jax.Array:
    """Predictions of a two-layer ReLU network with biases, fitted to each prefix by Adam.

    The loss is the mean squared error of `batch` points a step, drawn with replacement. Weights
    and biases start uniform within 1 / sqrt(inputs of the layer), as PyTorch's do. The defaults
    are those of Garg et al. 2022 (appendix A.3), who take a learning rate of 5e-2 on linear
    functions; their public code takes 100 steps of 100 points.

    A fit takes about 6 * steps * batch * width * (D + 1) FLOPs, 0.6 GFLOP with the defaults and
    D = 20; there are B * len(positions) of them. Memory is about 4 copies of all networks.

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      width: hidden units.
      steps: steps of Adam.
      batch: points a step, drawn anew from the prefix.
      learning_rate: of Adam, constant.
      seed: of weights and batches, which also depend on the prompt's index and the position.
      positions: the prefixes to fit, by their number of points; None for all.

    Returns:
      `[B, P]`: the prediction of y_i at x_i from the i points before it, 0 from none; NaN where
      i is not among `positions`.

    Raises:
      ValueError: a position that the prompts do not have.
    """
    prompts, points, _ = x.shape
    chosen = range(points) if positions is None else sorted(set(positions))
    if any(not 0 <= k < points for k in chosen):
        raise ValueError(f"positions {list(chosen)} must be within 0 to {points - 1}")
    predictions = jnp.full(y.shape, jnp.nan, y.dtype)
    if 0 in chosen:
        predictions = predictions.at[:, 0].set(0)
    fitted = [k for k in chosen if k > 0]
    if not fitted or not prompts:
        return predictions
    found = _fit(
        x, y, jnp.asarray(fitted), jax.random.key(seed), learning_rate, width, steps, batch
    )
    return predictions.at[:, jnp.asarray(fitted)].set(found)


@partial(jax.jit, static_argnames=("width", "steps", "batch"))
def _fit(x, y, positions, key, learning_rate, width, steps, batch):
    """Predictions `[B, len(positions)]`; a network a prompt and position, N in all."""
    prompts, points, dim = x.shape
    shape = prompts, len(positions)
    prompt = jnp.repeat(jnp.arange(prompts), len(positions))
    count = jnp.tile(positions, prompts)

    def start(prompt, count):
        start, draw = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, prompt), count))
        return _start(start, dim, width, x.dtype), draw

    params, draws = jax.vmap(start)(prompt, count)
    optimizer = optax.adam(learning_rate)

    def loss(params, inputs, labels):
        return ((_outputs(params, inputs) - labels) ** 2).mean(axis=1).sum()

    def step(state, i):
        params, moments = state
        draw = lambda key, k: jax.random.randint(jax.random.fold_in(key, i), (batch,), 0, k)
        points = jax.vmap(draw)(draws, count)
        inputs, labels = x[prompt[:, None], points], y[prompt[:, None], points]
        gradients = jax.grad(loss)(params, inputs, labels)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(params, updates), moments), None

    with jax.default_matmul_precision("highest"):
        state = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, state, jnp.arange(steps))
        return _outputs(params, x[prompt, count][:, None]).reshape(shape)


def _start(key: jax.Array, dim: int, width: int, dtype) -> dict[str, jax.Array]:
    shapes = {
        "in": ((dim, width), dim),
        "in bias": ((width,), dim),
        "out": ((width,), width),
        "out bias": ((), width),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(k, shape, dtype, -1, 1) / math.sqrt(inputs)
        for k, (name, (shape, inputs)) in zip(keys, shapes.items())
    }


def _outputs(params, x: jax.Array) -> jax.Array:
    """`[N, K]` of N networks at K points of each, `[N, K, D]`."""
    hidden = jnp.einsum("nkd,ndh->nkh", x, params["in"]) + params["in bias"][:, None]
    return (
        jnp.einsum("nkh,nh->nk", jax.nn.relu(hidden), params["out"]) + params["out bias"][:, None]
    )
