"""Sequences of classes: modes at checkpoints, beside training, over sweeps, and their commands."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import icl
from icl import cli
from icl.analysis.emergence import IN_CONTEXT, IN_WEIGHTS, Emergence, emergence
from icl.analysis.mode_records import LINES, ModeCurves, append, lines, written
from icl.analysis.modes import (
    ModeEvaluator,
    allowed_modes,
    default_modes,
    evaluate_modes,
    follow_modes,
    measure_of,
    modes_of_run,
)
from icl.evaluation import evaluate
from icl.experiments import PRESETS
from icl.models import TransformerConfig
from icl.sweeps import SweepResult, train_sweep
from icl.tasks import KINDS, Classes, ClassSequences, Symbols
from icl.training import Config, Learner, Run, TrainingConfig
from icl.training.disk import RunError

from .helpers import QUIET, shrunk, tiny, untrained

SYMBOLS = ClassSequences(source=("symbols",), rare=12, common=4, holdout=6)
TASK = ClassSequences(source=("gaussians",), dim=4, rare=12, common=4, holdout=5, labels=4)
TINY = Config(
    task=TASK,
    layout="concatenated",
    model=TransformerConfig(
        layers=1, heads=2, width=16, embedding_width=8, embed_labels=True
    ),
    training=TrainingConfig(
        steps=4, batch_size=4, log_every=1, checkpoint_every=1, keep_checkpoints=9
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return icl.train(TINY, run_dir=tmp_path_factory.mktemp("run") / "run", logging=QUIET)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, whose results a test may change."""
    path = tmp_path / "run"
    shutil.copytree(trained.path, path)
    return Run.open(path)


# What a mode measures


def predictor(family) -> Any:
    """A learner of symbols that answers from its weights, or if they are False from the context."""
    known = family.class_labels

    def outputs(from_weights, episodes):
        query = episodes.x[:, -1]
        same = episodes.x[:, :-1] == query[:, None]
        first = jnp.take_along_axis(episodes.y, same.argmax(axis=1)[:, None], axis=1)[:, 0]
        shown = jnp.where(same.any(axis=1), first, known.number - 1)
        labels = jnp.where(from_weights, known.of(query), shown)
        return 9.0 * jax.nn.one_hot(labels, known.number)

    return types.SimpleNamespace(query_outputs=outputs, labels=family.label_kind)


@functools.cache
def measure(family, mode, prompts):
    return measure_of(predictor(family), family.mode(mode), prompts, 0)


@functools.cache
def measured(family, mode, answer, prompts=300):
    from_weights: Any = np.bool_(answer == "weights")
    return measure(family, mode, prompts)(from_weights)


@pytest.mark.parametrize("mode", KINDS)
def test_modes_tell_context_from_weights(mode):
    family = SYMBOLS
    context, weights = (measured(family, mode, answer) for answer in ("context", "weights"))
    if mode.startswith("no_support") or mode == "copy_available":
        assert context["accuracy"] == 0 and weights["accuracy"] == weights["own"] == 1
    elif mode in ("in_weights", "bursty"):
        assert weights["accuracy"] == weights["own"] == 1
    elif mode == "mixed":  # few-shot sequences are labelled anew
        assert weights["accuracy"] == pytest.approx(1 - family.p_fewshot, abs=0.06)
        assert weights["own"] == 1
    elif mode == "in_context":
        assert context["accuracy"] == weights["accuracy"] == 1
    elif mode == "flip":
        # The rest of the context may show a class of the burst with its own label.
        assert context["own"] < 0.1 and context["accuracy"] > 0.9
        assert weights["own"] == 1 and weights["accuracy"] == 0
    elif mode == "swap":
        assert context["accuracy"] == 1 and weights["accuracy"] == 0 and weights["own"] == 1
    else:
        assert context["accuracy"] > 0.9 and weights["accuracy"] < 0.3
        assert context["fewshot"] > 0.9
    for found in (context, weights):
        assert found["loss"] > 0
        # The label of a sequence that is not bursty may not be in play.
        if mode not in ("bursty", "mixed"):
            assert found["closed"] >= found["accuracy"] - 1e-6


