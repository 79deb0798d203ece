"""Transformers learn to implement preconditioned gradient descent for in-context learning.

Ahn, Cheng, Daneshmand & Sra 2023 (arXiv 2306.00297), section 6 and the public code. Linear
attention with the zeros of its optimum learns regression of inputs with covariance U D^2 U^T: a
layer becomes a step of gradient descent with the inverse covariance as preconditioner. What a run
has learned shows `icl.analysis.preconditioning`.

`ahn/isotropic` and `ahn/rotated` are the demonstrations, three layers without and with a random
rotation U; `ahn/layers` is the loss of one to four layers beside as many steps of descent. Batches
are fresh at every step, where the code draws one every 100 steps of the latter two. The -xs have
smaller batches, and learning rates of their own.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..analysis.preconditioning import (
    best_rates,
    descent_losses,
    distance_to_identity,
    has_preconditioners,
    in_eigenbasis,
)
from ..evaluation.chunks import in_chunks
from ..evaluation.curves import draw_prompts
from ..evaluation.figures import STYLE, pyplot, save_figure
from ..models import PreconditionedConfig
from ..sweeps.grid import SEED
from ..sweeps.results import SweepResult
from ..tasks import Episode, WhitenedRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from ..training.learner import Learner, Params
from ..training.run import write_json
from .presets import register

if TYPE_CHECKING:
    from ..sweeps import Sweep

LAYERS = "model_layers"
PROMPTS = 20_000
# Another stream than training's, evaluations' and that of the rates, whatever the seeds.
LAYERS_STREAM = 0x6C617965
LEARNER, DESCENT, PRECONDITIONED = "learner", "gradient descent", "preconditioned descent"
LOOKS: dict[str, dict[str, Any]] = {
    LEARNER: dict(color="C0", marker="o", linewidth=2.5, zorder=3),
    PRECONDITIONED: dict(color="C1", marker="s", linewidth=1.3, linestyle="--"),
    DESCENT: dict(color="C2", marker="^", linewidth=1.3, linestyle="--"),
}


def layers(sweep: "Sweep") -> Table | None:
    """Error and distance to the identity by number of layers: layers.png and layers.json.

    Held against as many steps of descent from 0, plain and with the inverse covariance of the
    inputs as preconditioner, at the best constant rate of each number of steps.

    Returns:
      A row a number of layers, mean over seeds; None for a sweep over anything but layers of
      preconditioned attention, and seeds.
    """
    config = sweep.config
    if (
        LAYERS not in sweep.over
        or set(sweep.over) - {LAYERS, SEED}
        or not has_preconditioners(config)
    ):
        return None
    assert isinstance(config.task, WhitenedRegression)
    episodes = draw_prompts(config.task, jax.random.key(LAYERS_STREAM), PROMPTS)
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
    data = {
        "prompts": PROMPTS,
        "layers": counts,
        "error_name": config.task.label_kind.error_name,
        "error": {LEARNER: [errors[n] for n in counts], **by_descent},
        "zero_error": float(
            config.task.label_kind.error(0, np.asarray(episodes.y[:, -1], np.float64)).mean()
        ),
        "rate": rates,
        "distance": {name: [found[n] for n in counts] for name, found in distances.items()},
    }
    write_json(sweep.path / "layers.json", data)
    _figure(sweep, data)
    return _table(sweep, data)


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
        best = best_rates(task, preconditioner, counts[-1], PROMPTS // 2)[np.array(counts) - 1]
        found = descent_losses(episodes, preconditioner, jnp.asarray(best, jnp.float32), counts[-1])
        rates[name] = best.tolist()
        found = np.asarray(found, np.float64) / task.label_kind.scale
        errors[name] = [float(found[index, count]) for index, count in enumerate(counts)]
    return rates, errors


def _table(sweep: "Sweep", data: dict[str, Any]) -> Table:
    result = Table(
        title=f"log10 of the error by layers or steps ({sweep.path})",
        caption=(
            f"error: {data['error_name']}, {PROMPTS} fresh prompts, mean over seeds; Q and P: "
            "distance to a multiple of the identity, mean over layers; figure: "
            f"{sweep.path / 'layers.png'}"
        ),
    )
    result.add_column("layers", justify="right")
    for name in (*LOOKS, "zero", "Q", "P"):
        result.add_column(name, justify="right")
    for index, count in enumerate(data["layers"]):
        cells = [f"{np.log10(data['error'][name][index]).mean():.2f}" for name in LOOKS]
        cells.append(f"{np.log10(data['zero_error']):.2f}")
        found = (np.array(data["distance"][name][index]) for name in ("Q", "P"))
        cells.extend(f"{values.mean():.3f}" if values.size else "–" for values in found)
        result.add_row(str(count), *cells)
    return result


def _figure(sweep: "Sweep", data: dict[str, Any]) -> None:
    plt, counts = pyplot(), data["layers"]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.0), layout="constrained")
        for name, look in LOOKS.items():
            logs = [np.log10(np.atleast_1d(values)) for values in data["error"][name]]
            left.plot(counts, [values.mean() for values in logs], label=name, **look)
            low, high = ([end(values) for values in logs] for end in (np.min, np.max))
            left.fill_between(counts, low, high, alpha=0.2, color=look["color"])
        left.axhline(np.log10(data["zero_error"]), color="0.6", linestyle=":", label="zero")
        left.set(xticks=counts, xlabel="layers, or steps", ylabel=f"log10 of {data['error_name']}")
        left.legend(fontsize=8)
        for name, marker in (("Q", "o"), ("P", "s")):
            seen = [(n, np.mean(d)) for n, d in zip(counts, data["distance"][name]) if np.size(d)]
            every = [
                (n, value) for n, d in zip(counts, data["distance"][name]) for value in np.ravel(d)
            ]
            if seen:
                [drawn] = right.plot(*zip(*seen), label=f"{name}, mean")
                right.scatter(*zip(*every), marker=marker, s=18, color=drawn.get_color())
        right.set(xticks=counts, ylim=(-0.02, None), xlabel="layers")
        right.set_ylabel("distance to the identity, each layer")
        right.legend(fontsize=8)
        figure.suptitle(sweep.path.name, fontsize=10)
        save_figure(figure, sweep.path / "layers.png")


TASK = WhitenedRegression()
ISOTROPIC = WhitenedRegression(scales=(1.0,) * 5)


def _config(
    task: WhitenedRegression, optimizer: OptimizerConfig, steps: int, batch_size: int
) -> Config:
    every = max(100, steps // 50)
    return Config(
        task=task,
        layout="concatenated",
        model=PreconditionedConfig(layers=3),
        optimizer=optimizer,
        training=TrainingConfig(
            steps=steps, batch_size=batch_size, checkpoint_every=every, keep_checkpoints=50
        ),
    )


# Memory of 0.999 for the squared gradient is very slow here, as the public code notes.
LAYERS_OPTIMIZER = OptimizerConfig(
    learning_rate=0.01,
    schedule="halving",
    halving_steps=4_000,
    clip_each=0.01,
    options={"b1": 0.99, "b2": 0.9},
)
ROTATED = WhitenedRegression(rotation_seed=0)
BY_LAYERS = {"model_layers": [1, 2, 3, 4]}

register(
    "ahn/isotropic",
    "preconditioned attention, d=5, identity covariance, 3 layers (for a GPU)",
    _config(
        ISOTROPIC,
        OptimizerConfig(learning_rate=1e-3, schedule="constant", options={"b1": 0.9, "b2": 0.9}),
        steps=10_000,
        batch_size=4_000,
    ),
)
register(
    "ahn/isotropic-xs",
    "preconditioned attention, d=5, identity covariance, 3 layers: minutes on a CPU",
    _config(
        ISOTROPIC,
        OptimizerConfig(learning_rate=0.01, clip_each=0.01, options={"b1": 0.9, "b2": 0.9}),
        steps=3_000,
        batch_size=1_000,
    ),
)
register(
    "ahn/rotated",
    "preconditioned attention, d=5, rotated covariance, 3 layers, 100,000 steps (for a GPU)",
    _config(
        ROTATED,
        OptimizerConfig(
            learning_rate=0.1,
            schedule="constant",
            clip_each=0.01,
            options={"b1": 0.99, "b2": 0.9},
        ),
        steps=100_000,
        batch_size=20_000,
    ),
)
register(
    "ahn/layers",
    "loss of 1 to 4 layers of preconditioned attention beside descent (a sweep, for a GPU)",
    _config(ROTATED, LAYERS_OPTIMIZER, steps=20_000, batch_size=20_000),
    over=BY_LAYERS,
    report=layers,
)
register(
    "ahn/layers-xs",
    "loss of 1 to 4 layers of preconditioned attention beside descent (a sweep, a CPU)",
    _config(
        # With the paper's scales the fourth dimension takes many times as long.
        WhitenedRegression(scales=(1.0, 1.0, 0.75, 0.5, 1.0), rotation_seed=0),
        OptimizerConfig(learning_rate=0.03, clip_each=0.01, options={"b1": 0.99, "b2": 0.9}),
        steps=3_000,
        batch_size=1_000,
    ),
    over=BY_LAYERS,
    report=layers,
)
