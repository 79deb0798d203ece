"""Training a single run: a new one, or one that was stopped."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from . import disk, processes
from .checkpoints import NoCheckpoints, carried_over
from .config import CUSTOM, Config, OptimizerConfig, config_from_dict, config_to_dict
from .data import check_same, fingerprint, load_data
from .disk import RunError
from .estimate import step_seconds
from .history import changed
from .learner import Learner
from .loop import Interrupted, NonFiniteLoss, advance
from .memory import MemoryGuard, check_state, making_state
from .metrics import LoggingConfig, check_installed, open_sinks
from .optimizer import learning_rate_schedule, make_optimizer
from .parallel import make_mesh, place, use_cpu_cores
from .progress import ProgressDisplay
from .run import Run, free_path
from .step import StepMetrics, TrainState, compile_chunk, init_state


def train(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    logging: LoggingConfig | None = None,
) -> Run:
    """Trains an in-context learner from its first step to its last, on all devices.

    Args:
      config: the settings.
      run_dir: folder of the run; None for a new one below `runs`.
      optimizer: any optax optimiser, in place of `config.optimizer`; a resume must pass it
        again.
      logging: further places for the metrics.

    Returns:
      The run, with a checkpoint of its last step.

    Raises:
      RunError: the folder is taken, or cannot be used. Nothing in it is touched.
      NonFiniteLoss: the loss became NaN or infinite.
      OutOfMemory: a step does not fit the device; the message says which batch would.
      DiskFull, CannotSave: there is no room to save, or the system refuses it; what was saved is
        whole.
      Interrupted: SIGINT, SIGTERM, SIGHUP, or an output that was closed; the run was saved.
      LostProcess: one of several processes is gone or gave up.
    """
    if optimizer is not None:
        config = dataclasses.replace(config, optimizer=OptimizerConfig(name=CUSTOM))
    logging = logging or LoggingConfig()
    check_installed(logging)
    use_cpu_cores()
    learner, optimizer = prepare(config, optimizer)
    path = free_path(config.task.__class__.__name__.lower()) if run_dir is None else run_dir
    with processes.together(f"icl train --resume {path}", Interrupted):
        run = _create(str(path), config)
        with _locked(run):
            with making_state():
                state = init_state(learner, optimizer)
            _advance(run, learner, optimizer, state, logging)
    return run


def prepare(
    config: Config, optimizer: optax.GradientTransformation | None = None, members: int = 1
) -> tuple[Learner, optax.GradientTransformation]:
    """Who is trained, and how, once it is known that the settings allow it.

    Args:
      config: of a new run, or of the first of several that differ in numbers alone.
      optimizer: in place of the one in the config.
      members: how many such runs are trained at once.

    Raises:
      ValueError: settings that do not fit together.
      OutOfMemory: what must be held does not fit the devices.
    """
    warmup, steps = config.optimizer.warmup_steps, config.training.steps
    if config.optimizer.name != CUSTOM and warmup > steps:
        raise ValueError(
            f"optimizer.warmup_steps ({warmup:,}) is longer than the run, of training.steps "
            f"({steps:,}): lower the first or raise the second"
        )
    learner = Learner(config)
    optimizer = optimizer or make_optimizer(config.optimizer, steps)
    check_state(jax.eval_shape(lambda: init_state(learner, optimizer)), members)
    return learner, optimizer


def resume(
    run: Run | str | Path,
    *,
    optimizer: optax.GradientTransformation | None = None,
    logging: LoggingConfig | None = None,
    microbatch_size: int | None = None,
    **changes: Any,
) -> Run:
    """Continues a run from its newest checkpoint that can be read.

    On as many devices the run ends with the same bits as if it had never stopped, unless settings
    change; on another number with the same numbers up to rounding. Changed settings are written
    into config.json, with what they were and the step from which they hold.

    Args:
      run: the run or its folder.
      optimizer: the one the run was started with, where it was given from Python; or one with
        other numbers whose state has the same arrays.
      logging: as for `train`.
      microbatch_size: in place of the run's own, until it stops; None for its own.
      **changes: settings from now on, as `Config.replace` takes them: those of the optimiser but
        its name, the length of the run, the batch size, what is logged and kept, the model's
        dtype. `icl.resume(run, optimizer_learning_rate=1e-4)`.

    Raises:
      RunError: no run there, or another process is training it, or it cannot go on as asked: its
        checkpoints are all damaged, hold the state of another model or optimiser, or cannot be
        read. Nothing in the folder is touched.
      ValueError: a setting that cannot change, or a microbatch that does not divide the batch.
      NonFiniteLoss, OutOfMemory, DiskFull, CannotSave, Interrupted, LostProcess: as for `train`.
    """
    path = run.path if isinstance(run, Run) else run
    logging = logging or LoggingConfig()
    check_installed(logging)
    use_cpu_cores()
    with processes.together(f"icl train --resume {path}", Interrupted):
        return _resume(_open(path), optimizer, logging, microbatch_size, changes)


def _resume(
    run: Run,
    optimizer: optax.GradientTransformation | None,
    logging: LoggingConfig,
    microbatch_size: int | None,
    changes: dict[str, Any],
) -> Run:
    config = changed(run.config, changes)
    if optimizer is not None:
        config = dataclasses.replace(config, optimizer=OptimizerConfig(name=CUSTOM))
    now = config
    if microbatch_size is not None:
        now = config.replace(training_microbatch_size=microbatch_size)
    learner = Learner(now)
    optimizer = optimizer or make_optimizer(config.optimizer, config.training.steps)

    def items_at(step: int) -> dict[str, Any]:
        """What the checkpoint of a step holds."""
        then, its = run.config_at(step), optimizer
        if then.optimizer.name != CUSTOM:
            its = make_optimizer(then.optimizer, then.training.steps)
        return jax.eval_shape(lambda: init_state(learner, its).items())

    def become(step: int, items: dict[str, Any]) -> dict[str, Any]:
        """The items of that checkpoint for the optimiser to go on with."""
        if step > config.training.steps:
            raise RunError(
                f"{run.path} has made {step} steps, more than the {config.training.steps} asked "
                "for; nothing was changed"
            )
        return carried_over(items, jax.eval_shape(lambda: init_state(learner, optimizer).items()))

    with _locked(run):
        found = None
        if processes.is_lead():
            found = run.checkpoints().restore_to_continue(items_at, become)
            run.go_on_with(config, found[0] if found else 0)
        run.config = config
        state = TrainState.from_items(found[1]) if found else init_state(learner, optimizer)
        _advance(run, learner, optimizer, state, logging)
    return run


def _create(path: str, config: Config) -> Run:
    """Makes the folder, on the lead, once every process is known to have the same settings."""
    mine = json.dumps([config_to_dict(config), fingerprint(config.task)])
    if processes.from_lead(lambda: mine) != mine:
        raise ValueError("this process has other settings or data than the first one")
    processes.agree()
    return Run(Path(processes.from_lead(lambda: str(Run.create(path, config).path))), config)


def _open(path: str | Path) -> Run:
    """The run in the lead's folder; only the lead needs its history."""
    opened = []

    def read() -> str:
        opened.append(Run.open(path))
        opened[0].check_data()
        config = opened[0].config
        return json.dumps([config_to_dict(config), fingerprint(config.task)])

    config, data = json.loads(processes.from_lead(read))
    if opened:
        return opened[0]
    run = Run(Path(path), config_from_dict(config))
    check_same(data, run.config.task, f"{path}, by the first process,")
    return run


