"""Towards understanding how transformers learn in-context through a representation learning lens.

Ren & Liu 2023 (arXiv 2310.13220). A softmax layer computes what a dual model does after gradient
descent on the demonstrations (`icl.analysis.dual`).

`random_features` shows how near the dual with random features comes to attention, by their number,
on untrained layers: 15 demonstrations of linear regression in 10 dimensions, as in the paper.

`ren/linear-xs` trains such a layer, whose dual `icl.analysis.dual.dual_of_run` then runs.
`ren/variants-xs` is a sweep over the variants of attention that the paper proposes.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..analysis.dual import (
    GAP_LABEL,
    KERNEL,
    QUANTILES,
    Descent,
    DualProblem,
    draw_curves,
    dual_problem,
    feature_descent,
    kernel_descent,
)
from ..evaluation.figures import STYLE, pyplot, save_figure
from ..evaluation.result import show_number
from ..models import ContrastiveAttentionConfig, SelfAttentionConfig
from ..sweeps.grid import SEED
from ..sweeps.results import SweepResult
from ..tasks import LAYOUTS, LinearRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from ..training.run import write_json
from .presets import register, register_study

if TYPE_CHECKING:
    from ..sweeps import Sweep

PLAIN = "plain"
DEMONSTRATIONS = 15
TASK = LinearRegression(dim=10, points=DEMONSTRATIONS + 1, inputs="uniform")
FEATURES = (100, 1_000, 12_000, 100_000)
# |f(W_Q x') - h'| by number of features, 0 for that before the first step, in one draw.
REFERENCE = {0: 0.592, 100: 0.417, 1_000: 0.111, 12_000: 0.060, 100_000: 0.006}
DRAWS = 200


def random_layer(key: jax.Array) -> tuple[DualProblem, jax.Array]:
    """An untrained softmax layer on a regression prompt: its dual, and h' `[11]`.

    Tokens (x, y) of x ~ U(-1, 1)^10 and w ~ N(0, I), the query (x, 0) a key too; W_Q, W_K and W_V
    with entries N(0, 1/11); scores divided by sqrt(11). The key is consumed.
    """
    task_key, episode_key, weight_key = jax.random.split(key, 3)
    task = TASK.sample_task(task_key, TASK.full)
    episode = TASK.sample_episode(episode_key, task, TASK.full)
    tokens = LAYOUTS["concatenated"].encode(episode)
    width = tokens.shape[1]
    weights = jax.random.normal(weight_key, (3, width, width)) / width**0.5
    with jax.default_matmul_precision("highest"):
        query, keys, values = jnp.einsum("tw,nwh->nth", tokens, weights)
        scores = keys @ query[-1] / width**0.5
        output = jax.nn.softmax(scores) @ values
    return dual_problem(query[-1], keys, values, DEMONSTRATIONS), output


@functools.partial(jax.jit, static_argnums=1)
def gaps(keys: jax.Array, count: int | None) -> jax.Array:
    """|f(W_Q x') - h'| of layers drawn from keys `[B]`, with new features each, `[B, N + 1]`.

    With so many features, or the exact kernel where None.
    """

    def of_one(key: jax.Array) -> jax.Array:
        layer_key, feature_key = jax.random.split(key)
        problem, output = random_layer(layer_key)
        if count is None:
            found: Descent = kernel_descent(problem)
        else:
            size = len(problem.query)
            found = feature_descent(problem, jax.random.normal(feature_key, (count, size)))
        return jnp.linalg.norm(found.outputs - output, axis=-1)

    return jax.lax.map(of_one, keys)


def random_features(
    folder: Path, *, features: Sequence[int] = FEATURES, draws: int = DRAWS, seed: int = 0
) -> Table:
    """The gap between attention and its dual by number of random features.

    Writes `random-features.json` and `random-features.png` in the folder, which must exist. Each
    draw is a prompt, a layer and features, all new; prompts and layers are as of `random_layer`.

    Args:
      folder: where to write.
      features: numbers of features.
      draws: draws of each number.
      seed: seed of them all.

    Returns:
      A row for each number of features: quantiles of |f(W_Q x') - h'| after all steps.

    Raises:
      ValueError: fewer than one draw or feature.
    """
    if draws < 1 or min(features) < 1:
        raise ValueError(f"draws and features must be at least 1, got {draws} and {features}")
    keys = jax.random.split(jax.random.key(seed), draws)
    counts = {KERNEL: None} | {str(count): count for count in features}
    # The same prompts and layers for every number of features.
    again = lambda: jax.random.clone(keys)
    found = {which: np.asarray(gaps(again(), count)) for which, count in counts.items()}
    # The exact start, which those of features scatter about.
    start = np.quantile(found[KERNEL][:, 0], QUANTILES)
    curves = {which: np.quantile(gap, QUANTILES, axis=0) for which, gap in found.items()}
    data = {
        "draws": draws,
        "seed": seed,
        "quantiles": QUANTILES,
        "before_the_first_step": start.tolist(),
        "gap_by_step": {which: curve.tolist() for which, curve in curves.items()},
        "reference": {str(count): gap for count, gap in REFERENCE.items()},
    }
    write_json(folder / "random-features.json", data)
    path = folder / "random-features.png"
    _features_figure(curves, start, path)
    result = Table(
        title="|f(W_Q x') - h'| of the dual model and attention",
        caption=(
            f"{DEMONSTRATIONS} steps, {draws} draws of prompt, layer and features; reference: one "
            f"draw\nfigure: {path}"
        ),
    )
    for name in ("features", "5%", "median", "95%", "reference"):
        result.add_column(name, justify="right")
    reference = lambda count: show_number(REFERENCE.get(count, np.nan))
    result.add_row("before the first step", *map(show_number, start), reference(0))
    for which, curve in curves.items():
        if which != KERNEL:
            cells = map(show_number, curve[:, -1])
            result.add_row(f"{int(which):,}", *cells, reference(int(which)))
    result.add_row("exact kernel", *map(show_number, curves[KERNEL][:, -1]), show_number(np.nan))
    return result


def _features_figure(curves: dict[str, np.ndarray], start: np.ndarray, path: Path) -> None:
    counts = sorted(int(which) for which in curves if which != KERNEL)
    low, median, high = np.stack([curves[str(count)][:, -1] for count in counts], axis=1)
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
        left.plot(counts, median, "o-", label="median")
        left.fill_between(counts, low, high, alpha=0.2, label="5% to 95%", linewidth=0)
        known = [count for count in counts if count in REFERENCE]
        left.plot(known, [REFERENCE[count] for count in known], "kx", label="reference, one draw")
        left.axhline(start[1], color="0.5", linestyle=":", label="before the first step")
        left.set(xscale="log", yscale="log", xlabel="random features", ylabel=GAP_LABEL)
        draw_curves(right, curves)
        right.set(ylabel=GAP_LABEL, title="medians")
        for axes in (left, right):
            axes.legend(fontsize=8)
        save_figure(figure, path)


def variants(sweep: "Sweep") -> Table | None:
    """What variants of attention do for training: variants.png and variants.json.

    Returns:
      The loss on the way and the error after training, a row a variant, averaged over seeds; None
      for a sweep of another model, over other settings, or of one variant.
    """
    found: dict[str, list[tuple[list[dict], float]]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        model = member.config.model
        if not isinstance(model, ContrastiveAttentionConfig):
            return None
        if not set(member.changes) <= {*_variant(), SEED}:
            return None
        if "examples" in record:
            curve = (member.run.metrics(), record["normalised_error"][-1])
            found.setdefault(variant_label(model), []).append(curve)
    if len(found) < 2:
        return None
    scale = sweep.members[0].config.task.label_kind.training_measure.scale
    steps = [line["step"] for line in next(iter(found.values()))[0][0]]
    losses = {
        label: np.array([[line["loss"] / scale for line in lines] for lines, _ in members])
        for label, members in found.items()
    }
    errors = {label: [error for _, error in members] for label, members in found.items()}
    by_variant = {
        label: {"error": errors[label], "loss": losses[label].tolist()} for label in found
    }
    write_json(sweep.path / "variants.json", {"steps": steps, "variants": by_variant})
    path = sweep.path / "variants.png"
    _variants_figure(steps, losses, errors, path)
    shown = [round(len(steps) * share) - 1 for share in (0.1, 0.2, 0.5)]
    result = Table(
        title="variants of attention: training loss after so many steps, and error after training",
        caption=(
            "divided by the mean squared label; loss at that step, error over fresh prompts, the "
            f"same for all\nfigure: {path}"
        ),
    )
    result.add_column("variant")
    for index in shown:
        result.add_column(f"{steps[index]:,}", justify="right")
    for name in ("error", "less than plain"):
        result.add_column(name, justify="right")
    plain = errors.get(PLAIN, [np.nan])
    for label in found:
        cells = (show_number(v) for v in losses[label].mean(axis=0)[shown])
        error = float(np.mean(errors[label]))
        less = np.mean(plain) - error
        result.add_row(label, *cells, show_number(error), "" if label == PLAIN else f"{less:+.3f}")
    return result


def variant_label(model: ContrastiveAttentionConfig) -> str:
    """What sets the attention of a model apart from the plain one."""
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


def _variants_figure(
    steps: list[int], losses: dict[str, np.ndarray], errors: dict[str, list[float]], path: Path
) -> None:
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.0), layout="constrained")
        for index, (label, curves) in enumerate(losses.items()):
            colour = "k" if label == PLAIN else plt.get_cmap("tab20")(index)
            left.plot(steps, curves.mean(axis=0), color=colour, label=label, linewidth=1.2)
            right.barh(index, np.mean(errors[label]), color=colour)
            right.plot(errors[label], [index] * len(errors[label]), "k|")
        left.set(xlabel="step", ylabel="training loss / mean squared label", yscale="log")
        right.set(xlabel="error after training", yticks=range(len(losses)))
        right.set_yticklabels(losses, fontsize=8)
        right.invert_yaxis()
        save_figure(figure, path)


def _variant(
    regularization: float = 0.0,
    values: str = "none",
    keys: str = "none",
    negatives: int = 0,
    weight: float = 0.0,
) -> dict[str, Any]:
    return {
        "model_regularization": regularization,
        "model_augment_values": values,
        "model_augment_keys": keys,
        "model_negatives": negatives,
        "model_negative_weight": weight,
    }


LINEAR = Config(
    task=TASK,
    layout="concatenated",
    model=SelfAttentionConfig(softmax="all", query_in_context=True, init_scale=0.1),
    optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=10.0),
    training=TrainingConfig(steps=2_000, batch_size=128),
)

register_study(
    "ren/random-features",
    "the gap between a softmax layer and its dual model, by the number of random features",
    random_features,
)
register(
    "ren/linear-xs",
    "one softmax layer on linear regression, d=10, 16 points: a minute on a CPU",
    LINEAR,
)
register(
    "ren/variants-xs",
    "one softmax layer, regularised, augmented, with negatives (a sweep, minutes on a CPU)",
    LINEAR.replace(model=ContrastiveAttentionConfig(query_in_context=True, init_scale=0.1)),
    over={
        "variant": {
            PLAIN: _variant(),
            "alpha 0.5": _variant(regularization=0.5),
            "alpha 1": _variant(regularization=1.0),
            "augmented values": _variant(values="residual"),
            "augmented keys": _variant(keys="residual"),
            "augmented both": _variant(values="residual", keys="residual"),
            "augmented both, plain": _variant(values="plain", keys="plain"),
            "negatives 1": _variant(negatives=1, weight=0.1),
            "negatives 5": _variant(negatives=5, weight=0.5),
        }
    },
    report=variants,
)
