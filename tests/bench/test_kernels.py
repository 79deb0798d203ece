"""The benchmark of kernels, run by its `main` at tiny sizes."""

import importlib.util
import json
import math
import subprocess

import pytest

import icl.kernels
from bench.__main__ import main
from bench.common.report import report_of
from bench.common.worker import ROOT
from bench.kernels import benchmark
from bench.kernels.ops import CASES, CPU_CASES, PEERS

# Public names that are not ops.
HELPERS = {"attention_weights", "choices", "flax_attention_fn", "targeting"}


@pytest.fixture
def sides(monkeypatch, in_process):
    """Replaces the frameworks' processes by stand-ins."""

    def replace(**functions):
        for framework, function in functions.items():
            monkeypatch.setitem(benchmark.SIDES, framework, f"tests.bench.stand_in:{function}")

    return replace


def run(folder, *arguments):
    """Runs the benchmark; returns the exit status and the written results."""
    status = main(["kernels", *arguments, "--out", str(folder), "--seed", "1"])
    [path] = (folder / "results").glob("kernels-*.json")
    return status, json.loads(path.read_text(), parse_constant=pytest.fail)


def test_every_op_has_a_case_and_a_peer():
    public = set(icl.kernels.__all__) - HELPERS
    assert {case.op.name for case in CASES.values()} == public
    assert {CASES[name].op.name for name in CPU_CASES} == public
    for case in CASES.values():
        for by_framework in case.op.contestants.values():
            names = sum(by_framework.values(), ())
            assert set(PEERS) & set(names), f"{case.op.name} has no peer"


def test_main_times_all_contestants_and_writes_what_it_prints(tmp_path, sides, capsys):
    if importlib.util.find_spec("torch") is None:
        sides(torch="start_torch")
    names = ["packed-short-causal", "linear-oswald", "delta-tiny", "pfn"]
    both = ("--directions", "forward+backward")  # includes the results of forward
    status, results = run(tmp_path, *names, "--rows", "2", "--rounds", "1", *both)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert results["machine"]["device"] == "cpu" and results["machine"]["revision"]
    assert set(results["workloads"]) == set(names)
    for name, workload in results["workloads"].items():
        assert workload["shape"]["B"] == 2
        assert workload["ours_is"] == "xla", "kernels must not be interpreted"
        by_framework = CASES[name].op.contestants["cpu"]
        for direction in workload["directions"].values():
            assert set(direction["contestants"]) == set(sum(by_framework.values(), ()))
            for contestant in direction["contestants"].values():
                assert 0 < contestant["over_ours"]["median"] < math.inf
            assert 0 < direction["of_floor"]["median"] < math.inf
            assert direction["best_peer"] in PEERS
    report = report_of("kernels", results)
    assert all(str(part) in printed.out for part in report.parts)
    assert [bar.label for bar in report.bars][0] == "packed-short-causal forward+backward"
    assert "2x160x4x16 8 to 128 keys" in printed.out
    assert "our reference" in report.bars[0].ratios and "torch-sdpa" in report.bars[0].ratios
    assert (tmp_path / "RESULTS.md").exists() and list((tmp_path / "results").glob("*.png"))


@pytest.mark.skipif(
    subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode != 0,
    reason="needs a git repository",
)
def test_another_revision_is_timed_beside_ours(tmp_path, sides, capsys):
    sides(jax="start_jax", torch="start_torch")
    status, results = run(tmp_path, "oswald", "--rows", "2", "--rounds", "1", "--against", "HEAD")
    printed = capsys.readouterr()
    assert status == 0 and "| ours at HEAD, time over ours" in printed.out
    for direction in results["workloads"]["oswald"]["directions"].values():
        assert direction["contestants"]["ours at HEAD"]["over_ours"]["median"] == 1


def test_an_unknown_revision_is_reported(capsys, sides):
    sides(jax="start_jax", torch="start_torch")
    assert main(["kernels", "oswald", "--against", "no-such-revision"]) == 1
    assert "no revision 'no-such-revision'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "torch, said",
    [
        ("start_missing_torch", "torch-sdpa failed: torch is not installed: `pip install"),
        ("start_tired_torch", "torch-sdpa failed: RuntimeError: out of memory"),
        ("start_wrong_torch", "torch-sdpa wrong: out is off by 1.0e-02; the limit is"),
    ],
)
def test_a_failing_peer_is_reported_last_and_by_the_status(tmp_path, sides, capsys, torch, said):
    sides(jax="start_jax", torch=torch)
    status, results = run(tmp_path, "oswald", "--rows", "2", "--rounds", "1")
    assert status == 1
    assert capsys.readouterr().err.startswith(f"NOT MEASURED: {said}")
    for direction in results["workloads"]["oswald"]["directions"].values():
        assert direction["contestants"]["reference"]["over_ours"]["median"] == 1
        assert "over_ours" not in direction["contestants"]["torch-sdpa"]


def test_a_peer_that_does_not_support_a_workload_is_no_problem(tmp_path, sides, capsys):
    sides(jax="start_jax", torch="start_unable_torch")
    status, _ = run(tmp_path, "oswald", "--rows", "2", "--rounds", "1")
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    assert "torch-sdpa cannot: NotImplementedError: not for odd lengths" in printed.out


def test_nothing_is_timed_if_ours_is_wrong(tmp_path, sides, capsys):
    sides(jax="start_wrong_jax", torch="start_torch")
    assert main(["kernels", "oswald", "--rows", "2", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "ours wrong: out is off by 1.0e-02; the limit is" in printed.out
    assert "timed" not in printed.out
    assert printed.err == "NOT MEASURED: kernels: ours is wrong or cannot run: nothing was timed\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argument", ["no-such-workload", "--rounds=0", "--only=nobody"])
def test_unknown_arguments_are_refused(argument, capsys):
    with pytest.raises(SystemExit):
        main(["kernels", argument])
    assert "error:" in capsys.readouterr().err
