"""From a pair of raw kernel calls to an op: what the Triton and the Pallas forms share."""

from collections.abc import Callable
from typing import Any

import jax

from ..dispatch import portable
from ..wiring import batch_foldable, differentiable, split_floats
from .problem import Operands, Problem
from .reference import attention as definition
from .xla import sum_to

DTYPES = ("float32", "bfloat16", "float16")


def fused(
    forward: Callable,
    backward: Callable,
    platform: str,
    *,
    prepare: Callable[[Problem, Operands], Problem] = lambda problem, operands: problem,
    plain_saved: Callable[[Problem, Operands, jax.Array], Any] = lambda problem, operands, out: (),
) -> dict[str, Callable]:
    """`run` and `run_anywhere` of an `Implementation`.

    Args:
      forward: `(problem, operands) -> (out, saved)`, kernel calls alone.
      backward: `(problem, operands, saved, d_out) -> gradient`, kernel calls alone; the bias's
        is float32 `[a divisor of B, N, T, S]`, not yet added up over what it was broadcast along.
      platform: where the kernels run; elsewhere `run_anywhere` takes the definition.
      prepare: settles the problem of the backward pass before vmap adds rows to the batch.
      plain_saved: what `forward` saves, without kernels; its values are not read.
    """
    folded_forward, folded_backward = batch_foldable(forward), batch_foldable(backward)

    def whole_backward(problem, operands, saved, d_out):
        gradient = folded_backward(prepare(problem, operands), operands, saved, d_out)
        if operands.bias is None:
            return gradient
        d_bias = sum_to(gradient.bias, operands.bias.shape)
        return gradient._replace(bias=d_bias.astype(operands.bias.dtype))

    def plain_forward(problem, operands):
        out = definition(problem, operands)
        return out, plain_saved(problem, operands, out)

    def plain_backward(problem, operands, saved, d_out):
        floats, rebuild = split_floats(operands)
        _, transpose = jax.vjp(lambda f: definition(problem, rebuild(f)), floats)
        return rebuild(transpose(d_out)[0], integers=False)

    return dict(
        run=differentiable(folded_forward, whole_backward, definition),
        run_anywhere=differentiable(
            portable(folded_forward, plain_forward, platform),
            portable(whole_backward, plain_backward, platform),
            definition,
        ),
    )


def dtype_refusal(operands: Operands) -> str | None:
    """Why kernels cannot take these dtypes, or None."""
    dtypes = {array.dtype.name for array in operands[:3] if array is not None}
    if len(dtypes) > 1:
        return f"query, key and value must have one dtype, got {', '.join(sorted(dtypes))}"
    if dtypes.isdisjoint(DTYPES):
        return f"inputs must be one of {', '.join(DTYPES)}, got {dtypes.pop()}"
    return None
