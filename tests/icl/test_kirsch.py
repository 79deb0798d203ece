"""General-purpose in-context learning: analyses of runs and sweeps, and their commands."""

import math
from importlib import import_module

import jax
import numpy as np
import pytest

import icl
from icl import cli
from icl.analysis import ask
from icl.analysis.comparison import compare
from icl.analysis.generalisation import (
    SEEN,
    TRAINING,
    UNSEEN,
    Generalisation,
    _draw,
    _kinds,
    accuracies,
    ends,
)
from icl.analysis.memorisation import Memorisation, memorisation
from icl.analysis.plateau import (
    Plateaus,
    Row,
    _exponent,
    plateau,
    plateau_end,
    relative_losses,
)
from icl.evaluation import comparators, draw_prompts, evaluate
from icl.evaluation.comparators import one_query_at_a_time
from icl.evaluation.curves import predictions_of
from icl.experiments import PRESETS
from icl.models import LSTMConfig, MLPConfig, TransformerConfig
from icl.sweeps import Sweep, SweepResult
from icl.sweeps.grid import label_of
from icl.tasks import Curriculum, LinearRegression, ProjectedImages, ReLUNetwork, pool_task
from icl.tasks.draws import stream
from icl.training import Config, Learner, Run, TrainingConfig
from icl.training.data import load_data
from icl.training.step import pool_key

from .helpers import shrunk, tiny, untrained

FAMILY = ProjectedImages(points=10, size=4, ways=3, biased=0.5)
TINY = Config(
    task=FAMILY,
    layout="paired",
    model=TransformerConfig(layers=1, heads=2, width=16),
    training=TrainingConfig(steps=4, batch_size=4, log_every=2, checkpoint_every=4),
)


# Prompts of a kind and a number are drawn by one program; these are drawn in two chunks.
PROMPTS = 130


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    return untrained(path, TINY.replace(training_pool_size=1))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return Run.create(tmp_path_factory.mktemp("linear") / "run", tiny())


@pytest.fixture(scope="module", autouse=True)
def few_comparators():
    """Only the first classifier: the others take seconds, and test_classifiers.py has them."""
    module = import_module("icl.evaluation.comparators")
    whole = module._classifiers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_classifiers", lambda *given: whole(*given)[:1])
        yield


