"""A training step, and the chunk of steps that runs on the device as one program.

A step draws its batch on the device from `fold_in(key, step)`, so the result depends neither on how
steps are grouped into chunks nor on the step from which a run was resumed.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from ..layers.embedders import EMBEDDERS
from ..tasks import Data, Episode, sample_batch
from .config import Config
from .learner import Learner, Params, Variables
from .parallel import (
    ALONE,
    DATA,
    Shards,
    largest_divisor,
    mean_over_batch,
    sum_over_batch,
    varying,
)

# Largest size of a microbatch's activations that stays in a CPU's cache, in bytes.
CPU_CACHE_BYTES = 4 * 2**20


class TrainState(NamedTuple):
    """The variables, the optimiser's state, the step count and the keys of a run."""

    variables: Variables
    opt_state: Any
    step: jax.Array  # int32 []: number of updates made
    data_key: jax.Array  # key []: batch t is drawn from fold_in(data_key, t)
    pool_key: jax.Array  # key []: defines the pool of tasks

    @property
    def params(self) -> Params:
        """The parameters, which the optimiser updates."""
        return self.variables.params

    def items(self) -> dict[str, Any]:
        """The state as the separate items of a checkpoint."""
        return variable_items(self.variables) | {"rest": self[1:]}

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> "TrainState":
        """The inverse of `items`."""
        return cls(variables_from(items), *items["rest"])


class StepMetrics(NamedTuple):
    """Metrics of every step of a chunk, each `[steps]`."""

    loss: jax.Array
    grad_norm: jax.Array  # global norm, before clipping


def variable_items(variables: Variables) -> dict[str, Any]:
    """Variables as items of a checkpoint; one item if the model has parameters alone."""
    params, *others = variables
    more = {"variables": others} if jax.tree.leaves(others) else {}
    return {"params": params} | more


def variables_from(items: dict[str, Any]) -> Variables:
    """The inverse of `variable_items`."""
    return Variables(items["params"], *items.get("variables", ({}, {})))


