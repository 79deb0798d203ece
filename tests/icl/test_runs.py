"""Run folders: nothing is overwritten, nothing half-written is believed."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import icl
from icl.training import LoggingConfig, Run, RunError
from icl.training.checkpoints import DamagedCheckpoint
from icl.training.run import free_path

from .test_training import QUIET, assert_same_bits, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return icl.train(tiny(), tmp_path_factory.mktemp("runs") / "finished", logging=QUIET)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run that a test may spoil."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_reads_back(finished):
    again = Run.open(finished.path)
    assert again.config == finished.config
    made_with = json.loads((finished.path / "config.json").read_text())["made_with"]
    assert made_with["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: run.config, "already holds this run.*--resume"),
        (lambda run: run.config.replace(task_noise=0.5), "other settings: task_noise"),
    ],
)
def test_a_taken_folder_is_refused_and_left_alone(run, make, message):
    before = contents(run.path)
    with pytest.raises(RunError, match=message):
        icl.train(make(run), run.path, logging=QUIET)
    assert contents(run.path) == before


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for action in (
        lambda: icl.train(tiny(), tmp_path, logging=QUIET),
        lambda: icl.resume(tmp_path),
    ):
        with pytest.raises(RunError, match="not a run"):
            action()
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RunError, match="does not exist"):
        icl.evaluate(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is a file"):
        icl.train(tiny(), tmp_path / "thesis.tex", logging=QUIET)


def test_an_unreadable_config_is_told(run):
    (run.path / "config.json").write_text("{")
    with pytest.raises(RunError, match="config.json cannot be read"):
        Run.open(run.path)


def test_two_processes_on_one_run_are_refused(run):
    with run.locked(), pytest.raises(RunError, match="another process"):
        icl.resume(run, logging=QUIET)


def test_default_folders_do_not_collide(tmp_path):
    assert free_path("garg/linear-xs", tmp_path) == tmp_path / "garg-linear-xs"
    (tmp_path / "garg-linear-xs").mkdir()
    assert free_path("garg/linear-xs", tmp_path) == tmp_path / "garg-linear-xs-2"


def test_resuming_a_finished_run_changes_nothing(run):
    before = run.metrics()
    icl.resume(run, logging=QUIET)
    assert run.metrics() == before


def damage_data(step):
    for file in (step / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def damage_half(step):
    shutil.rmtree(step / "rest")


def damage_manifest(step):
    for file in step.rglob("manifest*"):
        file.unlink()


@pytest.mark.parametrize("damage", [damage_data, damage_half, damage_manifest])
def test_a_damaged_checkpoint_is_passed_over(run, finished, damage):
    steps = run.checkpoints().steps()
    assert steps == [10, 20]
    damage(run.path / "checkpoints" / "20")
    with pytest.warns(DamagedCheckpoint, match="20 is damaged.*the one before"):
        icl.resume(run, logging=QUIET)
    step, params = run.params()
    assert step == 20
    assert_same_bits(params, finished.params()[1])
    assert (run.path / "damaged" / "20").is_dir()
    assert [r["loss"] for r in run.metrics()] == [r["loss"] for r in finished.metrics()]


def test_with_every_checkpoint_damaged_a_run_starts_over(run, finished):
    for step in (10, 20):
        damage_data(run.path / "checkpoints" / str(step))
    with pytest.warns(DamagedCheckpoint), pytest.raises(RunError, match="no checkpoint"):
        run.params()
    with pytest.warns(DamagedCheckpoint):
        icl.resume(run, logging=QUIET)
    assert_same_bits(run.params()[1], finished.params()[1])


def test_lines_past_the_checkpoint_and_torn_lines_are_dropped(run, finished):
    shutil.rmtree(run.path / "checkpoints" / "20")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "lo')
    assert len(run.metrics()) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedCheckpoint)
        icl.resume(run, logging=QUIET)
    losses = [(r["step"], r["loss"]) for r in run.metrics()]
    assert losses == [(r["step"], r["loss"]) for r in finished.metrics()]


def test_every_logged_line_is_the_same_again(finished, tmp_path):
    again = icl.train(tiny(), tmp_path / "run", logging=LoggingConfig(progress=False))
    for a, b in zip(again.metrics(), finished.metrics(), strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert a[name] == b[name]
    other = icl.train(tiny(training_seed=1), tmp_path / "other", logging=QUIET)
    assert not np.allclose(other.metrics()[0]["loss"], again.metrics()[0]["loss"])
