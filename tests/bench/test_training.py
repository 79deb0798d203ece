"""The benchmarks of training and of tasks, run by their `main` at tiny sizes.

If PyTorch is not installed, stand-ins replace its processes.
"""

import ast
import importlib.util
import json
import random
import subprocess

import numpy as np
import pytest

from bench.__main__ import main
from bench.common.machine import missing
from bench.common.report import report_of
from bench.common.worker import ROOT, Worker, WorkerFailed
from bench.tasks import sampling
from bench.tasks.cases import CASES, IMAGES, family_of, make_files
from bench.tasks.host_sequences import SequenceMaker, load_images
from bench.training import benchmark, goals
from bench.training.cases import CASES_BY_PLATFORM, NO_PEER, SIZES, START, size_of
from bench.training.scaling import exponent
from icl.layers.mixers import MIXERS
from icl.tasks import FAMILIES

HAS_TORCH = not missing(*benchmark.PEER_NEEDS)
STAND_IN = "tests.bench.stand_in_trainers:"
IN_GIT = not subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces PyTorch's processes by stand-ins, and with `ours` also JAX's."""

    def replace(trainer="start_trainer", gate="start_gate", host="start_host", ours=None):
        monkeypatch.setattr(benchmark, "PEER_NEEDS", ())
        monkeypatch.setattr(benchmark, "GATE", STAND_IN + gate)
        monkeypatch.setitem(START, "torch", STAND_IN + trainer)
        monkeypatch.setitem(sampling.START, "host", STAND_IN + host)
        if ours:
            monkeypatch.setitem(START, "jax", STAND_IN + ours)
            monkeypatch.setitem(sampling.START, "ours", STAND_IN + "start_sampler")
            monkeypatch.setattr(benchmark, "MACHINE", STAND_IN + "start_machine")

    return replace


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a benchmark; returns its status, its results and its output."""

    def go(name, *arguments):
        status = main([name, *arguments, "--out", str(tmp_path)])
        written = list((tmp_path / "results").glob(f"{name}-*.json"))
        results = json.loads(written[0].read_text(), parse_constant=pytest.fail) if written else {}
        return status, results, capsys.readouterr()

    return go


def test_training_times_every_contestant(run, not_compiled, stand_in, tmp_path):
    # Another revision's contestant runs in its own process and is compiled.
    if not HAS_TORCH:
        stand_in()
    against = ("--against", "HEAD") if IN_GIT else ()
    status, results, printed = run("training", "tiny@8", "--rounds", "2", "--steps", "1", *against)
    assert status == 0, printed.err
    names = ["ours", "plain attention", "torch", "torch.compile"]
    names += ["ours at HEAD"] if IN_GIT else []
    found = results["cases"]["tiny@8"]
    assert list(found["contestants"]) == found["asked"] == names and not found["failed"]
    assert found["steps_a_turn"] == 1 and found["flops_a_step"] > 0
    for name in names:
        reps = found["contestants"][name]["ms_a_step"]["rounds"]
        assert len(reps) == 2 and min(reps) > 0
        if name != "ours":
            pairs = zip(reps, found["contestants"]["ours"]["ms_a_step"]["rounds"])
            assert found["times_ours"][name]["rounds"] == pytest.approx([a / b for a, b in pairs])
    assert 0 < found["draw_ms"]["median"] and found["draw_share"]["median"] > 0
    assert results["gate"]["tiny"]["parameters"] > 0
    assert len(results["machine"]["revision"].removesuffix("-dirty")) == 12 or not IN_GIT
    if IN_GIT:
        older = found["contestants"]["ours at HEAD"]
        assert older["ready"]["compile_seconds"] > 0 and older["memory"]["program"] > 0
    page = (tmp_path / "RESULTS.md").read_text()
    ms = found["contestants"]["torch.compile"]["ms_a_step"]["median"]
    assert all(str(part) in printed.out for part in report_of("training", results).parts)
    row = f"| tiny@8 | torch.compile   | {ms:>9.1f} |"
    assert row in printed.out and row in page
    [picture] = (tmp_path / "results").glob("*.png")
    assert f"(results/{picture.name})" in page and picture.stat().st_size > 5000


def test_a_mixer_without_a_peer_is_marked(run, stand_in):
    stand_in(ours="start_ours")
    status, results, printed = run("training", *NO_PEER)
    assert status == 0, printed.err
    assert all(found["asked"] == ["ours"] for found in results["cases"].values())
    assert printed.out.count("no peer") == len(NO_PEER)


