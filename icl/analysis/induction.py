"""Induction heads: what each head attends to and copies, over training, and what it is worth.

Olsson et al. 2022, "In-context learning and induction heads", and the pattern-preserving ablation
of its appendix.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from ..models.transformer import TransformerConfig
from ..report import WIDTH, Result, legend_of_panel, look, open_run, show_number
from ..report.lines import COLOURS
from ..tasks import Episode, SymbolSequences, TaskFamily
from ..tasks.draws import stream
from ..training.config import Config
from ..training.run import Run
from .head_scores import (
    REPEATS,
    copying,
    in_context_score,
    prefix_matching,
    previous_token,
    repeated_block,
    windows,
)
from .instrument import Instrument, over_checkpoints, zero

PROMPTS = 256
PROBES = 32  # prompts of repeated blocks
CHUNK = 64  # prompts whose patterns are kept at once
MOST_NAMED = 8  # heads with a name in the figure
LEAST_VOCABULARY = 8  # of a repeated block that is not mostly one symbol


class Scores(NamedTuple):
    """Scores of one checkpoint; heads are `[L, N]`."""

    loss: np.ndarray  # cross-entropy by position, in nats, [points]
    prefix_matching: np.ndarray
    previous_token: np.ndarray
    copying: np.ndarray


@dataclasses.dataclass(frozen=True)
class Induction(Result):
    """Scores of all heads at every checkpoint, and ablations of each at the last.

    Attributes:
      steps: training steps, int `[S]`.
      loss: mean cross-entropy by position, in nats, `[S, points]`.
      in_context: loss late in a prompt minus loss early, in nats, `[S]`.
      prefix_matching: attention to symbols after earlier occurrences of the present symbol, on
        repeated random symbols, `[S, L, N]`.
      previous_token: attention to the token before, on these symbols too, `[S, L, N]`.
      copying: the copying score, from -1 to 1 (`icl.analysis.head_scores.copying`), `[S, L, N]`.
      ablated: rise of the loss late in a prompt if a head adds nothing, `[L, N]`.
      ablated_preserving: that rise if the attention patterns are kept as without the ablation,
        `[L, N]`.
      prompts: number of prompts of the losses.
      path: the run's folder.
    """

    steps: np.ndarray
    loss: np.ndarray
    in_context: np.ndarray
    prefix_matching: np.ndarray
    previous_token: np.ndarray
    copying: np.ndarray
    ablated: np.ndarray
    ablated_preserving: np.ndarray
    prompts: int
    path: Path

    file = "induction"

    def table(self) -> Table:
        """A row a head, at the last checkpoint."""
        result = Table(
            title=f"induction heads ({self.path}, step {self.steps[-1]})",
            caption=(
                f"loss {show_number(self.loss[-1].mean())} nats, in-context score "
                f"{self.in_context[-1]:.3f} nats (loss late minus early, {self.prompts} "
                "prompts); prefix, previous: share of attention to symbols after earlier "
                "occurrences, to the token before; copying: -1 to 1; ablated: rise of the late "
                "loss, all or with the patterns kept"
            ),
        )
        for name in ("layer", "head", "prefix", "previous", "copying", "ablated", "pattern kept"):
            result.add_column(name, justify="right")
        columns = (
            self.prefix_matching[-1], self.previous_token[-1], self.copying[-1],
            self.ablated, self.ablated_preserving,
        )  # fmt: skip
        for layer, head in np.ndindex(self.ablated.shape):
            cells = (f"{column[layer, head]:.3f}" for column in columns)
            result.add_row(str(layer + 1), str(head + 1), *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """Losses, scores of the heads, and the loss by position, over training."""
        figure, panels = plt.subplots(
            1, 3, figsize=(WIDTH, 2.5), layout="constrained", width_ratios=(1, 1, 1.15)
        )
        self._draw_losses(panels[0])
        self._draw_heads(panels[1])
        shown = panels[2].pcolormesh(
            np.arange(self.loss.shape[1]), self.steps, self.loss, shading="nearest", cmap="magma"
        )
        figure.colorbar(shown, ax=panels[2], label="cross-entropy, nats")
        panels[2].set(xlabel="position in the prompt", ylabel="training step", title="loss")
        panels[2].grid(False)
        figure.suptitle(f"induction heads of {self.path.name}, step {self.steps[-1]}")
        legend_of_panel(*panels[: 2 if self.ablated.size <= MOST_NAMED else 1])
        return figure

    def _draw_losses(self, axes: Any) -> None:
        early, late = windows(self.loss.shape[1])
        losses = {
            "early in the prompt": self.loss[:, early].mean(axis=1),
            "late in the prompt": self.loss[:, late].mean(axis=1),
            "late - early": self.in_context,
        }
        for index, (name, values) in enumerate(losses.items()):
            axes.plot(self.steps, values, label=name, **look(index))
        axes.set(xlabel="training step", ylabel="cross-entropy, nats", title="losses")

    def _draw_heads(self, axes: Any) -> None:
        styles = (("prefix_matching", "-"), ("previous_token", ":"))
        for layer, head in np.ndindex(self.ablated.shape):
            name = f"layer {layer + 1}, head {head + 1}"
            index = (layer * self.ablated.shape[1] + head) % MOST_NAMED
            colour = (*COLOURS, "0.6")[index]
            for (field, style), label in zip(styles, (name, None)):
                values = getattr(self, field)[:, layer, head]
                axes.plot(self.steps, values, style, color=colour, label=label)
        axes.set(xlabel="training step", ylim=(-0.03, 1.03), ylabel="share of attention")
        axes.set_title("solid: prefix matching\ndotted: previous token", fontsize=8)


def has_symbols(config: Config) -> bool:
    """Whether runs with these settings are transformers, with softmax attention, of sequences."""
    task, model = config.task, config.model
    if not isinstance(task, SymbolSequences) or type(model) is not TransformerConfig:
        return False
    # Maps from symbols to logits need a linear read-out, and blocks more than one symbol.
    linear = model.mixer == "attention" and not model.readout_layers
    return linear and task.vocabulary >= LEAST_VOCABULARY and task.points >= 2 * REPEATS


def induction(run: Run | str | Path, *, prompts: int = PROMPTS, seed: int = 0) -> Induction:
    """Scores the heads of a run at every checkpoint; writes induction.json and induction.png.

    Args:
      run: the run or its folder, a transformer of sequences of symbols.
      prompts: number of prompts of the losses.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt.
    """
    run, _ = open_run(run, prompts=prompts)
    inside = Instrument(run)
    own = inside.prompts(prompts, seed)
    probe = probe_of(inside.learner.family, seed)
    found = over_checkpoints(run, lambda at: scores_of(at, own, *probe))
    stacked = Scores(*map(np.stack, zip(*found.values())))
    return Induction(
        np.array(list(found)), stacked.loss, in_context_score(stacked.loss), *stacked[1:],
        *_ablations(inside, own), prompts, run.path,
    ).written()  # fmt: skip


def probe_of(family: TaskFamily, seed: int) -> tuple[Episode, int]:
    """The prompts on which heads are scored, and their period; see `repeated_block`."""
    return repeated_block(family, PROBES, stream("induction", seed))


def scores_of(inside: Instrument, own: Episode, probe: Episode, period: int) -> Scores:
    """The scores of a checkpoint, from prompts of its task and prompts of `repeated_block`."""
    patterns = inside.capture(probe, ["pattern"])["pattern"]
    of_layers = lambda score: np.stack([score(pattern) for pattern in patterns])
    return Scores(
        inside.errors(own).mean(axis=0),
        of_layers(lambda pattern: prefix_matching(pattern, period)),
        of_layers(previous_token),
        np.stack(copying(inside)),
    )


def _ablations(inside: Instrument, prompts: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Rises of the late loss if a head adds nothing: free, and with the patterns kept."""
    count = len(prompts.y)
    # In chunks, since all patterns of a chunk are kept.
    firsts = range(0, count, CHUNK)
    parts = [jax.tree.map(lambda a, at=at: a[at : at + CHUNK], prompts) for at in firsts]
    each = np.array([_ablations_of(inside, part) for part in parts])
    free, kept = np.average(each, axis=0, weights=[len(part.y) for part in parts])
    return free, kept


def _ablations_of(inside: Instrument, prompts: Episode) -> tuple[np.ndarray, np.ndarray]:
    _, late = windows(inside.learner.family.points)
    loss = lambda *edits: float(inside.errors(prompts, edits)[:, late].mean())
    whole, frozen = loss(), inside.frozen_patterns(prompts)
    shape = len(frozen), frozen[0].values.shape[1]
    free, kept = np.zeros(shape), np.zeros(shape)
    for layer, head in np.ndindex(shape):
        ablation = zero("heads", layer, head)
        free[layer, head] = loss(ablation) - whole
        kept[layer, head] = loss(*frozen, ablation) - whole
    return free, kept
