"""The contestants that run in JAX, ours among them, and the machine's ceilings: one process."""
# tokamax is needed by this benchmark alone, so type checkers may not find it.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from device_time import Program, Timer, launch_one_by_one
from kernel_cases import (
    ATTENTION,
    CASES,
    DTYPES,
    FORWARD,
    Answer,
    Started,
    at_hand,
    careful,
    checked_rows,
    commands_of,
    errors,
    input_sets,
)
from kernel_ops import Op

from icl import kernels
from icl.kernels.attention import api as attention
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.dispatch import target
from icl.kernels.linear_attention import api as linear
from icl.kernels.linear_attention import problem as linear_problem

COPY_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}  # of four bytes
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}


def start_jax(workloads: Sequence[str], directions: Sequence[str], seed: int) -> Started:
    """What runs here, and the commands `gate` and `time` of each, and `time` of the ceilings."""
    launch_one_by_one()
    platform = target().platform
    if platform not in DTYPES:
        raise ValueError(f"this benchmark knows {' and '.join(DTYPES)}, not {platform}")
    bench = _Bench(platform, seed)
    commands = commands_of(bench, workloads, directions, platform, "jax")
    for name in ("copy", "product"):
        commands[f"time {name}"] = careful(bench, bench.time_ceiling, name)
    ready = {
        "platform": platform,
        "device": jax.devices()[0].device_kind,
        "dtype": bench.dtype,
        "chosen": {n: chosen(at_hand(n, platform), bench.dtype, CASES[n][0]) for n in workloads},
        "product_size": PRODUCT_SIZE[platform],
        "copy_bytes": 8 * COPY_ELEMENTS[platform],
    }
    return ready, commands


def attend(name: str, is_causal: bool, op: Op = ATTENTION) -> Callable:
    """A contestant's function of the inputs, which gives the output, `[B, T, N, H]`."""
    implementation = None if name == "ours" else name
    if op is not ATTENTION:
        function = functools.partial(getattr(kernels, op.name), implementation=implementation)
        if op.name == "linear_attention":
            function = functools.partial(function, is_causal=is_causal)
        return lambda *inputs: function(**dict(zip(op.inputs, inputs, strict=True)))
    if name == "tokamax":
        import tokamax
        from absl import flags

        # It reads the command line as absl's otherwise.
        flags.FLAGS.mark_as_parsed()
        return functools.partial(tokamax.dot_product_attention, is_causal=is_causal)
    if name.startswith("jax-"):
        theirs: Any = name.removeprefix("jax-")
        attend = jax.nn.dot_product_attention
        return functools.partial(attend, is_causal=is_causal, implementation=theirs)
    return functools.partial(
        kernels.dot_product_attention, is_causal=is_causal, implementation=implementation
    )


def directed(function: Callable, direction: str) -> Callable:
    """Of the inputs and the cotangent to the results that `Op.results` names."""
    if direction == FORWARD:
        return lambda *arrays: (function(*arrays[:-1]),)

    def both(*arrays):
        out, pull_back = jax.vjp(function, *arrays[:-1])
        return (out, *pull_back(arrays[-1]))

    return both


def draw(
    workload: Any, dtype: str, seed: int, count: int, op: Op = ATTENTION
) -> list[list[jax.Array]]:
    """Sets of the inputs and the cotangent, as `Op.shapes` and `Op.draw` have them."""
    shapes = op.shapes(workload)

    @jax.jit
    def one(keys):
        normals = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
        return [array.astype(dtype) for array in op.draw(normals)]

    keys = jax.random.split(jax.random.key(seed), (count, len(shapes)))
    # Ready, so that no timing waits for it.
    return jax.block_until_ready([one(row) for row in keys])


def chosen(workload: Any, dtype: str, op: Op = ATTENTION) -> str:
    """The name of what `implementation=None` takes."""
    *shapes, _ = op.shapes(workload)
    arrays = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        for name, shape in zip(op.inputs, shapes, strict=True)
    }
    scale, here = workload.H**-0.5, target()
    if op is ATTENTION:
        implementations, operands = attention.IMPLEMENTATIONS, Operands(**arrays)
        problem: Any = Problem(scale, workload.is_causal)
    else:
        implementations, operands = linear.IMPLEMENTATIONS, linear_problem.Operands(**arrays)
        problem = linear_problem.Problem(scale, workload.is_causal)
    for name, candidate in implementations.items():
        best = candidate.is_best(here, problem, operands)
        if best and candidate.refusal(here, problem, operands) is None:
            return name
    return "xla"