def test_an_unknown_revision_is_refused(run, stand_in):
    stand_in(ours="start_ours")
    status, results, printed = run("training", "tiny@8", "--alone", "--against", "no-such-revision")
    assert status == 1 and not results and "no revision 'no-such-revision'" in printed.err


def test_failing_contestants_and_goals_not_measured_are_reported_last(run, stand_in, monkeypatch):
    monkeypatch.setitem(goals.CPU_RATIOS, "tiny", (2.0, 1.5))
    stand_in(trainer="start_broken_trainer", ours="start_ours")
    arguments = ("tiny@8", "--rounds", "1", "--steps", "1", "--only", "torch")
    status, results, printed = run("training", *arguments)
    assert status == 1
    assert "ImportError: no kernel image" in results["cases"]["tiny@8"]["failed"]["torch"]
    assert "ours" in results["cases"]["tiny@8"]["contestants"]
    assert printed.err.splitlines() == [
        "NOT MEASURED: tiny@8, torch: ImportError: no kernel image",
        "NOT MEASURED: goal: tiny@8: torch takes 2 times as long",
    ]


def test_a_contestant_that_ends_in_its_turns_fails(run, stand_in):
    stand_in(trainer="start_tired_trainer", ours="start_ours")
    arguments = ("tiny@8", "--rounds", "1", "--steps", "1", "--only", "torch")
    status, _, printed = run("training", *arguments)
    assert status == 1 and "in its turns" in printed.err.splitlines()[-1]


def test_nothing_is_timed_if_the_gate_fails(run, stand_in):
    stand_in(gate="start_wrong_gate", ours="start_ours")
    status, results, printed = run("training", "tiny@8", "--rounds", "1")
    assert status == 1 and not results
    assert printed.err.splitlines()[-1] == "NOT MEASURED: training: tiny: predictions differ"


def test_without_pytorch_ours_is_timed_and_the_status_is_1(run, stand_in, monkeypatch):
    stand_in(ours="start_ours")
    monkeypatch.setattr(benchmark, "PEER_NEEDS", ("no_such_package",))
    arguments = ("tiny@8", "--rounds", "1", "--steps", "1", "--only", "torch")
    status, results, printed = run("training", *arguments)
    assert status == 1 and "ours" in results["cases"]["tiny@8"]["contestants"]
    assert "no no_such_package here: pip install" in printed.err


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
def test_the_gate_finds_a_peer_with_other_parameters(monkeypatch):
    from bench.training import gate

    right = gate.make_peer
    monkeypatch.setattr(gate, "make_peer", lambda config: right(config.replace(model_layers=2)))
    with pytest.raises(ValueError, match="parameters"):
        gate.start("tiny", ["ours"])


def test_goals_are_met_missed_or_not_measured():
    case = lambda **ratios: {
        "asked": ["ours", *ratios],
        "contestants": {},
        "times_ours": {name: {"median": ratio} for name, ratio in ratios.items() if ratio},
    }
    cases = {"xs@64": case(torch=2.5), "small@64": case(torch=1.0), "standard@64": case(torch=0)}
    found = goals.goals({"platform": "cpu", "cases": cases | {"tiny@8": case(torch=1)}})
    assert [goal.met for goal in found] == [True, False, None]
    gpu = {"contestants": {"ours": {"ms_a_step": {"median": 2.0}}}, "asked": [], "times_ours": {}}
    found = goals.goals({"platform": "gpu", "cases": {"standard@64": gpu}})
    assert [goal.met for goal in found] == [True, None] and "16.7 minutes" in found[0].value


def test_the_profile_leaves_out_one_part_at_a_time(run, not_compiled):
    status, results, printed = run("profile", "tiny@8", "--rounds", "1", "--steps", "1")
    assert status == 0, printed.err
    rows = {row["name"]: row for row in results["cases"]["tiny@8"]["rows"]}
    assert list(rows) == [
        "attention without projections", "its projections", "MLP", "layer norms", "drawing tasks",
        "optimiser", "rest", "whole step",
    ]  # fmt: skip
    parts = sum(row["ms"] for name, row in rows.items() if name != "whole step")
    assert parts == pytest.approx(rows["whole step"]["ms"])
    assert all(name in printed.out for name in rows)


def test_scaling_times_every_value_of_an_axis(run, not_compiled):
    arguments = ("batch", "--base", "tiny@8", "--rounds", "1")
    status, results, printed = run("scaling", *arguments)
    assert status == 0, printed.err
    found = results["scaling"]["batch"]
    assert [row["value"] for row in found["rows"]] == [4, 8]
    assert all(row["ms_a_step"]["median"] > 0 for row in found["rows"])
    assert "time grows as batch^" in printed.out
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_a_population_is_timed_beside_one_model(run, not_compiled):
    arguments = ("tiny@8", "--members", "2", "--steps", "1", "--rounds", "1")
    status, results, printed = run("populations", *arguments)
    assert status == 0, printed.err
    assert results["over_population"]["population"]["median"] == 1
    assert len(results["ms_a_step_of_a_model"]) == 3 and "alone on one device" in printed.out


