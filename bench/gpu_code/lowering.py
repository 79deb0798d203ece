"""Lowers programs for CUDA on a machine without CUDA, and checks the kernels in them.

Runs as its own process with `XLA_FLAGS` for eight CPU devices, and prints JSON.
"""

import functools
import importlib.util
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxlib.mlir import ir

from icl.experiments import preset
from icl.kernels import dot_product_attention, targeting
from icl.models import CellsConfig
from icl.training.learner import Learner
from icl.training.optimizer import make_optimizer
from icl.training.step import init_state, train_step

PRESETS = ("garg/linear", "chan/symbolic", "pfn/tables-xs", "pfn/cells")  # they need no files
DEVICES = 8
KERNEL_CALLS = ("triton_kernel_call", "triton_kernel_call_ffi")
GATHERS = r"all[-_]gather|all[-_]to[-_]all|collective[-_]permute"
# CUDA 12.9, the last release of 12, reads PTX up to this version; CUDA 13 still gets newer ones.
NEWEST_PTX = {"jax_cuda12_plugin": (8, 8)}

Check = dict[str, Any]


def lower(function: Callable, *arguments: Any, capability: int = 90) -> Any:
    """Lowers a function for CUDA."""
    jax.clear_caches()  # removes traces for other capabilities
    with targeting("cuda", capability):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def kernel_calls(lowered: Any) -> list[tuple[str, str]]:
    """Name and PTX of the kernel of each call, in the order of the program."""
    found = []
    for op in _operations(lowered.compiler_ir("stablehlo").operation):
        if op.name != "stablehlo.custom_call":
            continue
        if ir.StringAttr(op.attributes["call_target_name"]).value in KERNEL_CALLS:
            text = zlib.decompress(_launch(op.attributes)).decode(errors="replace")
            found += [(name, text) for name in re.findall(r"\.entry (\w+)", text)]
    return found


def _launch(attributes: Any) -> bytes:
    """jax-triton's description of a launch: text of a legacy call, or argument of a typed one."""
    if "mhlo.backend_config" in attributes:
        launch = ir.DictAttr(attributes["mhlo.backend_config"])["opaque"]
    else:
        launch = attributes["backend_config"]
    return ir.StringAttr(launch).value_bytes


def _operations(op: Any):
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner
                yield from _operations(inner.operation)


def training_step(name: str, dtype: str) -> list[Check]:
    """Checks a chunk of a preset's steps as `icl train` lowers it, with whole batches."""
    config = preset(name)
    config = config.replace(training_microbatch_size=config.training.batch_size, model_dtype=dtype)
    learner = Learner(config)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = jax.eval_shape(lambda: init_state(learner, optimizer))
    step = functools.partial(train_step, learner, optimizer)
    lowered = lower(lambda state: jax.lax.scan(lambda s, _: step(s), state, length=2), state)
    calls = Counter(name for name, _ in kernel_calls(lowered))
    layers, tokens = config.model.layers, learner.tokens
    lengths, attentions = [tokens], layers
    if isinstance(config.model, CellsConfig):  # over columns too
        lengths, attentions = [tokens, config.model.cells], 2 * layers
    title = f"{name} in {dtype}, {layers} layers, {tokens} tokens"
    checks = [_check(f"{title}: kernels in a step", dict(calls), _each_pass(calls, attentions))]
    for length in lengths:
        # Of a batch and heads; the prior of tables compares the rows of a table.
        pattern = rf"tensor<(?:\d+x){{2,}}{length}x{length}x[a-z]"
        scores = len(re.findall(pattern, lowered.as_text()))
        checks.append(_check(f"{title}: arrays of {length} x {length} scores", scores, scores == 0))
    return checks


def _each_pass(calls: Counter, times: int) -> bool:
    """Whether the forms together run `times` times, all kernels of a form equally often.

    A form may have two kernels of a pass.
    """
    forms: dict[str, dict[str, set[int]]] = {}
    for name, count in calls.items():
        form, direction = re.split("_(forward|backward)", name)[:2]
        forms.setdefault(form, {}).setdefault(direction, set()).add(count)
    runs = [found.get("forward", set()) for found in forms.values()]
    same = all(found.get("backward") == found.get("forward") for found in forms.values())
    return bool(forms) and same and all(len(r) == 1 for r in runs) and sum(map(sum, runs)) == times


def sharded(with_bias: bool) -> list[Check]:
    """Checks that value and gradient gather nothing if devices share the batch."""
    title = "shard_map over 8 devices" + (", a bias for all" if with_bias else "")
    # With Auto axes the partitioner gathers instead of raising an error.
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    by_batch, for_all = PartitionSpec("batch"), PartitionSpec()
    tensor = jax.ShapeDtypeStruct(
        (8 * DEVICES, 82, 8, 32), jnp.bfloat16, sharding=NamedSharding(mesh, by_batch)
    )
    bias = jax.ShapeDtypeStruct((8, 82, 82), jnp.float32, sharding=NamedSharding(mesh, for_all))
    arguments = [tensor] * 3 + [bias] * with_bias

    def loss(*arrays):
        attend = jax.shard_map(
            lambda *local: dot_product_attention(*local, is_causal=True),
            mesh=mesh,
            in_specs=(by_batch,) * 3 + (for_all,) * with_bias,
            out_specs=by_batch,
            check_vma=True,
        )
        return (attend(*arrays).astype(jnp.float32) ** 2).sum()

    step = jax.value_and_grad(loss, argnums=tuple(range(len(arguments))))
    try:
        lowered = lower(step, *arguments)
        calls = Counter(name for name, _ in kernel_calls(lowered))
        gathers = len(re.findall(GATHERS, lowered.as_text()))
        with targeting("cuda", 90):
            # This is the CPU's form, but only compiled programs show gathers of the partitioner.
            compiled = jax.jit(step).lower(*arguments).compile().as_text() or ""
        partitioned = len(re.findall(GATHERS, compiled))
    except Exception as error:
        return [_check(title, f"{type(error).__name__}: {str(error).splitlines()[0]}", False)]
    return [
        _check(f"{title}: kernels", dict(calls), _each_pass(calls, 1)),
        _check(f"{title}: gathers for CUDA", gathers, gathers == 0),
        _check(f"{title}: gathers once compiled for the CPU", partitioned, partitioned == 0),
    ]


def assembles() -> list[Check]:
    """Checks that the assembler of JAX's CUDA can read the version of the PTX.

    Triton writes PTX for the version of its own assembler.
    """
    plugin = next((name for name in NEWEST_PTX if importlib.util.find_spec(name)), None)
    if plugin is None:
        return []
    tensor = jax.ShapeDtypeStruct((64, 82, 8, 32), jnp.bfloat16)
    attend = lambda x: dot_product_attention(x, x, x, is_causal=True, implementation="triton")
    checks = []
    for capability in (80, 90, 100):
        [(_, text)] = kernel_calls(lower(attend, tensor, capability=capability))
        [version] = re.findall(r"\.version (\d+)\.(\d+)", text)
        limit = NEWEST_PTX[plugin]
        checks.append(
            _check(
                f"PTX version for sm_{capability}; {plugin} reads up to {limit[0]}.{limit[1]}",
                ".".join(version),
                tuple(map(int, version)) <= limit,
            )
        )
    return checks


def _check(what: str, found: Any, passed: bool) -> Check:
    return {"check": what, "found": found, "passed": passed}


if __name__ == "__main__":
    steps = [
        check
        for name in PRESETS
        for dtype in ("float32", "bfloat16")
        for check in training_step(name, dtype)
    ]
    print(json.dumps([*steps, *sharded(False), *sharded(True), *assembles()]))
