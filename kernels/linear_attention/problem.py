"""A call of linear attention: arrays with one batch axis, and options fixed at tracing.

Linear attention and the delta rule are one recurrence of a state `S [H, V]` for each head,

    S_t = exp(log_decay_t) S_{t-1} + k_t u_t^T,    out_t = scale * S_t^T q_t,

where u_t is the value v_t, or with the delta rule beta_t (v_t - exp(log_decay_t) S_{t-1}^T k_t).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..wiring import batch_rows


class Operands(NamedTuple):
    """The arrays of a call; a batch axis of 1 stands for all batch rows.

    query: `[B, T, N, H]`.
    key: `[B, S, N, H]`, with S equal to T if causal.
    value: `[B, S, N, V]`.
    beta: `[B or 1, S, N]`, which makes the call a delta rule, or None.
    log_decay: `[B or 1, S, N]`, or None.
    key_lengths: int32 `[B or 1]`, or None; steps at or past it leave the state as it is.
    initial_state: `[B or 1, N, H, V]`, or None; `[B or 1, N, H, V + 1]` if normalised.

    A gradient has these fields too, with None for arrays that are not floating point.
    """

    query: Any
    key: Any
    value: Any
    beta: Any = None
    log_decay: Any = None
    key_lengths: Any = None
    initial_state: Any = None


class Result(NamedTuple):
    """out: `[B, T, N, V]` in the query's dtype.

    state: float32 (float64 for float64) `[B, N, H, V]`, or `[B, N, H, V + 1]` if normalised,
      whose last column is the decayed sum of the keys; None unless asked for.
    """

    out: Any
    state: Any = None


@dataclass(frozen=True)
class Problem:
    """Options fixed when a call is traced.

    scale: factor of `q k^T`.
    is_causal: a query sees the state after its own step; otherwise after the last one.
    normalize: the output is divided by the sum of its weights.
    returns_state: whether the state after the last step is returned.
    precision: JAX's default_matmul_precision; None keeps float32 products exact.
    segments: parts of a row that kernels take at once, or None if that is still to be chosen. It
      is chosen before vmap adds rows, since what is saved for the backward pass depends on it.
    """

    scale: float
    is_causal: bool = True
    normalize: bool = False
    returns_state: bool = False
    precision: str | None = None
    segments: int | None = None


class Dimensions(NamedTuple):
    """Sizes of a call: batch, queries, keys, heads, features of a key and of a value."""

    B: int
    T: int
    S: int
    N: int
    H: int
    V: int

    @classmethod
    def of(cls, operands: Operands) -> "Dimensions":
        batch = batch_rows(operands)
        _, length, heads, width = operands.query.shape
        return cls(batch, length, operands.key.shape[1], heads, width, operands.value.shape[-1])
