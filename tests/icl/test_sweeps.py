"""Sweeps: names, values, folders, stopping and going on, results."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest

import icl
from icl.cli import main
from icl.models import SelfAttentionConfig
from icl.sweeps import Sweep, SweepResult, parse_over, resume_sweep, train_sweep
from icl.sweeps import train as sweep_training
from icl.sweeps.grid import grid, member_name, setting_name
from icl.training import Config, Interrupted, NonFiniteLoss, Run, RunError, loop
from icl.training.progress import ProgressDisplay
from icl.training.step import Program

from .helpers import QUIET, assert_same_bits, tiny

# Its program compiles in half the time of a transformer's.
QUICK = tiny(model=SelfAttentionConfig(heads=2), layout="concatenated")
OVER = {"optimizer_learning_rate": [3e-3, 1e30], "training_pool_size": [4, 64]}


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Every population is compiled once, though several sweeps of these tests train it."""
    known, original = {}, sweep_training.compile_population

    def compile_population(config, settings, state, length, mesh, data):
        name = (repr(config), len(settings.learning_rate), length)
        if name not in known:
            known[name] = original(config, settings, state, length, mesh, data).compiled
        return Program(known[name], settings, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_training, "compile_population", compile_population)
        patch.setattr(sweep_training, "PROMPTS", 64)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    return train_sweep(QUICK, OVER, seeds=2, sweep_dir=folder, progress=False)


def test_every_member_is_a_run(finished):
    assert len(finished.members) == 8
    names = {member.path.name for member in finished.members}
    assert "learning_rate=0.003,pool_size=4,seed=1" in names
    healthy = [m for m in finished.members if m.config.optimizer.learning_rate < 1]
    for member in healthy:
        run = Run.open(member.path)
        assert run.config == member.config
        assert [record["step"] for record in run.metrics()] == [5, 10, 15, 20]
        assert run.variables()[0] == 20
    first = [member.run.metrics()[0]["loss"] for member in healthy]
    assert len(set(first)) == 4
    assert icl.evaluate(healthy[0].path, prompts=8, resamples=2).step == 20


def test_a_member_is_its_solo_run(finished, tmp_path):
    member = finished.members[1]
    alone = icl.train(member.config, tmp_path / "alone", logging=QUIET)
    for name in ("loss", "grad_norm", "learning_rate"):
        ours, theirs = ([r[name] for r in run.metrics()] for run in (alone, member.run))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_one_that_diverges_stops_nobody(finished):
    result = SweepResult.load(finished)
    diverged = [record for record in result.records if "diverged_after" in record]
    assert len(diverged) == 4 and all("1e+30" in record["member"] for record in diverged)
    assert "diverged" in str(result)
    assert (finished.path / "sweep.png").stat().st_size > 10_000
    with pytest.raises(RunError, match="no checkpoint"):
        next(m for m in finished.members if m.path.name == diverged[0]["member"]).run.variables()


def test_results_are_the_errors_of_the_members(finished):
    result = SweepResult.load(finished)
    record = result.records[0]
    assert (
        result.error_name
        == finished.config.task.label_kind.error_name
        in " ".join(str(result).split())
    )
    assert record["changes"] == {
        "optimizer_learning_rate": 3e-3, "training_pool_size": 4, "training_seed": 0,
    }  # fmt: skip
    assert record["examples"] == [4]
    evaluated = icl.evaluate(finished.members[1].path, prompts=64, resamples=2)
    own = next(iter(evaluated.curves.values())).mean
    np.testing.assert_allclose(result.records[1]["normalised_error"], own, rtol=1e-4)


def test_a_program_whose_models_all_diverge_stops_no_other(tmp_path):
    sweep = train_sweep(
        QUICK.replace(training_steps=5),
        {"noise": [1e30, 0.5]},
        sweep_dir=tmp_path / "sweep",
        progress=False,
    )
    first, second = SweepResult.load(sweep).records
    assert first["diverged_after"] == 0 and len(second["normalised_error"]) == 1


def test_all_diverging_stops_with_advice(tmp_path):
    with pytest.raises(NonFiniteLoss, match="every model .*lower learning_rate"):
        train_sweep(
            QUICK, {"learning_rate": [1e30, 3e30, 1e31, 3e31]}, seeds=2,
            sweep_dir=tmp_path / "sweep", progress=False,
        )  # fmt: skip


def test_a_sweep_that_was_stopped_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    stop = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "saves_first", lambda: contextlib.nullcontext(stop))
        show = lambda display, step, record: step == 10 and stop.append(2)
        patch.setattr(ProgressDisplay, "update", show)
        with pytest.raises(Interrupted, match="step 10; continue with: icl sweep --resume"):
            train_sweep(QUICK, OVER, seeds=2, sweep_dir=tmp_path / "sweep", progress=False)
    with pytest.raises(RunError, match="no results.json.*--resume"):
        SweepResult.load(Sweep.open(tmp_path / "sweep"))
    again = resume_sweep(tmp_path / "sweep", progress=False)
    for one, other in zip(again.members[:4], finished.members[:4]):
        assert_same_bits(one.run.variables()[1], other.run.variables()[1])
        assert [r["loss"] for r in one.run.metrics()] == [r["loss"] for r in other.run.metrics()]
    assert SweepResult.load(again).records == SweepResult.load(finished).records


