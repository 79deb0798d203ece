"""Calls a Pallas kernel from JAX: on a TPU through Mosaic, elsewhere interpreted.

All arrays have four axes, `[B or 1, heads or 1, rows, columns]`. A program owns one key head of one
batch row, and the query heads that share it. It sees `[heads, rows, columns]` of every array.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .dispatch import Target, interpreting, target
from .fused import dtype_refusal
from .untyped import dot_general

if TYPE_CHECKING:
    from jax.experimental import pallas as pl

# The compiler gives a program 16 MiB.
BYTES_ON_CHIP = 12 * 2**20


def refusal(here: Target) -> str | None:
    """Why Pallas kernels cannot run on this machine, or None."""
    if here.platform != "tpu" and not interpreting():
        return (
            f"Pallas kernels need a TPU and this is {here.platform!r}; use implementation=None, or "
            "set ICL_KERNELS_INTERPRET=1 to run them slowly here"
        )
    if here.device in ("TPU v2", "TPU v3"):
        return f"Mosaic needs a TPU v4 or newer and this is a {here.device}"
    return None


def call_refusal(here: Target, what: str, needed: int, *arrays: Any) -> str | None:
    """Why Pallas kernels cannot take query, key and value here, or None.

    Args:
      what: what a program holds, for the message.
      needed: number of bytes that it takes on chip.
      arrays: query, key and value, None for those that are packed in the query.
    """
    found = refusal(here) or dtype_refusal(*arrays)
    if found is None and needed > BYTES_ON_CHIP:
        found = (
            f"{what} needs about {needed / 2**20:.0f} MiB on chip and {BYTES_ON_CHIP >> 20} may "
            "be used; use implementation=None"
        )
    return found


def padded(rows: int, columns: int) -> int:
    """Number of elements that a tile takes on chip."""
    return -(-rows // 8) * 8 * -(-columns // 128) * 128


def pallas_call(
    kernel: Callable[..., None],
    grid: tuple[int, int],
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
) -> Any:
    """Runs a program for every batch row and key head.

    Args:
      kernel: takes the trees of `inputs`, then the trees of `outputs`.
      grid: numbers of batch rows and key heads.
      inputs: trees of arrays; int32 ones are read as scalars.
      outputs: trees of shapes and dtypes.

    Returns:
      Arrays with the shapes and dtypes of `outputs`.
    """
    # Half the time that JAX itself takes to import.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    # In a shard_map all inputs vary over the same axes, and so do the outputs.
    first: Any = jax.typeof(jax.tree.leaves(inputs)[0])
    kind = first.manual_axis_type
    varying: Callable[[Any], Any] = lambda out: out.update(manual_axis_type=kind)
    outputs = jax.tree.map(varying, outputs)
    blocks = partial(jax.tree.map, partial(block, grid[1]))
    return pl.pallas_call(
        kernel,
        outputs,
        grid=grid,
        in_specs=blocks(inputs),
        out_specs=blocks(outputs),
        interpret=interpreting() and target().platform != "tpu",
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    )(*inputs)


def block(key_heads: int, array: Any) -> "pl.BlockSpec":
    """One batch row and the heads that share a key head; all programs read an axis of size 1."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    rows, heads, *rest = array.shape
    index: Callable[[Any, Any], Any] = lambda b, k: (
        b if rows > 1 else 0,
        k if heads > 1 else 0,
        0,
        0,
    )
    return pl.BlockSpec(
        (None, max(1, heads // key_heads), *rest),
        index,
        memory_space=pltpu.SMEM if array.dtype == jnp.int32 else None,
    )


def readable(array: jax.Array) -> jax.Array:
    """The array in a dtype that Mosaic reads."""
    wider = {"bool": jnp.int8, "float16": jnp.float32, "float64": jnp.float32}
    return array.astype(wider.get(array.dtype.name, array.dtype))


def wide(tile: jax.Array) -> jax.Array:
    return tile.astype(jnp.float32)


def products(precision: str | None, dtype: Any) -> Callable[[Any, Any, tuple[int, int]], jax.Array]:
    """A function `(a, b, axes)` that casts two tiles to `dtype` and multiplies them.

    It sums over one axis of each, in float32.

    precision: JAX's default_matmul_precision; float32 stays exact by default.
    """
    inexact = dtype != jnp.float32 or precision in ("default", "fastest", "bfloat16")
    # Mosaic has only these two.
    exactness = jax.lax.Precision.DEFAULT if inexact else jax.lax.Precision.HIGHEST

    def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
        a, b = a.astype(dtype), b.astype(dtype)
        if axes == (1, 1) and b.shape[0] == 1:
            # Mosaic turns this into a product with a vector, which it has in float32 alone.
            a, b = wide(a), wide(b)
        contract = (((axes[0],), (axes[1],)), ((), ()))
        return dot_general(a, b, contract, exactness, jnp.float32)

    return product
