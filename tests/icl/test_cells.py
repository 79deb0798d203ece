"""Attention over the columns and rows of tables: its definition, laws, gradients and kernels."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl.kernels import dispatch, targeting
from icl.models import AdaptedTransformerConfig, CellsConfig
from icl.tasks import Episode, Tables
from icl.training import Config, Learner

from .helpers import tiny

CONFIG = CellsConfig(layers=2, heads=2, width=8, columns=4)
ROWS, QUERIES, CLASSES = 9, 2, 3
EXAMPLES = np.array([6, 4, 7, 2])  # of four tables; rows up to the queries are padding


def tables(seed=0):
    """Tokens `[4, 9, 4 + 3 + 1]` of tables with missing values and columns that are not in use."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(EXAMPLES), ROWS, 4))
    x[rng.random(x.shape) < 0.15] = np.nan
    x[0, :6, 1] = np.nan  # its queries have numbers
    x[1, :, 2:] = np.nan
    y = np.eye(CLASSES)[rng.integers(0, CLASSES, x.shape[:2])]
    asked = np.zeros((*x.shape[:2], 1))
    y[:, -QUERIES:], asked[:, -QUERIES:] = 0, 1
    return np.concatenate([x, y, asked], axis=-1).astype(np.float32)


def build(config=CONFIG, outputs=CLASSES):
    width = config.columns + (outputs or 1) + 1
    model = config.build(width, ROWS, outputs=outputs, rngs=nnx.Rngs(params=jax.random.key(0)))
    graph, state = nnx.split(model)
    # Initial biases of 0 and scales of 1 would hide a wrong use.
    rng = np.random.default_rng(1)
    drawn = lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
    return graph, jax.tree.map(drawn, state)


@pytest.fixture(scope="module")
def built():
    """The state of a model and its compiled predictions at the queries."""
    graph, state = build()
    call = lambda state, tokens, examples: nnx.merge(graph, state)(
        tokens, slice(-QUERIES, None), examples=examples
    )
    compiled = jax.jit(call)
    predict = lambda tokens, examples=EXAMPLES: np.asarray(compiled(state, tokens, examples))
    return graph, state, predict


