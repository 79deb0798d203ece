"""The machine under a benchmark: what it is, and whether others used it meanwhile."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")


def describe() -> dict[str, Any]:
    """Where and with what a benchmark runs; to be called before it. The device is to be added,
    under `device`, by what JAX calls it: this process starts no JAX of its own."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "load_before": os.getloadavg()[0],  # processes that wanted a core over the last minute
        "versions": versions,
        "revision": _revision(),
    }


class Bystanders:
    """Measures, from when it is made, how busy others keep the machine's cores."""

    def __init__(self):
        self._started, self._busy = time.perf_counter(), _busy_seconds()

    def share(self, own_seconds: float) -> float | None:
        """Others' part of the cores' time until now; None where the system does not tell.

        Args:
          own_seconds: CPU time, of all cores together, that the benchmark itself took.
        """
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        others = busy - self._busy - own_seconds
        return max(0.0, others / (time.perf_counter() - self._started) / (os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """CPU time of all processes, and what a virtual machine was refused, since the start."""
    try:
        times = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupt, soft_interrupt, stolen = times[:8]
    ticks = user + nice + system + interrupt + soft_interrupt + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _revision() -> str:
    """The commit, with -dirty where tracked files, other than results, differ from it."""
    git = lambda *arguments: subprocess.run(
        ["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
