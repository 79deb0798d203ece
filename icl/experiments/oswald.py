"""Transformers learn in-context by gradient descent. Von Oswald et al. 2023 (arXiv 2212.07677).

Linear regression, d = N = 10, from tokens (x, y) and a query (x, 0); learners are layers of linear
self-attention alone. The paper's text draws x from U(-1, 1), its public code from U(-1/2, 1/2):
presets are the code's but for `-paper-range`. Everything else follows the code: Adam (b2 0.98) at
1e-3 (5e-4 beyond three layers), batches of 2,048 prompts, gradients clipped at norm 10 where there
are more than two layers. The loss here is the squared error, there half of it, so that clipping
sets in at half of their norm. What is shown is the squared error / mean squared label, 2.4 times
half the squared error where x is in +-1/2 and d = 10.

`icl eval RUN` holds such runs against gradient descent (`icl.analysis.alignment` and
`icl.analysis.descent_shifts`), and those on sines against a run of their comparator with
`--against`. `icl study oswald/descent` has what gradient descent itself reaches.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..analysis.alignment import has_descent
from ..analysis.descent import construction, tuned_descent
from ..evaluation.curves import draw_prompts
from ..evaluation.figures import STYLE, in_lines, pyplot, save_figure
from ..evaluation.result import show_number
from ..models import GradientDescentConfig, SelfAttentionConfig
from ..sweeps.grid import SEED, short_name
from ..sweeps.results import SweepResult
from ..tasks import LinearRegression, SineRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from ..training.learner import Learner
from ..training.run import write_json
from .presets import register, register_study

if TYPE_CHECKING:
    from ..sweeps import Sweep

DIM = EXAMPLES = 10
REGRESSION = LinearRegression(dim=DIM, points=EXAMPLES + 1, inputs="uniform", input_scale=0.5)


def _config(
    model: SelfAttentionConfig | GradientDescentConfig,
    steps: int,
    learning_rate: float = 1e-3,
    clip_norm: float | None = None,
    task: LinearRegression | SineRegression = REGRESSION,
    layout: Literal["concatenated", "separate"] = "concatenated",
    schedule: Literal["constant", "cosine"] = "constant",
    batch_size: int = 2048,
) -> Config:
    return Config(
        task=task,
        layout=layout,
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            schedule=schedule,
            clip_norm=clip_norm,
            options={"b2": 0.98},
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            checkpoint_every=steps // 50,
            log_every=steps // 100,
            keep_checkpoints=50,
        ),
    )


ONE_LAYER = _config(SelfAttentionConfig(), 5_000)

register(
    "oswald/one-layer",
    "one linear attention layer, d=N=10, x in ±1/2 (the code): figure 2, a minute on a CPU",
    ONE_LAYER,
)
register(
    "oswald/one-layer-paper-range",
    "one linear attention layer, d=N=10, x in ±1 (the text): a minute on a CPU",
    ONE_LAYER.replace(task_input_scale=1.0),
)
register(
    "oswald/two-layers",
    "one linear attention layer applied twice: figure 3 a, minutes on a CPU",
    _config(SelfAttentionConfig(layers=2), 5_000),
)
register(
    "oswald/five-layers",
    "five linear attention layers with their own weights: figure 3 b (for a GPU)",
    _config(
        SelfAttentionConfig(layers=5, shared=False, clip=10.0),
        50_000,
        learning_rate=5e-4,
        clip_norm=10.0,
    ),
)
register(
    "oswald/five-layers-xs",
    "five linear attention layers with their own weights, fewer and smaller batches: a CPU",
    _config(
        SelfAttentionConfig(layers=5, shared=False, clip=10.0),
        10_000,
        learning_rate=2e-3,
        clip_norm=10.0,
        schedule="cosine",
        batch_size=512,
    ),
)

SINES = SineRegression(high_amplitude=0.5)
FEATURES = 40
SINE_ATTENTION = _config(
    SelfAttentionConfig(features=FEATURES), 20_000, clip_norm=100.0, task=SINES
)
SINE_DESCENT = _config(
    GradientDescentConfig(features=FEATURES), 20_000, learning_rate=3e-4, task=SINES
)
SMALLER = dict(
    training_steps=10_000,
    training_batch_size=256,
    training_checkpoint_every=200,
    training_log_every=100,
    optimizer_learning_rate=2e-3,
    optimizer_schedule="cosine",
)

register(
    "oswald/sine",
    "sines from a learned representation and one linear attention layer (the code's amplitudes)",
    SINE_ATTENTION,
)
register(
    "oswald/sine-paper-range",
    "the same with the text's amplitudes, up to 5",
    SINE_ATTENTION.replace(task_high_amplitude=5.0),
)
register(
    "oswald/sine-descent",
    "its comparator: a step of gradient descent on a learned representation",
    SINE_DESCENT,
)
register(
    "oswald/sine-xs",
    "oswald/sine with batches of 256 and fewer steps: minutes on a CPU",
    SINE_ATTENTION.replace(**SMALLER),
)
register(
    "oswald/sine-descent-xs",
    "oswald/sine-descent with batches of 256 and fewer steps: minutes on a CPU",
    SINE_DESCENT.replace(**SMALLER),
)

COPYING = _config(
    SelfAttentionConfig(
        layers=2, shared=False, softmax="first", key_size=20, positions=10, init_scale=0.02
    ),
    50_000,
    layout="separate",
)

register(
    "oswald/copying",
    "inputs and labels in tokens apart, softmax then linear attention: figure 8 (for a GPU)",
    COPYING,
)
register(
    "oswald/copying-xs",
    "the same with d=5 and batches of 256: minutes on a CPU",
    COPYING.replace(task_dim=5, **SMALLER),
)


def final_losses(sweep: "Sweep") -> Table | None:
    """A bar for each member's error at the end: losses.png and losses.json of a finished sweep.

    The error at the query on fresh prompts, beside that of one tuned step of gradient descent;
    None for a sweep whose members are not on linear regression from a single query.
    """
    found: dict[str, list[float]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        config = member.config
        if not has_descent(config) or config.task != sweep.config.task:
            return None
        if "examples" in record:
            label = ", ".join(_labels(sweep.over, member.changes))
            error = _error(Learner(config), member.run.variables()[1])
            found.setdefault(label, []).append(error)
    descent = tuned_descent(sweep.config)
    step, name = _error(descent.learner, descent.params), sweep.config.task.label_kind.error_name
    data = {"error_name": name, "error": found, "one step of gradient descent": step}
    write_json(sweep.path / "losses.json", data)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        axes.bar(list(found), [float(np.mean(values)) for values in found.values()], width=0.6)
        for label, values in found.items():
            axes.plot([label] * len(values), values, "k_", markersize=14)  # each seed
        axes.axhline(step, color="C1", linestyle="--", label="one step of gradient descent")
        axes.set_ylabel(in_lines(name))
        axes.legend(fontsize=8)
        save_figure(figure, sweep.path / "losses.png")
    table = Table(
        title=f"error at the query ({sweep.path})",
        caption=f"{name}; figure: {sweep.path / 'losses.png'}",
    )
    table.add_column("")
    table.add_column("mean over seeds", justify="right")
    for label, values in found.items():
        table.add_row(label, f"{np.mean(values):.4f}")
    table.add_row("one step of gradient descent", f"{step:.4f}")
    return table


def _labels(over: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """What a sweep calls the values of one member, but for the seed."""
    labels = []
    for axis, values in over.items():
        if isinstance(values, Mapping):
            fits = lambda wanted: wanted.items() <= changes.items()
            labels.append(next(name for name, wanted in values.items() if fits(wanted)))
        elif axis != SEED:
            labels.append(f"{short_name(axis)} {changes[axis]}")
    return labels


FEWER = ONE_LAYER.replace(
    training_steps=4_000,
    training_batch_size=512,
    training_checkpoint_every=2_000,
    training_log_every=100,
)

register(
    "oswald/softmax",
    "one layer with linear or softmax attention, one head or two: figure 12 (a sweep, a CPU)",
    FEWER,
    over={
        "attention": {
            name: {"model_softmax": softmax, "model_heads": heads}
            for name, softmax, heads in (
                ("linear", "none", 1),
                ("softmax, 1 head", "all", 1),
                ("softmax, 2 heads", "all", 2),
            )
        }
    },
    report=final_losses,
)
register(
    "oswald/data-sets",
    "one layer trained on 128 to 8,192 prompts again and again (a sweep, a CPU)",
    FEWER.replace(training_pooled="prompts", training_pool_size=128),
    over={"training_pool_size": [128, 512, 2048, 8192]},
    report=final_losses,
)

# Half the squared error that other implementations reached, x in +-1/2, d = N = 10.
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
HALF = REGRESSION.label_kind.scale / 2  # half the squared error at which an error is 1
GAMMAS = {10: 0.179, 25: 0.099, 50: 0.056, 100: 0.029}  # figure 3 and appendix A.10 of the paper
STUDY_BATCHES, STUDY_PROMPTS = 16, 8192
KINDS = (
    (1, False, True),
    *((steps, plus_plus, True) for steps in (2, 10) for plus_plus in (False, True)),
    (5, False, False),
    (5, True, False),
)


def _error(learner: Learner, params: Any) -> float:
    """The mean error at the query over `STUDY_BATCHES * STUDY_PROMPTS` prompts."""

    def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        episodes = draw_prompts(learner.family, key, STUDY_PROMPTS)
        found, (count, _) = learner.loss_sum(params, episodes)
        return total + found / count, None

    keys = jax.random.split(jax.random.key(1), STUDY_BATCHES)
    total, _ = jax.jit(lambda keys: jax.lax.scan(add, jnp.float32(0), keys))(keys)
    return float(total) / STUDY_BATCHES / learner.family.label_kind.training_measure.scale


def descent(
    folder: Path,
    kinds: Sequence[tuple[int, bool, bool]] = KINDS,
    examples: Sequence[int] = tuple(GAMMAS),
) -> Table:
    """What gradient descent in context reaches, and attention that does the same by construction.

    Proposition 1 and appendix A.10: for some numbers of steps the error with the best rates, and
    the largest difference between its predictions and those of constructed attention layers; gamma
    of two steps of GD++ by the number of examples. Writes descent.json and descent.png.

    Args:
      folder: where to write; it must exist.
      kinds: steps, whether of GD++, and whether all steps share their rates.
      examples: numbers of examples at which gamma is tuned.
    """
    rows: dict[str, dict[str, Any]] = {"zero": {"error": 1.0}}
    for steps, plus_plus, shared in kinds:
        tuned = tuned_descent(ONE_LAYER, steps, plus_plus=plus_plus, shared=shared)
        name = tuned.name + ("" if shared else ", own rates")
        rows[name] = {
            "error": _error(tuned.learner, tuned.params),
            "construction differs by": _difference(tuned, steps, shared),
            **tuned.rates,
        }
    gammas = {}
    for count in examples:
        config = ONE_LAYER.replace(task_points=count + 1)
        gammas[count] = tuned_descent(config, 2, plus_plus=True).rates["gamma"][0]
    error_name, prompts = REGRESSION.label_kind.error_name, STUDY_BATCHES * STUDY_PROMPTS
    data = {"error_name": error_name, "descent": rows, "gamma_by_examples": gammas}
    write_json(folder / "descent.json", data)
    _descent_figure(rows, gammas, folder / "descent.png")
    table = Table(
        title="gradient descent in context, d = N = 10, x in ±1/2",
        caption=(
            f"error: {error_name}, at the query over {prompts} prompts; half the "
            f"squared error, as in the paper, is {HALF:.4f} times that"
        ),
    )
    table.add_column("")
    for column in ("error", "reference", "rate", "gamma", "construction differs by"):
        table.add_column(column, justify="right")
    told = lambda rates: " ".join(f"{rate:.3g}" for rate in rates)
    for name, row in rows.items():
        table.add_row(
            name, f"{row['error']:.4f}", show_number(REFERENCE.get(name, np.nan) / HALF),
            told(row.get("learning_rate", [])), told(row.get("gamma", [])),
            f"{row['construction differs by']:.0e}" if "construction differs by" in row else "",
        )  # fmt: skip
    table.add_section()
    for count, gamma in gammas.items():
        table.add_row(
            f"GD++, 2 steps, N = {count}",
            "",
            show_number(GAMMAS.get(count, np.nan)),
            "",
            f"{gamma:.3f}",
        )
    return table


def _difference(tuned: Any, steps: int, shared: bool) -> float:
    """The largest difference between predictions of descent and of constructed attention."""
    model = SelfAttentionConfig(layers=steps, shared=shared)
    learner = Learner(dataclasses.replace(tuned.learner.config, model=model))
    params = construction(model, DIM, EXAMPLES, tuned.learning_rates, tuned.gammas)
    episodes = draw_prompts(learner.family, jax.random.key(2), STUDY_PROMPTS)
    theirs = jax.jit(tuned.learner.predict)(tuned.params, episodes)
    ours = jax.jit(learner.predict)(params, episodes)
    return float(jnp.abs(ours - theirs)[:, -1].max())


def _descent_figure(rows: dict[str, Any], gammas: dict[int, float], path: Path) -> None:
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
        names = list(rows)
        left.barh(names, [rows[name]["error"] for name in names], height=0.6, label="ours")
        left.plot(
            [REFERENCE.get(name, np.nan) / HALF for name in names], names, "k|", ms=14,
            label="reference",
        )  # fmt: skip
        left.invert_yaxis()
        left.set_xlabel(REGRESSION.label_kind.error_name)
        left.legend(fontsize=8)
        right.plot(list(gammas), list(gammas.values()), "o-", label="ours")
        right.plot(list(GAMMAS), list(GAMMAS.values()), "kx", label="paper")
        right.set(xlabel="examples", ylabel="gamma of two steps of GD++", xscale="log")
        right.legend(fontsize=8)
        save_figure(figure, path)


register_study(
    "oswald/descent",
    "losses of gradient descent and GD++ in context, and the construction that equals them",
    descent,
)