@pytest.fixture(scope="module")
def found(run, few_comparators):
    return ask("generalisation", run, prompts=PROMPTS, images=("random",))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Untrained members with the files of a finished sweep."""
    path = tmp_path_factory.mktemp("sweep") / "sweep"
    sweep, records = Sweep(path, TINY, {"pool": [4, 1]}, 2), []
    for member in sweep.members:
        lines(untrained(member.path, member.config), [1.2, 1.1], every=2)
        of_member = {"member": member.path.name, "changes": member.changes}
        records.append(of_member | {"examples": [0, 9], "normalised_error": [0.7, 0.6]})
    SweepResult(path, 10, records).save()
    return sweep


def test_kinds_of_prompts_have_their_tasks_and_images(run):
    kinds = _kinds(run.config, ("random",), training=True)
    assert list(kinds) == [TRAINING, SEEN, UNSEEN, "on random"]
    data = {kind: load_data(one.family) for kind, one in kinds.items()}
    task = pool_task(FAMILY, pool_key(run.config), 0, data[TRAINING])
    matrix = np.asarray(task.projection, np.float64)
    for kind, one in kinds.items():
        x = np.asarray(_draw(one, run.config, PROMPTS, 0).x[:4], np.float64)
        back = np.linalg.solve(matrix, x.reshape(-1, 16).T).T
        bank = data[kind]
        images = (bank.images - bank.mean[0]) / bank.std[0]
        near = np.abs(images[None] - back[:, None]).max(axis=2).min(axis=1) < 0.02
        assert near.all() if kind in (TRAINING, SEEN) else not near.any(), kind
    part = {kind: one.family.part for kind, one in kinds.items()}
    assert part == {TRAINING: "train", SEEN: "held-out", UNSEEN: "held-out", "on random": "all"}
    # Tasks of the pool keep their labels; unseen tasks are never biased.
    assert kinds[SEEN].family.biased == 0.5 and kinds[UNSEEN].family.biased == 0
    fresh = _kinds(TINY, (), training=True)
    assert list(fresh) == [UNSEEN]
    none_held_out = _kinds(run.config.replace(task_held_out=0.0), (), training=True)
    assert list(none_held_out) == [SEEN, UNSEEN]


def test_accuracy_is_that_of_the_predictions(run, linear, found):
    [many] = accuracies([run], prompts=PROMPTS)
    for kind, values in many.items():
        np.testing.assert_array_equal(values, found.accuracy[kind]["transformer"])
    learner, (step, variables) = Learner(run.config), run.variables()
    episodes = _draw(_kinds(run.config, (), False)[SEEN], run.config, PROMPTS, 0)
    right = jax.jit(learner.predict)(variables, episodes).argmax(axis=-1) == episodes.y
    np.testing.assert_allclose(many[SEEN], right.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found.examples, np.arange(10))
    assert found.state == 2 * 16 * 20 and found.step == step == 1
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    with pytest.raises(ValueError, match="does not classify images: its task is LinearRegression"):
        list(accuracies([linear], prompts=4))


def test_the_analysis_names_kinds_and_learners(run, found):
    result = found
    assert list(result.accuracy) == [TRAINING, SEEN, UNSEEN, "on random"]
    assert result.learner == "transformer" and set(result.accuracy[SEEN]) == {"transformer"}
    others = {"transformer", "1-nearest neighbour", "class frequencies"}
    assert set(result.accuracy[UNSEEN]) == set(result.accuracy["on random"]) == others
    told = " ".join(str(result).split())
    assert "trained on 1 task; 4,003 parameters, a state of 640 numbers" in told
    again = Generalisation.load(run)
    assert str(again) == str(result)
    assert (run.path / "generalisation.png").stat().st_size > 10_000
    assert ends(np.arange(9.0)) == (0, 8) and ends(np.arange(40.0)) == (1.5, 37.5)


def test_a_map_of_a_sweep(sweep):
    result = ask("memorisation", sweep, prompts=PROMPTS)
    assert isinstance(result, Memorisation) and result.pool_size == [1, 4]
    assert result.models == [""] and result.seeds == 2
    assert result.accuracy[SEEN]["late"].shape == (1, 2)
    assert (sweep.path / "memorisation.png").stat().st_size > 10_000
    assert str(Memorisation.load(sweep)) == str(result)
    seeds = [m.run for m in sweep.members if m.changes["training_pool_size"] == 4]
    late = [one[UNSEEN][-1] for one in accuracies(seeds, prompts=PROMPTS)]
    np.testing.assert_allclose(result.accuracy[UNSEEN]["late"][0, 1], np.mean(late), atol=1e-6)
    fresh = Sweep(sweep.path, TINY, {"pool": [None, 4]}, 1)
    assert memorisation(fresh) is None
    assert memorisation(Sweep(sweep.path, tiny(), {"pool": [1, 4]}, 1)) is None


def test_phases():
    cell = lambda *values: np.array([values])
    accuracy = {
        SEEN: {"early": cell(0.9, 0.1, 0.1, 0.1), "late": cell(0.95, 0.9, 0.7, 0.12)},
        UNSEEN: {"early": cell(0.1, 0.1, 0.1, 0.1), "late": cell(0.1, 0.5, 0.65, 0.1)},
    }
    result = Memorisation(["width 8"], [1, 16, 256, 300], accuracy, 1, 10, None)
    assert result.phases().tolist() == [["m", "i", "L", "-"]]
    assert result.gap[0, 1] == pytest.approx(0.4)
    assert "memorises" in str(result) and "learns to learn" in str(result)
    accuracy[SEEN]["late"][0, 3] = np.nan
    assert result.phases()[0, 3] == "?"


def lines(run, losses, every=10):
    text = "".join(
        f'{{"step": {every * (n + 1)}, "loss": {loss}}}\n' for n, loss in enumerate(losses)
    )
    (run.path / "metrics.jsonl").write_text(text)


def test_a_plateau_ends_below_the_loss_of_chance(run):
    chance = math.log(3)
    lines(run, [1.5, 1.0 * chance, 0.96 * chance, 0.94 * chance, 0.97 * chance])
    long = Run(run.path, run.config.replace(training_steps=50))
    assert plateau_end(long) == 40
    lines(run, [chance, chance])
    assert math.isnan(plateau_end(long))
    # Under a curriculum, chance is that of the classes in use.
    grown = run.config.replace(
        curriculum=Curriculum(classes_start=2, interval=15), training_steps=40
    )
    lines(run, [math.log(2), (math.log(2) + math.log(3)) / 2, math.log(3), 0.9 * math.log(3)])
    found = dict(relative_losses(Run(run.path, grown)))
    np.testing.assert_allclose(list(found.values()), [1, 1, 1, 0.9], rtol=1e-6)
    assert list(found) == [10, 20, 30, 40] and plateau_end(Run(run.path, grown)) == 40
    (run.path / "metrics.jsonl").unlink()


def test_plateaus_of_a_sweep(sweep, tmp_path):
    result = ask("plateau", sweep)
    assert isinstance(result, Plateaus) and result.setting == "pool_size"
    assert [row.label for row in result.rows] == ["4", "1"]
    assert all(len(row.steps) == len(row.error) == len(row.loss) == 2 for row in result.rows)
    group = {
        "group": {"a": {"x": 1, "y": None}, "b": {"x": 2, "y": None}},
        "training_batch_size": [1, 8],
    }
    for changes, label in (
        ({"x": 2, "y": None, "training_batch_size": 1}, "b, batch_size 1"),
        ({"x": 1, "y": None, "training_batch_size": 8, "training_seed": 3}, "a, batch_size 8"),
    ):
        assert label_of(group, changes) == label
    assert label_of({"training_batch_size": [8]}, {"training_batch_size": 8}) == "8"
    assert (sweep.path / "plateau.png").stat().st_size > 10_000
    assert plateau(Sweep(sweep.path, tiny(), {"pool": [1, 4]}, 1)) is None
    # Steps that fall as the square root of the setting.
    losses = [[10, 20], [10]], [[1.0, 0.5], [1.0]]
    rows = [Row(str(n), [100 / n**0.5, math.nan], [0.5, 0.7], *losses) for n in (1, 4, 16)]
    assert _exponent(rows) == pytest.approx(-0.5)
    assert math.isnan(_exponent(rows[:2]))
    fitted = Plateaus(rows, "batch_size", -0.5, tmp_path)
    fitted.draw()
    assert "batch_size^-0.50" in str(fitted) and "1 of 2 stayed" in str(fitted)
    assert (tmp_path / "plateau.png").stat().st_size > 10_000


def test_runs_of_one_task_are_compared(run, tmp_path, capsys):
    fresh = TINY.replace(training_pool_size=1)
    others = {"lstm": LSTMConfig(layers=1, width=8), "mlp": MLPConfig(width=8)}
    runs = [run, *(untrained(tmp_path / n, fresh.replace(model=m)) for n, m in others.items())]
    result = compare(runs, tmp_path / "compared", prompts=PROMPTS)
    assert [(one.model, one.state) for one in result.runs] == [
        ("transformer", 640), ("LSTM", 16), ("MLP", 0),
    ]  # fmt: skip
    own = evaluate(run, prompts=PROMPTS, resamples=2).curves["transformer"].mean
    np.testing.assert_allclose(result.runs[0].error, own, atol=1e-6)
    assert (tmp_path / "compared" / "comparison.png").stat().st_size > 10_000
    folders = [str(one.path) for one in runs[1:]]
    out = ["--folder", str(tmp_path / "again"), "--prompts", str(PROMPTS)]
    assert cli.main(["compare", *folders, *out]) == 0
    assert "runs of one task" in capsys.readouterr().out
    other = Run.create(tmp_path / "other", fresh.replace(task_biased=0.1))
    assert cli.main(["compare", folders[0], str(other.path)]) == 2
    assert "have different ones" in capsys.readouterr().err
    assert cli.main(["compare"]) == 2
    with pytest.raises(ValueError, match="runs must be at least 1"):
        compare([], tmp_path / "none")


def test_eval_takes_other_images(run, linear, tmp_path, capsys):
    lines(run, [1.0])
    command = ["eval", str(run.path), "--prompts", str(PROMPTS), "--resamples", "2"]
    assert cli.main([*command, "--images", "random"]) == 0
    assert "on random" in capsys.readouterr().out
    lines(linear, [1.0])
    assert cli.main(["eval", str(linear.path), "--images", "random"]) == 2
    assert "does not classify images: its task is LinearRegression" in capsys.readouterr().err
    assert cli.main([*command, "--images", "random", "--analyses", "none"]) == 2
    assert "add it to --analyses" in capsys.readouterr().err
    assert cli.main([*command, "--images", str(tmp_path / "no")]) == 2
    assert f"{tmp_path / 'no'}, cannot be read" in capsys.readouterr().err


def test_training_uses_the_data_of_its_files(tmp_path, capsys):
    path = tmp_path / "set.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(30) % 3)
    command = [
        "train", "kirsch/digits-xs", "--task.images", str(path), "--task.ways", "3",
        "--task.points", "4", "--task.size", "4", "--training.steps", "2", "--training.batch-size",
        "2", "--optimizer.warmup-steps", "0", "--model.layers", "1", "--no-evaluate", "--run-dir",
    ]  # fmt: skip
    assert cli.main([*command, str(tmp_path / "run")]) == 0
    made = icl.Run.open(tmp_path / "run")
    assert made.config.task.images == (str(path),)
    path.write_bytes(path.read_bytes()[:-50])
    capsys.readouterr()
    assert cli.main([*command, str(tmp_path / "other")]) == 2
    assert f"{path}: NumPy cannot read the file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    config = shrunk(PRESETS["kirsch/functions-xs"].config)
    return untrained(tmp_path_factory.mktemp("functions") / "run", config)


def test_functions_are_evaluated_once_for_all_queries(functions, monkeypatch):
    monkeypatch.setattr(import_module("icl.evaluation.comparators"), "FITTED_STEPS", 5)
    run = functions
    result = evaluate(run, prompts=8, resamples=2)
    # One query of a user's, from any number of examples.
    x, y = np.linspace(-1, 1, 6).reshape(2, 3, 1), np.zeros((2, 3))
    assert run.predict(x, y, x[:, :2]).shape == (2, 2)
    # Comparators that are fitted to prompts too.
    family = ReLUNetwork(dim=2, points=6, hidden=3, queries=2)
    [fit] = [one for one in comparators(family)[0] if "two-layer network by Adam" in one.names]
    episodes = draw_prompts(family, jax.random.key(0), 3)
    fitted = predictions_of(one_query_at_a_time(fit, 2), episodes)[0]
    assert np.isfinite(fitted[..., 4:]).all() and fitted.shape == (1, 3, 6)
    assert result.examples.tolist() == [4]
    assert set(result.curves) > {"transformer", "least squares", "zero"}
    assert all(np.isfinite(curve.mean).all() for curve in result.curves.values())


def test_a_run_of_sines_is_not_asked_for_sines_twice(functions, tmp_path):
    of_sines = untrained(tmp_path / "sines", shrunk(PRESETS["kirsch/sines-xs"].config))
    for run, kinds in ((of_sines, 2), (functions, 3)):
        result = ask("function-transfer", run, prompts=8)
        assert len(result.kinds) == kinds
        learner, kind = Learner(run.config), result.kinds["training tasks"]
        episodes = draw_prompts(learner.family, stream("transfer", 0), 8)
        asked = np.asarray(episodes.queries)
        y, predicted = (
            np.asarray(episodes.y)[asked],
            jax.jit(learner.predict)(run.variables()[1], episodes),
        )
        error = ((np.asarray(predicted)[asked] - y) ** 2).mean()
        np.testing.assert_allclose(kind.squared_error, error, rtol=1e-4)
        np.testing.assert_allclose(kind.r_squared, 1 - error / y.var(), rtol=1e-4)
    config = tiny(task=LinearRegression(dim=1, points=5))
    tagged = Run.create(tmp_path / "tagged", config)
    with pytest.raises(ValueError, match="does not learn functions of one number"):
        ask("function-transfer", tagged)


def test_presets_have_mapped_images_of_their_kind(tmp_path):
    few_shot = shrunk(PRESETS["kirsch/few-shot-xs"].config)
    found = ask("generalisation", untrained(tmp_path / "few", few_shot), prompts=10)
    assert found.examples.tolist() == [few_shot.task.points - 1]
    paper = PRESETS["kirsch/mnist"].config
    assert paper.task.points == 100 and paper.task.images == ("mnist",)
    assert PRESETS["kirsch/map"].over["pool_size"][-1] == 2**20
