"""The circuits of in-context meta-learning, over training: Minegishi et al. 2025.

"Beyond induction heads: in-context meta learning induces multi-phase circuit emergence" (arXiv
2505.16694, section 4). Accuracy rises in phases. First the learner reads the query alone, then the
labels of the context too, at last its items with their labels. Each phase has attention patterns of
its own, which three numbers tell.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..evaluation.baselines.known_tasks import SEEN, predict_from
from ..evaluation.curves import draw_prompts, errors_of
from ..models import TransformerConfig
from ..report import OWN, WIDTH, Result, legend_of_figure, look, open_run, spread
from ..tasks import RelabelledClasses
from ..tasks.draws import stream
from ..training.config import Config
from ..training.run import Run
from .instrument import Instrument, over_checkpoints

METRICS = ("bigram", "label attention", "chunk example")
NEAR = 0.05  # a level counts as reached from this much below it
ROWS = 10
LAYOUTS = ("interleaved", "tagged", "separate")


@dataclasses.dataclass(frozen=True)
class Circuits(Result):
    """Accuracy and attention metrics at every checkpoint.

    Attributes:
      steps: training steps of the checkpoints, int `[S]`.
      accuracy: share of queries whose most probable label is right, `[S]`.
      shuffled: accuracy if the context shows its labels in a random order, `[S]`.
      metrics: by the names in `METRICS`, `[S, layers, heads]`; see `pattern_metrics`.
      levels: accuracy of learners that know the labels of all classes under all tasks, by the part
        of the context that they read (`icl.evaluation.baselines.known_tasks`), on the same prompts.
      prompts: number of prompts.
      path: the run's folder.
    """

    steps: np.ndarray
    accuracy: np.ndarray
    shuffled: np.ndarray
    metrics: dict[str, np.ndarray]
    levels: dict[str, float]
    prompts: int
    path: Path

    file = "circuits"

    def reached(self) -> dict[str, int | None]:
        """The first checkpoint at which accuracy is within `NEAR` of each level; None if none."""
        found = {}
        for name, level in self.levels.items():
            at = np.flatnonzero(self.accuracy >= level - NEAR)
            found[name] = int(self.steps[at[0]]) if len(at) else None
        return found

    def table(self) -> Table:
        """A row for each of at most ten checkpoints; of several heads the largest metric."""
        levels = "; ".join(
            f"{name} {self.levels[name]:.3f} ({'not reached' if at is None else f'step {at:,}'})"
            for name, at in self.reached().items()
        )
        result = Table(
            title=f"circuits over training ({self.path})",
            caption=(
                f"mean over {self.prompts} prompts; attention metrics: the largest of a layer's "
                f"heads. Accuracy that can be had from {levels}"
            ),
        )
        layers = next(iter(self.metrics.values())).shape[1]
        for name in ("step", "accuracy", "shuffled\nlabels"):
            result.add_column(name, justify="right", no_wrap=True)
        for layer in range(layers):
            for name in METRICS:
                title = "\n".join([f"layer {layer + 1}", *name.split()])
                result.add_column(title, justify="right", no_wrap=True)
        for row in spread(len(self.steps), ROWS):
            numbers = [self.accuracy[row], self.shuffled[row]]
            for layer in range(layers):
                numbers += [self.metrics[name][row, layer].max() for name in METRICS]
            result.add_row(f"{self.steps[row]:,}", *(f"{number:.3f}" for number in numbers))
        return result

    def figure(self, plt: Any) -> Any:
        """Accuracy with the levels; below, the metrics of each layer, a line for each head."""
        layers = next(iter(self.metrics.values())).shape[1]
        figure, panels = plt.subplots(
            1 + layers, 1, figsize=(WIDTH, 2.2 + 1.4 * layers), sharex=True, layout="constrained",
            height_ratios=[1.5] + [1.0] * layers,
        )  # fmt: skip
        top, *below = panels
        top.plot(self.steps, self.accuracy, label="accuracy", **OWN)
        top.plot(self.steps, self.shuffled, color="0.5", label="accuracy, labels shuffled")
        for name, level in self.levels.items():
            top.axhline(level, color="0.4", linestyle=":", linewidth=1)
            top.annotate(
                f"from\n{name.removeprefix('the ')}", (1.01, level), va="center", fontsize=8,
                xycoords=("axes fraction", "data"), color="0.3",
            )  # fmt: skip
        top.set(ylabel="accuracy", ylim=(0, 1.04), title=f"circuits of {self.path.name}")
        for layer, axes in enumerate(below):
            for index, name in enumerate(METRICS):
                lines = axes.plot(self.steps, self.metrics[name][:, layer], **look(index + 1))
                lines[0].set_label(f"attention: {name}")
            axes.set(ylabel=f"attention,\nlayer {layer + 1}", ylim=(0, 1.04))
        below[-1].set_xlabel("training step")
        legend_of_figure(figure)
        return figure


def has_circuits(config: Config) -> bool:
    """Whether runs with these settings have softmax attention to separate items and labels."""
    model = config.model
    softmax = isinstance(model, TransformerConfig) and model.mixer == "attention"
    return isinstance(config.task, RelabelledClasses) and softmax and config.layout in LAYOUTS


def pattern_metrics(pattern: np.ndarray, query: int) -> np.ndarray:
    """The metrics of Minegishi et al. of attention patterns, in the order of `METRICS`.

    Bigram: the attention of the query's token to itself. Label attention: that of the query's token
    to all labels together. Chunk example: that of a label's token to its item, the token before it;
    mean over the examples.

    Args:
      pattern: attention weights `[..., T, T]` (query, key) of tokens x_1, y_1, x_2, y_2, ...
      query: the token of the query, even.

    Returns:
      `[3, ...]`.
    """
    items, labels = np.arange(0, query, 2), np.arange(1, query, 2)
    return np.stack([
        pattern[..., query, query],
        pattern[..., query, labels].sum(axis=-1),
        pattern[..., labels, items].mean(axis=-1),
    ])  # fmt: skip


def circuits(run: Run | str | Path, *, prompts: int = 1000, seed: int = 0) -> Circuits:
    """Accuracy and attention metrics at every checkpoint; writes `circuits.json` and a figure.

    Args:
      run: a run of relabelled classes by a transformer with softmax attention, or its folder.
      prompts: number of prompts.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another task, model or layout.
    """
    run, learner = open_run(run, prompts=prompts)
    family = learner.family
    if not has_circuits(run.config) or not isinstance(family, RelabelledClasses):
        raise ValueError(
            f"{run.path} is no run of relabelled classes by a transformer with softmax attention, "
            f"in a layout with separate tokens for items and labels: {', '.join(LAYOUTS)}"
        )
    draw = lambda family: draw_prompts(family, stream("circuits", seed), prompts)
    own, shuffled = draw(family), draw(dataclasses.replace(family, shuffled_labels=True))
    accuracy = lambda errors: 1 - float(errors[:, -1].mean())

    def score(inside: Instrument) -> tuple[float, float, np.ndarray]:
        patterns = inside.capture(own, ["pattern"])["pattern"]
        query = 2 * (family.points - 1)
        mean = np.stack([pattern.mean(axis=0) for pattern in patterns])
        first, second = (accuracy(inside.errors(episodes)) for episodes in (own, shuffled))
        return first, second, pattern_metrics(mean, query)

    scores = over_checkpoints(run, score)
    first, second, metrics = (np.array(values) for values in zip(*scores.values()))
    levels = {
        seen: accuracy(errors_of(learner, np.asarray(predict_from(seen, family, own)), own))
        for seen in SEEN
    }
    return Circuits(
        np.array(list(scores)), first, second, dict(zip(METRICS, np.moveaxis(metrics, 1, 0))),
        levels, prompts, run.path,
    ).written()  # fmt: skip
