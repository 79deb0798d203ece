"""Muon for the matrices inside a model, and Adam for its ends.

Muon (Jordan et al. 2024) makes the momentum of each matrix nearly orthogonal before the matrix is
updated. As its authors advise, the read-in, the read-out, learned positions, biases and scales are
left to Adam, and a fused projection is treated as the separate matrices that it holds. The update
itself is optax's.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Kernels that hold several matrices side by side: their names, and the number of matrices.
FUSED = {"qkv": 3, "dense_i": 4, "dense_h": 4}


def muon_and_adam(
    learning_rate: optax.ScalarOrSchedule,
    adam_ratio: float = 0.3,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.95,
) -> optax.GradientTransformation:
    """Muon for the matrices of repeated layers, Adam with Nesterov momentum for other parameters.

    Args:
      learning_rate: the rate of Muon. An update of a matrix has singular values near the rate,
        times sqrt(outputs / inputs) if that is above 1.
      adam_ratio: learning rate of Adam, divided by that of Muon.
      beta: decay rate of Muon's momentum.
      weight_decay: each update also subtracts this and the rate of Muon times the matrix.
      b1, b2: Adam's decay rates.

    Raises:
      ValueError: from `init`, if there is no matrix in a list of layers.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def adam_rate(step: Any) -> Any:
        return adam_ratio * (learning_rate(step) if callable(learning_rate) else learning_rate)

    inner = muon(
        learning_rate,
        beta=beta,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=adam_rate,
        muon_weight_dimension_numbers=_matrices,
    )

    def init(params: optax.Params) -> optax.OptState:
        if not jax.tree.leaves(_matrices(_apart(params))):
            raise ValueError(
                "muon updates the matrices in a model's lists of layers (nnx.List), and this model "
                'has none: choose another optimiser, such as "adam"'
            )
        return inner.init(_apart(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        changes, state = inner.update(_apart(updates), state, params and _apart(params))
        joined = jax.tree.map(lambda change, leaf: change.reshape(leaf.shape), changes, updates)
        return joined, state

    return optax.GradientTransformation(init, update)


def _apart(tree: Any) -> Any:
    """The tree with each fused kernel `[I, n * O]` of a layer as `[I, n, O]`."""

    def split(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        count = next((FUSED[name] for name in path if name in FUSED), 1)
        if leaf.ndim != 2 or count == 1 or leaf.shape[1] % count:
            return leaf
        return leaf.reshape(leaf.shape[0], count, -1)

    return _with_paths(split, tree)


def _matrices(tree: Any) -> Any:
    """The axes of the matrices that Muon updates, in a tree from `_apart`; None for Adam."""

    def axes(path: tuple[str, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        if not any(name.isdecimal() for name in path):  # not in a list of layers
            return None
        if leaf.ndim == 3:  # matrices beside each other, or one for each head
            return MuonDimensionNumbers(0 if any(name in FUSED for name in path) else 1, 2)
        return MuonDimensionNumbers(0, 1) if leaf.ndim == 2 else None

    return _with_paths(axes, tree)


def _with_paths(function: Callable[[tuple[str, ...], Any], Any], tree: Any) -> Any:
    """`jax.tree.map` of a function that also takes the names on the way to the leaf."""
    named = lambda path, leaf: function(tuple(str(getattr(k, "key", k)) for k in path), leaf)
    return jax.tree_util.tree_map_with_path(named, tree)
