"""A learner and gradient descent in context on prompts unlike those of training.

Von Oswald et al. 2023 (arXiv 2212.07677, figure 2 and appendix A.2 to A.7): inputs of another range
or distribution, larger or smaller tasks, labels that are noise, and a layer applied repeatedly.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.chunks import in_chunks
from ..evaluation.curves import draw_prompts
from ..models import SelfAttention, SelfAttentionConfig
from ..report import (
    MARK,
    OWN,
    Result,
    comparator_look,
    legend_of_figure,
    log_axis,
    open_run,
    panel_grid,
    show_number,
    spread,
    title_cut_lines,
)
from ..report.lines import FEW
from ..tasks import Episode, FunctionFamily, LinearRegression
from ..tasks.draws import stream
from ..training.learner import Learner, Params
from ..training.run import Run
from .alignment import has_descent
from .descent import TunedDescent, comparable_descents, construction

INPUT_RANGES = np.linspace(0.5, 2.0, 7)
TASK_SCALES = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
REPEATS, DAMPING = 50, 0.75
MAX_COLUMNS = 5  # of the table
# Of the figure: panels in a row, and the ratio above which an axis is logarithmic.
PANELS, LOG_RANGE = 3, 30


@dataclasses.dataclass(frozen=True)
class ShiftCurves:
    """Errors over the values of one shift.

    Attributes:
      values: values of the shift, numbers or names, `[V]`.
      errors: squared error at the query / mean squared label under the shift, `[V]`, by name; the
        learner's is first.
    """

    values: list[Any]
    errors: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class DescentShifts(Result):
    """Errors of a learner and of gradient descent under each shift.

    Attributes:
      sweeps: errors over the values of a shift, by its name.
      step: the training step of the parameters.
      prompts: number of prompts that were averaged.
      path: the run's folder.
    """

    sweeps: dict[str, ShiftCurves]
    step: int
    prompts: int
    path: Path

    file = "descent-shifts"
    saved_as = {"sweeps": "normalised_error"}

    def table(self) -> Table:
        """A row for each shift and predictor, with at most `MAX_COLUMNS` values of the shift."""
        result = Table(
            title=f"in-context descent under shifts ({self.path}, step {self.step})",
            caption=(
                "squared error at the query / mean squared label under the shift, mean over "
                f"{self.prompts} prompts"
            ),
            show_header=False,
        )
        for name, sweep in self.sweeps.items():
            shown = spread(len(sweep.values), MAX_COLUMNS)
            value = lambda v: v if isinstance(v, str) else f"{v:g}"
            result.add_row(name, *(value(sweep.values[i]) for i in shown), style="bold")
            for who, errors in sweep.errors.items():
                result.add_row(who, *(show_number(errors[i]) for i in shown))
            result.add_section()
        return result

    def figure(self, plt: Any) -> Any:
        figure, panels = panel_grid(plt, len(self.sweeps), PANELS, 2.1)
        for axes, (name, sweep) in zip(panels, self.sweeps.items()):
            _draw_panel(axes, sweep)
            axes.set_xlabel(name)
        figure.supylabel("squared error / mean squared label")
        figure.suptitle(f"error under shifts, {self.path.name}, step {self.step}")
        legend_of_figure(figure)
        return figure


def descent_shifts(run: Run | str | Path, *, prompts: int = 1280, seed: int = 0) -> DescentShifts:
    """Compares a run's newest checkpoint with gradient descent tuned to the training prompts.

    Writes `descent-shifts.json` and `descent-shifts.png` in the run's folder. The shifts:
    x times 0.5 to 2; w times 0.5 to 5; inputs of other distributions; the first 0 to N labels
    replaced by N(0, 1) times the root mean square of labels. If the model has one layer or shares
    it, the layer is also applied up to 50 times, with each addition damped by 0.75, and compared
    with as many steps of descent.

    Args:
      run: a run on linear regression in the concatenated layout, or its folder.
      prompts: number of prompts of fresh tasks.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another task or layout.
    """
    run, learner = open_run(run, prompts=prompts)
    config, family = run.config, run.config.task
    if not has_descent(config) or not isinstance(family, LinearRegression):
        raise ValueError(
            f"{run.path} is no run on linear regression in the concatenated layout; gradient "
            "descent is compared with such runs"
        )
    step, params = run.variables()
    descents = comparable_descents(config, seed)
    predictors = {"learner": partial(jax.jit(learner.predict), params)} | {
        one.name: partial(jax.jit(one.learner.predict), one.params) for one in descents
    }
    # The name means: out of distribution, descent.
    prompt_key, label_key = jax.random.split(stream("oodd", seed))
    draw = lambda family: draw_prompts(family, prompt_key, prompts)
    plain = draw(family)
    noise = family.label_kind.scale**0.5 * jax.random.normal(label_key, plain.y.shape)
    position = jnp.arange(family.points)
    shifted: dict[str, dict[Any, Episode]] = {
        "inputs times": {
            float(a): plain._replace(x=plain.x * a, y=plain.y * a) for a in INPUT_RANGES
        },
        "tasks times": {float(a): plain._replace(y=plain.y * a) for a in TASK_SCALES},
        "inputs": {
            kind: draw(dataclasses.replace(family, inputs=kind, covariance_decay=0.0))
            for kind in ("uniform", "normal", "exponential", "laplace")
        },
        "random labels": {
            k: plain._replace(y=jnp.where(position < k, noise, plain.y))
            for k in range(family.points)
        },
    }
    sweeps = {
        name: ShiftCurves(
            list(by_value),
            {
                who: [_error(in_chunks(predict, e), e) for e in by_value.values()]
                for who, predict in predictors.items()
            },
        )
        for name, by_value in shifted.items()
    }
    model = config.model
    if isinstance(model, SelfAttentionConfig) and (model.shared or model.layers == 1):
        if not model.features and not model.positions:  # so that a layer's output can be its input
            sweeps["times applied"] = _repeated(learner, params, descents[0], plain)
    return DescentShifts(sweeps, step, prompts, run.path).written()


def _error(predictions: np.ndarray, episodes: Episode) -> float:
    y = np.asarray(episodes.y[:, -1])
    return float(((predictions[:, -1] - y) ** 2).mean() / (y**2).mean())


def _repeated(
    learner: Learner, params: Params, descent: TunedDescent, episodes: Episode
) -> ShiftCurves:
    """Errors of one layer applied 1 to `REPEATS` times, damped, and of the constructed layer."""
    config, model = learner.config, learner.config.model
    family, rate = config.task, descent.learning_rates[:1]
    assert isinstance(model, SelfAttentionConfig) and isinstance(family, FunctionFamily)
    plain = SelfAttentionConfig(layers=1)
    step = Learner(dataclasses.replace(config, model=plain))
    constructed = construction(plain, family.dim, family.points - 1, rate)
    tokens = learner.encode(params, episodes)

    @partial(jax.jit, static_argnums=0)
    def errors(which: str, params: Params) -> jax.Array:
        attention = {"learner": learner, "descent": step}[which].model(params)
        assert isinstance(attention, SelfAttention)

        def apply(tokens, _):
            tokens = attention.hidden(tokens, layers=1, damping=DAMPING)
            return tokens, ((-tokens[:, -1, -1] - episodes.y[:, -1]) ** 2).mean()

        return jax.lax.scan(apply, tokens, length=REPEATS)[1]

    size = float((episodes.y[:, -1] ** 2).mean())
    found = {
        "learner": errors("learner", params),
        f"GD, steps of rate {float(rate[0]):.3g}": errors("descent", constructed),
    }
    return ShiftCurves(
        list(range(1, REPEATS + 1)),
        {who: (np.asarray(values) / size).tolist() for who, values in found.items()},
    )


def _draw_panel(axes: Any, sweep: ShiftCurves) -> None:
    """A line for each predictor; only markers if the values are names."""
    named = any(isinstance(value, str) for value in sweep.values)
    points = len(sweep.values)
    for index, (who, errors) in enumerate(sweep.errors.items()):
        line = OWN | (MARK if points < FEW else {})
        line = line if index == 0 else comparator_look(index - 1, points)
        at = sweep.values
        if named:
            # Markers of predictors stand beside each other, so that equal errors are both visible.
            at = np.arange(len(errors)) + 0.2 * (index - (len(sweep.errors) - 1) / 2)
            line |= dict(linestyle="")
        axes.plot(at, errors, label=who, **line)
    if named:
        axes.set_xticks(
            range(points), sweep.values, rotation=25, ha="right", rotation_mode="anchor"
        )
    known = np.array(list(sweep.errors.values()))
    known = known[np.isfinite(known) & (known > 0)]
    if known.size and known.max() > LOG_RANGE * known.min():
        own = np.array(next(iter(sweep.errors.values())))
        # A predictor that diverges may leave the panel; the learner's curve must stay readable.
        top = min(1.4 * known.max(), 100 * np.nanmax(own))
        axes.set(ylim=(0.7 * known.min(), top), yscale="log")
        log_axis(axes, "y")
    else:
        axes.set_ylim(0, 1.15 * known.max() if known.size else None)
    title_cut_lines(axes)
