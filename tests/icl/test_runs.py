"""Run folders: no file is overwritten, and incomplete files are recognised."""

import json
import os
import shutil
import warnings

import jax
import numpy as np
import optax
import pytest

import icl
from icl.cli import main
from icl.evaluation import Evaluation, training_figure
from icl.sweeps import Sweep, SweepResult
from icl.training import LoggingConfig, Run, RunError, history
from icl.training.checkpoints import DamagedCheckpoint
from icl.training.run import free_path

from .helpers import QUIET, assert_same_bits, contents, tiny

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs):
    return icl.train(tiny(), tmp_path_factory.mktemp("runs") / "finished", logging=QUIET)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, which a test may change."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_an_opened_run_has_the_settings_it_was_made_with(finished):
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
def test_training_into_the_folder_of_a_run_is_refused_and_changes_nothing(run, make, message):
    before = contents(run.path)
    with pytest.raises(RunError, match=message):
        icl.train(make(run), run.path, logging=QUIET)
    assert contents(run.path) == before


def test_a_folder_that_is_not_a_run_is_refused_and_unchanged(tmp_path):
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


def edit(run, change):
    """Changes the content of a run's config.json."""
    file = run.path / "config.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("[" * 10**5, "nested too deeply"),
        (b"\xff\xfe{}", "byte 0 is no UTF-8 text"),
        ("[]", "no attribute"),
        ("{}", "it has no 'config'"),
        (lambda data: data.update(format=99), "format is 99, .* reads 1"),
        (lambda data: data["config"].pop("task"), "it has no 'task'"),
        (lambda data: data["config"]["task"].update(family="cubic"), "no task family called"),
        (lambda data: data["config"]["task"].update(dim="3"), "task.dim must be int, got '3'"),
        (
            lambda data: data["config"]["task"].update(dim=10**20),
            "task.dim must be a whole number from 1",
        ),
        (lambda data: data["config"]["task"].update(noise=True), "task.noise must be float"),
        (
            lambda data: data["config"]["task"].update(noise=np.nan),
            "task.noise must be a number from 0 to .* got nan",
        ),
        (lambda data: data["config"].update(optimizer=None), "optimizer must be settings"),
        (lambda data: data["config"].update(layout=[]), "cannot read"),
        (lambda data: data.update(history=7), "not iterable"),
        (lambda data: data.update(history=[{}]), "it has no 'from_step'"),
    ],
)
def test_an_unreadable_config_gives_an_error_that_says_why(tmp_path, content, message):
    run = Run.create(tmp_path / "run", tiny())
    file = run.path / "config.json"
    if callable(content):
        edit(run, content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for find in (Run.open, icl.resume, icl.evaluate):
        with pytest.raises(RunError, match=f"config.json cannot be read.*{message}"):
            find(run.path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl .*line 1 has no step"),
        ("metrics.jsonl", '{"step": 1}\n', "metrics.jsonl .*line 1 has no step and loss"),
        ("metrics.jsonl", '{"step": 1, "loss": 2}\nx\n\n', "metrics.jsonl .*line 2"),
        ("metrics.jsonl", '{"step": 100000000000000000000, "loss": 2}\n', "line 1"),
        ("metrics.jsonl", "\xff", "metrics.jsonl .*byte 0 is no UTF-8"),
        ("metrics.jsonl", None, "metrics.jsonl .*a folder is where a file should be"),
        ("eval.json", "", "eval.json cannot be read.*icl eval"),
        ("eval.json", "{}", "eval.json .*it has no 'examples'"),
        ("eval.json", '{"normalised_error": {"x": 3}}', "eval.json cannot be read"),
        (
            "eval.json",
            '{"normalised_error": {}, "examples": [], "reference": null, "step": 1, "prompts": 2}',
            "as many errors",
        ),
        ("eval.json", "\xff", "eval.json .*byte 0 is no UTF-8"),
        ("eval.json", None, "eval.json .*a folder is where a file should be"),
    ],
)
def test_an_unreadable_file_of_a_run_gives_an_error_that_names_it(
    tmp_path, file, content, message, capsys
):
    run = Run.create(tmp_path / "run", tiny())
    (run.path / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n{"step": 10, "lo')
    assert [record["step"] for record in run.metrics()] == [5]
    if content is None:
        (run.path / file).unlink(missing_ok=True)
        (run.path / file).mkdir()
    else:
        (run.path / file).write_bytes(content.encode("latin-1"))
    before = contents(run.path)
    with pytest.raises(RunError, match=message):
        if file == "eval.json":
            Evaluation.load(run)
        else:
            training_figure(run, run.path / "training.png")
    assert main(["plot", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("icl: ") and file in error and error.count("\n") == 1
    now = {p: c for p, c in contents(run.path).items() if p.stem != "training"}
    assert now == before  # except the figure of training


def test_an_unreadable_file_of_a_sweep_gives_an_error_that_names_it(tmp_path):
    sweep = Sweep.create(tmp_path / "sweep", tiny(), {"learning_rate": [1e-3]}, 1)
    for content in ("{}", '{"prompts": 1, "members": []}', "[3]"):
        (sweep.path / "results.json").write_text(content)
        with pytest.raises(RunError, match="results.json cannot be read.*icl sweep --resume"):
            SweepResult.load(sweep)
    data = json.loads((sweep.path / "sweep.json").read_text())
    for change in ({"seeds": 10**20}, {"seeds": "x"}, {"over": 3}, {"config": None}):
        (sweep.path / "sweep.json").write_text(json.dumps(data | change))
        with pytest.raises(RunError, match="sweep.json cannot be read"):
            Sweep.open(sweep.path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "the name of the folder is empty"),
        ("file/run", "a file is where a folder should be"),
        ("x" * 300, "name too long.*shorter name"),
        ("loop/run", "symbolic link"),
        ("/proc/run", "/proc/run cannot be used"),
    ],
)
def test_an_impossible_folder_gives_an_error_of_one_line(
    tmp_path, monkeypatch, folder, message, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    os.symlink("loop", tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match=f"(?i){message}"):
        icl.train(tiny(), folder)
    with pytest.raises(RunError):
        icl.sweep(tiny(), {"learning_rate": [1e-3]}, folder)
    for find in (Run.open, Sweep.open):
        with pytest.raises(RunError):
            find(folder)
    commands = (
        ["train", "garg/linear-xs", "--run-dir", folder],
        ["train", "--resume", folder],
        ["eval", folder],
        ["plot", folder],
        ["study", "ren/random-features", "--folder", folder],
    )
    for arguments in commands:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("icl: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "changes",
    [
        dict(optimizer_clip_norm=np.inf),
        dict(optimizer_learning_rate=np.nan),
        dict(optimizer_options={"b2": -np.inf}),
        dict(task_covariance_decay=np.inf),
        dict(training_steps=10**20),
    ],
)
def test_numbers_that_json_cannot_hold_are_refused(changes):
    [(name, _)] = changes.items()
    with pytest.raises(ValueError, match=f"{name.replace('_', '.', 1)}.* must be"):
        tiny(**changes)


def test_a_second_process_on_a_run_is_refused(run):
    with run.locked(), pytest.raises(RunError, match="another process"):
        icl.resume(run, logging=QUIET)


def test_a_default_folder_is_one_that_does_not_exist(tmp_path):
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


def damage_numbers(step):
    """Intact files with other numbers than those that were saved."""
    shutil.rmtree(step / "params")
    shutil.copytree(step.parent / "10" / "params", step / "params")


def damage_name(step):
    """The intact checkpoint of another step."""
    shutil.rmtree(step)
    shutil.copytree(step.parent / "10", step)


def damage_kind(step):
    shutil.rmtree(step)
    step.write_text("a file")


def damage_checksums(step):
    file = step / "checksums" / "metadata"
    file.write_text(file.read_text().replace("['blocks']", "['blokcs']", 1))


@pytest.mark.parametrize(
    "damage",
    [damage_data, damage_half, damage_manifest, damage_numbers, damage_name, damage_kind,
     damage_checksums],
)  # fmt: skip
def test_a_damaged_checkpoint_is_skipped(run, finished, damage):
    steps = run.checkpoints().steps()
    assert steps == [10, 20]
    earlier = run.path / "damaged" / "20"
    earlier.mkdir(parents=True)
    (earlier / "precious").write_text("set aside before")
    damage(run.path / "checkpoints" / "20")
    with pytest.warns(DamagedCheckpoint, match="20 is damaged.*the one before"):
        icl.resume(run, logging=QUIET)
    step, params = run.variables()
    assert step == 20
    assert_same_bits(params, finished.variables()[1])
    assert (run.path / "damaged" / "20-2").exists() and (earlier / "precious").exists()
    losses = lambda records: [r["loss"] for r in records]
    assert losses(run.metrics()) == losses(finished.metrics())
    dropped = (run.path / "metrics-dropped.jsonl").read_text().splitlines()
    assert losses(map(json.loads, dropped)) == losses(finished.metrics())[2:]


def test_if_all_checkpoints_are_damaged_the_error_says_how_to_start_again(run, finished):
    for step in (10, 20):
        damage_data(run.path / "checkpoints" / str(step))
    before = contents(run.path)
    for action in (lambda: icl.resume(run, logging=QUIET), run.variables):
        with pytest.warns(DamagedCheckpoint), pytest.raises(RunError) as caught:
            action()
        assert contents(run.path) == before | {run.path / ".lock": b""}
    command = str(caught.value).partition("from step 0 with: ")[2]
    move, resume = command.split(" && ")
    assert resume == f"icl train --resume {run.path}"
    shutil.move(*move.removeprefix("mv ").split())
    icl.resume(run, logging=QUIET)
    assert_same_bits(run.variables()[1], finished.variables()[1])
    assert len((run.path / "metrics-dropped.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_resume_that_does_not_fit_is_refused_and_changes_nothing(run, with_checksums):
    if not with_checksums:  # as in old runs
        for step in run.checkpoints().steps():
            shutil.rmtree(run.path / "checkpoints" / str(step) / "checksums")
        assert run.variables()[0] == 20
    before = contents(run.path)
    with pytest.raises(RunError, match="state of the optimiser.*has other arrays"):
        icl.resume(run, optimizer=optax.sgd(1e-3), logging=QUIET)
    with pytest.raises(RunError, match="has made 20 steps, more than the 15"):
        icl.resume(run, training_steps=15, logging=QUIET)
    assert contents(run.path) == before | {run.path / ".lock": b""}
    edit(run, lambda data: data["config"]["model"].update(width=32))
    before = contents(run.path)
    there = "model_width is 16 in the checkpoint, 32 now" if with_checksums else "other shapes"
    for action in (icl.resume, icl.evaluate):
        with pytest.raises(RunError, match=f"20 does not fit the settings.*{there}"):
            action(run.path)
    assert contents(run.path) == before
    if with_checksums:
        edit(run, lambda data: data["config"]["model"].update(width=16))
        edit(run, lambda data: data["config"]["task"].update(noise=0.5))
        with pytest.raises(RunError, match="20 does not fit.*task_noise is 0.0 in .*, 0.5 now"):
            icl.evaluate(run.path)
        edit(run, lambda data: data["config"]["task"].update(noise=0.0))
        edit(run, lambda data: data["config"]["optimizer"].update(learning_rate=1e-4))
        assert Run.open(run.path).variables()[0] == 20
        with pytest.raises(RunError, match="learning_rate is 0.003 in .*, 0.0001 now.*--resume"):
            icl.resume(run.path, logging=QUIET)


def test_a_custom_optimizer_with_another_state_is_refused(tmp_path):
    run = icl.train(tiny(), tmp_path / "run", optimizer=optax.adam(1e-3), logging=QUIET)
    assert json.loads((run.path / "config.json").read_text())["config"]["optimizer"] == {
        "name": "custom"
    }
    assert Run.open(run.path).config == run.config
    before = contents(run.path)
    with pytest.raises(RunError, match="rest.* missing now.*another optimiser given"):
        icl.resume(run, optimizer=optax.sgd(1e-3), logging=QUIET)
    with pytest.raises(ValueError, match="would change nothing: the optimiser .* from Python"):
        icl.resume(run, optimizer_learning_rate=1e-4, logging=QUIET)
    assert contents(run.path) == before


def test_a_run_continues_with_changed_settings_and_records_them(run, finished):
    shutil.rmtree(run.path / "checkpoints" / "20")
    command = ["train", "--resume", str(run.path), "--no-evaluate", "--logging.no-progress"]
    assert main([*command, "--optimizer.learning-rate=1e-3", "--optimizer.clip-norm", "1"]) == 0
    changed = Run.open(run.path)
    assert changed.config == tiny(optimizer_learning_rate=1e-3, optimizer_clip_norm=1.0)
    assert changed.history == [
        {
            "from_step": 10,
            "changed": {
                "optimizer_learning_rate": {"was": 3e-3, "now": 1e-3},
                "optimizer_clip_norm": {"was": None, "now": 1.0},
            },
        }
    ]
    assert changed.config_at(10) == finished.config and changed.config_at(20) == changed.config
    rates = [record["learning_rate"] for record in changed.metrics()]
    old = [record["learning_rate"] for record in finished.metrics()]
    assert rates[:2] == old[:2]
    np.testing.assert_allclose(rates[2:], np.array(old[2:]) / 3, rtol=1e-5)
    # Resume again, from the checkpoint of the optimiser that did not clip gradients.
    end = changed.variables()[1]
    shutil.rmtree(run.path / "checkpoints" / "20")
    again = icl.resume(run.path, logging=QUIET)
    assert_same_bits(again.variables()[1], end)
    assert again.history == changed.history == Run.open(run.path).history
    # An optimiser from Python, whose state has equal arrays at other places.
    adam = optax.adam(lambda step: 1e-4)
    given = icl.resume(run.path, optimizer=adam, training_steps=25, logging=QUIET)
    assert [record["step"] for record in given.metrics()] == [5, 10, 15, 20, 25]
    assert "learning_rate" not in given.metrics()[-1]
    reread = Run.open(run.path)
    assert reread.config == given.config and given.config.optimizer.name == "custom"
    assert [entry["from_step"] for entry in reread.history] == [10, 20]
    assert reread.config_at(10) == finished.config and reread.config_at(20) == changed.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task_noise=0.5), "task_noise cannot change.*what is learned"),
        (dict(model_layers=2), "model_layers cannot change.*model's parameters"),
        (dict(optimizer_name="sgd"), "optimizer_name cannot change.*optimiser's state"),
        (dict(training_seed=1), "training_seed cannot change"),
        (dict(training_pool_size=4), "training_pool_size cannot change"),
        (dict(curriculum_interval=9), "curriculum_interval cannot change"),
        (dict(layout="tagged"), "layout cannot change"),
        (dict(optimizer_learning_rate=-1.0), "optimizer.learning_rate must be a number from"),
    ],
)
def test_settings_that_cannot_change_are_refused(finished, changes, message, capsys):
    before = contents(finished.path)
    with pytest.raises(ValueError, match=message):
        icl.resume(finished, logging=QUIET, **changes)
    [(name, value)] = changes.items()
    option = name.replace("_", ".", 1).replace("_", "-")
    if "cannot change" in message:
        assert main(["train", "--resume", str(finished.path), f"--{option}={value}"]) == 2
        assert f"{name} cannot change" in capsys.readouterr().err
    assert contents(finished.path) == before


def test_the_settings_that_may_change_are_those_of_the_help():
    listed = {
        f"{section}_{name}"
        for section, kind in (
            ("optimizer", history.OptimizerChanges),
            ("training", history.TrainingChanges),
            ("model", history.ModelChanges),
        )
        for name in kind.__annotations__
    }
    free = {name for name in tiny().flat() if not history.fixed(name)}
    assert free == listed | {"optimizer_options"}


def test_a_resume_drops_incomplete_lines_and_those_after_the_checkpoint(run, finished):
    shutil.rmtree(run.path / "checkpoints" / "20")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "lo')
    assert len(run.metrics()) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedCheckpoint)
        icl.resume(run, logging=QUIET)
    losses = [(r["step"], r["loss"]) for r in run.metrics()]
    assert losses == [(r["step"], r["loss"]) for r in finished.metrics()]


def test_two_runs_with_equal_settings_log_equal_metrics(finished, tmp_path):
    again = icl.train(tiny(), tmp_path / "run", logging=LoggingConfig(progress=False))
    for a, b in zip(again.metrics(), finished.metrics(), strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert a[name] == b[name]
    other = icl.train(tiny(training_seed=1), tmp_path / "other", logging=QUIET)
    assert not np.allclose(other.metrics()[0]["loss"], again.metrics()[0]["loss"])
