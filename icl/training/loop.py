"""The host loop: runs chunks of steps on the device; saves and checks between chunks."""

import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from ..signals import WORDS, saves_first, words_are_mine
from . import processes
from .config import TrainingConfig
from .estimate import chunk_length, long_run, steps_at_once
from .memory import MemoryGuard
from .progress import ProgressDisplay
from .step import StepMetrics

POLL_SECONDS = 0.01


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step and what to try."""


class Interrupted(Exception):
    """The run was stopped by a signal, and saved.

    Attributes:
      signum: number of the signal.
      step: step of the saved checkpoint.
    """

    def __init__(self, step: int, signum: int, resume: str):
        super().__init__(f"stopped at step {step}; continue with: {resume}")
        self.step = step
        self.signum = signum


class Journal(Protocol):
    """Saves the metrics and checkpoints of a run or of a population.

    Attributes:
      resume: the command that continues the run or population.
    """

    resume: str

    def check(self, first: int, metrics: StepMetrics) -> None:
        """Checks the metrics of a chunk that began at step `first`; raises to stop the run."""

    def record(self, step: int, metrics: StepMetrics, seconds: float) -> dict[str, Any]:
        """The record of a log interval until `step`, whose steps took `seconds`."""
        ...

    def write(self, step: int, record: dict[str, Any], metrics: StepMetrics) -> None:
        """Saves the record of a complete log interval."""

    def save(self, step: int, state: Any) -> None:
        """Saves a checkpoint."""


def advance(
    compile: Callable[[Any, int], Callable],
    state: Any,
    first: int,
    training: TrainingConfig,
    journal: Journal,
    memory: MemoryGuard,
    display: ProgressDisplay,
    seconds_a_step: float | None,
) -> Any:
    """Trains from step `first` to the last step.

    Args:
      compile: from a state and a number of steps to the program of a chunk, which takes a state
        and returns the state after the chunk and `StepMetrics`, whose last axis is the steps.
      state: the state at step `first`; it is consumed.
      first: number of steps made so far.
      training: number of steps, and the intervals of metrics and checkpoints.
      journal: saves metrics and checkpoints.
      memory: raises OutOfMemory with advice if a program does not fit.
      display: shows progress.
      seconds_a_step: expected duration of a step on all devices; None if it is not estimated.

    Returns:
      The state after the last step.

    Raises:
      OutOfMemory: a chunk does not fit the device.
      Interrupted: a signal came or standard output was closed; the state was saved.
    """
    chunks = _Chunks(compile, display, memory)
    # Timings differ between processes, so all use the lead's.
    at_once = steps_at_once(training.log_every, seconds_a_step)
    at_once = int(processes.from_lead(lambda: str(at_once)))
    with display, saves_first() as stop:
        if first:
            display.say(f"resumed at step {first}")
        if warning := long_run(training.steps - first, seconds_a_step):
            display.say(warning)
        step, interval = first, []
        while step < training.steps:
            end = min(step - step % training.log_every + training.log_every, training.steps)
            length = chunk_length(step, end, at_once)
            compiled, signum = chunks.compiled(state, length, stop, step)
            if signum:
                if step > first:
                    journal.save(step, state)
                raise Interrupted(step, signum, journal.resume)
            state, metrics, seconds = chunks.run(compiled, state, stop)
            journal.check(step, metrics)
            step += length
            interval.append((metrics, seconds))
            whole = jax.tree.map(
                lambda *parts: np.concatenate(parts, axis=-1), *(part for part, _ in interval)
            )
            record = journal.record(step, whole, sum(seconds for _, seconds in interval))
            display.update(step, record)
            if step == end:
                interval = []
                journal.write(step, record | chunks.take_compile_seconds(), whole)
            regular = step == training.steps or step % training.checkpoint_every == 0
            if regular:
                journal.save(step, state)
            if display.gone and not stop:
                stop.append(signal.SIGPIPE)
            signum = processes.agree(stop[0] if stop else 0, step)
            if signum and step < training.steps:
                if not regular:
                    journal.save(step, state)
                raise Interrupted(step, signum, journal.resume)
    return state


class _Chunks:
    """Compiled chunks by length: usually one, and another for a remainder of steps."""

    def __init__(self, compile: Callable, display: ProgressDisplay, memory: MemoryGuard):
        self._compile = compile
        self._display = display
        self._memory = memory
        self._compiled = {}
        self._compile_seconds = 0.0

    def compiled(self, state: Any, length: int, stop: list[int], step: int) -> tuple[Callable, int]:
        """The program of a chunk, and the signal that came while it was compiled, or 0.

        Raises:
          OutOfMemory: the program does not fit the device.
        """
        if length in self._compiled:
            return self._compiled[length], 0
        with self._memory.as_out_of_memory():
            started = time.perf_counter()
            chunk = self._compile(state, length)
            self._compiled[length] = chunk
            seconds = time.perf_counter() - started
            self._compile_seconds += seconds
            self._display.say(f"compiled in {seconds:.1f} s")
            self._memory.check(chunk)
            return chunk, processes.agree(stop[0] if stop else 0, step)

    def run(self, chunk: Callable, state: Any, stop: list[int]) -> tuple[Any, StepMetrics, float]:
        """Runs a chunk; returns the new state, the metrics as NumPy arrays, and the duration.

        Raises:
          OutOfMemory: the program does not fit the device.
        """
        with self._memory.as_out_of_memory():
            return self._run_chunk(chunk, state, stop)

    def _run_chunk(self, chunk: Callable, state: Any, stop: list[int]):
        started = time.perf_counter()
        state, metrics = chunk(state)
        announced = False
        # Python handles signals only between its own instructions, so do not wait inside JAX.
        while not metrics.loss.is_ready():
            time.sleep(POLL_SECONDS)
            processes.watch()
            if stop and not announced:
                announced = True
                if words_are_mine():
                    self._display.say(WORDS)
        metrics = jax.tree.map(np.asarray, metrics)
        return state, metrics, time.perf_counter() - started

    def take_compile_seconds(self) -> dict[str, float]:
        """Seconds of compilation since the last call, as an item of the metrics; empty if none."""
        seconds, self._compile_seconds = self._compile_seconds, 0.0
        return {"compile_seconds": round(seconds, 3)} if seconds else {}
