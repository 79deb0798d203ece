"""Prompts unlike those of training: the shifts of Garg et al. 2022 (arXiv 2208.01066, section 4).

A shift changes the inputs, the labels or the noise of a prompt, or asks for queries that are not
distributed like the examples. In the last case the query after i examples takes the place of x_i.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation import baselines
from ..evaluation.chunks import in_chunks
from ..evaluation.curves import bootstrap
from ..evaluation.queries import predict_queries
from ..evaluation.result import Curve
from ..report import (
    OWN,
    Result,
    comparator_look,
    draw_line,
    in_lines,
    legend_of_figure,
    open_run,
    panel_grid,
    show_number,
    spread,
    title_cut_lines,
)
from ..tasks import (
    DecisionTree,
    Episode,
    FunctionFamily,
    LinearClassification,
    LinearRegression,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
    TaskFamily,
)
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner
from ..training.run import Run
from .descent import predicts_every_prefix

MAX_COLUMNS = 5  # of the table
PANELS = 5  # of the figure, in a row
LEARNER, LEAST_SQUARES = "learner", "least squares"
GAUSSIAN = (
    LinearRegression,
    SparseLinearRegression,
    QuadraticRegression,
    ReLUNetwork,
    DecisionTree,
    LinearClassification,
)


class Shifted(NamedTuple):
    """Prompts under a shift, and the query after every prefix of them."""

    episodes: Episode
    queries: jax.Array | None  # [B, points, dim]; None if the prompt's own points are the queries
    labels: jax.Array  # [B, points]: of the queries, or of the points


# Separate from the shifts, so that the random numbers compile once for all shifts.
@partial(jax.jit, static_argnums=(0, 2))
def _unshifted(family: FunctionFamily, key: jax.Array, prompts: int) -> tuple[Any, jax.Array]:
    """Tasks and inputs as in training."""

    def draw(key):
        task_key, input_key = jax.random.split(key)
        return family.sample_task(task_key, family.full), family.sample_inputs(input_key)

    return jax.vmap(draw)(jax.random.split(key, prompts))


@partial(jax.jit, static_argnums=(0, 1))
def _shifted(
    shift: "Shift", family: FunctionFamily, key: jax.Array, tasks: Any, x: jax.Array
) -> Shifted:
    keys = jax.random.split(key, len(x))
    return jax.vmap(lambda *given: shift.apply(family, *given))(keys, tasks, x)


Change = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True)
class Shift:
    """A shift of the prompts of a family with Gaussian inputs.

    Errors under a shift are divided by the mean squared label under the shift, so that predicting
    0 has error 1; fractions misclassified are not divided. Noise is left out of the mean squared
    label (as in Garg et al.) unless labels are renormalised or rescaled.
    """

    description: str
    change: Change = lambda key, x: (x, None)
    """From a key and training inputs `[points, dim]` to inputs and queries of the prompt."""
    relabel: Callable[[FunctionFamily], FunctionFamily] = lambda family: family
    """The family that draws the labels."""
    label_size: Callable[[FunctionFamily], float] = lambda family: 1.0
    """Mean squared label, relative to that in training."""
    examples: Callable[[int], tuple[int, int | None]] = lambda dim: (0, None)
    """The numbers of examples, from and below, for which the query exists."""
    families: tuple[type[FunctionFamily], ...] = GAUSSIAN

    def draw(self, family: FunctionFamily, key: jax.Array, prompts: int) -> Shifted:
        """Draws prompts of fresh tasks under the shift, leading axis `prompts`.

        All shifts that are given one key start from equal tasks, inputs and noise. The key is
        consumed.
        """
        start_key, shift_key = jax.random.split(key)
        tasks, x = _unshifted(family, start_key, prompts)
        return _shifted(self, family, shift_key, tasks, x)

    def apply(self, family: FunctionFamily, key: jax.Array, task: Any, x: jax.Array) -> Shifted:
        """One prompt under the shift, from a task and training inputs; the key is consumed."""
        change_key, episode_key = jax.random.split(key)
        x, queries = self.change(change_key, x)
        family, points = self.relabel(family), family.points
        # Queries are labelled together with the points, so that they share noise and scale.
        everything = x if queries is None else jnp.concatenate([x, queries])
        methods: dict[str, Any] = dict(sample_inputs=lambda self, key: everything)
        if isinstance(family, LinearRegression):
            # Renormalised labels are divided by their size under the shift.
            size, signal = self.label_size(family), family.signal
            methods["signal"] = lambda self, dim: size * signal(dim)
        labelled = _with(
            dataclasses.replace(family, points=len(everything)), **methods
        ).sample_episode(episode_key, task, family.full._replace(points=len(everything)))
        episode = jax.tree.map(lambda a: a[:points], labelled)
        return Shifted(episode, queries, labelled.y[-points:])

    def error(self, family: FunctionFamily, prediction: Any, labels: Any) -> Any:
        """Normalised errors `[..., points]` under the shift."""
        # Renormalised labels have equal mean squares under all shifts.
        size = 1.0 if getattr(family, "renormalize", False) else self.label_size(family)
        return family.label_kind.error(prediction, labels) / size


def _with(family: FunctionFamily, **methods: Callable[..., Any]) -> FunctionFamily:
    """The family with methods replaced."""
    return type(type(family).__name__, (type(family),), methods)(**vars(family))


def _linear_map(spectrum: Callable[[int], jax.Array]) -> Change:
    """x U diag(s) U^T with a uniform U for each prompt, and s scaled such that E |x|^2 = dim."""

    def change(key, x):
        dim = x.shape[1]
        scales = _normalised(spectrum(dim))
        basis = jax.random.orthogonal(key, dim)
        return jnp.matmul(x, (basis * scales[None]) @ basis.T, precision="highest"), None

    return change


def _normalised(scales: jax.Array) -> jax.Array:
    return scales * jnp.sqrt(len(scales) / (scales**2).sum())


def _skewed(dim: int) -> jax.Array:
    return 1 / jnp.arange(1, dim + 1)


def _half(dim: int) -> jax.Array:
    return (jnp.arange(dim) < max(dim // 2, 1)).astype(jnp.float32)


def _fourth_moment(spectrum: Callable[[int], jax.Array]) -> Callable[[FunctionFamily], float]:
    """Size of squared inputs: E x_j^4 over a uniform basis, from the covariance's spectrum."""

    def size(family):
        if not isinstance(family, QuadraticRegression):
            return 1.0
        dim = family.dim
        eigenvalues = np.asarray(_normalised(spectrum(dim)), np.float64) ** 2
        return float((2 * (eigenvalues**2).sum() + dim**2) / (dim * (dim + 2)))

    return size


