"""The dual model of a softmax layer: gradient descent whose result is what attention computes.

Ren & Liu 2023, "Towards understanding how transformers learn in-context through a representation
learning lens" (arXiv 2310.13220). For tokens x_1 to x_N (demonstrations) and x' (query)

    h' = W_V X softmax((W_K X)^T W_Q x' / sqrt(d))

is the output at W_Q x' of a model f(z) = W phi(z), with phi(a) . phi(b) = exp(a . b), after one
step of gradient descent for each demonstration on

    L = -1 / (eta D') sum_i (W_V x_i) . W phi(W_K x_i)

with rate eta and the softmax's denominator D'. W starts from the contribution of the query part,
which is 0 if the query is not among the keys. Here phi is either the exact feature map of the
exponential kernel or random features. Functions take one prompt and one query; `jax.vmap` makes
batches.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..models import SelfAttentionConfig
from ..report import WIDTH, Result, legend_of_figure, look, open_run, show_number, spread
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner
from ..training.run import Run

KERNEL = "kernel"  # the exact feature map
QUANTILES = (0.05, 0.5, 0.95)
MAX_COLUMNS = 5  # of the table
GAP_LABEL = "$|f(W_Q x') - h'|$"  # in figures


class DualProblem(NamedTuple):
    """The training examples, the start and the test point of the dual model of one head.

    Query and keys are scaled so that their products are the softmax's scores.
    """

    query: jax.Array  # [K]
    keys: jax.Array  # [N, K], of the demonstrations
    values: jax.Array  # [N, V]
    start_keys: jax.Array  # [M, K], of the query part; M is 0 if the query is not among the keys
    start_values: jax.Array  # [M, V]


class DualDescent(NamedTuple):
    """The dual model before its first step and after each."""

    outputs: jax.Array  # [N + 1, V], f(W_Q x')
    norms: jax.Array  # [N + 1], of W, Frobenius


def dual_problem(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    demonstrations: int,
    scale: float | None = None,
) -> DualProblem:
    """The dual of `softmax(scale * keys @ query) @ values`.

    Args:
      query: `[K]`.
      keys: `[S, K]`, the demonstrations' keys first.
      values: `[S, V]`.
      demonstrations: number of keys that are trained on; the others are the query part.
      scale: factor of the scores; `1 / sqrt(K)` when None.

    Raises:
      ValueError: the number of demonstrations is not from 0 to S.
    """
    if not 0 <= demonstrations <= len(keys):
        raise ValueError(f"there are {len(keys)} keys, not {demonstrations} demonstrations")
    root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    keys = root * keys
    return DualProblem(
        root * query, keys[:demonstrations], values[:demonstrations],
        keys[demonstrations:], values[demonstrations:],
    )  # fmt: skip


def denominator(problem: DualProblem) -> jax.Array:
    """D', the sum of the exponentials of all scores, `[]`."""
    keys = jnp.concatenate([problem.keys, problem.start_keys])
    return jnp.exp(keys @ problem.query).sum()


def positive_features(vectors: jax.Array, directions: jax.Array) -> jax.Array:
    """phi with phi(a) . phi(b) = exp(a . b) on average over directions w ~ N(0, I).

    `exp(w . z - |z|^2 / 2) / sqrt(m)`, the positive random features of Choromanski et al. 2021
    (arXiv 2009.14794, lemma 1).

    Args:
      vectors: `[..., K]`.
      directions: `[m, K]`.

    Returns:
      `[..., m]`.
    """
    half_square = (vectors**2).sum(axis=-1, keepdims=True) / 2
    return jnp.exp(vectors @ directions.T - half_square) / len(directions) ** 0.5


def feature_descent(
    problem: DualProblem, directions: jax.Array, *, rate: float = 1.0
) -> DualDescent:
    """Gradient descent on L, one demonstration a step, with random features in place of phi.

    D' is the softmax's denominator, as in the paper, and not the features' estimate of it.

    Args:
      problem: as from `dual_problem`.
      directions: of the features, `[m, K]`.
      rate: eta; it changes the result only by rounding.

    Returns:
      A `DualDescent` in float32, computed with exact products.
    """
    with jax.default_matmul_precision("highest"):
        total = denominator(problem)
        tested = positive_features(problem.query, directions)
        trained = positive_features(problem.keys, directions)
        start = problem.start_values.T @ positive_features(problem.start_keys, directions) / total

        def loss(weights: jax.Array, value: jax.Array, feature: jax.Array) -> jax.Array:
            return -(value @ (weights @ feature)) / (rate * total)

        def step(weights: jax.Array, pair: tuple[jax.Array, jax.Array]):
            weights = weights - rate * jax.grad(loss)(weights, *pair)
            return weights, look(weights)

        look = lambda weights: DualDescent(weights @ tested, jnp.linalg.norm(weights))
        return _with_start(look(start), jax.lax.scan(step, start, (problem.values, trained))[1])


