"""The ops that are timed and checked: their inputs, definitions and contestants.

This module makes no JAX array, so that processes of other frameworks can import it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icl import kernels
from icl.kernels.attention.workloads import WORKLOADS as ATTENTION_WORKLOADS
from icl.kernels.linear_attention.workloads import WORKLOADS as LINEAR_WORKLOADS

from . import definitions
from .definitions import Arrays

FORWARD, BOTH = DIRECTIONS = ("forward", "forward+backward")
OURS = ("ours", "triton", "xla", "reference")
PEERS = (
    "jnp",
    "jax-cudnn",
    "jax-xla",
    "tokamax",
    "torch-sdpa",
    "torch-flex",
    "torch-chunked",
    "fla",
)
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
# JAX's default_matmul_precision by option, for the options that compute in float32.
SINGLE = {"float32": None, "tf32": "tensorfloat32", "tf32x3": "high", "float32 wide": None}

Shape = jax.ShapeDtypeStruct
Shapes = dict[str, Shape]


@dataclass(frozen=True, eq=False)
class Op:
    """A public op of `icl.kernels`.

    function: the op itself.
    arguments: a function from `(workload, dtype, option, width)` to the shapes of the op's arrays
      and its other keywords.
    definition: a function of `definitions`.
    contestants: names by platform and framework; `ours` is the implementation that the op chooses
      by default.
    yardstick: by platform, the contestant whose errors limit ours, and the largest ratio of our
      errors to its errors; for a peer the limit is twice as large.
    heads_first: whether PyTorch's functions take `[B, N, T, H]`, which is fastest for them.
    options: options with which the GPU code check compiles kernels, one at a time, and the cases
      that it compiles so.
    widest: largest number of features of a head.
    most_bytes: largest ratio of bytes moved to the fewest possible, in the row form.
    most_flops: largest ratio of operations to those of all pairs, in a row form that fills its
      tiles; None for no limit.
    """

    function: Callable
    arguments: Callable[[Any, Any, str, int], tuple[Shapes, dict[str, Any]]]
    definition: Callable[..., Arrays]
    contestants: dict[str, dict[str, tuple[str, ...]]]
    yardstick: dict[str, tuple[str, int]]
    heads_first: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    widest: int = 128
    most_bytes: float = 1.1
    most_flops: float | None = None

    @property
    def name(self) -> str:
        return self.function.__name__


class Case(NamedTuple):
    """An op at a workload, with one of the op's options or none."""

    op: Op
    workload: Any
    option: str = ""

    def call(self, dtype: str = "bfloat16", **static: Any) -> tuple[Callable[..., Any], Shapes]:
        """The op as a function of its arrays by keyword, and the arrays' shapes.

        Args:
          dtype: dtype of the tensors, unless the option sets another.
          static: further keywords of the op.
        """
        single = "float32" if self.option in SINGLE else dtype
        own = jnp.dtype("float16" if self.option == "float16" else single)
        width = self.op.widest if self.option.endswith("wide") else self.workload.H
        shapes, keywords = self.op.arguments(self.workload, own, self.option, width)
        function = kernels.packed_dot_product_attention if "qkv" in shapes else self.op.function
        return functools.partial(function, **keywords, **static), shapes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs and of the output's cotangent `d_out`, `[B, T, N, ...]`."""
        wide = self.workload[:4]
        return {name: array.shape for name, array in self.call()[1].items()} | {"d_out": wide}

    def draw(self, normals: dict[str, Any]) -> list[Any]:
        """Inputs and cotangent from normal numbers of these `shapes`, in any framework's arrays."""
        drawn = dict(normals)
        if "beta" in drawn:
            drawn["key"] = drawn["key"] / (drawn["key"] ** 2).sum(-1)[..., None] ** 0.5
            drawn["beta"] = 1 / (1 + math.e ** -drawn["beta"])
        if "log_decay" in drawn:
            drawn["log_decay"] = -0.1 * drawn["log_decay"] ** 2
        return list(drawn.values())

    @property
    def lengths(self) -> np.ndarray | None:
        """The number of keys that each batch row sees, int32 `[B]`; None if all are seen."""
        return getattr(self.workload, "lengths", None)

    @property
    def shape(self) -> dict[str, Any]:
        """The workload's settings by name, without those that are None."""
        return {name: v for name, v in self.workload._asdict().items() if v is not None}

    def hidden_bytes(self, itemsize: int) -> int:
        """Bytes of the keys and values that no query sees."""
        if self.lengths is None:
            return 0
        _, length, heads, width = self.workload[:4]
        return 2 * itemsize * heads * width * int((length - self.lengths).sum())

    def expected(self, arrays: list[np.ndarray], rows: list[int]) -> Arrays:
        """The results by definition, for these batch rows of `draw`'s arrays, in float64."""
        *inputs, d_out = arrays
        given: Arrays = {} if self.lengths is None else {"lengths": self.lengths[rows]}
        inputs = dict(zip(self.shapes(), inputs))
        return self.op.definition(self.workload.is_causal, inputs, d_out, **given)

    def flops(self, is_backward: bool) -> int:
        """Operations of the necessary products in one pass."""
        delta = {"is_delta": True} if self.op.function is kernels.delta_rule else {}
        return self.workload.flops(is_backward, **delta)

    def work(self, direction: str, itemsize: int) -> tuple[int, int]:
        """Fewest bytes to move, and operations, in one direction.

        The forward pass reads the inputs, without hidden keys and values, and writes the output.
        The backward pass reads these inputs and the cotangent, and writes the gradients.
        """
        *inputs, out = (itemsize * math.prod(shape) for shape in self.shapes().values())
        read = sum(inputs) - self.hidden_bytes(itemsize)
        if direction == FORWARD:
            return read + out, self.flops(False)
        return 2 * read + sum(inputs) + 2 * out, self.flops(False) + self.flops(True)