def test_sampling_times_families_and_a_host_sampler(run, in_process, stand_in):
    if not HAS_TORCH:
        stand_in()
    names = ["sine", "vector_retrieval"]  # labels are numbers in one and vectors in the other
    status, results, printed = run("sampling", *names, "--batch", "2", "--rounds", "1")
    assert status == 0, printed.err
    assert list(results["families"]) == names
    for name, family in results["families"].items():
        assert family["ms_a_batch"]["ours"]["median"] > 0 and name in printed.out
        assert family["host_over_ours"]["median"] > 0


def test_every_case_of_class_sequences_is_timed(run, in_process, stand_in):
    if not HAS_TORCH:
        stand_in()
    names = [name for name in CASES if name.startswith("class_sequences")]
    sizes = ("--batch", "2", "--rounds", "1", "--size", "4")
    status, results, printed = run("sampling", *names, *sizes)
    assert status == 0, printed.err
    assert list(results["families"]) == names and IMAGES in names
    assert all(family["host_over_ours"]["median"] > 0 for family in results["families"].values())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("class_seq")])
def test_class_sequences_of_the_host_are_distributed_as_ours(name, tmp_path):
    import jax

    from icl.evaluation.curves import draw_of

    np.random.seed(0)
    random.seed(0)
    family = family_of(name, make_files([name], tmp_path, 4)[name])
    maker = SequenceMaker(family, load_images(family)).sequences()
    x, y = (np.stack(arrays) for arrays in zip(*(next(maker) for _ in range(1000))))
    ours = draw_of(family, jax.random.key(0), 1000)
    ours_x, ours_y = np.asarray(ours.x), np.asarray(ours.y)
    assert y.shape == ours_y.shape and max(y.max(), ours_y.max()) < family.rare + family.common
    of_common = lambda labels: np.mean(labels >= family.rare)
    assert of_common(y) == pytest.approx(of_common(ours_y), abs=0.03)
    supported = lambda labels: np.mean((labels[:, :-1] == labels[:, -1:]).sum(axis=1) >= 3)
    assert supported(y) == pytest.approx(supported(ours_y), abs=0.03)
    if family.is_images:
        assert x.shape == (*ours_x.shape, 1) and x.dtype == np.float32
        assert x.mean() == pytest.approx(ours_x.mean() / 255, rel=0.05)
        return
    for classes, items in (np.moveaxis(x, -1, 0), np.moveaxis(ours_x, -1, 0)):
        assert classes.shape == y.shape and np.bincount(items.ravel()) == pytest.approx(450, abs=90)
    assert (x[..., 0] == y).all() and (ours_x[..., 0] == ours_y).all()


def test_a_family_without_a_peer_is_marked_and_a_failing_peer_is_reported(
    run, stand_in, monkeypatch
):
    monkeypatch.setattr(sampling, "NO_PEER", ("sine",))
    stand_in(host="start_broken_host", ours="start_ours")
    arguments = ("sine", "linear_regression", "--batch", "2", "--rounds", "1")
    status, results, printed = run("sampling", *arguments)
    assert status == 1 and results["families"]["sine"]["peer"] is None
    assert "no peer" in printed.out
    assert printed.err == (
        "NOT MEASURED: linear_regression, host sampler: ModuleNotFoundError: no PyTorch\n"
    )


def test_every_family_has_a_host_sampler_or_is_listed_as_without():
    source = (ROOT / "bench" / "tasks" / "host_samplers.py").read_text()
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    samplers = {node.name for node in functions if not node.name.startswith("_")}
    assert samplers | set(sampling.NO_PEER) == set(FAMILIES)
    assert not samplers & set(sampling.NO_PEER)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize("name", FAMILIES)
