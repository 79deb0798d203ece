"""The devices of a run: who trains which member of a population on which prompts of a batch.

The devices that train the same model hold all its parameters, draw a part of each batch, and add
their gradients in one all-reduce a step. Which prompts a batch has does not depend on the devices.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Axes of the mesh: over members of a population, and over the prompts of a batch.
MEMBERS, DATA = "members", "data"
MAX_CPU_DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Shards:
    """What a step inside `shard_map` must know."""

    count: int  # devices that share a batch
    axes: tuple[str, ...]  # mesh axes over which their gradients differ

    @classmethod
    def of(cls, mesh: Mesh | None, *, population: bool = False) -> "Shards":
        """Those of a step on this mesh; None for a single device, outside of `shard_map`."""
        if mesh is None or mesh.size == 1:
            return ALONE
        shared = (DATA,) if mesh.shape[DATA] > 1 else ()
        return cls(mesh.shape[DATA], ((MEMBERS,) if population else ()) + shared)


ALONE = Shards(1, ())


def use_cpu_cores() -> None:
    """Makes every core, up to 8, a device of its own, where JAX runs on a CPU.

    Small models train faster on two devices of a core each than on one that splits every
    operation in two (docs/performance.md). Without effect once JAX computes, or where the number
    was chosen, as by JAX_NUM_CPU_DEVICES.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or getattr(jax.config, "jax_num_cpu_devices", -1) > 0:
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX computes already
        jax.config.update("jax_num_cpu_devices", min(cores, MAX_CPU_DEVICES))


def make_mesh(batch_size: int, members: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices of a run: first split over its members, the rest over the batch.

    As many are used as divide the members, and then the batch, evenly.

    Args:
      batch_size: prompts of a batch.
      members: of the population; 1 for a single model.
      devices: those to choose from; None for all, those of other processes too.

    Raises:
      ValueError: with several processes, where some device would have nothing to do.
    """
    devices = jax.devices() if devices is None else list(devices)
    across = largest_divisor(members, len(devices))
    along = largest_divisor(batch_size, len(devices) // across)
    if jax.process_count() > 1 and across * along < len(devices):
        raise ValueError(
            f"batches of {batch_size} prompts cannot be split evenly over {len(devices)} devices "
            f"of {jax.process_count()} processes; make training.batch_size a multiple of "
            f"{len(devices)}"
        )
    return jax.make_mesh(
        (across, along),
        (MEMBERS, DATA),
        devices=devices[: across * along],
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most `limit`."""
    return max(n for n in range(1, limit + 1) if number % n == 0)


def place(tree: Any, mesh: Mesh, *, population: bool = False) -> Any:
    """The tree's arrays on the devices: all of it on each, or each member where it trains.

    Several processes pass the same arrays; a population is placed by one process alone.
    """
    sharding = NamedSharding(mesh, PartitionSpec(MEMBERS) if population else PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    put = lambda a: jax.make_array_from_single_device_arrays(
        a.shape, sharding, [jax.device_put(a, device) for device in here]
    )
    return jax.tree.map(put, tree)


def varying(tree: Any, axes: tuple[str, ...]) -> Any:
    """The tree's arrays as values of this device, whose gradients nobody sums unasked."""
    if not axes:
        return tree
    return jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), tree)


def mean_over_batch(tree: Any) -> Any:
    """The mean over the devices that share a batch; integers, which agree, become the largest."""
    mean = lambda a: (
        jax.lax.pmean(a, DATA) if jnp.issubdtype(a.dtype, jnp.floating) else (jax.lax.pmax(a, DATA))
    )
    return jax.tree.map(mean, tree)


def sum_over_batch(tree: Any) -> Any:
    """The sum over the devices that share a batch, as one all-reduce of one float32 vector."""
    flat, restore = ravel_pytree(jax.tree.map(lambda a: a.astype(jnp.float32), tree))
    return restore(jax.lax.psum(flat, DATA))
