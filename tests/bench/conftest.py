"""Fixtures that run benchmarks without their processes and at tiny sizes."""

import importlib
import json
import os
import threading

import pytest

from bench.common import worker
from bench.common.worker import ROOT, Worker, WorkerFailed

NEED_TORCH = (
    "bench.training.gate:start",
    "bench.training.torch_peer:start",
    "bench.kernels.torch_side:start",
    "bench.tasks.sampling:start_host",
)


class InProcess(Worker):
    """A `Worker` that runs its commands in the test's process; answers still go through JSON.

    Two kinds keep their own processes: workers that need PyTorch, because importing it causes
    warnings, and workers of another revision, except stand-ins, which do not import its `icl`.
    """

    _starting = threading.Lock()

    def __init__(self, start, *arguments, source=ROOT):
        self._commands = None
        if start in NEED_TORCH or (source != ROOT and start.startswith("bench.")):
            super().__init__(start, *arguments, source=source)
            return
        self.cpu_seconds = 0.0
        module, _, function = start.partition(":")
        try:
            with self._starting:
                ready, self._commands = getattr(importlib.import_module(module), function)(
                    *json.loads(json.dumps(arguments))
                )
        except ValueError as error:
            raise WorkerFailed(str(error)) from error
        self.ready = json.loads(json.dumps(ready))

    def ask(self, command):
        if self._commands is None:
            return super().ask(command)
        return json.loads(json.dumps(self._commands[command]()))

    def __exit__(self, *error):
        if self._commands is None:
            super().__exit__(*error)


@pytest.fixture
def in_process(monkeypatch):
    """Replaces `Worker` by `InProcess`, and makes peaks, copies and turns small."""
    import jax

    from bench import recipes
    from bench.kernels import device_time, jax_side, sides
    from bench.tasks import lasso, sampling
    from bench.training import benchmark, populations, profile, scaling, trainer
    from icl.layers.mixers import MIXERS

    for module in (worker, benchmark, populations, profile, scaling, lasso, sampling, recipes):
        monkeypatch.setattr(module, "Worker", InProcess)
    monkeypatch.setitem(trainer.PEAK_PRODUCT, "cpu", (64, 1))
    monkeypatch.setitem(jax_side.COPY_ELEMENTS, "cpu", 2**10)
    monkeypatch.setitem(jax_side.PRODUCT_SIZE, "cpu", 64)
    monkeypatch.setattr(device_time, "LEAST_SECONDS", 1e-4)
    monkeypatch.setattr(sides, "OUT_OF_CACHE", 1)
    # Workers change these settings of their processes.
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.delenv("ICL_KERNELS_INTERPRET", raising=False)
    monkeypatch.setitem(MIXERS, "plain_attention", None)
    wide = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", wide)


@pytest.fixture
def not_compiled(in_process, monkeypatch):
    """Makes JAX trace and lower programs without compiling them; programs return zeros."""
    import jax
    import jax.numpy as jnp

    is_key = lambda out: jax.dtypes.issubdtype(out.dtype, jax.dtypes.prng_key)
    zeros = lambda out: out if is_key(out) else jnp.zeros(out.shape, out.dtype)

    class NotCompiled:
        def __init__(self, lowered):
            self._out = lowered.out_info

        def __call__(self, *arguments):
            return jax.tree.map(zeros, self._out)

        def memory_analysis(self):
            return None

    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: NotCompiled(lowered))
