"""The settings of a run: frozen dataclasses that check their values and are saved as JSON."""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from ..layers.embedders import check_embedder
from ..models import MODELS, ModelConfig, TransformerConfig
from ..ranges import NOT_NEGATIVE, POSITIVE, SEED, SIZE, STEPS, Range, check_range, check_ranges
from ..registry import find, module_of, registered_name
from ..tasks import (
    FAMILIES,
    LAYOUTS,
    MAX_POOL_SIZE,
    Classes,
    Curriculum,
    LinearRegression,
    TaskFamily,
)
from ..tasks.labels import Measure

CUSTOM = "custom"
# Options of optax's optimisers that are momentum or decay rates of moving averages.
DECAYS = ("b1", "b2", "b3", "beta", "decay", "decay_rate", "momentum", "rho")
DECAY = Range(0.0, 0.9999999)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, the learning-rate schedule and gradient clipping."""

    name: str = "adam"
    """Name of an optimiser of optax or optax.contrib that takes a learning rate; "muon" is Muon for
    the matrices of layers and Adam for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear", "halving", "stable", "inverse_sqrt"] = (
        "cosine"
    )
    """Learning rate after warm-up: constant, cosine or linear decay to 0, or halvings.
    "stable" is constant, with a linear decay to 0 over the last fifth of the steps.
    "inverse_sqrt" is learning_rate * sqrt(warmup_steps / t) at step t (Vaswani et al. 2017).
    Warm-up over half of the steps with linear decay is the triangle of Raventós et al. 2023."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly from 0."""
    halving_steps: int | None = None
    """Number of steps between halvings of the learning rate under the schedule "halving"."""
    clip_norm: float | None = None
    """Maximum global norm of the gradient; None for no clipping."""
    clip_each: float | None = None
    """Maximum norm of the gradient of each matrix or vector; None for no clipping.
    The last two axes of a parameter are a matrix."""
    options: dict[str, float] = dataclasses.field(default_factory=dict)
    """Further arguments of the optimiser, for example: b2 0.98 weight_decay 0.1."""

    def __post_init__(self) -> None:
        check_ranges(
            "optimizer",
            self,
            learning_rate=POSITIVE,
            warmup_steps=STEPS._replace(low=0),
            halving_steps=STEPS,
            clip_norm=POSITIVE,
            clip_each=POSITIVE,
        )
        for name, value in self.options.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                check_range(
                    f"optimizer.options.{name}", value, DECAY if name in DECAYS else NOT_NEGATIVE
                )
        if self.schedule == "halving" and self.halving_steps is None:
            raise ValueError('the schedule "halving" needs halving_steps')
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise ValueError(
                'the schedule "inverse_sqrt" needs a warm-up: set optimizer.warmup_steps to at '
                "least 1"
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Number of steps, batch size, seed, and how often metrics and checkpoints are written."""

    steps: int = 10_000
    """Number of updates of the parameters."""
    batch_size: int = 64
    """Number of prompts per update."""
    seed: int = 0
    """Seed of the initial parameters, the pool and every batch."""
    pool_size: int | None = None
    """Number of tasks in a fixed training pool; None to draw a new task for every prompt."""
    pooled: Literal["tasks", "prompts"] = "tasks"
    """What the pool holds: tasks, with new points in every prompt, or whole prompts."""
    microbatch_size: int | None = None
    """Number of prompts whose gradient is computed at once, a divisor of batch_size.
    None chooses the whole batch on an accelerator, a number that fits the cache on a CPU.
    For a model with state, such as batch statistics, None chooses the whole batch everywhere: each
    microbatch has statistics of its own."""
    log_every: int = 100
    """Number of steps per line of metrics.jsonl; the host checks the loss at least this often."""
    checkpoint_every: int = 1000
    """Number of steps between checkpoints, a multiple of log_every."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep; older ones are deleted."""

    def __post_init__(self) -> None:
        check_ranges(
            "training",
            self,
            steps=STEPS,
            batch_size=SIZE,
            seed=SEED,
            pool_size=Range(1, MAX_POOL_SIZE),
            microbatch_size=SIZE,
            log_every=SIZE,
            checkpoint_every=STEPS,
            keep_checkpoints=STEPS,
        )
        if self.pooled not in ("tasks", "prompts"):
            raise ValueError(f"pooled must be tasks or prompts, got {self.pooled!r}")
        if self.pooled == "prompts" and self.pool_size is None:
            raise ValueError("a pool of prompts needs its size: set training.pool_size")
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of "
                f"log_every ({self.log_every})"
            )
        size = self.microbatch_size
        if size is not None and self.batch_size % size:
            raise ValueError(f"microbatch_size ({size}) must divide batch_size ({self.batch_size})")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    task: TaskFamily = dataclasses.field(default_factory=LinearRegression)
    """The task family that is learned in context."""
    layout: Literal[
        "interleaved",
        "tagged",
        "paired",
        "shifted",
        "concatenated",
        "separate",
        "masked",
        "inputs",
    ] = "interleaved"
    """How points become tokens.
    Interleaved: x1 y1 x2 y2 ...; concatenated: (x1, y1) ... (query, 0).
    Tagged: (0, x1) (y1, 0) (0, x2) ...; separate: (x1, 0) (0, y1) ... (query, 0).
    Paired: (x1, 0) (x1, y1) (x2, 0) (x2, y2) ...; shifted: (x1, 0) (x2, y1) (x3, y2) ...
    Masked: (x1, y1, 0) ... (query, 0, 1) (query, 0, 1), for tasks with queries.
    Inputs: x1 x2 x3 ..., for sequences of symbols."""
    model: ModelConfig = dataclasses.field(default_factory=TransformerConfig)
    """The model that learns in context."""
    curriculum: Curriculum = dataclasses.field(default_factory=Curriculum)
    """Difficulty of the task at each training step."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """The optimiser and its learning rate."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """Number of steps, batch size, logging and checkpoints."""

    def __post_init__(self) -> None:
        expected = {
            "task": TaskFamily,
            "model": ModelConfig,
            "curriculum": Curriculum,
            "optimizer": OptimizerConfig,
            "training": TrainingConfig,
        }
        for name, kind in expected.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        _check_numbers("", dataclasses.asdict(self))
        if self.layout not in LAYOUTS:
            raise ValueError(f"no layout called {self.layout!r}; there are {sorted(LAYOUTS)}")
        self.curriculum.check_for(self.task)
        check_embedder(self.model.embedder, self.task.input_kind, self.model.takes_rows)
        if self.model.embed_labels and not isinstance(self.task.label_kind, Classes):
            raise ValueError(
                "only labels that are classes can be embedded: set model.embed_labels to False"
            )
        if self.model.embed_labels and self.task.inputs_alone:
            raise ValueError(
                f"prompts of {type(self.task).__name__} show no labels: set model.embed_labels to "
                "False"
            )
        if getattr(self.task, "interim", 0.0) and LAYOUTS[self.layout].query_only:
            raise ValueError(
                f"the layout {self.layout} predicts the query alone: set task.interim to 0, or "
                "layout to interleaved, tagged, paired or shifted"
            )
        self._check_queries()
        if not self.model.causal:
            self._check_whole_prompts()

    @property
    def training_measure(self) -> Measure:
        """How training shows the loss: as the error of evaluation, if a factor converts it."""
        measure = self.task.label_kind.training_measure
        # With fewer dimensions in use labels are smaller than `measure.scale` says.
        if measure.label != "error" or self.curriculum.dim_start is None:
            return measure
        return measure._replace(name=f"{measure.name} at full difficulty")

    def _check_queries(self) -> None:
        """Raises ValueError if task, layout and model disagree on which labels are shown."""
        name, hidden = self.layout, self.task.hidden_queries
        if self.model.takes_shifted and name != "shifted":
            raise ValueError(
                f"{self.model.title} takes tokens (x, the label before): set layout to shifted, "
                f"not {name}"
            )
        if self.model.takes_masked and name != "masked":
            raise ValueError(
                f"{self.model.title} takes tokens that mark queries: set layout to masked, not "
                f"{name}, and task.queries to the number of queries"
            )
        if self.task.inputs_alone != (name == "inputs"):
            family = type(self.task).__name__
            raise ValueError(
                f"prompts of {family} are made of inputs alone: set layout to inputs, not {name}"
                if self.task.inputs_alone
                else f"the layout inputs shows no labels, which {family} needs: choose another"
            )
        if hidden and name != "masked":
            raise ValueError(
                f"the layout {name} cannot have several queries without labels: leave task.queries "
                "None, or set layout to masked"
            )
        if name == "masked" and not hidden:
            does = "set task.queries to their number"
            if not hasattr(self.task, "queries"):
                does = f"{type(self.task).__name__} has none, so choose another layout"
            raise ValueError(f"the layout masked needs points that are queries alone: {does}")

    def _check_whole_prompts(self) -> None:
        """Raises ValueError unless no token shows the label of a query, and none is padding.

        A model that is not causal reads all labels, so no other point can be predicted.
        """
        title = self.model.title
        if not LAYOUTS[self.layout].hides_labels:
            raise ValueError(
                f"a {title} sees the whole prompt, labels included, so the layout must be one that "
                f"hides the labels of queries: concatenated, separate or masked; got {self.layout}"
            )
        if self.model.takes_points and self.layout != "concatenated":
            raise ValueError(
                f"{title} takes tokens (x, y): set layout to concatenated, not {self.layout}"
            )
        if self.task.points < 2:
            raise ValueError(
                f"a {title} needs an example besides the query: set task.points to at least 2"
            )
        padded = (
            self.curriculum.points_start is not None
            or self.task.may_pad
            or not (
                self.task.every_point_is_query
                or self.task.only_last_is_query
                or self.task.hidden_queries
            )
        )
        if padded and not (self.model.takes_lengths or self.model.takes_examples):
            raise ValueError(
                f"a {title} takes the last point as the query, so no point may be padding: leave "
                "curriculum.points_start and task.fewest_points None, and choose a task without "
                "outliers"
            )

    def replace(self, **changes: Any) -> "Config":
        """A copy with changes given as `section_field=value` or `section=object`.

        `config.replace(training_steps=500, task_noise=0.5)`. A name that is no
        setting raises TypeError, whose message lists similar settings, or all.
        """
        whole, parts = {}, {}
        for name, value in changes.items():
            section, _, field = name.partition("_")
            owner = getattr(self, section, None)
            if not field and owner is not None:
                whole[section] = value
            elif dataclasses.is_dataclass(owner) and hasattr(owner, field):
                parts.setdefault(section, {})[field] = value
            else:
                raise TypeError(unknown_setting(name, list(self.flat())))
        for section, fields in parts.items():
            whole[section] = dataclasses.replace(
                whole.get(section, getattr(self, section)), **fields
            )
        return dataclasses.replace(self, **whole)

    def flat(self) -> dict[str, Any]:
        """All settings, by the names that `replace` takes."""
        flat = {}
        for section, value in config_to_dict(self).items():
            if isinstance(value, dict):
                flat.update({f"{section}_{name}": item for name, item in value.items()})
            else:
                flat[section] = value
        # `replace` changes classes by `task=object` and `model=object` only.
        for name in ("model_kind", "model_module", "task_module"):
            flat.pop(name, None)
        return flat


def config_to_dict(config: Config) -> dict[str, Any]:
    """The settings as a dictionary for JSON, with task family and model by their registered names.

    An optimiser given from Python is saved by its name "custom" alone.
    """
    result = dataclasses.asdict(config)
    if config.optimizer.name == CUSTOM:
        result["optimizer"] = {"name": CUSTOM}
    family = registered_name(config.task, FAMILIES, "icl.register_family")
    result["task"] = {"family": family, **_imported(config.task), **result["task"]}
    kind = registered_name(config.model, MODELS, "icl.register_model")
    result["model"] = {"kind": kind, **_imported(config.model), **result["model"]}
    return result


def _imported(settings: Any) -> dict[str, str]:
    """The module that registers a class of settings, unless the class is part of this package."""
    module = module_of(settings)
    return {} if module is None else {"module": module}


def config_from_dict(data: dict[str, Any]) -> Config:
    """The inverse of `config_to_dict`; a model without a kind, in old files, is a transformer.

    Raises:
      ValueError: a family, a kind of model or a setting is unknown, or a value has the wrong
        type.
    """
    try:
        data = dict(data)
        task = dict(data.pop("task"))
        family = find(FAMILIES, "task family", task.pop("family"), task.pop("module", None))
        model = dict(data.pop("model"))
        named = model.pop("kind", "transformer"), model.pop("module", None)
        kind = find(MODELS, "kind of model", *named)
        return Config(
            task=_made(family, "task", task),
            layout=data.pop("layout"),
            model=_made(kind, "model", model),
            curriculum=_made(Curriculum, "curriculum", data.pop("curriculum")),
            optimizer=_made(OptimizerConfig, "optimizer", data.pop("optimizer")),
            training=_made(TrainingConfig, "training", data.pop("training")),
            **data,
        )
    except KeyError as error:
        raise ValueError(f"settings this version cannot read: it has no {error}") from error
    except TypeError as error:
        raise ValueError(f"settings this version cannot read: {error}") from error


def _made(kind: type, section: str, settings: dict[str, Any]) -> Any:
    """A section of settings from JSON, which stores tuples as lists."""
    if not isinstance(settings, dict):
        raise ValueError(f"{section} must be settings by name, got {settings!r}")
    hints = typing.get_type_hints(kind)
    for name, value in settings.items():
        hint = hints.get(name, Any)
        if not _is_of(value, hint):
            said = getattr(hint, "__name__", str(hint)).replace("typing.", "")
            raise ValueError(f"{section}.{name} must be {said}, got {value!r}")
    lists = {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    return kind(**settings | lists)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the type of a hint."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, kind) for kind in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(v, inner[1]) for v in value.values())
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(v, inner[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True


def _check_numbers(name: str, value: Any) -> None:
    """Raises ValueError for a number that is not finite or does not fit a device's integers."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(name, item)
    elif isinstance(value, numbers.Integral):
        bits = 63 if name.endswith("seed") else 31
        if abs(int(value)) >= 2**bits:
            raise ValueError(f"{name} must be below 2^{bits}, got {value}")
    elif isinstance(value, numbers.Real) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def unknown_setting(name: str, known: Sequence[str]) -> str:
    """A message that names similar settings, and all if none is similar."""
    fields = {full.partition("_")[2]: full for full in known}
    near = difflib.get_close_matches(name, [*known, *fields], n=3, cutoff=0.7)
    if near:
        similar = dict.fromkeys(fields.get(one, one) for one in near)
        return f"no setting {name!r}; did you mean {' or '.join(similar)}?"
    return f"no setting {name!r}; there are: {', '.join(known)}"
