"""Launches of the attention's Triton kernels: tables, and the heuristic without one."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import dot_product_attention, targeting
from icl.kernels.attention import launch, row_tiles
from icl.kernels.attention.launch import Config, Plan
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.attention.workloads import WORKLOADS
from icl.kernels.plans import forcing

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
    plans = [launch.heuristic(problem, operands), *launch.forms(problem, operands)]
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
                assert config.block_s * row_tiles.MOST >= workload.T, "keys are left out"
            else:
                assert config.rows == 1


@pytest.mark.parametrize("plan", [ROW, TILED])
def test_a_plan_that_is_forced_is_what_runs(plan):
    """A trace inside the context holds the forced plan."""
    arrays = draw_inputs(0, 8, 20, 20, 1, 1, 16)
    expected = dot_product_attention(*arrays[:3], is_causal=True, implementation="xla")

    def run(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True, implementation="triton")

    seen = []
    original = launch.plan
    with pytest.MonkeyPatch.context() as patch, forcing(plan):
        patch.setattr(launch, "plan", lambda *call: seen.append(original(*call)) or seen[-1])
        out = run(*arrays[:3])
    assert seen and set(seen) == {plan}
    np.testing.assert_allclose(out, expected, atol=2e-6)
    assert launch.plan(*call_of(8, 20, 1, 16)).form == "row", "forced inside only"


def test_a_forced_plan_that_does_not_fit_is_refused():
    with forcing(ROW), pytest.raises(ValueError, match="does not fit"):
        launch.plan(*call_of(8, 64 * row_tiles.MOST + 1, 1, 16))
    with forcing(ROW), pytest.raises(ValueError, match="does not fit"):
        launch.plan(*call_of(12, 20, 1, 16))
