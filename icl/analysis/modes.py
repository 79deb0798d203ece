"""Evaluations of class sequences by mode: what a learner knows from its weights and its context.

The modes are the kinds of sequences of Chan et al. 2022 (arXiv 2205.05055) and the probes of Singh
et al. 2023 and Reddy 2023 (`icl.tasks.KINDS`). An evaluation reads checkpoints, so that it runs
once, at the end, or beside the training of the run in another process.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from ..report import at_least_one, open_run
from ..tasks import KINDS, ClassSequences, Data
from ..tasks.draws import stream
from ..tasks.sequence_kinds import without_support
from ..training.config import Config
from ..training.data import load_data
from ..training.disk import RunError
from ..training.learner import Learner, Variables
from ..training.run import Run
from .mode_records import SHARES, ModeCurves, ModeRecord, append, lines, written

PROMPTS = 1000
CHUNK = 100  # sequences at once
POLL_SECONDS = 2.0


def has_modes(config: Config) -> bool:
    """Whether runs with these settings can be evaluated by mode."""
    return isinstance(config.task, ClassSequences)


def default_modes(family: ClassSequences) -> list[str]:
    """Learning in context of held-out classes, learning in weights, and which of both wins.

    Under a Zipf distribution, learning in weights of common and of rare classes too.
    """
    wanted = [family.evaluation.sequences, "no_support_zipfian", "flip"]
    if family.zipf_exponent:
        wanted += ["no_support_common", "no_support_rare"]
    allowed = allowed_modes(family)
    return [mode for mode in dict.fromkeys(wanted) if mode in allowed]


def allowed_modes(family: ClassSequences) -> list[str]:
    """The modes that the settings of a family allow."""
    return [mode for mode in KINDS if _allows(family, mode)]


def _allows(family: ClassSequences, mode: str) -> bool:
    try:
        family.mode(mode)
    except ValueError:
        return False
    return True


def evaluate_modes(
    run: Run | str | Path,
    modes: Sequence[str] = (),
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
    step: int | None = None,
) -> ModeCurves:
    """Evaluates a checkpoint of a run by mode; appends to `modes.jsonl` and draws `modes.png`.

    Each result is a line of `modes.jsonl`, so that several processes may evaluate one run.

    Args:
      run: the run or its folder, of class sequences.
      modes: kinds of sequences, of `icl.tasks.KINDS`; none for `default_modes`.
      prompts: number of sequences of each mode. Chan et al. use 10,000.
      seed: seed of the sequences, which are equal at all steps.
      step: that of the checkpoint; None for the newest.

    Returns:
      All results of the run so far.

    Raises:
      RunError: no run there, no such checkpoint, or it cannot be read.
      ValueError: a mode that does not exist or that the task does not allow.
    """
    evaluator = ModeEvaluator(run, modes, prompts=prompts, seed=seed)
    if step is None:
        step, variables = evaluator.run.variables()
    else:
        variables = evaluator.run.variables_at(step)
    evaluator.add(step, lambda: variables)
    return written(evaluator.run.path)


def modes_of_run(
    run: Run | str | Path, modes: Sequence[str] = (), *, prompts: int = PROMPTS, seed: int = 0
) -> ModeCurves:
    """Evaluates every checkpoint of a run by mode; arguments and errors as for `evaluate_modes`."""
    evaluator = ModeEvaluator(run, modes, prompts=prompts, seed=seed)
    found = False
    for step, variables in evaluator.run.variables_by_step():
        found = True
        evaluator.add(step, lambda variables=variables: variables)
    if not found:
        raise RunError(f"{evaluator.run.path} has no checkpoint yet; train it first")
    return written(evaluator.run.path)


def follow_modes(
    run: Run | str | Path,
    modes: Sequence[str] = (),
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    poll_seconds: float = POLL_SECONDS,
) -> ModeCurves:
    """Evaluates each checkpoint of a run as soon as it is written, until the last step's.

    Modes that were evaluated before are left out. A checkpoint that is damaged, or deleted by the
    training before it is read, is skipped. The training may run, stop and resume in any other
    process.

    Args:
      say: is told of each result and of each skipped checkpoint.
      poll_seconds: seconds between two looks for new checkpoints.
      run, modes, prompts, seed: as for `evaluate_modes`, which has the errors too.
    """
    evaluator = ModeEvaluator(run, modes, prompts=prompts, seed=seed)
    path, done, waiting = evaluator.run.path, set(), False
    failed: dict[int, int] = {}
    while True:
        for step in [step for step in evaluator.run.checkpoint_steps() if step not in done]:
            waiting = False
            try:
                found = evaluator.add(step, lambda step=step: evaluator.run.variables_at(step))
            except RunError as error:
                # It may be a checkpoint that the training just deletes.
                failed[step] = failed.get(step, 0) + 1
                if failed[step] > 1 or step not in evaluator.run.checkpoint_steps():
                    say(f"step {step} is left out: {error}")
                    done.add(step)
                continue
            done.add(step)
            for record in found:
                said = f"{record.mode} {record.accuracy:.3f}, closed {record.closed:.3f}"
                say(f"step {step}: {said}")
            if found:
                written(path)
        if Run.open(path).config.training.steps in done:
            return written(path)
        if not waiting:
            say(f"waiting for the next checkpoint of {path}")
        waiting = True
        time.sleep(poll_seconds)


class ModeEvaluator:
    """Evaluates variables of one run by mode, with one compiled program a mode.

    Args and errors are those of `evaluate_modes`.

    Attributes:
      run: the run.
      modes: the modes.
    """

    def __init__(
        self, run: Run | str | Path, modes: Sequence[str] = (), *, prompts: int, seed: int
    ):
        self.run, self._learner = open_run(run, prompts=prompts)
        family = self._learner.family
        if not isinstance(family, ClassSequences):
            raise ValueError(
                f"{self.run.path} is a run of {type(family).__name__}; modes are of class sequences"
            )
        self.modes = list(dict.fromkeys(modes)) or default_modes(family)
        self._prompts, self._seed = prompts, seed
        # Each mode is made before any work, so that one that is not allowed fails at once.
        families = {mode: family.mode(mode) for mode in self.modes}
        data = on_device_once(family)
        self._measures = {
            mode: measure_of(self._learner, own, prompts, seed, data)
            for mode, own in families.items()
        }

    def missing(self, step: int) -> list[str]:
        """The modes without a result at a step with these numbers of sequences and seed."""
        found = {
            record.mode
            for record in lines(self.run.path)
            if (record.step, record.prompts, record.seed) == (step, self._prompts, self._seed)
        }
        return [mode for mode in self.modes if mode not in found]

    def add(self, step: int, variables: Callable[[], Variables]) -> list[ModeRecord]:
        """Evaluates the missing modes of a step, appends the results to the file, returns them.

        Args:
          step: training step.
          variables: returns the variables; it is not called if no mode is missing.
        """
        missing, found = self.missing(step), []
        if not missing:
            return []
        own = variables()
        for mode in missing:
            numbers = self._measures[mode](own)
            record = record_of(numbers, step, mode, self._prompts, self._seed)
            append(self.run.path, record)
            found.append(record)
        return found


def record_of(
    numbers: dict[str, float], step: int, mode: str, prompts: int, seed: int
) -> ModeRecord:
    """A record from the numbers of `measure_of`."""
    shares = {name: numbers[name] for name in SHARES}
    rest = {name: value for name, value in numbers.items() if name not in SHARES}
    return ModeRecord(step=step, mode=mode, prompts=prompts, seed=seed, shares=shares, **rest)


def on_device_once(family: ClassSequences) -> Data:
    """The data of a family, which all its modes share, on the device; None if there are none."""
    return jax.tree.map(jnp.asarray, load_data(family))


def measure_of(
    learner: Learner, family: ClassSequences, prompts: int, seed: int, data: Data = None
) -> Callable[[Variables], dict[str, float]]:
    """A function from variables to the means that a `ModeRecord` holds, over fixed sequences.

    Args:
      learner: the learner of the run.
      family: the family of the mode.
      prompts, seed: number and seed of the sequences.
      data: from `on_device_once`.
    """
    at_least_one(prompts=prompts)
    key = jax.random.fold_in(stream("modes", seed), list(KINDS).index(family.sequences))
    size = min(CHUNK, prompts)
    chunks = -(-prompts // size)
    index = jnp.arange(chunks * size).reshape(chunks, size)

    @jax.jit
    def program(variables: Variables, data: Data) -> dict[str, jax.Array]:
        one = partial(_measured, learner, family, key, data, variables)
        found = jax.lax.map(one, index)
        used = (index < prompts).reshape(-1)
        return {
            name: jnp.where(used, values.reshape(-1), 0).sum() / prompts
            for name, values in found.items()
        }

    return lambda variables: {
        name: float(value) for name, value in program(variables, data).items()
    }


def _measured(
    learner: Learner,
    family: ClassSequences,
    key: jax.Array,
    data: Data,
    variables: Variables,
    index: jax.Array,
) -> dict[str, jax.Array]:
    """The numbers of each of the sequences with some indices, `[B]` each."""

    def draw(i: jax.Array):
        task_key, episode_key = jax.random.split(jax.random.fold_in(key, i))
        task = family.sample_task(task_key, family.full, data)
        return task, family.sample_episode(episode_key, task, family.full, data)

    tasks, episodes = jax.vmap(draw)(index)
    logits = learner.query_outputs(variables, episodes)
    labels = jnp.arange(logits.shape[1])
    query, support = tasks.labels[:, -1], tasks.labels[:, :-1]
    shown = (support[:, :, None] == labels[None, None]).any(axis=1)
    known, original = family.class_labels, family.original(data)
    predicted, in_play, meaning = logits.argmax(axis=1), shown, lambda labels: labels
    if without_support(family.sequences):
        in_play = jnp.broadcast_to(_in_group(family, labels, original)[None], shown.shape)
        if known.labels is None:
            meaning = lambda labels: known.classes(labels, original)
    closed = jnp.where(in_play, logits, -jnp.inf).argmax(axis=1)
    # A polysemous class has several labels of its own.
    own_class, known_class = tasks.classes[:, -1], lambda labels: known.classes(labels, original)
    if known.labels is not None:
        own_class, known_class = known.of(own_class), lambda labels: labels
    groups = known.groups(predicted, original)
    number = lambda truth: jnp.asarray(truth, jnp.float32)
    right = meaning(labels)[None] == meaning(query)[:, None]
    return {
        "accuracy": number(meaning(predicted) == meaning(query)),
        "closed": number(meaning(closed) == meaning(query)),
        "chance": number((right & in_play).sum(axis=1)) / number(in_play.sum(axis=1)),
        "loss": learner.labels.loss(logits, query),
        "own": number(known_class(predicted) == own_class),
        "common": groups["common"],
        "rare": groups["rare"],
        "fewshot": number(predicted < family.ways),
        "support": number(jnp.take_along_axis(shown, predicted[:, None], axis=1)[:, 0]),
    }


def _in_group(family: ClassSequences, labels: jax.Array, original: jax.Array | None) -> jax.Array:
    """Whether labels `[n]` are of the rare, the common, or any training classes; bool."""
    if family.labels is not None:
        return jnp.ones(labels.shape, bool)
    groups = family.class_labels.groups(labels, original)
    group = family.sequences.rpartition("_")[2]
    return (groups[group] if group in groups else groups["rare"] + groups["common"]) > 0
