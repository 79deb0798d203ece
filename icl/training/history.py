"""Settings that may change when a run is resumed, and the record of their changes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from .config import CUSTOM, Config

# Why a setting cannot change, by the name of the setting or of its section.
FIXED = {
    "task": "the task decides what is learned",
    "layout": "the layout decides what the model sees",
    "model": "the checkpoints hold this model's parameters",
    "curriculum": "the curriculum decides which prompts a step draws",
    "optimizer_name": "the checkpoints hold this optimiser's state",
    "training_seed": "the checkpoints hold the keys made from the seed",
    "training_pool_size": "the pool decides what is learned",
    "training_pooled": "the pool decides what is learned",
}
FREE = {"model_dtype"}  # parameters are float32 with every dtype


class OptimizerChanges(TypedDict, total=False):
    """Settings of the optimiser that may change. Its options may change, too."""

    learning_rate: float
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear", "halving", "stable", "inverse_sqrt"]
    """Learning rate after warm-up, computed as if it had held from the first step of the run."""
    warmup_steps: int
    """Number of steps over which the learning rate rises, from the first step of the run."""
    halving_steps: int | None
    """Number of steps after which the schedule "halving" halves the learning rate."""
    clip_norm: float | None
    """Largest global norm of the gradient."""
    clip_each: float | None
    """Largest norm of each matrix of the gradient."""


class TrainingChanges(TypedDict, total=False):
    """Settings of training that may change."""

    steps: int
    """Number of updates of the parameters, including those made before."""
    batch_size: int
    """Number of prompts of an update."""
    microbatch_size: int | None
    """Number of prompts whose gradient is computed at once, in this and later resumes."""
    log_every: int
    """Number of steps for each line of metrics.jsonl."""
    checkpoint_every: int
    """Number of steps between checkpoints."""
    keep_checkpoints: int
    """Number of the newest checkpoints that are kept."""


class ModelChanges(TypedDict, total=False):
    """Settings of the model that may change."""

    dtype: Literal["float32", "bfloat16"]
    """Dtype of the computation."""


# An entry for each change, oldest first:
# {"from_step": int, "changed": {name: {"was": ..., "now": ...}}}
History = list[dict[str, Any]]


def fixed(name: str) -> str | None:
    """Why a setting cannot change in the middle of a run; None if it can."""
    reason = FIXED.get(name) or FIXED.get(name.partition("_")[0])
    return None if name in FREE else reason


def check_changes(names: Iterable[str]) -> None:
    """Raises ValueError, with the reason, if a setting cannot change in the middle of a run."""
    for name in names:
        if reason := fixed(name):
            raise ValueError(
                f"{name} cannot change in the middle of a run: {reason}; start a new run for it"
            )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings of a run after changes.

    Args:
      config: the settings before.
      changes: arguments of `Config.replace`.

    Raises:
      TypeError: there is no such setting.
      ValueError: a setting cannot change in the middle of a run, or its value is not allowed.
    """
    after = config.replace(**changes)
    given = sorted(name for name in changes if name.startswith("optimizer_"))
    if given and config.optimizer.name == CUSTOM:
        raise ValueError(
            f"{', '.join(given)} would change nothing: the optimiser of this run was given from "
            "Python; pass another optimiser: icl.resume(run, optimizer=...)"
        )
    check_changes(_differences(config, after))
    return after


def extended(history: History, before: Config, after: Config, step: int) -> History:
    """The history of a run that continues from `step` with the settings `after`."""
    # If the run resumes from an earlier checkpoint, its present settings hold from that step.
    entries = [entry | {"from_step": min(entry["from_step"], step)} for entry in history]
    differences = _differences(before, after)
    return [*entries, {"from_step": step, "changed": differences}] if differences else entries


def settings_at(config: Config, history: History, step: int) -> Config:
    """The settings with which the checkpoint of `step` was made."""
    for entry in reversed(history):
        if entry["from_step"] >= step:
            config = config.replace(**{n: both["was"] for n, both in entry["changed"].items()})
    return config


def checked(history: Any, config: Config) -> History:
    """A history read from a file; ValueError, TypeError or KeyError if it is not valid."""
    steps = [entry["from_step"] for entry in history]
    if not all(type(step) is int and step >= 0 for step in steps) or steps != sorted(steps):
        raise ValueError(f"the steps of its history are {steps}, not in order from 0")
    settings_at(config, history, 0)
    return history


def _differences(before: Config, after: Config) -> dict[str, dict[str, Any]]:
    was, now = before.flat(), after.flat()
    return {
        name: {"was": was.get(name), "now": now.get(name)}
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    }
