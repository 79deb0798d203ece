"""The devices of a run: who trains which member of a population on which prompts of a batch.

The devices that train the same model hold all its parameters, draw a part of each batch, and add
their gradients in one all-reduce a step. Which prompts a batch has does not depend on the devices.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Axes of the mesh: over members of a population, and over the prompts of a batch.
MEMBERS, DATA = "members", "data"


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
    """The tree's arrays on the devices: all of it on each, or each member where it trains."""
    spec = PartitionSpec(MEMBERS) if population else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def varying(tree: Any, axes: tuple[str, ...]) -> Any:
    """The tree's arrays as values of this device, whose gradients nobody sums unasked."""
    if not axes:
        return tree
    return jax.tree.map(lambda a: jax.lax.pcast(a, axes, to="varying"), tree)


def sum_over_batch(tree: Any) -> Any:
    """The sum over the devices that share a batch, as one all-reduce of one float32 vector."""
    flat, restore = ravel_pytree(jax.tree.map(lambda a: a.astype(jnp.float32), tree))
    return restore(jax.lax.psum(flat, DATA))
