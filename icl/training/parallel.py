"""The devices of a run: how members of a population and prompts of a batch are divided among them.

Devices that share a model each hold all its parameters, draw a part of each batch, and add their
gradients in one all-reduce per step. The prompts of a batch do not depend on the devices.
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

# Mesh axes: members of a population, and prompts of a batch.
MEMBERS, DATA = "members", "data"
MAX_CPU_DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Shards:
    """How a step inside `shard_map` is divided among devices."""

    count: int  # number of devices that share a batch
    axes: tuple[str, ...]  # mesh axes along which the gradients of devices differ

    @classmethod
    def of(cls, mesh: Mesh | None, *, population: bool = False) -> "Shards":
        """The shards of a step on a mesh; None means a single device, outside `shard_map`."""
        if mesh is None or mesh.size == 1:
            return ALONE
        shared = (DATA,) if mesh.shape[DATA] > 1 else ()
        return cls(mesh.shape[DATA], ((MEMBERS,) if population else ()) + shared)


ALONE = Shards(1, ())


def use_cpu_cores() -> None:
    """Makes each CPU core, up to 8, a JAX device of its own.

    Small models train faster on two devices of one core each than on one device that splits every
    operation between two cores (docs/performance.md). This has no effect after JAX has computed
    anything, or if the number of devices was chosen, for example by JAX_NUM_CPU_DEVICES.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or getattr(jax.config, "jax_num_cpu_devices", -1) > 0:
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has computed already
        jax.config.update("jax_num_cpu_devices", min(cores, MAX_CPU_DEVICES))


def make_mesh(batch_size: int, members: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run: devices are divided among the members, then among prompts of a batch.

    The mesh has the largest number of devices that divides the members, and then the batch, evenly.

    Args:
      batch_size: number of prompts in a batch.
      members: number of members of the population; 1 for a single model.
      devices: available devices; None for all, including those of other processes.

    Raises:
      ValueError: there are several processes, and some device would be idle.
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
    """Places arrays on the devices of a mesh.

    Each device gets a copy of the whole tree or, of a population, the members that it trains. If
    there are several processes, all must pass equal arrays; a population needs a single process.
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
    """Marks arrays as device-specific, so that JAX does not sum their gradients over devices."""
    if not axes:
        return tree
    return jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), tree)


def mean_over_batch(tree: Any) -> Any:
    """The mean over the devices that share a batch; of integers, which are equal, the maximum."""
    mean = lambda a: (
        jax.lax.pmean(a, DATA) if jnp.issubdtype(a.dtype, jnp.floating) else (jax.lax.pmax(a, DATA))
    )
    return jax.tree.map(mean, tree)


def sum_over_batch(tree: Any) -> Any:
    """The sum over the devices that share a batch, by one all-reduce of a float32 vector."""
    flat, restore = ravel_pytree(jax.tree.map(lambda a: a.astype(jnp.float32), tree))
    return restore(jax.lax.psum(flat, DATA))
