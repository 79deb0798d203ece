"""How long a step takes on a CPU, before it is compiled."""

import functools
import time

import jax
import jax.numpy as jnp

from ..models.flops import training_flops
from .learner import Learner

# A training step's share of the rate of a plain product, measured: 46% for xs, 60% for small.
SHARE = 0.5
PRODUCT = 1024
PRODUCT_SECONDS = 0.1
LONG_SECONDS = 20 * 60
# How long Ctrl-C may go unanswered.
CHUNK_SECONDS = 10


@functools.cache
def product_flops_per_second() -> float:
    """Rate of a float32 matrix product on the CPU, measured in about 0.2 s."""
    matrix = jnp.ones((PRODUCT, PRODUCT), jnp.float32)
    product = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    best, end = float("inf"), time.perf_counter() + PRODUCT_SECONDS
    while (started := time.perf_counter()) < end:
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * PRODUCT**3 / best


def step_seconds(learner: Learner) -> float | None:
    """Seconds a training step should take on a CPU; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return None
    config = learner.config
    batch = config.training.batch_size
    flops = training_flops(config.model, learner.width, learner.tokens, batch)
    return flops / (SHARE * product_flops_per_second())


def long_run(steps: int, seconds: float | None) -> str | None:
    """What to say before so many steps of so many seconds; None where they are soon done."""
    if seconds is None or steps * seconds <= LONG_SECONDS:
        return None
    return (
        f"about {_duration(steps * seconds)} on this CPU ({steps:,} steps of about "
        f"{seconds:.2g} s); presets ending in -xs take minutes; Ctrl-C saves and leaves"
    )


def steps_at_once(log_every: int, seconds: float | None) -> int:
    """Steps that run before the host looks: a divisor of `log_every`, 2 or more where it has one.

    Args:
      log_every: steps a line of metrics.
      seconds: of a step; None for too few to matter.
    """
    if seconds is None:
        return log_every
    divisors = [n for n in range(2, log_every + 1) if log_every % n == 0] or [1]
    return max((n for n in divisors if n * seconds <= CHUNK_SECONDS), default=divisors[0])


def chunk_length(step: int, end: int, at_once: int) -> int:
    """How many steps to run now, from `step` to at most `end`.

    XLA unrolls a loop of a single step, which then rounds otherwise. So none is run alone, nor
    left over, unless there is but one.
    """
    left = end - step
    length = min(at_once - step % at_once, left)
    if length == 1:
        length = min(1 + at_once, left)
    return left if left - length == 1 else length


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
