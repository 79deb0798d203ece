"""What can be predicted with the labels of all classes under all tasks known: plateaus' levels.

A learner of `RelabelledClasses` that knows these labels needs the context only to find out the
task. The accuracies that the parts of the context allow are those of the phases of Minegishi et
al. 2025 (arXiv 2505.16694, section 4).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from ...tasks import Episode, RelabelledClasses

Seen = Literal["the query alone", "the labels", "the context"]
SEEN: tuple[Seen, ...] = ("the query alone", "the labels", "the context")


def predict_from(seen: Seen, family: RelabelledClasses, episodes: Episode) -> jax.Array:
    """Probabilities of the labels of the query, from the query's class and a part of the context.

    The class of an item is that of the nearest mean. Labels of the context count as independent,
    as if its classes were drawn with replacement. A context that no task explains is left out.

    Args:
      seen: the part: nothing, the labels without their items, or all of it.
      family: the distribution of the prompts.
      episodes: a batch of prompts.

    Returns:
      `[B, 1, labels]`.
    """
    table = family.table()
    x, shown = episodes.x, episodes.y[:, :-1]
    means = family.means().astype(x.dtype)
    score = jnp.einsum("bpd,cd->bpc", x, means, precision="highest")
    classes = (score - (means**2).sum(axis=-1)[None, None] / 2).argmax(axis=-1)
    if seen == "the query alone":
        likelihood = jnp.ones((len(x), family.tasks), x.dtype)
    elif seen == "the labels":
        chosen = family.class_probabilities().astype(x.dtype)
        share = jnp.einsum("tcl,c->tl", jax.nn.one_hot(table, family.labels, dtype=x.dtype), chosen)
        likelihood = share[:, shown].prod(axis=-1).T
    else:
        right = table[:, classes[:, :-1]] == shown[None]
        likelihood = right.all(axis=-1).T.astype(x.dtype)
    prior = family.task_probabilities().astype(x.dtype)[None]
    posterior = likelihood * prior
    total = posterior.sum(axis=1, keepdims=True)
    posterior = jnp.where(total > 0, posterior / jnp.where(total > 0, total, 1), prior)
    labels = jax.nn.one_hot(table[:, classes[:, -1]].T, family.labels, dtype=x.dtype)
    return jnp.einsum("bt,btl->bl", posterior, labels)[:, None]
