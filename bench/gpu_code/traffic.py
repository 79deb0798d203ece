"""Counts bytes and operations of the kernels while Triton's interpreter runs them on the CPU.

Runs as its own process with `ICL_KERNELS_INTERPRET=1`, and prints JSON.
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
from icl.kernels.plans import forcing

from ..kernels.ops import CASES, Case
from .launches import trace

BATCH = 2
# The interpreter is slow: workloads from LONG on have one batch row and one head, and lengths are
# cut to LONGEST.
LONG, LONGEST = 512, 1024
# Those that a whole check interprets: of each form one that fills its tiles, and one that does not.
USUAL = (
    "garg", "short-causal", "short-full", "tiny-causal", "medium-full", "long-causal", "oswald",
    "packed-short-causal", "linear-short", "linear-oswald", "linear-medium", "delta-short",
    "delta-long",
)  # fmt: skip
SHORT = 128  # up to this number of steps linear attention counts as a row


def measure(name: str) -> list[dict[str, Any]]:
    """Counts of the forward and backward pass of a workload, with a few batch rows.

    The launches are those of the whole workload.
    """
    case = CASES[name]
    launch = importlib.import_module(case.op.function.__module__.replace(".api", ".launch"))
    plan, workload = _plan(case, launch), case.workload
    workload = workload._replace(B=max(BATCH, plan.forward.rows, plan.backward.rows))
    if workload.T >= LONG:
        workload = workload._replace(B=1, N=1, T=min(workload.T, LONGEST))
    function, shapes = case._replace(workload=workload).call(implementation="triton")
    arguments = jax.tree.map(_draw(np.random.default_rng(0)), shapes)
    with targeting("cuda", 90), forcing(plan):
        with counting() as forward:
            out, pull_back = jax.block_until_ready(jax.vjp(lambda a: function(**a), arguments))
        with counting() as backward:
            d_arguments = jax.block_until_ready(pull_back(out))
    size = lambda *trees: sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    hidden = case._replace(workload=workload).hidden_bytes(2)  # of bfloat16
    # Linear attention has one form.
    form = getattr(plan, "form", "row" if workload.T <= SHORT else "chunks")
    case = case._replace(workload=workload)
    row = lambda *found: _row(name, form, case, *found)
    return [
        row(False, forward, size(arguments, out) - hidden),
        row(True, backward, size(arguments, out, d_arguments) - hidden),
    ]


def _draw(rng: np.random.Generator) -> Any:
    """A function that draws normal numbers; heads `[..., H]` of tensors have a norm of about 1."""

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = shape.shape[-1] ** -0.5 if len(shape.shape) == 4 else 0.5
        return jnp.asarray(rng.normal(size=shape.shape) * scale, shape.dtype)

    return draw


def _plan(case: Case, launch: Any) -> Any:
    """The launch plan of the whole workload, found without running it."""
    found = []

    def remember(problem, operands, *, original=launch.plan):
        found.append(original(problem, operands))
        return found[-1]

    with targeting("cuda", 90), mock.patch.object(launch, "plan", remember):
        trace(case)
    return found[0]


def _row(
    name: str, form: str, case: Case, is_backward: bool, counted: Any, least: int
) -> dict[str, Any]:
    workload, moved = case.workload, counted.loaded + counted.stored
    hiding = {"is_causal": False, "keys": None}
    full = {name: hiding.get(name, value) for name, value in workload._asdict().items()}
    full = case._replace(workload=type(workload)(**full))
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
        "flops_over_useful": counted.dot_flops / case.flops(is_backward),
        "flops_over_dense": counted.dot_flops / full.flops(is_backward),
        "fills_tiles": all(n >= 16 and n & (n - 1) == 0 for n in (workload.T, workload.H)),
    }


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """Rows that miss a target; only the row form has targets."""
    found = []
    for row in rows:
        if row["form"] != "row":
            continue
        op, name = CASES[row["workload"]].op, f"{row['workload']}, {row['pass']}"
        # The lower limit catches an interpreter that counts nothing.
        if not 0.99 <= row["bytes_over_least"] <= op.most_bytes:
            found.append(f"{name}: moves {row['bytes_over_least']:.3f} times the fewest bytes")
        limited = row["fills_tiles"] and op.most_flops is not None
        if limited and not 0.99 <= row["flops_over_dense"] <= op.most_flops:
            found.append(f"{name}: {row['flops_over_dense']:.3f} times the operations of all pairs")
    return found


if __name__ == "__main__":
    print(json.dumps([row for name in sys.argv[1:] for row in measure(name)]))