def kernel_descent(problem: DualProblem, *, rate: float = 1.0) -> DualDescent:
    """Gradient descent on L with the exact features of the exponential kernel, by the kernel trick.

    W is stored as its expansion sum_j c_j phi(k_j)^T over the tokens. With respect to f, as a
    vector of functions, the loss at k_i has the gradient (dL / df(k_i)) exp(k_i . z), so a step
    changes only c_i. After all steps the output is that of softmax attention.

    Args and returns as for `feature_descent`.
    """
    with jax.default_matmul_precision("highest"):
        total = denominator(problem)
        keys = jnp.concatenate([problem.keys, problem.start_keys])
        gram = jnp.exp(keys @ keys.T)
        tested = jnp.exp(keys @ problem.query)
        untrained = jnp.zeros_like(problem.values)
        start = jnp.concatenate([untrained, problem.start_values / total])

        def loss(output: jax.Array, value: jax.Array) -> jax.Array:
            return -(value @ output) / (rate * total)

        def step(coefficients: jax.Array, example: tuple[jax.Array, jax.Array]):
            index, value = example
            slope = jax.grad(loss)(gram[index] @ coefficients, value)
            coefficients = coefficients.at[index].add(-rate * slope)
            return coefficients, look(coefficients)

        def look(coefficients: jax.Array) -> DualDescent:
            squares = coefficients * (gram @ coefficients)
            return DualDescent(tested @ coefficients, jnp.sqrt(jnp.maximum(squares.sum(), 0)))

        examples = jnp.arange(len(problem.values)), problem.values
        return _with_start(look(start), jax.lax.scan(step, start, examples)[1])


def _with_start(start: DualDescent, steps: DualDescent) -> DualDescent:
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, steps)


def sum_of_heads(descents: DualDescent) -> DualDescent:
    """The dual of several heads, whose features are concatenated in one W.

    Args:
      descents: with a leading axis of heads.
    """
    return DualDescent(descents.outputs.sum(axis=0), jnp.sqrt((descents.norms**2).sum(axis=0)))


@dataclasses.dataclass(frozen=True)
class DualCurves(Result):
    """How the dual of a trained layer approaches the output of the layer.

    Attributes:
      gap: |f(W_Q x') - h'| before the first step and after each, quantiles 0.05, 0.5 and 0.95 over
        prompts and features, float `[3, N + 1]`, by number of features or "kernel".
      norm: |W|, in the same form as `gap`.
      size: the median of |h'|.
      step: the training step of the parameters.
      prompts: number of prompts.
      path: the run's folder.
    """

    gap: dict[str, np.ndarray]
    norm: dict[str, np.ndarray]
    size: float
    step: int
    prompts: int
    path: Path
    quantiles: tuple[float, ...] = QUANTILES

    file = "dual"

    def table(self) -> Table:
        """Median gap and |W| by steps of the dual's descent."""
        steps = len(self.gap[KERNEL][0])
        shown = spread(steps, MAX_COLUMNS)
        result = Table(
            title=f"the dual model after t steps ({self.path}, step {self.step})",
            caption=f"medians over {self.prompts} prompts; the median of |h'| is {self.size:.3f}",
        )
        result.add_column("t", no_wrap=True)
        for t in shown:
            result.add_column(str(t), justify="right", no_wrap=True)
        for title, curves in (("|f(W_Q x') - h'|", self.gap), ("|W|", self.norm)):
            for which, values in curves.items():
                cells = (show_number(v) for v in values[1][shown])
                result.add_row(f"{title}, {feature_label(which)}", *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """The gap and |W| by steps of the dual's descent."""
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.5), layout="constrained")
        draw_curves(left, self.gap)
        draw_curves(right, self.norm)
        left.set(ylabel=GAP_LABEL, title=f"gap, medians over {self.prompts} prompts")
        right.set(ylabel="$|W|$", title="size of the weights")
        figure.suptitle(f"dual of {self.path.name}, step {self.step}")
        legend_of_figure(figure)
        return figure


def has_dual(config: Config) -> bool:
    """Whether runs with these settings have one softmax layer, which has a dual model."""
    model = config.model
    # A subclass is a variant of attention and has another dual.
    return type(model) is SelfAttentionConfig and model.layers == 1 and model.softmax != "none"


