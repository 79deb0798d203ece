"""Our contestant: the training program, the drawing of tasks, and the machine's peak."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from icl.tasks import sample_batch
from icl.training import Config
from icl.training.learner import Learner
from icl.training.memory import needed_bytes
from icl.training.optimizer import make_optimizer
from icl.training.parallel import make_mesh, place, use_cpu_cores
from icl.training.step import compile_chunk, init_state, microbatch_size

from ..common.worker import Started, failures_as_values
from . import plain_mixer
from .cases import case_config, contestant, dtypes

# Rows and columns of the product that measures the peak, and the number of chained products.
PEAK_PRODUCT = {"cpu": (2048, 1)}
PEAK_PRODUCT_ELSEWHERE = (8192, 8)

Timed = Callable[[], dict[str, Any]]


def start(case: str, name: str, steps: int, _device: str) -> Started:
    """A contestant in JAX; `step` answers with the seconds of a step, `memory` with bytes.

    Raises:
      ValueError: the contestant cannot run; the message gives the reason.
    """
    with failures_as_values():
        use_cpu_cores()
        plain_mixer.register()
        config = case_config(case, contestant(name))
        jax.block_until_ready(jnp.zeros(()))
        before = resident_bytes()
        started = time.perf_counter()
        step, chunk = compile_trainer(config, steps)
        compile_seconds = time.perf_counter() - started
        ready = {"compile_seconds": compile_seconds, "warm_seconds": step()["seconds"] * steps}
        commands = {"step": step}
        if name == "ours":
            commands["draw"] = compile_draw(Learner(config), steps)
            commands["draw"]()

    def memory() -> dict[str, Any]:
        device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        resident = {"before": before, "peak": resident_bytes()}
        return {"device": device, "resident": resident, "program": needed_bytes(chunk)}

    return ready, commands | {"memory": memory}


def start_machine(size: int | None = None) -> Started:
    """Answers with the device; commands such as `peak float32` give operations a second.

    Args:
      size: rows and columns of the products; None for products that reach the peak.
    """
    device = jax.devices()[0]
    commands = {f"peak {dtype}": compile_peak(dtype, size) for dtype in dtypes(device.platform)}
    fastest = lambda peak: max(peak()["rate"] for _ in range(3))
    peaks = {dtype: fastest(commands[f"peak {dtype}"]) for dtype in dtypes(device.platform)}
    return {"device": device.device_kind, "platform": device.platform, "peaks": peaks}, commands


def compile_peak(dtype: str, size: int | None = None) -> Timed:
    """A function that measures operations a second of square products at default precision.

    Each call takes the median of five runs.
    """
    usual, products = PEAK_PRODUCT.get(jax.default_backend(), PEAK_PRODUCT_ELSEWHERE)
    size = size or usual
    a, b = jax.random.normal(jax.random.key(2), (2, size, size), dtype)
    b = b * size**-0.5  # keeps the scale of the chained products
    chain = lambda a, b: jax.lax.fori_loop(0, products, lambda _, a: a @ b, a)
    program = jax.jit(chain if products > 1 else lambda a, b: a @ b).lower(a, b).compile()
    program(a, b).block_until_ready()
    operations = 2.0 * size**3 * products
    return lambda: {
        "rate": operations / statistics.median(seconds_of(lambda: program(a, b)) for _ in "12345")
    }


def compile_trainer(config: Config, steps: int, optimizer=None, devices=None) -> tuple[Timed, Any]:
    """Compiles the trainer's program for these settings.

    Args:
      config: the settings.
      steps: number of training steps in a run.
      optimizer: the optimiser; by default the settings' own.
      devices: the devices; None for all.

    Returns:
      A function that runs the program once, and the program.
    """
    learner = Learner(config)
    optimizer = optimizer or make_optimizer(config.optimizer, config.training.steps)
    mesh = make_mesh(config.training.batch_size, devices=devices)
    state = place(init_state(learner, optimizer), mesh)
    chunk = compile_chunk(learner, optimizer, state, steps, mesh)

    def run() -> dict[str, Any]:
        nonlocal state
        started = time.perf_counter()
        state, metrics = chunk(state)
        loss = float(metrics.loss[-1])
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise RuntimeError("the loss is not finite, which changes the time of a step")
        return {"seconds": seconds / steps, "loss": loss}

    return run, chunk


def compile_draw(learner: Learner, steps: int) -> Timed:
    """A function that only draws the batches of `steps` steps, in the trainer's microbatches."""
    size = microbatch_size(learner)
    firsts = jnp.arange(0, learner.config.training.batch_size, size)

    def draw_batch(total, step):
        key = jax.random.fold_in(jax.random.key(1), step)

        def draw_part(total, first):
            indices = first + jnp.arange(size)
            episodes = sample_batch(learner.family, key, indices, learner.family.full)
            return total + used(episodes), None

        return jax.lax.scan(draw_part, total, firsts)[0], None

    program = jax.jit(lambda first: jax.lax.scan(draw_batch, 0.0, first + jnp.arange(steps))[0])
    first = jnp.int32(0)
    compiled = program.lower(first).compile()
    return lambda: {"seconds": seconds_of(lambda: compiled(first)) / steps}


def used(episodes: Any) -> jax.Array:
    """A number that depends on all arrays of the episodes, so that XLA computes all of them."""
    # The barrier makes XLA produce the arrays instead of fusing them into their sum.
    leaves = jax.tree.leaves(jax.lax.optimization_barrier(episodes))
    return sum((leaf.astype(jnp.float32).sum() for leaf in leaves), jnp.zeros(()))


def seconds_of(program: Callable[[], Any]) -> float:
    """Wall time of a compiled JAX program until its results are ready."""
    started = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - started


def resident_bytes() -> int:
    """Peak resident memory of the process until now, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
