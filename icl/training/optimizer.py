"""The optimiser of a run: of optax, of `optax.contrib`, or registered."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ..registry import check_name, enter
from .config import CUSTOM, OptimizerConfig
from .muon import muon_and_adam

Factory = Callable[..., optax.GradientTransformation]
OPTIMIZERS: dict[str, Factory] = {}
_LOSS = "its update needs the loss, and a step passes only the gradient"
_SCHEDULE = "it takes no learning-rate schedule"
_MEAN = "it is evaluated at an average of the parameters, which a run does not save"
# Optimisers of optax that cannot train a run, with the reason.
UNUSABLE = {
    "dpsgd": "it needs the gradient of every prompt",
    "lbfgs": _LOSS,
    "momo": _LOSS,
    "momo_adam": _LOSS,
    "optimistic_adam": f"{_SCHEDULE}; optimistic_adam_v2 does",
    "rprop": _SCHEDULE,
    "schedule_free_adamw": _MEAN,
    "schedule_free_sgd": _MEAN,
    "sm3": _SCHEDULE,
    "sophia": "its update needs estimates of the Hessian",
}


def register_optimizer(name: str) -> Callable[[Factory], Factory]:
    """A decorator that registers an optimiser, so that settings can name it.

    The decorated function takes the learning rate, as a number or a schedule, as its first argument
    `learning_rate`, and options with defaults. It returns an `optax.GradientTransformation`. A name
    of optax is replaced. A run is resumed in a process that has registered its optimiser.

    Args:
      name: the name in `optimizer.name`, config.json and commands.

    Raises:
      TypeError: the first argument is not called `learning_rate`.
      ValueError: the name is empty or reserved, or another function has it.
    """
    check_name("optimiser", name)
    if name == CUSTOM:
        raise ValueError(f"the name {CUSTOM!r} is reserved for optimisers without a name")

    def decorate(factory: Factory) -> Factory:
        if not _takes_rate(factory):
            raise TypeError(f"the first argument of {factory!r} must be called learning_rate")
        enter(OPTIMIZERS, name, factory)
        return factory

    return decorate


def learning_rate_schedule(
    config: OptimizerConfig, steps: int, peak: jax.Array | None = None
) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then as `config.schedule` says.

    A traced `peak` replaces `config.learning_rate`.
    """
    highest: Any = config.learning_rate if peak is None else peak
    falling = max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(highest, falling)
    elif config.schedule == "linear":
        after = optax.linear_schedule(highest, 0.0, falling)
    elif config.schedule == "stable":
        decay = max(1, min(falling, steps // 5))
        last = optax.linear_schedule(highest, 0.0, decay)
        after = optax.join_schedules([optax.constant_schedule(highest), last], [falling - decay])
    elif config.schedule == "halving":
        after = optax.exponential_decay(highest, config.halving_steps or 1, 0.5, staircase=True)
    elif config.schedule == "inverse_sqrt":
        after = _inverse_sqrt_schedule(highest, config.warmup_steps)
    else:
        after = optax.constant_schedule(highest)
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, highest, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _inverse_sqrt_schedule(highest: Any, warmup_steps: int) -> optax.Schedule:
    """highest * sqrt(warmup_steps / t) at step t, by the number of steps since the warm-up.

    As in Vaswani et al. 2017 (arXiv 1706.03762, section 5.3).
    """

    def rate(since: Any) -> jax.Array:
        # During the warm-up, whose rate is another, `since` is negative.
        step = warmup_steps + jnp.maximum(since, 0)
        return highest * jnp.sqrt(warmup_steps / step)

    return rate


def make_optimizer(
    config: OptimizerConfig, steps: int, peak: jax.Array | None = None
) -> optax.GradientTransformation:
    """The optimiser of a run.

    Args:
      config: its settings.
      steps: number of steps of the run.
      peak: as for `learning_rate_schedule`.

    Raises:
      ValueError: there is no such optimiser, or the optimiser does not take an option.
    """
    if config.name == CUSTOM:
        raise ValueError(
            "this run was started with an optimiser from Python; pass it again: "
            "icl.resume(run, optimizer=...)"
        )
    if config.name in UNUSABLE and config.name not in OPTIMIZERS:
        raise ValueError(f"{config.name} cannot train a run: {UNUSABLE[config.name]}")
    factories = _factories()
    if config.name not in factories:
        near = difflib.get_close_matches(config.name, factories, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(factories)}"
        raise ValueError(
            f"no optimiser called {config.name!r}; {hint}. An optimiser of your own: import the "
            "module that registers it first; on the command line: icl --import MODULE ..."
        )
    factory = factories[config.name]
    accepted = [p for p in inspect.signature(factory).parameters if p != "learning_rate"]
    unknown = sorted(set(config.options) - set(accepted))
    if unknown:
        raise ValueError(
            f"the optimiser {config.name} takes no option {', '.join(unknown)}; "
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


def _factories() -> dict[str, Factory]:
    """All optimisers by name: registered ones replace those of optax."""
    found = {
        name: value
        for module in (optax.contrib, optax)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and _takes_rate(value)
        and not name.startswith(("_", "scale_by_"))
        and name not in UNUSABLE
    }
    return dict(sorted((found | OPTIMIZERS).items()))


def _takes_rate(factory: Factory) -> bool:
    """Whether the first parameter of a function is a learning rate."""
    return next(iter(inspect.signature(factory).parameters), None) == "learning_rate"


register_optimizer("muon")(muon_and_adam)
