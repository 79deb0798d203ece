"""Pools of tasks: dMMSE, what a learner trained on one is held against, and the threshold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import icl
from icl import api
from icl.analysis import pool, threshold
from icl.analysis.pool import PoolEvaluation, discrete_mmse, evaluate_pool
from icl.cli import main
from icl.evaluation import baselines
from icl.experiments import PRESETS, register
from icl.sweeps import Sweep
from icl.sweeps import train as sweep_training
from icl.sweeps.grid import check_over, grid, member_name
from icl.tasks import (
    LAYOUTS,
    Episode,
    LinearRegression,
    ManyOutlierRegression,
    VectorRetrieval,
    pool_task,
    sample_batch,
)
from icl.training import Learner, OptimizerConfig, Run, TrainingConfig
from icl.training.optimizer import learning_rate_schedule, make_optimizer
from icl.training.step import init_state, pool_key

from .helpers import tiny

FAMILY = LinearRegression(dim=3, points=6, noise=0.5)
KEY = jax.random.key(5)


def by_definition(family, x, y, size):
    """dMMSE in the words of the paper, one prompt and one prefix at a time."""
    index = jnp.arange(size)
    tasks = np.array(jax.jit(jax.vmap(lambda m: pool_task(family, KEY, m)))(index), np.float64)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    predictions = np.empty(y.shape)
    for b, (inputs, labels) in enumerate(zip(x, y)):
        for k in range(len(labels)):
            squares = ((labels[:k] - tasks @ inputs[:k].T) ** 2).sum(axis=1)
            weights = np.exp(-squares / (2 * family.noise**2))
            predictions[b, k] = (weights @ tasks / weights.sum()) @ inputs[k]
    return predictions


def draw(family, count):
    sample = lambda: sample_batch(family, jax.random.key(1), jnp.arange(count), family.full)
    return jax.jit(sample)()


@pytest.fixture(scope="module")
def prompts():
    return draw(FAMILY, 7)


@pytest.fixture(scope="module")
def sixteen_at_once():
    return jax.jit(lambda x, y, size: discrete_mmse(FAMILY, x, y, KEY, size, tasks_at_once=16))


@pytest.mark.parametrize("size", [1, 3, 16, 50, 64])
def test_dmmse_is_its_definition_whatever_the_chunks(prompts, sixteen_at_once, size):
    found = sixteen_at_once(prompts.x, prompts.y, size)
    expected = by_definition(FAMILY, prompts.x, prompts.y, size)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_of_one_task_dmmse_knows_it(prompts, sixteen_at_once):
    task = jax.jit(lambda: pool_task(FAMILY, KEY, 0))()
    found = sixteen_at_once(prompts.x, prompts.y, 1)
    np.testing.assert_allclose(found, FAMILY.label(task, prompts.x), rtol=1e-5)


def test_labels_that_no_task_explains_leave_it_finite(prompts, sixteen_at_once):
    assert jnp.isfinite(sixteen_at_once(prompts.x, 1e3 * prompts.y, 50)).all()


def test_of_many_tasks_dmmse_is_ridge():
    family = LinearRegression(dim=2, points=6, noise=0.5)
    drawn = draw(family, 64)
    apply = jax.jit(lambda size: discrete_mmse(family, drawn.x, drawn.y, KEY, size))
    ridge = jax.jit(baselines.ridge)(drawn.x, drawn.y, family.noise**2)
    apart = [float(((apply(size) - ridge) ** 2).mean()) for size in (2**4, 2**9, 2**14)]
    assert apart[0] > 10 * apart[1] > 100 * apart[2]
    assert apart[2] < 2e-3


def test_its_tasks_are_those_that_training_draws():
    family = LinearRegression(dim=3, points=8, noise=0.01)
    config = tiny(task=family, training_pool_size=20, training_seed=3)
    optimizer = make_optimizer(config.optimizer, config.training.steps)

    @jax.jit
    def as_in_training():
        state = init_state(Learner(config), optimizer)
        index = jnp.arange(16)
        return sample_batch(family, state.data_key, index, family.full, state.pool_key, 20)

    drawn = as_in_training()
    apply = jax.jit(lambda key: discrete_mmse(family, drawn.x, drawn.y, key, 20))
    error = lambda key: float(((apply(key) - drawn.y) ** 2)[:, 4:].mean())
    assert error(pool_key(config)) < 1e-3
    assert error(pool_key(config.replace(training_seed=4))) > 0.1


@pytest.mark.parametrize(
    "family",
    [
        LinearRegression(dim=3, points=6),
        LinearRegression(dim=3, points=6, noise=0.5, renormalize=True),
        VectorRetrieval(dim=3, points=6),
    ],
)
def test_families_without_known_estimators_are_refused(family, prompts):
    with pytest.raises(ValueError, match="with noise above 0"):
        discrete_mmse(family, prompts.x, prompts.y, KEY, 4)


def hand_made(labels, tokens=None):
    normal = np.random.default_rng(0).normal
    shown = None if tokens is None else jnp.array(normal(size=tokens))
    x, y = jnp.array(normal(size=(5, 3))), jnp.array(normal(size=labels))
    every = jnp.ones(5, bool)
    return Episode(x, y, every, every, shown)


def test_tagged_tokens_say_what_they_are():
    drawn = hand_made((5,))
    tokens = LAYOUTS["tagged"].encode(drawn)
    np.testing.assert_array_equal(tokens[::2], np.pad(drawn.x, ((0, 0), (1, 0))))
    np.testing.assert_array_equal(tokens[1::2], np.pad(drawn.y[:, None], ((0, 0), (0, 3))))


@pytest.mark.parametrize(
    ("family", "drawn"),
    [
        (VectorRetrieval(dim=3, points=5), hand_made((5, 3))),
        (ManyOutlierRegression(dim=3, points=5, outliers=0.5), hand_made((5,), (5, 3))),
    ],
)
def test_tagged_shows_vector_labels_and_tokens_of_their_own(family, drawn):
    tokens = LAYOUTS["tagged"].encode(drawn, family.label_kind)
    assert tokens.shape == (10, LAYOUTS["tagged"].width(family.dim, family.label_kind))
    np.testing.assert_array_equal(tokens[::2, -3:], drawn.x)
    own = drawn.y if drawn.label_tokens is None else drawn.label_tokens
    np.testing.assert_array_equal(tokens[1::2, :3], own)


def test_the_learning_rate_is_a_triangle():
    config = OptimizerConfig(learning_rate=0.1, schedule="linear", warmup_steps=10)
    rate = learning_rate_schedule(config, 20)
    expected = [0, 0.05, 0.1, 0.05, 0]
    np.testing.assert_allclose([rate(step) for step in (0, 5, 10, 15, 20)], expected, atol=1e-7)
    paper = PRESETS["raventos/pool"].config.optimizer
    assert (paper.schedule, paper.warmup_steps) == ("linear", 250_000)


def test_without_end_bias_the_ends_are_matrices():
    shapes = jax.eval_shape(Learner(tiny(model_end_bias=False)).init, jax.random.key(0)).params
    assert set(shapes["read_in"]) == set(shapes["read_out"]) == {"kernel"}
    shapes = jax.eval_shape(Learner(tiny()).init, jax.random.key(0)).params
    assert set(shapes["read_in"]) == set(shapes["read_out"]) == {"kernel", "bias"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a preset's own sweep, as the command makes it, and what it printed."""
    import contextlib
    import io

    folder, output = tmp_path_factory.mktemp("sweeps") / "sweep", io.StringIO()
    training = TrainingConfig(steps=2, batch_size=4)
    config = tiny(task_noise=0.5, layout="tagged", training=training, optimizer_warmup_steps=0)
    draw = Figure.savefig

    def savefig(figure, path, **options):
        # The figure of the report alone.
        if path.name == "threshold.png":
            draw(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(Figure, "savefig", savefig)
        register("raventos/tiny", config, "tiny", over={"pool": [1, 4]}, report="threshold")
        patch.setattr(sweep_training, "PROMPTS", 64)
        patch.setitem(threshold.threshold.__kwdefaults__, "prompts", 64)
        assert main(["sweep", "raventos/tiny", f"--sweep-dir={folder}"]) == 0
        assert (folder / "threshold.png").stat().st_size > 10_000
        patch.setattr(Figure, "savefig", draw)
        yield folder, output.getvalue()
        del PRESETS["raventos/tiny"]


def test_a_preset_sweeps_its_own_grid_and_reports(swept, undrawn):
    folder, printed = swept
    sweep = Sweep.open(folder)
    assert sweep.preset == "raventos/tiny"
    assert sweep.over == {"training_pool_size": [1, 4]}
    [line] = json.loads((folder / "threshold.json").read_text())["lines"]
    assert line["pool_size"] == [1, 4]
    [[of_one], [of_four]] = line["error"]["pool"]["dMMSE"]
    np.testing.assert_allclose(of_one, 0.25 / 3, rtol=0.25)  # the noise alone
    assert of_one < of_four
    assert line["seeds"] == [0] and np.shape(line["own_error"]) == (2, 1)
    assert "pool size" in printed and "threshold.png" in printed
    assert (
        str(threshold.Threshold.load(sweep)).split() == str(icl.experiments.report(sweep)).split()
    )


def test_resuming_a_finished_sweep_draws_its_figures_again(swept, capsys, undrawn):
    folder, _ = swept
    written = Sweep.open(folder).members[0].path / "pool.json"
    before = written.stat().st_mtime_ns
    (folder / "threshold.png").unlink()
    assert main(["sweep", "--resume", str(folder)]) == 0
    assert "threshold.png" in capsys.readouterr().out
    assert (folder / "threshold.png").exists()
    assert written.stat().st_mtime_ns == before


def test_a_folder_without_a_preset_opens_and_reports_nothing(swept, tmp_path, capsys):
    folder, _ = swept
    data = json.loads((folder / "sweep.json").read_text())
    del data["preset"]
    (tmp_path / "sweep.json").write_text(json.dumps(data))
    old = Sweep.open(tmp_path)
    assert old.preset is None
    assert icl.experiments.report(old) is None


def test_every_prompt_counts_once_and_a_learner_that_is_ridge_is_found_to_be_it(swept, monkeypatch):
    # It also compiles sooner than a transformer.
    as_ridge = lambda self, params, episodes: baselines.ridge(episodes.x, episodes.y, 0.25)
    monkeypatch.setattr(Learner, "predict", as_ridge)
    run = Run.open(Sweep.open(swept[0]).members[1].path)
    at_once = evaluate_pool(run, prompts=16)
    for kind in ("fresh", "pool"):
        apart, error = at_once.difference[kind], at_once.error[kind]
        np.testing.assert_array_equal(apart["learner, ridge"], 0)
        np.testing.assert_array_equal(apart["learner, dMMSE"], apart["ridge, dMMSE"])
        np.testing.assert_array_equal(error["learner"], error["ridge"])
    assert (at_once.error["pool"]["dMMSE"] < at_once.error["pool"]["ridge"])[:2].all()
    monkeypatch.setattr(pool, "PROMPTS_AT_ONCE", 6)
    in_parts = evaluate_pool(run.path, prompts=16)
    loaded = PoolEvaluation.load(run)
    for kind in ("fresh", "pool"):
        for part in ("error", "difference"):
            for name, values in getattr(at_once, part)[kind].items():
                np.testing.assert_allclose(getattr(in_parts, part)[kind][name], values, rtol=1e-4)
                np.testing.assert_array_equal(
                    getattr(loaded, part)[kind][name], getattr(in_parts, part)[kind][name]
                )
    assert loaded.examples.tolist() == [0, 1, 2, 3, 4]
    assert "squared difference of learner, dMMSE" in str(loaded)


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    run = Run.create(tmp_path / "fresh", tiny(task_noise=0.5))
    with pytest.raises(ValueError, match="fresh tasks; it has no pool"):
        evaluate_pool(run)
    with pytest.raises(ValueError, match="prompts must be at least 1"):
        evaluate_pool(run, prompts=0)


def line_of(tmp_path, *seeds):
    """What a sweep found: for each seed by pool size how far learner and ridge are from dMMSE.

    The learner is on the way to ridge, and has an error of its own beside that.
    """
    found = {}
    for seed, by_size in enumerate(seeds):
        for size, (share, own, apart) in by_size.items():
            parts = {
                "learner, dMMSE": np.array([share**2 * apart + own]),
                "learner, ridge": np.array([(1 - share) ** 2 * apart + own]),
                "ridge, dMMSE": np.array([apart]),
            }
            found.setdefault(seed, {})[size] = PoolEvaluation(
                np.arange(1), {}, {"fresh": parts}, size, 1, 1, 0, tmp_path
            )
    return threshold.Line.of({}, found)


def test_the_threshold_is_where_ridge_becomes_nearer(tmp_path):
    early = {4: (0.1, 0.02, 0.6), 16: (0.4, 0.02, 0.4), 64: (0.6, 0.02, 0.2)}
    late = {4: (0.0, 0.02, 0.6), 16: (0.2, 0.02, 0.4), 64: (0.4, 0.02, 0.2), 256: (0.8, 0.02, 0.1)}
    line = line_of(tmp_path, early, late)
    share, own = line.share_and_rest()
    np.testing.assert_allclose(share[:, :3], [[0.1, 0.4, 0.6], [0, 0.2, 0.4]], atol=1e-12)
    np.testing.assert_allclose(own[1], 0.02)
    # In logarithms of the size, half of the way from 16 to 64, and a quarter from 64 to 256.
    assert line.thresholds() == [pytest.approx(32), pytest.approx(64 * 2**0.5)]
    middle, low, high = line.threshold()
    spread = 6.3138 * (6.5 - 5) / 2  # Student's, of one degree of freedom
    expected = [5.75, 5.75 - spread, 5.75 + spread]
    np.testing.assert_allclose(np.log2([middle, low, high]), expected, rtol=1e-4)
    assert "2 of 2 seeds" in line.verdict() and "90% interval" in line.verdict()
    alone = line_of(tmp_path, early | {32: (0.1, 0.4, 0.3)})  # where its own error hides the rest
    assert alone.threshold()[0] == pytest.approx(32) and "interval" not in alone.verdict()


@pytest.mark.parametrize(
    "above", [{}, {64: (0.45, 0.01, 0.2)}, {64: (0.6, 0.5, 0.2)}], ids=["none", "before", "unseen"]
)
def test_a_threshold_that_cannot_be_seen_is_none(tmp_path, above):
    line = line_of(tmp_path, {4: (0.1, 0.1, 0.6), 16: (0.4, 0.3, 0.4)} | above)
    assert line.thresholds() == [None] and line.threshold() is None
    assert "no threshold seen" in line.verdict()


def test_python_sweeps_a_presets_grid_too(monkeypatch, tmp_path):
    asked = []
    train = lambda config, over, **options: asked.append((over, options["preset"]))
    monkeypatch.setattr(api, "train_sweep", train)
    monkeypatch.setattr(api, "report", lambda sweep: asked.append("report"))
    icl.sweep("raventos/pool-xs", sweep_dir=tmp_path)
    assert asked == [(PRESETS["raventos/pool-xs"].over, "raventos/pool-xs"), "report"]
    icl.sweep("raventos/pool-xs", {"pool": [2]}, sweep_dir=tmp_path)
    assert asked[2:] == [({"pool": [2]}, "raventos/pool-xs"), "report"]


SIZES = {"d=2": {"dim": 2, "task_points": 5}, "d=3": {"task_points": 7, "task.dim": 3}}


def test_settings_that_go_together_are_one_axis(tmp_path):
    members = grid(tiny(), {"size": SIZES, "pool": [4, 8]}, 2)
    assert len(members) == 8
    assert [(c.task.dim, c.task.points) for _, c in members[::4]] == [(2, 5), (3, 7)]
    assert member_name(members[0][0]) == "dim=2,points=5,pool_size=4,seed=0"
    made = Sweep.create(tmp_path / "sweep", tiny(), {"size": SIZES}, 1)
    opened = Sweep.open(tmp_path / "sweep")
    assert opened.over == made.over == check_over(tiny(), {"size": SIZES})
    assert [m.config for m in opened.members] == [m.config for m in made.members]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"size": {}}, "no values for size"),
        ({"size": {"a": {}}}, "the same settings"),
        ({"size": {"a": {"dim": 2}, "b": {"points": 2}}}, "the same settings"),
        ({"size": {"a": {"dim": 2, "task_dim": 2}}}, "task_dim is given twice"),
        ({"size": {"a": {"dim": 2}}, "dim": [3]}, "task_dim is given twice"),
        ({"size": {"a": {"dim": 2}, "b": {"dim": 2}}}, "a value twice"),
        ({"size": {"a": {"dim": 0.5}}}, "task_dim cannot be 0.5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(over, message):
    with pytest.raises(ValueError, match=message):
        grid(tiny(), over, 1)