def init_state(learner: Learner, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, determined by the config's seed."""
    _, data_key, tasks_key = _keys(learner.config)
    variables = initial_variables(learner)
    opt_state = optimizer.init(variables.params)
    return TrainState(variables, opt_state, jnp.int32(0), data_key, tasks_key)


def initial_variables(learner: Learner) -> Variables:
    """The variables before the first step, determined by the config's seed."""
    return learner.init(_keys(learner.config)[0])


def pool_key(config: Config) -> jax.Array:
    """The key of a run's pool: its task i is `icl.tasks.pool_task(config.task, key, i)`."""
    return _keys(config)[2]


def _keys(config: Config) -> jax.Array:
    """The keys of initial parameters, data and pool, `[3]`."""
    return jax.random.split(jax.random.key(config.training.seed), 3)


def microbatch_size(learner: Learner, devices: int = 1) -> int:
    """Number of prompts whose gradient a device computes at once.

    Batch statistics are over a microbatch, so a model with state gets the device's whole share of
    the batch, unless the settings say otherwise.
    """
    config = learner.config
    batch = config.training.batch_size // devices
    if config.training.microbatch_size is not None:
        return math.gcd(batch, config.training.microbatch_size)
    if jax.default_backend() != "cpu" or learner.has_state:
        return batch
    numbers = learner.tokens * config.model.activations(learner.width) * config.model.passes
    if config.model.embedder is not None:
        embedder, kind = EMBEDDERS[config.model.embedder], learner.family.input_kind
        numbers = max(numbers, learner.family.points * embedder.activations(kind, learner.features))
    prompt_bytes = 4 * numbers
    fitting = max(1, CPU_CACHE_BYTES // prompt_bytes)
    return largest_divisor(batch, min(batch, fitting))


def batch_gradient(
    learner: Learner,
    state: TrainState,
    pool_size: int | jax.Array | None = None,
    shards: Shards = ALONE,
    data: Data = None,
) -> tuple[jax.Array, Params, Any]:
    """Mean loss of the step's batch and the gradient of the loss, summed over microbatches.

    The model's state (batch statistics) is updated by one microbatch after the other. If devices
    share a batch, each updates the state from its part, and the new state is the mean over devices.
    Random layers have different keys in every microbatch of every step.

    Args:
      pool_size: replaces the config's pool size, in which members of a population may differ.
      shards: the devices that share the batch; more than one only inside `shard_map`.
      data: what `learner.family.load_data` returned, on the device.

    Returns:
      The loss, the gradient, and the new `Variables.state`.
    """
    training = learner.config.training
    key = jax.random.fold_in(state.data_key, state.step)
    difficulty = learner.config.curriculum.at(state.step, learner.family)
    size, share = microbatch_size(learner, shards.count), training.batch_size // shards.count
    offset = share * jax.lax.axis_index(DATA) if shards.count > 1 else 0
    # Gradients are summed below; without `varying`, JAX would sum them after every use.
    shared = (DATA,) if shards.count > 1 else ()
    params, model_state, keys = varying(state.variables, shared)

    def drawn(first: jax.Array | int, count: int) -> Episode:
        return sample_batch(
            learner.family,
            key,
            offset + first + jnp.arange(count),
            difficulty,
            state.pool_key,
            training.pool_size if pool_size is None else pool_size,
            training.pooled == "prompts",
            data,
        )

    def gradient(model_state: Any, first: jax.Array | int, episodes: Episode | None):
        if episodes is None:
            episodes = drawn(first, size)
        own = _folded(_folded(keys, state.step), offset + first)
        loss = lambda params: learner.loss_sum(
            Variables(params, model_state, own), episodes, state.step
        )
        (total, (count, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (total, count, grads), after

    # All prompts at once, outside the scan; but tasks with data may be large matrices.
    whole = drawn(0, share) if data is None else None
    if size == share:
        sums, model_state = gradient(model_state, 0, whole)
    else:
        split = lambda leaf: leaf.reshape(share // size, size, *leaf.shape[1:])
        parts = jnp.arange(0, share, size), jax.tree.map(split, whole)
        shapes, _ = jax.eval_shape(gradient, model_state, *jax.tree.map(lambda a: a[0], parts))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def add(carry: Any, part: tuple[jax.Array, Episode | None]) -> tuple[Any, None]:
            sums, model_state = carry
            more, model_state = gradient(model_state, *part)
            return (jax.tree.map(jnp.add, sums, more), model_state), None

        start = varying(zeros, shards.axes), model_state
        (sums, model_state), _ = jax.lax.scan(add, start, parts)
    if shards.count > 1:
        sums, model_state = sum_over_batch(sums), mean_over_batch(model_state)
    total, count, grads = sums
    mean = lambda total: total / count.astype(total.dtype)
    return mean(total), jax.tree.map(mean, grads), model_state


def _folded(keys: Any, number: jax.Array | int) -> Any:
    """A tree with a number folded into each of its keys; other leaves do not change."""

    def fold(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        each = jax.vmap(lambda key: jax.random.fold_in(key, number))
        return each(leaf.reshape(-1)).reshape(leaf.shape)

    return jax.tree.map(fold, keys)


def train_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    pool_size: int | jax.Array | None = None,
    shards: Shards = ALONE,
    data: Data = None,
) -> tuple[TrainState, StepMetrics]:
    """Draws a batch and updates the variables; other arguments as for `batch_gradient`."""
    loss, grads, model_state = batch_gradient(learner, state, pool_size, shards, data)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    variables = state.variables._replace(params=params, state=model_state)
    state = state._replace(variables=variables, opt_state=opt_state, step=state.step + 1)
    return state, StepMetrics(loss, optax.global_norm(grads))


class Program:
    """A compiled chunk of steps, with the arguments that every call shares.

    Args:
      compiled: a program that takes a `TrainState`, which it consumes, and `arguments`.
      arguments: pytrees of arrays on the devices.
    """

    def __init__(self, compiled: jax.stages.Compiled, *arguments: Any):
        self.compiled = compiled
        self._arguments = arguments

    def __call__(self, state: TrainState) -> tuple[TrainState, StepMetrics]:
        """The state after the chunk, and the metrics of its steps."""
        return self.compiled(state, *self._arguments)

    def memory_analysis(self) -> Any:
        """XLA's memory analysis of the compiled program."""
        return self.compiled.memory_analysis()


def compile_chunk(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    length: int,
    mesh: Mesh | None = None,
    data: Data = None,
) -> Program:
    """Compiles `length` training steps into one program that donates its state.

    Args:
      mesh: the devices that share each batch, with `state` and `data` placed on all of them; None
        for a single device.
      data: what `learner.family.load_data` returned, an argument of the program.

    Returns:
      A function from a `TrainState` to the state `length` steps later and `StepMetrics`.
    """
    step = partial(train_step, learner, optimizer, shards=Shards.of(mesh))
    chunk = lambda state, data: jax.lax.scan(lambda s, _: step(s, data=data), state, length=length)
    if mesh is not None and mesh.size > 1:
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    return Program(jax.jit(chunk, donate_argnums=0).lower(state, data).compile(), data)