def dual_of_run(
    run: Run | str | Path,
    *,
    features: Sequence[int] = (1_000, 12_000),
    prompts: int = 64,
    seed: int = 0,
) -> DualCurves:
    """Runs the dual model of a run's newest checkpoint, a model of one softmax layer.

    Each prompt and head draws its own features. Writes `dual.json` and `dual.png` in the run's
    folder.

    Args:
      run: the run or its folder.
      features: numbers of random features; the exact kernel is always included.
      prompts: number of prompts, of fresh tasks.
      seed: seed of prompts and features.

    Returns:
      A `DualCurves`, which rich prints as a table.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt or feature, a model other than one layer of softmax
        attention, or scores whose exponentials overflow float32.
    """
    run, learner = open_run(run, prompts=prompts, features=min(features, default=1))
    config = run.config.model
    if not has_dual(run.config):
        raise ValueError(
            "the dual model needs one layer of softmax attention: a self_attention model with "
            f"layers 1 and softmax all; {run.path} is a {config.title} model, {config}"
        )
    step, params = run.variables()
    prompt_key, *keys = jax.random.split(stream("dual", seed), 1 + len(features))
    episodes = draw_prompts(learner.family, prompt_key, prompts)
    problems, outputs = jax.jit(problems_of_layer, static_argnums=0)(
        learner, params, learner.encode(params, episodes)
    )
    exact = jax.vmap(lambda heads: sum_of_heads(jax.vmap(kernel_descent)(heads)))(problems)
    descents = {KERNEL: exact} | {
        str(count): _with_features(problems, key, count) for count, key in zip(features, keys)
    }
    gaps = {
        which: np.linalg.norm(descent.outputs - outputs[:, None], axis=-1)
        for which, descent in descents.items()
    }
    found = [*gaps.values(), *(descent.norms for descent in descents.values())]
    if not all(np.isfinite(values).all() for values in found):
        raise ValueError(f"the scores of {run.path} are too large for exponentials in float32")
    quantiles = lambda values: np.quantile(np.asarray(values, np.float64), QUANTILES, axis=0)
    return DualCurves(
        {which: quantiles(gap) for which, gap in gaps.items()},
        {which: quantiles(descent.norms) for which, descent in descents.items()},
        float(np.median(np.linalg.norm(outputs, axis=-1))), step, prompts, run.path,
    ).written()  # fmt: skip


def problems_of_layer(
    learner: Learner, params: Any, tokens: jax.Array
) -> tuple[DualProblem, jax.Array]:
    """The duals of the heads of a model of one layer, and the output h' of the layer.

    Args:
      learner: of a `SelfAttentionConfig`.
      params: as from `learner.init`.
      tokens: prompts `[B, T, in_width]`.

    Returns:
      Problems with leading axes `[B, heads]`, and h' `[B, width]`.
    """
    model: Any = learner.model(params)
    with jax.default_matmul_precision("highest"):
        [weights], [inputs] = model.heads(), model.head_inputs(tokens)
        demonstrations = inputs.shape[1] - 1
        context = inputs if model.config.query_in_context else inputs[:, :-1]
        outputs = model.layers[0](inputs[:, -1:], context)[:, 0]
        query = jnp.einsum("bw,nwh->bnh", inputs[:, -1], weights.query)
        keys = jnp.einsum("btw,nwh->bnth", context, weights.key)
        values = jnp.einsum("btw,nwh,nhv->bntv", context, weights.value, weights.output)
    of_head = lambda query, keys, values: dual_problem(query, keys, values, demonstrations)
    return jax.vmap(jax.vmap(of_head))(query, keys, values), outputs


def _with_features(problems: DualProblem, key: jax.Array, count: int) -> DualDescent:
    """Descents `[B, ...]` of problems `[B, heads, ...]` with features drawn anew for each."""
    batch, heads, size = problems.query.shape

    def of_prompt(given: tuple[jax.Array, DualProblem]) -> DualDescent:
        directions = jax.random.normal(given[0], (heads, count, size))
        return sum_of_heads(jax.vmap(feature_descent)(given[1], directions))

    # One prompt at a time, since the weights of many prompts need too much memory.
    run_all = jax.jit(lambda keys, problems: jax.lax.map(of_prompt, (keys, problems)))
    return run_all(jax.random.split(key, batch), problems)


def feature_label(which: str) -> str:
    """The label of a curve, from the number of features or "kernel"."""
    return "exact kernel" if which == KERNEL else f"{int(which):,} features"


def draw_curves(axes: Any, curves: dict[str, np.ndarray]) -> None:
    """Medians by step, of quantiles `[3, N + 1]` as in `DualCurves`."""
    axes.set_xlabel("steps of the dual's descent")
    axes.locator_params(axis="x", integer=True)
    # The exact kernel is wide and first, so that it shows behind curves that agree with it.
    for index, which in enumerate(sorted(curves, key=lambda which: which != KERNEL)):
        line = dict(color="0.8", linewidth=4) if which == KERNEL else look(index - 1)
        axes.plot(curves[which][1], label=feature_label(which), **line)