class _Bench:
    """Keeps programs, and the inputs of the workload that is at work."""

    def __init__(self, platform: str, seed: int):
        self.platform, self.dtype, self._seed = platform, DTYPES[platform], seed
        self.timer = Timer(platform)
        self._programs: dict[tuple[str, ...], Program] = {}
        self._inputs = functools.lru_cache(maxsize=1)(self._draw)
        self._reference = functools.lru_cache(maxsize=1)(self._expected)
        self._ceiling = functools.cache(self._make_ceiling)

    def gate(self, name: str, direction: str, contestant: str) -> Answer:
        """Errors on the checked rows, and whether two runs give the same bits."""
        arguments = self._inputs(name)[0]
        program = self._program(name, direction, contestant)
        first = program.run(*arguments)
        # What a kernel forgets to write is then likely to be NaN, not the result before.
        jax.block_until_ready([jnp.full_like(result, jnp.nan) for result in first])
        second = program.run(*arguments)
        rows = jnp.asarray(checked_rows(self._workload(name)))
        found = errors([_wide(array[rows]) for array in second], self._reference(name))
        whole = all(bool(jnp.isfinite(array).all()) for array in second)
        return {
            "compile_seconds": program.compile_seconds,
            "errors": found if whole else dict.fromkeys(found, float("nan")),
            "same_bits": all(_same_bits(a, b) for a, b in zip(first, second)),
        }

    def time(self, name: str, direction: str, contestant: str) -> Answer:
        program = self._program(name, direction, contestant)
        sets = self._inputs(name, input_sets(self._workload(name), self.dtype))
        seconds = self.timer.seconds(program, sets)
        return {"seconds": seconds, "method": self.timer.method}

    def time_ceiling(self, name: str) -> Answer:
        """Seconds of a large copy or product."""
        return {"seconds": self.timer.seconds(*self._ceiling(name))}

    def check_alive(self) -> None:
        jax.block_until_ready(jnp.ones(8) + 1)

    def _workload(self, name: str) -> Any:
        return at_hand(name, self.platform)

    def _program(self, name: str, direction: str, contestant: str) -> Program:
        key = (name, direction, contestant)
        if key not in self._programs:
            op, workload = CASES[name]
            function = directed(attend(contestant, workload.is_causal, op), direction)
            self._programs[key] = Program(function, self._inputs(name)[0])
        return self._programs[key]

    def _draw(self, name: str, count: int = 1) -> list[list[jax.Array]]:
        return draw(self._workload(name), self.dtype, self._seed, count, CASES[name][0])

    def _expected(self, name: str) -> dict[str, np.ndarray]:
        rows = jnp.asarray(checked_rows(self._workload(name)))
        arrays = [_wide(array[rows]) for array in self._inputs(name)[0]]
        op, workload = CASES[name]
        return op.expected(workload.is_causal, arrays)

    def _make_ceiling(self, name: str) -> tuple[Program, list[list[jax.Array]]]:
        key = jax.random.key(self._seed)
        if name == "copy":
            # An addition, because the driver's own copies are not seen as kernels.
            arguments = [jax.random.bits(key, (COPY_ELEMENTS[self.platform],))]
            return Program(lambda x: x + jnp.uint32(1), arguments), [
                jax.block_until_ready(arguments)
            ]
        shape = 2 * (PRODUCT_SIZE[self.platform],)
        arguments = [jax.random.normal(k, shape).astype(self.dtype) for k in jax.random.split(key)]
        return Program(jnp.matmul, arguments), [jax.block_until_ready(arguments)]


def _wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def _same_bits(a: jax.Array, b: jax.Array) -> bool:
    bits = jnp.uint16 if a.dtype.itemsize == 2 else jnp.uint32
    return bool((a.view(bits) == b.view(bits)).all())
