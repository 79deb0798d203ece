"""What is timed in each process: our training program, the peer's loop, the machine's peak.

Only one of JAX and torch computes in a process, so neither's thread pool is in the other's:
`icl` imports JAX everywhere, but JAX starts nothing before its first computation.
"""
# torch is needed by this benchmark alone, so type checkers may not find it.
# pyright: reportMissingImports=false

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from training_cases import CONTESTANTS, case_config, dtypes, prompt_tokens

from icl.training import Config

# Rows and columns of the product that gives the peak, and how many follow one another.
PEAK_PRODUCT = {"cpu": (2048, 1)}
PEAK_PRODUCT_ELSEWHERE = (8192, 8)
COMPILED_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the loss, relative

Started = tuple[dict[str, Any], dict[str, Callable[[], dict]]]


def start_contestant(case: str, name: str, steps: int, device: str) -> Started:
    """A contestant by its name; `step` answers with seconds a step, `memory` with bytes.

    Raises:
      ValueError: it cannot run, with the reason.
    """
    try:
        start = _start_jax if CONTESTANTS[name].framework == "jax" else _start_torch
        return start(case, name, steps, device)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{type(error).__name__}: {lines[0][:300]}") from error


def start_machine() -> Started:
    """Tells the device; `peak float32` and so on answer with operations a second."""
    import jax

    device = jax.devices()[0]
    commands = {f"peak {dtype}": compile_peak(dtype) for dtype in dtypes(device.platform)}
    fastest = lambda peak: max(peak()["rate"] for _ in range(3))
    peaks = {dtype: fastest(commands[f"peak {dtype}"]) for dtype in dtypes(device.platform)}
    return {"device": device.device_kind, "platform": device.platform, "peaks": peaks}, commands


def compile_peak(dtype: str) -> Callable[[], dict]:
    """Products of square matrices at default precision; operations a second.

    The median of five of them in a turn.
    """
    import jax

    size, products = PEAK_PRODUCT.get(jax.default_backend(), PEAK_PRODUCT_ELSEWHERE)
    a, b = jax.random.normal(jax.random.key(2), (2, size, size), dtype)
    b = b * size**-0.5  # so that the numbers stay as large as they are
    chain = lambda a, b: jax.lax.fori_loop(0, products, lambda _, a: a @ b, a)
    program = jax.jit(chain if products > 1 else lambda a, b: a @ b).lower(a, b).compile()
    program(a, b).block_until_ready()
    operations = 2.0 * size**3 * products
    return lambda: {
        "rate": operations / statistics.median(seconds_of(lambda: program(a, b)) for _ in "12345")
    }


def compile_trainer(config: Config, steps: int, optimizer=None) -> tuple[Callable[[], dict], Any]:
    """The trainer's program for these settings on all devices, as what runs it once, and itself.

    Args:
      config: the settings.
      steps: training steps a run.
      optimizer: in place of the one that the settings name.
    """
    from icl.training.learner import Learner
    from icl.training.optimizer import make_optimizer
    from icl.training.parallel import make_mesh, place
    from icl.training.step import compile_chunk, init_state

    learner = Learner(config)
    optimizer = optimizer or make_optimizer(config.optimizer, config.training.steps)
    mesh = make_mesh(config.training.batch_size)
    state = place(init_state(learner, optimizer), mesh)
    chunk = compile_chunk(learner, optimizer, state, steps, mesh)

    def run() -> dict:
        nonlocal state
        started = time.perf_counter()
        state, metrics = chunk(state)
        loss = float(metrics.loss[-1])
        seconds = time.perf_counter() - started
        if loss - loss != 0:
            raise RuntimeError("the loss became infinite, which would take another time")
        return {"seconds": seconds / steps, "loss": loss}

    return run, chunk


