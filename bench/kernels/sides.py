"""A framework's side of the kernel benchmark: errors and times of its contestants."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common.worker import Commands, describe_error
from .ops import CASES, DIRECTIONS, DTYPES, OURS, Case

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}
ITEMSIZE = {"float32": 4, "bfloat16": 2}
CPU_ELEMENTS = 2**21  # largest size of a tensor on a CPU
CHECKED_SCORES = 2**27  # largest number of scores in the checked rows
OUT_OF_CACHE = 2**28  # bytes read before an input is used again; the H200's cache has 50 MB
MOST_SETS = 16  # of inputs; inputs of small workloads may stay in the cache
PACKAGES = {"fla": "flash-linear-attention", "torch": "-r bench/requirements.txt"}

Answer = dict[str, Any]


class Side:
    """The contestants of one framework; keeps all programs, and the inputs of one workload.

    Args:
      workloads: names in `CASES`.
      seed: seed of the inputs.
      rows: largest number of batch rows; None for the platform's.
      platform: a key of `DTYPES`.

    Attributes:
      cases: cases by name, with the batch rows of this side.
      inputs: cached `draw`.
      program: cached `make`.
    """

    def __init__(self, workloads: Sequence[str], seed: int, rows: int | None, platform: str):
        self.platform, self.dtype, self.seed = platform, DTYPES[platform], seed
        self.cases = {name: at_hand(CASES[name], platform, rows) for name in workloads}
        self.inputs = functools.lru_cache(maxsize=1)(self.draw)
        self.program = functools.cache(self.make)
        self._reference = functools.lru_cache(maxsize=1)(self._expected)

    def draw(self, name: str, count: int) -> list[list[Any]]:
        """`count` sets of inputs and cotangent, each in the order of `Case.shapes`."""
        raise NotImplementedError

    def make(self, name: str, direction: str, contestant: str) -> Callable:
        """A contestant's function of the arrays of a set."""
        raise NotImplementedError

    def run(self, program: Callable, arguments: list[Any]) -> tuple[Sequence[Any], bool, Answer]:
        """Results in the order of `Case.expected`, whether all are finite, and further answers."""
        raise NotImplementedError

    def wide(self, array: Any, name: str) -> np.ndarray:
        """The checked rows as float64 `[rows, T, N, ...]`."""
        raise NotImplementedError

    def seconds(self, program: Callable, sets: list[list[Any]]) -> Answer:
        """The `seconds` of a call and the `method` of timing, a key of `report.METHODS`."""
        raise NotImplementedError

    def check_alive(self) -> None:
        """Raises an exception if the device no longer works."""
        raise NotImplementedError

    def commands(self, framework: str) -> Commands:
        """`gate` and `time` of each case, direction and contestant, made by `careful`."""
        return {
            f"{verb} {name} {direction} {contestant}": self.careful(do, name, direction, contestant)
            for name, case in self.cases.items()
            for direction in DIRECTIONS
            for contestant in case.op.contestants[self.platform][framework]
            for verb, do in (("gate", self.gate), ("time", self.time))
        }

    def careful(self, do: Callable[..., Answer], *arguments: str) -> Callable[[], Answer]:
        """A command that reports exceptions: the reason as `failed`, and a dead device as `broken`.

        If a peer raises NotImplementedError, it does not support the workload, and the reason is
        reported as `cannot`.
        """

        def call() -> Answer:
            try:
                return do(*arguments)
            except ModuleNotFoundError as error:
                return {"failed": not_installed(error.name or str(error))}
            except Exception as error:
                unable = isinstance(error, NotImplementedError) and arguments[-1] not in OURS
                answer: Answer = {"cannot" if unable else "failed": describe_error(error)}
            try:
                self.check_alive()
            except Exception:
                answer["broken"] = True
            return answer

        return call

    def gate(self, name: str, direction: str, contestant: str) -> Answer:
        """||result - reference|| / ||reference|| over the checked rows, as `errors` by result.

        Errors are NaN if any number in any row is not finite.
        """
        program = self.program(name, direction, contestant)
        results, finite, more = self.run(program, self.inputs(name, 1)[0])
        norm, errors = np.linalg.norm, {}
        for (result, wanted), array in zip(self._reference(name).items(), results, strict=False):
            error = float(norm(self.wide(array, name) - wanted) / norm(wanted))
            errors[result] = error if finite else math.nan
        return {"errors": errors, **more}

    def time(self, name: str, direction: str, contestant: str) -> Answer:
        program = self.program(name, direction, contestant)
        return self.seconds(program, self.inputs(name, input_sets(self.cases[name], self.dtype)))

    def _expected(self, name: str) -> dict[str, np.ndarray]:
        arrays = [self.wide(array, name) for array in self.inputs(name, 1)[0]]
        return self.cases[name].expected(arrays, checked_rows(self.cases[name]))


def not_installed(module: str) -> str:
    package = PACKAGES.get(module, module)
    return f"{module} is not installed: `pip install {package}`, or leave it out with --only"


def at_hand(case: Case, platform: str, rows: int | None = None) -> Case:
    """The case with at most `rows` batch rows; on a CPU within `CPU_ELEMENTS`, a power of two."""
    batch, length, heads, width = case.workload[:4]
    if platform == "cpu":
        batch = 2 ** int(math.log2(min(batch, max(1, CPU_ELEMENTS // (length * heads * width)))))
    return case._replace(workload=case.workload._replace(B=min(batch, rows or batch)))


def input_sets(case: Case, dtype: str) -> int:
    """Number of sets of inputs, so that none is still in the cache when it is used again."""
    return min(MOST_SETS, math.ceil(OUT_OF_CACHE / case.work(DIRECTIONS[0], ITEMSIZE[dtype])[0]))


def checked_rows(case: Case) -> list[int]:
    """Up to four batch rows including the last; fewer if rows are long."""
    batch, length, heads = case.workload[:3]
    affordable = CHECKED_SCORES // (heads * length * length)
    return np.linspace(batch - 1, 0, max(1, min(4, affordable, batch)), dtype=int).tolist()
