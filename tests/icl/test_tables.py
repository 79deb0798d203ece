"""The prior over tables, and learners that see the examples of a table alone."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from icl.evaluation import draw_prompts, evaluate
from icl.evaluation.baselines.tables import (
    mean_of_examples,
    nearest_example,
    ridge_of_examples,
)
from icl.evaluation.curves import _keys, by_examples, errors_of
from icl.layers.embedders import RowEmbedder
from icl.models import TransformerConfig
from icl.tasks import LAYOUTS, Difficulty, Episode, Rows, ShownClasses, Tables
from icl.tasks.draws import drawn_together
from icl.tasks.rows import standardised
from icl.tasks.tables import MECHANISMS
from icl.training.learner import Learner, Variables
from icl.training.optimizer import make_optimizer
from icl.training.prediction import TOGETHER, Predictor
from icl.training.step import batch_gradient, init_state

from .helpers import tiny, untrained

FAMILY = Tables(points=60, queries=20)
MODEL = TransformerConfig(
    layers=2, heads=2, width=16, embedder="row", embedding_width=12, position_encoding="none",
    examples_only=True,
)  # fmt: skip
COUNT = 600


@functools.cache
def program(target):
    """Draws tables and their tasks from keys, under a difficulty; compiled once for all tests."""
    family = dataclasses.replace(FAMILY, target=target)

    def draw(key, difficulty):
        task_key, key = jax.random.split(key)
        task = family.sample_task(task_key, difficulty)
        return task, family.sample_episode(key, task, difficulty)

    return jax.jit(jax.vmap(draw, in_axes=(0, None)))


FULL = Difficulty(10, 60, 10)
# One mechanism, where it does not matter: each costs a second to compile.
PLAIN = dataclasses.replace(FAMILY, mechanisms=("linear",))


@functools.cache
def drawn(target="class", difficulty=FULL):
    """Tables and their tasks, `[COUNT, ...]`."""
    keys = jax.random.split(jax.random.key(0), COUNT)
    found = program(target)(keys, Difficulty(*map(jnp.int32, difficulty)))
    return jax.tree.map(np.asarray, found)


def test_a_table_shows_its_examples_first_and_all_other_rows_are_queries():
    _, tables = drawn()
    examples = tables.context.sum(axis=1)
    assert (tables.context == (np.arange(60) < examples[:, None])).all()
    assert examples.min() == 8 and examples.max() == 40
    assert not (tables.queries & tables.context).any()
    shown = np.array([np.isin(y, y[of]) for y, of in zip(tables.y, tables.context)])
    assert (tables.queries == (~tables.context & shown)).all()
    assert 0 < (~shown).mean() < 0.05


@pytest.mark.parametrize("target", ["class", "number"])
def test_columns_and_numbers_are_standardised_by_the_examples_alone(target):
    tasks, tables = drawn(target)
    used = ~np.isnan(tables.x).all(axis=1)
    assert set(tasks.columns) == set(range(2, 11))
    assert (used.sum(axis=1) <= tasks.columns).all()
    assert (used.sum(axis=1) == tasks.columns).mean() > 0.9  # others have a constant column
    x = np.where(tables.context[..., None], tables.x, np.nan)
    plain = ~(abs(x) > 4).any(axis=1) & used & ~np.isnan(x).all(axis=1)
    columns = np.moveaxis(x, 1, 2)[plain]  # [columns, rows]
    assert np.allclose(np.nanmean(columns, axis=1), 0, atol=1e-4)
    assert np.allclose(np.nanstd(columns, axis=1), 1, atol=1e-3)
    if target == "number":
        y = np.where(tables.context, tables.y, np.nan)
        whole = ~(abs(y) > 4).any(axis=1)
        assert np.allclose(np.nanmean(y, axis=1)[whole], 0, atol=1e-4)
        assert np.allclose(np.nanstd(y, axis=1)[whole], 1, atol=1e-3)


def test_some_tables_have_missing_values_levels_and_several_classes():
    tasks, tables = drawn()
    used = ~np.isnan(tables.x).all(axis=1, keepdims=True)
    missing = (np.isnan(tables.x) & used).any(axis=(1, 2))
    assert missing.mean() == pytest.approx(0.1, abs=0.05)
    found = np.array([len(np.unique(y)) for y in tables.y])
    assert (found <= tasks.classes).all() and set(tasks.classes) == set(range(2, 11))
    numbers = np.bincount(tables.y.ravel(), minlength=10) / tables.y.size
    assert np.allclose(numbers, 0.1, atol=0.03)  # the number of a class tells nothing
    levels = np.array(
        [len(np.unique(column[~np.isnan(column)])) for x in tables.x for column in x.T]
    )
    assert 0.1 < (levels[levels > 1] <= 10).mean() < 0.6


def forest_error(table):
    x = np.nan_to_num(table.x)
    forest = RandomForestRegressor(20, random_state=0).fit(x[table.context], table.y[table.context])
    return ((forest.predict(x[table.queries]) - table.y[table.queries]) ** 2).mean()


@pytest.mark.parametrize("target", ["class", "number"])
def test_labels_of_every_mechanism_can_be_learned(target):
    tasks, tables = drawn(target)
    targets = np.eye(10, dtype=np.float32)[tables.y] if target == "class" else tables.y[..., None]

    def errors(method):
        found = np.asarray(jax.jit(method)(tables.x, targets, tables.context))
        if target == "class":
            wrong = found.argmax(axis=-1) != tables.y
        else:
            wrong = (found[..., 0] - tables.y) ** 2
        return np.where(tables.queries, wrong, 0).sum(axis=1) / tables.queries.sum(axis=1)

    mean, ridge, nearest = map(errors, (mean_of_examples, ridge_of_examples, nearest_example))
    many = tables.context.sum(axis=1) >= 20
    names = dataclasses.replace(FAMILY, target=target).concepts
    assert set(MECHANISMS) - set(names) == (set() if target == "class" else {"clusters"})
    for index, name in enumerate(names):
        of = many & (tasks.mechanism == index)
        assert of.sum() > 40
        best = min(ridge[of].mean(), nearest[of].mean())
        if name == "trees" and target == "number":
            of_table = lambda i: jax.tree.map(lambda leaf: leaf[i], tables)
            best = np.mean([forest_error(of_table(i)) for i in np.flatnonzero(of)])
        assert best < 0.9 * mean[of].mean(), name
    assert min(ridge.mean(), nearest.mean()) > 0.3 * mean.mean()  # and not all is told


def test_the_shares_of_classes_among_examples_tell_nothing_of_the_queries():
    tasks, tables = drawn()
    clusters = tasks.mechanism == FAMILY.concepts.index("clusters")
    halves = tasks.ranked & ~clusters & (tasks.classes == 2) & (abs(tasks.cuts[:, 0] - 0.5) < 0.01)
    assert halves.sum() > 30
    is_first = (tables.y == tasks.names[:, :1])[halves]
    context = tables.context[halves]
    of = lambda rows: (is_first & rows).sum(axis=1) / rows.sum(axis=1)
    assert np.corrcoef(of(context), of(~context))[0, 1] > -0.4  # below -0.8 if counts were fixed


def test_all_tables_count_alike_in_the_loss():
    _, tables = drawn()
    asked = tables.queries.any(axis=1)
    assert np.allclose(tables.weights.sum(axis=1), asked, atol=1e-5)
    assert (tables.weights[~tables.queries] == 0).all()


def test_mixture_and_looks_of_tables_are_settings():
    family = Tables(mechanisms=("linear", "trees"), shares=(1.0, 3.0), categorical=0.0, missing=0.0)
    draw = jax.jit(jax.vmap(lambda key: family.sample_task(key, family.full)))
    tasks = draw(jax.random.split(jax.random.key(0), COUNT))
    assert float(tasks.mechanism.mean()) == pytest.approx(0.75, abs=0.06)
    assert int(tasks.levels.max()) == 0 and float(tasks.missing.max()) == 0
    assert float((tasks.classes == 2).mean()) == pytest.approx(0.404, abs=0.06)


def test_the_gradient_does_not_depend_on_the_size_of_microbatches():
    task = dataclasses.replace(PLAIN, points=12, queries=4, columns=2, classes=2, fewest_examples=2)
    config = tiny(task=task, model=MODEL, layout="masked", training_batch_size=4)
    config = config.replace(model_layers=1)
    state, found = init_state(Learner(config), make_optimizer(config.optimizer, 10)), []
    for size in (4, 2):
        learner = Learner(config.replace(training_microbatch_size=size))
        loss, slopes, _ = jax.jit(lambda s, learner=learner: batch_gradient(learner, s))(state)
        found.append((loss, slopes))
    for one, other in zip(*map(jax.tree.leaves, found)):
        assert np.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_curricula_limit_columns_classes_and_rows():
    _, tables = drawn("class", Difficulty(3, 40, 2))
    used = ~np.isnan(tables.x).all(axis=1)
    assert used.sum(axis=1).max() == 3
    roles = tables.queries | tables.context
    assert max(len(np.unique(y[of])) for y, of in zip(tables.y, roles)) == 2
    assert not roles[:, 40:].any() and roles[:, 39].mean() > 0.9
    assert tables.context.sum(axis=1).max() == 20


def test_evaluation_draws_powers_of_two_and_errors_are_by_number_of_examples():
    family = PLAIN.evaluation
    assert family.examples == (8, 16, 32)
    learner = Learner(tiny(task=family, model=MODEL, layout="masked"))
    tables = draw_prompts(PLAIN, jax.random.key(2), 64)
    numbers = np.asarray(tables.context.sum(axis=1))
    assert set(numbers) == {8, 16, 32}
    right = np.eye(10)[np.asarray(tables.y)]
    right[numbers == 16] = 1 / np.arange(1, 11)  # always class 0
    examples, errors = by_examples(learner, errors_of(learner, right, tables), tables)
    assert examples.tolist() == [8, 16, 32]
    of = {number: errors[numbers == number, at] for at, number in enumerate(examples)}
    assert (of[8] == 0).all() and (of[32] == 0).all()
    asked = np.asarray(tables.queries)[numbers == 16]
    wrong = (np.asarray(tables.y)[numbers == 16] != 0) & asked
    assert of[16] == pytest.approx(wrong.sum(axis=1) / asked.sum(axis=1))
    assert np.isnan(errors[numbers == 8, 1]).all()
    few = dataclasses.replace(FAMILY, fewest_examples=39)
    assert few.evaluation.examples == (40,)


def test_errors_are_by_number_of_examples_even_if_there_are_as_many_numbers_as_points():
    task = Tables(points=3, queries=1, columns=2, classes=2, fewest_examples=1)
    learner = Learner(tiny(task=task, model=MODEL, layout="masked"))
    context = np.array([[1, 0, 0], [1, 1, 0]], bool)
    tables = Episode(np.zeros((2, 3, 2)), np.zeros((2, 3), int), ~context, context)
    errors = np.array([[np.nan, 1, 3], [np.nan, np.nan, 5]])
    examples, found = by_examples(learner, errors, tables)
    assert examples.tolist() == [1, 2]
    np.testing.assert_array_equal(found, [[2, np.nan], [np.nan, 5]])


def test_a_run_is_evaluated_beside_estimators_of_its_examples(tmp_path):
    run = untrained(tmp_path / "run", tiny(task=PLAIN, model=MODEL, layout="masked"))
    found = evaluate(run, prompts=24, resamples=10)
    assert found.examples.tolist() == [8, 16, 32]
    others = ["ridge", "1-nearest neighbour", "mean of the examples"]
    assert list(found.curves) == ["transformer", *others]
    tables = draw_prompts(PLAIN, _keys(0)[0], 24)
    x, y, context = (np.asarray(a) for a in (tables.x, tables.y, tables.context))
    wrong = []
    for i in np.flatnonzero(context.sum(axis=1) == 32):
        shown, asked = np.nan_to_num(x[i][context[i]]), np.asarray(tables.queries[i])
        nearest = KNeighborsClassifier(1).fit(shown, y[i][context[i]])
        wrong.append((nearest.predict(np.nan_to_num(x[i][asked])) != y[i][asked]).mean())
    assert found.curves[others[1]].mean[2] == pytest.approx(np.mean(wrong), abs=0.02)


def test_standardised_agrees_between_numpy_and_jax_and_knows_odd_columns():
    x = np.random.default_rng(0).normal(3, 2, (20, 5)).astype(np.float32)
    x[:, 1] = 7.1  # constant
    x[:, 2] = np.nan
    x[3, 0], x[15, 0] = np.nan, 1e6
    context = np.arange(20) < 12
    found = standardised(np, x, context)
    assert np.allclose(found, standardised(jnp, x, context), equal_nan=True, atol=1e-5)
    assert np.isnan(found[:, 1:3]).all() and np.isnan(found[3, 0])
    known = np.delete(x[:12, 0], 3)
    assert found[0, 0] == pytest.approx((x[0, 0] - known.mean()) / known.std(), rel=1e-4)
    far = (1e6 - known.mean()) / known.std()
    assert found[15, 0] == pytest.approx(4 + np.log(far / 4), rel=1e-4)


def test_estimators_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 4)), rng.normal(size=(2, 30, 1))
    context = np.arange(30) < np.array([[11], [20]])
    with jax.enable_x64(True):
        ridge = np.asarray(ridge_of_examples(x, y, context, penalty=2.0))
        nearest = np.asarray(nearest_example(x, y, context))
    for i, count in enumerate((11, 20)):
        shown = x[i, :count], y[i, :count, 0]
        mean = shown[1].mean()
        ours = Ridge(2.0, fit_intercept=False).fit(shown[0], shown[1] - mean)
        assert ridge[i, :, 0] == pytest.approx(ours.predict(x[i]) + mean)
        assert nearest[i, :, 0] == pytest.approx(KNeighborsRegressor(1).fit(*shown).predict(x[i]))


def test_classes_that_no_example_has_get_no_probability():
    kind = ShownClasses(4)
    y, context = jnp.array([1, 3, 1, 0, 2]), jnp.arange(5) < 3
    outputs = jnp.ones((2, 4))
    found = kind.prediction(kind.restricted(outputs, y, context))
    assert found.tolist() == [[0, 0.5, 0, 0.5]] * 2
    nothing = kind.prediction(kind.restricted(outputs, y, context & False))
    assert np.allclose(nothing, 0.25)


@functools.cache
def learner_of_tables(**changes):
    model = dataclasses.replace(MODEL, **changes)
    learner = Learner(tiny(task=FAMILY, model=model, layout="masked"))
    grown = lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf
    return learner, jax.tree.map(grown, jax.jit(learner.init)(jax.random.key(0)).params)


def some(tables, count=6):
    return jax.tree.map(lambda a: jnp.asarray(a[:count]), tables)


def test_a_prediction_depends_on_the_examples_and_its_own_row_alone():
    learner, params = learner_of_tables()
    tables = some(drawn()[1])
    predict = jax.jit(learner.predict)
    found = np.asarray(predict(params, tables))
    reordered = np.asarray(tables.context).copy()
    order = np.stack([np.r_[np.arange(n)[::-1], n:60] for n in reordered.sum(axis=1)])
    turned = jax.tree.map(lambda a: jnp.asarray(np.stack([b[o] for b, o in zip(a, order)])), tables)
    last = np.asarray(predict(params, turned))
    assert np.allclose(found[:, 40:], last[:, 40:], atol=1e-5)
    # Other queries, and rows that are padding, may hold anything.
    x = tables.x.at[:, 41:].set(jnp.nan)
    assert np.allclose(predict(params, tables._replace(x=x))[:, 40], found[:, 40], atol=1e-6)
    x = tables.x.at[:, 0, 0].add(1.0)
    assert abs(predict(params, tables._replace(x=x))[:, 40] - found[:, 40]).max() > 1e-4


def test_gradients_are_finite_where_values_are_missing():
    learner, params = learner_of_tables()
    tables = some(drawn()[1])
    loss = lambda params: learner.loss_sum(Variables(params, {}, {}), tables)[0]
    value, slopes = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_all_queries_of_a_prompt_are_predicted_in_one_pass(positions):
    learner, params = learner_of_tables(position_encoding=positions)
    tables = some(drawn()[1], 3)
    rng = np.random.default_rng(0)
    asked = rng.normal(size=(3, TOGETHER + 5, 10)).astype(np.float32)
    x, y = np.asarray(tables.x)[:, :8], np.asarray(tables.y)[:, :8]
    predictor, predict = Predictor(learner, params), jax.jit(learner.predict)
    found = predictor(x, y, asked)
    assert found.shape == (3, TOGETHER + 5, 10)
    at = [0, 7, 19, TOGETHER - 1, TOGETHER + 4] if positions == "none" else [0, 20, 40]
    for query in at:  # each alone, as the first query
        alone = np.full((3, 60, 10), np.nan, np.float32)
        alone[:, :8], alone[:, 40] = x, asked[:, query]
        labels = np.zeros((3, 60), np.int32)
        labels[:, :8] = y
        position = np.broadcast_to(np.arange(60), (3, 60))
        episodes = Episode(alone, labels, position >= 40, position < 8)
        expected = np.asarray(predict(params, episodes))[:, 40]
        assert np.allclose(found[:, query], expected, atol=1e-5)
    assert np.allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert np.allclose(predictor(x[0], y[0], asked[0, :3]), found[0, :3], atol=1e-5)
    assert predictor(x, y, asked[:, :0]).shape == (3, 0, 10)
    assert np.allclose(predictor(x[:, :0], y[:, :0], asked[:, :2]), 0.1)
    assert np.allclose(pickle.loads(pickle.dumps(predictor))(x, y, asked[:, :3]), found[:, :3])
    with pytest.raises(ValueError, match="at most 40 examples, got 41"):
        predictor(np.zeros((41, 10)), np.zeros(41, int), asked[0])


def test_rows_of_tables_need_an_embedder_that_knows_missing_values():
    with pytest.raises(ValueError, match="rows cannot be read without an embedder: .* to row"):
        tiny(task=FAMILY, model=dataclasses.replace(MODEL, embedder=None), layout="masked")
    with pytest.raises(ValueError, match="set layout to masked"):
        Learner(tiny(model=dataclasses.replace(MODEL, embedder=None), layout="concatenated"))
    Rows(2).check(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="NaN where a value is missing"):
        Rows(2).check(np.array([[0.0, np.inf]]))


def test_an_embedded_row_is_as_large_with_few_columns_as_with_many():
    embedder = RowEmbedder(Rows(8), 4, rngs=nnx.Rngs(0))
    weights = embedder.linear.kernel[...][:8]
    x = np.full((1, 8), np.nan, np.float32)
    empty = embedder(jnp.asarray(x))
    assert np.isfinite(empty).all()
    x[0, :2] = 1.0, -2.0
    marks = jnp.asarray(np.isnan(x), jnp.float32) @ embedder.linear.kernel[...][8:16]
    share = 0.25 * embedder.linear.kernel[...][16][None]
    expected = 2 * (weights[0] - 2 * weights[1])[None] + marks + share
    assert np.allclose(embedder(jnp.asarray(x)), expected, atol=1e-5)


def test_draws_together_have_their_distributions():
    def build(draws):
        return (
            draws.normal(2000), draws.uniform(-1, 3, 2000), draws.integer(2, 5, 2000),
            draws.choice(jnp.array([0.0, 3.0, 1.0, 0.0]), 2000), draws.chance(0.3, 2000),
            draws.permutation(3, 500),
        )  # fmt: skip

    normal, uniform, integer, choice, chance, order = jax.tree.map(
        np.asarray, jax.jit(lambda key: drawn_together(key, build))(jax.random.key(0))
    )
    assert abs(normal.mean()) < 0.1 and normal.std() == pytest.approx(1, abs=0.06)
    assert -1 <= uniform.min() < -0.95 and 2.95 < uniform.max() < 3
    assert np.bincount(integer).tolist()[:2] == [0, 0]
    assert np.allclose(np.bincount(integer)[2:] / 2000, 1 / 3, atol=0.05)
    assert np.allclose(np.bincount(choice, minlength=4) / 2000, [0, 0.75, 0.25, 0], atol=0.04)
    assert chance.mean() == pytest.approx(0.3, abs=0.04)
    assert (np.sort(order, axis=1) == np.arange(3)).all()
    assert len(np.unique(order, axis=0)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mechanisms=("magic",)), "no mechanism 'magic'; there are causal"),
        (dict(shares=(1.0,)), "must be 5 numbers"),
        (dict(target="text"), "class or number"),
        (dict(target="number", mechanisms=("clusters",)), "have classes and no numbers"),
        (dict(examples=(50,)), "task.examples"),
        (dict(fewest_examples=41), "task.fewest_examples"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FAMILY, **changes)


def test_tables_have_no_layout_that_shows_labels_of_queries():
    for name in LAYOUTS:
        if name != "masked":
            with pytest.raises(ValueError, match="layout"):
                tiny(task=FAMILY, model=MODEL, layout=name)
