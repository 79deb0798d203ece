"""The estimators: scikit-learn's own checks, what members are shown, and limits of a model."""

import contextlib
import dataclasses
import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris

import icl
from icl.sklearn import InContextClassifier, InContextRegressor
from icl.tasks.rows import standardised
from icl.training import Run, RunError
from icl.training.step import variable_items

from . import table_stand_in as stand_in
from .helpers import tiny, untrained

CLASSES, NUMBERS = stand_in.CLASSES, stand_in.NUMBERS
X, Y = load_iris(return_X_y=True)


@pytest.mark.parametrize(
    "estimator", [InContextClassifier(CLASSES, ensemble=4), InContextRegressor(NUMBERS, ensemble=4)]
)
def test_scikit_learns_checks_pass(estimator):
    assert stand_in.failed_checks(estimator) == {}


class Seen(list):
    """A stand-in that keeps what it was shown."""

    def model(self, like=CLASSES, **changes):
        def predict(*shown):
            self.append(shown)
            return like.predict(*shown)

        return dataclasses.replace(like, predict=predict, **changes)


def table(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_members_see_orders_of_columns_and_classes_which_the_average_undoes():
    seen, names = Seen(), np.array(["a", "b", "c"])
    context, queries = X[::5], X[1::5]
    model = InContextClassifier(seen.model(), ensemble=6, ranks="none")
    found = model.fit(context, names[Y[::5]]).predict_proba(queries)
    both = standardised(np, np.concatenate([context, queries]), np.arange(60) < 30)
    wanted = stand_in.classes(both[None, :30], Y[None, ::5], both[None, 30:])[0, :, :3]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (model.predict(queries) == names[wanted.argmax(axis=1)]).all()
    [(x, y, asked)] = seen[:1]
    assert x.shape == (6, 30, 10) and y.shape == (6, 30) and asked.shape == (6, 30, 10)
    assert x.dtype == asked.dtype == np.float32 and y.dtype == np.int32
    assert np.isnan(x[:, :, 4:]).all() and not np.isnan(x[:, :, :4]).any()
    assert len(np.unique(x.sum(axis=1)[:, :4].round(3), axis=0)) == 1  # standardised all
    orders = {tuple(np.abs(member[:, :4]).max(axis=0).round(3)) for member in x}
    assert len(orders) > 2
    first = {tuple(dict.fromkeys(labels)) for labels in y}
    assert len(first) > 2


def test_logits_are_averaged_if_asked():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)

    def predict(x, y, asked):
        found = np.zeros((*asked.shape[:2], 10), np.float32)
        for member, of_member in enumerate(probabilities):
            # The least x is of class a, the largest of b, whatever numbers the member gives them.
            numbers = y[member, x[member, :, 0].argsort()]
            found[member][:, numbers] = of_member
        return found

    x, y = np.array([[0.0], [1.0]]), ["a", "b"]
    found = {
        average: InContextClassifier(
            dataclasses.replace(CLASSES, predict=predict), ensemble=2, average=average
        ).fit(x, y).predict_proba(x)[0]
        for average in ("probabilities", "logits")
    }  # fmt: skip
    np.testing.assert_allclose(found["probabilities"], [0.7, 0.3], atol=1e-6)
    np.testing.assert_allclose(found["logits"], [0.75, 0.25], atol=1e-6)


def test_ranks_forget_the_scale_of_columns():
    x, y = table(40, 3), np.arange(40) % 2
    shown = {}
    for ranks in ("none", "half", "all"):
        for name, values in (("x", x), ("exp", np.exp(3 * x))):
            seen = Seen()
            InContextClassifier(seen.model(), ensemble=2, ranks=ranks).fit(values, y).predict(
                values
            )
            shown[ranks, name] = seen[0][0]
    same = lambda ranks: np.isclose(
        shown[ranks, "x"], shown[ranks, "exp"], atol=1e-4, equal_nan=True
    ).all(axis=(1, 2))
    assert same("all").tolist() == [True, True] and same("none").tolist() == [False, False]
    assert same("half").tolist() == [False, True]
    # The median row of a column has score 0, and tails are those of 40 normal numbers.
    assert 2.0 < np.nanmax(shown["all", "exp"]) < 2.6


