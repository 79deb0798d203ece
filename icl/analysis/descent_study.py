"""What gradient descent in context reaches, and attention that equals it by construction.

Von Oswald et al. 2023 (arXiv 2212.07677), proposition 1, figure 3 and appendix A.10.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..experiments.oswald import DIM, EXAMPLES, ONE_LAYER, REGRESSION
from ..models import SelfAttentionConfig
from ..report import WIDTH, Result, in_lines, legend_of_panel, log_axis, show_number
from ..training.learner import Learner
from .descent import QUERY_BATCHES, QUERY_PROMPTS, construction, mean_query_error, tuned_descent

# Half the squared error of other implementations, x in +-1/2, d = N = 10.
REFERENCE = {
    "zero": 0.4167,
    "GD, 1 step": 0.2062,
    "GD, 2 steps": 0.156,
    "GD++, 2 steps": 0.1105,
    "GD, 10 steps": 0.084,
    "GD++, 10 steps": 0.047,
    "GD, 5 steps, own rates": 0.109,
    "GD++, 5 steps, own rates": 0.063,
}
HALF = REGRESSION.label_kind.scale / 2  # half the squared error that corresponds to error 1
GAMMAS = {10: 0.179, 25: 0.099, 50: 0.056, 100: 0.029}  # figure 3 and appendix A.10 of the paper
KINDS = (
    (1, False, True),
    *((steps, plus_plus, True) for steps in (2, 10) for plus_plus in (False, True)),
    (5, False, False),
    (5, True, False),
)


@dataclasses.dataclass(frozen=True)
class DescentStudy(Result):
    """Errors and rates of gradient descent in context.

    Attributes:
      error_name: what an error is.
      rows: by the name of the descent: its error and rates, and the largest difference from the
        predictions of constructed attention.
      gammas: tuned gamma of two steps of GD++ by number of examples.
      path: the folder.
    """

    error_name: str
    rows: dict[str, dict[str, Any]]
    gammas: dict[int, float]
    path: Path

    file = "descent"
    again = "icl study oswald/descent --folder {path}"
    saved_as = {"rows": "descent", "gammas": "gamma_by_examples"}

    def table(self) -> Table:
        """A row for each descent, then one for each number of examples."""
        prompts = QUERY_BATCHES * QUERY_PROMPTS
        table = Table(
            title="gradient descent in context, d = N = 10, x in ±1/2",
            caption=(
                f"error: {self.error_name}, at the query over {prompts} prompts; half the "
                f"squared error, as in the paper, is {HALF:.4f} times that"
            ),
        )
        table.add_column("")
        for column in ("error", "reference", "rate", "gamma", "construction differs by"):
            table.add_column(column, justify="right")
        shown = lambda rates: " ".join(f"{rate:.3g}" for rate in rates)
        for name, row in self.rows.items():
            table.add_row(
                name, f"{row['error']:.4f}", show_number(REFERENCE.get(name, np.nan) / HALF),
                shown(row.get("learning_rate", [])), shown(row.get("gamma", [])),
                f"{row['construction differs by']:.0e}" if "construction differs by" in row else "",
            )  # fmt: skip
        table.add_section()
        for count, gamma in self.gammas.items():
            table.add_row(
                f"GD++, 2 steps, N = {count}",
                "",
                show_number(GAMMAS.get(count, np.nan)),
                "",
                f"{gamma:.3f}",
            )
        return table

    def figure(self, plt: Any) -> Any:
        """Left errors by kind of descent, right gamma by number of examples."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.7), layout="constrained")
        names = list(self.rows)
        left.barh(names, [self.rows[name]["error"] for name in names], height=0.6, label="ours")
        left.plot(
            [REFERENCE.get(name, np.nan) / HALF for name in names], names, "k|", ms=12,
            label="reference",
        )  # fmt: skip
        left.invert_yaxis()
        left.set(xlabel=in_lines(self.error_name, 24), title="error by steps of descent")
        right.plot(list(self.gammas), list(self.gammas.values()), "o-", label="ours")
        right.plot(list(GAMMAS), list(GAMMAS.values()), "kx", label="paper", zorder=3)
        right.set(xlabel="examples", ylabel="gamma", title="two steps of GD++")
        log_axis(right, "x")
        legend_of_panel(left, right)
        return figure


def descent_study(
    folder: Path,
    kinds: Sequence[tuple[int, bool, bool]] = KINDS,
    examples: Sequence[int] = tuple(GAMMAS),
) -> DescentStudy:
    """Errors of gradient descent in context, and its difference from constructed attention layers.

    Proposition 1 and appendix A.10: for some numbers of steps, the error with the best rates and
    the largest difference between predictions of descent and of constructed attention layers; and
    gamma of two steps of GD++ by the number of examples. Writes descent.json and descent.png.

    Args:
      folder: an existing folder for the files.
      kinds: steps, whether of GD++, and whether all steps share their rates.
      examples: numbers of examples at which gamma is tuned.
    """
    rows: dict[str, dict[str, Any]] = {"zero": {"error": 1.0}}
    for steps, plus_plus, shared in kinds:
        tuned = tuned_descent(ONE_LAYER, steps, plus_plus=plus_plus, shared=shared)
        name = tuned.name + ("" if shared else ", own rates")
        rows[name] = {
            "error": mean_query_error(tuned.learner, tuned.params),
            "construction differs by": _difference(tuned, steps, shared),
            **tuned.rates,
        }
    gammas = {}
    for count in examples:
        config = ONE_LAYER.replace(task_points=count + 1)
        gammas[count] = tuned_descent(config, 2, plus_plus=True).rates["gamma"][0]
    return DescentStudy(REGRESSION.label_kind.error_name, rows, gammas, folder).written()


def _difference(tuned: Any, steps: int, shared: bool) -> float:
    """The largest difference between predictions of descent and of constructed attention."""
    model = SelfAttentionConfig(layers=steps, shared=shared)
    learner = Learner(dataclasses.replace(tuned.learner.config, model=model))
    params = construction(model, DIM, EXAMPLES, tuned.learning_rates, tuned.gammas)
    episodes = draw_prompts(learner.family, jax.random.key(2), QUERY_PROMPTS)
    theirs = jax.jit(tuned.learner.predict)(tuned.params, episodes)
    ours = jax.jit(learner.predict)(params, episodes)
    return float(jnp.abs(ours - theirs)[:, -1].max())
