"""Loss and error of variants of attention, in a sweep over them (Ren & Liu 2023, section 5)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..models import ContrastiveAttentionConfig
from ..report import WIDTH, Result, in_lines, legend_of_figure, log_axis, look, show_number
from ..sweeps.grid import SEED
from ..sweeps.results import SweepResult

if TYPE_CHECKING:
    from ..sweeps import Sweep

PLAIN = "plain"
# The settings that make a variant.
VARIANT = {
    "model_regularization",
    "model_augment_values",
    "model_augment_keys",
    "model_negatives",
    "model_negative_weight",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Errors after training, one a seed, and training losses `[seeds, steps]` of one variant."""

    error: list[float]
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Variants(Result):
    """Losses and errors by variant, divided by the mean squared label.

    Attributes:
      steps: training steps of the losses.
      variants: by the label of the variant.
      path: the sweep's folder.
    """

    steps: list[int]
    variants: dict[str, Variant]
    path: Path

    file = "variants"
    again = "icl sweep --resume {path}"

    def table(self) -> Table:
        """A row a variant, averaged over seeds: some training losses, and the error at the end."""
        shown = [round(len(self.steps) * share) - 1 for share in (0.1, 0.2, 0.5)]
        result = Table(
            title="variants of attention: training loss by step, and error after training",
            caption=(
                "divided by the mean squared label; errors are over the same fresh prompts for all "
                "variants"
            ),
        )
        result.add_column("variant")
        for index in shown:
            result.add_column(f"{self.steps[index]:,}", justify="right")
        for name in ("error", "less than plain"):
            result.add_column(name, justify="right")
        plain = self.variants[PLAIN].error if PLAIN in self.variants else [np.nan]
        for label, variant in self.variants.items():
            cells = (show_number(v) for v in variant.loss.mean(axis=0)[shown])
            error = float(np.mean(variant.error))
            less = "" if label == PLAIN else f"{np.mean(plain) - error:+.3f}"
            result.add_row(label, *cells, show_number(error), less)
        return result

    def figure(self, plt: Any) -> Any:
        """Training losses, and errors after training with each seed's."""
        names = [in_lines(label, 28) for label in self.variants]
        lines = 1 + max(name.count("\n") for name in names)
        height = 1.2 + max(0.22, 0.13 * lines) * len(names)
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, height), layout="constrained")
        for index, (label, variant) in enumerate(self.variants.items()):
            line = look(index) | (dict(color="0.2") if label == PLAIN else {})
            left.plot(self.steps, variant.loss.mean(axis=0), label=label, **line)
            right.barh(index, np.mean(variant.error), color=line["color"], alpha=0.8)
            right.plot(variant.error, [index] * len(variant.error), "k|", zorder=3)
        left.set(xlabel="training step", ylabel="training loss /\nmean squared label")
        log_axis(left, "y")
        right.set(xlabel="error after training", yticks=range(len(self.variants)))
        right.set_yticklabels(names)
        right.invert_yaxis()
        figure.suptitle(f"variants of attention, {self.path.name}")
        legend_of_figure(figure)
        return figure


def variants(sweep: "Sweep") -> Variants | None:
    """Compares the variants of a finished sweep: variants.json and variants.png.

    Returns:
      None for a sweep of another model, over other settings, or of one variant.
    """
    found: dict[str, list[tuple[list[dict], float]]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        model = member.config.model
        if not isinstance(model, ContrastiveAttentionConfig):
            return None
        if not set(member.changes) <= VARIANT | {SEED}:
            return None
        if "examples" in record:
            curve = (member.run.metrics(), record["normalised_error"][-1])
            found.setdefault(variant_label(model), []).append(curve)
    if len(found) < 2:
        return None
    scale = sweep.members[0].config.task.label_kind.training_measure.scale
    steps = [line["step"] for line in next(iter(found.values()))[0][0]]
    by_label = {
        label: Variant(
            [error for _, error in members],
            np.array([[line["loss"] / scale for line in lines] for lines, _ in members]),
        )
        for label, members in found.items()
    }
    return Variants(steps, by_label, sweep.path).written()


def variant_label(model: ContrastiveAttentionConfig) -> str:
    """How the attention of a model differs from the plain one."""
    parts = []
    if model.regularization:
        parts.append(f"regularised, alpha {model.regularization:g}")
    augmented = {"values": model.augment_values, "keys": model.augment_keys}
    for kind in ("plain", "residual"):
        names = [name for name, own in augmented.items() if own == kind]
        if names:
            how = " (residual)" if kind == "residual" else ""
            parts.append(f"augmented {' and '.join(names)}{how}")
    if model.negatives:
        parts.append(f"{model.negatives} negatives, beta {model.negative_weight:g}")
    return ", ".join(parts) or PLAIN
