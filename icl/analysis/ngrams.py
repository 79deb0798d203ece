"""How near a learner of Markov chains is to uniform, unigram and bigram predictions.

Edelman et al. 2024 (arXiv 2402.11004, figures 1 and 2): in training, learners pass from uniform
predictions through unigram to bigram statistics of the context.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..evaluation.baselines import symbols
from ..report import (
    OWN,
    WIDTH,
    Result,
    comparator_look,
    legend_of_figure,
    log_axis,
    open_run,
    show_number,
)
from ..tasks import MarkovChains
from ..tasks.labels import LEAST_PROBABILITY
from ..training.config import Config
from ..training.run import Run
from .instrument import Instrument, over_checkpoints

PROMPTS = 512
KINDS = ("uniform", "unigrams", "bigrams")


@dataclasses.dataclass(frozen=True)
class NGrams(Result):
    """Divergences of the learner's predictions from those of simple statistics, over training.

    Attributes:
      steps: training steps, int `[S]`.
      divergence: by kind, the mean over positions of the Kullback-Leibler divergence
        KL(kind || learner), in nats, `[S]`.
      last: by kind, that divergence at the last position, in nats, `[S]`.
      loss: cross-entropy of the learner, in nats, `[S]`.
      losses: cross-entropy of each kind, in nats.
      prompts: number of prompts.
      path: the run's folder.
    """

    steps: np.ndarray
    divergence: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    loss: np.ndarray
    losses: dict[str, float]
    prompts: int
    path: Path

    file = "ngrams"

    def table(self) -> Table:
        """A row a kind of statistics."""
        result = Table(
            title=f"what the learner is near to ({self.path}, step {self.steps[-1]})",
            caption=(
                "KL: divergence of the learner's predictions, nats, mean over all positions; "
                f"the learner's cross-entropy is {show_number(self.loss[-1])}; "
                f"{self.prompts} prompts"
            ),
        )
        result.add_column("statistics")
        for name in ("KL at the end", "least KL", "at step", "at the last position", "its loss"):
            result.add_column(name, justify="right")
        for kind, divergence in self.divergence.items():
            best = int(divergence.argmin())
            numbers = divergence[-1], divergence[best]
            ends = self.last[kind][-1], self.losses[kind]
            cells = (*map(show_number, numbers), str(self.steps[best]), *map(show_number, ends))
            result.add_row(kind, *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """The divergences, and the losses, over training."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained")
        right.plot(self.steps, self.loss, label="learner", **OWN)
        for index, (kind, divergence) in enumerate(self.divergence.items()):
            line = comparator_look(index)
            left.plot(self.steps, divergence, label=kind, **line)
            right.axhline(self.losses[kind], **line)
        left.set(xlabel="training step", ylabel="KL(statistics || learner), nats")
        left.set_title("divergence of the learner")
        log_axis(left, "y")
        right.set(xlabel="training step", ylabel="cross-entropy, nats", title="loss")
        figure.suptitle(f"statistics that {self.path.name} is near to, step {self.steps[-1]}")
        legend_of_figure(figure)
        return figure


def is_markov(config: Config) -> bool:
    """Whether runs with these settings learn Markov chains."""
    return isinstance(config.task, MarkovChains)


def ngrams(run: Run | str | Path, *, prompts: int = PROMPTS, seed: int = 0) -> NGrams:
    """Compares every checkpoint with posterior means; writes ngrams.json and ngrams.png.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another task than Markov chains.
    """
    run, learner = open_run(run, prompts=prompts)
    family = learner.family
    if not isinstance(family, MarkovChains):
        raise ValueError(f"{run.path} does not learn Markov chains: its task is {family}")
    drawn = Instrument(run).prompts(prompts, seed)
    y, number, prior = np.asarray(drawn.y), family.vocabulary, family.concentration
    of_kind = {
        "uniform": np.full((*y.shape, number), 1 / number),
        "unigrams": np.asarray(symbols.unigrams(drawn.x, number, concentration=prior), np.float64),
        "bigrams": np.asarray(symbols.bigrams(drawn.x, number, concentration=prior), np.float64),
    }

    loss = lambda predicted: float(family.label_kind.error(predicted, y).mean())

    def score(inside: Instrument) -> tuple[float, dict[str, np.ndarray]]:
        own = np.asarray(inside.predict(drawn), np.float64)
        return loss(own), {kind: _divergence(p, own) for kind, p in of_kind.items()}

    found = over_checkpoints(run, score)
    by_position = {kind: np.stack([d[kind] for _, d in found.values()]) for kind in of_kind}
    return NGrams(
        np.array(list(found)),
        {kind: values.mean(axis=1) for kind, values in by_position.items()},
        {kind: values[:, -1] for kind, values in by_position.items()},
        np.array([loss for loss, _ in found.values()]),
        {kind: loss(p) for kind, p in of_kind.items()},
        prompts,
        run.path,
    ).written()


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) by position, mean over prompts, `[points]`."""
    return (p * np.log(p / np.maximum(q, LEAST_PROBABILITY))).sum(axis=-1).mean(axis=0)