def test_host_samplers_and_families_have_equal_distributions(name):
    import jax

    from bench.tasks import host_samplers
    from icl.evaluation.curves import draw_of

    family = FAMILIES[name]()
    host_samplers.torch.manual_seed(0)
    prompts = 128 if name == "projected_images" else 512  # slow on the host
    x, y = (array.numpy() for array in getattr(host_samplers, name)(prompts, family))
    ours = draw_of(family, jax.random.key(0), prompts)
    assert x.shape[: ours.x.ndim] == ours.x.shape
    # Quantiles of absolute values, because inputs of some families have no variance.
    quantiles = lambda array: np.quantile(np.abs(np.asarray(array)), [0.25, 0.5, 0.75, 0.9])
    ours_x = ours.x / 255 if ours.x.dtype == np.uint8 else ours.x
    step = 1 if np.issubdtype(x.dtype, np.integer) else 0.02  # quantiles of symbols are whole
    np.testing.assert_allclose(quantiles(x), quantiles(ours_x), rtol=0.05, atol=step)
    labels = ours.y if y.ndim == ours.y.ndim else ours.label_tokens
    if np.issubdtype(y.dtype, np.integer):
        shares = [
            np.bincount(np.ravel(labels), minlength=family.label_kind.number) / y.size
            for labels in (y, labels)
        ]
        np.testing.assert_allclose(*shares, atol=0.02)
        return
    np.testing.assert_allclose(quantiles(y), quantiles(labels), rtol=0.15, atol=0.05)


def test_every_mixer_has_a_case_and_mixers_without_a_peer_are_listed():
    mixers = {SIZES[size].model.mixer for size in SIZES}
    assert mixers == {name for name in MIXERS if name != "plain_attention"}
    for cases in CASES_BY_PLATFORM.values():
        assert {SIZES[size_of(case)].model.mixer for case in cases} == mixers
    assert {size for size in SIZES if SIZES[size].model.mixer != "attention"} == set(NO_PEER)


def test_the_lasso_is_compared_before_it_is_timed(run, in_process):
    sizes = ("--prompts", "3", "--loop-prompts", "2", "--checked-prompts", "2")
    sizes += ("--dim", "2", "--points", "3", "--rounds", "1")
    status, results, printed = run("lasso", *sizes)
    assert status == 0, printed.err
    assert results["agreement"]["compared"] > 0
    assert 0 <= results["agreement"]["largest_difference"] < 1e-6
    assert results["loop_over_ours"]["median"] > 0 and "loop over ours" in printed.out


def test_a_lasso_that_differs_is_refused(in_process, monkeypatch):
    from bench.tasks import lasso

    right = lasso._ours
    monkeypatch.setattr(lasso, "_ours", lambda x, y: right(x, y) + 1e-3)
    sizes = lasso.SIZES | {"prompts": 3, "checked_prompts": 2, "dim": 2, "points": 3, "noise": 0.0}
    with pytest.raises(ValueError, match="nothing is timed"):
        lasso.start(sizes)


@pytest.mark.parametrize("arguments", [
    ("training", "huge"), ("training", "xs@0"), ("training", "xs@x"), ("training", "--rounds", "0"),
    ("profile", "huge"), ("scaling", "width"), ("populations", "huge"), ("sampling", "cosine"),
    ("lasso", "--dim", "-1"), ("no-such-benchmark",),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_known_ones(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert "usage: python -m bench" in capsys.readouterr().err


def test_results_of_some_cases_do_not_overwrite_those_of_all(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("bench.common.driver.BENCH", tmp_path)
    monkeypatch.setattr(
        "bench.training.scaling.measure", lambda _: {"device": "cpu", "scaling": {}}
    )
    assert main(["scaling", "layers"]) == 0
    assert "not written, because only some cases" in capsys.readouterr().out and not list(
        tmp_path.iterdir()
    )


def test_a_worker_that_ends_or_refuses_is_reported():
    with pytest.raises(WorkerFailed, match="no kernel image"):
        Worker(STAND_IN + "start_broken_trainer", "tiny@8", "torch", 1, "cpu")
    with Worker(STAND_IN + "start_tired_trainer", "tiny@8", "torch", 1, "cpu") as worker:
        with pytest.raises(WorkerFailed, match="ended with status 1"):
            worker.ask("step")


def test_a_worker_that_hangs_fails(monkeypatch):
    with Worker(STAND_IN + "start_hanging_trainer", "tiny@8", "torch", 1, "cpu") as worker:
        monkeypatch.setattr("bench.common.worker.MOST_SECONDS", 0.5)
        with pytest.raises(WorkerFailed, match="hung: no answer in 0.5 s"):
            worker.ask("step")


def test_a_worker_imports_icl_from_its_source(tmp_path):
    (tmp_path / "icl").mkdir()
    (tmp_path / "icl" / "__init__.py").touch()
    for source in (ROOT, tmp_path):
        with Worker(STAND_IN + "start_where_icl_is", source=source) as worker:
            assert worker.ready["icl"] == str(source / "icl" / "__init__.py")
