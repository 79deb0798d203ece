"""The estimators that learners are compared with, for each task family.

A comparator predicts from every prefix of a prompt at once, as a learner does.
"""

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..report import spread
from ..tasks import (
    AssociativeRecall,
    BasisRegression,
    Classes,
    ClassSequences,
    DecisionTree,
    Episode,
    FunctionFamily,
    LinearClassification,
    LinearRegression,
    ManyOutlierRegression,
    MarkovChains,
    MixedRegression,
    Mixture,
    OrthogonalOutlierRegression,
    Parity,
    QuadraticRegression,
    RelabelledClasses,
    ReLUNetwork,
    RepeatedSequences,
    SparseLinearRegression,
    Symbols,
    Tables,
    TaskFamily,
    VectorRetrieval,
    Vectors,
)
from ..tasks.mixture import label_root
from . import baselines
from .baselines import symbols, tables
from .baselines.known_tasks import SEEN, predict_from
from .baselines.lasso import PENALTIES
from .result import MAX_COLUMNS

# Number of prompts for estimators that fit a model to each prompt and position. They predict only
# at the positions that a table shows.
FITTED_PROMPTS = 64
SGD_PROMPTS = 256
FITTED_STEPS = 5000  # steps of Adam
COPYING = 0.01  # concentration of bigrams that trust a single occurrence
BASES = "Bayes mixture of ridges"
LEAST_NOISE = 1e-4  # standard deviation, so that posteriors exist
LITTLE_SPREAD = 0.2  # of relabelled classes
MOST_CLASSES = 100  # of a classifier that is fitted to each prompt


@dataclasses.dataclass(frozen=True)
class Comparator:
    """An estimator, or several that are computed together.

    Attributes:
      names: names of the estimators.
      predict: maps a batch of episodes to predictions, `[names, B, points, *prediction_shape]`,
        without the first axis if there is one name; NaN for predictions that it skips.
      prompts: largest number of prompts to predict; None for all.
      on_host: whether `predict` takes NumPy arrays and cannot be compiled.
      double: whether `predict` computes in float64.
      reads_roles: whether `predict` learns from the examples of a prompt, and not from all points
        before a query.
    """

    names: tuple[str, ...]
    predict: Callable[[Episode], jax.Array | np.ndarray]
    prompts: int | None = None
    on_host: bool = False
    double: bool = True
    reads_roles: bool = False


def one_query_at_a_time(comparator: Comparator, queries: int) -> Comparator:
    """A comparator of prompts whose last points are that number of queries, and no examples.

    It predicts each query from the examples alone.
    """
    if comparator.reads_roles:
        return comparator

    def predict(episode: Episode) -> Any:
        shown = episode.queries.shape[1] - queries
        points = 1 if len(comparator.names) == 1 else 2  # axis of the predictions
        xp = np if comparator.on_host else jnp

        def at(query: Any) -> Any:
            chosen = xp.append(xp.arange(shown), shown + query)
            found = comparator.predict(jax.tree.map(lambda a: a[:, chosen], episode))
            return xp.take(found, shown, axis=points)

        # One query after the other, since an estimator predicts at every point of a prompt.
        several = range(queries)
        each = np.stack(list(map(at, several))) if xp is np else jax.lax.map(at, jnp.array(several))
        last = xp.moveaxis(each, 0, points)
        missing = [(shown, 0) if axis == points else (0, 0) for axis in range(last.ndim)]
        return xp.pad(last, missing, constant_values=np.nan)

    return dataclasses.replace(comparator, predict=predict)


def last_point(predictions: Any, axis: int) -> Any:
    """Predictions of the last point alone, whose axis of points stays."""
    return predictions[(..., slice(-1, None), *[slice(None)] * (-1 - axis))]


def last_alone(comparator: Comparator) -> Comparator:
    """A comparator of the last point alone, for families whose only query is the last point.

    Predictions of every point would take gigabytes if there are thousands of classes.
    """
    points = 1 if len(comparator.names) == 1 else 2  # axis of the predictions

    def predict(episode: Episode) -> Any:
        found = comparator.predict(episode)
        return last_point(found, points - found.ndim)

    return dataclasses.replace(comparator, predict=predict)


