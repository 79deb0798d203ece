"""A small network fitted to every prefix, with all fits trained together."""

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

    The loss of a step is the mean squared error of `batch` points, drawn with replacement. Initial
    weights and biases are uniform within 1 / sqrt(number of inputs of the layer), as in PyTorch.
    The defaults are those of Garg et al. 2022 (appendix A.3), who use a learning rate of 5e-2 for
    linear functions. Their public code makes 100 steps of 100 points.

    A fit takes about 6 * steps * batch * width * (D + 1) FLOPs, which is 0.6 GFLOP with the
    defaults and D = 20. There are B * len(positions) fits. Memory is about 4 copies of all
    networks.

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      width: number of hidden units.
      steps: number of steps of Adam.
      batch: number of points in a step, drawn anew from the prefix.
      learning_rate: constant learning rate of Adam.
      seed: seed of weights and batches, which also depend on the prompt's index and the position.
      positions: numbers of points of the prefixes to fit; None for all.

    Returns:
      `[B, P]`: entry i predicts y_i at x_i from the i points before it; 0 if i is 0, NaN if i is
      not in `positions`.

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
    """Predictions `[B, len(positions)]` of N networks, one for each prompt and position."""
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
    """Outputs `[N, K]` of N networks, each at its own K points; x is `[N, K, D]`."""
    hidden = jnp.einsum("nkd,ndh->nkh", x, params["in"]) + params["in bias"][:, None]
    return (
        jnp.einsum("nkh,nh->nk", jax.nn.relu(hidden), params["out"]) + params["out bias"][:, None]
    )
