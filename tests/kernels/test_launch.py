"""Launches of the Triton kernels: tables, what stands in for them, and their tuner."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import dot_product_attention, targeting
from icl.kernels.attention import launch
from icl.kernels.attention.launch import Config, Plan
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.attention.workloads import WORKLOADS

from .implementations import draw_inputs

ROW = Plan("row", Config(32, 64, 2, rows=8), Config(16, 64, 4, num_stages=1))
TILED = Plan("tiled", Config(16, 32, 2), Config(32, 16, 1), Config(16, 16, 4, num_stages=3))
DEVICE = "NVIDIA Some GPU-80GB"


def call_of(batch, length, heads, width, is_causal=True, dtype="bfloat16"):
    shape = (batch, length, heads, width)
    operands = Operands(*3 * [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))])
    return Problem(width**-0.5, is_causal), operands


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    launch.read_table.cache_clear()
    yield tmp_path
    launch.read_table.cache_clear()


def test_a_table_that_is_written_is_taken_on_its_device_alone(tables):
    row, tiled = call_of(4096, 50, 8, 32), call_of(2, 4096, 8, 64)
    before = launch.plan(*row)
    path = launch.table_path(DEVICE)
    assert path == tables / "nvidia-some-gpu-80gb.json"
    with targeting("cuda", 90, DEVICE):
        assert launch.plan(*row) == before == launch.heuristic(*row)
        plans = {launch.key_of(*row): ROW, launch.key_of(*tiled): TILED}
        launch.write_table(path, plans, device=DEVICE, versions={"jax": "1"}, revision="abc")
        assert launch.plan(*row) == ROW
        assert launch.plan(*tiled) == TILED
        assert launch.plan(*call_of(4096, 33, 8, 32)) == ROW, "the key rounds sizes up"
        for other in (
            call_of(4096, 32, 8, 32),
            call_of(4096, 50, 8, 64),
            call_of(4096, 50, 8, 32, is_causal=False),
            call_of(4096, 50, 8, 32, dtype="float32"),
        ):
            assert launch.plan(*other) == launch.heuristic(*other)
    with targeting("cuda", 90, "NVIDIA other"):
        assert launch.plan(*row) == before
    written = json.loads(path.read_text())
    assert (written["device"], written["versions"], written["revision"]) == (
        DEVICE, {"jax": "1"}, "abc"
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 1000, 4092, 4096, 4100])
def test_rows_of_a_table_always_divide_the_batch(tables, batch):
    call = call_of(batch, 50, 8, 32)
    plans = {launch.key_of(*call): ROW}
    launch.write_table(launch.table_path(DEVICE), plans)
    with targeting("cuda", 90, DEVICE):
        plan = launch.plan(*call)
    assert batch % plan.forward.rows == 0
    assert plan.forward == dataclasses.replace(ROW.forward, rows=plan.forward.rows)
    assert plan.forward.rows == 1 or batch // plan.forward.rows * 8 >= launch.FEWEST_PROGRAMS
    assert plan.backward == ROW.backward


def tables_that_ship():
    return sorted(Path(launch.__file__).with_name("launch_tables").glob("*.json"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_plan_for_a_workload_fits(name, dtype):
    workload = WORKLOADS[name]
    shape = workload.B, workload.T, workload.N, workload.H
    problem, operands = call_of(*shape, workload.is_causal, dtype)
    plans = [launch.heuristic(problem, operands), *launch.forms(operands)]
    for path in tables_that_ship():
        with targeting("cuda", 90, json.loads(path.read_text())["device"]):
            plans.append(launch.plan(problem, operands))
    for plan in plans:
        assert plan.form in ("row", "tiled")
        assert (plan.backward_queries is None) == (plan.form == "row")
        for config in filter(None, (plan.forward, plan.backward, plan.backward_queries)):
            for size in (config.block_t, config.block_s):
                assert size >= 16 and size & (size - 1) == 0, config
                assert size < 2 * max(16, workload.T), "mostly padding"
            assert config.num_warps in (1, 2, 4, 8, 16)
            assert workload.B % config.rows == 0
            if plan.form == "row":
                assert config.block_s >= workload.T, "a row's keys must be in one tile"
            else:
                assert config.rows == 1


@pytest.mark.parametrize("plan", [ROW, TILED])
def test_a_plan_that_is_forced_is_what_runs(plan):
    """Traced anew inside: what the kernels are given is in the program."""
    arrays = draw_inputs(0, 8, 20, 20, 1, 1, 16)
    expected = dot_product_attention(*arrays[:3], is_causal=True, implementation="xla")

    def run(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True, implementation="triton")

    seen = []
    original = launch.plan
    with pytest.MonkeyPatch.context() as patch, launch.forcing(plan):
        patch.setattr(launch, "plan", lambda *call: seen.append(original(*call)) or seen[-1])
        out = run(*arrays[:3])
    assert seen and set(seen) == {plan}
    np.testing.assert_allclose(out, expected, atol=2e-6)
    assert launch.plan(*call_of(8, 20, 1, 16)).form == "row", "forced inside only"


def test_a_forced_plan_that_does_not_fit_is_refused():
    with launch.forcing(ROW), pytest.raises(ValueError, match="does not fit"):
        launch.plan(*call_of(8, 65, 1, 16))
    with launch.forcing(ROW), pytest.raises(ValueError, match="does not fit"):
        launch.plan(*call_of(12, 20, 1, 16))


@pytest.fixture
def tune(monkeypatch):
    """bench/tune.py, which is no part of the package."""
    bench = Path(__file__).resolve().parents[2] / "bench"
    monkeypatch.syspath_prepend(str(bench))
    before = set(sys.modules)
    yield importlib.import_module("tune")
    for name in set(sys.modules) - before:
        if str(bench) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def seconds_of(wanted, tiled=1.0, fixed=1.0):
    """A fake timer: a plan is the slower, the further its launches are from those wanted."""

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


def test_the_tuner_finds_the_fastest_launch_of_each_direction(tune):
    _, operands = call_of(4096, 64, 8, 32)
    wanted = Plan("row", Config(32, 64, 8, 1, rows=4), Config(16, 64, 2, 2))
    assert tune.best_plan(operands, seconds_of(wanted, tiled=100)) == wanted


def test_the_tuner_takes_one_form_for_both_directions_by_their_sum(tune):
    _, operands = call_of(4096, 64, 8, 32)
    tiled = launch.forms(operands)[1]

    def measure(plan, direction):  # the row form wins forward, and loses more backward
        return {"row": (1, 6), "tiled": (2, 5)}[plan.form][direction != "forward"]

    assert tune.best_plan(operands, measure) == tiled


def test_the_tuner_passes_over_what_does_not_run(tune):
    _, operands = call_of(4096, 64, 8, 32)
    infinite = lambda plan, direction: float("inf")
    with pytest.raises(RuntimeError, match="no launch"):
        tune.best_plan(operands, infinite)
    start = launch.forms(operands)[0]

    def measure(plan, direction):
        broken = plan.form == "tiled" or plan.forward.num_warps == start.forward.num_warps
        return float("inf") if broken else 1.0

    assert tune.best_plan(operands, measure).form == "row"


def test_workloads_that_share_a_key_are_tuned_by_the_largest(tune):
    keys = tune.by_key(WORKLOADS, "bfloat16")
    assert keys["bfloat16 T128 S128 H32 causal"] == WORKLOADS["garg"]
    assert all(
        launch.key_of(*tune.call_of(workload, "bfloat16")) in keys
        for workload in WORKLOADS.values()
    )


def test_a_trial_runs_the_plan_and_refuses_wrong_results(tune, monkeypatch):
    class Timer:
        seconds = staticmethod(lambda program, sets: 1.0)

    monkeypatch.setattr(tune, "input_sets", lambda *_: 1)
    workload = WORKLOADS["garg"]._replace(B=8, T=20, N=1, H=16)
    trial = tune.Trial(workload, "float32", Timer(), 60)
    assert trial.seconds(ROW, "forward") == trial.seconds(TILED, "forward+backward") == 1
    trial._expected = tuple(1.01 * array for array in trial._expected)
    with pytest.raises(ValueError, match="off from the XLA form"):
        trial.compile(ROW, "forward")
    too_short = dataclasses.replace(ROW, forward=Config(16, 16, 1))
    assert trial.seconds(too_short, "forward") == float("inf")


def test_without_a_gpu_there_is_nothing_to_tune(tune, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # which it changes
    if jax.default_backend() == "gpu":
        pytest.skip("there is")
    assert tune.main(["oswald"]) == 2
    assert "nothing to tune here" in capsys.readouterr().out