def comparators(
    family: TaskFamily, positions: Sequence[int] | None = None
) -> tuple[list[Comparator], str | None]:
    """The comparators of a family, and the name of the optimal comparator, or None.

    They are the comparators of Garg et al. 2022 (section 2 and appendix A.3), the Bayes-optimal
    predictor if it is known and, for linear regression, one pass of online gradient descent.
    Boosting is included if XGBoost is installed. Labels that are classes are predicted by the
    nearest neighbour, ridge regression, SGD (Kirsch et al. 2022, table 2) and class frequencies.

    Args:
      family: the family.
      positions: numbers of examples at which a model is fitted to each prompt, for estimators that
        do so; None for those that a table shows.
    """
    at = _positions(family) if positions is None else list(positions)
    noise, task_scale = (getattr(family, name, 0.0) for name in ("noise", "task_scale"))
    penalty = (noise / task_scale) ** 2 if noise and task_scale else 1.0
    squares = _one("least squares", baselines.least_squares)
    ridge = _one("ridge", partial(baselines.ridge, penalty=penalty))
    averaging = _one("averaging", baselines.averaging)
    neighbours = _one("3-nearest neighbours", baselines.nearest_neighbours)
    zero = _one("zero", baselines.zero)
    match family:
        case Mixture() if len(family.families) == 1:
            [member] = family.members
            found, optimal = comparators(member, at)
            return [_on_labels_of(one, label_root(member)) for one in found], optimal
        case ManyOutlierRegression() | OrthogonalOutlierRegression():
            inliers = Comparator(("least squares on inliers",), _on_inliers)
            return [inliers, squares, neighbours, zero], None if family.noise else inliers.names[0]
        case BasisRegression():
            return [*_in_bases(family), _lasso(), ridge, squares, zero], BASES
        case MixedRegression():
            return [_lasso(), ridge, squares, neighbours, zero], None
        case SparseLinearRegression():
            return [squares, _lasso(), ridge, averaging, zero], None
        case LinearRegression():
            optimal = "ridge" if family.noise else "least squares"
            optimal = None if family.random_labels else optimal
            online = _one("least mean squares", baselines.least_mean_squares)
            return [squares, ridge, online, averaging, neighbours, zero], optimal
        case QuadraticRegression():
            on_squares = _one(
                "least squares on squares", lambda x, y: baselines.least_squares(x**2, y)
            )
            return [on_squares, squares, neighbours, zero], on_squares.names[0]
        case ReLUNetwork():
            fitted = _network(at)
            return [squares, *fitted, neighbours, zero], None
        case DecisionTree():
            trees = [
                _one(f"greedy tree, depth {depth}", partial(baselines.greedy_tree, depth=depth))
                for depth in sorted({2, family.depth})
            ]
            signs = _one(
                f"greedy tree on signs, depth {family.depth}",
                lambda x, y: baselines.greedy_tree(jnp.sign(x), y, family.depth),
            )
            return [*trees, signs, *_boosting(at), neighbours, squares, zero], None
        case LinearClassification():
            return [squares, averaging, neighbours, zero], None
        case Parity():
            bayes = Comparator(("consistent parities",), partial(_parities, family.relevant))
            return [bayes, neighbours, squares, zero], bayes.names[0]
        case VectorRetrieval():
            nearest = Comparator(("value of the nearest key",), _nearest_value)
            mean = Comparator(("mean of the values",), _mean_value)
            nothing = Comparator(("zero",), lambda e: jnp.zeros_like(e.y))
            return [nearest, mean, nothing], nearest.names[0]
        case MarkovChains():
            counts = partial(symbols.bigrams, concentration=family.concentration)
            bayes = _symbols("bigrams", family, counts)
            single = partial(symbols.unigrams, concentration=family.concentration)
            return [bayes, _symbols("unigrams", family, single), _uniform(family)], bayes.names[0]
        case RepeatedSequences():
            lengths = (family.shortest, family.longest)
            bayes = _symbols("Bayes over periods", family, partial(symbols.periods, *lengths))
            copied = partial(symbols.bigrams, concentration=COPYING)
            single = partial(symbols.unigrams, concentration=1.0)
            return [
                bayes,
                _symbols("symbol after the last occurrences", family, copied),
                _symbols("unigrams", family, single),
                _uniform(family),
            ], bayes.names[0]
        case AssociativeRecall():
            recall = _symbols("value of the key", family, partial(symbols.recall, family.pairs))
            return [recall, _uniform(family)], recall.names[0]
        case ClassSequences():
            return [
                *_classifiers(family, at, _labels_shown(family)),
                _frequencies(family.label_kind),
            ], None
        case RelabelledClasses():
            known = [
                Comparator(
                    (f"known tasks, from {seen}",),
                    partial(predict_from, seen, family),
                    double=False,
                )
                for seen in SEEN
            ]
            # With little noise, the nearest mean is nearly always the class of an item.
            exact = not family.shuffled_labels and family.spread <= LITTLE_SPREAD
            optimal = known[-1].names[0] if exact else None
            return [*known, *_classifiers(family, at)], optimal
        case Tables():
            methods = {
                "ridge": tables.ridge_of_examples,
                "1-nearest neighbour": tables.nearest_example,
                "mean of the examples": tables.mean_of_examples,
            }
            return [_of_table(name, family, method) for name, method in methods.items()], None
        case _ if isinstance(family.label_kind, Classes):
            return [*_classifiers(family, at), _frequencies(family.label_kind)], None
        case FunctionFamily() if family.label_kind.shape == ():
            return [squares, ridge, averaging, neighbours, zero], None
        case _:
            return [], None