def test_tables_with_more_columns_show_each_member_some_of_them():
    x = np.round(table(60, 30), 6)
    y = (x[:, 17] > 0).astype(int)
    for best, has_it in (("none", 10 / 30), ("half", (1 + 10 / 30) / 2), ("all", 1.0)):
        seen = Seen()
        model = InContextClassifier(seen.model(), ensemble=60, best_columns=best, ranks="none")
        model.fit(x, y).predict(x[:1])
        context = seen[0][0]
        assert not np.isnan(context).any()
        told = standardised(np, x, np.ones(60, bool))[:, 17].astype(np.float32)
        rows = [member.rows for member in model._members]
        found = [
            np.isclose(c, told[r, None], atol=1e-5).all(axis=0).any() for c, r in zip(context, rows)
        ]
        assert abs(np.mean(found) - has_it) < 0.2, best
        if best == "none":
            assert len({tuple(sorted(member.columns)) for member in model._members}) > 50
    # Constant columns take no place.
    constant, seen = np.concatenate([x[:, :10], np.ones((60, 30))], axis=1), Seen()
    InContextClassifier(seen.model(), best_columns="half").fit(constant, y).predict(constant)
    assert not np.isnan(seen[0][0]).any()
    # Labels may be numbers; a column may be constant or have missing values.
    x[:, 3], x[::7, 17] = 1.0, np.nan
    regressor = InContextRegressor(NUMBERS, best_columns="all").fit(x, 2.5 * y)
    assert all(17 in member.columns for member in regressor._members)


def test_an_outlier_that_a_member_does_not_see_does_not_hide_the_column():
    x, y, seen = table(400, 2)[:, :1], np.arange(400) % 2, Seen()
    x[0] = 1e6
    InContextClassifier(seen.model(rows=40), ranks="none").fit(x, y).predict(x[1:3])
    assert not np.isnan(seen[0][0][:, :, 0]).any()


def test_one_class_with_many_columns_is_predicted():
    x = table(20, 30)
    assert InContextClassifier(CLASSES).fit(x, np.ones(20)).predict(x[:3]).tolist() == [1, 1, 1]


def test_tables_with_more_rows_show_each_member_a_stratified_part():
    y = np.array([0] * 300 + [1] * 99 + [2])
    x, seen = table(400, 2), Seen()
    model = InContextClassifier(seen.model(rows=40), ensemble=5)
    model.fit(x, y).predict(x[:3])
    labels = seen[0][1]
    assert labels.shape == (5, 40)
    for member, shown in zip(model._members, labels):
        counts = np.bincount(shown, minlength=3)[member.classes]
        assert counts[2] == 1 and abs(counts[0] - 30) <= 1
    assert len({tuple(sorted(member.rows)) for member in model._members}) == 5
    refuses = InContextClassifier(CLASSES, subsample=False)
    with pytest.raises(ValueError, match="400 training rows are more than the 64.*subsample=True"):
        refuses.fit(x, y)
    assert refuses.fit(x[-64:], y[-64:]).predict(x[:3]).shape == (3,)
    regressor = InContextRegressor(NUMBERS).fit(x, x[:, 0])
    assert {len(member.rows) for member in regressor._members} == {64}


