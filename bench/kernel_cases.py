"""What is computed, how fast it could be, and what is right: known without JAX or torch."""

import contextlib
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from kernel_ops import ATTENTION, BOTH, CASES, FORWARD, contestants

from icl.kernels.attention.workloads import WORKLOADS, Workload

__all__ = ["ATTENTION", "BOTH", "CASES", "FORWARD", "WORKLOADS", "Workload", "contestants"]

DIRECTIONS = (FORWARD, BOTH)
OURS = ("ours", "triton", "xla", "reference")
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}
ITEMSIZE = {"float32": 4, "bfloat16": 2}
CPU_ELEMENTS = 2**21  # of a tensor, at most
CHECKED_SCORES = 2**27  # in the rows that are checked, at most
OUT_OF_CACHE = 2**28  # bytes that are gone over before the same input comes again; the H200 has 50M
METHODS = {
    "wall": "wall time of calls one after the other",
    "cupti": "durations of the kernels by CUPTI: no gaps, no copies by the driver, no memsets",
    "chain": "wall time of many launches in one program, by the number of launches",
    "torch.profiler": "durations of the kernels by torch.profiler, as with cupti",
    "CUDA events": "time between CUDA events around many launches, by their number",
}
# What kernels and their peers are made with, beside what `machine.describe` tells.
PACKAGES = ("triton", "jax-triton", "tokamax", "jax-cuda12-plugin", "jax-cuda13-plugin")
PACKAGES += ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

Answer = dict[str, Any]
Commands = dict[str, Callable[[], Answer]]
Started = tuple[Answer, Commands]


class Bench(Protocol):
    """The contestants of one framework; arguments are a workload's name, a direction and a name.

    gate: answers with `errors` on the checked rows, and more.
    time: answers with `seconds` a call, and more.
    check_alive: raises if the device can no longer be used.
    """

    def gate(self, name: str, direction: str, contestant: str) -> Answer: ...

    def time(self, name: str, direction: str, contestant: str) -> Answer: ...

    def check_alive(self) -> None: ...


def commands_of(
    bench: Bench,
    workloads: Sequence[str],
    directions: Sequence[str],
    platform: str,
    framework: str,
) -> Commands:
    """`gate` and `time` of everything; see `careful`."""
    commands: Commands = {}
    for workload in workloads:
        for direction in directions:
            for contestant in contestants(workload, platform, framework):
                case = (workload, direction, contestant)
                for verb, do in (("gate", bench.gate), ("time", bench.time)):
                    commands[" ".join([verb, *case])] = careful(bench, do, *case)
    return commands


def careful(bench: Bench, do: Callable[..., Answer], *arguments: str) -> Callable[[], Answer]:
    """Answers `failed` and why where `do` raises, and `broken` where nothing works any more."""

    def call() -> Answer:
        try:
            return do(*arguments)
        except Exception as error:
            answer: Answer = {"failed": describe_error(error)}
        try:
            bench.check_alive()
        except Exception:
            answer["broken"] = True
        return answer

    return call


def describe_error(error: Exception) -> str:
    """The kind of error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def versions() -> dict[str, str]:
    """Of those of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def at_hand(name: str, platform: str) -> Any:
    """The workload as it is run here: on a CPU with fewer batch rows, a power of two."""
    workload = CASES[name][1]
    if platform != "cpu":
        return workload
    row = workload.T * workload.N * workload.H
    batch = min(workload.B, max(1, CPU_ELEMENTS // row))
    return workload._replace(B=2 ** int(math.log2(batch)))


def input_sets(workload: Any, dtype: str) -> int:
    """How many inputs to take in turn, so that none is still in the cache when it comes again."""
    return math.ceil(OUT_OF_CACHE / workload.bytes(backward=False, itemsize=ITEMSIZE[dtype]))


def checked_rows(workload: Any) -> list[int]:
    """Up to four batch rows, the first and the last among them; fewer where they are long."""
    affordable = CHECKED_SCORES // (workload.N * workload.T * workload.T)
    count = max(1, min(4, affordable, workload.B))
    return (
        [workload.B - 1] if count == 1 else list(np.linspace(0, workload.B - 1, count, dtype=int))
    )


def errors(results: Sequence[np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """||result - reference|| / ||reference|| of each, over the checked rows; the first ones."""
    return {
        name: float(np.linalg.norm(result - reference[name]) / np.linalg.norm(reference[name]))
        for name, result in zip(reference, results, strict=False)
    }


def wrong(
    found: dict[str, float], yardstick: dict[str, float], factor: float, dtype: str
) -> str | None:
    """Says which error is above `factor` times the yardstick's, or None; NaN is above all."""
    for name, error in found.items():
        limit = factor * yardstick[name] + EPS[dtype] / 16
        if not error <= limit:
            return f"{name} is off by {error:.1e}, and may be by {limit:.1e}"
    return None
