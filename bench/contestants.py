"""What is timed in each process: our training program, and the peer's loop.

Only one of JAX and torch computes in a process, so neither's thread pool is in the other's:
`icl` imports JAX everywhere, but JAX starts nothing before its first computation.
"""
# torch is needed by this benchmark alone, so type checkers may not find it.
# pyright: reportMissingImports=false

import statistics
import time
from collections.abc import Callable
from typing import Any

from icl.experiments import preset
from icl.tasks import Curriculum
from icl.training import Config

# Full difficulty throughout, so that both contestants do the same work at every step.
SIZES = {
    "xs": preset("garg/linear-xs").replace(curriculum=Curriculum()),
    "small": preset("garg/linear-small").replace(curriculum=Curriculum()),
}
DEFAULT_STEPS = {"xs": 100, "small": 10}
PEAK_SIZE = 2048  # rows and columns of the matrix product that gives the machine's peak

Started = tuple[dict[str, Any], dict[str, Callable[[], dict]]]


def prompt_tokens(config: Config) -> int:
    """Tokens of a prompt x_1, y_1, x_2, y_2, ..."""
    return 2 * config.task.points


def flops_by_part(config: Config) -> dict[str, float]:
    """The model's floating-point operations in a training step, by the part of the model.

    6 * parameters in the matrix products * tokens, for the product of the forward pass and
    the two of the backward one, and 12 * layers * width * T * tokens for attention's own
    products, where T is the tokens of a prompt and tokens = batch * T. Attention is counted in
    full, not halved for causality. This is the model's definition, the same for every
    contestant: one that leaves out operations nobody reads is not credited with fewer.
    """
    model, length = config.model, prompt_tokens(config)
    tokens = config.training.batch_size * length
    square = model.layers * model.width**2
    return {
        "ends": 6.0 * (config.task.dim + 1) * model.width * tokens,
        "projections": 6.0 * 4 * square * tokens,
        "mlp": 6.0 * 8 * square * tokens,
        "attention": 12.0 * model.layers * model.width * length * tokens,
    }


def step_flops(config: Config) -> float:
    """The model's floating-point operations in a training step, of all parts together."""
    return sum(flops_by_part(config).values())


def peak_flops(seconds: float) -> float:
    """Operations a second, from the seconds of the product of `compile_peak`."""
    return 2.0 * PEAK_SIZE**3 / seconds


def start_ours(size: str, steps: int) -> Started:
    """Our contestant; `step`, `draw` and `peak` answer with seconds a step or a product."""
    import jax

    from icl.training.learner import Learner
    from icl.training.optimizer import make_optimizer
    from icl.training.step import compile_chunk, init_state

    config = SIZES[size]
    learner = Learner(config)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = init_state(learner, optimizer)
    started = time.perf_counter()
    chunk = compile_chunk(learner, optimizer, state, steps)
    compile_seconds = time.perf_counter() - started

    def step() -> dict:
        nonlocal state
        started = time.perf_counter()
        state, metrics = chunk(state)
        loss = float(metrics.loss[-1].block_until_ready())
        return {"seconds": (time.perf_counter() - started) / steps, "loss": loss}

    draw, peak = compile_draw(learner, steps), compile_peak()
    warm_seconds = step()["seconds"] * steps
    for command in (draw, peak):
        command()
    device = jax.devices()[0]
    ready = {
        "compile_seconds": compile_seconds,
        "warm_seconds": warm_seconds,
        "device": device.device_kind,
        "platform": device.platform,
    }
    return ready, {"step": step, "draw": draw, "peak": peak}


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


def compile_peak() -> Callable[[], dict]:
    """A float32 product of two square matrices of `PEAK_SIZE`; seconds, the median of five."""
    import jax

    a, b = jax.random.normal(jax.random.key(2), (2, PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    return lambda: {
        "seconds": statistics.median(seconds_of(lambda: product(a, b)) for _ in "12345")
    }


def seconds_of(program: Callable[[], Any]) -> float:
    """Wall time of a compiled JAX program, until its results are there."""
    import jax

    started = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - started


def make_peer(config: Config):
    """The peer's model, of the size of ours."""
    from peers.torch_gpt2 import InContextGPT2

    model = config.model
    positions = model.max_tokens or prompt_tokens(config)
    return InContextGPT2(config.task.dim, model.layers, model.heads, model.width, positions)


def start_torch(size: str, steps: int, device: str) -> Started:
    """The peer; `step` answers with seconds a step."""
    import torch
    from peers.torch_gpt2 import Trainer

    config = SIZES[size]
    started = time.perf_counter()
    torch.manual_seed(config.training.seed)
    trainer = Trainer(
        make_peer(config).to(device),
        config.training.batch_size,
        config.task.points,
        config.task.dim,
        config.optimizer.learning_rate,
        device,
    )
    build_seconds = time.perf_counter() - started

    def step() -> dict:
        started = time.perf_counter()
        for _ in range(steps):
            loss = trainer.step()
        return {"seconds": (time.perf_counter() - started) / steps, "loss": loss}

    warm_seconds = step()["seconds"] * steps
    ready = {
        "compile_seconds": build_seconds,
        "warm_seconds": warm_seconds,
        "threads": torch.get_num_threads(),
        "attention": trainer.model.backbone.config._attn_implementation,
    }
    return ready, {"step": step}
