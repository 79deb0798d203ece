"""The ops that are compared: what each takes, what is right, and who computes it. Needs NumPy."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(1, str(ROOT))  # this checkout, installed or not

from icl.kernels.attention import workloads as attention  # noqa: E402
from icl.kernels.linear_attention import workloads as linear  # noqa: E402

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Op:
    """An op as a workload calls it.

    name: as in `icl.kernels`.
    family: part of the name of the results' file.
    contestants: names by platform and framework; `ours` is the implementation that a call takes
      when it names none.
    yardstick: by platform, whose errors ours are measured by, and how many times as large they may
      be; a peer's twice that.
    expected: `(is_causal, arrays)` to the results by name, as `attention_by_definition`.
    extra: the name of the input `[B, T, N]` beside query, key and value, or None.
    unit_keys: keys have length 1.
    heads_first: PyTorch's arrays are `[B, N, T, H]`, as its functions like them best.
    """

    name: str
    family: str
    contestants: dict[str, dict[str, tuple[str, ...]]]
    yardstick: dict[str, tuple[str, int]]
    expected: Callable[[bool, Sequence[np.ndarray]], dict[str, np.ndarray]]
    extra: str | None = None
    unit_keys: bool = False
    heads_first: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("query", "key", "value", *([self.extra] if self.extra else []))

    def results(self, direction: str) -> tuple[str, ...]:
        return ("out", *(f"d_{name}" for name in self.inputs if direction == BOTH))

    def shapes(self, workload: Any) -> list[tuple[int, ...]]:
        """Of the inputs and the output's cotangent, batch, length and heads first."""
        wide = (workload.B, workload.T, workload.N, workload.H)
        return [wide, wide, wide, *([wide[:3]] if self.extra else []), wide]

    def draw(self, normals: Sequence[Any]) -> list[Any]:
        """The inputs and the cotangent from normal numbers, of whichever framework."""
        query, key, *rest = normals
        if self.unit_keys:
            key = key / (key * key).sum(-1)[..., None] ** 0.5
        if self.extra == "beta":
            rest[1] = 1 / (1 + math.e ** -rest[1])
        if self.extra == "log_decay":
            rest[1] = -0.1 * rest[1] * rest[1]
        return [query, key, *rest]

    def work(self, workload: Any, direction: str, itemsize: int) -> tuple[int, int]:
        """Fewest bytes to move, and operations in the products that must be done."""
        ways = (False, True) if direction == BOTH else (False,)
        bytes_ = sum(workload.bytes(backward, itemsize) for backward in ways)
        if self.extra:
            # Read forward; read again and its gradient written backward.
            bytes_ += (2 * len(ways) - 1) * workload.B * workload.T * workload.N * itemsize
        delta = {"is_delta": True} if self.extra == "beta" else {}
        return bytes_, sum(workload.flops(backward, **delta) for backward in ways)


