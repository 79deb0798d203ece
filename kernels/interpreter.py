"""Runs Triton kernels on the CPU through Triton's own interpreter, without PyTorch.

Needs `TRITON_INTERPRET=1` before Triton is imported; `triton_call` sets it. Outputs start as NaN,
so that an entry which a kernel does not write shows.
"""

import contextlib
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from triton.runtime import interpreter as triton_interpreter

_LOCK = threading.Lock()
_BUILDER = triton_interpreter.interpreter_builder


class _Tensor:
    """The part of torch.Tensor that the interpreter uses, over NumPy's memory."""

    def __init__(self, array: Any = None):
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    @property
    def dtype(self) -> str:
        return str(self.array.dtype)

    def untyped_storage(self) -> "_Tensor":
        return self

    def cpu(self) -> "_Tensor":
        return self

    def new_empty(self, *_: Any, **__: Any) -> "_Tensor":
        return _Tensor()

    def set_(self, storage: "_Tensor", *_: Any) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides

    def copy_(self, _: "_Tensor") -> None:
        pass


@dataclass
class Traffic:
    """Bytes that kernels loaded and stored, and operations in their products."""

    loaded: int = 0
    stored: int = 0
    dot_flops: int = 0


_traffic: Traffic | None = None


@contextlib.contextmanager
def counting() -> Generator[Traffic, None, None]:
    """Counts the traffic of the kernels that run inside, from one thread at a time."""
    global _traffic
    _traffic = Traffic()
    try:
        yield _traffic
    finally:
        _traffic = None


def interpret(
    kernel: Any,
    programs: int,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    constants: Mapping[str, Any],
) -> tuple[np.ndarray, ...]:
    """Runs a kernel's programs one after the other; see `triton_call`."""
    arrays = [np.ascontiguousarray(array) for array in inputs]
    results = [np.full(out.shape, _unwritten(out.dtype), out.dtype) for out in outputs]
    tensors = [_Tensor(array) for array in (*arrays, *results)]
    # The interpreter keeps the program's index in a global.
    with _LOCK, np.errstate(all="ignore"):
        kernel[(programs,)](*tensors, **constants)
    return tuple(results)


def _unwritten(dtype: Any) -> Any:
    return np.nan if jnp.issubdtype(dtype, jnp.floating) else 0


def _float32(handle: Any) -> np.ndarray:
    if handle.dtype.scalar == triton_interpreter.tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _dot(a: Any, b: Any, accumulator: Any, *_: Any) -> Any:
    """A product; the interpreter's own multiplies bfloat16 as the uint16 that hold it."""
    if _traffic is not None:
        _traffic.dot_flops += 2 * a.data.shape[-2] * a.data.shape[-1] * b.data.shape[-1]
    dtype = accumulator.data.dtype
    product = np.matmul(_float32(a).astype(dtype), _float32(b).astype(dtype))
    return triton_interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)


def _rounding(original: Any) -> Any:
    """Casts of float32 to bfloat16 round to nearest, as a GPU does; the interpreter truncates."""
    language = triton_interpreter.tl

    def cast(source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) == (language.float32, language.bfloat16):
            data = source.data.astype(jnp.bfloat16).view(np.uint16)
            return triton_interpreter.TensorHandle(data, language.bfloat16)
        return original(source, target)

    return cast


def _counted(original: Any, field: str) -> Any:
    def call(pointers: Any, *args: Any) -> Any:
        if _traffic is not None:
            # A load is (mask, other, ...), a store (value, mask, ...).
            mask = args[0] if field == "loaded" else args[1]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            setattr(_traffic, field, getattr(_traffic, field) + int(mask.data.sum()) * size)
        return original(pointers, *args)

    return call


_BUILDER.create_dot = _dot
_BUILDER.cast_impl = _rounding(_BUILDER.cast_impl)
_BUILDER.create_masked_load = _counted(_BUILDER.create_masked_load, "loaded")
_BUILDER.create_masked_store = _counted(_BUILDER.create_masked_store, "stored")
