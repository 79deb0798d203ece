"""Calls a Triton kernel from JAX: on a GPU through jax-triton, elsewhere interpreted.

A kernel takes its inputs, then its outputs, then its constants, and nothing else: no scalars,
aliases or zeroed outputs, on which jax-triton 0.3 and 0.4 differ. Constants are few: a NamedTuple
holds all strides, another all sizes and options.
"""

import functools
import importlib.util
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax

from .dispatch import Target, interpreting, is_set, target
from .fused import dtype_refusal
from .wiring import vary_over, varying_axes

TYPED = "triton_kernel_call_ffi"

if interpreting():
    # Triton reads this when a kernel is defined, those of its own library too.
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


def call_refusal(here: Target, widths: Sequence[int], widest: int, *arrays: Any) -> str | None:
    """Why Triton kernels cannot take query, key and value here, or None.

    Args:
      widths: numbers of features of the heads; `widest` is the most that kernels have room for.
      arrays: query, key and value or their shapes, None for those that are packed in the query.
    """
    found = refusal(here) or dtype_refusal(*arrays)
    if found is None and max(widths) > widest:
        found = f"heads are at most {widest} wide, got {' and '.join(map(str, widths))}"
    sizes = [math.prod(array.shape[1:]) for array in arrays if array is not None]
    if found is None and max(sizes) >= 2**31:
        found = "the query, key or value of one batch row must have fewer than 2^31 elements"
    return found


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def triton_call(
    kernel: Any,
    programs: int,
    inputs: Mapping[str, jax.Array],
    outputs: Mapping[str, jax.ShapeDtypeStruct],
    constants: Mapping[str, Any],
    *,
    num_warps: int,
    num_stages: int,
) -> dict[str, jax.Array]:
    """Runs `programs` instances of a `@triton.jit` kernel.

    Args:
      kernel: takes a pointer for each input and output, then the constants.
      programs: size of grid axis 0, the only one.
      inputs, outputs: by the names of the kernel's parameters, in any order.
      constants: hashable compile-time constants, by name.
      num_warps: warps of a program.
      num_stages: number of iterations of a loop whose loads are in flight.

    Returns:
      Arrays with the names, shapes and dtypes of `outputs`.

    Raises:
      TypeError: the names are not those of the kernel's parameters.
    """
    names = kernel.arg_names
    arrays = {name: inputs[name] for name in names if name in inputs}
    shapes = {name: outputs[name] for name in names if name in outputs}
    if {*names} != {*inputs, *outputs, *constants} or names[: len(arrays)] != [*arrays]:
        given = ", ".join([*inputs, *outputs, *constants])
        raise TypeError(f"the kernel takes {', '.join(names)}, and was given {given}")
    if interpreting():
        from .interpreter import interpret

        results = jax.pure_callback(
            lambda *given: interpret(kernel, programs, given, [*shapes.values()], constants),
            tuple(shapes.values()),
            *arrays.values(),
            vmap_method="sequential",
        )
    else:
        import jax_triton

        parameters = inspect.signature(jax_triton.triton_call).parameters
        options: dict[str, Any] = {}
        if "out_type" in parameters:
            options["out_type"] = tuple(shapes.values())
            if target().platform == "cuda" and _is_installed("jax_cuda12_plugin"):
                # Triton writes PTX for the assembler it ships, which is newer than CUDA 12's.
                options["backend_options"] = {"ptx_version": 88}
        else:
            if is_set("ICL_KERNELS_TYPED_CALLS"):
                _call_through_typed_handler()
            options["out_shape"] = tuple(shapes.values())
        results = jax_triton.triton_call(
            *arrays.values(),
            kernel=kernel,
            grid=(programs,),
            num_warps=num_warps,
            num_stages=num_stages,
            compute_capability=target().capability,
            **options,
            **constants,
        )
    axes = frozenset[Any]().union(*map(varying_axes, arrays.values()))
    return {name: vary_over(result, axes) for name, result in zip(shapes, results, strict=True)}


@functools.cache
def _call_through_typed_handler() -> None:
    """Lets XLA record the calls of jax-triton 0.3 in CUDA graphs: see kernels/README.md.

    It calls `triton_kernel_call`, which XLA never records. From 0.10.1 jaxlib has the same launcher
    as `triton_kernel_call_ffi`, marked as safe to record; jax-triton 0.4 calls that one.

    Raises:
      RuntimeError: this jaxlib has no such launcher.
    """
    import triton
    from jax.interpreters import mlir
    from jax_triton import triton_lib
    from jaxlib import gpu_triton
    from jaxlib.mlir import ir

    launcher = getattr(gpu_triton, "_cuda_triton", None)
    if TYPED not in getattr(launcher, "registrations", dict)():
        raise RuntimeError("ICL_KERNELS_TYPED_CALLS needs jaxlib 0.10.1 or newer for CUDA")
    legacy = functools.partial(triton_lib.triton_kernel_call_lowering, triton_lib.get_cuda_backend)

    def lowering(ctx: Any, *operands: Any, **parameters: Any) -> Any:
        results: Any = legacy(ctx, *operands, **parameters)
        if not isinstance(parameters["fn"], triton.JITFunction):
            return results  # other people's autotuned kernels
        call = results[0].owner
        launch = ir.StringAttr(call.attributes["backend_config"]).value_bytes
        call.erase()
        return cast(Any, jax.ffi).ffi_lowering(TYPED)(ctx, *operands, opaque=launch)

    cast(Any, mlir).register_lowering(triton_lib.triton_kernel_call_p, lowering, platform="cuda")


def stand_ins(arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The arrays, with any of them in place of an absent one: kernels take it and never read it."""
    present = next(array for array in arrays.values() if array is not None)
    return {name: present if array is None else array for name, array in arrays.items()}


def strides(shape: tuple[int, ...], batch: int, offset: int = 0) -> tuple[int, ...]:
    """Strides, as in `tiles.py`, of a contiguous `[batch or 1, length, heads, H]`."""
    rows, length, heads, width = shape
    return (length * heads * width if rows == batch else 0, heads * width, width, offset)
