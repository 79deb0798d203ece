"""The host loop: chunks of steps on the device, and everything that happens between them."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax

from .config import CUSTOM, Config
from .learner import Learner
from .metrics import LoggingConfig, Sink, check_installed, open_sinks
from .optimizer import learning_rate_schedule, make_optimizer
from .progress import ProgressDisplay
from .run import Run, free_path
from .step import StepMetrics, TrainState, compile_chunk, init_state

POLL_SECONDS = 0.01


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message says when, and what to try."""


class Interrupted(Exception):
    """A signal stopped the run after it was saved.

    Attributes:
      signum: the signal.
      step: the step that was saved.
    """

    def __init__(self, run: Run, step: int, signum: int):
        super().__init__(f"stopped at step {step}; continue with: icl train --resume {run.path}")
        self.step = step
        self.signum = signum


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    logging: LoggingConfig | None = None,
) -> Run:
    """Trains an in-context learner from its first step to its last.

    Args:
      config: the settings.
      run_dir: folder of the run; None for a new one below `runs`.
      optimizer: any optax optimiser, in place of `config.optimizer`; a resume must pass it
        again.
      logging: further places for the metrics.

    Returns:
      The run, with a checkpoint of its last step.

    Raises:
      RunError: the folder is taken. Nothing in it is touched.
      NonFiniteLoss: the loss became NaN or infinite.
      Interrupted: SIGINT or SIGTERM; the run was saved.
    """
    if optimizer is not None:
        config = dataclasses.replace(
            config, optimizer=dataclasses.replace(config.optimizer, name=CUSTOM)
        )
    logging = logging or LoggingConfig()
    check_installed(logging)
    learner = Learner(config)
    optimizer = optimizer or make_optimizer(config.optimizer, config.training.steps)
    run = Run.create(run_dir or free_path(config.task.__class__.__name__.lower()), config)
    with run.locked():
        _advance(run, learner, optimizer, init_state(learner, optimizer), logging)
    return run


def resume(
    run: Run | str | Path,
    *,
    optimizer: optax.GradientTransformation | None = None,
    logging: LoggingConfig | None = None,
) -> Run:
    """Continues a run from its newest checkpoint that can be read.

    The run ends with the same bits as if it had never stopped.

    Args:
      run: the run or its folder.
      optimizer: the one the run was started with, where it was given from Python.
      logging: as for `train`.

    Raises:
      RunError: no run there, or another process is training it.
      NonFiniteLoss, Interrupted: as for `train`.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    logging = logging or LoggingConfig()
    check_installed(logging)
    learner = Learner(run.config)
    if optimizer is None:
        optimizer = make_optimizer(run.config.optimizer, run.config.training.steps)
    with run.locked():
        checkpoints = run.checkpoints()
        try:
            abstract = jax.eval_shape(lambda: init_state(learner, optimizer).items())
            found = checkpoints.restore_newest(abstract)
            checkpoints.set_aside_after(found[0] if found else -1)
        finally:
            checkpoints.close()
        state = TrainState.from_items(found[1]) if found else init_state(learner, optimizer)
        _advance(run, learner, optimizer, state, logging)
    return run


def _advance(
    run: Run,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    logging: LoggingConfig,
) -> None:
    """Trains from the state to the last step, writing the run down on the way."""
    training = run.config.training
    first = int(state.step)
    checkpoints = run.checkpoints()
    sinks = open_sinks(run, logging, first)
    display = ProgressDisplay(training.steps, first, logging.progress)
    chunks = _Chunks(learner, optimizer, display)
    try:
        with display, _stop_signals() as stop:
            if first:
                display.say(f"resumed at step {first}")
            step = first
            while step < training.steps:
                length = min(training.log_every - step % training.log_every, training.steps - step)
                state, metrics, seconds = chunks.run(state, length, stop)
                _check_finite(run, step, metrics, checkpoints.steps())
                step += length
                record = _record(learner, step, metrics, seconds)
                _write(sinks, display, step, record | chunks.take_compile_seconds())
                if stop or step == training.steps or step % training.checkpoint_every == 0:
                    checkpoints.save(step, state.items())
                if stop and step < training.steps:
                    raise Interrupted(run, step, stop[0])
    finally:
        for sink in sinks:
            sink.close()
        checkpoints.close()


class _Chunks:
    """Compiled chunks by length; nearly always one, and one more for a remainder."""

    def __init__(self, learner, optimizer, display: ProgressDisplay):
        self._learner = learner
        self._optimizer = optimizer
        self._display = display
        self._compiled = {}
        self._compile_seconds = 0.0

    def run(self, state: TrainState, length: int, stop: list[int]):
        """Runs a chunk; returns the new state, its metrics as NumPy, and the seconds it took."""
        if length not in self._compiled:
            started = time.perf_counter()
            chunk = compile_chunk(self._learner, self._optimizer, state, length)
            self._compiled[length] = chunk
            self._compile_seconds = time.perf_counter() - started
            self._display.say(f"compiled in {self._compile_seconds:.1f} s")
        started = time.perf_counter()
        state, metrics = self._compiled[length](state)
        told = False
        # Waiting in Python, rather than inside JAX, lets signals in.
        while not metrics.loss.is_ready():
            time.sleep(POLL_SECONDS)
            if stop and not told:
                told = True
                self._display.say("stopping after this chunk; a second signal stops at once")
        metrics = jax.tree.map(np.asarray, metrics)
        return state, metrics, time.perf_counter() - started

    def take_compile_seconds(self) -> dict[str, float]:
        """Seconds spent compiling since the last call, for the metrics; nothing where none."""
        seconds, self._compile_seconds = self._compile_seconds, 0.0
        return {"compile_seconds": round(seconds, 3)} if seconds else {}


def _record(learner: Learner, step: int, metrics: StepMetrics, seconds: float) -> dict[str, float]:
    config = learner.config
    rate = len(metrics.loss) / seconds
    record = {"loss": float(metrics.loss.mean()), "grad_norm": float(metrics.grad_norm.mean())}
    if config.optimizer.name != CUSTOM:
        schedule = learning_rate_schedule(config.optimizer, config.training.steps)
        record["learning_rate"] = float(np.asarray(schedule(step - 1)))
    record["steps_per_second"] = round(rate, 3)
    record["tokens_per_second"] = round(rate * config.training.batch_size * learner.tokens, 1)
    return record


def _write(sinks: list[Sink], display: ProgressDisplay, step: int, record: dict) -> None:
    for sink in sinks:
        sink.write(step, record)
    display.update(step, record["loss"], record["steps_per_second"], record["tokens_per_second"])


def _check_finite(run: Run, first: int, metrics: StepMetrics, saved: list[int]) -> None:
    bad = ~(np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm))
    if not bad.any():
        return
    step = first + int(bad.argmax()) + 1
    last = f"the last good checkpoint is step {saved[-1]}" if saved else "no checkpoint was made"
    raise NonFiniteLoss(
        f"the loss or its gradient became NaN or infinite at step {step} of {run.path}; {last}. "
        "Try a lower optimizer.learning_rate, a longer optimizer.warmup_steps, "
        "optimizer.clip_norm 1, or model.dtype float32"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yields a list that gets SIGINT and SIGTERM; a second one acts as it would have."""
    caught: list[int] = []
    try:
        previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def handle(signum, frame):
            caught.append(signum)
            for s, old in previous.items():
                signal.signal(s, old)

        for s in previous:
            signal.signal(s, handle)
    except ValueError:  # not in the main thread, where signals cannot be caught
        yield caught
        return
    try:
        yield caught
    finally:
        for s, old in previous.items():
            signal.signal(s, old)
