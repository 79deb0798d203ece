"""Linear attention and the delta rule in float64 NumPy, a head and a step at a time."""

import jax.numpy as jnp
import numpy as np

from icl.kernels.numerics import accumulation_dtype

from .implementations import on_device
from .oracle import sum_to


def recurrence(arrays, d_out=None, d_state=None, **options):
    """The output, the last state and the gradients, by the names of the arrays.

    Args:
      arrays: those of `linear_attention` or, with beta, `delta_rule`, with one batch axis.
      d_out, d_state: cotangents of the output and of the last state; without d_out no gradients.
      options: is_causal, normalize, scale and key_value_seq_lengths.
    """
    arrays = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    batch, length, heads, width = arrays["query"].shape
    key_length = arrays["key"].shape[1]
    columns = arrays["value"].shape[-1] + options.get("normalize", False)
    full = dict(
        beta=(batch, key_length, heads),
        log_decay=(batch, key_length, heads),
        initial_state=(batch, heads, width, columns),
    )
    whole = {name: np.broadcast_to(a, full.get(name, a.shape)) for name, a in arrays.items()}
    counts = options.get("key_value_seq_lengths")
    counts = [key_length] * batch if counts is None else np.asarray(counts)
    fixed = dict(
        causal=options.get("is_causal", True),
        normalize=options.get("normalize", False),
        scale=width**-0.5 if options.get("scale") is None else options["scale"],
    )
    found = dict(
        out=np.zeros((batch, length, heads, arrays["value"].shape[-1])),
        state=np.zeros(full["initial_state"]),
    )
    if d_out is not None:
        found |= {name: np.zeros(a.shape) for name, a in whole.items()}
    of_head = lambda array, b, n, is_state: array[b, n] if is_state else array[b, :, n]
    for b in range(batch):
        for n in range(heads):
            mine = {a: of_head(x, b, n, a == "initial_state") for a, x in whole.items()}
            head = _Head(mine, int(counts[b]), columns, **fixed)
            ours = dict(out=head.out, state=head.states[-1])
            if d_out is not None:
                d_last = 0 if d_state is None else np.asarray(d_state, np.float64)[b, n]
                ours |= head.gradients(np.asarray(d_out[b, :, n], np.float64), d_last)
            for name, array in found.items():
                of_head(array, b, n, name in ("state", "initial_state"))[...] = ours[name]
    return {name: sum_to(a, np.shape(arrays.get(name, a))) for name, a in found.items()}


class _Head:
    """One head of one batch row."""

    def __init__(self, arrays, steps, columns, causal, normalize, scale):
        self.query, self.key, self.value = (arrays[name] for name in ("query", "key", "value"))
        if normalize:
            self.value = np.concatenate([self.value, np.ones((len(self.value), 1))], axis=1)
        self.beta, self.log_decay = arrays.get("beta"), arrays.get("log_decay")
        self.steps, self.causal, self.normalize, self.scale = steps, causal, normalize, scale
        self.decay = np.ones(len(self.key))
        if self.log_decay is not None:
            self.decay = np.exp(self.log_decay)
        state = arrays.get("initial_state", np.zeros((self.key.shape[1], columns)))
        self.states, self.added = [state], []
        for t in range(steps):
            added = self.value[t]
            if self.beta is not None:
                added = self.beta[t] * (added - self.decay[t] * state.T @ self.key[t])
            state = self.decay[t] * state + np.outer(self.key[t], added)
            self.states.append(state)
            self.added.append(added)
        self.seen = [min(t + 1, steps) if causal else steps for t in range(len(self.query))]
        self.sums = np.zeros((len(self.query), columns))
        for t, s in enumerate(self.seen):
            self.sums[t] = scale * self.states[s].T @ self.query[t]
        self.out = self.sums
        if normalize:
            self.total = self.sums[:, -1:]
            self.divisor = np.where(self.total == 0, np.inf, self.total)
            self.out = self.sums[:, :-1] / self.divisor

    def gradients(self, d_out, d_state):
        d_sums = d_out
        if self.normalize:
            d_total = -(self.out * d_out).sum(1, keepdims=True) / self.divisor
            d_sums = np.concatenate([d_out / self.divisor, d_total], axis=1)
        d_query, d_key = np.zeros(self.query.shape), np.zeros(self.key.shape)
        d_value = np.zeros(self.value.shape)
        d_beta, d_log_decay = np.zeros(len(self.key)), np.zeros(len(self.key))
        d_states = [np.zeros(state.shape) for state in self.states]
        d_states[-1] += d_state
        for t, s in enumerate(self.seen):
            d_query[t] = self.scale * self.states[s] @ d_sums[t]
            d_states[s] += self.scale * np.outer(self.query[t], d_sums[t])
        for t in reversed(range(self.steps)):
            key, d_next = self.key[t], d_states[t + 1]
            decayed = self.decay[t] * self.states[t]
            d_added, d_decayed = d_next.T @ key, d_next
            d_key[t] = d_next @ self.added[t]
            d_value[t] = d_added
            if self.beta is not None:
                d_value[t] = self.beta[t] * d_added
                d_beta[t] = d_added @ (self.value[t] - decayed.T @ key)
                d_key[t] -= decayed @ d_value[t]
                d_decayed = d_next - np.outer(key, d_value[t])
            d_log_decay[t] = (d_decayed * decayed).sum()
            d_states[t] += self.decay[t] * d_decayed
        return dict(
            query=d_query,
            key=d_key,
            value=d_value[:, :-1] if self.normalize else d_value,
            beta=d_beta,
            log_decay=d_log_decay,
            initial_state=d_states[0],
        )


def draw(op, seed, batch=2, length=20, heads=2, width=8, columns=None, **options):
    """Arrays of a call of the op of that name, and cotangents of its output and state.

    Keys of the delta rule have length at most 1. Queries and keys of a normalised call are
    positive, as after a feature map.

    Args:
      options: dtype; key_length if it differs; booleans normalize, log_decay and initial_state.
    """
    rng = np.random.default_rng(seed)
    columns = width if columns is None else columns
    key_length = options.get("key_length", length)
    normalize = options.get("normalize", False)
    query = rng.normal(size=(batch, length, heads, width))
    key = rng.normal(size=(batch, key_length, heads, width))
    if normalize:
        query, key = np.abs(query) + 0.1, np.abs(key) + 0.1
    arrays = dict(query=query, key=key)
    arrays["value"] = rng.normal(size=(batch, key_length, heads, columns))
    if op == "delta_rule":
        lengths = rng.uniform(0.7, 1, size=key.shape[:-1])
        arrays["key"] *= (lengths / np.linalg.norm(key, axis=-1))[..., None]
        arrays["beta"] = rng.uniform(0, 2, size=key.shape[:-1])
    if options.get("log_decay"):
        arrays["log_decay"] = -rng.exponential(0.1, size=key.shape[:-1])
    d_out = rng.normal(size=(batch, length, heads, columns))
    state = rng.normal(size=(batch, heads, width, columns + normalize))
    d_state = rng.normal(size=state.shape)
    if normalize:
        state[..., -1] = np.abs(state[..., -1])
    if options.get("initial_state"):
        arrays["initial_state"] = state
    dtype = options.get("dtype", jnp.float32)
    arrays = {name: on_device(array, dtype) for name, array in arrays.items()}
    accumulated = accumulation_dtype(dtype)
    return arrays, (on_device(d_out, dtype), on_device(d_state, accumulated))
