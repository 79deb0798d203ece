"""Gradient descent in context: its best learning rates, and attention weights that equal it.

Von Oswald et al. 2023, "Transformers learn in-context by gradient descent" (arXiv 2212.07677,
section 2, proposition 1, and appendix A.10 for GD++).
"""

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..evaluation.curves import draw_prompts
from ..models import GradientDescentConfig, SelfAttentionConfig
from ..tasks import LAYOUTS, LinearRegression
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner, Params

TUNING_PROMPTS = 8192
ITERATIONS = 40
QUERY_BATCHES, QUERY_PROMPTS = 16, 8192  # of `mean_query_error`
CANDIDATES = 60  # learning rates of the line search


@dataclasses.dataclass(frozen=True)
class TunedDescent:
    """Gradient descent with the best rates for a distribution of tasks.

    Attributes:
      name: shown in tables.
      learner: its model is a `GradientDescent`.
      params: learning rates, and gammas of GD++, each `[1]` or `[steps]`.
    """

    name: str
    learner: Learner
    params: Params

    @property
    def learning_rates(self) -> np.ndarray:
        return np.asarray(self.params["learning_rate"])

    @property
    def rates(self) -> dict[str, list[float]]:
        """Learning rates, and gammas of GD++, by name."""
        return {name: np.asarray(rate).tolist() for name, rate in sorted(self.params.items())}

    @property
    def gammas(self) -> np.ndarray | None:
        """Of GD++; None for plain gradient descent."""
        return np.asarray(self.params["gamma"]) if "gamma" in self.params else None


def tuned_descent(
    config: Config, steps: int = 1, *, plus_plus: bool = False, shared: bool = True, seed: int = 0
) -> TunedDescent:
    """The learning rates of least error at the query, by a line search and then by least squares.

    Both use `TUNING_PROMPTS` prompts of fresh tasks. If each step has its own rate, the search
    starts from the best shared rate.

    Args:
      config: settings of a run; only task and layout are used.
      steps: steps of gradient descent.
      plus_plus: whether to use GD++, and tune gamma as well.
      shared: whether all steps share one rate; else each has its own.
      seed: seed of the prompts.

    Raises:
      ValueError: a task other than linear regression, or a layout with more than a query.
    """
    if not isinstance(config.task, LinearRegression) or config.layout != "concatenated":
        raise ValueError(
            "gradient descent in context is tuned for linear regression in the concatenated "
            f"layout, not for {type(config.task).__name__} in the {config.layout} one"
        )
    return _tuned(config.task, steps, plus_plus, shared, seed)


# Several analyses of a run need one descent.
@lru_cache(maxsize=32)
def _tuned(
    task: LinearRegression, steps: int, plus_plus: bool, shared: bool, seed: int
) -> TunedDescent:
    config, params, sizes = _tuned_shared(task, steps, plus_plus, seed)
    if not shared:
        config = config.replace(model_shared=False)
        params = {name: jnp.tile(rate, steps) for name, rate in params.items()}
        minimised = jax.jit(partial(_minimised, Learner(config)))
        params = minimised(params, sizes, _tuning_prompts(task, seed))
    name = f"GD{'++' * plus_plus}, {steps} step{'s' * (steps > 1)}"
    return TunedDescent(name, Learner(config), params)


@lru_cache(maxsize=32)
def _tuned_shared(
    task: LinearRegression, steps: int, plus_plus: bool, seed: int
) -> tuple[Config, Params, dict[str, Any]]:
    """Settings of descent with one rate for all steps, its best rates, and the units of rates."""
    model = GradientDescentConfig(layers=steps, plus_plus=plus_plus, shared=True)
    config = Config(task=task, layout="concatenated", model=model)
    learner, episodes = Learner(config), _tuning_prompts(task, seed)
    params = jax.jit(partial(_line_search, learner))(episodes)
    x = episodes.x[:, :-1]
    # In these units both rates are of order 1.
    sizes = {"learning_rate": params["learning_rate"], "gamma": 1 / (x**2).sum(axis=(1, 2)).mean()}
    return config, jax.jit(partial(_minimised, learner))(params, sizes, episodes), sizes


def _tuning_prompts(task: LinearRegression, seed: int) -> Any:
    return draw_prompts(task, stream("rates", seed), TUNING_PROMPTS)


