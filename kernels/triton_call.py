"""Calling a Triton kernel from JAX: on a GPU through jax-triton, elsewhere interpreted.

Kernels take their inputs, then their outputs, then constants by keyword, and nothing else: no
scalars, aliases or zeroed outputs, on which jax-triton 0.3 and 0.4 differ.
"""

import importlib.util
import inspect
import os
from collections.abc import Sequence
from typing import Any

import jax

from .dispatch import Target, interpreting, target
from .wiring import vary_over, varying_axes

if interpreting():
    # Triton looks at this when a kernel is defined, also for its own library.
    os.environ["TRITON_INTERPRET"] = "1"


def refusal(here: Target) -> str | None:
    """Why Triton kernels cannot run on this machine, or None."""
    if not _is_installed("triton"):
        return "Triton is not installed; install fused-icl with the extra cuda12 or cuda13"
    if interpreting():
        return None
    if here.platform not in ("cuda", "rocm"):
        return (
            f"Triton needs a GPU and this is {here.platform!r}; use implementation=None, or set "
            "ICL_KERNELS_INTERPRET=1 before Python starts to run kernels slowly on the CPU"
        )
    if here.capability is not None and here.capability < 80:
        return f"these kernels need compute capability 8.0, this is {here.capability / 10}"
    if not _is_installed("jax_triton"):
        return "jax-triton is not installed; install fused-icl with the extra cuda12 or cuda13"
    return None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def triton_call(
    kernel: Any,
    programs: int,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    constants: dict[str, Any],
    *,
    num_warps: int,
    num_stages: int,
) -> list[jax.Array]:
    """Runs `programs` instances of a `@triton.jit` kernel.

    Args:
      kernel: takes a pointer for each input and output, in this order, then the constants.
      programs: size of grid axis 0, the only one.
      constants: hashable compile-time constants, by name.
      num_warps: warps of a program.
      num_stages: how many iterations of a loop have their loads in flight.

    Returns:
      Arrays with the shapes and dtypes of `outputs`.
    """
    if interpreting():
        from .interpreter import interpret

        results = jax.pure_callback(
            lambda *arrays: interpret(kernel, programs, arrays, outputs, constants),
            tuple(outputs),
            *inputs,
            vmap_method="sequential",
        )
    else:
        import jax_triton

        parameters = inspect.signature(jax_triton.triton_call).parameters
        shapes = "out_type" if "out_type" in parameters else "out_shape"
        results = jax_triton.triton_call(
            *inputs,
            kernel=kernel,
            grid=(programs,),
            num_warps=num_warps,
            num_stages=num_stages,
            compute_capability=target().capability,
            **{shapes: tuple(outputs)},
            **constants,
        )
    axes = frozenset().union(*(varying_axes(i) for i in inputs))
    return [vary_over(result, axes) for result in results]


def strides(shape: tuple[int, ...], batch: int, offset: int = 0) -> tuple[int, ...]:
    """What `tiles.py` takes for a contiguous `[batch or 1, length, heads, H]`."""
    rows, length, heads, width = shape
    return (length * heads * width if rows == batch else 0, heads * width, width, offset)