def _start_jax(case: str, name: str, steps: int, _device: str) -> Started:
    import jax
    import plain_attention  # noqa: F401, its mixer is now there

    from icl.training.learner import Learner
    from icl.training.memory import needed_bytes
    from icl.training.parallel import use_cpu_cores

    use_cpu_cores()
    config = case_config(case, CONTESTANTS[name])
    jax.block_until_ready(jax.numpy.zeros(()))
    before = _resident_bytes()
    started = time.perf_counter()
    step, chunk = compile_trainer(config, steps)
    compile_seconds = time.perf_counter() - started
    ready = {"compile_seconds": compile_seconds, "warm_seconds": step()["seconds"] * steps}
    commands = {"step": step}
    if name == "ours":
        commands["draw"] = compile_draw(Learner(config), steps)
        commands["draw"]()

    def memory() -> dict:
        device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        resident = {"before": before, "peak": _resident_bytes()}
        return {"device": device, "resident": resident, "program": needed_bytes(chunk)}

    return ready, commands | {"memory": memory}


def _resident_bytes() -> int:
    """The most memory that the process had resident until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def compile_draw(learner, steps: int) -> Callable[[], dict]:
    """Draws the batches of so many steps, cut as the trainer cuts them, and nothing else."""
    import jax
    import jax.numpy as jnp

    from icl.tasks import sample_batch
    from icl.training.step import microbatch_size

    config, size = learner.config, microbatch_size(learner)
    firsts = jnp.arange(0, config.training.batch_size, size)

    def draw_batch(total, step):
        key = jax.random.fold_in(jax.random.key(1), step)

        def draw_part(total, first):
            indices = first + jnp.arange(size)
            episodes = sample_batch(learner.family, key, indices, learner.family.full)
            # The barrier makes the arrays themselves, not just what their sum needs.
            x, y, _ = jax.lax.optimization_barrier(episodes)
            return total + x.sum() + y.sum(), None

        return jax.lax.scan(draw_part, total, firsts)[0], None

    program = jax.jit(lambda first: jax.lax.scan(draw_batch, 0.0, first + jnp.arange(steps))[0])
    compiled, first = program.lower(jnp.int32(0)).compile(), jnp.int32(0)

    def draw() -> dict:
        return {"seconds": seconds_of(lambda: compiled(first)) / steps}

    return draw


def seconds_of(program: Callable[[], Any]) -> float:
    """Wall time of a compiled JAX program, until its results are there."""
    import jax

    started = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - started


def make_peer(config: Config):
    """The peer's model, of the size of ours."""
    from peers.torch_gpt2 import InContextGPT2

    from icl.models import TransformerConfig

    model = config.model
    assert isinstance(model, TransformerConfig)
    positions = model.max_tokens or prompt_tokens(config)
    return InContextGPT2(config.task.dim, model.layers, model.heads, model.width, positions)


def _start_torch(case: str, name: str, steps: int, device: str) -> Started:
    import torch
    from peers.torch_gpt2 import Trainer

    config, contestant = case_config(case), CONTESTANTS[name]
    before = _resident_bytes()
    started = time.perf_counter()
    torch.manual_seed(config.training.seed)
    trainer = Trainer(
        make_peer(config).to(device),
        config.training.batch_size,
        config.task.points,
        config.task.dim,
        config.optimizer.learning_rate,
        device,
        bf16=contestant.dtype == "bfloat16",
        compiled=contestant.variant == "compile",
    )
    if contestant.variant == "compile":
        error, limit = trainer.compiled_error(), COMPILED_TOLERANCE[contestant.dtype]
        if not error <= limit:
            raise ValueError(f"compiled, its loss changes by {error:.1e}, and may by {limit:.0e}")
    build_seconds = time.perf_counter() - started

    def step() -> dict:
        started = time.perf_counter()
        for _ in range(steps):
            loss = trainer.step()
        return {"seconds": (time.perf_counter() - started) / steps, "loss": loss}

    def memory() -> dict:
        resident = {"before": before, "peak": _resident_bytes()}
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return {"device": peak, "resident": resident, "program": None}

    warm_seconds = step()["seconds"] * steps
    ready = {
        "compile_seconds": build_seconds,
        "warm_seconds": warm_seconds,
        "threads": torch.get_num_threads(),
        "attention": trainer.model.backbone.config._attn_implementation,
        "float32_products": torch.get_float32_matmul_precision(),
    }
    return ready, {"step": step, "memory": memory}
