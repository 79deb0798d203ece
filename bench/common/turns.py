"""Timing in turns, so that a slow spell of the machine affects all contestants alike."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

FEWEST_ROUNDS = 3


class HasCpuSeconds(Protocol):
    @property
    def cpu_seconds(self) -> float: ...


def take_turns(
    turns: Mapping[str, Callable[[], float]],
    workers: Collection[HasCpuSeconds],
    rounds: int,
    seconds: float | None = None,
) -> tuple[dict[str, list[float]], float | None]:
    """Calls each function once a round.

    Args:
      turns: functions to call, by name.
      workers: the processes that do the work.
      rounds: number of rounds.
      seconds: time limit; reduces the number of rounds to no fewer than `FEWEST_ROUNDS`.

    Returns:
      The returned numbers by name, one a round; and the share of the cores' time that other
      processes took meanwhile, None if the system does not report it.
    """
    taken: dict[str, list[float]] = {name: [] for name in turns}
    started, busy = time.perf_counter(), _busy_seconds()
    own = -sum(worker.cpu_seconds for worker in workers)
    done = 0
    while done < rounds:
        for name, turn in turns.items():
            taken[name].append(turn())
        done += 1
        if done == 1 and seconds is not None:
            affordable = int(seconds / (time.perf_counter() - started))
            rounds = min(rounds, max(FEWEST_ROUNDS, affordable))
    own += sum(worker.cpu_seconds for worker in workers)
    busy_now, elapsed = _busy_seconds(), time.perf_counter() - started
    if busy is None or busy_now is None:
        return taken, None
    return taken, max(0.0, (busy_now - busy - own) / elapsed / (os.cpu_count() or 1))


def summary(values: list[float]) -> dict[str, Any]:
    """Median, minimum, maximum and the values, one a round."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


def ratios(numerators: list[float], denominators: list[float]) -> dict[str, Any]:
    """`summary` of the ratios of two contestants, formed round by round."""
    return summary([a / b for a, b in zip(numerators, denominators, strict=True)])


def _busy_seconds() -> float | None:
    """CPU time of all processes since boot, including time stolen from a virtual machine."""
    try:
        times = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft_interrupt, stolen = times[:8]
    ticks = user + nice + system + interrupt + soft_interrupt + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