def expected(p, tokens, examples, config=CONFIG):
    """The definition for one table in float64: unused columns and hidden rows are cut out."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(p))
    linear = lambda p, x: x @ p["kernel"] + p["bias"]

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def attend(p, x, seen):
        heads = lambda x: x.reshape(*x.shape[:-1], config.heads, -1)
        q = heads(linear(p["qkv"], x)[..., : config.width])
        k, v = (heads(a) for a in np.split(linear(p["qkv"], seen), 3, axis=-1)[1:])
        scores = np.einsum("...tnh,...snh->...nts", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("...nts,...snh->...tnh", weights, v)
        return linear(p["out"], mixed.reshape(x.shape))

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x, y = tokens[:, :4].astype(np.float64), tokens[:, 4:-1].astype(np.float64)
    x = x[:, ~np.isnan(x[:examples]).all(axis=0)]
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % config.group)), constant_values=np.nan)
    numbers = np.stack([np.nan_to_num(x), np.isnan(x)], axis=-1)
    cells = linear(p["cell"], numbers.reshape(len(x), -1, 2 * config.group))
    label = np.where(np.arange(len(x))[:, None] < examples, linear(p["label"], y), p["query"])
    h = np.concatenate([cells, label[:, None]], axis=1)
    for layer in p["layers"].values() if isinstance(p["layers"], dict) else p["layers"]:
        z = norm(layer["column_norm"], h)
        h = h + attend(layer["columns"], z, z)
        z = norm(layer["row_norm"], h).swapaxes(0, 1)
        h = h + attend(layer["rows"], z, z[:, :examples]).swapaxes(0, 1)
        h = h + linear(layer["down"], gelu(linear(layer["up"], norm(layer["mlp_norm"], h))))
    return linear(p["read_out"], norm(p["norm"], h[:, -1]))


def test_predictions_are_those_of_the_definition(built):
    _, state, predict = built
    tokens = tables()
    found = predict(tokens)
    assert found.shape == (4, QUERIES, CLASSES) and found.dtype == np.float32
    for table, examples, prediction in zip(tokens, EXAMPLES, found):
        exact = expected(state, table, examples)[-QUERIES:]
        np.testing.assert_allclose(prediction, exact, rtol=2e-4, atol=2e-5)


def test_groups_of_columns_and_every_row_are_as_defined():
    config = dataclasses.replace(CONFIG, group=2)
    graph, state = build(config)
    tokens = tables()
    call = lambda state: nnx.merge(graph, state)(tokens, examples=jnp.asarray(EXAMPLES))
    found = jax.jit(call)(state)
    assert found.shape == (4, ROWS, CLASSES)
    for table, examples, prediction in zip(tokens, EXAMPLES, found):
        # Padding has no meaning, but no error either.
        exact = expected(state, table, examples, config)
        np.testing.assert_allclose(prediction, exact, rtol=2e-4, atol=2e-5)


def test_a_prediction_depends_on_its_row_and_on_the_set_of_examples_alone(built):
    predict, tokens = built[2], tables()
    found, rng = predict(tokens), np.random.default_rng(2)
    near = dict(rtol=1e-4, atol=2e-6)
    shuffled = tokens.copy()
    for table, count in zip(shuffled, EXAMPLES):
        table[:count] = rng.permutation(table[:count])
    np.testing.assert_allclose(predict(shuffled), found, **near)
    for columns in ([2, 0, 3, 1], [3, 2, 1, 0]):
        moved = tokens[..., [*columns, 4, 5, 6, 7]]
        np.testing.assert_allclose(predict(moved), found, **near)
    unused = tokens.copy()
    unused[0, -QUERIES:, 1] = 100  # the column is NaN in all examples
    np.testing.assert_array_equal(predict(unused), found)
    for poison in (np.nan, np.inf, 1e30):
        padded = tokens.copy()
        for table, count in zip(padded, EXAMPLES):
            table[count:-QUERIES, :-1] = poison
        np.testing.assert_array_equal(predict(padded), found)
    others = tokens.copy()
    others[:, -1, :4] = rng.normal(size=(4, 4))
    changed = predict(others)
    np.testing.assert_array_equal(changed[:, 0], found[:, 0])
    assert np.abs(changed[:, 1] - found[:, 1]).max(axis=1).min() > 1e-3
    fewer = predict(tokens, EXAMPLES - 1)
    assert np.abs(fewer - found).max(axis=(1, 2)).min() > 1e-3


def test_without_a_number_of_examples_all_rows_before_the_queries_are_examples(built):
    graph, state, predict = built
    tokens = tables()
    found = jax.jit(lambda state: nnx.merge(graph, state)(tokens))(state)
    np.testing.assert_allclose(
        found[:, -QUERIES:], predict(tokens, np.full(4, ROWS - QUERIES)), rtol=1e-5, atol=1e-6
    )


def test_gradients_are_finite_and_padding_adds_nothing():
    graph, state = build(outputs=None)
    tokens = np.delete(tables(), (5, 6), axis=-1)  # a label is a number
    poisoned = tokens.copy()
    for table, count in zip(poisoned, EXAMPLES):
        table[count:-QUERIES, :-1] = np.nan

    @jax.jit
    @jax.grad
    def gradient(state, tokens):
        model = nnx.merge(graph, state)
        found = model.training_outputs(tokens, examples=jnp.asarray(EXAMPLES))
        assert found.shape == (1, 4, ROWS)
        return (found[:, :, -QUERIES:] ** 2).sum()

    clean, other = (jax.tree.leaves(gradient(state, a)) for a in (tokens, poisoned))
    for a, b in zip(clean, other, strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_array_equal(a, b)


def test_a_learner_of_tables_tells_the_model_the_number_of_examples():
    task = Tables(points=ROWS, queries=QUERIES, fewest_examples=2, columns=4, classes=CLASSES)
    model = dataclasses.replace(CONFIG, layers=1)
    learner = Learner(Config(task=task, layout="masked", model=model))
    x, y = tables()[..., :4], np.random.default_rng(3).integers(0, CLASSES, (4, ROWS))
    queries = np.broadcast_to(np.arange(ROWS) >= ROWS - QUERIES, y.shape)
    context = np.arange(ROWS) < EXAMPLES[:, None]
    y[:, :2] = [0, 1]  # so that each table has examples of two classes
    episodes = Episode(x, y.astype(np.int32), queries, context)

    @jax.jit
    def both(variables):
        tokens = learner.encode(variables, episodes)
        outputs = learner.model(variables)(tokens, examples=jnp.asarray(EXAMPLES))
        loss = lambda variables: learner.loss_sum(variables, episodes)[0]
        return learner.query_outputs(variables, episodes), outputs[:, -1], jax.grad(loss)(variables)

    found, own, gradient = both(jax.jit(learner.init)(jax.random.key(4)).params)
    shown = found > found.min()  # classes without an example are ruled out
    assert shown.any(axis=1).all()
    np.testing.assert_allclose(found[shown], own[shown], rtol=1e-5, atol=1e-6)
    for slope in jax.tree.leaves(gradient):
        assert jnp.isfinite(slope).all() and jnp.abs(slope).max() > 0
    with pytest.raises(ValueError, match="rows cannot be read without an embedder"):
        Config(task=task, layout="masked", model=AdaptedTransformerConfig())


def test_in_bfloat16_predictions_are_near(built):
    graph, state = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    call = lambda state, tokens: nnx.merge(graph, state)(
        tokens, slice(-QUERIES, None), examples=jnp.asarray(EXAMPLES)
    )
    found = jax.jit(call)(state, tables())
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - built[2](tables())).max() < 0.15


def test_every_attention_runs_in_the_fused_kernels_on_a_gpu():
    graph, state = build()
    chosen = []

    def choose(op, implementations, *more, original=dispatch.choose):
        run = original(op, implementations, *more)
        chosen.extend(n for n, c in implementations.items() if run in (c.run, c.run_anywhere))
        return run

    call = lambda state, tokens: nnx.merge(graph, state)(tokens, examples=jnp.asarray(EXAMPLES))
    with targeting("cuda", 90), mock.patch.object(dispatch, "choose", choose):
        jax.eval_shape(call, state, tables())
    assert chosen == 2 * CONFIG.layers * ["triton"]


def products(jaxpr):
    """Operations of all matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            inner = np.prod([shape[axis] for axis in contracted])
            total += 2 * inner * np.prod(equation.outvars[0].aval.shape)
        inside = [getattr(leaf, "jaxpr", leaf) for leaf in equation.params.values()]
        total += sum(products(part) for part in inside if hasattr(part, "eqns"))
    return total


