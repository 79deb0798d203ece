"""Error by number of layers of preconditioned attention, beside as many steps of descent.

A view of a sweep over layers (Ahn, Cheng, Daneshmand & Sra 2023, arXiv 2306.00297, section 6).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.chunks import in_chunks
from ..evaluation.curves import draw_prompts
from ..report import (
    CHANCE,
    MARK,
    OWN,
    WIDTH,
    Result,
    at_least_one,
    comparator_look,
    draw_line,
    in_lines,
    legend_of_panel,
    look,
)
from ..sweeps.grid import SEED
from ..sweeps.results import SweepResult
from ..tasks import Episode, WhitenedRegression
from ..tasks.draws import stream
from ..training.learner import Learner, Params
from .preconditioning import (
    best_rates,
    descent_losses,
    distance_to_identity,
    has_preconditioners,
    in_eigenbasis,
)

if TYPE_CHECKING:
    from ..sweeps import Sweep

LAYERS = "model_layers"
PROMPTS = 20_000
LEARNER, DESCENT, PRECONDITIONED = "learner", "gradient descent", "preconditioned descent"
LOOKS: dict[str, dict[str, Any]] = {
    LEARNER: OWN | MARK,
    PRECONDITIONED: comparator_look(0, points=1),
    DESCENT: comparator_look(1, points=1),
}


@dataclasses.dataclass(frozen=True)
class Layers(Result):
    """Errors and distances to the identity by number of layers.

    Attributes:
      prompts: number of prompts that were averaged.
      layers: numbers of layers, ascending.
      error_name: what an error is.
      error: by name: of the learner a list of each number of layers' seeds, of both descents a
        number for as many steps.
      zero_error: error of predicting 0.
      rate: rates of both descents, by number of steps.
      distance: of "Q" and of "P", by number of layers and seed, the distance of each layer.
      path: the sweep's folder.
    """

    prompts: int
    layers: list[int]
    error_name: str
    error: dict[str, list[Any]]
    zero_error: float
    rate: dict[str, list[float]]
    distance: dict[str, list[Any]]
    path: Path

    file = "layers"
    again = "icl sweep --resume {path}"

    def table(self) -> Table:
        """A row a number of layers, averaged over seeds."""
        result = Table(
            title=f"log10 of the error by layers or steps ({self.path})",
            caption=(
                f"error: {self.error_name}, {self.prompts} fresh prompts, mean over seeds; "
                "Q and P: distance to a multiple of the identity, mean over layers"
            ),
        )
        result.add_column("layers", justify="right")
        for name in (*LOOKS, "zero", "Q", "P"):
            result.add_column(name, justify="right")
        for index, count in enumerate(self.layers):
            cells = [f"{np.log10(self.error[name][index]).mean():.2f}" for name in LOOKS]
            cells.append(f"{np.log10(self.zero_error):.2f}")
            found = (np.array(self.distance[name][index]) for name in ("Q", "P"))
            cells.extend(f"{values.mean():.3f}" if values.size else "–" for values in found)
            result.add_row(str(count), *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """Left the errors, right the distances to the identity, by number of layers."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained")
        for name, line in LOOKS.items():
            logs = [np.log10(np.atleast_1d(values)) for values in self.error[name]]
            ends = ([end(values) for values in logs] for end in (np.mean, np.min, np.max))
            draw_line(left, self.layers, *ends, label=name, **line)
        left.axhline(np.log10(self.zero_error), label="zero", **CHANCE)
        left.set(xticks=self.layers, xlabel="layers, or steps", title="error")
        left.set_ylabel(in_lines(f"log10 of {self.error_name}", 30))
        for index, name in enumerate(("Q", "P")):
            line = look(index, points=len(self.layers))
            seen = [(n, np.mean(d)) for n, d in zip(self.layers, self.distance[name]) if np.size(d)]
            every = [
                (n, value)
                for n, d in zip(self.layers, self.distance[name])
                for value in np.ravel(d)
            ]
            if seen:
                right.plot(*zip(*seen), label=f"{name}, mean", **line | dict(marker=""))
                right.scatter(
                    *zip(*every), marker=line.get("marker", "o"), s=18, color=line["color"],
                    label=f"{name}, a layer",
                )  # fmt: skip
        right.set(xticks=self.layers, ylim=(-0.02, None), xlabel="layers")
        right.set_ylabel("distance to the identity")
        right.set_title("matrices of each layer")
        figure.suptitle(f"error by layers, {self.path.name}")
        legend_of_panel(left, right)
        return figure


def layers(sweep: "Sweep", *, prompts: int = PROMPTS) -> Layers | None:
    """Error and distance to the identity by number of layers: layers.json and layers.png.

    Held against as many steps of descent from 0, plain and with the inverse covariance of the
    inputs as preconditioner, at the best constant rate of each number of steps.

    Returns:
      None for a sweep over other settings than seeds and layers of preconditioned attention.

    Raises:
      ValueError: fewer than two prompts.
    """
    at_least_one(prompts=prompts // 2)
    config = sweep.config
    if (
        LAYERS not in sweep.over
        or set(sweep.over) - {LAYERS, SEED}
        or not has_preconditioners(config)
    ):
        return None
    assert isinstance(config.task, WhitenedRegression)
    episodes = draw_prompts(config.task, stream("layers"), prompts)
    records = SweepResult.load(sweep).records
    trained = {record["member"] for record in records if "examples" in record}
    errors: dict[int, list[float]] = {}
    distances: dict[str, dict[int, list[list[float]]]] = {"Q": {}, "P": {}}
    for member in sweep.members:
        if member.path.name in trained:
            params = member.run.variables()[1].params
            count = member.config.model.layers
            errors.setdefault(count, []).append(_error(Learner(member.config), params, episodes))
            for found, matrices in zip(distances.values(), in_eigenbasis(config.task, params)):
                found.setdefault(count, []).append(distance_to_identity(matrices).tolist())
    counts = sorted(errors)
    if not counts:
        return None
    rates, by_descent = _descents(config.task, episodes, counts)
    return Layers(
        prompts,
        counts,
        config.task.label_kind.error_name,
        {LEARNER: [errors[n] for n in counts], **by_descent},
        float(config.task.label_kind.error(0, np.asarray(episodes.y[:, -1], np.float64)).mean()),
        rates,
        {name: [found[n] for n in counts] for name, found in distances.items()},
        sweep.path,
    ).written()


def _error(learner: Learner, params: Params, episodes: Episode) -> float:
    """Mean error at the query."""
    predictions = in_chunks(partial(jax.jit(learner.predict), params), episodes)[:, -1]
    y = np.asarray(episodes.y[:, -1], np.float64)
    return float(learner.family.label_kind.error(np.asarray(predictions, np.float64), y).mean())


def _descents(
    task: WhitenedRegression, episodes: Episode, counts: list[int]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Best rates and mean errors of both descents, by number of steps."""
    inverse = jnp.matmul(task.root(-1), task.root(-1).T, precision="highest")
    rates, errors = {}, {}
    for name, preconditioner in ((DESCENT, jnp.eye(task.dim)), (PRECONDITIONED, inverse)):
        best = best_rates(task, preconditioner, counts[-1], len(episodes.y) // 2)[
            np.array(counts) - 1
        ]
        found = descent_losses(episodes, preconditioner, jnp.asarray(best, jnp.float32), counts[-1])
        rates[name] = best.tolist()
        found = np.asarray(found, np.float64) / task.label_kind.scale
        errors[name] = [float(found[index, count]) for index, count in enumerate(counts)]
    return rates, errors
