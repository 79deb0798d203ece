"""What may change when a run goes on, and what of it ran from which step."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from .config import CUSTOM, Config

# Why a setting stays as it is, by its name or its section.
FIXED = {
    "task": "the task decides what is learned",
    "layout": "the layout decides what the model sees",
    "model": "the checkpoints hold this model's parameters",
    "curriculum": "the curriculum decides which prompts a step draws",
    "optimizer_name": "the checkpoints hold this optimiser's state",
    "training_seed": "the checkpoints hold the keys that were made of it",
    "training_pool_size": "the pool decides what is learned",
    "training_pooled": "the pool decides what is learned",
}
FREE = {"model_dtype"}  # parameters stay float32


class OptimizerChanges(TypedDict, total=False):
    """Settings of the optimiser that may change, as its options may."""

    learning_rate: float
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear", "halving"]
    """Learning rate after warm-up, of all steps from the first on."""
    warmup_steps: int
    """Steps over which the learning rate rises, from the first on."""
    halving_steps: int | None
    """Steps after which the schedule "halving" halves the learning rate."""
    clip_norm: float | None
    """Largest global norm of the gradient."""
    clip_each: float | None
    """Largest norm of each matrix of the gradient."""


class TrainingChanges(TypedDict, total=False):
    """Settings of training that may change."""

    steps: int
    """Updates of the parameters, those made before among them."""
    batch_size: int
    """Prompts an update."""
    microbatch_size: int | None
    """Prompts whose gradient is computed at once, for good."""
    log_every: int
    """Steps a line of metrics.jsonl."""
    checkpoint_every: int
    """Steps between checkpoints."""
    keep_checkpoints: int
    """How many of the newest checkpoints stay."""


class ModelChanges(TypedDict, total=False):
    """Settings of the model that may change."""

    dtype: Literal["float32", "bfloat16"]
    """Dtype of the computation."""


# One a change, oldest first: {"from_step": int, "changed": {name: {"was": ..., "now": ...}}}
History = list[dict[str, Any]]


def fixed(name: str) -> str | None:
    """Why a setting cannot change in the middle of a run; None for one that can."""
    reason = FIXED.get(name) or FIXED.get(name.partition("_")[0])
    return None if name in FREE else reason


def check_changes(names: Iterable[str]) -> None:
    """Raises ValueError, saying why, where a setting cannot change in the middle of a run."""
    for name in names:
        if reason := fixed(name):
            raise ValueError(
                f"{name} cannot change in the middle of a run: {reason}; start another run with it"
            )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The settings a run goes on with.

    Args:
      config: those it has.
      changes: as `Config.replace` takes them.

    Raises:
      TypeError: no such setting.
      ValueError: one that cannot change in the middle of a run, or that does not fit.
    """
    after = config.replace(**changes)
    given = sorted(name for name in changes if name.startswith("optimizer_"))
    if given and config.optimizer.name == CUSTOM:
        raise ValueError(
            f"{', '.join(given)} would change nothing: the optimiser of this run is given from "
            "Python; pass one with other numbers, as icl.resume(run, optimizer=...)"
        )
    check_changes(_differences(config, after))
    return after


def extended(history: History, before: Config, after: Config, step: int) -> History:
    """The history of a run that goes on from a step with the settings `after`."""
    # A run that walked back to an earlier checkpoint has its present settings from there on.
    entries = [entry | {"from_step": min(entry["from_step"], step)} for entry in history]
    differences = _differences(before, after)
    return [*entries, {"from_step": step, "changed": differences}] if differences else entries


def settings_at(config: Config, history: History, step: int) -> Config:
    """The settings with which the checkpoint of a step was made."""
    for entry in reversed(history):
        if entry["from_step"] >= step:
            config = config.replace(**{n: both["was"] for n, both in entry["changed"].items()})
    return config


def checked(history: Any, config: Config) -> History:
    """A history as read from a file; raises ValueError, TypeError or KeyError where it is none."""
    steps = [entry["from_step"] for entry in history]
    if not all(type(step) is int and step >= 0 for step in steps) or steps != sorted(steps):
        raise ValueError(f"the steps of its history are {steps}")
    settings_at(config, history, 0)
    return history


def _differences(before: Config, after: Config) -> dict[str, dict[str, Any]]:
    was, now = before.flat(), after.flat()
    return {
        name: {"was": was.get(name), "now": now.get(name)}
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    }
