"""The library's kernel launches, found by tracing without running anything."""

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from icl.kernels import targeting, triton_call
from icl.kernels.attention import launch
from icl.kernels.attention import triton as attention_triton
from icl.kernels.linear_attention import triton as linear_triton

from ..kernels.ops import CASES, SINGLE, Case

# Compute capabilities by a word of the device's name.
CAPABILITIES = {
    "a100": 80, "a10": 86, "a40": 86, "3090": 86, "l4": 89, "l40": 89, "l40s": 89, "4090": 89,
    "h100": 90, "h200": 90, "gh200": 90, "b200": 100, "gb200": 100, "b300": 103, "5090": 120,
}  # fmt: skip


class Variant(NamedTuple):
    """A case by name, with an option of its op or none, and a tuned table's device or none."""

    workload: str
    option: str = ""
    device: str = ""


@dataclass(frozen=True)
class Launch:
    """The arguments of `triton_call` in a form that can be pickled.

    module, function: names that locate the kernel.
    dtypes, sizes: names of the dtypes of inputs and outputs, and their bytes, in the order of the
      kernel's arguments.
    constants: the kernel's other arguments.
    contents: by number of the argument, the integers of an array that the case determines.
    """

    module: str
    function: str
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    programs: int
    num_warps: int
    num_stages: int
    contents: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def kernel(self) -> Any:
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def name(self) -> str:
        """Form and kernel, such as "row backward"."""
        form = self.module.rpartition(".")[2].removeprefix("triton_")
        states = " states" * getattr(self.constants["CALL"], "ONLY_STATES", False)
        return f"{form} {self.function.removesuffix('_kernel').replace('_', ' ')}{states}"

    @property
    def tile(self) -> str:
        """Such as "64x64*8": queries, keys, and batch rows of a program if there are several.

        Linear attention has only the length of a chunk.
        """
        call = self.constants["CALL"]
        sides = [getattr(call, name, None) for name in ("BLOCK_T", "BLOCK_S")]
        size = "x".join(str(side) for side in sides if side)
        return size + (f"*{call.ROWS}" if call.ROWS > 1 else "")


def launches(variant: Variant, platform: str, capability: int | None) -> list[Launch]:
    """Launches of a case and its gradient, traced for any machine."""
    case = CASES[variant.workload]._replace(option=variant.option)
    return launches_of(case, platform, capability, variant.device)


def launches_of(
    case: Case, platform: str, capability: int | None, device: str = ""
) -> list[Launch]:
    """As `launches`, of a case that may have no name."""
    found: dict[str, Launch] = {}

    def record(kernel, programs, inputs, outputs, constants, *, num_warps, num_stages):
        pointers = {**inputs, **outputs}
        names = [name for name in kernel.arg_names if name in pointers]
        arrays = [pointers[name] for name in names]
        dtypes = tuple(jnp.dtype(array.dtype).name for array in arrays)
        sizes = tuple(array.size * jnp.dtype(array.dtype).itemsize for array in arrays)
        contents = ()
        if case.lengths is not None:
            contents = ((names.index("key_lengths"), tuple(case.lengths.tolist())),)
        made = Launch(
            kernel.fn.__module__, kernel.fn.__name__, dtypes, sizes, constants, programs,
            num_warps, num_stages, contents,
        )  # fmt: skip
        # JAX traces the forward pass more than once.
        found[repr(made)] = made
        return {name: jnp.zeros(out.shape, out.dtype) for name, out in outputs.items()}

    with (
        targeting(platform, capability, device),
        jax.default_matmul_precision(SINGLE.get(case.option)),
        mock.patch.object(attention_triton, "triton_call", record),
        mock.patch.object(linear_triton, "triton_call", record),
    ):
        trace(case)
    return list(found.values())


def trace(case: Case) -> None:
    """Traces the op's Triton form and its gradient, without running anything."""
    function, shapes = case.call(implementation="triton")
    moving = {n: shape for n, shape in shapes.items() if jnp.issubdtype(shape.dtype, jnp.floating)}

    def both(moving, others):
        out, pull_back = jax.vjp(lambda moving: function(**moving, **others), moving)
        return out, pull_back(out)

    jax.clear_caches()  # a cached trace would make no call
    # Tracing asks whether jax-triton is installed, although only lowering needs it.
    with mock.patch.object(triton_call, "_is_installed", lambda package: True):
        jax.eval_shape(both, moving, {name: shapes[name] for name in shapes if name not in moving})


def tuned_devices() -> dict[str, int]:
    """Compute capabilities of the devices that have a table of launches, by name.

    Raises:
      RuntimeError: that of a device is not known, so its launches cannot be compiled.
    """
    found = {}
    for path in sorted(launch.TABLES.glob("*.json")):
        known = [CAPABILITIES[part] for part in path.stem.split("-") if part in CAPABILITIES]
        if not known:
            raise RuntimeError(f"add the compute capability of {path.stem} to CAPABILITIES")
        found[path.stem] = known[0]
    return found