def _attention(workload: Any, own: Any, option: str, width: int) -> tuple[Shapes, dict[str, Any]]:
    batch, length, heads = workload[:3]
    wide = lambda heads: Shape((batch, length, heads, width), own)
    keys = wide(max(1, heads // 4) if option == "grouped" else heads)
    shapes = {"query": wide(heads), "key": keys, "value": keys}
    static: dict[str, Any] = dict(is_causal=workload.is_causal)
    if workload.lengths is not None:
        static["key_value_seq_lengths"] = workload.lengths
    if option == "packed":
        shapes = {"qkv": Shape((batch, length, 3, heads, width), own)}
    elif option == "bias":
        shapes["bias"] = Shape((heads, length, length), jnp.float32)
    elif option == "batch bias":
        shapes["bias"] = Shape((batch, heads, length, length), own)
    elif option == "mask":
        shapes["mask"] = Shape((batch, 1, length, length), jnp.bool_)
    elif option == "lengths":
        lengths = Shape((batch,), jnp.int32)
        shapes |= {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    elif option == "window":
        static["local_window_size"] = (length // 4, length // 4)
    return shapes, static


def _packed(workload: Any, own: Any, option: str, width: int) -> tuple[Shapes, dict[str, Any]]:
    return _attention(workload, own, "packed", width)


def _recurrence(workload: Any, own: Any, option: str, width: int) -> tuple[Shapes, dict[str, Any]]:
    batch, length, heads = workload[:3]
    tensor, numbers = Shape((batch, length, heads, width), own), (batch, length, heads)
    shapes, static = {"query": tensor, "key": tensor, "value": tensor}, {}
    if option in ("decay", "everything") and workload.is_causal:
        shapes["log_decay"] = Shape(numbers, jnp.float32)
    if option in ("state", "everything"):
        shapes["initial_state"] = Shape((batch, heads, width, width), jnp.float32)
        static["return_state"] = True
    return shapes, static


def _linear(workload: Any, own: Any, option: str, width: int) -> tuple[Shapes, dict[str, Any]]:
    shapes, static = _recurrence(workload, own, option, width)
    static["is_causal"] = workload.is_causal
    if option in ("normalize", "everything"):
        static["normalize"] = True
        if "initial_state" in shapes:  # a further column has the sum of keys
            *batch, state = shapes["initial_state"].shape
            shapes["initial_state"] = Shape((*batch, state + 1), jnp.float32)
    if option in ("lengths", "everything"):
        shapes["key_value_seq_lengths"] = Shape(workload[:1], jnp.int32)
    return shapes, static


def _delta(workload: Any, own: Any, option: str, width: int) -> tuple[Shapes, dict[str, Any]]:
    shapes, static = _recurrence(workload, own, option, width)
    return shapes | {"beta": Shape(workload[:3], jnp.float32)}, static


_attention_op = functools.partial(
    Op,
    contestants={
        "cpu": {"jax": ("ours", "reference", "jnp", "jax-xla"), "torch": ("torch-sdpa",)},
        "cuda": {
            "jax": ("ours", "triton", "xla", "jnp", "jax-cudnn", "jax-xla", "tokamax"),
            "torch": ("torch-sdpa", "torch-flex"),
        },
    },
    yardstick={"cpu": ("jax-xla", 2), "cuda": ("jax-xla", 2)},
    widest=256,
    most_bytes=1.05,
    most_flops=1.3,
)
_recurrent_op = functools.partial(
    Op,
    definition=definitions.recurrence,
    contestants={
        "cpu": {"jax": ("ours", "reference"), "torch": ("torch-chunked",)},
        "cuda": {"jax": ("ours", "triton", "xla"), "torch": ("torch-chunked", "fla")},
    },
    # Chunked forms subtract sums, which single steps do not, and so lose more digits.
    yardstick={"cpu": ("reference", 4), "cuda": ("xla", 2)},
)

ATTENTION = _attention_op(
    kernels.dot_product_attention,
    _attention,
    definitions.attention,
    heads_first=True,
    # Both forms, where an option has code of its own in both.
    options=dict.fromkeys(
        ("bias", "batch bias", "mask", "lengths", "window", "grouped", "packed"),
        ("garg", "long-causal"),
    )
    | dict.fromkeys(("float32", "tf32x3"), ("tiny-causal", "long-causal"))
    | {"float16": ("garg",), "tf32": ("long-causal",)}
    | dict.fromkeys(("wide", "float32 wide"), ("long-causal",)),
)
PACKED = _attention_op(kernels.packed_dot_product_attention, _packed, definitions.packed_attention)
LINEAR = _recurrent_op(
    kernels.linear_attention,
    _linear,
    options=dict.fromkeys(("decay", "state", "lengths", "normalize"), ("linear-long",))
    | {"everything": ("linear-short", "linear-oswald", "linear-long"), "float16": ("linear-short",)}
    | dict.fromkeys(("wide", "float32", "float32 wide"), ("linear-oswald", "linear-long"))
    | {"tf32": ("linear-short",), "tf32x3": ("linear-long",)},
)
DELTA = _recurrent_op(
    kernels.delta_rule,
    _delta,
    # Errors are saved, and read again by the backward pass, as keys are, mostly from a cache.
    most_bytes=1.6,
    options=dict.fromkeys(("decay", "state", "wide", "float32", "tf32x3"), ("delta-long",))
    | {"everything": ("delta-short", "delta-long"), "float32 wide": ("delta-tiny",)}
    | dict.fromkeys(("float16", "tf32"), ("delta-short",)),
)

CASES = {name: Case(ATTENTION, w) for name, w in ATTENTION_WORKLOADS.items()}
CASES |= {f"packed-{n}": Case(PACKED, ATTENTION_WORKLOADS[n]) for n in ("garg", "short-causal")}
CASES |= {f"linear-{name}": Case(LINEAR, w) for name, w in LINEAR_WORKLOADS.items()}
CASES["decay-short"] = Case(LINEAR, LINEAR_WORKLOADS["short"], "decay")
CASES |= {f"delta-{n}": Case(DELTA, w) for n, w in LINEAR_WORKLOADS.items() if w.is_causal}
# Cases that are timed on a CPU by default.
CPU_CASES: tuple[str, ...] = ("garg", "short-full", "chan", "oswald", "packed-garg")
CPU_CASES += ("linear-short", "linear-oswald", "decay-short", "delta-short")
