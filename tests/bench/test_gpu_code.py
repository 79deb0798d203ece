"""The checks of GPU code on a machine without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from bench.__main__ import main
from bench.common.worker import ROOT
from bench.gpu_code import check

PLUGINS = [name for name in check.PLUGINS if importlib.util.find_spec(name)]

needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
needs_plugin = pytest.mark.skipif(
    not PLUGINS or not importlib.util.find_spec("jax_triton"),
    reason="needs jax-triton and JAX's CUDA plugin: make check-gpu-code",
)

COMPILE = """
import json
from bench.gpu_code.compile import resources
from bench.gpu_code.launches import Variant, launches
made = {each.name: each for each in launches(Variant("WORKLOAD"), "cuda", 90)}
print(json.dumps(resources("sm_90", made["KERNEL"])))
"""

LOWER = """
import json, re
import jax, jax.numpy as jnp
from bench.gpu_code.lowering import kernel_calls, lower
from icl.kernels import OP
loss = lambda q, k, v: OP(q, k, v, is_causal=True).astype(jnp.float32).sum()
x = jax.ShapeDtypeStruct((64, 82, 8, 32), jnp.bfloat16)
lowered = lower(jax.value_and_grad(loss, argnums=(0, 1, 2)), x, x, x)
text = lowered.as_text()
targets = sorted(set(re.findall(r"@(triton_kernel_call\\w*)", text)))
print(json.dumps([[name for name, _ in kernel_calls(lowered)], text.count("dot_general"), targets]))
"""


def run(tmp_path, *arguments):
    """Runs Python without this process's settings that interpret kernels."""
    drop = ("ICL_KERNELS_INTERPRET", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        # On one core a single process compiles, so that libraries are imported once.
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )


