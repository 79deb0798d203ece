"""One boolean mask out of everything that hides a key from a query."""

import jax
import jax.numpy as jnp


def combine_masks(
    score_shape: tuple[int, ...],
    mask: jax.Array | None = None,
    *,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
) -> jax.Array | None:
    """The keys each query may attend to, or None when that is all of them.

    Args:
      score_shape: `(..., N, T, S)`.
      mask: boolean, broadcastable to `score_shape`.
      is_causal, query_seq_lengths, key_value_seq_lengths, local_window_size: as in
        `dot_product_attention`.

    Returns:
      A boolean array broadcastable to `score_shape`, or None.
    """
    length, key_length = score_shape[-2:]
    batch = score_shape[:-3]
    rows = jnp.arange(length)[:, None]
    columns = jnp.arange(key_length)[None, :]
    parts = []
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean (True attends), got {mask.dtype}; use bias")
        parts.append(mask)
    if is_causal:
        parts.append(columns <= rows)
    if local_window_size is not None:
        window = local_window_size
        left, right = (window, window) if isinstance(window, int) else window
        parts.append((columns >= rows - left) & (columns <= rows + right))
    for name, lengths, index in (
        ("query_seq_lengths", query_seq_lengths, rows),
        ("key_value_seq_lengths", key_value_seq_lengths, columns),
    ):
        if lengths is not None:
            lengths = jnp.asarray(lengths)
            if lengths.shape != batch:
                raise ValueError(f"{name} must have the batch shape {batch}, got {lengths.shape}")
            parts.append(index < lengths[..., None, None, None])
    if not parts:
        return None
    combined = parts[0]
    for part in parts[1:]:
        combined = combined & part
    return combined
