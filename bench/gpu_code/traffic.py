"""Bytes and operations of the kernels, counted while Triton's interpreter runs them on the CPU.

To be started as a process of its own with `ICL_KERNELS_INTERPRET=1`: prints JSON.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl.kernels import dot_product_attention, targeting
from icl.kernels.attention import launch
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.attention.workloads import WORKLOADS, Workload
from icl.kernels.interpreter import counting

MOST_BYTES = 1.05  # times the least, in the row form
MOST_FLOPS = 1.3  # times what all pairs take, in the row form, where T and H fill their tiles
BATCH = 2
# The interpreter is slow: from the first length on one batch row and one head, and the second at
# most.
LONG, LONGEST = 512, 1024


def measure(name: str) -> list[dict[str, Any]]:
    """The forward and the backward pass of a workload, cut down to a few batch rows.

    They are launched as the whole workload is.
    """
    plan = _plan(WORKLOADS[name])
    workload = WORKLOADS[name]._replace(B=max(BATCH, plan.forward.rows, plan.backward.rows))
    if workload.T >= LONG:
        workload = workload._replace(B=1, N=1, T=min(workload.T, LONGEST))
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.normal(size=_shape(workload)), jnp.bfloat16)
    attend = lambda *tensors: dot_product_attention(
        *tensors, is_causal=workload.is_causal, implementation="triton"
    )
    with targeting("cuda", 90), launch.forcing(plan):
        with counting() as forward:
            out, pull_back = jax.block_until_ready(jax.vjp(attend, draw(), draw(), draw()))
        with counting() as backward:
            jax.block_until_ready(pull_back(out))
    return [
        _row(name, plan.form, workload, False, forward),
        _row(name, plan.form, workload, True, backward),
    ]


def _plan(workload: Workload) -> launch.Plan:
    tensor = jax.ShapeDtypeStruct(_shape(workload), jnp.bfloat16)
    problem = Problem(workload.H**-0.5, workload.is_causal)
    with targeting("cuda", 90):
        return launch.plan(problem, Operands(tensor, tensor, tensor))


def _shape(workload: Workload) -> tuple[int, ...]:
    return (workload.B, workload.T, workload.N, workload.H)


def _row(name: str, form: str, workload: Workload, is_backward: bool, counted: Any) -> dict:
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
        "bytes_over_least": moved / workload.bytes(is_backward),
        "flops_over_useful": counted.dot_flops / useful,
        "flops_over_dense": counted.dot_flops / dense,
        "fills_tiles": all(n >= 16 and n & (n - 1) == 0 for n in (workload.T, workload.H)),
    }


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What is not as it has to be; only reported in the tiled form."""
    found = []
    for row in rows:
        if row["form"] != "row":
            continue
        name = f"{row['workload']}, {row['pass']}"
        # The interpreter that counts nothing would pass any upper limit.
        if not 0.99 <= row["bytes_over_least"] <= MOST_BYTES:
            found.append(f"{name}: moves {row['bytes_over_least']:.3f} times the least bytes")
        if row["fills_tiles"] and not 0.99 <= row["flops_over_dense"] <= MOST_FLOPS:
            found.append(f"{name}: {row['flops_over_dense']:.3f} times the operations of all pairs")
    return found


if __name__ == "__main__":
    print(json.dumps([row for name in sys.argv[1:] for row in measure(name)]))
