"""Training a sweep: one program after the other, each with all its members."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..training import disk
from ..training.checkpoints import Checkpoints, on_one_device
from ..training.config import CUSTOM, Config
from ..training.data import load_data
from ..training.estimate import step_seconds
from ..training.learner import Learner
from ..training.loop import NonFiniteLoss, advance
from ..training.memory import MemoryGuard, making_state
from ..training.metrics import JsonLines
from ..training.optimizer import learning_rate_schedule
from ..training.parallel import DATA, make_mesh, place, use_cpu_cores
from ..training.population import (
    compile_population,
    group_by_program,
    init_population,
    member_settings,
    shared_config,
)
from ..training.progress import ProgressDisplay
from ..training.run import free_path
from ..training.single import metrics_record, prepare
from ..training.step import Program, StepMetrics, TrainState
from .folder import Member, Sweep
from .grid import Over, grid, member_name
from .results import SweepResult, member_errors, sweep_figure

PROMPTS = 1280


def train_sweep(
    config: Config,
    over: Over,
    *,
    seeds: int = 1,
    sweep_dir: str | Path | None = None,
    progress: bool = True,
    preset: str | None = None,
) -> Sweep:
    """Trains a model for every combination of values and seeds, and evaluates them.

    Models that differ only in seed, learning rate or pool size train in one compiled program; a
    difference in another setting makes another program.

    Args:
      config: settings that the members share.
      over: values by setting, as `{"learning_rate": [1e-4, 1e-3]}`, under names of `Config.replace`
        or short forms of them; or a group of settings with values by label, as
        `{"size": {"d=5": {"task_dim": 5, "task_points": 16}, "d=10": {...}}}`.
      seeds: number of models of each combination; their seeds start at the config's.
      sweep_dir: folder of the sweep; None for a new one below `runs`.
      progress: show a progress bar, or lines if the output is not a terminal.
      preset: the name of the sweep's preset, which its folder keeps.

    Returns:
      The sweep. A model whose loss becomes infinite is marked as diverged; the others go on.

    Raises:
      RunError: the folder is taken; nothing in it is changed.
      ValueError: settings or values do not exist or do not fit together.
      NonFiniteLoss: the loss of every model became NaN or infinite.
      OutOfMemory, DiskFull, Interrupted: as in `icl.training.train`.
    """
    _take_all_cores()
    if config.optimizer.name == CUSTOM:
        raise ValueError("a sweep takes its optimiser by name, as in optimizer_name='adam'")
    _check_members(grid(config, over, seeds))
    if sweep_dir is None:
        sweep_dir = free_path(f"{config.task.__class__.__name__.lower()}-sweep")
    sweep = Sweep.create(sweep_dir, config, over, seeds, preset)
    return resume_sweep(sweep, progress=progress)


def resume_sweep(
    sweep: Sweep | str | Path, *, progress: bool = True, microbatch_size: int | None = None
) -> Sweep:
    """Continues a sweep from its last checkpoints, and evaluates it.

    Args:
      sweep: the sweep or its folder.
      progress: as for `train_sweep`.
      microbatch_size: number of prompts of each model whose gradient is computed at once from now
        on; None for that of the settings.

    Raises:
      RunError: there is no sweep, or another process is training it.
      NonFiniteLoss, OutOfMemory, DiskFull, Interrupted: as for `train_sweep`.
    """
    _take_all_cores()
    sweep = sweep if isinstance(sweep, Sweep) else Sweep.open(sweep)
    with sweep.locked():
        records: dict[str, dict[str, Any]] = {}
        programs = sweep.programs()
        for index, members in enumerate(programs):
            label = f"program {index + 1} of {len(programs)}, {len(members)} models"
            program = _Program(sweep, index, members, microbatch_size)
            for record in program.results(label, progress):
                records[record["member"]] = record
        result = SweepResult(
            sweep.path,
            PROMPTS,
            [records[member.path.name] for member in sweep.members],
            " or ".join(
                dict.fromkeys(member.config.task.label_kind.error_name for member in sweep.members)
            ),
        )
        if not any("examples" in record for record in result.records):
            raise NonFiniteLoss(
                f"the loss of every model of {sweep.path} became NaN or infinite; start another "
                "sweep with a lower learning_rate"
            )
        result.save()
        sweep_figure(sweep, result, sweep.path / "sweep.png")
    return sweep


def _check_members(members: list[tuple[dict[str, Any], Config]]) -> None:
    """Raises ValueError or OutOfMemory if a member cannot be trained."""
    for indices in group_by_program([config for _, config in members]):
        changes, config = members[indices[0]]
        try:
            prepare(config, members=len(indices))
        except ValueError as error:
            raise ValueError(f"the member {member_name(changes)} is impossible: {error}") from error


def _take_all_cores() -> None:
    """Uses all cores of a CPU; ValueError in a program of several processes."""
    use_cpu_cores()
    if jax.process_count() > 1:
        raise ValueError(
            "a sweep trains in one process, on all its devices; start one for each part of the "
            "values instead"
        )


class _Program:
    """The members of a sweep that train in one program."""

    def __init__(
        self, sweep: Sweep, index: int, members: list[Member], microbatch_size: int | None
    ):
        self.resume = sweep.resume
        self._sweep, self._index = sweep, index
        self.folder = sweep.program_folder(index)
        self.members = members
        self.configs = [member.config for member in members]
        shared = shared_config(self.configs[0])
        if microbatch_size is not None:
            shared = shared.replace(training_microbatch_size=microbatch_size)
        self.shared = shared

    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the states of all members together."""
        keep = self.shared.training.keep_checkpoints
        return self._sweep.program_checkpoints(self._index, keep)

    def results(self, label: str, progress: bool) -> list[dict[str, Any]]:
        """Trains all members to their last step, and evaluates them: a record each."""
        try:
            state = self.train(label, progress)
        except NonFiniteLoss:
            return self._diverged()
        return self.evaluate(state) + self._diverged()

    def train(self, label: str, progress: bool) -> TrainState:
        """Trains all members to their last step; returns their states.

        Raises:
          NonFiniteLoss: the loss of every member became NaN or infinite.
        """
        training = self.shared.training
        shapes = jax.eval_shape(lambda: init_population(self.configs).items())
        self.members[0].run.check_data()
        found = self.checkpoints().restore_to_continue(shapes)
        with making_state():
            state = TrainState.from_items(found[1]) if found else init_population(self.configs)
        first = found[0] if found else 0
        if first == training.steps:
            return state
        mesh = make_mesh(training.batch_size, len(self.members))
        state, settings = place((state, member_settings(self.configs)), mesh, population=True)
        data = place(load_data(self.shared.task), mesh)
        measure = self.shared.training_measure
        measure = measure._replace(name=f"{measure.name}, median of the models")
        shown = ProgressDisplay(training.steps, first, measure, progress)
        shown.say(label)

        def compile(config: Config, state: TrainState, length: int) -> Program:
            return compile_population(config, settings, state, length, mesh, data)

        seconds = step_seconds(Learner(self.shared))
        with contextlib.closing(_Journal(self, first)) as journal:
            memory = MemoryGuard(
                self.resume,
                Learner(self.shared),
                state,
                lambda learner, state: compile(learner.config, state, 1),
                shown.say,
                mesh.shape[DATA],
            )
            return advance(
                lambda state, length: compile(self.shared, state, length),
                state,
                first,
                training,
                journal,
                memory,
                shown,
                None if seconds is None else seconds * len(self.members),
            )

    def evaluate(self, state: TrainState) -> list[dict[str, Any]]:
        """Saves the last checkpoint of each member that reached it; returns their records."""
        steps = self.shared.training.steps
        kept = np.flatnonzero([_last_line(member) == steps for member in self.members])
        state = _taken(on_one_device(state), kept)
        for position, index in enumerate(kept):
            own = _taken(state, position)
            with contextlib.closing(self.members[index].run.checkpoints()) as checkpoints:
                checkpoints.save(steps, own.items())
        return member_errors([self.members[index] for index in kept], state.variables, PROMPTS, 0)

    def _diverged(self) -> list[dict[str, Any]]:
        last = [(member, _last_line(member)) for member in self.members]
        return [
            {"member": member.path.name, "changes": member.changes, "diverged_after": step}
            for member, step in last
            if step < self.shared.training.steps
        ]


