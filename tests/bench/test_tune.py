"""The tuner of the Triton kernels' launches."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bench.__main__ import main
from bench.kernels import tune
from bench.kernels.ops import CASES
from icl.kernels.attention import launch
from icl.kernels.attention.launch import Config, Plan
from icl.kernels.attention.workloads import WORKLOADS

ROW = Plan("row", Config(32, 64, 2, rows=8), Config(16, 64, 4, num_stages=1))
TILED = Plan("tiled", Config(16, 32, 2), Config(32, 16, 1), Config(16, 16, 4, num_stages=3))


def call():
    return tune.call_of(CASES["short-causal"], "bfloat16")


def seconds_of(wanted, tiled=1.0, fixed=1.0):
    """A fake timer, whose seconds grow with the distance of a plan's launches from `wanted`."""

    def measure(plan, direction):
        fields = ("forward",) if direction == "forward" else ("forward", "backward")
        seconds = fixed
        for field in fields:
            config, best = getattr(plan, field), getattr(wanted, field)
            for name, value in dataclasses.asdict(config).items():
                if plan.form == wanted.form:
                    seconds += abs(np.log2(value / getattr(best, name)))
        return seconds * (tiled if plan.form == "tiled" else 1)

    return measure


def test_the_tuner_finds_the_fastest_launch_of_each_direction():
    problem, operands = call()
    wanted = Plan("row", Config(32, 64, 8, 1, rows=4), Config(16, 64, 2, 2))
    assert tune.best_plan(problem, operands, seconds_of(wanted, tiled=100)) == wanted


def test_the_tuner_takes_one_form_for_both_directions_by_their_sum():
    problem, operands = call()
    tiled = launch.forms(problem, operands)[1]

    def measure(plan, direction):  # the row form wins forward, and loses more backward
        return {"row": (1, 6), "tiled": (2, 5)}[plan.form][direction != "forward"]

    assert tune.best_plan(problem, operands, measure) == tiled


def test_the_tuner_skips_plans_that_do_not_run():
    problem, operands = call()
    infinite = lambda plan, direction: float("inf")
    with pytest.raises(RuntimeError, match="no launch"):
        tune.best_plan(problem, operands, infinite)
    start = launch.forms(problem, operands)[0]

    def measure(plan, direction):
        broken = plan.form == "tiled" or plan.forward.num_warps == start.forward.num_warps
        return float("inf") if broken else 1.0

    assert tune.best_plan(problem, operands, measure).form == "row"


def test_workloads_that_share_a_key_are_tuned_by_the_largest():
    keys = tune.by_key(WORKLOADS, "bfloat16")
    assert keys["bfloat16 T96 S96 H32 causal"] is CASES["garg"]
    assert all(launch.key_of(*tune.call_of(CASES[name], "bfloat16")) in keys for name in WORKLOADS)


def test_a_trial_runs_the_plan_and_refuses_wrong_results(monkeypatch):
    class Timer:
        seconds = staticmethod(lambda program, sets: 1.0)

    monkeypatch.setattr(tune, "input_sets", lambda *_: 1)
    workload = WORKLOADS["garg"]._replace(B=2, T=20, N=1, H=16)
    row = dataclasses.replace(ROW, forward=dataclasses.replace(ROW.forward, rows=2))
    trial = tune.Trial(CASES["garg"]._replace(workload=workload), "float32", Timer(), 60)
    assert trial.seconds(row, "forward") == trial.seconds(TILED, "forward+backward") == 1
    trial._expected = tuple(1.01 * array for array in trial._expected)
    with pytest.raises(ValueError, match="off from the XLA form"):
        trial.compile(row, "forward")
    unfit = dataclasses.replace(row, forward=Config(16, 16, 1, rows=3))
    assert trial.seconds(unfit, "forward") == float("inf")


def test_the_command_writes_a_table_and_keeps_its_other_entries(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "")  # restores what `main` changes
    tiny = ["--rows", "1", "--seconds", "0", "--dtype", "float32", "--out", str(tmp_path)]
    for name in ("oswald", "cells-columns"):
        assert main(["tune", name, *tiny]) == 0, capsys.readouterr()
    [path] = tmp_path.iterdir()
    about = json.loads(path.read_text())
    assert about["device"] and about["versions"]["jax"] and about["revision"]
    plans = launch.read_table(path)
    assert set(plans) == set(tune.by_key(("oswald", "cells-columns"), "float32"))
    assert all(plan.form == "row" for plan in plans.values())


def test_without_a_gpu_there_is_nothing_to_tune(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # restores what `main` changes
    if jax.default_backend() == "gpu":
        pytest.skip("there is")
    assert main(["tune", "oswald"]) == 2
    assert "nothing to tune here" in capsys.readouterr().out
