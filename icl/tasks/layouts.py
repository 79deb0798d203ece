"""Layouts: how an episode becomes tokens, and at which positions predictions are read.

Layouts use the kind of labels, but no task family; families use no layout. `encode` and `scored`
take one prompt; `read` selects the output positions of predictions, one for each point.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from .base import Episode
from .labels import LabelKind, Scalar

SCALAR = Scalar()


class Layout(Protocol):
    @property
    def query_only(self) -> bool:
        """Whether only the last query of an episode is predicted."""
        ...

    @property
    def hides_labels(self) -> bool:
        """Whether no token shows the label of a query, so that a model need not be causal."""
        ...

    def tokens(self, points: Any) -> Any:
        """Number of tokens of a prompt of `points` points."""
        ...

    def width(self, features: int, labels: LabelKind) -> int:
        """Number of features of a token, for inputs with `features` features."""
        ...

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        """The prompt `[tokens, width]` of an episode with x `[points, features]`."""
        ...

    @property
    def read(self) -> slice:
        """The output positions that predict y_1, y_2, ..."""
        ...

    def scored(self, episode: Episode) -> jax.Array:
        """Bool `[points]`: queries that are predicted without sight of their label."""
        ...

    def examples(self, episode: Episode) -> jax.Array:
        """Number of examples that the prediction at each point can see, int `[points]`."""
        ...

    def length(self, episode: Episode) -> jax.Array:
        """Number of tokens in use, int `[]`; the tokens after them are padding."""
        ...

    def label_token(self, point: int) -> int | None:
        """The first token that shows the label of a point, both from 0; None if none does."""
        ...


class _Beside:
    """Tokens with room for an input and, beside it, a label."""

    def width(self, features: int, labels: LabelKind) -> int:
        return features + labels.token_width


class Interleaved:
    """x_1, y_1, x_2, y_2, ...: y_i is predicted at x_i (Garg et al. 2022, section 2).

    The token of a label is (y, 0, ..., 0), for a scalar or a vector y, unless the episode has
    `label_tokens`. With a causal model every prefix is a prompt.
    """

    query_only = False
    hides_labels = False
    read = slice(0, None, 2)

    def tokens(self, points: Any) -> Any:
        return 2 * points

    def width(self, features: int, labels: LabelKind) -> int:
        return max(features, labels.token_width)

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        label_tokens = _label_tokens(episode, labels)
        width = max(episode.x.shape[1], label_tokens.shape[1])
        padded = (jnp.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (episode.x, label_tokens))
        return jnp.stack(list(padded), axis=1).reshape(-1, width)

    def scored(self, episode: Episode) -> jax.Array:
        return episode.queries

    def examples(self, episode: Episode) -> jax.Array:
        return jnp.arange(len(episode.queries))

    def length(self, episode: Episode) -> jax.Array:
        return 2 * episode.length

    def label_token(self, point: int) -> int | None:
        return 2 * point + 1


class Concatenated(_Beside):
    """(x_1, y_1), ..., (x_q, 0): only the last query is predicted (von Oswald et al. 2023).

    Points before the query show their labels if the points are context. The label of the query and
    the labels of all later points are replaced by 0.
    """

    query_only = True
    hides_labels = True
    read = slice(0, None, 1)

    def tokens(self, points: Any) -> Any:
        return points

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        return jnp.concatenate([episode.x, self._shown(episode, labels)], axis=1)

    def scored(self, episode: Episode) -> jax.Array:
        return jnp.arange(episode.queries.shape[0]) == episode.last_query

    def examples(self, episode: Episode) -> jax.Array:
        return jnp.arange(len(episode.queries))

    def length(self, episode: Episode) -> jax.Array:
        return self.tokens(episode.last_query + 1)

    def label_token(self, point: int) -> int | None:
        return point

    def _shown(self, episode: Episode, labels: LabelKind) -> jax.Array:
        """Label tokens `[points, W]`: 0 except for context points before the query."""
        before = jnp.arange(episode.queries.shape[0]) < episode.last_query
        return jnp.where((before & episode.context)[:, None], _label_tokens(episode, labels), 0)


class Separate(Concatenated):
    """(x_1, 0), (0, y_1), ..., (x_q, 0): `Concatenated` with separate tokens for x and y.

    Only the last query is predicted. The tokens are those of von Oswald et al. 2023, section 5.
    """

    read = slice(0, None, 2)

    def tokens(self, points: Any) -> Any:
        return 2 * points - 1

    def label_token(self, point: int) -> int | None:
        return 2 * point + 1

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        label_tokens = self._shown(episode, labels)
        inputs = jnp.pad(episode.x, ((0, 0), (0, label_tokens.shape[1])))
        label_tokens = jnp.pad(label_tokens, ((0, 0), (episode.x.shape[1], 0)))
        pairs = jnp.stack([inputs, label_tokens], axis=1)
        return pairs.reshape(-1, inputs.shape[1])[:-1]


class Tagged(_Beside, Interleaved):
    """x_1, y_1, x_2, y_2, ... as tokens (0, x) and (y, 0, ..., 0), which tell x from y.

    The tokens are those of Raventós et al. 2023 (arXiv 2306.15063, section 2). The zeros before x
    are as many as the features of a label token. If the episode has `label_tokens`, they replace
    (y, 0, ..., 0).
    """

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        width = self.width(episode.x.shape[1], labels)
        label_tokens = _label_tokens(episode, labels)
        inputs = jnp.pad(episode.x, ((0, 0), (labels.token_width, 0)))
        label_tokens = jnp.pad(label_tokens, ((0, 0), (0, width - label_tokens.shape[1])))
        return jnp.stack([inputs, label_tokens], axis=1).reshape(-1, width)


class Paired(_Beside, Interleaved):
    """(x_1, 0), (x_1, y_1), (x_2, 0), (x_2, y_2), ...: y_i is predicted at the first of its pair.

    A later query finds an example and its label in one token, so that a single attention layer can
    compare inputs and copy labels. In `Shifted` a model must first learn to bring each input to the
    token after it, and until then learns nothing else: the plateau of Kirsch et al. 2022.
    """

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        shown = _label_tokens(episode, labels)
        both = jnp.stack([jnp.zeros_like(shown), shown], axis=1)
        x = jnp.repeat(episode.x[:, None], 2, axis=1)
        return jnp.concatenate([x, both], axis=2).reshape(-1, x.shape[2] + both.shape[2])


class Shifted(_Beside, Interleaved):
    """(x_1, 0), (x_2, y_1), (x_3, y_2), ...: y_i is predicted at x_i (Kirsch et al. 2022).

    Prompts have half as many tokens as in `Interleaved`. If a point in use comes later than a
    query, its token shows the query's label.
    """

    read = slice(0, None, 1)

    def tokens(self, points: Any) -> Any:
        return points

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        before = jnp.roll(_label_tokens(episode, labels), 1, axis=0).at[0].set(0)
        return jnp.concatenate([episode.x, before], axis=1)

    def length(self, episode: Episode) -> jax.Array:
        return episode.length

    def label_token(self, point: int) -> int | None:
        return point + 1


class Inputs(Shifted):
    """x_1, x_2, x_3, ...: y_i is predicted at x_i, and no token is made from a label.

    This is the layout of language: the label of a symbol is the next symbol, which is an input.
    """

    def width(self, features: int, labels: LabelKind) -> int:
        return features

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        return episode.x

    def label_token(self, point: int) -> int | None:
        return None


class Masked:
    """(x_1, y_1, 0), ..., (x_q, 0, 1), (x_r, 0, 1): all queries are predicted in one pass.

    The last feature marks queries, whose labels are hidden. Queries and examples are different
    points, in any order; a model that is not causal sees all examples from each query, as in the
    notebook "meta-functions" for Kirsch et al. 2022. A model that takes numbers of examples
    (`ModelConfig.takes_examples`) needs them before all other points.
    """

    query_only = False
    hides_labels = True
    read = slice(0, None, 1)

    def tokens(self, points: Any) -> Any:
        return points

    def width(self, features: int, labels: LabelKind) -> int:
        return features + labels.token_width + 1

    def encode(self, episode: Episode, labels: LabelKind = SCALAR) -> jax.Array:
        queries = episode.queries[:, None]
        shown = jnp.where(episode.context[:, None] & ~queries, _label_tokens(episode, labels), 0)
        return jnp.concatenate([episode.x, shown, queries.astype(shown.dtype)], axis=1)

    def scored(self, episode: Episode) -> jax.Array:
        return episode.queries

    def examples(self, episode: Episode) -> jax.Array:
        shown = episode.context & ~episode.queries
        return jnp.broadcast_to(shown.sum(), episode.queries.shape)

    def length(self, episode: Episode) -> jax.Array:
        return episode.length

    def label_token(self, point: int) -> int | None:
        return point


def _label_tokens(episode: Episode, labels: LabelKind) -> jax.Array:
    """The episode's `label_tokens`, else the tokens that the label kind makes: `[points, W]`."""
    own = episode.label_tokens
    return labels.tokens(episode.y) if own is None else own


LAYOUTS: dict[str, Layout] = {
    "interleaved": Interleaved(),
    "concatenated": Concatenated(),
    "tagged": Tagged(),
    "paired": Paired(),
    "shifted": Shifted(),
    "separate": Separate(),
    "masked": Masked(),
    "inputs": Inputs(),
}
