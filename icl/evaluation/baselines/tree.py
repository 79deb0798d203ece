"""A regression tree for every prefix; only the branch that the query takes is grown."""

from functools import partial

import jax
import jax.numpy as jnp

CHUNK = 16  # number of prompts computed at once


@partial(jax.jit, static_argnames="depth")
def greedy_tree(x: jax.Array, y: jax.Array, depth: int = 4) -> jax.Array:
    """Predictions of a regression tree (CART) grown greedily on each prefix.

    Each node is split at the midpoint of two neighbouring values of a coordinate, so that the
    squared error falls most. Growth stops at `depth` splits and at single points. If several splits
    are equally good up to rounding, the one with the lowest coordinate index is used, then the one
    with the lowest threshold. Scikit-learn breaks such ties at random and otherwise grows an equal
    tree. Ties are common in nodes of few points, which several coordinates often split in one way.

    Garg et al. 2022 (appendix A.3) compare with this tree on x and on the signs of x:
    `greedy_tree(jnp.sign(x), y)`. Time is O(B P^2 D depth); memory is O(B P D + P^2).

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      depth: largest number of splits from the root to a leaf.

    Returns:
      `[B, P]`: entry i predicts y_i at x_i from the i points before it; 0 if i is 0.
    """
    one = lambda prompt: _one_prompt(prompt[0], prompt[1], depth)
    return jax.lax.map(one, (x, y), batch_size=min(CHUNK, max(len(x), 1)))


def _one_prompt(x: jax.Array, y: jax.Array, depth: int) -> jax.Array:
    """Predictions `[P]`; the last axis of the arrays `[..., P]` inside indexes prefixes."""
    points = len(y)
    order = jnp.argsort(x, axis=0)
    ascending = jnp.take_along_axis(x, order, axis=0)
    members = jnp.arange(points)[:, None] < jnp.arange(points)[None]

    def mean(members):
        count = jnp.maximum(members.sum(axis=0, dtype=y.dtype), 1)
        return jnp.where(members, y[:, None], 0).sum(axis=0) / count

    def descend(_, members):
        centre = mean(members)
        centred = jnp.where(members, y[:, None] - centre[None], 0)
        tie = _tie(centred, centre)
        gains, thresholds = _best_by_coordinate(order, ascending, members, centred, tie)
        chosen = jnp.argmax(gains >= (gains.max(axis=0) - tie)[None], axis=0)
        threshold = jnp.take_along_axis(thresholds, chosen[None], axis=0)[0]
        left = x[:, chosen] <= threshold[None]
        splits = jnp.isfinite(gains.max(axis=0))
        return members & ((left == jnp.diagonal(left)[None]) | ~splits[None])

    return mean(jax.lax.fori_loop(0, depth, descend, members))


def _tie(centred: jax.Array, centre: jax.Array) -> jax.Array:
    """Largest difference of gains that rounding can cause, `[P]`.

    A mean label that is large beside the labels' differences leaves them less exact.
    """
    size = jnp.abs(centred) * (jnp.abs(centred) + jnp.abs(centre)[None])
    return 4 * len(centred) * jnp.finfo(centred.dtype).eps * size.sum(axis=0)


def _best_by_coordinate(
    order: jax.Array,
    ascending: jax.Array,
    members: jax.Array,
    centred: jax.Array,
    tie: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Best split of each node by each coordinate.

    Args:
      order: indices `[P, D]` that sort the points by each coordinate.
      ascending: sorted values `[P, D]` of each coordinate.
      members: bool `[P, nodes]`, whether a point is in a node.
      centred: `[P, nodes]`, labels of members minus the node's mean label; 0 for other points.
      tie: largest difference of equally good splits, `[nodes]`.

    Returns:
      The fall of squared error and the threshold, each `[D, nodes]`. The fall is -inf if no split
      is possible.
    """
    total = members.sum(axis=0, dtype=centred.dtype)[None]

    def visit(carry, rank):
        count, label_sum, last, best, threshold = carry
        index, value = rank
        member, value = members[index], value[:, None]
        middle = last / 2 + value / 2
        rest = total - count
        gain = label_sum**2 * total / jnp.where(count * rest > 0, count * rest, 1)
        possible = member & (count > 0) & (value > last)
        better = possible & (gain > best + tie[None])
        return (
            count + member.astype(count.dtype),
            label_sum + centred[index],
            jnp.where(member, value, last),
            jnp.where(better, gain, best),
            # The midpoint of adjacent floats may round up to the larger one.
            jnp.where(better, jnp.where(middle < value, middle, last), threshold),
        ), None

    none = jnp.zeros((order.shape[1], members.shape[1]), centred.dtype)
    start = none, none, none, none - jnp.inf, none
    (_, _, _, best, threshold), _ = jax.lax.scan(visit, start, (order, ascending))
    return best, threshold