@jax.jit
def _taken(tree: Any, index: Any) -> Any:
    """One member, or some, of a tree whose leaves have a leading axis over members."""
    return jax.tree.map(lambda a: a[index], tree)


def _last_line(member: Member) -> int:
    """The last step in a member's metrics."""
    return max((record["step"] for record in member.run.metrics()), default=0)


class _Journal:
    """Writes the members of a program into their folders, and their states into the program's."""

    def __init__(self, program: _Program, first: int):
        self.resume = program.resume
        self._program = program
        self._learners = [Learner(config) for config in program.configs]
        self._lines = [JsonLines(member.run, first) for member in program.members]
        self._checkpoints = program.checkpoints()
        written = first - first % program.shared.training.log_every
        self._lost = np.array([_last_line(member) < written for member in program.members])

    def check(self, first: int, metrics: StepMetrics) -> None:
        """Marks members whose loss is not finite; raises NonFiniteLoss if none is left."""
        finite = np.isfinite(metrics.loss + metrics.grad_norm).all(axis=1)
        self._lost |= ~finite
        if self._lost.all():
            step = first + metrics.loss.shape[1]
            raise NonFiniteLoss(f"no loss of {self._program.folder} is finite after step {step}")

    def record(self, step: int, metrics: StepMetrics, seconds: float) -> dict[str, Any]:
        """The median loss of the members, and the speed of all members together."""
        members, steps = metrics.loss.shape
        rate = steps / seconds
        learner = self._learners[0]
        tokens = members * learner.config.training.batch_size * learner.tokens
        loss = float(np.median(metrics.loss[~self._lost].mean(axis=1)))
        measure = learner.config.training_measure
        return {
            measure.label: loss / measure.scale,
            "steps_per_second": round(rate, 3),
            "tokens_per_second": round(rate * tokens, 1),
        }

    def write(self, step: int, record: dict[str, Any], metrics: StepMetrics) -> None:
        compiled = {k: v for k, v in record.items() if k == "compile_seconds"}
        seconds = metrics.loss.shape[1] / record["steps_per_second"]
        shared = self._program.shared
        # A schedule is in proportion to its peak, which is 1 here.
        schedule = learning_rate_schedule(shared.optimizer, shared.training.steps)
        rate = float(np.asarray(schedule(step - 1)))
        with disk.saving(f"the metrics of step {step}", self._program.folder, self.resume):
            for index in np.flatnonzero(~self._lost):
                own = jax.tree.map(lambda a, index=index: a[index], metrics)
                learner = self._learners[index]
                peak = learner.config.optimizer.learning_rate
                line = metrics_record(learner, own, seconds, rate * peak)
                self._lines[index].write(step, line | compiled)

    def save(self, step: int, state: TrainState) -> None:
        self._checkpoints.save(step, state.items())

    def close(self) -> None:
        self._checkpoints.close()
