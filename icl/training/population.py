"""Populations: models that are trained together in one compiled program.

Members may differ in seed, learning rate and pool size; any other difference needs another program.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ..tasks import Data
from .config import Config
from .learner import Learner
from .optimizer import make_optimizer
from .parallel import MEMBERS, Shards
from .step import Program, StepMetrics, TrainState, init_state, train_step


class MemberSettings(NamedTuple):
    """Settings that may differ between members, besides the seed; each `[members]`."""

    learning_rate: jax.Array  # float32: peak of the schedule
    pool_size: jax.Array | None  # int32; None if there is no pool


def shared_config(config: Config) -> Config:
    """The config with constants for the settings that may differ between members."""
    pool = config.training.pool_size and 1
    return config.replace(training_seed=0, training_pool_size=pool, optimizer_learning_rate=1.0)


def group_by_program(configs: Sequence[Config]) -> list[list[int]]:
    """Groups of indices of configs that can share a program, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(repr(shared_config(config)), []).append(index)
    return list(groups.values())


def member_settings(configs: Sequence[Config]) -> MemberSettings:
    """The settings that may differ between the members of one program."""
    rates = jnp.array([config.optimizer.learning_rate for config in configs], jnp.float32)
    pools = [config.training.pool_size for config in configs]
    fresh = pools[0] is None
    return MemberSettings(rates, None if fresh else jnp.array(pools, jnp.int32))


def init_population(configs: Sequence[Config]) -> TrainState:
    """The states of all members before the first step, with a leading axis `[members]`."""
    states = []
    for config in configs:
        learner = Learner(config)
        states.append(init_state(learner, make_optimizer(config.optimizer, config.training.steps)))
    # One program, in place of several for each leaf.
    return jax.jit(lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))(
        *states
    )


def compile_population(
    config: Config,
    settings: MemberSettings,
    state: TrainState,
    length: int,
    mesh: Mesh | None = None,
    data: Data = None,
) -> Program:
    """Compiles `length` training steps of every member into one program that donates its state.

    A member's step computes the same as that of `compile_chunk`. An accelerator makes a step of all
    members at once (`vmap`). A CPU device trains its members one after the other, because the batch
    of a single member fits its cache.

    Args:
      config: the settings that all members share.
      settings: the settings that differ, placed on the mesh.
      state: from `init_population`, placed on the mesh.
      length: number of steps.
      mesh: the devices, from `make_mesh`; None for a single device.
      data: what `config.task.load_data` returned, placed on every device of the mesh.

    Returns:
      A function from a `TrainState` to the state `length` steps later and `StepMetrics`, each
      `[members, length]`.
    """
    learner = Learner(config)
    shards = Shards.of(mesh, population=True)

    def chunk_of(
        member: tuple[MemberSettings, TrainState], data: Data
    ) -> tuple[TrainState, StepMetrics]:
        own, state = member
        optimizer = make_optimizer(config.optimizer, config.training.steps, own.learning_rate)
        step = lambda state, _: train_step(learner, optimizer, state, own.pool_size, shards, data)
        return jax.lax.scan(step, state, length=length)

    one_by_one = jax.default_backend() == "cpu"

    def chunk(state: TrainState, settings: MemberSettings, data: Data):
        one, both = partial(chunk_of, data=data), (settings, state)
        return jax.lax.map(one, both) if one_by_one else jax.vmap(one)(both)

    if mesh is not None and mesh.size > 1:
        members = PartitionSpec(MEMBERS)
        specs = (members, members, PartitionSpec())
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=members)
    compiled = jax.jit(chunk, donate_argnums=0).lower(state, settings, data).compile()
    return Program(compiled, settings, data)
