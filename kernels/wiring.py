"""How a pair of forward and backward kernels becomes a function that JAX can transform.

`jax.custom_vjp` is outermost. Inside it, `jax.custom_batching.custom_vmap` wraps the kernel calls.
Then grad, vmap, their nestings, scan, checkpoint and shard_map compose. An op is a function of a
hashable `problem` and a pytree of operands. The first axis of an operand is the batch, of its full
size or of size 1.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .untyped import custom_vjp, flatten, pcast, vjp


def differentiable(
    forward: Callable[..., Any], backward: Callable[..., Any], definition: Callable[..., Any]
) -> Callable[[Any, Any], Any]:
    """An op with a backward pass of its own, and with all higher derivatives.

    Args:
      forward: `(problem, operands) -> (out, saved)`.
      backward: `(problem, operands, saved, d_out) -> gradient`, a pytree like operands with None
        for arrays that are not floating point.
      definition: `(problem, operands) -> out` in plain JAX, for the derivatives of the gradient.

    Returns:
      `(problem, operands) -> out`, differentiable in reverse mode as often as wanted.
    """

    @functools.partial(custom_vjp, nondiff_argnums=(0,))
    def run(problem: Any, operands: Any) -> Any:
        return forward(problem, operands)

    def run_forward(problem: Any, operands: Any) -> tuple[Any, Any]:
        # Through run itself, so that this rule can be differentiated too.
        out, saved = run(problem, operands)
        return (out, saved), (operands, saved)

    def run_backward(problem: Any, residuals: Any, cotangents: Any) -> tuple[Any]:
        # The saved arrays never leave this module, so their cotangents are 0.
        return (pull_back(problem, *residuals, cotangents[0]),)

    run.defvjp(run_forward, run_backward)

    @functools.partial(custom_vjp, nondiff_argnums=(0,))
    def pull_back(problem: Any, operands: Any, saved: Any, d_out: Any) -> Any:
        return backward(problem, operands, saved, d_out)

    def pull_back_forward(problem: Any, operands: Any, saved: Any, d_out: Any) -> tuple[Any, Any]:
        return pull_back(problem, operands, saved, d_out), (operands, saved, d_out)

    def pull_back_backward(problem: Any, residuals: Any, cotangents: Any) -> tuple[Any, Any, Any]:
        operands, saved, d_out = residuals
        floats, rebuild = split_floats(operands)

        def defined(floats: Any, d_out: Any) -> Any:
            of_floats: Callable[[Any], Any] = lambda f: definition(problem, rebuild(f))
            _, transpose = vjp(of_floats, floats)
            return transpose(d_out)[0]

        _, transpose = vjp(defined, floats, d_out)
        d_floats, d_d_out = transpose(jax.tree.leaves(cotangents))
        d_operands = rebuild(d_floats, integers=False)
        return d_operands, jax.tree.map(jnp.zeros_like, saved), d_d_out

    pull_back.defvjp(pull_back_forward, pull_back_backward)

    def op(problem: Any, operands: Any) -> Any:
        # The transpose of this sums the gradient of a shared operand over the devices.
        leaves = jax.tree.leaves(operands)
        axes = frozenset[Any]().union(*map(varying_axes, leaves))
        vary: Callable[[jax.Array], jax.Array] = lambda leaf: vary_over(leaf, axes)
        return run(problem, jax.tree.map(vary, operands))[0]

    return op


def batch_rows(tree: Any) -> int:
    """Number of batch rows of arrays that each have them all, or one row for all of them."""
    return max(leaf.shape[0] for leaf in jax.tree.leaves(tree))


def split_floats(tree: Any) -> tuple[list[jax.Array], Callable[..., Any]]:
    """The floating-point leaves, and a function that rebuilds the tree from such leaves."""
    leaves, structure = flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(floats: Iterable[Any], integers: bool = True) -> Any:
        rest = iter(floats)
        others = (leaf if integers else None for leaf in leaves)
        return structure.unflatten(
            [next(rest) if mine else other for mine, other in zip(is_float, others)]
        )

    return [leaf for leaf, mine in zip(leaves, is_float) if mine], rebuild


def batch_foldable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Teaches a kernel call to run under vmap, by folding the mapped axis into the batch.

    Args:
      function: `(problem, *operands) -> outputs`. The first axis of an array is the batch, of its
        full size or of size 1. The first axis of an output is a multiple of the batch size.
    """

    @functools.cache
    def of(problem: Any) -> Callable[..., Any]:
        call = jax.custom_batching.custom_vmap(functools.partial(function, problem))

        @call.def_vmap
        def rule(axis_size: int, in_batched: Any, *operands: Any) -> tuple[Any, Any]:
            leaves, structure = flatten(operands)
            mapped = jax.tree.leaves(in_batched)
            batch = max(leaf.shape[int(m)] for leaf, m in zip(leaves, mapped))
            rows = [_fold(leaf, m, axis_size, batch) for leaf, m in zip(leaves, mapped)]
            outputs = call(*structure.unflatten(rows))
            unfold: Callable[[jax.Array], jax.Array] = lambda o: o.reshape(
                axis_size, o.shape[0] // axis_size, *o.shape[1:]
            )
            mapped_too: Callable[[Any], bool] = lambda _: True
            return jax.tree.map(unfold, outputs), jax.tree.map(mapped_too, outputs)

        return call

    def folded(problem: Any, *operands: Any) -> Any:
        return of(problem)(*operands)

    return folded


def _fold(leaf: jax.Array, mapped: bool, axis_size: int, batch: int) -> jax.Array:
    """`[V, B or 1, ...]`, or `[B or 1, ...]` if not mapped, as `[V * B, ...]` or `[1, ...]`."""
    if not mapped:
        if leaf.shape[0] == 1:
            return leaf
        leaf = jnp.broadcast_to(leaf[None], (axis_size, *leaf.shape))
    elif leaf.shape[1] != batch:
        leaf = jnp.broadcast_to(leaf, (axis_size, batch, *leaf.shape[2:]))
    return leaf.reshape(axis_size * batch, *leaf.shape[2:])


def varying_axes(array: jax.Array) -> frozenset[Any]:
    """The axes of a `shard_map` along which an array differs between devices."""
    kind: Any = jax.typeof(array)
    if hasattr(kind, "manual_axis_type"):
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(kind.vma)


def vary_over(array: jax.Array, axes: frozenset[Any]) -> jax.Array:
    """Marks an array as differing along these axes too."""
    missing = tuple(sorted(axes - varying_axes(array)))
    return pcast(array, missing, to="varying") if missing else array
