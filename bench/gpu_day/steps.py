"""The steps of a GPU day: when each ends, and the commands of its parts."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..common.machine import missing

DAY = 25.0  # minutes of a day
# The minute by which each step ends. What a step leaves is the next one's, and the last one's.
ENDS = {
    "packages": 1.5,
    "tests": 8.0,
    "kernels": 14.0,
    "tune": 17.0,
    "training": 21.0,
    "preset": DAY,
}

PRESET = "garg/linear"
STEPS_LEFT = 75  # exit status of a part that goes on in the next call
# Tests of kernels, the most important of the quick ones first.
TESTS = {
    "launches": ("plans", "row_tiles", "launch", "linear_attention_launch"),
    "attention": ("attention",),
    "linear-attention": ("linear_attention",),
    "transforms": ("transforms",),
    "drop-in": ("drop_in",),
    "others": ("refusals", "pallas"),
}
# All workloads of the benchmark of kernels, the most important first.
WORKLOADS = (
    *("garg", "linear-short", "delta-short", "pfn", "short-causal", "chan", "oswald"),
    *("cells-rows", "gpicl", "decay-short", "packed-garg", "medium-causal", "long-causal"),
    *("linear-tiny", "delta-tiny", "tiny-causal", "short-full", "cells-columns", "linear-oswald"),
    *("linear-medium", "delta-medium", "medium-full", "long-full", "text", "tiny-full"),
    *("linear-long", "delta-long", "linear-many-rows", "delta-many-rows", "packed-short-causal"),
    *("linear-text", "delta-text"),
)
# A workload of attention for each key of the table of launches.
TUNED = (
    *("garg", "short-causal", "pfn", "chan", "tiny-causal", "gpicl", "oswald", "short-full"),
    *("cells-rows", "medium-causal", "long-causal", "cells-columns", "tiny-full", "medium-full"),
    *("long-full", "text"),
)
TRAINING = (
    *(f"{size}@{batch}" for batch in (64, 512, 4096) for size in ("standard", "small", "xs")),
    *("xs-linear-attention@4096", "xs-delta-rule@4096", "xs-mesa@4096"),
)
# Contestants at a workload: ours and its peers, but not our slow definition.
CONTESTANTS = ("triton", "xla", "jnp", "jax-cudnn", "jax-xla")
# Further peers by the module that they need.
PEERS = {"torch": ("torch-sdpa", "torch-flex", "torch-chunked"), "fla": ("fla",)}
PEERS["tokamax"] = ("tokamax",)
MOST_PROCESSES = 8  # of tests on one GPU; most of a test's time is compilation on the host


@dataclass(frozen=True)
class Setting:
    """What the commands depend on.

    out: the folder of all results.
    rehearsal: whether everything is tiny and on the CPU.
    seed: seed of all benchmarks' inputs, equal in every call.
    wheels: the folder of carried wheels.
    """

    out: Path
    rehearsal: bool
    seed: int
    wheels: Path

    @property
    def site(self) -> Path:
        """The folder that carried wheels are installed into."""
        return self.out / "site"

    def folder(self, step: str, part: str) -> Path:
        """The folder of a part's own results."""
        return self.out / "parts" / step / part.replace("@", "-")


class Part(NamedTuple):
    """A command of a step, in a process of its own.

    Attributes:
      name: unique in its step.
      command: arguments of Python; "{seconds}" is replaced by the seconds that are left.
      environment: further variables.
      every_call: whether it runs in every call, even if it has run and if its step has ended.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = {}  # noqa: B006, it is never changed
    every_call: bool = False


Steps = Mapping[str, Callable[[Setting], list[Part]]]


def packages(setting: Setting) -> list[Part]:
    """Installs the carried wheels, and checks that every module can be imported."""
    found = []
    if wheels := sorted(map(str, setting.wheels.glob("*.whl"))):
        options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--quiet"]
        install = ["-m", "pip", "install", *options, "--target", str(setting.site), *wheels]
        found.append(Part("wheels", install, every_call=True))
    check = ["-m", "bench", "gpu-imports", *([] if setting.rehearsal else ["--here"])]
    return [*found, Part("imports", check)]


def tests(setting: Setting) -> list[Part]:
    """The tests of kernels, compiled for the GPU."""
    pytest = ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    # A warning of other versions than the tests' own must not take the day.
    pytest += ["-W", "default"]
    if setting.rehearsal:
        return [Part("launches", [*pytest, "-n", "0", "tests/kernels/test_plans.py"])]
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) // 2))
    pytest += ["-n", str(processes)]
    environment = {"ICL_TEST_DEVICE": "gpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    paths = lambda names: [f"tests/kernels/test_{name}.py" for name in names]
    return [Part(name, [*pytest, *paths(files)], environment) for name, files in TESTS.items()]


def kernels(setting: Setting) -> list[Part]:
    """The benchmark of kernels, one workload after the other."""
    peers = [name for module, names in PEERS.items() if not missing(module) for name in names]
    names, options = WORKLOADS, ["--only", *CONTESTANTS, *peers]
    if setting.rehearsal:
        names = WORKLOADS[:1]
        options = ["--only", "jnp", "--directions", "forward", "--rows", "1", "--rounds", "1"]
    options += ["--seed", str(setting.seed)]
    return [_benchmark(setting, "kernels", name, *options) for name in names]


def tune(setting: Setting) -> list[Part]:
    """The tuner, one key of the table of launches after the other."""
    command = ["-m", "bench", "tune", "--out", str(setting.out / "launch_tables")]
    if setting.rehearsal:
        tiny = ["oswald", "--rows", "1", "--seconds", "0", "--dtype", "float32"]
        return [Part("oswald", [*command, *tiny], {"ICL_KERNELS_INTERPRET": "1"})]
    return [Part(name, [*command, name, "--seconds", "30"]) for name in TUNED]


def training(setting: Setting) -> list[Part]:
    """The benchmark of training steps, one case after the other."""
    cases, options = TRAINING, ["--rounds", "5", "--seconds", "15"]
    if setting.rehearsal:
        cases, options = ("tiny@8",), ["--alone", "--rounds", "1", "--steps", "1"]
        options += ["--peak-size", "64"]
    if missing("torch", "transformers"):
        options += ["--alone"]
    return [_benchmark(setting, "training", case, *options) for case in cases]


def preset(setting: Setting) -> list[Part]:
    """Training of a preset of paper size, and its evaluation, for as long as time is left."""
    name = PRESET
    command = ["-m", "bench.gpu_day.preset", name, str(setting.out / "run")]
    command += ["--seconds", "{seconds}"]
    return [Part(name.replace("/", "-"), command + ["--tiny"] * setting.rehearsal)]


def _benchmark(setting: Setting, step: str, name: str, *options: str) -> Part:
    out = str(setting.folder(step, name))
    return Part(name, ["-m", "bench", step, name, *options, "--out", out])


STEPS: Steps = {
    "packages": packages,
    "tests": tests,
    "kernels": kernels,
    "tune": tune,
    "training": training,
    "preset": preset,
}
