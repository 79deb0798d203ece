"""The GPU day: its rehearsal, cuts in the middle of it, and the packages that it carries."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from bench.common import machine
from bench.common.driver import parser_of
from bench.common.worker import ROOT, Worker
from bench.gpu_day import day, imports, preset, record, steps
from bench.gpu_day.record import Record
from bench.kernels import tune
from bench.kernels.ops import CASES
from bench.training.cases import CASES_BY_PLATFORM
from icl.experiments import PRESETS
from icl.kernels.attention import launch
from icl.kernels.attention.workloads import WORKLOADS
from icl.training import Run
from icl.training.loop import Interrupted

from . import gpu_day_stand_in as stand_in

SOME_RESULTS = ROOT / "bench" / "results" / "kernels-amd-epyc-2-cores.json"


def statuses(out):
    found = Record(out)
    return {part: found.last(part)["status"] for part in found.parts()}


def is_alive(pid):
    """Whether a process runs; one that ended and that nobody waited for does not."""
    try:
        status = (ROOT / f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


def wait_until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_rehearsal_runs_every_step(tmp_path, capsys):
    out, archive = tmp_path / "day", tmp_path / "kept" / "day.tar.gz"
    arguments = ["--rehearsal", "--out", str(out), "--archive", str(archive)]
    arguments += ["--wheels", str(tmp_path / "none")]
    assert day.main(arguments) == 0, capsys.readouterr()
    found = statuses(out)
    assert [part.partition("/")[0] for part in found] == list(steps.STEPS)
    assert set(found.values()) == {"done"}
    for name in ("kernels", "training"):
        [path] = (out / "results").glob(f"{name}-*.json")
        about = json.loads(path.read_text())["machine"]
        assert about["device"] == "cpu" and about["versions"]["jax"] and about["revision"]
    [table] = (out / "launch_tables").glob("*.json")
    assert json.loads(table.read_text())["plans"]
    assert Run.open(out / "run").checkpoint_steps()[-1] == 4
    summary = (out / "SUMMARY.md").read_text()
    assert "| preset/garg-linear | done |" in summary and "evaluated at step 4 of 4" in summary
    with tarfile.open(archive) as files:
        kept = {name.partition("/")[0] for name in files.getnames()}
        assert not any("checkpoints" in name for name in files.getnames())
    assert {"day.jsonl", "SUMMARY.md", "logs", "results", "launch_tables", "run"} <= kept
    capsys.readouterr()
    assert day.main(arguments) == 0
    assert "..." not in capsys.readouterr().out, "a part ran again"
    assert day.main([*arguments[:3], "--publish"]) == 1
    assert "of a rehearsal" in capsys.readouterr().err
    assert day.main(["--out", str(out)]) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_a_failed_step_and_one_that_hangs_do_not_stop_the_next(tmp_path, capsys):
    ends = steps.ENDS | {"tests": 24, "kernels": 0}
    assert day.main(["--out", str(tmp_path)], {"tests": stand_in.STEPS["tests"]}, ends) == 1
    ends["kernels"] = (Record(tmp_path).clock + 8) / 60  # time to start, on a busy machine
    assert day.main(["--out", str(tmp_path)], stand_in.STEPS, ends) == 1
    assert statuses(tmp_path) == {
        "tests/first": "done", "tests/broken": "failed",
        "kernels/second": "out of time", "training/third": "done",
    }  # fmt: skip
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("NOT MEASURED: tests/broken: ")
    assert (tmp_path / "logs/kernels/second.log").read_text() == "hangs\n"
    wait_until(lambda: not is_alive(int((tmp_path / "second.child").read_text())))
    assert "| tests/broken | failed | " in (tmp_path / "SUMMARY.md").read_text()
    assert (tmp_path / "first").read_text() == "started\n", "a part that was done ran again"
    again = ["--out", str(tmp_path), "--only", "tests", "--again", "tests/broken", "kernels"]
    assert day.main(again, stand_in.STEPS) == 1
    assert (tmp_path / "broken").read_text().count("started") == 2
    assert (tmp_path / "second").read_text().count("started") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_cut_loses_only_the_part_that_runs(tmp_path, signum):
    out, archive = tmp_path / "day", tmp_path / "day.tar.gz"
    command = [sys.executable, "-m", "tests.bench.gpu_day_stand_in", "--out", str(out)]
    command += ["--archive", str(archive), "--revision", "abc"]
    quiet = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    running = subprocess.Popen(command, **quiet)
    # The part writes this line after everything else.
    log = out / "logs/kernels/second.log"
    wait_until(lambda: log.exists() and log.read_text())
    children = [process for process in os.listdir("/proc") if _is_child(process, running.pid)]
    assert children
    running.send_signal(signum)
    assert running.wait() != 0
    wait_until(lambda: not any(map(is_alive, children)))
    grandchild = int((out / "second.child").read_text())
    if signum == signal.SIGKILL:  # nobody was left to end it
        os.kill(grandchild, signal.SIGKILL)
    wait_until(lambda: not is_alive(grandchild))
    assert (out / "logs/tests/first.log").read_text() == "last words\n"
    with tarfile.open(archive) as files:
        assert "logs/tests/first.log" in files.getnames()
    used = Record(out).clock
    assert used > 0
    with (out / "day.jsonl").open("a") as file:
        file.write('{"began": "trai')  # as a cut leaves it
    assert subprocess.run(command, **quiet).returncode == 1  # because of the broken part
    assert list(statuses(out).values()) == ["done", "failed", "done", "done"]
    assert (out / "first").read_text() == "started\n"
    assert (out / "second").read_text() == "started\nstarted\n"
    assert Record(out).clock > used


def _is_child(process, parent):
    try:
        return f"PPid:\t{parent}\n" in (ROOT / f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_time_that_is_used_ends_the_call_and_the_day(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--minutes"]
    assert day.main([*arguments, "0"], stand_in.STEPS) == 0
    assert "Not run: tests/first, tests/broken, kernels/second" in capsys.readouterr().out
    Record(tmp_path).tick(60 * 24)
    assert day.main([*arguments, "9"], stand_in.STEPS, steps.ENDS | {"training": 25}) == 0
    assert statuses(tmp_path) == {"training/third": "done"}


def test_a_part_that_always_ends_the_machine_is_given_up(tmp_path):
    found = Record(tmp_path)
    for _ in range(record.MOST_STARTS):
        assert not found.settled("kernels/text")
        found.add(began="kernels/text")
    assert found.settled("kernels/text")
    assert found.last("kernels/text") == {"status": "failed", "says": "starts without an end: 3"}
    found.add(forgot="kernels/text")
    assert not Record(tmp_path).settled("kernels/text")


def test_results_of_parts_are_joined_unless_their_revision_is_older(tmp_path):
    results = json.loads(SOME_RESULTS.read_text())
    for number, (name, revision) in enumerate(
        [("garg", "old"), ("chan", "new"), ("oswald", "new")]
    ):
        about = results["machine"] | {"revision": revision, "date": f"2026-01-0{number + 1}"}
        part = results | {"machine": about, "workloads": {name: results["workloads"][name]}}
        path = tmp_path / "parts" / "kernels" / name / "results" / SOME_RESULTS.name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(part))
    path.with_name("kernels-half.json").write_text('{"machine": ')
    Record(tmp_path).merge()
    [joined] = (tmp_path / "results").glob("*.json")
    joined = json.loads(joined.read_text())
    assert (
        list(joined["workloads"]) == ["chan", "oswald"] and joined["machine"]["revision"] == "new"
    )


def test_published_results_are_where_the_repository_keeps_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "TABLES", tmp_path / "tables")
    out, bench = tmp_path / "day", tmp_path / "bench"
    assert day.publish(out, bench) == 1
    (out / "results").mkdir(parents=True)
    (out / "launch_tables").mkdir()
    (out / "results" / SOME_RESULTS.name).write_text(SOME_RESULTS.read_text())
    (out / "launch_tables" / "nvidia-h200.json").write_text("{}")
    assert day.publish(out, bench) == 0
    assert (bench / "results" / SOME_RESULTS.name).read_text() == SOME_RESULTS.read_text()
    assert (tmp_path / "tables" / "nvidia-h200.json").exists()
    assert "### kernels" in (bench / "RESULTS.md").read_text()


def test_a_whole_day_has_every_test_workload_and_case(tmp_path):
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests/kernels").glob("test_*.py")}
    assert files == {name for names in steps.TESTS.values() for name in names}
    assert sorted(steps.WORKLOADS) == sorted(CASES)
    assert set(tune.by_key(steps.TUNED, "bfloat16")) == set(tune.by_key(WORKLOADS, "bfloat16"))
    assert set(steps.TRAINING) == set(CASES_BY_PLATFORM["gpu"])
    assert steps.PRESET in PRESETS
    assert list(steps.ENDS) == list(steps.STEPS) and steps.ENDS["preset"] == steps.DAY <= 25
    assert sorted(steps.ENDS.values()) == list(steps.ENDS.values())


def test_commands_of_a_whole_day_exist(tmp_path):
    (tmp_path / "some-1.0-py3-none-any.whl").touch()
    setting = steps.Setting(tmp_path, rehearsal=False, seed=1, wheels=tmp_path)
    parts = {name: make(setting) for name, make in steps.STEPS.items()}
    assert all(len({part.name for part in found}) == len(found) for found in parts.values())
    for name in ("kernels", "training"):
        for part in parts[name]:
            assert part.command[:3] == ["-m", "bench", name]
            parser_of(name).parse_args(part.command[3:])
    for part in parts["tune"]:
        tune.parse(part.command[3:])
    for part in parts["tests"]:
        assert all((ROOT / word).exists() for word in part.command if word.endswith(".py"))
        assert part.environment["ICL_TEST_DEVICE"] == "gpu"
    [part] = parts["preset"]
    preset.parse([word.replace("{seconds}", "9") for word in part.command[2:]])
    install, check = parts["packages"]
    assert install.every_call and install.command[-1].endswith(".whl")
    assert imports.parse(check.command[3:]).here


def test_a_preset_that_is_stopped_goes_on_and_is_evaluated(tmp_path, monkeypatch):
    called = []

    def train(config, run):
        called.append("train")
        Run.create(run, config)
        raise Interrupted(0, signal.SIGTERM, "icl train --resume")

    monkeypatch.setattr(preset, "train", train)
    monkeypatch.setattr(preset, "resume", lambda run: called.append("resume"))
    monkeypatch.setattr(preset, "evaluate", lambda *_, **__: called.append("evaluate"))
    monkeypatch.setattr(preset, "training_figure", lambda *_: None)
    arguments = ["garg/linear", str(tmp_path / "run"), "--seconds", "60"]
    assert preset.main(arguments) == steps.STEPS_LEFT
    monkeypatch.setattr(preset.Run, "checkpoint_steps", lambda self: [7])
    assert preset.main(arguments) == 0
    assert called == ["train", "resume", "evaluate"]


@pytest.mark.parametrize(
    "answer, said",
    [
        ("echo NVIDIA H200, 580.1, 143771 MiB", "NVIDIA H200, driver 580.1, 143771 MiB"),
        ("echo No devices were found", "no NVIDIA GPU"),
        ("exit 9", "no NVIDIA GPU"),
    ],
)
def test_the_gpu_and_its_driver_are_named(tmp_path, monkeypatch, answer, said):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert record.gpu() == said


def test_a_copy_without_a_repository_takes_its_revision_from_the_environment(monkeypatch):
    def no_git(*_):
        raise OSError

    monkeypatch.setattr(machine, "_git", no_git)
    assert machine.describe()["revision"] == "unknown"
    monkeypatch.setenv(machine.REVISION, "0123456789ab")
    assert machine.describe()["revision"] == "0123456789ab"


def test_contestants_find_packages_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / "carried.py").write_text("start = lambda: ({'here': __file__}, {})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("carried:start") as worker:
        assert worker.ready["here"] == str(tmp_path / "carried.py")


IMAGE, CARRIED = imports.read(imports.IMAGE), imports.read(imports.CARRIED)


def test_every_import_is_met(capsys):
    assert imports.main([]) == 0, capsys.readouterr()
    found = imports.imports()
    assert {"jax", "jax_triton", "tyro", "tensorboardX", "torch", "PIL"} <= set(found)
    assert CARRIED["jax-triton"].version == "0.3.1"
    assert not IMAGE.keys() & CARRIED.keys()


@pytest.mark.parametrize("name", [*CARRIED, "optax", "scipy"])
def test_a_package_that_is_taken_from_the_lists_is_missed(name, tmp_path, capsys):
    for option, path in (("image", imports.IMAGE), ("carried", imports.CARRIED)):
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.partition("==")[0] != name]
        (tmp_path / option).write_text("\n".join(kept))
    lists = ["--image", str(tmp_path / "image"), "--carried", str(tmp_path / "carried")]
    assert imports.main(lists) == 1
    assert f"{name}, which is neither" in (said := capsys.readouterr().err) or f"{name} is" in said


@pytest.mark.parametrize("name", CARRIED)
def test_comments_of_the_list_are_what_packages_say(name):
    def version(package):
        return None if package == name else {**IMAGE, **CARRIED}[package].version

    try:
        if importlib.metadata.version(name) != CARRIED[name].version:
            pytest.skip("another version is installed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("it is not installed")
    required = importlib.metadata.requires(name) or []
    assert not list(imports.need_problems(name, CARRIED[name], required, version))


def test_wheels_are_compared_with_the_list(tmp_path, monkeypatch):
    def wheel(name, version, *needs):
        with zipfile.ZipFile(tmp_path / f"{name}-{version}-py3-none-any.whl", "w") as file:
            about = "".join(f"Requires-Dist: {need}\n" for need in needs)
            file.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\n{about}")

    def problems():
        return list(imports.wheel_problems(tmp_path, image, carried))

    image = {"jax": imports.Pin("0.11.2")}
    carried = {"a-b": imports.Pin("1.0", ("jax",)), "c": imports.Pin("2.0")}
    wheel("A_b", "1.0", "jax>=0.11", 'other; extra == "tests"')
    assert problems() == [f"{tmp_path} must hold c 2.0 alone, and has nothing"]
    wheel("c", "2.0")
    assert problems() == []
    wheel("d", "1.0")
    assert problems() == [f"{tmp_path} has d, which is not in the list"]
    (tmp_path / "d-1.0-py3-none-any.whl").unlink()
    wheel("c", "2.1")
    assert "must hold c 2.0 alone" in problems()[0]
    (tmp_path / "c-2.1-py3-none-any.whl").unlink()
    wheel("A_b", "1.0", "jax>=0.12", "more")
    assert problems() == [
        "a-b needs jax, more, and its comment differs",
        "a-b needs jax>=0.12, and 0.11.2 is there",
    ]
    monkeypatch.setattr(imports, "MOST_BYTES", 100)
    assert "more than" in problems()[-1]


def test_modules_that_cannot_be_imported_are_named(monkeypatch, capsys):
    found = list(imports.modules())
    assert {"bench.gpu_day.day", "icl.kernels.attention.api", "icl"} <= set(found)
    assert not any(".kernels.kernels" in module or "__" in module for module in found)
    monkeypatch.setattr(imports, "modules", lambda: ["icl.registry", "bench.no_such_module"])
    found = list(imports.problems_here({}))
    assert found[-1].startswith("bench.no_such_module cannot be imported: ModuleNotFoundError")
    assert "JAX" in capsys.readouterr().out
    found = list(imports.problems_here({"jax": imports.Pin("0.0.1")}))
    assert found[0].startswith("jax must be 0.0.1, and here is ")
