"""Mechanisms of synthetic tables: how the cells of a row, and the scores behind its label, arise.

The mechanisms follow priors of Müller et al. 2022 (arXiv 2112.10510) and Hollmann et al. 2023
(arXiv 2207.01848, section 4 and appendix C): structural causal models and random networks, beside
trees, linear functions and clusters. Each function takes the rows of one table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .draws import Draws

LAYERS = 3  # of a random network
TREES = 6
DEPTH = 4  # of a tree
CLUSTERS = 4  # of inputs
CENTRES = 2  # of a class
MIXTURE = 4  # kinds of marginal distributions of inputs


class Sources(NamedTuple):
    """The distribution of the H independent sources of a table."""

    kind: jax.Array  # int [H]: normal, uniform, in clusters, heavy-tailed
    centres: jax.Array  # [CLUSTERS, H]
    clusters: jax.Array  # int []: number of clusters in use
    mix: jax.Array  # [H, H]: makes sources correlated
    weight: jax.Array  # [H]: importance; 0 for sources that are not in use


class Layers(NamedTuple):
    """A random network, whose hidden units are also the nodes of a causal graph."""

    weights: jax.Array  # [LAYERS, H, H]
    biases: jax.Array  # [LAYERS, H]
    activation: jax.Array  # int [LAYERS, H]
    gain: jax.Array  # []
    noise: jax.Array  # []: standard deviation of a unit's own noise
    depth: jax.Array  # int []: number of layers in use


class Trees(NamedTuple):
    """A sum of oblivious trees (Kohavi 1994): all nodes of a level test one threshold."""

    feature: jax.Array  # int [TREES, DEPTH]
    threshold: jax.Array  # [TREES, DEPTH]
    leaves: jax.Array  # [TREES, 2 ** DEPTH, K]


class Clusters(NamedTuple):
    """Classes as causes: each has centres, spreads and a share, and its rows are near a centre."""

    share: jax.Array  # [K]
    second: jax.Array  # []: probability of the second centre
    centres: jax.Array  # [CENTRES * K, columns]
    spread: jax.Array  # [CENTRES * K, columns]
    mix: jax.Array  # [columns, columns]


def draw_sources(draws: Draws, size: int, used: jax.Array) -> Sources:
    """Draws the distribution of `size` sources, the first `used` in use."""
    kind = jnp.where(draws.chance(0.5), draws.integer(0, MIXTURE, size), 0)
    mix = draws.normal(size, size) * draws.uniform(0, 1) ** 2 + jnp.eye(size)
    weight = jnp.exp(draws.normal(size) * draws.uniform(0, 1.5))
    return Sources(
        kind,
        1.5 * draws.normal(CLUSTERS, size),
        draws.integer(2, CLUSTERS + 1),
        mix,
        jnp.where(jnp.arange(size) < used, weight, 0),
    )


def sources(draws: Draws, of: Sources, rows: int) -> jax.Array:
    """Draws standardised sources `[rows, H]`."""
    z = draws.normal(rows, len(of.kind))
    cluster = draws.integer(0, of.clusters, rows)
    uniformly = 1.7 * jax.lax.erf(0.7071 * z)
    near = 0.5 * z + of.centres[cluster]
    kind = jnp.broadcast_to(of.kind, z.shape)
    drawn = jax.lax.select_n(kind, z, uniformly, near, jnp.abs(z) * z)
    return standard(jnp.matmul(drawn, of.mix))


def draw_layers(draws: Draws, size: int) -> Layers:
    """Draws a random network with `size` units a layer."""
    linked = draws.chance(draws.uniform(0.3, 1.0), LAYERS, size, size)
    each = draws.integer(0, len(ACTIVATIONS), LAYERS, size)
    return Layers(
        jnp.where(linked, draws.normal(LAYERS, size, size), 0),
        0.5 * draws.normal(LAYERS, size),
        jnp.where(draws.chance(0.5), each, each[:, :1]),
        jnp.exp(draws.uniform(-0.5, 1.0)),
        jnp.exp(draws.uniform(-5.0, -1.0)),
        draws.integer(1, LAYERS + 1),
    )


def units(draws: Draws, of: Layers, inputs: jax.Array) -> jax.Array:
    """Units of all layers, standardised, `[LAYERS, rows, H]`, of inputs `[rows, H]`."""
    noise = of.noise * draws.normal(LAYERS, *inputs.shape)
    found = []
    for layer in range(LAYERS):
        before = standard(jnp.matmul(inputs, of.weights[layer])) * of.gain + of.biases[layer][None]
        kind = jnp.broadcast_to(of.activation[layer], before.shape)
        after = jax.lax.select_n(kind, *(function(before) for function in ACTIVATIONS))
        inputs = standard(after) + noise[layer]
        found.append(inputs)
    return jnp.stack(found)


def draw_trees(draws: Draws, columns: jax.Array, scores: int) -> Trees:
    """Draws trees over the first `columns` columns, for a number of scores."""
    # Later trees matter less, at a rate that differs between tables.
    size = draws.uniform(0.2, 1.0) ** jnp.arange(TREES, dtype=jnp.float32)
    return Trees(
        draws.integer(0, columns, TREES, DEPTH),
        0.8 * draws.normal(TREES, DEPTH),
        size[:, None, None] * draws.normal(TREES, 2**DEPTH, scores),
    )


def tree_scores(of: Trees, inputs: jax.Array) -> jax.Array:
    """Scores `[rows, K]` of inputs `[rows, columns]`."""
    above = inputs[:, of.feature] > of.threshold[None]  # [rows, TREES, DEPTH]
    leaf = jnp.where(above, 2 ** jnp.arange(DEPTH)[None, None], 0).sum(axis=2)
    at = jax.nn.one_hot(leaf, 2**DEPTH, dtype=of.leaves.dtype)  # [rows, TREES, 2 ** DEPTH]
    return jnp.einsum("rtl,tlk->rk", at, of.leaves)


def draw_clusters(draws: Draws, columns: int, classes: int) -> Clusters:
    """Draws centres of a number of classes."""
    far = jnp.exp(draws.uniform(-1.2, 0.9) + 0.7 * draws.normal(columns))
    strength = draws.uniform(0, 0.5)
    return Clusters(
        jnp.exp(0.4 * draws.normal(classes)),
        draws.uniform(0, 0.5),
        draws.normal(CENTRES * classes, columns) * far[None],
        jnp.exp(0.4 * draws.normal(CENTRES * classes, columns)),
        jnp.eye(columns) + strength * draws.normal(columns, columns),
    )


def clustered(
    draws: Draws, of: Clusters, rows: int, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rows `[rows, columns]` and their classes, int `[rows]` below `used`."""
    share = jnp.where(jnp.arange(len(of.share)) < used, of.share, 0)
    drawn = draws.choice(share, rows)
    at = CENTRES * drawn + draws.chance(of.second, rows).astype(jnp.int32)
    noise = jnp.matmul(draws.normal(rows, of.centres.shape[1]), of.mix)
    return of.centres[at] + noise * of.spread[at], drawn


def standard(values: jax.Array) -> jax.Array:
    """Values `[rows, ...]` with mean 0 and standard deviation 1 over the rows."""
    off = values - values.mean(axis=0, keepdims=True)
    return off * jax.lax.rsqrt((off**2).mean(axis=0, keepdims=True) + 1e-10)


ACTIVATIONS = (
    jnp.tanh,
    jax.nn.relu,
    lambda x: x,
    jnp.sin,
    lambda x: jnp.abs(x) - 0.8,
    lambda x: jnp.where(x > 0, 1.0, -1.0).astype(x.dtype),
    lambda x: x * x - 1,
    lambda x: jnp.exp(-x * x),
)
