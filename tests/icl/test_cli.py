"""The command line, as a person types it, in processes of its own where signals matter."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from icl import cli
from icl.analysis import ANALYSES, Analysis
from icl.cli import main
from icl.commands.eval import chosen
from icl.evaluation import Curve, Evaluation
from icl.experiments import PRESETS, presets
from icl.training import Run
from icl.training.progress import ProgressDisplay

TINY = [
    "--task.dim=3", "--task.points=5", "--model.layers=1", "--model.width=16",
    "--training.batch-size=8", "--training.log-every=5", "--training.checkpoint-every=10",
    "--optimizer.warmup-steps=5",
]  # fmt: skip


def train(folder, *more):
    return ["train", "garg/linear-xs", *TINY, f"--run-dir={folder}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, programs):
    """The folder of a run that the command trained and evaluated, and its output."""
    folder, output = tmp_path_factory.mktemp("cli") / "run", io.StringIO()
    with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        # A test draws the figures.
        patch.setattr(Figure, "savefig", lambda figure, path, **options: path.write_bytes(b""))
        assert main(train(folder, "--training.steps=20")) == 0
    return folder, output.getvalue()


@pytest.fixture
def folder(trained):
    return trained[0]


@pytest.fixture
def unevaluated(folder, tmp_path):
    """A copy of the run that was not evaluated."""
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "eval.json").unlink()
    return tmp_path / "run"


def test_list_shows_every_preset_with_a_line(capsys, monkeypatch):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out
    for name in PRESETS:
        assert name in lines
    # Piped whole, and cut at the width of a terminal.
    assert len(lines.splitlines()) == 3 + len(PRESETS)  # two studies
    assert all(preset.summary in lines for preset in PRESETS.values())
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list"]) == 0
    short = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(short) == len(lines.splitlines()) and max(map(len, short)) <= 80
    assert main(["list", "garg/linear-xs-d"]) == 0
    assert "minutes" in (out := capsys.readouterr().out) and "garg/linear-small" not in out


def test_listing_imports_no_paper_and_no_jax():
    program = """
import sys
from icl.cli import main
assert main(["list"]) == 0 and main(["--help"]) == 0
heavy = {"jax", "numpy", "flax", "optax", "orbax", "matplotlib", "tyro"} & set(sys.modules)
papers = {m for m in sys.modules if m.startswith("icl.experiments.")}
assert not heavy and papers == {"icl.experiments.presets", "icl.experiments.index"}, heavy | papers
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_a_preset_imports_the_file_of_its_paper_alone(monkeypatch):
    imported = []
    monkeypatch.setattr(presets, "import_module", lambda name, _: imported.append(name))
    with pytest.raises(KeyError):
        presets._Presets()["lstm/linear"]
    assert imported == [".looped"]


def test_train_eval_and_plot_leave_a_whole_run(folder, capsys):
    assert (folder / "eval.png").exists() and (folder / "training.png").exists()
    few = ["--prompts=20", "--resamples=5", "--analyses", "none"]
    assert main(["eval", str(folder), *few]) == 0
    assert (folder / "eval.png").stat().st_size > 0
    output = capsys.readouterr().out
    assert "transformer" in output and "least squares" in output and "zero" in output
    for name in ("eval.png", "training.png"):
        (folder / name).unlink()
    assert main(["plot", str(folder)]) == 0
    for name in ("config.json", "metrics.jsonl", "eval.json", "eval.png", "training.png"):
        assert (folder / name).stat().st_size > 0
    settings = json.loads((folder / "config.json").read_text())["config"]
    assert settings["task"]["dim"] == 3 and settings["training"]["steps"] == 20


def test_train_evaluates_at_its_end(trained):
    assert "error after k examples" in trained[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "no command 'tarin'"),
        (["train", "garg/linear-sx"], "did you mean garg/linear-xs"),
        (["train", "--training.steps=5", "garg/linear-xs"], "preset's name comes first"),
        (["eval", "nowhere"], "does not exist"),
        (["plot", "nowhere"], "does not exist"),
        (["eval", "nowhere", "--prompts=0"], "--prompts must be a whole number from 1 to 1000000"),
        (["eval", "nowhere", f"--prompts={10**20}"], "--prompts must be a whole number"),
        (["eval", "nowhere", f"--resamples={10**20}"], "--resamples must be a whole number"),
        (["eval", "nowhere", f"--seed={10**20}"], "--seed must be a whole number from 0"),
        (["train", "--resume", "nowhere"], "does not exist"),
        (["train", "garg/linear-xs", "--optimizer.name=adma", "--run-dir=x"], "did you mean"),
        (["list", "garg", "more"], "usage: icl list"),
        (["list", "lineaar"], "has 'lineaar' in its name; similar names are"),
        (["train", "garg/linear-xs", "--optimizer.warmup-steps=20000"], "longer than the run"),
        (["train", "garg/linear-xs", "--run-dir=x", "--training.steps=9"], "warmup_steps (100)"),
    ],
)
def test_wrong_commands_say_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_preset_in_the_place_of_its_run_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "garg-linear-xs").mkdir(parents=True)
    assert main(["eval", "garg/linear-xs"]) == 2
    assert "did you mean runs/garg-linear-xs?" in capsys.readouterr().err


def test_a_wrong_option_suggests_the_near_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "garg/linear-xs", "--task.nois=1"])
    assert stop.value.code == 2
    assert "--task.noise" in capsys.readouterr().err


