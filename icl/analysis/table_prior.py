"""What can be learned on tables of the prior, and a page of such tables.

A prior that classical estimators cannot learn teaches a prior-fitted network nothing, so
scikit-learn's estimators are fitted to each drawn table beside the learner.
"""

import dataclasses
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table as Grid

from ..evaluation.chunks import in_chunks
from ..report import Result, open_run, panel_grid, show_number
from ..tasks import Episode, Tables
from ..tasks.draws import stream
from ..tasks.labels import NextSymbol
from ..training.config import Config
from ..training.data import load_data
from ..training.run import Run

PANELS = (3, 6)  # rows and columns of tables in the figure
TREES = 100  # of a forest
LOG_LOSS = NextSymbol(2)  # its error is the log loss, for any number of classes


@dataclasses.dataclass(frozen=True)
class Page:
    """A table to draw: its first two columns in use, and the labels of all rows."""

    x: np.ndarray  # [rows, 2]
    y: np.ndarray  # [rows]
    columns: int  # in use


@dataclasses.dataclass(frozen=True)
class TablePrior(Result):
    """Losses of the learner and of classical estimators on tables of the prior.

    Attributes:
      mechanisms: the mechanism of each table, `[tables]`.
      examples: the number of examples of each table, int `[tables]`.
      losses: by method, the mean loss over the queries of each table, `[tables]`: the log loss, or
        the squared error of numbers.
      accuracy: by method, the share of queries classified correctly, `[tables]`; {} for numbers.
      loss_name: name of the loss.
      step: training step of the checkpoint.
      path: the run's folder.
      pages: some of the tables.
    """

    mechanisms: list[str]
    examples: np.ndarray
    losses: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    loss_name: str
    step: int
    path: Path
    pages: list[Page]

    file = "tables"

    def table(self) -> Grid:
        """A row a method: its loss on tables of each mechanism and on all, and its accuracy."""
        names = list(dict.fromkeys(sorted(self.mechanisms)))
        result = Grid(
            title=f"{self.loss_name} on tables of the prior ({self.path}, step {self.step})",
            caption=(
                f"{len(self.mechanisms)} tables with {self.examples.min()} to "
                f"{self.examples.max()} examples; scikit-learn's estimators are fitted to each"
            ),
        )
        result.add_column("method")
        for name in (*names, "all", *(["accuracy"] if self.accuracy else [])):
            result.add_column(name, justify="right")
        of = {name: np.array([one == name for one in self.mechanisms]) for name in names}
        for method, losses in self.losses.items():
            cells = [show_number(losses[of[name]].mean()) for name in names]
            cells.append(show_number(losses.mean()))
            if self.accuracy:
                cells.append(show_number(self.accuracy[method].mean()))
            result.add_row(method, *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """A page of tables: their first two columns, coloured by the label."""
        figure, panels = panel_grid(plt, len(self.pages), PANELS[1], 1.2)
        for axes, page, mechanism in zip(panels, self.pages, self.mechanisms):
            colours = "tab10" if np.issubdtype(page.y.dtype, np.integer) else "viridis"
            limits = dict(vmin=0, vmax=9) if colours == "tab10" else {}
            axes.scatter(*page.x.T, c=page.y, s=3, cmap=colours, **limits)
            axes.set_title(f"{mechanism}\n{page.columns} columns", fontsize=7)
            axes.set(xticks=[], yticks=[])
        figure.suptitle("tables of the prior: the first two columns, by label")
        return figure


def learns_tables(config: Config) -> bool:
    """Whether runs with these settings learn tables."""
    return isinstance(config.task, Tables)


def table_prior(run: Run | str | Path, *, prompts: int = 200, seed: int = 0) -> TablePrior:
    """Draws tables, fits estimators, and writes tables.json and tables.png.

    Args:
      run: the run or its folder.
      prompts: number of tables.
      seed: seed of the tables.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one table, or a run of another task.
    """
    run, learner = open_run(run, prompts=prompts)
    family = learner.family
    if not isinstance(family, Tables):
        raise ValueError(f"{run.path} does not learn tables: its task is {family}")
    step, variables = run.variables()
    drawn, mechanisms = _drawn(family, stream("prior", seed), prompts)
    own = in_chunks(partial(jax.jit(learner.predict), variables), jax.tree.map(jnp.asarray, drawn))
    by_class = family.target == "class"
    losses: dict[str, list[float]] = {}
    hits: dict[str, list[float]] = {}
    for at in range(prompts):
        one = jax.tree.map(lambda leaf, at=at: leaf[at], drawn)
        if not one.queries.any():
            continue
        y = one.y[one.queries]
        predictions = {learner.name: np.asarray(own[at], np.float64)[one.queries]}
        predictions |= _fitted(one, family)
        for method, predicted in predictions.items():
            error = LOG_LOSS.error(predicted, y) if by_class else (predicted - y) ** 2
            losses.setdefault(method, []).append(float(error.mean()))
            if by_class:
                hit = predicted.argmax(axis=-1) == y
                hits.setdefault(method, []).append(float(hit.mean()))
    asked = np.asarray(drawn.queries).any(axis=1)
    return TablePrior(
        [family.concepts[index] for index in mechanisms[asked]],
        np.asarray(drawn.context).sum(axis=1)[asked],
        {method: np.array(values) for method, values in losses.items()},
        {method: np.array(values) for method, values in hits.items()},
        "log loss, nats" if by_class else "squared error",
        step,
        run.path,
        [_page(drawn, at) for at in np.flatnonzero(asked)[: PANELS[0] * PANELS[1]]],
    ).written()


def _drawn(family: Tables, key: jax.Array, count: int) -> tuple[Episode, np.ndarray]:
    """Tables `[count, ...]` and the mechanism of each, int `[count]`. The key is consumed."""
    data = load_data(family)

    def draw(key: jax.Array) -> tuple[Episode, jax.Array]:
        task_key, key = jax.random.split(key)
        task = family.sample_task(task_key, family.full, data)
        return family.sample_episode(key, task, family.full, data), family.concept(task)

    found = jax.jit(jax.vmap(draw))(jax.random.split(key, count))
    return jax.tree.map(np.asarray, found)


def _fitted(table: Episode, family: Tables) -> dict[str, np.ndarray]:
    """Predictions of scikit-learn's estimators at the queries of one table, by method."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    used = ~np.isnan(table.x[table.context]).all(axis=0)
    x = np.nan_to_num(table.x[:, used])
    shown, asked = x[table.context], x[table.queries]
    y = table.y[table.context]
    forest: Any = dict(n_estimators=TREES, random_state=0)
    if family.target == "number":
        methods = {"ridge": Ridge(), "random forest": RandomForestRegressor(**forest)}
        mean = np.full(len(asked), y.mean())
        if not used.any():
            return dict.fromkeys([*methods, "mean of the examples"], mean)
        found = {name: method.fit(shown, y).predict(asked) for name, method in methods.items()}
        return found | {"mean of the examples": mean}
    methods = {
        "logistic regression": LogisticRegression(),
        "random forest": RandomForestClassifier(**forest),
    }
    shares = np.bincount(y, minlength=family.classes) / len(y)
    constant = np.broadcast_to(shares, (len(asked), family.classes))
    if not used.any() or len(np.unique(y)) == 1:
        return dict.fromkeys([*methods, "class frequencies"], constant)
    found = {}
    for name, method in methods.items():
        found[name] = np.zeros(constant.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found[name][:, np.unique(y)] = method.fit(shown, y).predict_proba(asked)
    # A forest may be sure and wrong.
    smoothed = {name: (p + 1e-3 * constant) / (1 + 1e-3) for name, p in found.items()}
    return smoothed | {"class frequencies": constant}


def _page(drawn: Episode, at: int) -> Page:
    x, y = np.asarray(drawn.x[at]), np.asarray(drawn.y[at])
    used = np.flatnonzero(~np.isnan(x).all(axis=0))
    first = np.array([*used, 0, 0])[:2]
    return Page(np.nan_to_num(x)[:, first], y, len(used))
