"""Makes an op of a forward and a backward kernel call, in Triton or in Pallas."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .dispatch import portable
from .numerics import sum_to
from .untyped import vjp
from .wiring import batch_foldable, batch_rows, differentiable, split_floats

DTYPES = ("float32", "bfloat16", "float16")


def fused(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    definition: Callable[..., Any],
    platform: str,
    *,
    prepare: Callable[[Any, Any], Any] = lambda problem, operands: problem,
    plain_saved: Callable[[Any, Any, Any], Any] = lambda problem, operands, out: (),
) -> dict[str, Any]:
    """`run` and `run_anywhere` of an `Implementation`.

    Operands are a NamedTuple whose first field is an array, not None.

    Args:
      forward: `(problem, operands) -> (out, saved)`, kernel calls alone.
      backward: `(problem, operands, saved, d_out) -> gradient`, kernel calls alone. The gradient
        need not be summed over broadcast axes of an operand, nor cast to the operand's dtype.
      definition: `(problem, operands) -> out` in plain JAX.
      platform: where the kernels run; elsewhere `run_anywhere` takes the definition.
      prepare: makes the problem of the backward pass, before vmap adds rows to the batch.
      plain_saved: arrays of the shapes that `forward` saves; their values are not read.
    """
    folded_forward = batch_foldable(forward)

    def backward_of_rows(problem: Any, *arrays: Any) -> Any:
        return backward(problem, *_with_rows_of_cotangent(*arrays))

    folded_backward = batch_foldable(backward_of_rows)

    def whole_backward(problem: Any, operands: Any, saved: Any, d_out: Any) -> Any:
        gradient = folded_backward(prepare(problem, operands), operands, saved, d_out)
        floats, rebuild = split_floats(operands)
        summed = zip(jax.tree.leaves(gradient), floats, strict=True)
        return rebuild([sum_to(d, f.shape).astype(f.dtype) for d, f in summed], integers=False)

    def plain_forward(problem: Any, operands: Any) -> Any:
        out = definition(problem, operands)
        return out, plain_saved(problem, operands, out)

    def plain_backward(problem: Any, operands: Any, saved: Any, d_out: Any) -> Any:
        floats, rebuild = split_floats(operands)
        of_floats: Callable[[Any], Any] = lambda f: definition(problem, rebuild(f))
        _, transpose = vjp(of_floats, floats)
        return rebuild(transpose(d_out)[0], integers=False)

    return dict(
        run=differentiable(folded_forward, whole_backward, definition),
        run_anywhere=differentiable(
            portable(folded_forward, plain_forward, platform),
            portable(whole_backward, plain_backward, platform),
            definition,
        ),
    )


def _with_rows_of_cotangent(operands: Any, saved: Any, d_out: Any) -> tuple[Any, Any, Any]:
    """Repeats arrays of one row if vmap mapped only the operands, or only the cotangent."""
    rows = max(batch_rows(operands), batch_rows(d_out))
    repeat: Callable[[jax.Array], jax.Array] = lambda array: jnp.broadcast_to(
        array, (rows, *array.shape[1:])
    )
    if batch_rows(operands) < rows:
        first = operands._fields[0]
        operands = operands._replace(**{first: repeat(operands[0])})
        saved = jax.tree.map(repeat, saved)
    return operands, saved, jax.tree.map(repeat, d_out)


def dtype_refusal(*arrays: Any) -> str | None:
    """Why kernels cannot take query, key and value of these dtypes, or None."""
    dtypes = {array.dtype.name for array in arrays if array is not None}
    if len(dtypes) > 1:
        return f"query, key and value must have one dtype, got {', '.join(sorted(dtypes))}"
    if dtypes.isdisjoint(DTYPES):
        return f"inputs must be one of {', '.join(DTYPES)}, got {dtypes.pop()}"
    return None