def test_labels_in_play_chance_and_shares():
    chance = lambda mode, family=SYMBOLS: measured(family, mode, "weights")["chance"]
    assert chance("fewshot_holdout") == 0.5
    assert chance("no_support_rare") == pytest.approx(1 / 12)
    assert chance("no_support_common") == pytest.approx(1 / 4)
    assert chance("no_support_zipfian") == pytest.approx(1 / 16)
    rare, common = (
        measured(SYMBOLS, f"no_support_{group}", "weights") for group in ("rare", "common")
    )
    assert (rare["rare"], rare["common"], rare["support"]) == (1, 0, 0)
    assert (common["rare"], common["common"], common["support"]) == (0, 1, 0)
    assert measured(SYMBOLS, "fewshot_rare", "context")["support"] == 1
    shared = dataclasses.replace(SYMBOLS, labels=4)
    assert np.isnan(measured(shared, "no_support_rare", "weights")["rare"])
    assert chance("no_support_rare", shared) == pytest.approx(1 / 4)


def test_any_label_of_a_polysemous_class_is_right_without_support():
    family = dataclasses.replace(SYMBOLS, labelling="polysemous", polysemy=3)
    found = measured(family, "no_support_rare", "weights")
    assert found["accuracy"] == found["closed"] == found["own"] == 1
    assert found["chance"] == pytest.approx(1 / 12)
    # The context names one of three labels, and answers from weights the first.
    bursty = measured(family, "bursty", "weights")
    assert bursty["accuracy"] < 0.6 and bursty["own"] == 1
    assert measured(family, "flip", "weights")["own"] == 1


def test_repeated_ways_limit_few_shot_accuracy_to_95_per_cent():
    family = dataclasses.replace(SYMBOLS, holdout=10, repeated_ways=True)
    found = measured(family, "fewshot_holdout", "context", prompts=4000)
    assert found["accuracy"] == pytest.approx(0.95, abs=0.02)
    assert (
        measured(dataclasses.replace(family, repeated_ways=False), "fewshot_holdout", "context")[
            "accuracy"
        ]
        == 1
    )


def test_numbers_are_means_over_the_asked_prompts(trained):
    learner, variables = Learner(trained.config), trained.variables()[1]
    seeds = [measure_of(learner, TASK.mode("in_context"), 230, seed) for seed in (3, 4)]
    whole, again, other = seeds[0](variables), seeds[0](variables), seeds[1](variables)
    assert repr(whole) == repr(again) != repr(other)
    assert whole["accuracy"] * 230 == pytest.approx(round(whole["accuracy"] * 230), abs=1e-3)


# Checkpoints of a run


def test_a_mode_is_evaluated_once_or_at_every_checkpoint(run):
    first = evaluate_modes(run, ["fewshot_holdout"], prompts=20, step=2)
    assert [(r.mode, r.step, r.prompts) for r in first.records] == [("fewshot_holdout", 2, 20)]
    newest = evaluate_modes(run, prompts=20)
    assert set(newest.modes) == {"fewshot_holdout", *default_modes(TASK)}
    assert {r.step for r in newest.records} == {2, 4}
    every = modes_of_run(run, prompts=20)
    for mode in default_modes(TASK):
        assert [record.step for record in every.of(mode)] == [1, 2, 3, 4]
    again = ModeCurves.load(run)
    assert repr(again.records) == repr(every.records)
    assert "in_context" in str(every) and (run.path / "modes.png").stat().st_size > 10_000
    before = (run.path / LINES).read_text()
    modes_of_run(run, prompts=20)
    assert (run.path / LINES).read_text() == before
    evaluator = lambda **other: ModeEvaluator(run, **{"prompts": 20, "seed": 0, **other})
    modes = default_modes(TASK)
    assert evaluator().missing(3) == [] and evaluator().missing(5) == modes
    assert evaluator(prompts=21).missing(3) == evaluator(seed=1).missing(3) == modes
    assert ModeEvaluator(run, ["swap", "flip"], prompts=20, seed=0).missing(3) == ["swap"]


def test_damaged_lines_are_left_out_and_the_newest_result_counts(run):
    [record] = evaluate_modes(run, ["flip"], prompts=5).records
    append(run.path, dataclasses.replace(record, prompts=6))
    with open(run.path / LINES, "a") as file:
        file.write('{"mode": "flip"}\nnonsense\n[1]\n{"mode": "flip", "step"')
    assert len(list(lines(run.path))) == 2
    append(run.path, dataclasses.replace(record, prompts=7))  # not swallowed by the broken line
    assert len(list(lines(run.path))) == 3
    (run.path / LINES).write_text("\n".join((run.path / LINES).read_text().split("\n")[:2]) + "\n")
    assert [r.prompts for r in ModeCurves.in_folder(run.path).records] == [6]


def test_several_processes_may_write_results(run, monkeypatch):
    [record] = evaluate_modes(run, ["flip"], prompts=5).records
    monkeypatch.setattr(ModeCurves, "draw", lambda self: None)  # pyplot has no threads

    def write(step):
        for number in range(30):
            append(run.path, dataclasses.replace(record, step=1000 * (step + 1) + number))
            written(run.path)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert len(list(lines(run.path))) == 91
    assert len(ModeCurves.load(run).of("flip")) == 91


