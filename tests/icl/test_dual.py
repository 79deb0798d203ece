"""The dual model of a softmax layer, its random features, and the variants of attention."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from icl.analysis import dual
from icl.analysis.dual import (
    DualCurves,
    DualProblem,
    denominator,
    dual_of_run,
    dual_problem,
    feature_descent,
    kernel_descent,
    positive_features,
    sum_of_heads,
)
from icl.analysis.random_features import random_features
from icl.analysis.variants import PLAIN, variant_label, variants
from icl.experiments import PRESETS
from icl.kernels import dot_product_attention
from icl.models import ContrastiveAttentionConfig, SelfAttentionConfig
from icl.sweeps import Sweep, SweepResult
from icl.tasks import LinearRegression
from icl.training import Run, RunError, TrainingConfig
from icl.training.config import Config, config_from_dict, config_to_dict

from .helpers import untrained

TINY = Config(
    task=LinearRegression(dim=3, points=6, inputs="uniform"),
    layout="concatenated",
    model=SelfAttentionConfig(softmax="all", query_in_context=True, init_scale=1.0),
    training=TrainingConfig(steps=4, batch_size=8, log_every=2, checkpoint_every=4),
)


exact = jax.jit(kernel_descent)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def draw(tokens=6, size=5, width=4, seed=0, spread=1.0):
    """Query `[size]`, keys `[tokens, size]` and values `[tokens, width]`."""
    query, *keys = spread * normal(tokens + 1, size, seed=seed)
    return query, np.stack(keys), normal(tokens, width, seed=seed + 1)


def attention(query, keys, values, scale=None):
    """What the library's kernel makes of one query; `[V]`."""
    width = max(query.shape[-1], values.shape[-1])
    pad = lambda array: jnp.pad(array, ((0, 0), (0, width - array.shape[1])))[:, None]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with jax.default_matmul_precision("highest"):
        out = dot_product_attention(pad(query[None]), pad(keys), pad(values), scale=scale)
    return out[0, 0, : values.shape[-1]]