def _loss(learner: Learner, params: Params, episodes: Any) -> jax.Array:
    total, (count, _) = learner.loss_sum(params, episodes)
    return total / count.astype(total.dtype)


def _line_search(learner: Learner, episodes: Any) -> Params:
    """Initial parameters with the best of `CANDIDATES` log-spaced learning rates."""
    params = learner.init(jax.random.key(0)).params
    examples = episodes.x[:, :-1]
    curvature = (examples**2).sum(axis=-1).mean()  # rates above twice its inverse are unstable
    rates = jnp.geomspace(0.01, 100, CANDIDATES)[:, None] / curvature
    at = lambda rate: _loss(learner, params | {"learning_rate": rate}, episodes)
    losses = jax.lax.map(at, rates)
    return params | {"learning_rate": rates[jnp.nanargmin(losses)]}


def _minimised(learner: Learner, params: Params, sizes: dict[str, Any], episodes: Any) -> Params:
    """The parameters at a minimum of the loss on the episodes, searched in units of `sizes`.

    Uses the Levenberg-Marquardt method (Marquardt 1963): the loss is a sum of squares with few
    parameters.
    """
    start, unravel = ravel_pytree({name: params[name] / sizes[name] for name in params})

    def residuals(scaled: jax.Array) -> jax.Array:
        params = {name: rate * sizes[name] for name, rate in unravel(scaled).items()}
        return (learner.predict(params, episodes) - episodes.y)[:, -1]

    def step(carry, _):
        scaled, residual, damping = carry
        jacobian = jax.vmap(lambda one: jax.jvp(residuals, (scaled,), (one,))[1])(eye)
        normal = jnp.matmul(jacobian, jacobian.T, precision="highest")
        moment = jnp.matmul(jacobian, residual, precision="highest")
        # The last gamma changes nothing, and has no curvature.
        damped = normal + damping * jnp.diag(jnp.diagonal(normal) + 1e-6 * jnp.trace(normal))
        moved = scaled - jnp.linalg.solve(damped, moment)
        found = residuals(moved)
        better = (found**2).mean() < (residual**2).mean()  # False if it is NaN
        pick = lambda new, old: jnp.where(better, new, old)
        damping = damping * jnp.where(better, 0.3, 4.0)
        return (pick(moved, scaled), pick(found, residual), damping), None

    eye = jnp.eye(len(start))
    carry = (start, residuals(start), jnp.float32(1e-2))
    (scaled, *_), _ = jax.lax.scan(step, carry, length=ITERATIONS)
    return {name: rate * sizes[name] for name, rate in unravel(scaled).items()}


def construction(
    config: SelfAttentionConfig,
    dim: int,
    examples: int,
    learning_rates: Any,
    gammas: Any = None,
    weights: Any = None,
) -> Params:
    """Weights of linear self-attention whose layers are steps of gradient descent.

    Proposition 1: keys and queries are x, with W_K = W_Q = diag(I, 0); values are the negative
    residual, with W_V = [[0, 0], [w0, -1]]; and P = (rate / examples) I. For GD++ values also hold
    x, which P multiplies by -gamma.

    Args:
      config: a model of linear attention with one head, without features or positions.
      dim: dimension of x; a token is (x, y).
      examples: number of examples of a prompt, without the query.
      learning_rates: one number for each layer, or one for all layers.
      gammas: gammas of GD++, in the form of the rates; None for plain gradient descent.
      weights: w0 `[dim]`; 0 when None. The prediction omits w0.x at the query.

    Returns:
      Parameters of `SelfAttention`, as `Learner.init` returns them.

    Raises:
      ValueError: the model has no construction, or a shared layer has several rates.
    """
    plain = config.softmax == "none" and config.heads == 1 and config.key_size in (None, dim + 1)
    if not plain or config.features or config.positions or config.query_in_context:
        raise ValueError(
            "the construction is for linear attention with one head as wide as a token (x, y), "
            "without features, positions or the query in its context"
        )
    layers = 1 if config.shared else config.layers
    rates = [
        np.ravel(np.asarray(r, np.float32))
        for r in (learning_rates, 0.0 if gammas is None else gammas)
    ]
    if any(len(np.unique(r)) > 1 if config.shared else len(r) not in (1, layers) for r in rates):
        raise ValueError(
            f"{layers} layer{'s' * (layers > 1)} cannot have rates {', '.join(map(str, rates))}"
        )
    eta, gamma = (np.broadcast_to(r if len(r) == layers else r[:1], layers) for r in rates)
    width = dim + 1
    see_x = np.diag([1.0] * dim + [0.0])
    value = np.zeros((width, width))
    value[-1, -1] = -1
    if weights is not None:
        value[:dim, -1] = weights
    as_params = lambda matrix: jnp.asarray(matrix[None], jnp.float32)
    return {
        "layers": {
            layer: {
                "query": as_params(see_x),
                "key": as_params(see_x),
                "value": as_params(value if gammas is None else value + see_x),
                "output": as_params(
                    np.diag([-gamma[layer]] * dim + [eta[layer] / examples])
                    if gammas is not None
                    else np.eye(width) * eta[layer] / examples
                ),
            }
            for layer in range(layers)
        }
    }


