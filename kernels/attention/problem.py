"""A call of attention: arrays with one batch axis, and options fixed at tracing."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..wiring import batch_rows


class Operands(NamedTuple):
    """The arrays of a call; a batch axis of 1 stands for all batch rows.

    query: `[B, T, N, H]`; or query, key and value packed, `[B, T, 3, N, H]`, without key and value.
    key, value: `[B, S, K, H]`.
    bias: `[B or 1, N or 1, T or 1, S or 1]`, or None.
    mask: boolean, as bias.
    query_lengths, key_lengths: int32 `[B or 1]`, or None.

    A gradient has these fields too, with None for arrays that are not floating point.
    """

    query: Any
    key: Any = None
    value: Any = None
    bias: Any = None
    mask: Any = None
    query_lengths: Any = None
    key_lengths: Any = None

    @property
    def is_packed(self) -> bool:
        return self.key is None


@dataclass(frozen=True)
class Problem:
    """Options fixed when a call is traced.

    scale: factor of the scores.
    window: numbers of positions that a query sees before and after its own, or None.
    precision: JAX's default_matmul_precision; None keeps float32 products exact.
    bias_rows: batch rows over which a program of the row form adds up the bias's gradient.
    """

    scale: float
    is_causal: bool = False
    window: tuple[int, int] | None = None
    precision: str | None = None
    bias_rows: int = 1

    @property
    def left(self) -> int | None:
        return None if self.window is None else self.window[0]

    @property
    def right(self) -> int | None:
        return None if self.window is None or self.is_causal else self.window[1]


class Dimensions(NamedTuple):
    """Sizes of a call, by JAX's letters: batch, queries, keys, heads, key heads, head dim."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int

    @classmethod
    def of(cls, operands: Operands) -> "Dimensions":
        batch = batch_rows(operands)
        if operands.is_packed:
            _, length, _, heads, width = operands.query.shape
            return cls(batch, length, length, heads, heads, width)
        _, length, heads, width = operands.query.shape
        _, key_length, key_heads, _ = operands.key.shape
        return cls(batch, length, key_length, heads, key_heads, width)


def unpack(operands: Operands) -> Operands:
    """Operands with query, key and value as three arrays."""
    if not operands.is_packed:
        return operands
    query, key, value = (operands.query[:, :, i] for i in range(3))
    return operands._replace(query=query, key=key, value=value)


def pack(gradient: Operands) -> Operands:
    """Undoes `unpack` for a gradient."""
    packed = jnp.stack([gradient.query, gradient.key, gradient.value], axis=2)
    return gradient._replace(query=packed, key=None, value=None)


def hides(problem: Problem, operands: Operands) -> bool:
    """Whether a query may be kept from seeing a key."""
    return problem.is_causal or may_blind(problem, operands)


def may_blind(problem: Problem, operands: Operands) -> bool:
    """Whether a query may see no key at all; causality alone leaves it the first."""
    extras = (problem.window, operands.mask, operands.query_lengths, operands.key_lengths)
    return any(extra is not None for extra in extras)
