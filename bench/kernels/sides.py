"""A framework's side of the kernel benchmark: its contestants' errors and times, on request."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common.worker import Commands, describe_error
from .ops import CASES, DIRECTIONS, DTYPES, OURS, Case

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}
ITEMSIZE = {"float32": 4, "bfloat16": 2}
CPU_ELEMENTS = 2**21  # of a tensor, at most
CHECKED_SCORES = 2**27  # in the rows that are checked, at most
OUT_OF_CACHE = 2**28  # bytes that are gone over before the same input comes again; the H200 has 50M
MOST_SETS = 16  # of inputs, for small workloads that stay in the cache
PACKAGES = {"fla": "flash-linear-attention", "torch": "-r bench/requirements.txt"}

Answer = dict[str, Any]


class Side:
    """The contestants of one framework; it keeps programs, and the inputs of one workload.

    Args:
      workloads: names in `CASES`.
      rows: batch rows of a workload at most; None for as many as the platform affords.

    Attributes:
      cases: by name, as they are run here.
      inputs: `(name, count)` to sets of inputs and cotangent, in order.
      program: `(name, direction, contestant)` to a function of such a set.
    """

    def __init__(self, workloads: Sequence[str], seed: int, rows: int | None, platform: str):
        self.platform, self.dtype, self.seed = platform, DTYPES[platform], seed
        self.cases = {name: at_hand(CASES[name], platform, rows) for name in workloads}
        self.inputs = functools.lru_cache(maxsize=1)(self.draw)
        self.program = functools.cache(self.make)
        self._reference = functools.lru_cache(maxsize=1)(self._expected)

    def draw(self, name: str, count: int) -> list[list[Any]]:
        raise NotImplementedError

    def make(self, name: str, direction: str, contestant: str) -> Callable:
        raise NotImplementedError

    def run(self, program: Callable, arguments: list[Any]) -> tuple[Sequence[Any], bool, Answer]:
        """The results that `Case.expected` names, whether all are finite, and more to answer."""
        raise NotImplementedError

    def wide(self, array: Any, name: str) -> np.ndarray:
        """The checked rows, as float64 `[rows, T, N, H]`."""
        raise NotImplementedError

    def seconds(self, program: Callable, sets: list[list[Any]]) -> Answer:
        """The `seconds` of a call and the `method` of timing, a key of `report.METHODS`."""
        raise NotImplementedError

    def check_alive(self) -> None:
        """Raises if the device can no longer be used."""
        raise NotImplementedError

    def commands(self, framework: str) -> Commands:
        """`gate` and `time` of everything; see `careful`."""
        return {
            f"{verb} {name} {direction} {contestant}": self.careful(do, name, direction, contestant)
            for name, case in self.cases.items()
            for direction in DIRECTIONS
            for contestant in case.op.contestants[self.platform][framework]
            for verb, do in (("gate", self.gate), ("time", self.time))
        }

    def careful(self, do: Callable[..., Answer], *arguments: str) -> Callable[[], Answer]:
        """Answers `failed` and the reason if `do` raises, and `broken` if nothing works any more.

        A peer that says it is not made for a workload answers `cannot` and the reason.
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

        They are NaN if anything in any row is not finite.
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
        return self.cases[name].expected([self.wide(a, name) for a in self.inputs(name, 1)[0]])


def not_installed(module: str) -> str:
    package = PACKAGES.get(module, module)
    return f"{module} is not installed: `pip install {package}`, or leave it out with --only"


def at_hand(case: Case, platform: str, rows: int | None = None) -> Case:
    """The case with fewer batch rows: those asked for, and on a CPU few, a power of two."""
    batch, length, heads, width, _ = case.workload
    if platform == "cpu":
        batch = 2 ** int(math.log2(min(batch, max(1, CPU_ELEMENTS // (length * heads * width)))))
    return case._replace(workload=case.workload._replace(B=min(batch, rows or batch)))


def input_sets(case: Case, dtype: str) -> int:
    """Number of inputs to take in turn, so that none is still in the cache when it comes again."""
    return min(MOST_SETS, math.ceil(OUT_OF_CACHE / case.work(DIRECTIONS[0], ITEMSIZE[dtype])[0]))


def checked_rows(case: Case) -> list[int]:
    """Up to four batch rows, the last among them; fewer if they are long."""
    batch, length, heads = case.workload[:3]
    affordable = CHECKED_SCORES // (heads * length * length)
    return np.linspace(batch - 1, 0, max(1, min(4, affordable, batch)), dtype=int).tolist()