def test_help_shows_defaults_and_what_options_mean(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    with pytest.raises(SystemExit):
        main(["train", "garg/linear-xs", "--help"])
    text = capsys.readouterr().out
    for shown in ("--task.noise", "(default: 3000)", "Standard deviation", "--run-dir"):
        assert shown in text


def test_resume_goes_on_to_the_last_step(unevaluated, programs, capsys):
    folder = unevaluated
    shutil.rmtree(folder / "checkpoints" / "20")
    assert main(["train", "--resume", str(folder), "--no-evaluate"]) == 0
    assert "resumed at step 10" in capsys.readouterr().out
    assert (folder / "checkpoints" / "20").is_dir()


def test_plot_before_eval_says_to_evaluate(unevaluated, capsys):
    assert main(["plot", str(unevaluated)]) == 2
    assert "icl eval" in capsys.readouterr().err


def test_a_taken_folder_is_refused(folder, capsys):
    assert main(train(folder, "--training.steps=20")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(train(folder, "--training.steps=30")) == 2
    assert "training_steps (that run has 20, this one 30)" in capsys.readouterr().err


def test_nan_is_exit_status_one(tmp_path, capsys):
    arguments = train(tmp_path / "run", "--optimizer.learning-rate=1e30", "--training.steps=20",
                      "--optimizer.warmup-steps=0")  # fmt: skip
    assert main(arguments) == 1
    assert "NaN or infinite" in capsys.readouterr().err


def wait_for_line(folder, process, seconds=120):
    """Until the run has logged something."""
    deadline = time.monotonic() + seconds
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_saves_and_leaves(tmp_path, programs, monkeypatch, capsys):
    send = lambda display, step, record: signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(ProgressDisplay, "update", send)
    folder = tmp_path / "run"
    assert main(train(folder, "--training.steps=20")) == 128 + signal.SIGINT
    assert f"--resume {folder}" in capsys.readouterr().err
    assert Run.open(folder).checkpoint_steps() == [5]


def test_a_signal_to_the_process_saves_and_leaves(tmp_path):
    folder, signum = tmp_path / "run", signal.SIGTERM
    command = [sys.executable, "-m", "icl.cli", *train(folder, "--training.steps=1000000")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_for_line(folder, process)
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert f"--resume {folder}" in errors
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (folder / "checkpoints" / str(last["step"])).is_dir()


SIGNALLED = """
import hashlib, os, signal, sys, threading, time
from icl.signals import end_at_once, saves_first

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as under nohup
end_at_once()
numbers = [int(number) for number in sys.argv[2:]]

def send():
    for number in numbers:
        time.sleep(0.2 if number != numbers[-1] else 1.5)
        os.kill(os.getpid(), number)

threading.Thread(target=send, daemon=True).start()
compiled = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no Python handler runs
if sys.argv[1] == "compiled":
    compiled()
elif sys.argv[1] == "saves":
    with saves_first() as stop:
        while not stop:
            time.sleep(0.01)
        print("saves", stop, flush=True)
        time.sleep(2.5)
else:
    with saves_first():
        compiled()
"""


def test_signals_end_the_command_with_a_sentence():
    interrupt, hangup, terminate = signal.SIGINT, signal.SIGHUP, signal.SIGTERM
    cases = [
        ("compiled", [interrupt], 130, "", "stopped at once"),
        ("compiled", [hangup], 129, "", "stopped at once"),
        ("saves", [terminate], 0, "saves [15]", "stopping after"),
        ("saves", [hangup, hangup], 0, "saves [1]", "stopping after"),
        ("saves", [interrupt, interrupt], 130, "saves [2]", "stopped at once"),
        ("both", [terminate, terminate], 143, "", "stopping after"),
    ]
    # All at once, since most of it is waiting.
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SIGNALLED, where, *map(str, map(int, sent))], **pipes
        )
        for where, sent, *_ in cases
    ]
    for process, (_, _, status, out, words) in zip(started, cases):
        said, errors = process.communicate(timeout=60)
        assert (process.returncode, said.strip()) == (status, out), errors
        assert words in errors and errors.count("\n") <= 2


def test_threads_of_a_failed_restore_say_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    for words in ("Event loop is closed", "another"):
        cli._unraisable(types.SimpleNamespace(exc_value=RuntimeError(words)))
    assert [str(raised.exc_value) for raised in told] == ["another"]


def test_eval_asks_what_it_is_told_to(folder, capsys, undrawn):
    few = ["eval", str(folder), "--prompts=20", "--resamples=5"]
    assert main([*few, "--analyses", "heads"]) == 0
    out = capsys.readouterr().out
    assert "heads.png" in out and "shifts.png" not in out and (folder / "heads.png").exists()
    assert main([*few, "--analyses", "haeds"]) == 2
    assert "no analysis 'haeds'; there are all, none, shifts" in capsys.readouterr().err
    assert main([*few, "--analyses", "copying"]) == 2
    assert "does not allow the analysis 'copying'; it allows shifts" in capsys.readouterr().err
    assert main(["eval", str(folder), "--against", str(folder)]) == 2
    assert "predicts every label" in capsys.readouterr().err
    assert chosen(Run.open(folder), ("all",)) == ["shifts", "function", "heads"]


def test_a_study_leaves_a_folder(tmp_path, capsys, monkeypatch):
    def study(folder):
        return Evaluation(
            np.arange(1), {"a": Curve(*np.ones((3, 1)))}, None, 1, 2, folder
        ).written()

    monkeypatch.setitem(ANALYSES, "mine/study", Analysis("nothing", "a line", study))
    assert main(["study", "mine/study", "--folder", str(tmp_path / "new" / "folder")]) == 0
    assert "folder/eval.png" in capsys.readouterr().out
    assert (tmp_path / "new" / "folder" / "eval.json").exists()
    assert main(["list"]) == 0 and "mine/study" in capsys.readouterr().out
    for arguments, message in (
        (["study"], "oswald/descent"),
        (["study", "oswald/descnt"], "did you mean oswald/descent"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
