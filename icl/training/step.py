"""One update, and the scanned chunk of updates that runs on the device.

Nothing here touches the host: a step draws its own batch from `fold_in(key, step)`, so the
result depends neither on how steps are cut into chunks nor on where a run was resumed.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from ..tasks import sample_batch
from .config import Config
from .learner import Learner, Params
from .parallel import ALONE, DATA, Shards, largest_divisor, sum_over_batch, varying

# Activations of an MLP's hidden layer that stay in a CPU's cache, in bytes.
CPU_CACHE_BYTES = 4 * 2**20


class TrainState(NamedTuple):
    """All that changes during a run, and its keys."""

    params: Params
    opt_state: Any
    step: jax.Array  # int32 []: updates made so far
    data_key: jax.Array  # key []: batch t is drawn from fold_in(data_key, t)
    pool_key: jax.Array  # key []: defines the pool of tasks

    def items(self) -> dict[str, Any]:
        """The parts that a checkpoint keeps apart."""
        return {"params": self.params, "rest": self[1:]}

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> "TrainState":
        """The inverse of `items`."""
        return cls(items["params"], *items["rest"])


class StepMetrics(NamedTuple):
    """What a chunk brings back, each `[steps]`."""

    loss: jax.Array
    grad_norm: jax.Array  # global norm, before clipping


def init_state(learner: Learner, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from the config's seed."""
    _, data_key, tasks_key = _keys(learner.config)
    params = initial_params(learner)
    return TrainState(params, optimizer.init(params), jnp.int32(0), data_key, tasks_key)


def initial_params(learner: Learner) -> Params:
    """The parameters before the first step, from the config's seed."""
    return learner.init(_keys(learner.config)[0])


def pool_key(config: Config) -> jax.Array:
    """The key of a run's pool: its task i is `icl.tasks.pool_task(config.task, key, i)`."""
    return _keys(config)[2]


def _keys(config: Config) -> jax.Array:
    """The keys of initial parameters, data and pool, `[3]`."""
    return jax.random.split(jax.random.key(config.training.seed), 3)


def microbatch_size(learner: Learner, devices: int = 1) -> int:
    """Prompts whose gradient a device computes at once: as configured, or for the backend."""
    config = learner.config
    batch = config.training.batch_size // devices
    if config.training.microbatch_size is not None:
        return math.gcd(batch, config.training.microbatch_size)
    if jax.default_backend() != "cpu":
        return batch
    width = config.model.activations(learner.layout.width(learner.family))
    prompt_bytes = 4 * learner.tokens * width * config.model.passes
    fitting = max(1, CPU_CACHE_BYTES // prompt_bytes)
    return largest_divisor(batch, min(batch, fitting))


def batch_gradient(
    learner: Learner,
    state: TrainState,
    pool_size: int | jax.Array | None = None,
    shards: Shards = ALONE,
) -> tuple[jax.Array, Params]:
    """Mean loss of the step's batch, and its gradient, one microbatch after the other.

    Args:
      pool_size: in place of the config's, where members of a population differ in it.
      shards: how many devices share the batch; more than one only inside `shard_map`.
    """
    training = learner.config.training
    key = jax.random.fold_in(state.data_key, state.step)
    difficulty = learner.config.curriculum.at(state.step, learner.family)
    size, share = microbatch_size(learner, shards.count), training.batch_size // shards.count
    offset = share * jax.lax.axis_index(DATA) if shards.count > 1 else 0
    # Summed below, once; of replicated parameters every use would sum its gradient.
    params = varying(state.params, (DATA,)) if shards.count > 1 else state.params

    def gradient(first: jax.Array | int):
        episodes = sample_batch(
            learner.family,
            key,
            offset + first + jnp.arange(size),
            difficulty,
            state.pool_key,
            training.pool_size if pool_size is None else pool_size,
            training.pooled == "prompts",
        )
        loss = jax.value_and_grad(learner.loss_sum, has_aux=True)
        (total, count), grads = loss(params, episodes, state.step)
        return total, count, grads

    if size == share:
        sums = gradient(0)
    else:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, 0))
        add = lambda sums, first: (jax.tree.map(jnp.add, sums, gradient(first)), None)
        sums, _ = jax.lax.scan(add, varying(zeros, shards.axes), jnp.arange(0, share, size))
    total, count, grads = sum_over_batch(sums) if shards.count > 1 else sums
    return total / count, jax.tree.map(lambda g: g / count, grads)


def train_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    pool_size: int | jax.Array | None = None,
    shards: Shards = ALONE,
) -> tuple[TrainState, StepMetrics]:
    """Draws a batch, and updates the parameters on it; arguments as for `batch_gradient`."""
    loss, grads = batch_gradient(learner, state, pool_size, shards)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
    return state, StepMetrics(loss, optax.global_norm(grads))


def compile_chunk(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    length: int,
    mesh: Mesh | None = None,
) -> jax.stages.Compiled:
    """Compiles `length` training steps into one program that donates its state.

    Args:
      mesh: the devices that share each batch, with `state` placed on all of them; None for one.

    Returns:
      A function from a `TrainState` to the one `length` steps later and `StepMetrics`.
    """
    step = partial(train_step, learner, optimizer, shards=Shards.of(mesh))
    chunk = lambda state: jax.lax.scan(lambda s, _: step(s), state, length=length)
    if mesh is not None and mesh.size > 1:
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    return jax.jit(chunk, donate_argnums=0).lower(state).compile()
