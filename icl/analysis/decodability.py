"""How well a run's representations tell concepts apart over training, beside its errors.

Han et al. 2024 (arXiv 2412.12276, section 3.3 and appendix D): the loss of a mixture of sparse
bases drops when representations of the bases come apart.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..evaluation.comparators import comparators
from ..evaluation.curves import errors_of, predictions_of
from ..report import (
    CHANCE,
    WIDTH,
    Result,
    in_lines,
    legend_of_figure,
    look,
    open_run,
    show_number,
    spread,
)
from ..tasks import Episode
from ..tasks.draws import stream
from ..training.learner import Learner
from ..training.run import Run
from .concepts import (
    NEIGHBOURS,
    best_layer,
    check_concepts,
    decodability,
    label_token,
    last_example,
    principal_plane,
    prompts_of_concepts,
)
from .instrument import Instrument, over_checkpoints

PROMPTS = 100  # of each concept
MAPS = 4
MOST_ROWS = 10
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Map:
    """Representations of a checkpoint in the plane of their two principal components.

    Attributes:
      step: the training step of the checkpoint.
      points: `[concepts * prompts, 2]`, those of the first concept first.
    """

    step: int
    points: np.ndarray


@dataclasses.dataclass(frozen=True)
class Decodability(Result):
    """Errors and task decodability of each concept at every checkpoint.

    Attributes:
      concepts: names of the K concepts.
      steps: training steps of the checkpoints, int `[S]`.
      error: mean error of all points of a prompt, `[S, K]`.
      score: task decodability at the token of the last example's label, `[S, L, K]`; entry 0 of L
        is that of the first layer's input, entry l that after l layers.
      layer: the number of layers after which decodability is highest at the end of training.
      references: errors of estimators on these prompts: the optimal one and ridge regression, if
        the family has them.
      maps: representations after `layer` layers at some checkpoints.
      error_name: what an error is.
      example: number of examples up to that token.
      prompts: number of prompts of each concept.
      path: the run's folder.
    """

    concepts: list[str]
    steps: np.ndarray
    error: np.ndarray
    score: np.ndarray
    layer: int
    references: dict[str, float]
    maps: list[Map]
    error_name: str
    example: int
    prompts: int
    path: Path

    file = "decodability"

    @property
    def decoded(self) -> np.ndarray:
        """Task decodability after `layer` layers, `[S, K]`."""
        return self.score[:, self.layer]

    def table(self) -> Table:
        """Errors and decodability at some checkpoints: of all concepts, the best and the worst."""
        of_layers = ", ".join(f"{score:.2f}" for score in self.score[-1].mean(axis=-1))
        known = "; ".join(f"error of {n}: {show_number(e)}" for n, e in self.references.items())
        result = Table(
            title=f"errors and task decodability ({self.path})",
            caption=(
                f"error: {self.error_name}, mean over a prompt; decodability (TD): share of "
                f"{self.prompts} prompts a concept whose {NEIGHBOURS} nearest neighbours have that "
                f"concept, at the label of example {self.example}, after {self.layer} of "
                f"{self.score.shape[1] - 1} layers; chance {1 / len(self.concepts):.2f}; at the "
                f"end, before layer 1 and after each: {of_layers}{'; ' * bool(known)}{known}"
            ),
        )
        for name in ("step", "error", "lowest", "highest", "TD", "lowest", "highest"):
            result.add_column(name, justify="right")
        for row in spread(len(self.steps), MOST_ROWS):
            error, score = self.error[row], self.decoded[row]
            numbers = error.mean(), error.min(), error.max(), score.mean(), score.min(), score.max()
            result.add_row(f"{self.steps[row]:,}", *map(show_number, numbers))
        return result

    def figure(self, plt: Any) -> Any:
        """Errors above decodability, both against the training step, and maps beside them."""
        figure = plt.figure(figsize=(WIDTH, 4.2), layout="constrained")
        curves, plane = figure.subfigures(1, 2, width_ratios=(1.1, 1))
        upper, lower = curves.subplots(2, 1, sharex=True)
        count = len(self.concepts)
        colours = plt.get_cmap("turbo")(np.linspace(0, 1, count))
        looks = [look(n) | (dict(color=colours[n]) if count > 7 else {}) for n in range(count)]
        for axes, numbers in ((upper, self.error), (lower, self.decoded)):
            for name, line, values in zip(self.concepts, looks, numbers.T):
                axes.plot(self.steps, values, label=name, **line | dict(linewidth=1))
            axes.plot(self.steps, numbers.mean(axis=1), color="0.2", linewidth=2, label=ALL)
        for index, (name, error) in enumerate(self.references.items()):
            upper.axhline(error, color="0.4", linestyle=(":", "--")[index % 2], label=name)
        lower.axhline(1 / count, label="chance", **CHANCE)
        upper.set_ylabel(in_lines(self.error_name, 24))
        upper.set(ylim=(0, None), title="errors, and decodability of tasks")
        lower.set(
            ylabel=f"task decodability\nafter {self.layer} layers", ylim=(-0.03, 1.03),
            xlabel="training step",
        )  # fmt: skip
        panels = plane.subplots(2, 2, squeeze=False).ravel()
        labels = np.repeat(np.arange(count), self.prompts)
        for axes, shown in zip(panels, self.maps):
            for number, line in enumerate(looks):
                own = shown.points[labels == number]
                axes.scatter(*own.T, s=5, color=line["color"], linewidths=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"step {shown.step:,}", fontsize=8)
        for axes in panels[len(self.maps) :]:
            axes.set_visible(False)
        plane.suptitle(f"representations after {self.layer} layers,\ntwo components")
        legend_of_figure(figure)
        return figure


def decodability_of_run(
    run: Run | str | Path, *, prompts: int = PROMPTS, layer: int | None = None, seed: int = 0
) -> Decodability:
    """Task decodability and errors at every checkpoint; writes decodability.json and a figure.

    Representations are those of the residual stream at the token that shows the label of the last
    example before the last query. The map has the two principal components; the paper's is UMAP.

    Args:
      run: the run or its folder.
      prompts: number of prompts of each concept.
      layer: number of layers after which figure and table show decodability; None for where it is
        highest at the newest checkpoint.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, no such layer, or a run without concepts.
    """
    run, learner = open_run(run, prompts=prompts)
    check_concepts(run)
    family = learner.family
    episodes = prompts_of_concepts(family, stream("decodability", seed), prompts)
    names = list(family.concepts)
    labels = np.repeat(np.arange(len(names)), prompts)
    example = last_example(family)
    token = label_token(run.config, example)

    def score(inside: Instrument) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = np.stack([a[:, token] for a in inside.capture(episodes, ["residual"])["residual"]])
        error = np.nanmean(inside.errors(episodes), axis=1).reshape(len(names), prompts)
        return error.mean(axis=1), np.stack([decodability(one, labels) for one in seen]), seen

    by_step = over_checkpoints(run, score)
    errors, scores, seen = (np.stack(part) for part in zip(*by_step.values()))
    steps = np.array(list(by_step))
    layer = best_layer(scores[-1].mean(axis=-1)) if layer is None else layer
    if not 0 <= layer < scores.shape[1]:
        raise ValueError(f"layer must be from 0 to {scores.shape[1] - 1}, got {layer}")
    maps = [
        Map(int(steps[at]), principal_plane(seen[at, layer]))
        for at in _stages(scores[:, layer].mean(axis=-1))
    ]
    return Decodability(
        names, steps, errors, scores, layer, _references(learner, episodes), maps,
        learner.labels.error_name, example + 1, prompts, run.path,
    ).written()  # fmt: skip


def _stages(scores: np.ndarray) -> list[int]:
    """At most `MAPS` checkpoints between which decodability rises by equal parts, ascending."""
    levels = np.linspace(scores.min(), scores.max(), MAPS)[1:-1]
    passed = [int(np.argmax(scores >= level)) for level in levels]
    return sorted({0, *passed, len(scores) - 1})


def _references(learner: Learner, episodes: Episode) -> dict[str, float]:
    """Mean errors of the optimal comparator and of ridge regression, if the family has them."""
    several, optimal = comparators(learner.family.evaluation)
    found = {}
    for one in several:
        if len(one.names) == 1 and one.names[0] in (optimal, "ridge"):
            [predictions], _ = predictions_of(one, episodes)
            found[one.names[0]] = float(np.nanmean(errors_of(learner, predictions, episodes)))
    return found
