"""Predictors of the next symbol from the symbols so far: counts, periods and recall.

All take symbols x, int `[B, T]`, and the number V of different symbols, and return probabilities
float32 `[B, T, V]`: entry t predicts the symbol after x_t from x_1, ..., x_t.
"""

import jax
import jax.numpy as jnp


def unigrams(x: jax.Array, number: int, *, concentration: float) -> jax.Array:
    """Counts of symbols so far, each with `concentration` added.

    The posterior mean of independent draws under a symmetric Dirichlet prior (Edelman et al. 2024,
    arXiv 2402.11004, section 2).
    """
    counts = concentration + jnp.cumsum(jax.nn.one_hot(x, number), axis=1)
    return counts / counts.sum(axis=-1, keepdims=True)


def bigrams(x: jax.Array, number: int, *, concentration: float) -> jax.Array:
    """Counts of the symbols that came after x_t earlier, each with `concentration` added.

    The posterior mean, hence the Bayes-optimal prediction, for Markov chains whose rows have a
    symmetric Dirichlet prior (Edelman et al. 2024, section 2), but for what the stationary
    distribution of the first symbol tells of the rows.
    """
    shown = jax.nn.one_hot(x, number)
    # From symbol s to the next: [t, s] is 1 if s came at t - 1.
    same = jnp.einsum("btv,bsv->bts", shown, shown)[:, :, :-1]
    earlier = jnp.tri(x.shape[1], x.shape[1] - 1, -1, dtype=same.dtype)
    after = jnp.einsum("bts,bsv->btv", same * earlier[None], shown[:, 1:])
    counts = concentration + after
    return counts / counts.sum(axis=-1, keepdims=True)


def periods(shortest: int, longest: int, x: jax.Array, number: int) -> jax.Array:
    """The Bayes mixture over the periods of a repeated random sequence, uniform a priori.

    A period L that x_1, ..., x_t do not contradict has the likelihood V^-min(t, L), and predicts
    the symbol that came L - 1 symbols before x_t, or all equally before the end of its first
    period.
    """
    _, length = x.shape
    place = jnp.arange(length)

    def of(period: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-likelihoods `[B, T]` and predictions `[B, T, V]` under a period."""
        before = x[:, jnp.maximum(place - period, 0)]
        broken = ((x != before) & (place >= period)[None]).astype(jnp.int32)
        fits = jnp.cumsum(broken, axis=1) == 0
        seen = jnp.minimum(place + 1, period).astype(jnp.float32)
        likelihood = jnp.where(fits, -seen[None] * jnp.log(jnp.float32(number)), -jnp.inf)
        copied = jax.nn.one_hot(x[:, jnp.maximum(place + 1 - period, 0)], number)
        known = (place + 1 >= period)[None, :, None]
        return likelihood, jnp.where(known, copied, 1 / number)

    likelihoods, predictions = jax.lax.map(of, jnp.arange(shortest, longest + 1))
    weights = jax.nn.softmax(likelihoods, axis=0)
    return jnp.einsum("pbt,pbtv->btv", weights, predictions)


def recall(pairs: int, x: jax.Array, number: int) -> jax.Array:
    """The symbol after x_t among the pairs at the start of a prompt, with probability 1."""
    keys, values = x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2]
    at = jnp.argmax(x[:, :, None] == keys[:, None], axis=-1)
    return jax.nn.one_hot(jnp.take_along_axis(values, at, axis=1), number)
