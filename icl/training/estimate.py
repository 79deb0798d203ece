"""The expected time of a training step on a CPU, before the step is compiled."""

import functools
import time

import jax
import jax.numpy as jnp

from ..models.flops import training_flops
from ..output import duration
from .learner import Learner

# Rate of a training step over the rate of a matrix product; measured: 46% for xs, 60% for small.
SHARE = 0.5
PRODUCT = 1024  # rows and columns of the matrices
PRODUCT_SECONDS = 0.1
LONG_SECONDS = 20 * 60
# Longest time until Ctrl-C has an effect.
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
    """Expected seconds of a training step on a CPU; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return None
    config = learner.config
    batch = config.training.batch_size
    flops = training_flops(config.model, learner.width, learner.tokens, batch)
    return flops / (SHARE * product_flops_per_second())


def long_run(steps: int, seconds: float | None) -> str | None:
    """Warning for a long run, else None; a step takes `seconds`, None if that is unknown."""
    if seconds is None or steps * seconds <= LONG_SECONDS:
        return None
    return (
        f"about {duration(steps * seconds)} on this CPU ({steps:,} steps of about "
        f"{seconds:.2g} s); presets ending in -xs take minutes; Ctrl-C saves and leaves"
    )


def steps_at_once(log_every: int, seconds: float | None) -> int:
    """Number of steps in a chunk: a divisor of `log_every`, at least 2 unless `log_every` is 1.

    Args:
      log_every: number of steps for each line of metrics.
      seconds: expected time of a step; None if it is too short to matter.
    """
    if seconds is None:
        return log_every
    divisors = [n for n in range(2, log_every + 1) if log_every % n == 0] or [1]
    return max((n for n in divisors if n * seconds <= CHUNK_SECONDS), default=divisors[0])


def chunk_length(step: int, end: int, at_once: int) -> int:
    """Number of steps of the next chunk, from `step` to at most `end`.

    XLA unrolls a loop of one step, which changes the rounding. So a chunk has at least two steps
    and leaves none or at least two, unless only one step is left.
    """
    left = end - step
    length = min(at_once - step % at_once, left)
    if length == 1:
        length = min(1 + at_once, left)
    return left if left - length == 1 else length
