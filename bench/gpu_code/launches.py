"""The kernel launches that the library makes, found by tracing it without running anything."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from icl.kernels import dot_product_attention, packed_dot_product_attention, targeting
from icl.kernels.attention import launch, triton
from icl.kernels.attention.workloads import WORKLOADS, Workload

# A row of one tile and one warp, one of a whole block, one of several blocks, and the tiled form.
OPTION_WORKLOADS = ("tiny-causal", "garg", "medium-full", "long-causal")
# Options that are about float32, and JAX's default_matmul_precision for each.
SINGLE = {"float32": None, "tf32": "tensorfloat32", "tf32x3": "high", "float32 wide": None}
OPTIONS = (
    "bias", "batch bias", "mask", "lengths", "window", "grouped", "packed", "float16", "wide",
    *SINGLE,
)  # fmt: skip
WIDE = 256  # features of a head, the most that there may be
CAPABILITIES = {"a100": 80, "h100": 90, "h200": 90, "gh200": 90, "b200": 100, "gb200": 100}


class Case(NamedTuple):
    """A named workload, with one of `OPTIONS` or none; a tuned table's device, or the heuristic."""

    workload: str
    option: str = ""
    device: str = ""


@dataclass(frozen=True)
class Launch:
    """What `triton_call` is given, in a form that another process can take.

    module, function: where the kernel is.
    dtypes: names of the dtypes of inputs and outputs, in the order of the kernel's arguments.
    constants: the other arguments.
    """

    module: str
    function: str
    dtypes: tuple[str, ...]
    constants: dict[str, Any]
    programs: int
    num_warps: int
    num_stages: int

    @property
    def kernel(self) -> Any:
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def name(self) -> str:
        """As "row backward"."""
        form = self.module.rpartition(".")[2].removeprefix("triton_")
        return f"{form} {self.function.removesuffix('_kernel').replace('_', ' ')}"

    @property
    def tile(self) -> str:
        """As "64x64*8": queries, keys, and batch rows of a program where there are several."""
        rows = self.constants.get("ROWS", 1)
        size = f"{self.constants['BLOCK_T']}x{self.constants['BLOCK_S']}"
        return size + (f"*{rows}" if rows > 1 else "")


def launches(case: Case, platform: str, capability: int | None) -> list[Launch]:
    """Those of attention and of its gradient, as traced for a machine that need not be here."""
    found: dict[str, Launch] = {}

    def record(kernel, programs, inputs, outputs, constants, *, num_warps, num_stages):
        dtypes = tuple(jnp.dtype(array.dtype).name for array in (*inputs, *outputs))
        made = Launch(
            kernel.fn.__module__, kernel.fn.__name__, dtypes, constants, programs, num_warps,
            num_stages,
        )  # fmt: skip
        # JAX traces the forward pass more than once.
        found[repr(made)] = made
        return [jnp.zeros(out.shape, out.dtype) for out in outputs]

    function, arguments = attention_gradient(WORKLOADS[case.workload], case.option)
    jax.clear_caches()  # a trace that JAX remembers would make no call
    with (
        targeting(platform, capability, case.device),
        jax.default_matmul_precision(SINGLE.get(case.option)),
        mock.patch.object(triton, "triton_call", record),
    ):
        jax.eval_shape(function, *arguments)
    return list(found.values())


def attention_gradient(workload: Workload, option: str) -> tuple[Callable, tuple]:
    """A function that runs attention forward and backward, and the shapes of its arguments."""
    batch, length, heads, width, is_causal = workload
    width = WIDE if option.endswith("wide") else width
    dtype = jnp.dtype(
        "float32" if option in SINGLE else "float16" if option == "float16" else "bfloat16"
    )
    array = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype)
    attend = packed_dot_product_attention if option == "packed" else dot_product_attention
    key_heads = max(1, heads // 4) if option == "grouped" else heads
    tensors = (
        (array(batch, length, 3, heads, width),)
        if option == "packed"
        else (
            array(batch, length, heads, width),
            array(batch, length, key_heads, width),
            array(batch, length, key_heads, width),
        )
    )
    bias, extras = None, {}
    static: dict[str, Any] = dict(is_causal=is_causal, implementation="triton")
    if option == "bias":
        bias = array(heads, length, length, dtype=jnp.float32)
    elif option == "batch bias":
        bias = array(batch, heads, length, length)
    elif option == "mask":
        extras["mask"] = array(batch, 1, length, length, dtype=jnp.bool_)
    elif option == "lengths":
        for name in ("query_seq_lengths", "key_value_seq_lengths"):
            extras[name] = array(batch, dtype=jnp.int32)
    elif option == "window":
        static["local_window_size"] = (length // 4, length // 4)

    def gradient(tensors, bias, extras):
        call = lambda tensors, bias: attend(*tensors, bias=bias, **extras, **static)
        out, pull_back = jax.vjp(call, tensors, bias)
        return out, pull_back(out)

    return gradient, (tensors, bias, extras)


def tuned_devices() -> dict[str, int]:
    """Names of devices for which a table of launches ships, and their compute capabilities."""
    names = [path.stem for path in sorted(launch.TABLES.glob("*.json"))]
    return {
        name: CAPABILITIES[part]
        for name in names
        for part in name.split("-")
        if part in CAPABILITIES
    }
