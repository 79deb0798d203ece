"""The benchmark of training recipes: its settings, its table and a tiny run."""

import json

import numpy as np
import pytest

from bench import __main__ as commands
from bench import recipes
from bench.recipes import FAMILIES, RECIPES, config_of, median_steps, reached, report
from icl.experiments import preset
from icl.training import OptimizerConfig
from icl.training.optimizer import make_optimizer


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_has_settings_for_every_family(family, recipe):
    config = config_of(family, recipe)
    assert config.task == preset(FAMILIES[family].preset).task
    assert config.training.steps == round(RECIPES[recipe].share * FAMILIES[family].steps)
    make_optimizer(config.optimizer, config.training.steps)
    if recipe == "fast" and family in ("linear", "looped"):  # presets have the recipe
        theirs = preset(FAMILIES[family].preset)
        assert config.model == theirs.model and config.layout == theirs.layout
        assert config.optimizer.options == theirs.optimizer.options


def run_of(*errors, seconds=0.01):
    return {"steps": [100, 200, 300], "errors": errors, "batch": 64, "seconds": seconds}


def test_the_target_is_reached_at_the_median_of_the_seeds():
    run = run_of([0.9, 0.04, 0.06], [0.9, 0.5, 0.05], [0.9, 0.5, float("nan")])
    assert reached(run, 0.05) == [200, 300, None]
    assert median_steps(run, 0.05) == 300
    assert median_steps(run, 0.01) is None


def test_the_table_compares_with_adam_or_with_the_length_of_its_run():
    slow, fast = run_of([0.9, 0.5, 0.04]), run_of([0.04, 0.03, 0.02], seconds=0.02)
    cells = lambda adam: (
        report({"runs": {"linear": {"adam": adam, "muon": fast}}, "others_cpu": {"linear": 0.01}})
        .parts[1]
        .rows
    )
    adam, muon = cells(slow)
    assert adam[3:] == ["1 of 1", "300", "3", "19,200", "1.00", "1.00"]
    assert muon == [
        "muon", "300", "0.020 (0.020 to 0.020)", "1 of 1", "100", "2", "6,400", "0.33", "0.67",
    ]  # fmt: skip
    adam, muon = cells(run_of([0.9, 0.5, 0.4]))
    assert adam[4:] == ["–"] * 5 and muon[-2:] == ["< 0.33", "< 0.67"]


def test_a_run_is_added_to_the_earlier_ones(tmp_path, in_process, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "PROMPTS", 4)
    monkeypatch.setattr(recipes, "POINTS", 2)
    tiny = lambda family, recipe: preset("garg/linear-xs").replace(
        task_points=11, model_layers=1, model_width=8, training_batch_size=4,
        optimizer=OptimizerConfig(),  # half of the time to compile
    )  # fmt: skip
    monkeypatch.setattr(recipes, "config_of", tiny)
    for recipe in ("adam", "fast"):
        arguments = [
            "recipes",
            "linear",
            "--recipes",
            recipe,
            "--seeds",
            "2",
            "--steps",
            "4",
            "--rounds",
            "1",
        ]
        assert commands.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "garg/linear-xs" in capsys.readouterr().out
    [path] = (tmp_path / "results").glob("recipes-*.json")
    runs = json.loads(path.read_text())["runs"]["linear"]
    assert list(runs) == ["adam", "fast"] and runs["adam"]["seconds"] > 0
    assert runs["fast"]["steps"] == [2, 4] and np.shape(runs["fast"]["errors"]) == (2, 2)
    assert path.with_suffix(".png").stat().st_size > 5_000
    assert path.with_suffix(".png").name in (tmp_path / "RESULTS.md").read_text()


def test_timing_without_earlier_runs_says_what_to_do(tmp_path, capsys):
    assert commands.main(["recipes", "--timing", "--out", str(tmp_path)]) == 1
    assert "no earlier runs to time: leave out --timing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
