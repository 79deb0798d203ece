"""Gradient descent in context: constructed weights, best rates, and how runs compare with it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl
from icl.analysis import applicable, descent
from icl.analysis.alignment import Alignment, alignment
from icl.analysis.copying import copying
from icl.analysis.descent import construction, interpolated, rates_of, tuned_descent
from icl.analysis.descent_shifts import descent_shifts
from icl.analysis.descent_study import descent_study
from icl.analysis.final_losses import final_losses
from icl.models import GradientDescentConfig, SelfAttentionConfig, TransformerConfig
from icl.sweeps import Sweep, SweepResult
from icl.tasks import Curriculum, LinearRegression
from icl.training import Learner, RunError

from .helpers import QUIET, episodes_of, query_predictions, tiny, untrained

TASK = LinearRegression(dim=4, points=9, inputs="uniform", input_scale=0.5)
PROMPTS = 128  # of all analyses, so that one program draws them


def regression(**changes):
    defaults = dict(task=TASK, layout="concatenated", model=SelfAttentionConfig())
    return tiny(**(defaults | changes))


@pytest.mark.parametrize(
    ("layers", "shared", "plus_plus"),
    [
        (1, True, False), (1, True, True), (2, True, True), (2, False, False), (3, True, False),
        (3, False, True),
    ],
)  # fmt: skip
def test_constructed_attention_is_gradient_descent(layers, shared, plus_plus):
    """Proposition 1: one layer is one step, to 1e-6 of the predictions' size."""
    model = SelfAttentionConfig(layers=layers, shared=shared)
    attention = Learner(regression(model=model))
    descent = Learner(
        regression(model=GradientDescentConfig(layers=layers, shared=shared, plus_plus=plus_plus))
    )
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    initial = jax.eval_shape(attention.init, jax.random.key(0)).params
    count = 1 if shared else layers
    predict, descend = jax.jit(attention.predict), jax.jit(descent.predict)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rates = rng.uniform(1, 6, count)
        gammas = rng.uniform(0, 0.2, count) if plus_plus else None
        params = construction(model, 4, 8, rates, gammas)
        assert shapes(params) == shapes(initial)
        theirs = {"learning_rate": jnp.asarray(rates, jnp.float32)}
        if gammas is not None:
            theirs["gamma"] = jnp.asarray(gammas, jnp.float32)
        episodes = episodes_of(attention, seed=seed)
        ours = np.asarray(predict(params, episodes))[:, -1]
        expected = np.asarray(descend(theirs, episodes))[:, -1]
        atol = 1e-6 * max(1, np.abs(expected).max()) * layers
        np.testing.assert_allclose(ours, expected, atol=atol)


def test_one_layer_from_given_weights_is_one_step_from_there():
    model = SelfAttentionConfig()
    learner = Learner(regression(model=model))
    w = np.array([0.5, -1.0, 0.2, 2.0], np.float32)
    episodes = episodes_of(learner)
    found = query_predictions(learner, construction(model, 4, 8, 2.0, weights=w), episodes)
    x, y = np.asarray(episodes.x, np.float64), np.asarray(episodes.y, np.float64)
    step = np.einsum("bn,bnd->bd", y[:, :-1] - x[:, :-1] @ w, x[:, :-1]) * 2.0 / 8
    # The weights' own part is in the query's label, which the prompt leaves 0.
    np.testing.assert_allclose(found, (step * x[:, -1]).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        (SelfAttentionConfig(softmax="all"), 1.0),
        (SelfAttentionConfig(heads=2), 1.0),
        (SelfAttentionConfig(positions=2), 1.0),
        (SelfAttentionConfig(layers=2), [1.0, 2.0]),
        (SelfAttentionConfig(layers=3, shared=False), [1.0, 2.0]),
    ],
)
def test_models_that_cannot_be_constructed_are_refused(model, rates):
    with pytest.raises(ValueError, match="construction is for|cannot have rates"):
        construction(model, 4, 8, rates)


