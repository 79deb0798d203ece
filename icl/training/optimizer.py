"""The optimiser of a run, built from optax."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .config import CUSTOM, OptimizerConfig


def learning_rate_schedule(
    config: OptimizerConfig, steps: int, peak: jax.Array | None = None
) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, halving, or decay to 0.

    A traced `peak` replaces `config.learning_rate`.
    """
    highest: Any = config.learning_rate if peak is None else peak
    falling = max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(highest, falling)
    elif config.schedule == "linear":
        after = optax.linear_schedule(highest, 0.0, falling)
    elif config.schedule == "halving":
        after = optax.exponential_decay(highest, config.halving_steps or 1, 0.5, staircase=True)
    else:
        after = optax.constant_schedule(highest)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, highest, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, steps: int, peak: jax.Array | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run.

    Args:
      config: its settings.
      steps: number of steps of the run.
      peak: as for `learning_rate_schedule`.

    Raises:
      ValueError: optax has no such optimiser, or the optimiser does not take an option.
    """
    if config.name == CUSTOM:
        raise ValueError(
            "this run was started with an optimiser from Python; pass it again: "
            "icl.resume(run, optimizer=...)"
        )
    factories = _factories()
    if config.name not in factories:
        near = difflib.get_close_matches(config.name, factories, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(factories)}"
        raise ValueError(f"optax has no optimiser called {config.name!r}; {hint}")
    factory = factories[config.name]
    accepted = [p for p in inspect.signature(factory).parameters if p != "learning_rate"]
    unknown = sorted(set(config.options) - set(accepted))
    if unknown:
        raise ValueError(
            f"optax.{config.name} takes no option {', '.join(unknown)}; "
            f"it takes {', '.join(accepted)}"
        )
    optimizer = factory(learning_rate_schedule(config, steps, peak), **config.options)
    if config.clip_each is not None:
        optimizer = optax.chain(clip_each(config.clip_each), optimizer)
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def clip_each(limit: float) -> optax.GradientTransformation:
    """Scales down each matrix of the gradient whose Frobenius norm is above `limit`.

    A matrix is the last two axes of a leaf. A leaf with at most one axis is clipped as a whole.
    """

    def clip(gradient: jax.Array) -> jax.Array:
        axes = tuple(range(max(0, gradient.ndim - 2), gradient.ndim))
        norm = jnp.sqrt(jnp.sum(gradient**2, axis=axes, keepdims=True))
        return gradient * (limit / jnp.maximum(norm, limit))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def _factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The functions of optax whose first argument is a learning rate, by name."""
    return {
        name: value
        for name, value in sorted(vars(optax).items())
        if not name.startswith("_")
        and inspect.isfunction(value)
        and next(iter(inspect.signature(value).parameters), None) == "learning_rate"
    }
