"""MAML, first-order MAML and Reptile adapt and learn as they are defined; few-shot errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from icl.analysis.few_shot import few_shot
from icl.analysis.fine_tuning import FineTuning, Shots
from icl.models import AdaptedTransformerConfig
from icl.tasks import Episode, Mixture, sample_batch
from icl.training import Config, Learner, OptimizerConfig, Run
from icl.training.config import TrainingConfig
from icl.training.prediction import Predictor
from icl.training.step import batch_gradient, init_state

from .helpers import TINY, tiny, untrained

TASK = Mixture(dim=2, points=6, queries=2, fewest_points=2, options=("relu_network.hidden=3",))
MODEL = AdaptedTransformerConfig(layers=1, heads=2, width=8, inner_steps=2, inner_rate=0.05)
CONFIG = Config(
    task=TASK,
    layout="masked",
    model=MODEL,
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant"),
    training=TrainingConfig(
        steps=4, batch_size=6, microbatch_size=3, log_every=2, checkpoint_every=2
    ),
)


def network(p, x, seen):
    """A transformer of one block, written apart, for inputs `[T, dim]` and a mask `[T, T]`."""

    def norm(p, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)
        return x * p["scale"][None] + p["bias"][None]

    linear = lambda p, x: jnp.dot(x, p["kernel"], precision="highest") + p["bias"][None]
    block = p["blocks"][0]
    h = linear(p["read_in"], x)
    qkv = linear(block["mixer"]["qkv"], norm(block["mixer_norm"], h)).reshape(len(x), 3, 2, -1)
    q, k, v = jnp.moveaxis(qkv, 1, 0)
    scores = jnp.einsum("tnh,snh->nts", q, k, precision="highest") / 2
    weights = jax.nn.softmax(jnp.where(seen[None], scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("nts,snh->tnh", weights, v, precision="highest").reshape(len(x), -1)
    h = h + linear(block["mixer"]["out"], mixed)
    hidden = jax.nn.gelu(linear(block["up"], norm(block["mlp_norm"], h)), approximate=True)
    h = h + linear(block["down"], hidden)
    return linear(p["read_out"], norm(p["norm"], h))[:, 0]


def adapted(p, rates, episode, steps=2, still=lambda slope: slope):
    """The weights after steps on the examples of a prompt, and its predictions."""
    seen = episode.context[None] | jnp.eye(6, dtype=bool)
    count = jnp.maximum(episode.context.sum(), 1).astype(jnp.float32)

    def loss(p):
        wrong = (network(p, episode.x, seen) - episode.y) ** 2
        return jnp.where(episode.context, wrong, 0).sum() / count

    for _ in range(steps):
        slopes = still(jax.grad(loss)(p))
        p = jax.tree.map(lambda leaf, rate, slope: leaf - rate * slope, p, rates, slopes)
    return p, network(p, episode.x, seen)


def loss_apart(params, episodes, steps=2, still=lambda slope: slope):
    """The mean squared error of the queries, as defined."""
    start = params["network"]
    leaves, structure = jax.tree.flatten(start)
    rates = [jnp.float32(0.05)] * len(leaves)
    if "log_rates" in params:
        rates = list(jnp.exp(params["log_rates"]))
    rates = structure.unflatten(rates)
    found = jax.vmap(lambda episode: adapted(start, rates, episode, steps, still)[1])(episodes)
    return error_of(found, episodes)


def error_of(found, episodes):
    wrong = jnp.where(episodes.queries, (found - episodes.y) ** 2, 0)
    return wrong.sum() / episodes.queries.sum().astype(jnp.float32)


def state_of(learn_rates=False, **changes):
    """A learner with weights that are not small, its state and the prompts of its first step."""
    model = dataclasses.replace(MODEL, learn_rates=learn_rates, **changes)
    return Learner(CONFIG.replace(model=model)), *first_state(learn_rates)


@functools.cache
def first_state(learn_rates):
    """The state, equal for all methods and numbers of steps, and the prompts."""
    model = dataclasses.replace(MODEL, learn_rates=learn_rates)
    learner = Learner(CONFIG.replace(model=model))

    @jax.jit
    def drawn():
        state = init_state(learner, optax.sgd(0.1))
        leaves, structure = jax.tree.flatten(state.params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        grown = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
        params = structure.unflatten(grown)
        state = state._replace(variables=state.variables._replace(params=params))
        key = jax.random.fold_in(state.data_key, 0)
        return state, sample_batch(TASK, key, jnp.arange(6), TASK.full)

    return drawn()


def near(ours, theirs):
    for (path, one), (_, other) in zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (ours, theirs)), strict=True
    ):
        size = float(jnp.abs(other).max())
        np.testing.assert_allclose(
            one, other, rtol=2e-3, atol=1e-3 * size + 1e-6, err_msg=str(path)
        )


# Few steps, since second derivatives take long to compile.
@pytest.mark.parametrize(("method", "steps"), [("maml", 1), ("first-order", 2)])
def test_the_gradient_is_that_of_the_definition(method, steps):
    learner, state, episodes = state_of(method=method, inner_steps=steps, learn_rates=True)
    still = jax.lax.stop_gradient if method == "first-order" else lambda slope: slope

    def ours(params):
        total, (count, _) = learner.loss_sum(params, episodes)
        return total / count.astype(jnp.float32)

    theirs = lambda params: loss_apart(params, episodes, steps, still)
    (loss, gradient), (expected, defined) = (
        jax.jit(jax.value_and_grad(one))(state.params) for one in (ours, theirs)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    near(gradient, defined)


def test_reptile_moves_the_weights_to_the_adapted_ones():
    learner, state, episodes = state_of(method="reptile")

    @jax.jit
    def both(state, episodes):
        start = state.params["network"]
        rates = jax.tree.map(lambda leaf: jnp.float32(0.05), start)
        to, found = jax.vmap(lambda episode: adapted(start, rates, episode))(episodes)
        way = jax.tree.map(lambda leaf, ends: leaf - ends.mean(axis=0), start, to)
        return batch_gradient(learner, state)[:2], error_of(found, episodes), way

    (loss, gradient), expected, way = both(state, episodes)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    near(gradient["network"], way)


def test_predictions_depend_on_examples_and_not_on_other_queries():
    learner, state, _ = state_of(learn_rates=True, evaluation_steps=3)
    rng = np.random.default_rng(0)
    x, y, asked = rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 4)), rng.normal(size=(2, 3, 2))
    predict = Predictor(learner, state.variables)
    found = predict(x, y, asked)
    np.testing.assert_allclose(predict(x[:, ::-1], y[:, ::-1], asked), found, rtol=1e-4, atol=1e-5)
    assert np.abs(predict(x, y + 1, asked) - found).min() > 1e-3
    # Without examples the initial weights predict, each query by itself.
    none = predict(x[:, :0], y[:, :0], asked)
    itself = jnp.eye(3, dtype=bool)
    initial = jax.jit(network)(state.params["network"], asked[0].astype(np.float32), itself)
    np.testing.assert_allclose(none[0], initial, rtol=1e-4, atol=1e-5)
    two = Episode(
        np.concatenate([x, asked[:, :2]], axis=1).astype(np.float32),
        np.concatenate([y, np.zeros((2, 2))], axis=1).astype(np.float32),
        np.broadcast_to(np.arange(6) >= 4, (2, 6)),
        np.broadcast_to(np.arange(6) < 4, (2, 6)),
    )
    together = jax.jit(learner.predict)(state.variables, two)[:, 4:]
    np.testing.assert_allclose(together, found[:, :2], rtol=1e-4, atol=1e-5)


def test_settings_that_do_not_fit_are_refused():
    for changes, message in (
        (dict(method="anil"), "model.method must be maml, first-order, reptile"),
        (dict(loss="hinge"), "model.loss must be"),
        (dict(dtype="bfloat16"), "computed in float32"),
        (dict(embed_labels=True), "embed_labels to False"),
        (dict(method="reptile", learn_rates=True), "learn_rates to False"),
        (dict(width=9), "cannot be split"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(MODEL, **changes)
    with pytest.raises(ValueError, match="no classes: set model.loss to squared"):
        Learner(CONFIG.replace(model_loss="cross-entropy"))
    with pytest.raises(ValueError, match="set layout to masked, not concatenated"):
        tiny(model=MODEL, layout="concatenated")
    with pytest.raises(ValueError, match="set task.queries to their number"):
        tiny(model=MODEL, layout="masked")
    built = MODEL.build(5, 6, rngs=nnx.Rngs(params=jax.random.key(0)))
    weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(built.network)))
    assert MODEL.state_size(5, 6) == weights


def test_fine_tuning_is_adam_on_prompts_of_one_point():
    learner = Learner(tiny(task=dataclasses.replace(TASK, queries=None, fewest_points=None)))
    variables = jax.jit(learner.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    shots = Shots(draw(2, 5, 2), draw(2, 5), draw(2, 3, 2), draw(2, 3))
    found = FineTuning(learner, variables).errors(shots, 2, 1e-2)
    params, optimizer = variables.params, optax.adam(1e-2)
    state = optimizer.init(params)
    alone = lambda x: Episode(x[:, None], jnp.zeros((len(x), 1)), *jnp.array([[[1]], [[0]]]) > 0)
    ask = lambda params, x: jax.vmap(
        lambda one: learner.predict(params, alone(one[None]))[0, 0])(x)  # fmt: skip
    wrong = lambda params, x, y: ((ask(params, x) - y) ** 2).mean()

    @jax.jit
    def step(params, state):
        slopes = jax.grad(wrong)(params, shots.x[0, :2], shots.y[0, :2])
        changes, state = optimizer.update(slopes, state, params)
        params = optax.apply_updates(params, changes)
        return params, state, wrong(params, shots.x_query[0], shots.y_query[0])

    for _ in range(3):
        params, state, error = step(params, state)
    np.testing.assert_allclose(found[0, 1], error, rtol=1e-3)


def test_runs_beside_each_other_are_asked_for_the_same_queries(tmp_path, undrawn):
    sizes = dict(families=("linear_regression",), options=(), held_out=("quadratic_regression",))
    task = dataclasses.replace(TASK, **sizes)
    explicit = untrained(tmp_path / "explicit", CONFIG.replace(task=task))
    plain = dataclasses.replace(task, points=5, queries=None, fewest_points=None)
    implicit = untrained(tmp_path / "implicit", tiny(task=plain, model=TINY))
    result = few_shot(implicit, beside=[explicit], prompts=4, seed=1)
    assert result.shots.tolist() == [0, 1, 2, 4]
    assert [shown.trained for shown in result.families.values()] == [True, False]
    names = ["transformer in context", "MAML", "fine-tuned", "least squares"]
    assert list(result.families["linear_regression"].curves) == names
    shown = result.families["quadratic_regression"]
    assert shown.comparator == "least squares on squares" and shown.optimal
    # Two coordinates are known after two examples.
    assert shown.curves[shown.comparator].mean[3] < 1e-6 < shown.curves["MAML"].mean[3]
    assert set(result.tuned) == {1, 2, 4}
    assert str(type(result).load(implicit)) == str(result)
    other = Run.create(tmp_path / "other", CONFIG)
    with pytest.raises(ValueError, match="other families than"):
        few_shot(implicit, beside=[other], prompts=1)
    with pytest.raises(ValueError, match="does not learn a mixture"):
        few_shot(Run.create(tmp_path / "no", tiny()), prompts=1)


def test_the_command_passes_runs_and_families_to_the_analysis(tmp_path, monkeypatch, capsys):
    from icl import cli
    from icl.commands import eval as command_eval

    task = dataclasses.replace(TASK, queries=None, fewest_points=None)
    run, asked = Run.create(tmp_path / "run", tiny(task=task)), {}
    monkeypatch.setattr(command_eval, "evaluate_and_show", lambda run, **options: None)
    monkeypatch.setattr(command_eval, "show_result", lambda result: None)
    monkeypatch.setattr(command_eval, "ask", lambda name, run, **own: asked.update({name: own}))
    command = ["eval", str(run.path), "--beside", "a", "b", "--held-out", "parity"]
    assert cli.main(command) == 0
    assert asked["few-shot"] == {"beside": ("a", "b"), "held_out": ("parity",), "seed": 0}
    assert "beside" not in asked["heads"]
    plain = Run.create(tmp_path / "plain", tiny())
    assert cli.main(["eval", str(plain.path), "--beside", "a"]) == 2
    assert "--beside needs the analysis few-shot" in capsys.readouterr().err
