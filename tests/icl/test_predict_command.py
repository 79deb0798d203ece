"""The command `icl predict`: CSV files in, tables, scores and CSV files out."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from icl.cli import main

from .table_stand_in import CLASSES, NUMBERS


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    """No weights are read; a path with "number" in its name predicts numbers."""
    of = lambda path, stamp: NUMBERS if "number" in path.name else CLASSES
    monkeypatch.setattr("icl.sklearn.models._read", of)
    monkeypatch.chdir(tmp_path)


def write(path, header, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


COLORS = ["blue", "red", "green"]


def rows(count, seed, target=True):
    """Rows of a number, a colour, a number that tells nothing, and the fruit that colour makes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        color = COLORS[i % 3]
        size = i % 3 + 0.1 * rng.normal()
        cells = [f"{size:.4f}", color, f"{rng.normal():.3f}"]
        yield [*cells, ["apple", "lime", "plum"][i % 3]] if target else cells


HEADER = ["size", "color", "noise", "fruit"]
PREDICT = ["predict", "--train", "train.csv", "--test", "test.csv", "--target"]


def test_classes_are_predicted_written_and_scored(capsys):
    known = [*rows(30, 0)]
    known[3][0], known[4][1], known[5][2] = "?", "", "NA"
    known.append(["1.0", "red", "0.1", ""])  # its fruit is not known
    asked = [*rows(12, 1)]
    asked[0][1] = "violet"  # a colour that no training row has
    asked[7][3] = "apple"  # wrong on purpose
    asked[8][3] = ""
    write("train.csv", HEADER, known, delimiter=";")
    # Order and number of the columns are others.
    write("test.csv", ["more", *HEADER[::-1]], [["x", *row[::-1]] for row in asked])
    assert main([*PREDICT, "fruit", "--out", "new/predictions.csv"]) == 0
    said = capsys.readouterr().out
    found = read("new/predictions.csv")
    names = ["apple", "lime", "plum"]
    assert [row["prediction"] for row in found] == names * 4
    p = np.array([[float(row[f"probability of {name}"]) for name in names] for row in found])
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert "rows of train.csv without fruit, left out: 1" in said
    assert "columns of text, taken as categories (their number): color (3)" in said
    assert (
        "fruit is a class; examples: 30, columns that vary: 3" in said and "each member" not in said
    )
    assert "P(apple)" in said and "rows predicted: 12, in new/predictions.csv" in said
    assert len([line for line in said.splitlines() if line[:2].strip().isdigit()]) == 10
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 2])
    p = np.delete(p, 8, axis=0)
    scores = {line[:14].strip(): line.split()[-2:] for line in said.splitlines()}
    assert scores["accuracy"] == [f"{10 / 11:.3f}", f"{5 / 11:.3f}"]
    auc = np.mean([roc_auc_score(truth == k, p[:, k]) for k in range(3)])
    assert scores["ROC AUC"] == [f"{auc:.3f}", "0.500"]
    assert scores["log loss, nats"] == [f"{log_loss(truth, p):.3f}", f"{np.log(3):.3f}"]


def test_numbers_are_predicted_and_scored(capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2)).round(3)
    noise = rng.normal(scale=0.01, size=(100, 9)).round(3).tolist()
    cells = [[*row, *more, 1, round(sum(row), 3)] for row, more in zip(x.tolist(), noise)]
    header = [*"abcdefghijkl", "y"]
    write("train.csv", header, cells[:80])
    write("test.csv", header, cells[80:])
    assert main([*PREDICT, "y", "--out", "p.csv"]) == 0
    said = capsys.readouterr().out
    assert "y is a number; examples: 80, columns that vary: 11" in said
    assert "each member of the ensemble is shown 64 of the 80 rows" in said
    assert "each member of the ensemble is shown 10 of the 11 columns that vary" in said
    scores = {line.split()[0]: line.split()[-2:] for line in said.splitlines()}
    found = np.array([float(row["prediction"]) for row in read("p.csv")])
    y, mean = x[80:].sum(axis=1), x[:80].sum(axis=1).mean()
    assert scores["RMSE"][0] == f"{np.sqrt(((found - y) ** 2).mean()):.4g}"
    assert scores["RMSE"][1] == f"{np.sqrt(((mean - y) ** 2).mean()):.4g}"
    assert float(scores["R²"][0]) > 0.5 > 0.1 > float(scores["R²"][1])


