"""The process of contestants in JAX, which also measures the machine's ceilings."""
# Only this benchmark needs tokamax, so type checkers may not find it.
# pyright: reportMissingImports=false

import functools
import math
import os
from collections.abc import Callable, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from icl.kernels import dispatch

from ..common.plain_attention import plain_attention
from ..common.worker import Started
from .device_time import Program, Timer, launch_one_by_one
from .ops import DTYPES, FORWARD, OURS, Case
from .sides import Answer, Side, checked_rows

COPY_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}  # of four bytes each
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}


def start(workloads: Sequence[str], seed: int, rows: int | None) -> Started:
    """Answers with the platform; has `gate` and `time` of contestants and `time` of ceilings.

    Raises:
      ValueError: the benchmark does not support this platform.
    """
    launch_one_by_one()
    os.environ.pop("ICL_KERNELS_INTERPRET", None)  # tests set it
    platform = dispatch.target().platform
    if platform not in DTYPES:
        raise ValueError(f"this benchmark supports {' and '.join(DTYPES)}, not {platform}")
    side = JaxSide(workloads, seed, rows, platform)
    commands = dict(side.commands("jax"))
    for name in ("copy", "product"):
        commands[f"time {name}"] = side.careful(side.time_ceiling, name)
    ready = {
        "platform": platform,
        "device": jax.devices()[0].device_kind,
        "dtype": side.dtype,
        "chosen": {name: chosen(case, side.dtype) for name, case in side.cases.items()},
        "shapes": {name: case.shape for name, case in side.cases.items()},
        "product_size": PRODUCT_SIZE[platform],
        "copy_bytes": 8 * COPY_ELEMENTS[platform],
    }
    return ready, commands


def attend(case: Case, contestant: str) -> Callable:
    """A contestant as a function from the inputs in order to the output `[B, T, N, H]`."""
    implementation = None if contestant == "ours" else contestant
    ours, shapes = case.call(implementation=implementation)
    if contestant in OURS:
        return lambda *inputs: ours(**dict(zip(shapes, inputs, strict=True)))
    if contestant == "tokamax":
        import tokamax
        from absl import flags

        # Otherwise tokamax would parse the command line.
        flags.FLAGS.mark_as_parsed()
        theirs: Callable = tokamax.dot_product_attention
    elif contestant == "jnp":
        theirs = plain_attention
    else:
        named = contestant.removeprefix("jax-")
        theirs = functools.partial(jax.nn.dot_product_attention, implementation=named)  # pyright: ignore
    theirs = functools.partial(theirs, is_causal=case.workload.is_causal)
    if case.lengths is not None:
        theirs = functools.partial(theirs, key_value_seq_lengths=jnp.asarray(case.lengths))
    if "qkv" in shapes:
        return lambda qkv: theirs(*(qkv[:, :, part] for part in range(3)))
    return theirs


def directed(function: Callable, direction: str) -> Callable:
    """A function from inputs and cotangent to the results in the order of `Case.expected`."""
    if direction == FORWARD:
        return lambda *arrays: (function(*arrays[:-1]),)

    def both(*arrays):
        out, pull_back = jax.vjp(function, *arrays[:-1])
        return (out, *pull_back(arrays[-1]))

    return both


def draw(case: Case, dtype: str, seed: int, count: int) -> list[list[jax.Array]]:
    """`count` sets of inputs and cotangent in the order of `Case.shapes`."""
    # Waits, so that no timing includes the drawing.
    return jax.block_until_ready([_draw(_key(seed + 2**24 * i), case, dtype) for i in range(count)])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key, case, dtype):
    shapes = case.shapes()
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    normals = {name: p.reshape(shape) for (name, shape), p in zip(shapes.items(), parts)}
    return [array.astype(dtype) for array in case.draw(normals)]


def _key(seed: int) -> jax.Array:
    return jax.random.key(seed, impl="rbg")  # compiles faster than the default


def chosen(case: Case, dtype: str) -> str:
    """The implementation that `implementation=None` chooses."""
    names: list[str] = []

    def choose(op, implementations, *more, original=dispatch.choose):
        run = original(op, implementations, *more)
        names.extend(n for n, c in implementations.items() if run in (c.run, c.run_anywhere))
        return run

    function, shapes = case.call(dtype)
    with mock.patch.object(dispatch, "choose", choose):
        jax.eval_shape(lambda arrays: function(**arrays), shapes)
    return names[0]


class JaxSide(Side):
    def __init__(self, workloads: Sequence[str], seed: int, rows: int | None, platform: str):
        super().__init__(workloads, seed, rows, platform)
        self.timer = Timer(platform)
        self._ceiling = functools.cache(self._make_ceiling)

    def draw(self, name: str, count: int) -> list[list[jax.Array]]:
        return draw(self.cases[name], self.dtype, self.seed, count)

    def make(self, name: str, direction: str, contestant: str) -> Program:
        function = directed(attend(self.cases[name], contestant), direction)
        return Program(function, self.inputs(name, 1)[0])

    def run(self, program: Program, arguments: list[jax.Array]):
        """Also answers whether two runs give the `same_bits`, and the `compile_seconds`."""
        first = program(*arguments)
        # Fills freed memory with NaN, which shows if the second run leaves output unwritten.
        jax.block_until_ready([jnp.full_like(result, jnp.nan) for result in first])
        second = program(*arguments)
        finite = all(bool(jnp.isfinite(array).all()) for array in second)
        same_bits = all(_same_bits(a, b) for a, b in zip(first, second))
        more = {"compile_seconds": program.compile_seconds, "same_bits": same_bits}
        return second, finite, more

    def wide(self, array: jax.Array, name: str) -> np.ndarray:
        rows = jnp.asarray(checked_rows(self.cases[name]))
        return np.asarray(array[rows]).astype(np.float64)

    def seconds(self, program: Program, sets: list[list[jax.Array]]) -> Answer:
        return {"seconds": self.timer.seconds(program, sets), "method": self.timer.method}

    def check_alive(self) -> None:
        jax.block_until_ready(jnp.ones(8) + 1)

    def time_ceiling(self, name: str) -> Answer:
        """The seconds of a large copy or product."""
        return self.seconds(*self._ceiling(name))

    def _make_ceiling(self, name: str) -> tuple[Program, list[list[jax.Array]]]:
        if name == "copy":
            # An addition, because profilers do not count copies by the driver as kernels.
            function = lambda x: x + jnp.uint32(1)
            arguments = [jnp.arange(COPY_ELEMENTS[self.platform], dtype=jnp.uint32)]
        else:
            function, shape = jnp.matmul, 2 * (PRODUCT_SIZE[self.platform],)
            arguments = list(jax.random.normal(_key(self.seed), (2, *shape)).astype(self.dtype))
        return Program(function, arguments), [jax.block_until_ready(arguments)]


def _same_bits(a: jax.Array, b: jax.Array) -> bool:
    bits = jnp.uint16 if a.dtype.itemsize == 2 else jnp.uint32
    return bool((a.view(bits) == b.view(bits)).all())