def test_tuned_rates_are_optimal():
    """Of one step in closed form, with s = E x^2; GD++ and rates of single steps do better."""
    config = regression()
    tuned = tuned_descent(config)
    # E of (x.x_j)(x_j.x_k) (x_k.x) for uniform coordinates: s (N - 1 + d) + (9 / 5 - 1) s.
    expected = 8 / (0.25 / 3 * (8 - 1 + 4 + 0.8))
    np.testing.assert_allclose(tuned.learning_rates, expected, rtol=0.03)
    assert tuned.gammas is None and tuned.name == "GD, 1 step"
    episodes = icl.evaluation.draw_prompts(TASK, jax.random.key(3), 4096)

    program = functools.cache(lambda learner: jax.jit(learner.loss_sum))

    def loss(descent, **changed):
        total, (count, _) = program(descent.learner)(descent.params | changed, episodes)
        return float(total) / float(count)

    best = loss(tuned)
    for factor in (0.8, 1.25):
        assert best < loss(tuned, learning_rate=factor * tuned.params["learning_rate"])
    shared = tuned_descent(config, 2)
    plus_plus = tuned_descent(config, 2, plus_plus=True)
    own = tuned_descent(config, 2, plus_plus=True, shared=False)
    assert loss(own) < loss(plus_plus) < loss(shared) < best
    assert own.learning_rates.shape == (2,) and own.gammas[0] > 0
    for factor in (0.8, 1.25):
        assert loss(plus_plus) < loss(plus_plus, gamma=factor * plus_plus.params["gamma"])
    with pytest.raises(ValueError, match="linear regression"):
        tuned_descent(tiny())


