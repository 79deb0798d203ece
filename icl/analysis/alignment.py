"""How closely a learner agrees with gradient descent in context, or with another learner.

Von Oswald et al. 2023 (arXiv 2212.07677, section 3 and figures 2 and 3): over training, the
difference of predictions, the cosine and the difference of their gradients with respect to the
query, and the loss of weights half way between trained and constructed weights.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..evaluation.chunks import in_chunks
from ..evaluation.curves import draw_prompts
from ..models import SelfAttentionConfig
from ..report import (
    CHANCE,
    MARK,
    OWN,
    WIDTH,
    Result,
    comparator_look,
    in_lines,
    legend_of_panel,
    look,
    name_cut_lines,
    open_run,
    show_number,
)
from ..tasks import Episode, FunctionFamily, LinearRegression
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner, Params
from ..training.run import Run, RunError
from ..training.step import initial_variables
from .descent import (
    TunedDescent,
    comparable_descents,
    construction,
    interpolated,
    query_only,
    rates_of,
)

MOST_CHECKPOINTS = 20
# |difference of predictions|; cosine, and norm of the difference, of the gradients by the query.
MEASURES = ("prediction difference", "sensitivity cosine", "sensitivity difference")


@dataclasses.dataclass(frozen=True)
class Alignment(Result):
    """A learner and its comparators on prompts of fresh tasks.

    Attributes:
      steps: 0, and training steps of checkpoints, int `[S]`.
      loss: mean error of the learner at the query by checkpoint, as the family's `error`, `[S]`.
      interpolated: error of weights half trained and half constructed, `[S]`; NaN if the model has
        no construction.
      losses: error of each comparator, and of predicting 0, by name.
      measures: by comparator and measure (`MEASURES`), `[S]`.
      rates: learning rates and gammas by name: of each gradient descent and, if the model has a
        construction, those nearest to the learner's last weights.
      prompts: number of prompts that were averaged.
      path: the run's folder.
      error_name: what an error is.
      file: name of its files there.
    """

    steps: np.ndarray
    loss: np.ndarray
    interpolated: np.ndarray
    losses: dict[str, float]
    measures: dict[str, dict[str, np.ndarray]]
    rates: dict[str, dict[str, list[float]]]
    prompts: int
    path: Path
    error_name: str
    file: str = "alignment"

    def table(self) -> Table:
        """A row for the learner and each comparator, at the last checkpoint."""
        result = Table(
            title=f"in-context descent ({self.path}, step {self.steps[-1]})",
            caption=(
                f"error: {self.error_name}, at the query, mean over {self.prompts} prompts; |Δ|: "
                "mean difference of predictions; cosine and |Δ gradient|: of their gradients with "
                "respect to the query"
            ),
        )
        result.add_column("")
        for column in ("error", "|Δ|", "cosine", "|Δ gradient|"):
            result.add_column(column, justify="right", no_wrap=True)
        for name in self.rates:
            result.caption = f"{result.caption}\n{name} ({self._rates(name)})"
        result.add_row("learner", f"{self.loss[-1]:.4f}", "", "", "", style="bold")
        if np.isfinite(self.interpolated[-1]):
            result.add_row("half trained, half constructed", f"{self.interpolated[-1]:.4f}")
        for name, loss in self.losses.items():
            found = [show_number(self.measures[name][m][-1]) for m in MEASURES if name != "zero"]
            result.add_row(name, f"{loss:.4f}", *found)
        return result

    def figure(self, plt: Any) -> Any:
        """Left the losses over training, right the measures against the last comparator."""
        nearest = list(self.measures)[-1]
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.7), layout="constrained")
        left.plot(self.steps, self.loss, label="learner", **OWN | MARK)
        if np.isfinite(self.interpolated).any():
            half = look(5) | MARK
            left.plot(self.steps, self.interpolated, label="half constructed", **half)
        for index, (name, loss) in enumerate(self.losses.items()):
            left.axhline(loss, label=name, **CHANCE if name == "zero" else comparator_look(index))
        left.set(ylabel=in_lines(self.error_name, 28), title=f"error of {self.path.name}")
        worst = max(self.losses.values())
        highest = min(max(worst, self.loss.max()), 2 * worst)
        lowest = min(*self.losses.values(), self.loss.min())
        left.set_ylim(0.8 * lowest, 1.15 * highest)
        name_cut_lines(left)
        for index, (name, values) in enumerate(self.measures[nearest].items()):
            right.plot(self.steps, values, label=name, **look(index) | MARK)
        right.axhline(1, **CHANCE)
        right.set(title=f"against {nearest}", ylim=(min(0, right.get_ylim()[0]), None))
        right.set_ylabel("difference, or cosine")
        for axes in (left, right):
            axes.set_xscale("symlog", linthresh=max(1, self.steps[1]))
            axes.set_xlim(0, None)
            axes.set_xlabel("training step")
        legend_of_panel(left, right)
        return figure

    def _rates(self, name: str) -> str:
        return ", ".join(
            f"{which} {' '.join(f'{value:.3g}' for value in values)}"
            for which, values in self.rates[name].items()
        )


def has_descent(config: Config) -> bool:
    """Whether runs with these settings can be compared with gradient descent on linear weights."""
    return config.layout == "concatenated" and type(config.task) is LinearRegression


def alignment(
    run: Run | str | Path,
    against: Run | str | Path | None = None,
    *,
    prompts: int = 65_536,
    seed: int = 0,
) -> Alignment:
    """Compares a run over training with gradient descent, or with another run.

    The run is compared before the first step and at its checkpoints: at most `MOST_CHECKPOINTS`,
    more of them early. Gradient descent takes as many steps as the model has layers; for more than
    one layer there is also GD++ (`icl.analysis.descent.comparable_descents`). Writes
    `alignment.json` and `alignment.png` in the run's folder; for another run `alignment-NAME.json`
    and `alignment-NAME.png`, with the name of that run.

    Args:
      run: a run whose prompts end with a query, or its folder.
      against: another run of this task; None for gradient descent with tuned rates.
      prompts: number of prompts of fresh tasks.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, prompts without a query, no other run and a task other than
        linear regression, or another run of another task.
    """
    run, learner = open_run(run, prompts=prompts)
    config = run.config
    if not query_only(config):
        raise ValueError(
            f"{run.path} predicts every label; alignment needs prompts with a single query, as "
            "in the concatenated layout"
        )
    checkpoints = sorted(run.variables_by_step(), key=lambda one: one[0])
    if not checkpoints:
        raise RunError(f"{run.path} has no checkpoint yet; train it first")
    checkpoints = [(0, initial_variables(learner)), *_log_spaced(checkpoints)]
    checkpoints = [(step, variables.params) for step, variables in checkpoints]
    others = comparable_descents(config, seed) if against is None else [_other(config, against)]
    key = stream("alignment", seed)
    episodes = draw_prompts(learner.family, key, prompts)
    y = np.asarray(episodes.y[:, -1])
    found = [_look(other.learner, other.params, episodes) for other in others]
    error = lambda predictions: float(learner.family.label_kind.error(predictions, y).mean())
    losses = {other.name: error(one[0]) for other, one in zip(others, found)}
    losses["zero"] = error(np.zeros_like(y))
    measures = {other.name: {name: [] for name in MEASURES} for other in others}
    steps, loss, between = [], [], []
    constructed = None if against is not None else _constructed(learner, others[-1])
    for step, params in checkpoints:
        predictions, gradients = _look(learner, params, episodes)
        for other, one in zip(others, found):
            for name, value in _differences(predictions, gradients, *one).items():
                measures[other.name][name].append(value)
        steps.append(step)
        loss.append(error(predictions))
        middle = None if constructed is None else interpolated(params, constructed)
        between.append(np.nan if middle is None else error(_look(learner, middle, episodes)[0]))
    rates = {other.name: other.rates for other in others if against is None}
    if constructed is not None:
        rates["learner"] = rates_of(checkpoints[-1][1], learner.family.points - 1)
    return Alignment(
        np.array(steps),
        np.array(loss),
        np.array(between),
        losses,
        {name: {m: np.array(v) for m, v in some.items()} for name, some in measures.items()},
        rates,
        prompts,
        run.path,
        learner.family.label_kind.error_name,
        "alignment" if against is None else f"alignment-{others[0].name}",
    ).written()


def _log_spaced(checkpoints: list[tuple[int, Params]]) -> list[tuple[int, Params]]:
    """At most `MOST_CHECKPOINTS`, with the first and the last, spaced evenly in their logarithm."""
    if len(checkpoints) <= MOST_CHECKPOINTS:
        return checkpoints
    steps = np.array([step for step, _ in checkpoints])
    wanted = np.geomspace(steps[0], steps[-1], MOST_CHECKPOINTS)
    nearest = np.abs(np.log(steps) - np.log(wanted)[:, None]).argmin(axis=1)
    return [checkpoints[index] for index in np.unique(nearest)]


def _other(config: Config, against: Run | str | Path) -> TunedDescent:
    against = against if isinstance(against, Run) else Run.open(against)
    theirs = against.config
    if (theirs.task, query_only(theirs)) != (config.task, True):
        raise ValueError(f"{against.path} has another task, or prompts without a single query")
    return TunedDescent(against.path.name, Learner(theirs), against.variables()[1])


def _look(learner: Learner, params: Params, episodes: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Predictions at the queries `[B]`, and their gradients with respect to them `[B, dim]`."""
    return in_chunks(partial(_look_at, learner, params), episodes)