@settings(max_examples=5)
@given(
    demonstrations=st.integers(0, 17),
    rest=st.integers(0, 3),
    size=st.integers(1, 16),
    width=st.integers(1, 9),
    scale=st.sampled_from([None, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_exact_dual_ends_at_attention(demonstrations, rest, size, width, scale, seed):
    tokens = max(demonstrations + rest, 1)

    @jax.jit
    def both(*given):
        descent = kernel_descent(dual_problem(*given, demonstrations, scale))
        return descent.outputs, attention(*given, scale)

    outputs, expected = both(*draw(tokens, size, width, seed))
    np.testing.assert_allclose(outputs[-1], expected, rtol=1e-5, atol=1e-5)
    assert outputs.shape == (demonstrations + 1, width)


def test_before_the_first_step_the_dual_has_the_query_parts_contribution():
    query, keys, values = draw(tokens=6)
    weights = jax.nn.softmax(keys @ query / query.shape[0] ** 0.5)
    found = exact(dual_problem(query, keys, values, 5))
    np.testing.assert_allclose(found.outputs[0], weights[5] * values[5], rtol=1e-5)
    alone = exact(dual_problem(query, keys, values, 6))
    np.testing.assert_array_equal(alone.outputs[0], 0)
    assert alone.norms[0] == 0


def test_every_step_adds_what_one_demonstration_is_attended_with():
    query, keys, values = draw(tokens=7)
    weights = jax.nn.softmax(keys @ query / query.shape[0] ** 0.5)
    found = exact(dual_problem(query, keys, values, 6))
    np.testing.assert_allclose(
        np.diff(found.outputs, axis=0), (weights[:, None] * values)[:6], rtol=1e-4, atol=1e-6
    )


def closed_form(problem: DualProblem, directions: jax.Array):
    """Outputs and norms from W_t = W_0 + sum of the first t outer products, in float64."""
    as64 = lambda array: np.asarray(array, np.float64)
    feature = lambda z: (
        np.exp(as64(z) @ as64(directions).T - (as64(z) ** 2).sum(-1, keepdims=True) / 2)
        / np.sqrt(len(directions))
    )
    keys = np.concatenate([problem.keys, problem.start_keys])
    total = np.exp(as64(keys) @ as64(problem.query)).sum()
    weights = as64(problem.start_values).T @ feature(problem.start_keys) / total
    tested, path = feature(problem.query), [weights]
    for value, phi in zip(as64(problem.values), feature(problem.keys)):
        path.append(path[-1] + np.outer(value, phi) / total)
    return np.stack([w @ tested for w in path]), np.array([np.linalg.norm(w) for w in path])


@settings(max_examples=5)
@given(
    demonstrations=st.integers(0, 8),
    rest=st.integers(0, 2),
    count=st.integers(1, 60),
    rate=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_descent_on_the_loss_is_the_papers_update(demonstrations, rest, count, rate, seed):
    tokens = max(demonstrations + rest, 1)
    problem = dual_problem(*draw(tokens, seed=seed), demonstrations)
    directions = normal(count, 5, seed=seed + 2)
    found = jax.jit(feature_descent)(problem, directions, rate=rate)
    outputs, norms = closed_form(problem, directions)
    np.testing.assert_allclose(found.outputs, outputs, rtol=1e-4, atol=1e-5 * norms.max())
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4, atol=1e-6)


def test_the_norm_of_the_exact_dual_is_that_of_many_features():
    problem = dual_problem(*draw(tokens=8, spread=0.4), 6)
    by_features = jax.jit(feature_descent)(problem, normal(20_000, 5, seed=5))
    expected = exact(problem)
    np.testing.assert_allclose(by_features.norms, expected.norms, rtol=0.03)
    np.testing.assert_allclose(by_features.outputs, expected.outputs, atol=0.03)


def test_the_norm_grows_while_values_and_keys_agree():
    query, keys, values = draw(tokens=10)
    # The products of equal values are positive, and so is the kernel.
    norms = exact(dual_problem(query, keys, np.ones_like(values), 10)).norms
    assert (np.diff(norms) > 0).all()


def test_features_have_the_exponential_kernel_as_their_mean():
    a, b = normal(2, 3) * 0.6
    directions = normal(100_000, 3, seed=1)
    product = positive_features(a, directions) @ positive_features(b, directions)
    np.testing.assert_allclose(product, np.exp(a @ b), rtol=0.02)


def test_heads_stand_side_by_side_in_the_dual():
    problems = [dual_problem(*draw(seed=seed), 5) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *problems)
    both = sum_of_heads(jax.jit(jax.vmap(kernel_descent))(stacked))
    one, two = (exact(problem) for problem in problems)
    np.testing.assert_allclose(both.outputs, one.outputs + two.outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.norms, np.hypot(one.norms, two.norms), rtol=1e-5)


def test_the_denominator_is_the_softmaxs():
    query, keys, values = draw(tokens=6)
    expected = np.exp(np.asarray(keys @ query) / 5**0.5).sum()
    np.testing.assert_allclose(denominator(dual_problem(query, keys, values, 4)), expected, 1e-5)
    with pytest.raises(ValueError, match="6 keys, not 7"):
        dual_problem(query, keys, values, 7)


def test_the_study_writes_what_it_found(tmp_path):
    table = str(random_features(tmp_path, features=(30, 3_000), draws=40))
    saved = json.loads((tmp_path / "random-features.json").read_text())
    assert set(saved["gap_by_step"]) == {"kernel", "30", "3000"}
    assert np.shape(saved["gap_by_step"]["30"]) == (3, 16)
    few, many = (saved["gap_by_step"][count][1][-1] for count in ("30", "3000"))
    assert few > 4 * many  # the gap falls with the number of features
    assert np.max(np.array(saved["gap_by_step"]["kernel"])[:, -1]) < 1e-5
    assert "3,000" in table and "0.592" in table
    assert (tmp_path / "random-features.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="at least 1"):
        random_features(tmp_path, draws=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TINY.replace(model_heads=2, model_key_size=3)
    return untrained(tmp_path_factory.mktemp("dual") / "run", config)


def test_the_dual_of_a_trained_layer_ends_at_its_output(run):
    result = dual_of_run(run, features=[5_000], prompts=8)
    assert result.gap["kernel"][:, -1].max() < 1e-5 < result.gap["kernel"][:, 0].min()
    assert result.gap["5000"][1, -1] < 0.2 * result.gap["5000"][1, 0]
    assert result.norm["kernel"].shape == (3, 6)
    saved = DualCurves.load(run)
    np.testing.assert_allclose(saved.gap["5000"], result.gap["5000"])
    assert str(saved) == str(result)
    assert (run.path / "dual.png").stat().st_size > 5_000


def test_the_dual_of_a_run_is_of_what_its_query_sees(run):
    learner_outputs = []
    for query_in_context in (True, False):
        config = run.config.replace(model_query_in_context=query_in_context)
        learner = dual.Learner(config)
        episodes = dual.draw_prompts(config.task, jax.random.key(3), 8)
        _, params = run.variables()
        tokens = jax.jit(learner.encode)(params, episodes)
        of_layer = jax.jit(dual.problems_of_layer, static_argnums=0)
        problems, outputs = of_layer(learner, params, tokens)
        assert problems.keys.shape[2:] == (5, 3)
        assert problems.start_keys.shape[2] == int(query_in_context)
        label = jax.jit(learner.predict)(params, episodes)[:, -1]
        np.testing.assert_allclose(outputs[:, -1], -label, rtol=1e-4, atol=1e-6)
        learner_outputs.append(outputs)
    assert np.abs(learner_outputs[0] - learner_outputs[1]).max() > 1e-4


def test_what_has_no_dual_says_so(run, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        dual_of_run(run, prompts=0)
    for changes in ({"layers": 2}, {"softmax": "none"}):
        model = dataclasses.replace(TINY.model, **changes)
        other = Run.create(tmp_path / "-".join(changes), TINY.replace(model=model))
        with pytest.raises(ValueError, match="one layer of softmax attention"):
            dual_of_run(other)
    with pytest.raises(RunError, match="no dual.json; make it with: icl eval"):
        DualCurves.load(other)
    with pytest.raises(RunError, match="no checkpoint"):
        dual_of_run(Run.create(tmp_path / "new", TINY))


def build(config, tokens=7, in_width=4):
    return config.build(in_width, tokens, rngs=nnx.Rngs(params=jax.random.key(0)))


def shaken(config):
    """A model whose weights that start at 0 do not hide what forgets them."""
    graph, state = nnx.split(build(config))
    leaves, tree = jax.tree.flatten(state)
    moved = [a + 0.2 * normal(*a.shape, seed=seed) for seed, a in enumerate(leaves)]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))


def prompts(batch=3, tokens=7, in_width=4):
    return normal(batch, tokens, in_width, seed=1)


VARIED = dict(heads=2, key_size=5, init_scale=3.0)


predict = nnx.jit(lambda model: model(prompts())[:, -1])


@pytest.mark.parametrize(
    "layers, shared, query_in_context", [(1, True, True), (2, False, False), (3, True, True)]
)
def test_neutral_variants_are_self_attention(layers, shared, query_in_context):
    options = VARIED | dict(layers=layers, shared=shared, query_in_context=query_in_context)
    plain = build(SelfAttentionConfig(softmax="all", **options))
    varied = build(ContrastiveAttentionConfig(**options))
    np.testing.assert_array_equal(predict(varied), predict(plain))
    assert len(varied.heads()) == len(plain.heads())


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(model, tokens):
    """One varied layer's prediction at the last token, from the paper's formulas in float64."""
    config, layer = model.config, model.layers[0]
    array = lambda leaf: np.asarray(leaf[...], np.float64)

    def augment(mlp, x):
        if mlp is None:
            return x
        hidden = gelu(x @ array(mlp.up.kernel) + array(mlp.up.bias))
        mapped = hidden @ array(mlp.down.kernel) + array(mlp.down.bias)
        return x + mapped if mlp.residual else mapped

    predictions = []
    for prompt in np.asarray(tokens, np.float64):
        context = prompt if config.query_in_context else prompt[:-1]
        written = prompt[-1].copy()
        for head in range(config.heads):
            query = prompt @ array(layer.query)[head]
            keys = augment(layer.augment_keys, context @ array(layer.key)[head])
            values = augment(layer.augment_values, context @ array(layer.value)[head])
            varied, count = values.copy(), len(prompt) - 1
            for i in range(count if config.negatives else 0):
                scores = keys[:count] @ query[i]
                others = [j for j in np.argsort(scores) if j != i][: config.negatives]
                varied[i] = values[i] - config.negative_weight * values[others].mean(axis=0)
            scores = keys @ query[-1] / np.sqrt(config.key_size)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            mixed = weights[:count] @ varied[:count]
            if config.query_in_context:
                mixed += (1 - config.regularization) * weights[-1] * values[-1]
            written += mixed @ array(layer.output)[head]
        predictions.append(-written[-1])
    return predictions


@pytest.mark.parametrize(
    "options",
    [
        dict(regularization=0.3),
        dict(augment_keys="plain"),
        dict(augment_keys="residual", augment_values="plain", augment_size=3),
        dict(negatives=1, negative_weight=0.4),
        dict(negatives=5, negative_weight=1.0, query_in_context=False),
        dict(
            augment_keys="plain", augment_values="residual", negatives=2, negative_weight=-0.5,
            regularization=-1.0,
        ),
    ],
)  # fmt: skip
def test_variants_are_the_papers(options):
    config = ContrastiveAttentionConfig(**VARIED | dict(query_in_context=True) | options)
    model = shaken(config)
    np.testing.assert_allclose(predict(model), by_hand(model, prompts()), rtol=1e-4, atol=1e-4)


def test_residual_augmentation_starts_from_plain_attention():
    options = VARIED | dict(query_in_context=True)
    plain = build(SelfAttentionConfig(softmax="all", **options))
    for name in ("augment_values", "augment_keys"):
        varied = build(ContrastiveAttentionConfig(**options | {name: "residual"}))
        np.testing.assert_array_equal(predict(varied), predict(plain))


def test_every_weight_of_a_variant_learns():
    config = ContrastiveAttentionConfig(
        **VARIED, query_in_context=True, regularization=0.5, augment_values="residual",
        augment_keys="plain", negatives=2, negative_weight=0.5,
    )  # fmt: skip
    model = shaken(config)
    gradient = nnx.jit(nnx.grad(lambda model: (predict(model) ** 2).sum()))(model)
    # A bias after the keys' MLP shifts all scores of a query alike.
    for path, leaf in nnx.to_flat_state(gradient):
        moved = np.abs(leaf[...]).max() > 1e-4
        assert moved or path[-3:] == ("augment_keys", "down", "bias"), path


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(softmax="none"), "softmax must be all.*, got none"),
        (dict(regularization=0.5), "query_in_context=True"),
        (dict(regularization=float("nan")), "regularization must be a number from -3.*, got nan"),
        (dict(augment_keys="mlp"), "none, plain or residual, got 'mlp'"),
        (dict(augment_size=0, augment_keys="plain"), "augment_size must be a whole number from 1"),
        (dict(augment_size=8), "are both none"),
        (dict(negatives=-1), "negatives must be a whole number from 0"),
        (dict(negatives=3), "must be set together"),
        (dict(negative_weight=0.5), "must be set together"),
    ],
)
def test_variants_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveAttentionConfig(**options)


def test_negatives_are_other_demonstrations():
    config = ContrastiveAttentionConfig(negatives=6, negative_weight=0.5)
    with pytest.raises(ValueError, match="negatives must be at most 5"):
        build(config)
    build(dataclasses.replace(config, negatives=5))


def test_augmented_heads_have_no_weight_products():
    model = build(ContrastiveAttentionConfig(augment_keys="plain"))
    with pytest.raises(NotImplementedError, match="not linear in the tokens"):
        model.heads()


def test_what_variants_cost():
    plain = ContrastiveAttentionConfig(heads=2, key_size=5)
    negatives = dataclasses.replace(plain, negatives=1, negative_weight=0.1)
    augmented = dataclasses.replace(plain, augment_keys="plain", augment_size=100)
    flops = lambda config: config.flops_by_part(4, 7, 3)
    assert flops(plain) == flops(SelfAttentionConfig(softmax="all", heads=2, key_size=5))
    assert flops(negatives)["negatives"] == 2 * 4 * 2 * 5 * 7 * 7 * 3
    assert flops(augmented)["augmentation"] == 3 * 2 * 2 * 5 * 100 * 2 * 7 * 3
    assert augmented.activations(4) == 200 and plain.activations(4) == 30


def test_the_presets_sweep_is_over_variants_and_can_be_read_back():
    known = PRESETS["ren/variants-xs"]
    labels = {
        variant_label(known.config.replace(**settings).model)
        for settings in known.over["variant"].values()
    }
    assert len(labels) == len(known.over["variant"]) and PLAIN in labels
    assert "regularised, alpha 0.5" in labels and "5 negatives, beta 0.5" in labels
    assert config_from_dict(config_to_dict(known.config)) == known.config
    assert type(PRESETS["ren/linear-xs"].config.model) is SelfAttentionConfig


def made_up(path, over, config):
    """A finished sweep whose loss at a step is 1 / step, and whose errors are 0.5, 0.4, ..."""
    sweep = Sweep.create(path, config, over, 1, "ren/variants-xs")
    records = []
    for index, member in enumerate(sweep.members):
        lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(10, 110, 10)]
        (member.path / "metrics.jsonl").write_text("\n".join(lines))
        records.append(
            {"member": member.path.name, "changes": member.changes, "examples": [5]}
            | {"normalised_error": [0.5 - index / 10]}
        )
    SweepResult(sweep.path, 10, records).save()
    return sweep


def test_the_report_compares_variants_with_the_plain_one(tmp_path):
    config = TINY.replace(model=ContrastiveAttentionConfig(query_in_context=True))
    sweep = made_up(tmp_path / "a", {"regularization": [0.0, 0.5]}, config)
    text = str(variants(sweep))
    saved = json.loads((sweep.path / "variants.json").read_text())
    assert saved["variants"]["regularised, alpha 0.5"]["error"] == [0.4]
    np.testing.assert_allclose(saved["variants"]["plain"]["loss"][0][0], 0.1 / 1.0)
    assert "+0.100" in text
    assert (sweep.path / "variants.png").stat().st_size > 5_000
    assert variants(made_up(tmp_path / "b", {"learning_rate": [0.1, 0.2]}, config)) is None
    assert variants(made_up(tmp_path / "c", {"learning_rate": [0.1, 0.2]}, TINY)) is None
