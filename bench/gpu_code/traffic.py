"""Bytes and operations of the kernels, counted while Triton's interpreter runs them on the CPU.

To be started as a process of its own with `ICL_KERNELS_INTERPRET=1`: prints JSON.
"""

import importlib
import json
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from icl.kernels import targeting
from icl.kernels.interpreter import counting

from .calls import OPS, WORKLOADS, call, call_of, gradient

MOST_FLOPS = 1.3  # times what all pairs take, in attention's rows where T and H fill their tiles
BATCH = 2
# The interpreter is slow: from the first length on one batch row and one head, and the second at
# most.
LONG, LONGEST = 512, 1024
SHORT = 128  # steps up to which linear attention should move nothing else
LAUNCHES = {
    "attention": "icl.kernels.attention.launch",
    "linear": "icl.kernels.linear_attention.launch",
    "delta": "icl.kernels.linear_attention.launch",
}


def measure(name: str) -> list[dict[str, Any]]:
    """The forward and the backward pass of a workload, cut down to a few batch rows.

    They are launched as the whole workload is.
    """
    op, workload = WORKLOADS[name]
    launch = importlib.import_module(LAUNCHES[op])
    plan = _plan(name, launch)
    workload = workload._replace(B=max(BATCH, plan.forward.rows, plan.backward.rows))
    if workload.T >= LONG:
        workload = workload._replace(B=1, N=1, T=min(workload.T, LONGEST))
    function, shapes = call_of(op, workload)
    arguments = jax.tree.map(_draw(np.random.default_rng(0)), shapes)
    with targeting("cuda", 90), launch.forcing(plan):
        with counting() as forward:
            out, pull_back = jax.block_until_ready(jax.vjp(function, *arguments))
        with counting() as backward:
            d_arguments = jax.block_until_ready(pull_back(out))
    size = lambda *trees: sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    # Linear attention has one form.
    form = getattr(plan, "form", "row" if workload.T <= SHORT else "chunks")
    row = lambda *found: _row(name, form, workload, *found)
    return [
        row(False, forward, size(arguments, out)),
        row(True, backward, size(arguments, out, d_arguments)),
    ]


def _draw(rng: np.random.Generator) -> Any:
    """Normal numbers; a tensor's heads, `[..., H]`, have about length 1."""

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = shape.shape[-1] ** -0.5 if len(shape.shape) == 4 else 0.5
        return jnp.asarray(rng.normal(size=shape.shape) * scale, shape.dtype)

    return draw


def _plan(name: str, launch: Any) -> Any:
    """The launch of the whole workload, without running it."""
    found = []

    def remember(problem, operands, *, original=launch.plan):
        found.append(original(problem, operands))
        return found[-1]

    function, shapes = call(name)
    with targeting("cuda", 90), mock.patch.object(launch, "plan", remember):
        jax.eval_shape(gradient(function), *shapes)
    return found[0]


def _row(
    name: str, form: str, workload: Any, is_backward: bool, counted: Any, least: int
) -> dict[str, Any]:
    moved = counted.loaded + counted.stored
    useful = workload.flops(is_backward)
    dense = workload._replace(is_causal=False).flops(is_backward)
    return {
        "workload": name,
        "form": form,
        "pass": "backward" if is_backward else "forward",
        "batch": workload.B,
        "length": workload.T,
        "heads": workload.N,
        "loaded": counted.loaded,
        "stored": counted.stored,
        "dot_flops": counted.dot_flops,
        "bytes_over_least": moved / least,
        "flops_over_useful": counted.dot_flops / useful,
        "flops_over_dense": counted.dot_flops / dense,
        "fills_tiles": all(n >= 16 and n & (n - 1) == 0 for n in (workload.T, workload.H)),
    }


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as it has to be; only reported beyond a row on chip."""
    found = []
    for row in rows:
        if row["form"] != "row":
            continue
        op = WORKLOADS[row["workload"]][0]
        name = f"{row['workload']}, {row['pass']}"
        # The interpreter that counts nothing would pass any upper limit.
        if not 0.99 <= row["bytes_over_least"] <= OPS[op].most_bytes:
            found.append(f"{name}: moves {row['bytes_over_least']:.3f} times the least bytes")
        if (
            op == "attention"
            and row["fills_tiles"]
            and not 0.99 <= row["flops_over_dense"] <= MOST_FLOPS
        ):
            found.append(f"{name}: {row['flops_over_dense']:.3f} times the operations of all pairs")
    return found


if __name__ == "__main__":
    print(json.dumps([row for name in sys.argv[1:] for row in measure(name)]))