def test_following_waits_for_checkpoints_and_skips_deleted_ones(run, monkeypatch):
    hidden, said = run.path / "hidden", []
    folder = run.path / "checkpoints"
    hidden.mkdir()
    for step in (2, 3, 4):
        (folder / str(step)).rename(hidden / str(step))
    coming = iter((2, 3, 4))

    def sleep(seconds):
        if (step := next(coming, None)) is not None:
            (hidden / str(step)).rename(folder / str(step))

    whole = Run.variables_at

    def read(self, step):
        if step == 3:
            shutil.rmtree(folder / "3")
        if step == 1 and not said:
            said.append("damaged")
            raise RunError("damaged for a moment")
        return whole(self, step)

    monkeypatch.setattr("icl.analysis.modes.time.sleep", sleep)
    monkeypatch.setattr(Run, "variables_at", read)
    found = follow_modes(run, ["in_context", "flip"], prompts=5, say=said.append)
    assert [r.step for r in found.of("flip")] == [1, 2, 4]
    assert any(line.startswith("step 3 is left out") for line in said)
    assert any("waiting" in line for line in said)
    assert sum(line.startswith("step 2: flip") for line in said) == 1
    # A second follower finds everything done.
    said.clear()
    follow_modes(run, ["in_context", "flip"], prompts=5, say=said.append)
    assert not [line for line in said if line.startswith("step")]