def test_numbers_are_shown_standardised_and_predicted_in_their_own_scale():
    x = table(100, 3)
    y = x[:, 0] + 2
    seen = Seen()
    found = InContextRegressor(seen.model(NUMBERS)).fit(x, y).predict(x[:9])
    labels = seen[0][1]
    assert labels.dtype == np.float32 and labels.shape == (8, 64)
    np.testing.assert_allclose(labels.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(labels.std(axis=1), 1, atol=1e-5)
    far = InContextRegressor(NUMBERS).fit(x, 1e9 * y - 1e10).predict(x[:9])
    np.testing.assert_allclose(far, 1e9 * found - 1e10, rtol=1e-4)
    assert abs(found - y[:9]).mean() < 0.4
    np.testing.assert_array_equal(InContextRegressor(NUMBERS).fit(x, np.ones(100)).predict(x), 1)
    # A label in the tail is shown drawn in, and predicted in full.
    x[3], y[3], seen = 9.0, 1e6, Seen()
    regressor = InContextRegressor(seen.model(NUMBERS, rows=100), ranks="none").fit(x, y)
    np.testing.assert_allclose(regressor.predict(x[3:4]), 1e6, rtol=1e-2)
    assert 4 < seen[0][1].max() < 5


@pytest.mark.parametrize("estimator", [InContextClassifier(CLASSES), InContextRegressor(NUMBERS)])
def test_missing_constant_and_extreme_values_are_predicted(estimator):
    x = table(30, 6)
    y = (x[:, 0] > 0) * 1.0
    wanted = clone(estimator).fit(x[:, :2], y).predict(x[:, :2])
    x[:, 2], x[:, 3], x[:, 4], x[:, 5] = np.nan, 7.0, 1e-8, 5e8
    x[:, 4] *= 1 + 1e-16 * np.arange(30)  # rounding, not a value
    with_unused = clone(estimator).fit(x, y).predict(x)
    assert np.isfinite(with_unused).all()
    # Columns without information change nothing but the draw of the orders.
    np.testing.assert_allclose(with_unused, wanted, atol=0.2)
    scales = np.array([1e300, 1e-300])
    np.testing.assert_allclose(
        clone(estimator).fit(x[:, :2] * scales, y).predict(x[:, :2] * scales), wanted, atol=1e-4
    )
    x[3:9, 0], asked = np.nan, np.array([[np.nan, 1e308], [1e308, -1e308]])
    assert np.isfinite(clone(estimator).fit(x[:, :2], y).predict(asked)).all()
    assert clone(estimator).fit(x[:1], y[:1]).predict(x).tolist() == [y[0]] * 30


def test_what_a_model_cannot_take_is_said(tmp_path):
    with pytest.raises(ValueError, match="y has 11 classes, and this model takes 10"):
        InContextClassifier(CLASSES).fit(table(22, 2), np.arange(22) % 11)
    with pytest.raises(ValueError, match="predicts numbers, and classes are wanted.*Regressor"):
        InContextClassifier(NUMBERS).fit(X, Y)
    with pytest.raises(ValueError, match="predicts classes, and numbers are wanted.*Classifier"):
        InContextRegressor(CLASSES).fit(X, Y)
    for options, message in (
        ({"ensemble": 0}, "ensemble must be a whole number from 1"),
        ({"ranks": True}, "ranks must be one of none, half, all; got True"),
        ({"best_columns": "some"}, "best_columns must be one of none, half, all; got 'some'"),
        ({"average": "median"}, "average must be probabilities or logits"),
    ):
        with pytest.raises(ValueError, match=message):
            InContextClassifier(CLASSES, **options).fit(X, Y)
    with pytest.raises(RunError, match="does not exist"):
        InContextClassifier(tmp_path / "nowhere").fit(X, Y)
    run = Run.create(tmp_path / "run", tiny())
    with pytest.raises(RunError, match="was trained on LinearRegression, not on tables"):
        InContextRegressor(run).fit(X, Y)


def test_seeds_choose_members_and_pickles_keep_them():
    fit = lambda seed: InContextClassifier(CLASSES, random_state=seed).fit(
        table(200, 12), np.arange(200) % 3
    )
    asked = table(5, 12, seed=1)
    one = fit(1)
    np.testing.assert_array_equal(fit(1).predict_proba(asked), one.predict_proba(asked))
    assert (fit(2).predict_proba(asked) != one.predict_proba(asked)).any()
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.predict_proba(asked), one.predict_proba(asked))


def test_many_rows_are_predicted_as_few_are():
    model = InContextClassifier(CLASSES, ensemble=2).fit(X, Y)
    many = np.tile(X, (40, 1))
    np.testing.assert_allclose(
        model.predict_proba(many), np.tile(model.predict_proba(X), (40, 1)), atol=1e-6
    )


def test_a_run_is_read_once_and_again_if_it_was_trained_on(tmp_path, monkeypatch):
    config = icl.preset("pfn/tables-xs").replace(
        task_points=40, task_queries=8, task_columns=4, task_classes=3,
        model_layers=1, model_heads=1, model_width=8,
    )  # fmt: skip
    run, opened, original = untrained(tmp_path / "run", config), [], Run.open
    monkeypatch.setattr(Run, "open", lambda path: opened.append(path) or original(path))
    run.predict(np.zeros((1, 3, 4)), np.zeros((1, 3), int), np.zeros((1, 2, 4)))
    x, y = X[::5], Y[::5]
    by_run = InContextClassifier(run, ensemble=1).fit(x, y)
    found = by_run.predict_proba(x)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    others = [clone(by_run).fit(x, y), InContextClassifier(str(run.path), ensemble=1).fit(x, y)]
    others += [pickle.loads(pickle.dumps(by_run))]
    for other in others:
        np.testing.assert_array_equal(other.predict_proba(x), found)
    assert len(opened) == 1
    step, variables = run.variables()
    moved = jax.tree.map(lambda leaf: leaf + np.float32(0.1), variables)
    with contextlib.closing(run.checkpoints()) as checkpoints:
        checkpoints.save(step + 1, variable_items(moved))
    assert (by_run.predict_proba(x) != found).any() and len(opened) == 2
