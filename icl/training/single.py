"""Training of a single run: a new run, or one that is resumed."""

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
    """Trains an in-context learner on all devices, from the first step to the last.

    Args:
      config: the settings.
      run_dir: folder of the run; None for a new folder in `runs`.
      optimizer: any optax optimiser, used instead of `config.optimizer`; a resume must pass it
        again.
      logging: progress display, TensorBoard and Weights & Biases.

    Returns:
      The run, with a checkpoint of its last step.

    Raises:
      RunError: the folder is not empty or cannot be used. Its files are not changed.
      NonFiniteLoss: the loss became NaN or infinite.
      OutOfMemory: a step does not fit the device; the message names a batch size that does.
      DiskFull, CannotSave: the disk is full, or the system refuses a write; files saved before
        are intact.
      Interrupted: SIGINT, SIGTERM or SIGHUP came, or standard output was closed; the run was saved.
      LostProcess: another process of the run died or failed.
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
    """The learner and the optimiser of a run, after checks of the settings and of memory.

    Args:
      config: settings of the run, or of the first member of a population.
      optimizer: used instead of `config.optimizer`.
      members: number of runs that are trained at once.

    Raises:
      ValueError: settings contradict each other.
      OutOfMemory: the variables and the optimiser's state do not fit the devices.
    """
    warmup, steps = config.optimizer.warmup_steps, config.training.steps
    if config.optimizer.name != CUSTOM and warmup > steps:
        raise ValueError(
            f"optimizer.warmup_steps ({warmup:,}) is longer than the run, training.steps "
            f"({steps:,}): lower optimizer.warmup_steps or raise training.steps"
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

    If neither settings nor the number of devices change, the result is bit-equal to that of a run
    that never stopped. On another number of devices it is equal up to rounding. Changed settings
    are written into config.json, with their old values and the step from which the new ones hold.

    Args:
      run: the run or its folder.
      optimizer: required if the run was started with an optimiser from Python: that optimiser, or
        another whose state has equal shapes.
      logging: as for `train`.
      microbatch_size: used instead of the run's microbatch size until this call ends; None for
        the run's.
      **changes: new settings, named as in `Config.replace`. The optimiser's settings except its
        name, the number of steps, the batch size, the intervals of logs and checkpoints, and the
        model's dtype can change: `icl.resume(run, optimizer_learning_rate=1e-4)`.

    Raises:
      RunError: the folder holds no run; another process trains it; or all its checkpoints are
        damaged, cannot be read or hold the state of another model or optimiser. Nothing in the
        folder is changed.
      ValueError: a setting cannot change, or microbatch_size does not divide the batch size.
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
        """Shapes of the items in the checkpoint of a step."""
        then, its = run.config_at(step), optimizer
        if then.optimizer.name != CUSTOM:
            its = make_optimizer(then.optimizer, then.training.steps)
        return jax.eval_shape(lambda: init_state(learner, its).items())

    def become(step: int, items: dict[str, Any]) -> dict[str, Any]:
        """The items of a checkpoint, in the structure of the new optimiser's state."""
        if step > config.training.steps:
            raise RunError(
                f"{run.path} has made {step} steps, more than the {config.training.steps} of "
                "training.steps; nothing was changed"
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
    """Makes the folder in the lead process, if all processes have equal settings and data."""
    mine = json.dumps([config_to_dict(config), fingerprint(config.task)])
    if processes.from_lead(lambda: mine) != mine:
        raise ValueError(
            "this process has other settings or data than process 0; start all with equal ones"
        )
    processes.agree()
    return Run(Path(processes.from_lead(lambda: str(Run.create(path, config).path))), config)


def _open(path: str | Path) -> Run:
    """The run in the lead process's folder; only the lead has the run's history."""
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
    check_same(data, run.config.task, f"{path} in process 0")
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
    """Trains from the state to the last step, and saves metrics and checkpoints."""
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
    """Writes metrics and checkpoints into a run's folder, in the lead process only."""

    def __init__(self, run: Run, learner: Learner, logging: LoggingConfig, first: int):
        self.resume = f"icl train --resume {run.path}"
        self._run = run
        self._learner = learner
        lead = processes.is_lead()
        self._checkpoints = run.checkpoints() if lead else NoCheckpoints()
        self._sinks = open_sinks(run, logging, first) if lead else []

    def check(self, first: int, metrics: StepMetrics) -> None:
        """Raises NonFiniteLoss if the loss or its gradient is not finite at some step."""
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
        """How to continue the run after its loss became NaN or infinite."""
        config = self._learner.config
        if config.optimizer.name == CUSTOM:
            return (
                "Continue with a lower learning rate: icl.resume(run, optimizer=...), with an "
                "optimiser whose state has equal shapes"
            )
        lower = float(f"{config.optimizer.learning_rate / 3:.1g}")
        dtype = "" if config.model.dtype == "float32" else " --model.dtype float32"
        return (
            f"Continue with a lower learning rate: {self.resume} "
            f"--optimizer.learning-rate {lower:g} --optimizer.clip-norm 1{dtype}; or start another "
            "run with a longer optimizer.warmup_steps"
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
    """The record of a number of steps for metrics.jsonl.

    Args:
      learner: the learner that is trained.
      metrics: each `[steps]`.
      seconds: duration of all steps together.
      learning_rate: that of the last step; None if it is unknown.
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