@pytest.mark.parametrize(
    ("labels", "options", "classes"),
    [
        (["1", "2.0", "1.0"], [], {"1", "2"}),
        (["1", "2", "1"], ["--kind", "number"], None),
        (["1.5", "2", "1"], [], None),
        (["1.5", "2", "1.5"], ["--kind", "class"], {"1.5", "2"}),
        (["1", "2", "one"], [], {"1", "2", "one"}),
        (["1", "2", "1"], ["numbers.npz"], None),
    ],
)
def test_the_target_or_the_run_decides_what_is_predicted(labels, options, classes):
    write("train.csv", ["a", "y"], enumerate(labels))
    write("test.csv", ["a"], [[0], [1], [2]])
    Path("numbers.npz").touch()
    assert main([*PREDICT, "y", *options, "--out", "p.csv"]) == 0
    found = read("p.csv")
    probabilities = {f"probability of {name}" for name in classes or ()}
    assert len(found) == 3 and set(found[0]) == {"prediction", *probabilities}


def test_classes_that_no_training_row_has_are_said_and_scored(capsys):
    write("train.csv", HEADER, rows(12, 0))
    asked = [*rows(4, 1)]
    asked[3][3] = "pear"
    write("test.csv", HEADER, asked)
    assert main([*PREDICT, "fruit"]) == 0
    said = capsys.readouterr().out
    assert "test rows of a class that no training row has: 1" in said
    assert "accuracy" in said and "0.750" in said
    assert "--out FILE writes all" in said
    # Without one label that is known there is no score.
    write("test.csv", HEADER, [[*row[:3], "NA"] for row in asked])
    assert main([*PREDICT, "fruit"]) == 0 and "accuracy" not in capsys.readouterr().out


GOOD = "p,q,t\n1,a,x\n2,b,y\n"


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (None, GOOD, [], "train.csv does not exist; give the path of a CSV file"),
        (GOOD, None, [], "test.csv does not exist"),
        (GOOD, GOOD, ["--target", "z"], "train.csv has no column 'z'; it has p, q, t"),
        ("t\nx\ny\n", GOOD, [], "has the column 't' alone"),
        (GOOD, "q,t\na,x\n", [], "test.csv lacks columns of train.csv: p"),
        ("p,q,t\n", GOOD, [], "train.csv is not a table: it has no rows"),
        (GOOD, "", [], "test.csv is not a table: it has no rows"),
        ("p,p,t\n1,2,3\n", GOOD, [], "each by a name of its own"),
        ("p,q,t\n1,2\n", GOOD, [], "line 2 has 2 cells, and the header has 3"),
        ("p,q,t\n1,a,?\n", GOOD, [], "train.csv has no row whose 't' is known"),
        ("p,t\n1,x\n2,x\n", GOOD, [], "has one class, 'x'; give rows of at least two"),
        (GOOD, "p,q\n1,a\none,b\n", [], "test.csv, line 3: 'one' in the column 'p' is no number"),
        (GOOD, GOOD, ["--kind", "number"], "'x' in the column 't' is no number: use --kind class"),
        (GOOD, GOOD, ["numbers.npz", "--kind", "class"], "predicts numbers, and classes are"),
        (GOOD, GOOD, ["--ensemble", "0"], "--ensemble must be a whole number"),
        (GOOD, GOOD, ["--out", "train.csv"], "train.csv exists; .*--overwrite"),
    ],
)
def test_files_and_options_that_cannot_be_used_say_so(train, test, options, message, capsys):
    files = {"train.csv": train, "test.csv": test, "numbers.npz": ""}
    files = {name: text for name, text in files.items() if text is not None}
    for name, text in files.items():
        Path(name).write_text(text)
    assert main([*PREDICT, "t", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path.name: path.read_text() for path in Path().iterdir()} == files
