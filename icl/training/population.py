"""Populations: models that differ in numbers alone, trained in one compiled program.

Seeds, learning rates and pool sizes are numbers of the program; everything else makes another one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from .config import Config
from .learner import Learner
from .optimizer import make_optimizer
from .parallel import MEMBERS, Shards
from .step import StepMetrics, TrainState, init_state, train_step


class Numbers(NamedTuple):
    """What the members of one program differ in, beside their seeds: each `[members]`."""

    learning_rate: jax.Array  # float32: peak of the schedule
    pool_size: jax.Array | None  # int32; None where every task is fresh


def shared_config(config: Config) -> Config:
    """The config without what members of one program may differ in."""
    pool = config.training.pool_size and 1
    return config.replace(training_seed=0, training_pool_size=pool, optimizer_learning_rate=1.0)


def group_by_program(configs: Sequence[Config]) -> list[list[int]]:
    """Indices of the configs that train in the same program, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(repr(shared_config(config)), []).append(index)
    return list(groups.values())


def numbers_of(configs: Sequence[Config]) -> Numbers:
    """The numbers of the members of one program."""
    rates = jnp.array([config.optimizer.learning_rate for config in configs], jnp.float32)
    pools = [config.training.pool_size for config in configs]
    fresh = pools[0] is None
    return Numbers(rates, None if fresh else jnp.array(pools, jnp.int32))


def init_population(configs: Sequence[Config]) -> TrainState:
    """The members' states before the first step, with a leading axis `[members]`."""
    states = []
    for config in configs:
        learner = Learner(config)
        states.append(init_state(learner, make_optimizer(config.optimizer, config.training.steps)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def compile_population(
    config: Config, numbers: Numbers, state: TrainState, length: int, mesh: Mesh | None = None
) -> jax.stages.Compiled:
    """Compiles `length` training steps of every member into one program that donates its state.

    A member's step is that of `compile_chunk`. An accelerator takes a step of all members at once
    (`vmap`); on a CPU each device trains one member after the other, whose batch fits its cache.

    Args:
      config: what the members share.
      numbers: where they differ.
      state: from `init_population`, placed on the mesh.
      length: steps.
      mesh: the devices, from `make_mesh`; None for one.

    Returns:
      A function from a `TrainState` and `Numbers` to the state `length` steps later and
      `StepMetrics`, each `[members, length]`.
    """
    learner = Learner(config)
    shards = Shards.of(mesh, population=True)

    def chunk_of(member: tuple[Numbers, TrainState]) -> tuple[TrainState, StepMetrics]:
        own, state = member
        optimizer = make_optimizer(config.optimizer, config.training.steps, own.learning_rate)
        step = lambda state, _: train_step(learner, optimizer, state, own.pool_size, shards)
        return jax.lax.scan(step, state, length=length)

    one_by_one = jax.default_backend() == "cpu"
    run = (lambda both: jax.lax.map(chunk_of, both)) if one_by_one else jax.vmap(chunk_of)
    chunk = lambda state, numbers: run((numbers, state))
    if mesh is not None and mesh.size > 1:
        members = PartitionSpec(MEMBERS)
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=members, out_specs=members)
    return jax.jit(chunk, donate_argnums=0).lower(state, numbers).compile()
