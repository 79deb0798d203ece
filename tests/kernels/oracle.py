"""Attention and its gradients in float64 NumPy, one head at a time; hidden keys are left out."""

import numpy as np


def allowed_pairs(shape, **options):
    """Boolean `[B, N, T, S]` of what the options of `dot_product_attention` allow."""
    batch, heads, length, key_length = shape
    rows, columns = np.arange(length)[:, None], np.arange(key_length)[None, :]
    allowed = np.ones(shape, bool)
    if options.get("mask") is not None:
        allowed &= np.asarray(options["mask"])
    if options.get("is_causal"):
        allowed &= columns <= rows
    if options.get("local_window_size") is not None:
        window = options["local_window_size"]
        left, right = (window, window) if isinstance(window, int) else window
        allowed &= (columns >= rows - left) & (columns <= rows + right)
    if options.get("query_seq_lengths") is not None:
        allowed &= rows < np.asarray(options["query_seq_lengths"])[:, None, None, None]
    if options.get("key_value_seq_lengths") is not None:
        allowed &= columns < np.asarray(options["key_value_seq_lengths"])[:, None, None, None]
    return allowed


def attention(query, key, value, bias=None, *, d_out=None, scale=None, **options):
    """The output, and with `d_out` also the gradients of query, key, value and bias.

    Shapes as in `dot_product_attention`, with one batch axis. Returns a list, the bias's gradient
    last and only when there is a bias.
    """
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    batch, length, heads, width = query.shape
    key_length, group = key.shape[1], heads // key.shape[2]
    scale = width**-0.5 if scale is None else scale
    shape = (batch, heads, length, key_length)
    allowed = allowed_pairs(shape, **options)
    extra = np.zeros(shape) if bias is None else np.broadcast_to(np.asarray(bias, float), shape)
    out = np.zeros_like(query)
    d_query, d_key, d_value = (np.zeros_like(array) for array in (query, key, value))
    d_scores = np.zeros(shape)
    for b in range(batch):
        for n in range(heads):
            head = n // group
            for t in range(length):
                seen = allowed[b, n, t]
                if not seen.any():
                    continue
                k, v = key[b, seen, head], value[b, seen, head]
                scores = scale * k @ query[b, t, n] + extra[b, n, t, seen]
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[b, t, n] = weights @ v
                if d_out is None:
                    continue
                d = np.asarray(d_out[b, t, n], np.float64)
                d_weights = v @ d
                d_row = weights * (d_weights - weights @ d_weights)
                d_scores[b, n, t, seen] = d_row
                d_query[b, t, n] = scale * d_row @ k
                d_key[b, seen, head] += scale * np.outer(d_row, query[b, t, n])
                d_value[b, seen, head] += np.outer(weights, d)
    if d_out is None:
        return [out]
    gradients = [out, d_query, d_key, d_value]
    return gradients if bias is None else [*gradients, sum_to(d_scores, np.shape(bias))]


def sum_to(array, shape):
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    return array.sum(axis=axes, keepdims=True)