def _locked(run: Run) -> contextlib.AbstractContextManager[None]:
    return run.locked() if processes.is_lead() else contextlib.nullcontext()


def _advance(
    run: Run,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    logging: LoggingConfig,
) -> None:
    """Trains from the state to the last step, writing the run down on the way."""
    training = run.config.training
    mesh = make_mesh(training.batch_size)
    state = processes.lead_arrays(state)
    first = int(state.step)
    state, data = place(state, mesh), place(load_data(learner.family), mesh)
    enabled = logging.progress and processes.is_lead()
    measure = run.config.training_measure
    display = ProgressDisplay(training.steps, first, measure, enabled)
    compile = lambda learner, state, length: compile_chunk(
        learner, optimizer, state, length, mesh, data
    )
    with contextlib.closing(RunJournal(run, learner, logging, first)) as journal:
        memory = MemoryGuard(
            journal.resume,
            learner,
            state,
            lambda learner, state: compile(learner, state, 1),
            display.say,
            mesh.size,
        )
        advance(
            lambda state, length: compile(learner, state, length),
            state,
            first,
            training,
            journal,
            memory,
            display,
            step_seconds(learner),
        )


class RunJournal:
    """Writes a run into its folder, where this process is the lead."""

    def __init__(self, run: Run, learner: Learner, logging: LoggingConfig, first: int):
        self.resume = f"icl train --resume {run.path}"
        self._run = run
        self._learner = learner
        lead = processes.is_lead()
        self._checkpoints = run.checkpoints() if lead else NoCheckpoints()
        self._sinks = open_sinks(run, logging, first) if lead else []

    def check(self, first: int, metrics: StepMetrics) -> None:
        """Raises NonFiniteLoss where the loss or its gradient is not finite."""
        bad = ~np.isfinite(metrics.loss + metrics.grad_norm)
        if not bad.any():
            return
        saved = self._checkpoints.steps()
        last = (
            f"the last good checkpoint is step {saved[-1]}" if saved else "no checkpoint was made"
        )
        raise NonFiniteLoss(
            f"the loss or its gradient became NaN or infinite at step "
            f"{first + int(bad.argmax()) + 1} of {self._run.path}; {last}. {self._advice()}"
        )

    def _advice(self) -> str:
        """How the run can go on after its loss became infinite."""
        config = self._learner.config
        if config.optimizer.name == CUSTOM:
            return (
                "Go on with a lower learning rate: icl.resume(run, optimizer=...), with an "
                "optimiser of the same parts"
            )
        lower = float(f"{config.optimizer.learning_rate / 3:.1g}")
        dtype = "" if config.model.dtype == "float32" else " --model.dtype float32"
        return (
            f"Go on with a lower learning rate: {self.resume} --optimizer.learning-rate {lower:g} "
            f"--optimizer.clip-norm 1{dtype}; or start another run with a longer "
            "optimizer.warmup_steps"
        )

    def record(self, step: int, metrics: StepMetrics, seconds: float) -> dict[str, float]:
        config, rate = self._learner.config, None
        if config.optimizer.name != CUSTOM:
            schedule = learning_rate_schedule(config.optimizer, config.training.steps)
            rate = float(np.asarray(schedule(step - 1)))
        return metrics_record(self._learner, metrics, seconds, rate)

    def write(self, step: int, record: dict[str, float], metrics: StepMetrics) -> None:
        with disk.saving(f"the metrics of step {step}", self._run.path, self.resume):
            for sink in self._sinks:
                sink.write(step, record)

    def save(self, step: int, state: TrainState) -> None:
        self._checkpoints.save(step, state.items())

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._checkpoints.close()


def metrics_record(
    learner: Learner, metrics: StepMetrics, seconds: float, learning_rate: float | None
) -> dict[str, float]:
    """The line of metrics of some steps, which took so many seconds together.

    Args:
      learner: who is trained.
      metrics: each `[steps]`.
      seconds: of all steps.
      learning_rate: of the last one; None where nobody knows.
    """
    rate = len(metrics.loss) / seconds
    loss, measure = float(metrics.loss.mean()), learner.config.training_measure
    record = {"loss": loss, measure.label: loss / measure.scale}
    record["grad_norm"] = float(metrics.grad_norm.mean())
    if learning_rate is not None:
        record["learning_rate"] = learning_rate
    record["steps_per_second"] = round(rate, 3)
    record["tokens_per_second"] = round(
        rate * learner.config.training.batch_size * learner.tokens, 1
    )
    return record