def test_another_process_follows_a_training_run(tmp_path):
    """The evaluator starts before the training's end, in a process of its own."""
    path = tmp_path / "run"
    Run.create(path, TINY)
    evaluator = subprocess.Popen(
        [sys.executable, "-m", "icl.cli", "eval", str(path), "--mode", "flip", "--follow",
         "--prompts", "5"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert evaluator.stdout and "waiting" in evaluator.stdout.readline()
        icl.resume(path, logging=QUIET)
        out, _ = evaluator.communicate(timeout=120)
    finally:
        evaluator.kill()
    assert evaluator.returncode == 0, out
    assert [r.step for r in ModeCurves.load(path).of("flip")] == [1, 2, 3, 4]


def test_refusals(run, tmp_path):
    with pytest.raises(ValueError, match="no mode 'fewshot'; there are bursty, mixed"):
        evaluate_modes(run, ["fewshot"])
    with pytest.raises(RunError, match="no checkpoint of step 7; there are: 1, 2, 3, 4"):
        evaluate_modes(run, ["flip"], step=7)
    with pytest.raises(ValueError, match="prompts must be at least 1"):
        evaluate_modes(run, ["flip"], prompts=0)
    other = untrained(tmp_path / "other", tiny())
    with pytest.raises(ValueError, match="modes are of class sequences"):
        evaluate_modes(other)
    assert not (run.path / LINES).exists()
    none_held_out = dataclasses.replace(TASK, holdout=0)
    assert "in_context" not in allowed_modes(none_held_out)
    assert default_modes(none_held_out) == ["fewshot_zipfian", "no_support_zipfian", "flip"]
    zipf = dataclasses.replace(TASK, zipf_exponent=1.0)
    assert default_modes(zipf)[-2:] == ["no_support_common", "no_support_rare"]


def test_the_command(run, capsys, monkeypatch):
    assert (
        cli.main(["eval", str(run.path), "--mode", "flip", "--mode", "swap", "--prompts", "5"]) == 0
    )
    out = capsys.readouterr().out
    assert "swap" in out and "modes.png" in out and "1-nearest" not in out
    assert cli.main(["eval", str(run.path), "--mode", "flip", "--step", "1", "--prompts", "5"]) == 0
    some = ["relabel", "flip"]
    monkeypatch.setattr("icl.analysis.modes.allowed_modes", lambda family: some)
    assert cli.main(["eval", str(run.path), "--mode", "all", "--prompts", "2"]) == 0
    assert set(ModeCurves.load(run).modes) == {"swap", *some}
    assert cli.main(["eval", str(run.path), "--mode", "flip", "--follow", "--prompts", "5"]) == 0
    for wrong, said in (
        (["--mode", "nothing"], "no mode 'nothing'"),
        (["--follow", "--step", "1"], "leave --step out"),
        (["--mode", "flip", "--images", "digits"], "leave --images out"),
        (["--mode", "flip", "--analyses", "none"], "leave --analyses out"),
        (["--mode", "flip", "--step", "9"], "no checkpoint of step 9"),
    ):
        capsys.readouterr()
        assert cli.main(["eval", str(run.path), *wrong]) != 0
        assert said in capsys.readouterr().err


def test_evaluation_is_of_held_out_classes(run):
    result = evaluate(run, prompts=20, resamples=5)
    assert result.examples.tolist() == [8] and result.error_name == "fraction misclassified"
    assert set(result.curves) == {
        "transformer", "1-nearest neighbour", "ridge", "SGD", "class frequencies",
    }  # fmt: skip
    assert run.config.task.evaluation.sequences == "in_context"


# Sweeps


def test_emergence_over_a_sweep(tmp_path):
    sweep = train_sweep(
        TINY, {"p_bursty": [0.0, 1.0]}, seeds=2, sweep_dir=tmp_path / "sweep", progress=False
    )
    found = emergence(sweep, prompts=30)
    assert isinstance(found, Emergence) and found.modes == {
        IN_CONTEXT: "in_context", IN_WEIGHTS: "no_support_zipfian",
    }  # fmt: skip
    assert found.settings == ["p_bursty"]
    assert [curve.values for curve in found.curves] == [["0"], ["1"]]
    member, other = (m.run for m in sweep.members if m.changes["task_p_bursty"] == 1.0)
    for curve in found.curves:
        assert curve.steps.tolist() == [1, 2, 3, 4]
    evaluator = ModeEvaluator(member, ["in_context"], prompts=30, seed=0)
    variables = [(4 + number, one.variables()[1]) for number, one in enumerate((member, other))]
    last = [evaluator.add(step, lambda own=own: own)[0] for step, own in variables]
    mean = np.mean([record.accuracy for record in last])
    assert found.curves[1].accuracy["in_context"][-1] == pytest.approx(mean, abs=1e-6)
    assert str(Emergence.load(sweep)) == str(found)
    assert (sweep.path / "emergence.png").stat().st_size > 10_000
    assert "chance" in str(found)
    other: Any = types.SimpleNamespace(config=tiny())
    assert emergence(other) is None
    # A member that diverged is left out.
    results = SweepResult.load(sweep)
    for record in results.records[:2]:
        del record["examples"], record["normalised_error"]
        record["diverged_after"] = 1
    results.save()
    rest = emergence(sweep, prompts=30)
    assert rest and [curve.values for curve in rest.curves] == [["1"]]


# Presets


def omniglot(path, classes=12, drawings=3):
    """A folder in Omniglot's layout."""
    rng = np.random.default_rng(0)
    for number in range(classes):
        folder = path / "images_background" / "Greek" / f"character{number:02}"
        folder.mkdir(parents=True)
        for drawing in range(drawings):
            pixels = np.where(rng.random((12, 12)) < 0.2, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:04}_{drawing:02}.png")
    return path


def test_omniglot_from_files_with_batch_statistics(tmp_path):
    source = omniglot(tmp_path / "omniglot")
    config = shrunk(PRESETS["chan/images_augmented"].config).replace(
        task_source=(str(source),), task_rare=80, task_common=8, task_holdout=8
    )
    run = untrained(tmp_path / "run", config)
    assert run.variables()[1].state  # batch statistics
    assert json.loads((run.path / "config.json").read_text())["data"]["source"] == str(source)
    assert evaluate_modes(run, ["no_support_rare"], prompts=3).records


def test_without_the_files_the_error_says_what_to_give(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "chan/images_identical"]) != 0
    assert "set task.source to Omniglot's zips" in capsys.readouterr().err.replace(
        "\n", " "
    ).replace("Set", "set")
    with pytest.raises(SystemExit):
        cli.main(["train", "chan/burstiness-xs", "--task.source", "gaussian"])
    assert "did you mean gaussians?" in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.json"))


def test_presets_have_the_sizes_of_the_public_code():
    count = lambda name: sum(
        np.prod(leaf.shape)
        for leaf in jax.tree.leaves(
            jax.eval_shape(Learner(PRESETS[name].config).init, jax.random.key(0)).params
        )
    )
    read_in, last_norm = 64 * 64 + 64, 2 * 64
    assert count("chan/images_all_exemplars") == 831_479 + read_in
    assert count("chan/lstm") == 627_959 + read_in - last_norm
    assert PRESETS["chan/images_augmented"].config.task.label_kind == Classes(12_880)
    assert PRESETS["chan/symbolic"].config.task.input_kind == Symbols(1_000)


def test_the_page_names_every_kind_of_sequences():
    text = (Path(__file__).parents[2] / "docs" / "chan.md").read_text()
    for mode in KINDS:
        assert f"`{mode}`" in text, mode
