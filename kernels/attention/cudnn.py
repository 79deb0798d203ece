"""cuDNN's fused attention, called through JAX; the fastest for long rows in half precision."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ..dispatch import Implementation, Target, portable
from ..untyped import checkpoint
from .problem import Dimensions, Operands, Problem, may_blind, unpack
from .reference import attention as definition


def attention(problem: Problem, operands: Operands) -> jax.Array:
    apart = unpack(operands)
    return jax.nn.dot_product_attention(
        *apart[:5],
        scale=problem.scale,
        is_causal=problem.is_causal,
        query_seq_lengths=apart.query_lengths,
        key_value_seq_lengths=apart.key_lengths,
        local_window_size=problem.window,
        implementation="cudnn",
    )


def _refusal(target: Target, problem: Problem, operands: Operands) -> str | None:
    sizes = Dimensions.of(operands)
    dtypes = {array.dtype for array in operands[:3] if array is not None}
    if target.platform != "cuda":
        return f"cuDNN needs an NVIDIA GPU and this is {target.platform!r}"
    if not dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}:
        return "cuDNN needs bfloat16 or float16"
    if sizes.B >= 65536:
        return f"cuDNN takes fewer than 65536 batch rows, got {sizes.B}"
    if sizes.H % 8 or sizes.H > 128:
        return f"cuDNN takes head dims that are multiples of 8 up to 128, got {sizes.H}"
    return None


def _is_best(target: Target, problem: Problem, operands: Operands) -> bool:
    """Long rows for which cuDNN keeps this package's contract: nothing but causality hides keys."""
    keeps_contract = operands.bias is None and not may_blind(problem, operands)
    return keeps_contract and Dimensions.of(operands).S > 128


def _anywhere(problem: Problem, operands: Operands) -> jax.Array:
    # Checkpointed, so that nothing is saved for the branch that is not taken.
    plain = checkpoint(partial(definition, problem))
    definition_of: Callable[[Problem, Operands], jax.Array] = lambda _, o: plain(o)
    return portable(attention, definition_of)(problem, operands)


IMPLEMENTATION = Implementation(attention, _refusal, _is_best, _anywhere)
