"""A matrix product whose backward pass suits XLA's CPU backend."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(saved, cotangent):
    x, kernel = saved
    # On a CPU, a product with a transposed view can take twice the time of one with a copy.
    transposed = lax.platform_dependent(
        kernel, cpu=lambda k: lax.optimization_barrier(k.T), default=lambda k: k.T
    )
    rows = lambda a: a.reshape(-1, a.shape[-1])
    d_kernel = rows(x).T @ rows(cotangent)
    return (cotangent @ transposed).astype(x.dtype), d_kernel.astype(kernel.dtype)


_matmul.defvjp(_forward, _backward)


def linear_dot_general(x, kernel, dimension_numbers, precision=None, **options):
    """`lax.dot_general` for `flax.nnx.Linear(dot_general=...)`: `[..., I] @ [I, O]`.

    Raises:
      NotImplementedError: another contraction, or a precision or option that is not None.
    """
    contraction = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers != contraction or kernel.ndim != 2 or precision is not None:
        raise NotImplementedError("only [..., I] @ [I, O] at JAX's default precision")
    if any(option is not None for option in options.values()):
        raise NotImplementedError(f"options {sorted(options)} of dot_general are not supported")
    return _matmul(x, jnp.asarray(kernel))