def interpolated(params: Params, constructed: Params) -> Params | None:
    """Half trained and half constructed weights (section 3: the average of both).

    The products W_Q W_K^T and W_V P are averaged. Before that the former is divided and the latter
    multiplied by b, the mean diagonal of W_Q W_K^T over the inputs.

    Returns:
      Parameters of the model; None if it has no construction, or b is 0.
    """
    layers = {}
    for index, ours in params["layers"].items():
        theirs = constructed["layers"][index]
        if ours["query"].shape != theirs["query"].shape:
            return None
        score = ours["query"][0] @ ours["key"][0].T
        written = ours["value"][0] @ ours["output"][0]
        beta = jnp.diagonal(score)[:-1].mean()
        if beta == 0:
            return None
        mean_score = (score / beta + theirs["query"][0] @ theirs["key"][0].T) / 2
        mean_written = (written * beta + theirs["value"][0] @ theirs["output"][0]) / 2
        identity = jnp.eye(len(score))
        layers[index] = {
            "query": mean_score[None], "key": identity[None],
            "value": mean_written[None], "output": identity[None],
        }  # fmt: skip
    return {"layers": layers}


def rates_of(params: Params, examples: int) -> dict[str, list[float]]:
    """The learning rate and gamma of GD++ that each layer of trained weights is nearest to.

    Compared with the construction: b, the mean diagonal of W_Q W_K^T over the inputs, times the
    diagonal of W_V P, at the label for the rate, and averaged over the inputs for gamma.

    Args:
      params: of a `SelfAttention` that allows the construction.
      examples: number of examples of a prompt, without the query.
    """
    rates: dict[str, list[float]] = {"gamma": [], "learning_rate": []}
    for layer in params["layers"].values():
        beta = jnp.diagonal(layer["query"][0] @ layer["key"][0].T)[:-1].mean()
        written = jnp.diagonal(layer["value"][0] @ layer["output"][0])
        rates["gamma"].append(-float(beta * written[:-1].mean()))
        rates["learning_rate"].append(-float(beta * written[-1] * examples))
    return rates


def comparable_descents(config: Config, seed: int = 0) -> list[TunedDescent]:
    """Tuned gradient descent of as many steps as the model has layers; then GD++ if more than one.

    Steps share their rates if the model's layers share their weights.
    """
    steps, shared = config.model.layers, getattr(config.model, "shared", False)
    tune = partial(tuned_descent, config, steps, shared=shared, seed=seed)
    return [tune(), tune(plus_plus=True)] if steps > 1 else [tune()]


def mean_query_error(learner: Learner, params: Any) -> float:
    """Mean error at the query over `QUERY_BATCHES * QUERY_PROMPTS` prompts of fresh tasks."""

    def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        episodes = draw_prompts(learner.family, key, QUERY_PROMPTS)
        found, (count, _) = learner.loss_sum(params, episodes)
        return total + found / count.astype(found.dtype), None

    keys = jax.random.split(jax.random.key(1), QUERY_BATCHES)
    total, _ = jax.jit(lambda keys: jax.lax.scan(add, jnp.float32(0), keys))(keys)
    return float(total) / QUERY_BATCHES / learner.family.label_kind.training_measure.scale


def predicts_every_prefix(config: Config) -> bool:
    """Whether the layout predicts each point from the points before it."""
    return not LAYOUTS[config.layout].hides_labels


def query_only(config: Config) -> bool:
    """Whether the layout predicts only one query, at the end of each prompt."""
    return LAYOUTS[config.layout].query_only