def _on_labels_of(comparator: Comparator, root: float) -> Comparator:
    """A comparator of a family, for labels that are divided by a number."""
    if root == 1:
        return comparator
    predict = lambda e: comparator.predict(e._replace(y=e.y * root)) / root
    return dataclasses.replace(comparator, predict=predict)


def _one(name: str, baseline: baselines.Baseline) -> Comparator:
    return Comparator((name,), lambda e: baseline(e.x, e.y))


def _of_table(name: str, family: Tables, method: Callable[..., jax.Array]) -> Comparator:
    """An estimator of numbers, or of classes by their one-hot vectors, from a prompt's examples."""
    kind = family.label_kind

    def predict(episode: Episode) -> jax.Array:
        y = episode.y[..., None]
        if kind.outputs is not None:
            y = jax.nn.one_hot(episode.y, kind.outputs, dtype=episode.x.dtype)
        found = method(episode.x, y, episode.context & ~episode.queries)
        return found if kind.outputs is not None else found[..., 0]

    return Comparator((name,), predict, reads_roles=True)


def _symbols(name: str, family: Any, predict: Callable[[jax.Array, int], jax.Array]) -> Comparator:
    """An estimator of symbols from the symbols of a prompt, `[B, points]`, and their number."""
    number = family.vocabulary
    return Comparator((name,), lambda e: predict(e.x, number), double=False)


def _uniform(family: Any) -> Comparator:
    return _symbols("uniform", family, lambda x, n: jnp.full((*x.shape, n), 1 / n))


def _frequencies(labels: Classes) -> Comparator:
    """Class frequencies among the labels before each point, with add-one smoothing."""

    def predict(episode: Episode) -> jax.Array:
        shown = jnp.where(episode.context[..., None], jax.nn.one_hot(episode.y, labels.number), 0)
        counts = 1 + jnp.cumsum(shown, axis=1) - shown
        return counts / counts.sum(axis=-1, keepdims=True)

    return Comparator(("class frequencies",), predict)


def _classifiers(
    family: TaskFamily, positions: list[int], shown: int | None = None
) -> list[Comparator]:
    """Learners of classes that start anew with each prompt; none for inputs that are symbols.

    Args:
      family: the family, whose labels are classes.
      positions: numbers of examples after which a network is fitted.
      shown: number of labels that prompts show, the first ones; None for all. A classifier of more
        than `MOST_CLASSES` is left out, unless it compares inputs alone.
    """
    kind, number = family.input_kind, family.label_kind.outputs
    if isinstance(kind, Symbols) or number is None:
        return []
    x = (lambda e: e.x) if isinstance(kind, Vectors) else _standardised
    methods: dict[str, tuple[Any, int | None]] = {
        "1-nearest neighbour": (baselines.nearest_class, None)
    }
    if (shown or number) <= MOST_CLASSES:
        methods["ridge"] = partial(baselines.ridge_class, penalty=float(np.prod(kind.shape))), None
        methods["SGD"] = partial(baselines.sgd_class, positions=positions), SGD_PROMPTS
    others = ((0, 0), (0, 0), (0, number - (shown or number)))
    predict = lambda f, e: jnp.pad(f(x(e), e.y, shown or number), others)
    return [
        Comparator((name,), partial(predict, f), prompts, double=False)
        for name, (f, prompts) in methods.items()
    ]