def test_interpolated_weights_are_the_same_where_both_are():
    model = SelfAttentionConfig()
    learner = Learner(regression(model=model))
    constructed = construction(model, 4, 8, 3.0)
    scaled = {"layers": {0: dict(constructed["layers"][0])}}
    scaled["layers"][0]["query"] = 4 * scaled["layers"][0]["query"]
    scaled["layers"][0]["output"] = scaled["layers"][0]["output"] / 4
    between = interpolated(scaled, constructed)
    assert rates_of(scaled, 8)["learning_rate"] == pytest.approx([3.0])
    twice = construction(SelfAttentionConfig(layers=2, shared=False), 4, 8, [1, 2], [0.1, 0.3])
    read = rates_of(twice, 8)
    assert read["learning_rate"] == pytest.approx([1, 2]) and read["gamma"] == pytest.approx(
        [0.1, 0.3]
    )
    episodes = episodes_of(learner)
    np.testing.assert_allclose(
        query_predictions(learner, between, episodes),
        query_predictions(learner, constructed, episodes),
        atol=1e-6,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = regression(
        training_steps=600, training_batch_size=128, training_log_every=100,
        training_checkpoint_every=200, optimizer_learning_rate=5e-3,
    )  # fmt: skip
    return icl.train(config, tmp_path_factory.mktemp("oswald") / "run", logging=QUIET)


def test_a_trained_layer_becomes_a_step_of_gradient_descent(run):
    result = alignment(run, prompts=PROMPTS)
    np.testing.assert_array_equal(result.steps, [0, 200, 400, 600])
    assert result.loss[0] > 1.2 * result.loss[-1]
    assert result.loss[-1] < 1.03 * result.losses["GD, 1 step"] < 0.8 * result.losses["zero"]
    measures = result.measures["GD, 1 step"]
    assert measures["sensitivity cosine"][-1] > 0.98 > measures["prediction difference"][-1] + 0.8
    assert result.interpolated[-1] < 1.05 * result.loss[-1]
    for name in ("alignment.json", "alignment.png"):
        assert (run.path / name).stat().st_size > 100
    text = " ".join(str(result).split())
    assert "GD, 1 step (learning_rate" in text and "error: squared error / mean squared lab" in text
    # All of a run's numbers are on one scale, on which predicting 0 has error 1.
    np.testing.assert_allclose(result.losses["zero"], 1, rtol=0.3)
    last = run.metrics()[-1]
    np.testing.assert_allclose(result.loss[-1], last["error"], rtol=0.3)
    np.testing.assert_allclose(last["error"], last["loss"] / TASK.label_kind.scale, rtol=1e-6)
    saved = json.loads((run.path / "alignment.json").read_text())
    assert saved["loss"] == result.loss.tolist() and "path" not in saved
    assert str(Alignment.load(run)) == str(result)


def test_a_run_against_itself_is_the_same(run):
    result = alignment(run, run, prompts=PROMPTS)
    measures = result.measures[run.path.name]
    assert measures["prediction difference"][-1] == 0 < measures["prediction difference"][0]
    np.testing.assert_allclose(measures["sensitivity cosine"][-1], 1, atol=1e-5)
    assert np.isnan(result.interpolated).all()
    assert (run.path / f"alignment-{run.path.name}.json").exists()
    assert str(Alignment.load(run, result.file)) == str(result)


def test_shifts_hold_a_layer_against_descent(run):
    result = descent_shifts(run, prompts=PROMPTS)
    assert list(result.sweeps) == [
        "inputs times", "tasks times", "inputs", "random labels", "times applied",
    ]  # fmt: skip
    tasks = result.sweeps["tasks times"].errors
    # Both are linear in the labels, so that nothing changes relative to their size.
    np.testing.assert_allclose(tasks["GD, 1 step"], tasks["GD, 1 step"][0], rtol=1e-3)
    noisy = result.sweeps["random labels"].errors["learner"]
    assert noisy[-1] > 1 > noisy[0]
    again = result.sweeps["times applied"].errors
    assert all(len(errors) == 50 for errors in again.values()) and len(again) == 2
    for name in ("descent-shifts.json", "descent-shifts.png"):
        assert (run.path / name).stat().st_size > 100
    assert "random labels" in str(result)


def test_copying_sees_what_a_layer_moves(tmp_path):
    config = regression(
        layout="separate",
        model=SelfAttentionConfig(layers=2, shared=False, softmax="first", positions=4),
    )  # fmt: skip
    run = untrained(tmp_path / "run", config, step=5)
    result = copying(run, prompts=PROMPTS)
    assert result.matrix.shape == (17, 17) and result.steps.tolist() == [5]
    # With small initial weights a token depends on itself alone.
    np.testing.assert_allclose(result.norms["itself"], 5**0.5, rtol=0.02)
    rows = np.arange(0, 16, 2)
    np.testing.assert_allclose(result.norms["the next token"], result.matrix[rows, rows + 1].mean())
    assert result.norms["the next token"][0] < 0.2 and "itself" in str(result)
    assert (run.path / "copying.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="predicts every label|single query|concatenated"):
        descent_shifts(run)


def test_questions_are_asked_of_runs_that_allow_them(run, tmp_path):
    assert applicable(run.config) == ["alignment", "descent-shifts", "heads"]
    assert set(applicable(tiny())) == {"shifts", "function", "heads"}
    plain = icl.training.Run.create(tmp_path / "run", tiny())
    with pytest.raises(ValueError, match="predicts every label"):
        alignment(plain)
    with pytest.raises(ValueError, match="has another task"):
        alignment(run, plain)
    with pytest.raises(ValueError, match="separate layout"):
        copying(plain)
    for ask in (alignment, descent_shifts, copying):
        with pytest.raises(ValueError, match="at least 1"):
            ask(run, prompts=0)
    empty = icl.training.Run.create(tmp_path / "empty", run.config)
    with pytest.raises(RunError, match="no checkpoint"):
        alignment(empty)


def test_the_study_of_descent_equals_its_construction(tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "QUERY_BATCHES", 2)
    result = descent_study(tmp_path, kinds=[(1, False, True)], examples=[10])
    found = json.loads((tmp_path / "descent.json").read_text())
    step = found["descent"]["GD, 1 step"]
    assert step["construction differs by"] < 1e-6
    np.testing.assert_allclose([step["error"], step["learning_rate"][0]], [0.4949, 6.06], rtol=0.04)
    np.testing.assert_allclose(found["gamma_by_examples"]["10"], 0.176, rtol=0.04)
    assert found["descent"]["zero"]["error"] == 1
    assert result.table().row_count == 3 and (tmp_path / "descent.png").stat().st_size > 10_000


def test_a_sweep_of_single_layers_ends_with_their_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "QUERY_BATCHES", 2)
    config = regression()
    kinds = {"linear": {"model_softmax": "none"}, "softmax": {"model_softmax": "all"}}
    sweep = Sweep(tmp_path / "sweep", config, {"attention": kinds}, 1)
    for member in sweep.members:
        untrained(member.path, member.config)
    records = [
        {"member": member.path.name, "changes": member.changes}
        | {"examples": [8], "normalised_error": [1.0]}
        for member in sweep.members
    ]
    SweepResult(sweep.path, 10, records).save()
    result = final_losses(sweep)
    found = json.loads((sweep.path / "losses.json").read_text())
    assert list(found["error"]) == ["linear", "softmax"] and result.table().row_count == 3
    assert 0 < found["one step of gradient descent"] < found["error"]["linear"][0]
    assert (sweep.path / "losses.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "changes",
    [
        dict(model=SelfAttentionConfig(features=6)),
        dict(
            model=TransformerConfig(layers=2, heads=2, width=16),
            curriculum=Curriculum(points_start=3),
        ),
    ],
)
def test_other_models_with_a_query_are_held_against_descent_too(changes, tmp_path):
    run = untrained(tmp_path / "run", regression(**changes))
    assert {"alignment", "descent-shifts"} <= set(applicable(run.config))
    layers = run.config.model.layers
    assert len(alignment(run, prompts=PROMPTS).measures) == layers
    sweeps = descent_shifts(run, prompts=PROMPTS).sweeps
    assert "times applied" not in sweeps
    assert all(np.isfinite(v).all() for sweep in sweeps.values() for v in sweep.errors.values())