def test_a_finished_sweep_trains_nothing_again(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "sweep")
    before = Sweep.open(tmp_path / "sweep").members[0].run.metrics()
    assert resume_sweep(tmp_path / "sweep", progress=False).members[0].run.metrics() == before


def test_folders_are_never_overwritten(finished, tmp_path):
    with pytest.raises(RunError, match="exists.*icl sweep --resume"):
        train_sweep(QUICK, OVER, sweep_dir=finished.path)
    with pytest.raises(RunError, match="not a sweep"):
        resume_sweep(tmp_path)
    with finished.locked(), pytest.raises(RunError, match="another process"):
        resume_sweep(finished)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("learning_rate=1e-4,3e-4", "optimizer_learning_rate", [1e-4, 3e-4]),
        ("pool=2^4..2^7", "training_pool_size", [16, 32, 64, 128]),
        ("training.pool-size=none,2^0..2^20:10", "training_pool_size", [None, 1, 1024, 2**20]),
        ("layers=1..3", "model_layers", [1, 2, 3]),
        ("noise=0,0.5", "task_noise", [0.0, 0.5]),
        ("mixer=attention,delta_rule", "model_mixer", ["attention", "delta_rule"]),
        ("layout=interleaved", "layout", ["interleaved"]),
    ],
)
def test_settings_and_values_are_read(text, name, values):
    assert parse_over(tiny(), text) == (name, values)
    assert [changes[name] for changes, _ in grid(tiny(), dict([parse_over(tiny(), text)]), 1)] == (
        values
    )


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["learning_rat=1"], "no setting 'learning_rat'; did you mean optimizer_learning_rate"),
        (["points_=1"], "no setting"),
        (["learning_rate"], "write name=value"),
        (["pool=4..2"], "range '4..2' is empty"),
        (["pool=2^4..3^5"], "cannot read the range"),
        (["layers=1.5"], "model_layers cannot be 1.5; it is int"),
        (["dtype=float16"], "model_dtype cannot be 'float16'; it is float32 or bfloat16"),
        (["width=15"], "width=15 is impossible: .*2 heads"),
        (["layers=1,1"], "a value twice"),
        (["seed=1,2", "--seeds=2"], "either seeds or training_seed"),
        (["pool=2^4..2^99999999"], "more than 10000 members"),
        (["pool=1..99999999999999999999999"], "more than 10000 members"),
        (["dim=1..100000000"], "more than 10000 members"),
        (["dim=1..200", "points=1..200"], "more than 10000 members"),
        (["dim=5", "--seeds=1000000000"], "more than 10000 members"),
        (["dim=9999999999^99999999"], "beyond all that a setting can be"),
        (["noise=0^-1"], "beyond all that a setting can be"),
        (["name=adam,nonsense"], "member name=nonsense is impossible: no optimiser called"),
        (["max_tokens=101,7"], "member max_tokens=7 is impossible: prompts of .* tokens do not"),
        (["warmup=5,20000"], "warmup_steps=20000 is impossible: .*longer than the run"),
        (["width=2,131072"], "out of memory: the model"),
    ],
)
def test_wrong_sweeps_are_refused_before_anything_is_made(tmp_path, capsys, over, message):
    options = [t if t.startswith("--") else f"--over={t}" for t in over]
    folder = tmp_path / "sweep"
    arguments = ["sweep", "garg/linear-xs", f"--sweep-dir={folder}", "--model.heads=2", *options]
    assert main(arguments) == (1 if "out of memory" in message else 2)
    assert re.search(message, capsys.readouterr().err)
    assert not folder.exists()


def test_a_name_that_fits_several_settings_is_refused(monkeypatch):
    monkeypatch.setattr(Config, "flat", lambda self: {"task_depth_low": 1, "model_depth_low": 2})
    with pytest.raises(ValueError, match="task_depth_low or model_depth_low"):
        setting_name(tiny(), "depth")


def test_member_names_tell_what_changes():
    assert member_name({"optimizer_learning_rate": 1e-3, "training_seed": 2}) == (
        "learning_rate=0.001,seed=2"
    )


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "sweep"
    tiny_options = [
        "--task.dim=3", "--task.points=5", "--model.layers=1", "--model.width=16",
        "--optimizer.learning-rate=3e-3", "--optimizer.warmup-steps=5", "--training.steps=20",
        "--training.batch-size=8", "--training.log-every=5", "--training.checkpoint-every=10",
        "--optimizer.name=adam",
    ]  # fmt: skip
    arguments = ["sweep", "garg/linear-xs", f"--sweep-dir={folder}", *tiny_options]
    assert main([*arguments, "--over", "pool=4,8", "--seeds", "2"]) == 0
    output = capsys.readouterr().out
    assert "program 1 of 1, 4 models" in output and "pool" in output
    assert json.loads((folder / "sweep.json").read_text())["over"] == {"training_pool_size": [4, 8]}
    assert main(["sweep", "--resume", str(folder)]) == 0
    assert main(arguments) == 2
    assert "icl sweep --resume" in capsys.readouterr().err
