"""Linear attention and the delta rule in PyTorch; tensors are `[B, T, N, H]`.

`chunked` is the chunked form of Yang et al. 2024 in plain torch operations, for autograd.
"""
# Only the benchmarks need torch, so type checkers may not find it.
# pyright: reportMissingImports=false

import torch

CHUNK = 64


def chunked(query, key, value, beta=None, log_decay=None, *, is_causal=True):
    """Linear attention, or the delta rule if beta is given; beta and log_decay: `[B, T, N]`."""
    scale = query.shape[-1] ** -0.5
    dtype, length = query.dtype, query.shape[1]
    query, key, value = (array.transpose(1, 2) for array in (query, key, value))
    beta, log_decay = (a if a is None else a.transpose(1, 2) for a in (beta, log_decay))
    if not is_causal:
        return (scale * query @ (key.mT @ value)).transpose(1, 2)
    state, outs = 0, []
    for start in range(0, length, CHUNK):
        now = slice(start, min(start + CHUNK, length))
        q, k, v = scale * query[:, :, now], key[:, :, now], value[:, :, now]
        weights, k_end, q_start = (q @ k.mT).tril(), k, q
        if log_decay is not None:
            passed = log_decay[:, :, now].float().cumsum(-1)
            between = (passed[..., :, None] - passed[..., None, :]).tril().exp().to(dtype)
            weights = weights * between
            q_start = q * passed.exp().to(dtype)[..., None]
            k_end = k * (passed[..., -1:] - passed).exp().to(dtype)[..., None]
        if beta is not None:
            # torch does not solve systems in dtypes narrower than float32.
            b = beta[:, :, now, None]
            system = (b * (k @ k.mT)).tril(-1).float()
            side = b * (v - k @ state if start else v)
            v = torch.linalg.solve_triangular(system, side.float(), upper=False, unitriangular=True)
            v = v.to(dtype)
        out = weights @ v
        outs.append(out + q_start @ state if start else out)
        if start and log_decay is not None:
            state = state * passed[..., -1].exp().to(dtype)[..., None, None]
        state = state + k_end.mT @ v
    return torch.cat(outs, dim=2).transpose(1, 2)


def flash_linear_attention(query, key, value, beta=None, log_decay=None, *, is_causal=True):
    """Causal chunked kernels of the package fla. Raises NotImplementedError if not causal."""
    scale = query.shape[-1] ** -0.5
    if not is_causal:
        raise NotImplementedError("fla has causal kernels only")
    if beta is not None:
        from fla.ops.delta_rule import chunk_delta_rule

        return chunk_delta_rule(query, key, value, beta, scale=scale)[0]
    if log_decay is not None:
        from fla.ops.simple_gla import chunk_simple_gla

        return chunk_simple_gla(query, key, value, g=log_decay, scale=scale)[0]
    from fla.ops.linear_attn import chunk_linear_attn

    return chunk_linear_attn(query, key, value, scale=scale, normalize=False)[0]