def said(tmp_path, program):
    done = run(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_main_compiles_a_workload_and_counts_its_traffic(tmp_path):
    stages = ("--only", "compilation", "--only", "traffic")
    arguments = ("gpu-code", "oswald", *stages, "--arch", "sm_90", "--out", str(tmp_path))
    done = run(tmp_path, "-m", "bench", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results" / "gpu-code.json").read_text())
    assert results["machine"]["revision"] and results["failures"] == []
    for row in results["compilation"]:
        assert (row["workload"], row["arch"]) == ("oswald", "sm_90")
        assert row["registers"] > 16 and row["stack"] == 0, row
        assert f"| {row['kernel']}" in done.stdout
    assert {"row forward", "row backward"} == {row["kernel"] for row in results["compilation"]}
    assert [row["pass"] for row in results["traffic"]] == ["forward", "backward"]
    assert all(0.99 < row["bytes_over_least"] < 1.05 for row in results["traffic"])
    assert "| oswald   | row  | backward |" in done.stdout


UNMASKED = """
import json
from bench.gpu_code.bounds import measured, over_target
from bench.gpu_code.launches import Variant, launches
from icl.kernels import tiles
from icl.kernels.attention import triton_row, triton_tiles
made = launches(Variant("chan"), "cuda", 90)[0]
rows = [measured("chan", made)]
assert tiles.load_tile.src.count("< LENGTH") == 2
tiles.load_tile._unsafe_update_src(tiles.load_tile.src.replace("< LENGTH", "< LENGTH + 15"))
for each in {**vars(triton_row), **vars(triton_tiles)}.values():
    if hasattr(each, "hash"):
        each.hash = None  # also of its callers
rows.append(measured("chan", made))
print(json.dumps([[over_target([row]), row] for row in rows]))
"""


@needs_triton
def test_a_load_without_its_mask_is_found(tmp_path):
    """17 of 32 rows are inside; the interpreter of kernels shows only what the program loads."""
    (found, masked), (found_unmasked, unmasked) = said(tmp_path, UNMASKED)
    assert found == []
    assert unmasked["requests_over_least"] > 1.2 * masked["requests_over_least"] > 1.2
    for array in ("key", "value"):
        assert f"chan, row forward: reads or writes outside {array}" in found_unmasked
    assert masked["instructions"] > 500 and masked["bounds"]["dram"] > 10
    assert masked["unknown"] == 0 and masked["others"] == []


@pytest.fixture
def budgets(monkeypatch, tmp_path):
    """The budget stage with a file of its own; a row of bounds."""
    bounds = pytest.importorskip("bench.gpu_code.bounds")
    monkeypatch.setattr(bounds, "BUDGETS", tmp_path / "budgets.json")
    row = dict(workload="garg", kernel="row forward", bytes_over_least=1.0, requests_over_least=1.0)
    return bounds, row | {"bounds": dict.fromkeys(bounds.PIPES, 10.0)}


def test_bounds_may_not_rise_above_their_budget(budgets):
    bounds, row = budgets
    bounds.write_budgets([row])
    lower = row["bounds"] | {"alu": 5.0, "issue": 10.5}
    assert bounds.over_budget([row]) == bounds.over_budget([row | {"bounds": lower}]) == []
    higher = row | {"bounds": row["bounds"] | {"alu": 10.7}}
    [message] = bounds.over_budget([higher])
    assert message == "garg, row forward: alu 10.7 us, the budget is 10.0 us"
    [message] = bounds.over_budget([row | {"requests_over_least": 1.1}])
    assert "requests_over_least 1.1" in message
    [message] = bounds.over_budget([row | {"kernel": "row backward"}])
    assert "no budget" in message
    bounds.write_budgets([row | {"workload": "chan"}])
    assert bounds.over_budget([row, row | {"workload": "chan"}]) == []


def test_bounds_of_another_compiler_are_not_compared(budgets, monkeypatch):
    bounds, row = budgets
    bounds.write_budgets([row])
    version = bounds.triton.__version__
    monkeypatch.setattr(bounds.triton, "__version__", "0.1")
    [message] = bounds.over_budget([row])
    assert f"Triton {version}" in message and "0.1" in message and "check-gpu-code" in message


@pytest.fixture
def environment(monkeypatch):
    """Restores the environment variables that `main` removes."""
    for name in ("ICL_KERNELS_INTERPRET", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(check.machine, "missing", lambda *names: [])


def test_missed_targets_are_reported_last(environment, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(
        check.STAGES, "traffic", lambda options: ([{"row": 1}], ["twice the bytes"])
    )
    out = ("--out", str(tmp_path))
    assert main(["gpu-code", "oswald", "--only", "traffic", *out]) == 1
    assert capsys.readouterr().err == "FAILED twice the bytes\n"
    results = json.loads((tmp_path / "results" / "gpu-code.json").read_text())
    assert (results["traffic"], results["failures"]) == ([{"row": 1}], ["twice the bytes"])


@pytest.mark.parametrize("absent", ["triton", "jax_cuda12_plugin jax_cuda13_plugin"])
def test_missing_packages_are_reported(environment, monkeypatch, capsys, absent):
    missing = lambda *names: [name for name in names if name in absent.split()]
    monkeypatch.setattr(check.machine, "missing", missing)
    assert main(["gpu-code", "oswald", "--only", "lowering"]) == 1
    assert "`make check-gpu-code` installs" in capsys.readouterr().err


BACKWARDS = {
    "short-causal": ("row backward", "wgmma"),
    "linear-short": ("causal backward", "wgmma"),
    # Its chunks of 16 steps are too small for wgmma.
    "delta-short": ("delta backward", "mma"),
}


@needs_triton
@needs_plugin
@pytest.mark.parametrize("workload", BACKWARDS)
def test_short_backward_kernels_do_not_spill_and_use_tensor_cores(workload, tmp_path):
    kernel, products = BACKWARDS[workload]
    found = said(tmp_path, COMPILE.replace("WORKLOAD", workload).replace("KERNEL", kernel))
    assert "error" not in found, found
    assert found["stack"] == 0 and 32 < found["registers"] <= 255
    assert found["products"] == products
    assert 0 < found["shared"] <= 227 * 1024
    assert found["programs_a_multiprocessor"] >= 1


@needs_triton
@needs_plugin
@pytest.mark.parametrize(
    "op, name, target",
    [
        ("dot_product_attention", "attention_row", "triton_kernel_call"),
        ("linear_attention", "linear_attention_causal", "triton_kernel_call_ffi"),
    ],
)
def test_a_gradient_lowered_for_cuda_has_two_kernels_and_no_other_product(
    op, name, target, tmp_path, monkeypatch
):
    """They have names of their own, by which a profile shows them, and are typed if asked for."""
    monkeypatch.setenv("ICL_KERNELS_TYPED_CALLS", str(int(target.endswith("ffi"))))
    kernels, products, targets = said(tmp_path, LOWER.replace("OP", op))
    assert kernels == [f"{name}_forward", f"{name}_backward"]
    assert products == 0
    assert targets == [target]


NAMES = """
import json, re
from bench.gpu_code.launches import Variant, launches
from bench.gpu_code.offsets import ttir
cases = ("short-full", "long-full", "linear-short", "linear-oswald", "delta-short")
launched = [made for name in cases for made in launches(Variant(name), "cuda", 90)]
print(json.dumps([re.search(r"tt.func public @(\\w+)", ttir(made))[1] for made in launched]))
"""


@needs_triton
def test_kernels_are_named_by_op_form_and_direction(tmp_path):
    assert said(tmp_path, NAMES) == [
        "attention_row_forward",
        "attention_row_backward",
        "attention_tiled_forward",
        "attention_tiled_backward_queries",
        "attention_tiled_backward_keys",
        "linear_attention_causal_forward",
        "linear_attention_causal_backward",
        "linear_attention_full_forward",
        "linear_attention_full_backward",
        "delta_rule_forward",
        "delta_rule_backward",
    ]