@partial(jax.jit, static_argnums=0)
def _look_at(learner: Learner, params: Params, episodes: Episode) -> tuple[jax.Array, jax.Array]:
    def total(query):
        x = episodes.x.at[:, -1].set(query)
        predictions = learner.predict(params, episodes._replace(x=x))[:, -1]
        return predictions.sum(), predictions

    gradients, predictions = jax.grad(total, has_aux=True)(episodes.x[:, -1])
    return predictions, gradients


def _differences(p: np.ndarray, g: np.ndarray, q: np.ndarray, h: np.ndarray) -> dict[str, float]:
    """The measures between predictions p and q, and gradients g and h."""
    norm = partial(np.linalg.norm, axis=-1)
    size = norm(g) * norm(h)
    cosine = np.where(size > 0, (g * h).sum(axis=-1) / np.where(size > 0, size, 1), 0)
    values = (np.abs(p - q).mean(), cosine.mean(), norm(g - h).mean())
    return {name: float(value) for name, value in zip(MEASURES, values)}


def _constructed(learner: Learner, descent: TunedDescent) -> Params | None:
    """Weights with which the learner's model equals the descent; None if it has no construction."""
    model, family = learner.config.model, learner.family
    if not isinstance(model, SelfAttentionConfig) or not isinstance(family, FunctionFamily):
        return None
    try:
        return construction(
            model, family.dim, family.points - 1, descent.learning_rates, descent.gammas
        )
    except ValueError:
        return None