def _scaled_inputs(scale: float) -> Shift:
    def size(family):
        if isinstance(family, (DecisionTree, LinearClassification)):
            return 1.0
        return scale**4 if isinstance(family, QuadraticRegression) else scale**2

    return Shift(f"x times {scale:.3g}", lambda key, x: (scale * x, None), label_size=size)


def _scaled_labels(scale: float) -> Shift:
    def relabel(family):
        label = lambda self, task, x: scale * family.label(task, x)
        return _with(family, label=label)

    regressions = tuple(kind for kind in GAUSSIAN if kind is not LinearClassification)
    return Shift(
        f"labels times {scale:.3g}",
        relabel=relabel,
        label_size=lambda family: scale**2,
        families=regressions,
    )


def _noisy(family: FunctionFamily) -> FunctionFamily:
    """Noise of variance dim/20, as in the paper's text."""
    return dataclasses.replace(family, noise=(family.dim / 20) ** 0.5)


def _noisy_renormalised(family: FunctionFamily) -> FunctionFamily:
    """Noise of deviation 1, after which labels are rescaled to their size without noise.

    The public code divides by the deviation of a batch; here the divisor is its expectation.
    """
    plain = dataclasses.replace(family, renormalize=False)
    assert isinstance(family, LinearRegression) and isinstance(plain, LinearRegression)
    factor = (family.mean_squared_label / (plain.mean_squared_label + 1)) ** 0.5
    noisy = dataclasses.replace(plain, noise=factor)
    return _with(noisy, label=lambda self, task, x: factor * family.label(task, x))


def _quadrants(queries: Callable[[jax.Array, jax.Array], jax.Array]) -> Change:
    """Examples in one orthant, uniform for each prompt."""

    def change(key, x):
        signs = jax.random.rademacher(key, (x.shape[1],), x.dtype)
        examples = jnp.abs(x) * signs[None]
        return examples, queries(x, examples)

    return change


