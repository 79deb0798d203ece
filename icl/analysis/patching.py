"""What becomes of a prompt's errors if a learner is told another concept, or its own.

Han et al. 2024 (arXiv 2412.12276, section 3.3 and figure 7): activations of a prompt of a source
concept are replaced by the mean activation of a target concept. If both are one concept the loss
falls, otherwise it rises.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..report import WIDTH, Result, in_lines, open_run, show_number
from ..tasks.draws import stream
from ..training.run import Run
from .concepts import (
    best_layer,
    check_concepts,
    decodability,
    label_token,
    last_example,
    prompts_of_concepts,
)
from .instrument import Instrument, patch

PROMPTS = 100  # of each concept
MOST_NUMBERED = 10  # concepts, of the figure, whose changes are also written as numbers


@dataclasses.dataclass(frozen=True)
class Patching(Result):
    """Changes of the errors of each concept under each concept's mean activation.

    Attributes:
      concepts: names of the K concepts.
      error: error of each concept without patches, mean over the points that a patch can reach,
        `[K]`.
      change: its change, source concept (row) by target concept (column), `[K, K]`; negative if the
        patch helps.
      whole: the changes if the whole activations are replaced, likewise.
      layer: number of layers after which activations are patched.
      error_name: what an error is.
      step: the training step of the parameters.
      prompts: number of prompts of each concept.
      path: the run's folder.
    """

    concepts: list[str]
    error: np.ndarray
    change: np.ndarray
    whole: np.ndarray
    layer: int
    error_name: str
    step: int
    prompts: int
    path: Path

    file = "patching"

    def table(self) -> Table:
        """A row a source concept, a column a target concept."""
        own, other = means_of(self.change)
        whole_own, whole_other = means_of(self.whole)
        result = Table(
            title=f"change of the error under patches ({self.path}, step {self.step})",
            caption=(
                f"error: {self.error_name}, at the points after the first, {self.prompts} prompts "
                f"a concept; patched after layer {self.layer} at all tokens that show a label: the "
                f"part of the activation that tells concepts apart; mean {own:+.3f} to the own "
                f"concept, {other:+.3f} to another; with whole activations {whole_own:+.3f} and "
                f"{whole_other:+.3f}"
            ),
            box=None,
            padding=(0, 1),
        )
        result.add_column("prompts of")
        result.add_column("error", justify="right")
        for name in self.concepts:
            head = name.replace("_", "\n").replace(" ", "\n")
            result.add_column(f"to\n{head}", justify="right", no_wrap=True)
        for name, error, row in zip(self.concepts, self.error, self.change):
            result.add_row(name, show_number(error), *(f"{change:+.3f}" for change in row))
        return result

    def figure(self, plt: Any) -> Any:
        """A heat map of the changes: blue helps, red hurts."""
        count = len(self.concepts)
        size = min(WIDTH, 2.6 + 0.65 * count)
        figure, axes = plt.subplots(figsize=(size, 0.8 * size), layout="compressed")
        limit = float(np.abs(self.change).max()) or 1.0
        image = axes.imshow(self.change, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for (row, column), change in np.ndenumerate(self.change) if count <= MOST_NUMBERED else ():
            bright = abs(change) > 0.6 * limit
            axes.text(
                column, row, f"{change:+.2f}" if abs(change) >= 0.005 else f"{change:+.3f}",
                ha="center", va="center", fontsize=7, color="white" if bright else "black",
            )  # fmt: skip
        names = range(count)
        axes.set_xticks(names, self.concepts, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(names, self.concepts)
        axes.set(xlabel=f"patched after layer {self.layer} to", ylabel="prompts of")
        axes.set_title(f"patches of {self.path.name}, step {self.step}")
        axes.grid(False)
        figure.colorbar(
            image, ax=axes, label=in_lines(f"change of {self.error_name}", 30), shrink=0.8
        )
        return figure


def means_of(change: np.ndarray) -> tuple[float, float]:
    """The mean of the diagonal, and of all other entries, of a matrix `[K, K]`."""
    own = np.eye(len(change), dtype=bool)
    return float(change[own].mean()), float(change[~own].mean())


def patching(
    run: Run | str | Path,
    *,
    prompts: int = PROMPTS,
    layer: int | None = None,
    step: int | None = None,
    seed: int = 0,
) -> Patching:
    """Patches activations to those of each concept; writes patching.json and a heat map.

    The mean activation of a concept is that at the label of the last example, where the concept is
    known best, over equally many other prompts. At each token that shows a label, the part of the
    activation that tells concepts apart is set to that of the target's mean: the projection on the
    span of the differences between the concepts' means. A patch to a prompt's own concept tells it
    early. `Patching.whole` has the changes if the whole activation is replaced, as in the paper.

    Args:
      run: the run or its folder.
      prompts: number of prompts of each concept.
      layer: number of layers after which activations are patched; None for where decodability is
        highest, the last layer left out.
      step: the step of the checkpoint; None for the newest.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or no such checkpoint.
      ValueError: fewer than one prompt, no such layer, or a run without concepts.
    """
    run, learner = open_run(run, prompts=prompts)
    check_concepts(run)
    inside = Instrument(run, step)
    family, count = learner.family, len(learner.family.concepts)
    tokens = [label_token(run.config, point) for point in range(last_example(family) + 1)]
    known, asked = (
        prompts_of_concepts(family, key, prompts)
        for key in jax.random.split(stream("patching", seed))
    )
    layers = [a[:, tokens] for a in inside.capture(known, ["residual"])["residual"]]
    layer = _best_layer(layers, count) if layer is None else layer
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer must be from 0 to {len(layers) - 1}, got {layer}")
    means = layers[layer][:, -1].reshape(count, prompts, -1).mean(axis=1)
    seen = inside.capture(asked, ["residual"])["residual"][layer][:, tokens]
    directions = concept_directions(means)

    def errors(values: np.ndarray | None) -> np.ndarray:
        """Errors of each concept, `[K]`, with activations replaced."""
        edits = [] if values is None else [patch("residual", layer, values, tokens=tokens)]
        found = inside.errors(asked, edits)[:, 1:]
        return np.nanmean(found.reshape(count, -1), axis=1)

    plain = errors(None)
    part = [errors(moved(seen, mean, directions)) - plain for mean in means]
    whole = [errors(mean) - plain for mean in means]
    return Patching(
        list(family.concepts), plain, np.stack(part, axis=1), np.stack(whole, axis=1), layer,
        learner.labels.error_name, inside.step, prompts, run.path,
    ).written()  # fmt: skip


def concept_directions(means: np.ndarray) -> np.ndarray:
    """Orthonormal directions that tell concepts apart, `[K - 1, width]`.

    They span the differences between the mean activations of concepts, `[K, width]`.
    """
    differences = np.asarray(means - means.mean(axis=0), np.float64)
    return np.linalg.svd(differences, full_matrices=False)[2][: len(means) - 1]


def moved(activations: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Activations `[..., width]` whose part along orthonormal directions is that of a mean.

    The mean is `[width]`, the directions are `[n, width]`.
    """
    return activations + (mean - activations) @ directions.T @ directions


def _best_layer(layers: list[np.ndarray], count: int) -> int:
    """The layer after which concepts are most decodable at the last token.

    After the last layer no other token reads what a patch changes, so that is left out.
    """
    labels = np.repeat(np.arange(count), len(layers[0]) // count)
    return best_layer(np.array([decodability(a[:, -1], labels).mean() for a in layers[:-1]]))