@pytest.mark.parametrize(("layers", "group", "outputs"), [(3, 1, 3), (1, 2, None)])
def test_flops_are_those_of_the_products_of_a_program(layers, group, outputs):
    config = dataclasses.replace(CONFIG, layers=layers, group=group)
    graph, state = build(config, outputs)
    width = config.columns + (outputs or 1) + 1
    call = lambda state, tokens: nnx.merge(graph, state)(tokens)
    program = jax.make_jaxpr(call)(state, jnp.zeros((2, ROWS, width)))
    parts = config.flops_by_part(width, ROWS, 2)
    np.testing.assert_allclose(3 * products(program.jaxpr), sum(parts.values()))
    assert config.activations(width) == config.cells * 3 * config.width
    assert config.state_size(width, 10) == 2 * 8 * 10 * ((layers - 1) * config.cells + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(width=10, heads=4), "cannot be split into 4 heads"),
        (dict(columns=3, group=2), "model.group to a divisor of model.columns"),
        (dict(embed_labels=True), "embed_labels to False"),
        (dict(embedder="mlp"), "model.embedder to None"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **settings)


def test_tokens_that_are_no_tables_are_refused():
    with pytest.raises(ValueError, match="set layout to masked, not concatenated"):
        tiny(model=CONFIG, layout="concatenated")
    with pytest.raises(ValueError, match="has 4 columns, and a token of this task has 3 numbers"):
        Learner(tiny(model=CONFIG, layout="masked", task_queries=2))
