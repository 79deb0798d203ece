"""Layouts: how an episode becomes tokens, and where its predictions are read.

A layout knows nothing of families, and a family nothing of layouts. `encode` and `scored`
are for one prompt; `read` says which output positions hold predictions, one a point.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from .base import Episode, TaskFamily


class Layout(Protocol):
    @property
    def query_only(self) -> bool:
        """Whether the last point that counts is the only one predicted: the query."""
        ...

    def tokens(self, points: int) -> int:
        """Tokens of a prompt of so many points."""
        ...

    def width(self, family: TaskFamily) -> int:
        """Features of a token; ValueError for a family whose labels the layout cannot show."""
        ...

    def encode(self, episode: Episode) -> jax.Array:
        """The prompt, `[tokens, width]`."""
        ...

    @property
    def read(self) -> slice:
        """The output positions that predict y_1, y_2, ..."""
        ...

    def scored(self, episode: Episode) -> jax.Array:
        """Bool `[points]`: the predictions that the layout makes without seeing their label."""
        ...


class Interleaved:
    """x_1, y_1, x_2, y_2, ...: y_i is predicted at x_i (Garg et al. 2022, section 2).

    A label becomes the token (y, 0, ..., 0), a vector y likewise, unless the episode brings
    tokens of its own. Under a causal model every prefix is a prompt.
    """

    query_only = False
    read = slice(0, None, 2)

    def tokens(self, points: int) -> int:
        return 2 * points

    def width(self, family: TaskFamily) -> int:
        return max(family.dim, family.outputs or 1)

    def encode(self, episode: Episode) -> jax.Array:
        points, dim = episode.x.shape
        labels = episode.label_tokens
        if labels is None:
            labels = episode.y.reshape(points, -1)
        width = max(dim, labels.shape[1])
        padded = (jnp.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (episode.x, labels))
        return jnp.stack(list(padded), axis=1).reshape(-1, width)

    def scored(self, episode: Episode) -> jax.Array:
        return episode.counts


class Concatenated:
    """(x_1, y_1), ..., (x_q, 0): only the last point is predicted (von Oswald et al. 2023).

    The query is the last point that counts; its label and those after it are replaced by 0.
    """

    query_only = True
    read = slice(0, None, 1)

    def tokens(self, points: int) -> int:
        return points

    def width(self, family: TaskFamily) -> int:
        if family.outputs is not None:
            raise ValueError("a vector label has no place beside x in a token; use interleaved")
        return family.dim + 1

    def encode(self, episode: Episode) -> jax.Array:
        return jnp.concatenate([episode.x, self._shown(episode)[:, None]], axis=1)

    def scored(self, episode: Episode) -> jax.Array:
        return jnp.arange(episode.y.shape[0]) == self._query(episode)

    def _query(self, episode: Episode) -> jax.Array:
        last = episode.counts.shape[0] - 1
        return last - jnp.argmax(episode.counts[::-1])

    def _shown(self, episode: Episode) -> jax.Array:
        """The labels before the query, `[points]`, and 0 from there on."""
        return jnp.where(jnp.arange(episode.y.shape[0]) < self._query(episode), episode.y, 0)


class Separate(Concatenated):
    """(x_1, 0), (0, y_1), ..., (x_q, 0): the query alone is predicted, from tokens apart.

    The tokens of von Oswald et al. 2023, section 5.
    """

    read = slice(0, None, 2)

    def tokens(self, points: int) -> int:
        return 2 * points - 1

    def encode(self, episode: Episode) -> jax.Array:
        inputs = jnp.pad(episode.x, ((0, 0), (0, 1)))
        labels = jnp.pad(self._shown(episode)[:, None], ((0, 0), (episode.x.shape[1], 0)))
        pairs = jnp.stack([inputs, labels], axis=1)
        return pairs.reshape(-1, inputs.shape[1])[:-1]


class Tagged(Interleaved):
    """x_1, y_1, x_2, y_2, ... as (0, x) and (y, 0, ..., 0): a token tells which of both it is.

    The tokens of Raventós et al. 2023 (arXiv 2306.15063, section 2). A vector label takes as many
    features before x as it has numbers; tokens of an episode's own stand where (y, 0, ..., 0) does.
    """

    def width(self, family: TaskFamily) -> int:
        return family.dim + (family.outputs or 1)

    def encode(self, episode: Episode) -> jax.Array:
        points, dim = episode.x.shape
        labels = episode.y.reshape(points, -1)
        tag = labels.shape[1]
        if episode.label_tokens is not None:
            labels = episode.label_tokens
        inputs = jnp.pad(episode.x, ((0, 0), (tag, 0)))
        labels = jnp.pad(labels, ((0, 0), (0, dim + tag - labels.shape[1])))
        return jnp.stack([inputs, labels], axis=1).reshape(-1, dim + tag)


LAYOUTS: dict[str, Layout] = {
    "interleaved": Interleaved(),
    "concatenated": Concatenated(),
    "tagged": Tagged(),
    "separate": Separate(),
}
