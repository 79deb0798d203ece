"""Times programs on their device."""

import importlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

LAUNCHES = 10  # least number in a turn on a GPU
CHAIN = 8  # least number of launches in a chain
LEAST_SECONDS = 0.03  # of a turn on a CPU
WARM_SECONDS = 0.02  # of calls that raise the clocks
ONE_BY_ONE = "--xla_gpu_enable_command_buffer="  # no CUDA graphs

Sets = Sequence[Sequence[Any]]


def launch_one_by_one() -> None:
    """Keeps XLA from making CUDA graphs; must be called before JAX starts its devices.

    CUPTI may miss the kernels of a graph that was made before CUPTI was attached. Kernels of a
    graph may also run at the same time, so that their durations do not add up.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if ONE_BY_ONE not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_BY_ONE}".strip()


class Program:
    """A function compiled for arguments like the given ones; call it like the function.

    Attributes:
      compile_seconds: time to trace, lower and compile.
    """

    def __init__(self, function: Callable, arguments: Sequence[Any]):
        self._function = function
        started = time.perf_counter()
        # A new function, because JAX would reuse an earlier trace of a known one.
        self._run = jax.jit(lambda *a: function(*a)).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - started
        self._chain: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*arguments)

    def chain(self, sets: Sets) -> tuple[Callable[[], Any], int]:
        """A program that calls the function on one set after the other, and its number of calls."""
        count = max(CHAIN, len(sets))
        arguments = [sets[i % len(sets)] for i in range(count)]
        if self._chain is None:
            self._chain = jax.jit(self._in_turn).lower(arguments).compile()
        return lambda: self._chain(arguments), count

    def _in_turn(self, sets: Sets) -> list[Any]:
        results: list[Any] = []
        for arguments in sets:
            if results:
                # Depends on the last result, so that calls neither overlap nor share work.
                arguments, results[-1] = jax.lax.optimization_barrier((arguments, results[-1]))
            results.append(self._function(*arguments))
        return results


class Timer:
    """Times programs by the best method of this platform.

    Attributes:
      method: a key of `report.METHODS`.
    """

    def __init__(self, platform: str):
        self.method = "wall"
        if platform == "cuda":
            self.method = "cupti" if _cupti_works() else "chain"

    def seconds(self, program: Program, sets: Sets) -> float:
        """Seconds of a call, averaged over the sets of arguments."""
        if self.method == "cupti":
            return _cupti_seconds(program, sets)
        if self.method == "chain":
            run, count = program.chain(sets)
            wait = lambda: jax.block_until_ready(run())
            warm_up(wait)
            return host_seconds(wait, [()]) / count
        return host_seconds(lambda *a: jax.block_until_ready(program(*a)), sets)


def host_seconds(call: Callable, sets: Sets) -> float:
    """Seconds of a call that waits for its result; a long call is made only once."""
    arguments = itertools.cycle(sets)
    count, started = 0, time.perf_counter()
    call(*next(arguments))
    if (elapsed := time.perf_counter() - started) >= LEAST_SECONDS:
        return elapsed
    started = time.perf_counter()  # a short first call only warms up
    while (elapsed := time.perf_counter() - started) < LEAST_SECONDS or not count:
        call(*next(arguments))
        count += 1
    return elapsed / count


def launches(sets: Sets) -> int:
    """A number of launches that is at least `LAUNCHES` and a multiple of the sets."""
    return len(sets) * -(-LAUNCHES // len(sets))


def warm_up(call: Callable[[], Any]) -> None:
    """Repeats a call that waits for its result until `WARM_SECONDS` have passed."""
    started = time.perf_counter()
    while True:
        call()
        if time.perf_counter() - started >= WARM_SECONDS:
            return


def _cupti_seconds(run: Callable, sets: Sets) -> float:
    """Like `jax.experimental.mosaic.gpu.profiler.measure`, for several sets."""
    profiler: Any = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
    extension, count, result = profiler.mosaic_gpu_lib._mosaic_gpu_ext, launches(sets), None
    warm_up(lambda: jax.block_until_ready(run(*sets[0])))
    extension._cupti_init()
    try:
        # The first set is in the cache, so it comes last.
        for arguments in itertools.islice(itertools.cycle(sets), 1, count + 1):
            result = run(*arguments)
        jax.block_until_ready(result)
    finally:
        timings = extension._cupti_get_timings(True)
    if not timings:
        raise RuntimeError("CUPTI saw no kernel")
    return sum(milliseconds for _, milliseconds in timings) / 1e3 / count


def _cupti_works() -> bool:
    """Whether CUPTI sees kernels; it may be missing, in use or forbidden."""
    probe = jnp.zeros(2**20)
    try:
        return _cupti_seconds(Program(lambda x: x + 1, [probe]), [[probe]]) > 0
    except Exception as error:
        print(f"no CUPTI ({type(error).__name__}: {error}); timing chains of launches instead")
        return False
