"""Results and gradients of each op by its definition, in float64 with NumPy.

Each definition takes `is_causal`, the inputs by name with the shapes of `Case.shapes`, and the
output's cotangent `d_out [B, T, N, H]`; attention also takes `lengths [B]`, the numbers of keys
that are seen, or None. It returns the output `out` and the gradient `d_<name>` of each input.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def by_head(of_head: Callable[..., Iterator[np.ndarray]]) -> Callable[..., Arrays]:
    """Makes a definition from one of a single head, which yields its results in order."""

    def definition(
        is_causal: bool, inputs: Arrays, d_out: np.ndarray, lengths: np.ndarray | None = None
    ) -> Arrays:
        results = {"out": np.empty_like(d_out)}
        results |= {f"d_{name}": np.empty_like(array) for name, array in inputs.items()}
        for b, n in np.ndindex(d_out.shape[0], d_out.shape[2]):
            head: dict[str, Any] = {name: array[b, :, n] for name, array in inputs.items()}
            if lengths is not None:
                head["seen"] = lengths[b]
            found = of_head(is_causal, d_out=d_out[b, :, n], **head)
            for result, one in zip(results.values(), found, strict=True):
                result[b, :, n] = one
        return results

    return definition


@by_head
def attention(is_causal, query, key, value, d_out, seen=None):
    """Softmax attention to the first `seen` keys, all if None."""
    scale = query.shape[-1] ** -0.5
    scores = scale * query @ key.T
    if is_causal:
        scores[~np.tri(len(query), dtype=bool)] = -np.inf
    if seen is not None:
        scores[:, seen:] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = d_out @ value.T
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
    yield weights @ value
    yield scale * d_scores @ key
    yield scale * d_scores.T @ query
    yield weights.T @ d_out


def packed_attention(
    is_causal: bool, inputs: Arrays, d_out: np.ndarray, lengths: np.ndarray | None = None
) -> Arrays:
    """Softmax attention of `qkv [B, T, 3, N, H]`."""
    names = ("query", "key", "value")
    apart = dict(zip(names, np.moveaxis(inputs["qkv"], 2, 0)))
    found = attention(is_causal, apart, d_out, lengths)
    return {"out": found["out"], "d_qkv": np.stack([found[f"d_{name}"] for name in names], axis=2)}


@by_head
def recurrence(is_causal, query, key, value, d_out, beta=None, log_decay=None):
    """Linear attention, or the delta rule if beta is given, step by step if causal.

    `icl.kernels.linear_attention.problem` has the formulas.
    """
    length, width = query.shape
    scale = width**-0.5
    if not is_causal:
        state, d_state = scale * key.T @ value, scale * query.T @ d_out
        yield from (query @ state, d_out @ state.T, value @ d_state.T, key @ d_state)
        return
    keep = np.ones(length) if log_decay is None else np.exp(log_decay)
    states, added = np.zeros((length + 1, width, width)), value.copy()
    for t in range(length):
        decayed = keep[t] * states[t]
        if beta is not None:
            added[t] = beta[t] * (value[t] - key[t] @ decayed)
        states[t + 1] = decayed + np.outer(key[t], added[t])
    yield scale * np.einsum("thv,th->tv", states[1:], query)
    yield scale * np.einsum("thv,tv->th", states[1:], d_out)
    d_key, d_value = np.empty_like(key), np.empty_like(value)
    d_beta, d_log_decay, d_state = np.empty(length), np.empty(length), np.zeros((width, width))
    for t in reversed(range(length)):
        decayed = keep[t] * states[t]
        d_state = d_state + scale * np.outer(query[t], d_out[t])
        d_key[t], d_value[t] = d_state @ added[t], key[t] @ d_state
        if beta is not None:
            d_beta[t] = d_value[t] @ (value[t] - key[t] @ decayed)
            d_value[t] *= beta[t]
            d_key[t] -= decayed @ d_value[t]
            d_state = d_state - np.outer(key[t], d_value[t])
        d_log_decay[t] = (d_state * decayed).sum()
        d_state = keep[t] * d_state
    yield from (d_key, d_value)
    if log_decay is not None:
        yield d_log_decay
    if beta is not None:
        yield d_beta