def orthogonal_queries(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x_i minus its projection on the points before it, rescaled to the length of x_i.

    Such a query exists for i < dim; later queries are 0. Its direction is column i of Q in the QR
    decomposition of X^T.
    """
    points, dim = x.shape
    basis, triangle = jnp.linalg.qr(x[:dim].T)
    directions = (basis * jnp.sign(jnp.diagonal(triangle))[None]).T
    lengths = jnp.linalg.norm(x[:dim], axis=1, keepdims=True)
    return x, jnp.pad(directions * lengths, ((0, max(points - dim, 0)), (0, 0)))


def overlapping_queries(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One of the points before, all equally likely; x_0 if there are none."""
    position = jnp.arange(len(x))
    chosen = (jax.random.uniform(key, position.shape) * position.astype(jnp.float32)).astype(int)
    return x, x[jnp.minimum(chosen, jnp.maximum(position - 1, 0))]


SHIFTS: dict[str, Shift] = {
    "none": Shift("as in training"),
    "skewed": Shift(
        "covariance eigenvalues as 1/i^2, basis random",
        _linear_map(_skewed),
        label_size=_fourth_moment(_skewed),
    ),
    "half_subspace": Shift(
        "x in a random subspace of dim/2", _linear_map(_half), label_size=_fourth_moment(_half)
    ),
    "scale_x=1/3": _scaled_inputs(1 / 3),
    "scale_x=1/2": _scaled_inputs(1 / 2),
    "scale_x=2": _scaled_inputs(2.0),
    "scale_x=3": _scaled_inputs(3.0),
    "scale_y=1/3": _scaled_labels(1 / 3),
    "scale_y=1/2": _scaled_labels(1 / 2),
    "scale_y=2": _scaled_labels(2.0),
    "scale_y=3": _scaled_labels(3.0),
    "noise": Shift(
        "noise of deviation 1, labels rescaled to their size (public code)",
        relabel=_noisy_renormalised,
        families=(LinearRegression, SparseLinearRegression),
    ),
    "noise_paper": Shift(
        "noise of variance dim/20 (paper)",
        relabel=_noisy,
        families=(LinearRegression, SparseLinearRegression),
    ),
    "random_quadrants": Shift(
        "examples in one orthant, query in any", _quadrants(lambda x, examples: x)
    ),
    "opposite_quadrants": Shift(
        "query in the orthant opposite to the examples'", _quadrants(lambda x, examples: -examples)
    ),
    "orthogonal_query": Shift(
        "query orthogonal to the examples", orthogonal_queries, examples=lambda dim: (0, dim)
    ),
    "overlapping_query": Shift(
        "query is one of the examples", overlapping_queries, examples=lambda dim: (1, None)
    ),
}


def shifts_of(family: TaskFamily) -> dict[str, Shift]:
    """The shifts that apply to a family, by name; none if its inputs are not standard normal."""
    if isinstance(family, LinearRegression) and (family.inputs != "normal" or family.random_labels):
        return {}
    # By the exact class: subclasses of linear regression with outliers have other inputs.
    return {name: shift for name, shift in SHIFTS.items() if type(family) in shift.families}


def has_shifts(config: Config) -> bool:
    """Whether runs with these settings can be evaluated under shifts."""
    return predicts_every_prefix(config) and bool(shifts_of(config.task))


@dataclasses.dataclass(frozen=True)
class Shifts(Result):
    """Errors of a learner and of least squares under each shift.

    Attributes:
      examples: numbers of in-context examples, int `[E]`.
      curves: by shift, then by "learner" or "least squares", a `Curve` over `examples`, NaN
        if the shift has no query; errors are those of `Shift.error`.
      error_name: what an error is.
      step: the training step of the parameters.
      prompts: number of prompts that were averaged for each shift.
      path: the run's folder.
    """

    examples: np.ndarray
    curves: dict[str, dict[str, Curve]]
    error_name: str
    step: int
    prompts: int
    path: Path

    file = "shifts"
    saved_as = {"curves": "error"}

    def table(self) -> Table:
        """Error by number of examples, a row a shift for the learner and one for least squares."""
        shown = spread(len(self.examples), MAX_COLUMNS)
        result = Table(
            title=f"error after k examples, under shifts ({self.path}, step {self.step})",
            caption=f"{self.error_name}, under the shift; mean over {self.prompts} prompts",
        )
        result.add_column("shift", no_wrap=True)
        result.add_column("k", no_wrap=True)
        for k in self.examples[shown]:
            result.add_column(str(k), justify="right", no_wrap=True)
        for shift, of in self.curves.items():
            for who, curve in of.items():
                own = who == LEARNER
                numbers = ("" if np.isnan(v) else show_number(v) for v in curve.mean[shown])
                name = shift if own else ""
                result.add_row(name, who, *numbers, style=None if own else "dim")
        return result

    def figure(self, plt: Any) -> Any:
        """Error against the number of examples, a panel a shift (as Garg et al. 2022, figure 4)."""
        figure, panels = panel_grid(
            plt, len(self.curves), PANELS, 1.35, xlabel="examples", sharex=True, sharey=True
        )
        panels[0].set_ylim(-0.05, 1.55)
        for axes, (name, of) in zip(panels, self.curves.items()):
            for who, curve in of.items():
                line = OWN | dict(linewidth=1.8) if who == LEARNER else comparator_look(0)
                draw_line(axes, self.examples, curve.mean, curve.low, curve.high, label=who, **line)
            axes.set_title(name, fontsize=8)
            title_cut_lines(axes)
        panels[0].locator_params(axis="x", integer=True)
        figure.supylabel(in_lines(self.error_name, int(13 * figure.get_size_inches()[1])))
        legend_of_figure(figure)
        return figure


def evaluate_shifts(
    run: Run | str | Path, *, prompts: int = 1280, resamples: int = 1000, seed: int = 0
) -> Shifts:
    """Evaluates a run's newest checkpoint and least squares under every shift.

    Writes `shifts.json` and `shifts.png` in its folder. All shifts start from equal tasks and
    inputs; prompts are at full difficulty. The default number of prompts is that of Garg et al.

    Args:
      run: the run or its folder.
      prompts: number of prompts for each shift.
      resamples: bootstrap resamples for the 5th to 95th percentile.
      seed: seed of prompts and resamples.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt or resample, a family without shifts, or the concatenated
        layout.
    """
    run, learner = open_run(run, prompts=prompts, resamples=resamples)
    family = run.config.task
    shifts = shifts_of(family)
    if not shifts:
        raise ValueError(f"no shift is known for {type(family).__name__}")
    assert isinstance(family, FunctionFamily)  # as all families with shifts
    step, params = run.variables()
    draw_key, resample_key = jax.random.split(stream("shifts", seed))
    draw = lambda shift: shift.draw(family, jax.random.clone(draw_key), prompts)
    drawn = {name: jax.tree.map(np.asarray, draw(shift)) for name, shift in shifts.items()}
    errors = np.zeros((prompts, len(shifts), 2, family.points))
    for asks_queries in (False, True):
        chosen = [name for name in shifts if (drawn[name].queries is not None) == asks_queries]
        if not chosen:
            continue
        pooled = jax.tree.map(lambda *a: np.concatenate(a), *(drawn[name] for name in chosen))
        for who, predictions in enumerate(_predict(learner, params, pooled)):
            for name, predicted in zip(chosen, np.split(predictions, len(chosen))):
                labels = np.asarray(drawn[name].labels, np.float64)
                error = shifts[name].error(family, predicted.astype(np.float64), labels)
                errors[:, list(shifts).index(name), who] = error
    low, high = bootstrap(resample_key, errors, resamples)
    mean, examples = errors.mean(axis=0), np.arange(family.points)
    curves = {}
    for s, (name, shift) in enumerate(shifts.items()):
        first, past = shift.examples(family.dim)
        asked = (examples >= first) & (examples < (past or family.points))
        ends = [np.where(asked, end[s], np.nan) for end in (mean, low, high)]
        curves[name] = {
            who: Curve(*(end[w] for end in ends)) for w, who in enumerate((LEARNER, LEAST_SQUARES))
        }
    name = error_name_of(family, shifts)
    return Shifts(examples, curves, name, step, prompts, run.path).written()


def error_name_of(family: FunctionFamily, shifts: dict[str, Shift]) -> str:
    """The name of `Shift.error` under these shifts."""
    name = family.label_kind.error_name
    noisy = "noise_paper" in shifts and _noisy(family).label_kind.error_name != name
    return name + (" (of noise_paper without its noise)" if noisy else "")


def _predict(learner: Learner, params: Any, shifted: Shifted) -> tuple[np.ndarray, np.ndarray]:
    """Predictions `[B, points]` of the learner and of least squares at the queries."""
    episodes, queries = shifted.episodes, shifted.queries
    if queries is None:
        predict = jax.jit(learner.predict)
        ours = in_chunks(lambda e: predict(params, e), episodes)
    else:
        ask = jax.jit(lambda *given: predict_queries(learner, *given))
        ours = in_chunks(lambda e, q: ask(params, e, q), episodes, queries)
    asked = episodes.x if queries is None else queries
    with jax.enable_x64(True):
        least_squares = jax.jit(baselines.least_squares)
        theirs = in_chunks(least_squares, episodes.x, episodes.y, asked, dtype=np.float64)
    return ours, theirs