def _labels_shown(family: ClassSequences) -> int | None:
    """Number of labels of few-shot sequences, which are the first ones; None for others."""
    return family.ways if family.sequences.startswith("fewshot") else None


def _standardised(episode: Episode) -> jax.Array:
    """Flattened images of each prompt with mean 0 and variance 1, `[B, P, features]`."""
    flat = episode.x.reshape(*episode.x.shape[:2], -1).astype(jnp.float32)
    mean, std = (f(flat, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
    return (flat - mean) / jnp.maximum(std, 1e-6)


def _in_bases(family: BasisRegression) -> list[Comparator]:
    """Regressions that know the bases; labels without noise are given a little."""
    options = dict(coordinates=family.coordinates, variance=max(family.noise, LEAST_NOISE) ** 2)
    return [
        _one(BASES, partial(baselines.mixture_of_ridges, **options)),
        _one("ridge in the prompt's basis", partial(baselines.ridge_in_basis, **options)),
    ]


def _lasso() -> Comparator:
    names = tuple(f"lasso {penalty:g}" for penalty in PENALTIES)
    return Comparator(names, lambda e: baselines.lasso_path(e.x, e.y, PENALTIES))


def _positions(family: TaskFamily) -> list[int]:
    """The numbers of examples of the fits; see `one_query_at_a_time` for hidden queries."""
    if family.hidden_queries:
        return [family.points - family.hidden_queries]
    if family.only_last_is_query:
        return [family.points - 1]
    return spread(family.points, MAX_COLUMNS).tolist()


def _network(positions: list[int]) -> list[Comparator]:
    fit = partial(baselines.two_layer_network, positions=positions, steps=FITTED_STEPS)
    return [
        Comparator(
            ("two-layer network by Adam",),
            lambda e: fit(e.x, e.y),
            prompts=FITTED_PROMPTS,
            double=False,
        )
    ]


def _boosting(positions: list[int]) -> list[Comparator]:
    if importlib.util.find_spec("xgboost") is None:
        return []
    fit = partial(baselines.boosting, positions=positions)
    sides = {"boosting": lambda x: x, "boosting on signs": np.sign}
    return [
        Comparator(
            (name,),
            lambda e, side=side: fit(side(np.asarray(e.x)), np.asarray(e.y)),
            prompts=FITTED_PROMPTS,
            on_host=True,
        )
        for name, side in sides.items()
    ]


def _on_inliers(episode: Episode) -> jax.Array:
    """Least squares on the inliers; the rows of outliers are zeroed and do not affect the fit."""
    kept = jnp.where(episode.queries[..., None], episode.x, 0)
    return baselines.least_squares(kept, jnp.where(episode.queries, episode.y, 0), query=episode.x)


def _parities(relevant: int, episode: Episode) -> jax.Array:
    """The posterior mean: the mean of the parities that agree with every earlier point."""
    subsets: Sequence[tuple[int, ...]] = list(
        itertools.combinations(range(episode.x.shape[-1]), relevant)
    )
    parities = jnp.stack([episode.x[..., list(s)].prod(axis=-1) for s in subsets], axis=-1)
    wrong = jnp.cumsum(parities != episode.y[..., None], axis=1)
    wrong_before = jnp.pad(wrong[:, :-1], ((0, 0), (1, 0), (0, 0)))
    agree = wrong_before == 0
    agreeing = agree.sum(axis=-1, dtype=parities.dtype)
    return jnp.where(agree, parities, 0).sum(axis=-1) / jnp.maximum(agreeing, 1)


def _earlier(points: int) -> jax.Array:
    return jnp.tril(jnp.ones((points, points), bool), -1)


def _nearest_value(episode: Episode) -> jax.Array:
    closeness = jnp.einsum("bid,bjd->bij", episode.x, episode.x, precision="highest")
    closeness = jnp.where(_earlier(episode.x.shape[1]), closeness, -jnp.inf)
    nearest = jnp.argmax(closeness, axis=-1)
    values = jnp.take_along_axis(episode.y, nearest[..., None], axis=1)
    return values.at[:, 0].set(0)


def _mean_value(episode: Episode) -> jax.Array:
    counts = jnp.maximum(jnp.arange(episode.y.shape[1], dtype=episode.y.dtype), 1)
    return (jnp.cumsum(episode.y, axis=1) - episode.y) / counts[None, :, None]