def attention_by_definition(is_causal: bool, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Attention and its gradients.

    Args:
      arrays: query, key, value and the output's cotangent, float64 `[B, T, N, H]`.

    Returns:
      By the names of `Op.results`, float64 `[B, T, N, H]`.
    """
    scale = arrays[0].shape[-1] ** -0.5
    names = ("out", "d_query", "d_key", "d_value")
    results = {name: np.empty_like(arrays[0]) for name in names}
    length = arrays[0].shape[1]
    hidden = ~np.tri(length, dtype=bool)
    for b, n in np.ndindex(arrays[0].shape[0], arrays[0].shape[2]):
        q, k, v, d_out = (array[b, :, n] for array in arrays)
        scores = scale * q @ k.T
        if is_causal:
            scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        d_weights = d_out @ v.T
        d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
        results["out"][b, :, n] = weights @ v
        results["d_query"][b, :, n] = scale * d_scores @ k
        results["d_key"][b, :, n] = scale * d_scores.T @ q
        results["d_value"][b, :, n] = weights.T @ d_out
    return results


def recurrence_by_definition(
    extra: str | None, is_causal: bool, arrays: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Linear attention or the delta rule, and their gradients, step by step.

    Args:
      extra: "beta", "log_decay" or None.
      arrays: float64; query, key, value `[B, T, N, H]`, the extra one `[B, T, N]`, the cotangent.

    Returns:
      As `attention_by_definition`, with the gradient of the extra input too.
    """
    names = ["query", "key", "value", *([extra] if extra else [])]
    results = {"out": np.empty_like(arrays[0])}
    results |= {f"d_{name}": np.empty_like(array) for name, array in zip(names, arrays)}
    for b, n in np.ndindex(arrays[0].shape[0], arrays[0].shape[2]):
        one = [array[b, :, n] for array in arrays]
        found = _steps(extra, *one) if is_causal else _all_at_once(*one)
        for name, result in zip(results, found, strict=True):
            results[name][b, :, n] = result
    return results


def _steps(extra: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
    """The causal recurrence of a head; see `icl.kernels.linear_attention.problem`."""
    q, k, v, *more, d_out = arrays
    length, width = q.shape
    scale = width**-0.5
    beta = more[0] if extra == "beta" else None
    keep = np.exp(more[0]) if extra == "log_decay" else np.ones(length)
    states, added = np.zeros((length + 1, width, width)), v.copy()
    for t in range(length):
        decayed = keep[t] * states[t]
        if beta is not None:
            added[t] = beta[t] * (v[t] - k[t] @ decayed)
        states[t + 1] = decayed + np.outer(k[t], added[t])
    out = scale * np.einsum("thv,th->tv", states[1:], q)
    d_q = scale * np.einsum("thv,tv->th", states[1:], d_out)
    d_k, d_v, d_extra = np.empty_like(k), np.empty_like(v), np.empty(length)
    d_state = np.zeros((width, width))
    for t in reversed(range(length)):
        decayed = keep[t] * states[t]
        d_state = d_state + scale * np.outer(q[t], d_out[t])
        d_k[t], d_v[t] = d_state @ added[t], k[t] @ d_state
        if beta is not None:
            d_extra[t] = d_v[t] @ (v[t] - k[t] @ decayed)
            d_v[t] *= beta[t]
            d_k[t] -= decayed @ d_v[t]
            d_state = d_state - np.outer(k[t], d_v[t])
        else:
            d_extra[t] = (d_state * decayed).sum()
        d_state = keep[t] * d_state
    return [out, d_q, d_k, d_v, *([d_extra] if extra else [])]


def _all_at_once(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray
) -> list[np.ndarray]:
    scale = q.shape[-1] ** -0.5
    state, d_state = scale * k.T @ v, scale * q.T @ d_out
    return [q @ state, d_out @ state.T, v @ d_state.T, k @ d_state]


def _recurrent(name: str, extra: str | None, peers: tuple[str, ...]) -> Op:
    return Op(
        name,
        "kernels-linear-attention",
        {
            "cpu": {"jax": ("ours", "xla", "reference"), "torch": ("torch-chunked",)},
            "cuda": {"jax": ("ours", "triton", "xla"), "torch": ("torch-chunked", *peers)},
        },
        # Whoever takes a chunk at once has differences of sums where single steps have none.
        {"cpu": ("reference", 4), "cuda": ("xla", 2)},
        lambda is_causal, arrays: recurrence_by_definition(extra, is_causal, arrays),
        extra,
        unit_keys=extra == "beta",
    )


ATTENTION = Op(
    "dot_product_attention",
    "kernels",
    {
        "cpu": {"jax": ("ours", "xla", "reference", "jax-xla"), "torch": ("torch-sdpa",)},
        "cuda": {
            "jax": ("ours", "triton", "xla", "jax-cudnn", "jax-xla", "tokamax"),
            "torch": ("torch-sdpa", "torch-flex"),
        },
    },
    {"cpu": ("jax-xla", 2), "cuda": ("jax-xla", 2)},
    attention_by_definition,
    heads_first=True,
)
LINEAR = _recurrent("linear_attention", None, ("fla",))
DECAY = _recurrent("linear_attention", "log_decay", ("fla",))
DELTA = _recurrent("delta_rule", "beta", ("fla",))

CASES: dict[str, tuple[Op, Any]] = {name: (ATTENTION, w) for name, w in attention.WORKLOADS.items()}
CASES |= {f"linear-{name}": (LINEAR, w) for name, w in linear.WORKLOADS.items()}
CASES["decay-short"] = (DECAY, linear.WORKLOADS["short"])
CASES |= {f"delta-{name}": (DELTA, w) for name, w in linear.WORKLOADS.items() if w.is_causal}


def contestants(name: str, platform: str, framework: str | None = None) -> tuple[str, ...]:
    """Of a case, those of one framework or all."""
    by_framework = CASES[name][0].contestants[platform]
    return by_framework[framework] if framework else sum(by_framework.values(), ())
