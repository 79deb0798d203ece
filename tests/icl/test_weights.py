"""The weights in the package: where they come from, skill, and the examples of docs/tables.md."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.metrics import roc_auc_score

from icl.cli import main
from icl.experiments import PRESETS
from icl.sklearn import InContextClassifier, InContextRegressor
from icl.sklearn.models import SHIPPED
from icl.training import load_exported

from .table_stand_in import failed_checks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tables.md").read_text()
README = (ROOT / "README.md").read_text()


def test_one_command_makes_them_and_they_are_small():
    makefile = (ROOT / "Makefile").read_text()
    made = re.findall(r"\(call made_weights,(\w+),(\S+)\)", makefile)
    assert {f"{name}.npz" for name, _ in made} == {path.name for path in SHIPPED.values()}
    for name, preset in made:
        [path] = [path for path in SHIPPED.values() if path.stem == name]
        weights = load_exported(path)
        assert weights.config == PRESETS[preset].config
        assert weights.step == weights.config.training.steps
        assert path.stat().st_size < 5e6


@pytest.mark.parametrize("kind", [InContextClassifier, InContextRegressor])
def test_scikit_learns_checks_pass(kind):
    assert failed_checks(kind(ensemble=1)) == {}


def test_they_predict_real_tables():
    x, y = load_breast_cancer(return_X_y=True)
    known = np.arange(64)
    asked = np.arange(64, len(y))
    found = InContextClassifier().fit(x[known], y[known]).predict_proba(x[asked])
    assert roc_auc_score(y[asked], found[:, 1]) > 0.97
    x, y = load_diabetes(return_X_y=True)
    assert InContextRegressor().fit(x[:128], y[:128]).score(x[128:], y[128:]) > 0.35


def test_the_estimators_of_the_page_and_of_the_readme_work():
    blocks = re.findall(r"```python\n(.*?)```", PAGE + README, re.DOTALL)
    [of_page, of_readme] = [block for block in blocks if "InContextClassifier()" in block]
    names: dict[str, Any] = {}
    exec(of_page, names)
    assert names["probabilities"].shape == (505, 2) and names["accuracy"] > 0.9
    exec(of_readme, names)
    assert names["probabilities"].shape == (505, 2)
    rows = dict(re.findall(r"^\| `(\w+)` \| `?\"?([\w]+)\"?`? \| ", PAGE, re.MULTILINE))
    defaults = InContextClassifier().get_params()
    assert rows == {name: str(value) for name, value in defaults.items()}


def test_the_commands_of_the_page_work(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^    icl (predict .*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    x, y = load_breast_cancer(return_X_y=True)
    header = [*(f"f{i}" for i in range(x.shape[1])), "outcome"]
    monkeypatch.chdir(tmp_path)
    for name, rows in (("patients.csv", slice(0, 64)), ("new.csv", slice(64, 164))):
        with open(name, "w", newline="") as file:
            outcome = np.where(y[rows], "benign", "malignant")
            csv.writer(file).writerows([header, *np.column_stack([x[rows], outcome]).tolist()])
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(SHIPPED["class"])
    for command in commands:
        assert main(command.split()) == 0
        said = capsys.readouterr().out
        assert "P(malignant)" in said
        assert float(re.findall(r"ROC AUC +(\S+)", said)[0]) > 0.9
    assert len(Path("predictions.csv").read_text().splitlines()) == 101
