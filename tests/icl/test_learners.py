"""Fast weights, MAML and bidirectional attention do what they document; sizes of states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl.analysis.catalogue import applicable
from icl.models import (
    FastWeightLSTMConfig,
    GradientDescentConfig,
    LoopedTransformerConfig,
    LSTMConfig,
    MAMLConfig,
    MLPConfig,
    RNNConfig,
    TransformerConfig,
)
from icl.tasks import Curriculum, LinearRegression, ManyOutlierRegression, ProjectedImages
from icl.training import Config, Learner

from .helpers import episodes_of, tiny

TWO_WAY = TransformerConfig(
    layers=2, heads=2, width=16, bidirectional=True, position_encoding="none"
)


def built(config, in_width=5, tokens=6, outputs=None):
    return config.build(in_width, tokens, outputs=outputs, rngs=nnx.Rngs(params=jax.random.key(0)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_an_outer_product_lstm_keeps_a_matrix():
    config = FastWeightLSTMConfig(layers=1, heads=2, width=6)
    model = built(config)
    tokens = np.asarray(jax.random.normal(jax.random.key(1), (2, 6, 5)))
    [layer] = model.layers
    linear = lambda part, x: (
        x @ np.asarray(part.kernel) + (0 if part.bias is None else np.asarray(part.bias))
    )
    scale = np.log(2)  # softplus of 0
    for prompt, found in zip(tokens, model(tokens)):
        hidden, cell = np.zeros(6), np.zeros((2, 3, 3))
        for token, prediction in zip(prompt, np.asarray(found)):
            x = linear(model.read_in, token)
            gates = linear(layer.from_input, x) + linear(layer.from_hidden, hidden)
            for head, own in enumerate(gates.reshape(2, 24)):
                left, right = np.tanh(own[:9]).reshape(3, 3) * scale, np.tanh(own[9:18])
                add, value, keep = (np.outer(a, b) for a, b in zip(left, right.reshape(3, 3)))
                cell[head] = sigmoid(keep + 1) * cell[head] + sigmoid(add) * value
                read = np.tanh(cell[head].T @ own[18:21])
                hidden[3 * head : 3 * head + 3] = sigmoid(own[21:]) * read
            expected = linear(model.read_out, x + hidden)[0]
            np.testing.assert_allclose(prediction, expected, rtol=1e-4, atol=1e-5)


def test_a_vanilla_rnn_is_elmans():
    model = built(RNNConfig(layers=2, width=6), outputs=2)
    tokens = np.asarray(jax.random.normal(jax.random.key(1), (2, 6, 5)))
    weights = lambda part: np.asarray(part.kernel)
    x = tokens @ weights(model.read_in) + np.asarray(model.read_in.bias)
    for layer in model.layers:
        hidden, outputs = np.zeros((2, 6)), []
        for token in x.swapaxes(0, 1):
            own = token @ weights(layer.cell.dense_i) + np.asarray(layer.cell.dense_i.bias)
            hidden = np.tanh(own + hidden @ weights(layer.cell.dense_h))
            outputs.append(hidden)
        x = np.stack(outputs, axis=1)
    expected = x @ weights(model.read_out) + np.asarray(model.read_out.bias)
    np.testing.assert_allclose(model(tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_maml_takes_a_step_of_sgd_on_each_example(loss):
    model = built(MAMLConfig(width=8, loss=loss, learning_rate=0.2), in_width=7, outputs=3)
    model.log_rates[...] = model.log_rates[...] + jnp.arange(4.0).reshape(2, 2) / 10
    rates = np.exp(np.asarray(model.log_rates))
    x = np.asarray(jax.random.normal(jax.random.key(1), (5, 4)))
    labels = np.eye(3)[[0, 2, 1, 1, 0]]
    shown = np.concatenate([np.zeros((1, 3)), labels[:-1]])
    found = np.asarray(model(jnp.concatenate([x, shown], axis=1)[None]))[0]
    w1, b1, w2, b2 = (
        np.asarray(part, np.float64)
        for layer in model.layers
        for part in (layer.kernel, layer.bias)
    )
    for point, label, prediction in zip(x, labels, found):
        hidden = point @ w1 + b1
        out = np.maximum(hidden, 0) @ w2 + b2
        np.testing.assert_allclose(prediction, out, rtol=1e-4, atol=1e-5)
        share = np.exp(out) / np.exp(out).sum() if loss == "cross-entropy" else out
        slope = share - label
        back = (w2 @ slope) * (hidden > 0)
        w2 = w2 - rates[1, 0] * np.outer(np.maximum(hidden, 0), slope)
        b2 = b2 - rates[1, 1] * slope
        w1 = w1 - rates[0, 0] * np.outer(point, back)
        b1 = b1 - rates[0, 1] * back


def test_maml_needs_tokens_with_labels():
    with pytest.raises(ValueError, match="needs tokens .*set layout to shifted"):
        built(MAMLConfig(), in_width=3, outputs=3)
    with pytest.raises(ValueError, match="MAML takes tokens .*set layout to shifted, not tagged"):
        tiny(model=MAMLConfig(loss="squared"), layout="tagged")
    with pytest.raises(ValueError, match="no classes: set model.loss to squared"):
        built(MAMLConfig())
    for wrong in (dict(loss="hinge"), dict(dtype="bfloat16"), dict(learning_rate=0.0)):
        with pytest.raises(ValueError, match="loss must be|float32|learning_rate"):
            MAMLConfig(**wrong)


def test_sizes_of_states():
    attention = TransformerConfig(layers=3, heads=2, width=8)
    for config, size in (
        (attention, 3 * 2 * 8 * 20),
        (dataclasses.replace(attention, mixer="delta_rule"), 3 * 2 * 4**2),
        (dataclasses.replace(attention, mixer="linear_attention"), 3 * 2 * 4**2),
        (dataclasses.replace(attention, mixer="mesa"), 3 * 2 * 2 * 4**2),
        (LoopedTransformerConfig(layers=1, heads=2, width=8, loops=4, window=2), 4 * 2 * 8 * 20),
        (LSTMConfig(layers=2, width=8), 2 * 2 * 8),
        (RNNConfig(layers=2, width=8), 2 * 8),
        (FastWeightLSTMConfig(layers=2, heads=2, width=8), 2 * (2 * 4**2 + 8)),
        (MAMLConfig(width=8), (13 - 3) * 8 + 8 + 8 * 3 + 3),
        (MLPConfig(width=8), 0),
        (GradientDescentConfig(), None),
    ):
        assert config.state_size(13, 20, 3) == size, config


def test_a_bidirectional_transformer_sees_all_points_in_any_order():
    config = tiny(task_queries=2, task_points=7, layout="masked", model=TWO_WAY)
    learner = Learner(config)
    variables, episodes = learner.init(jax.random.key(0)), episodes_of(learner)
    predict = jax.jit(learner.predict)
    whole = predict(variables, episodes)
    # Every example counts for both queries, and the label of neither does.
    for point in range(5):
        changed = predict(variables, episodes._replace(y=episodes.y.at[:, point].add(1.0)))
        assert (np.abs(changed - whole)[:, 5:] > 0).all()
    changed = predict(variables, episodes._replace(y=episodes.y.at[:, 5:].add(9.0)))
    np.testing.assert_array_equal(changed, whole)
    order = np.array([6, 2, 0, 5, 4, 1, 3])
    other = predict(variables, jax.tree.map(lambda a: a[:, order], episodes))
    np.testing.assert_allclose(other, whole[:, order], rtol=1e-4, atol=1e-5)


def test_a_bidirectional_transformer_is_refused_where_it_would_see_labels():
    for changes, words in (
        (dict(layout="tagged"), "hides the labels of queries: concatenated, separate or masked"),
        (dict(layout="masked"), "set task.queries to their number"),
        (
            dict(layout="concatenated", curriculum=Curriculum(points_start=3)),
            "no point may be padding",
        ),
        (
            dict(layout="concatenated", task=ManyOutlierRegression(dim=3, points=5)),
            "no point may be padding",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(model=TWO_WAY, **changes)
    for layout in ("tagged", "concatenated"):
        with pytest.raises(ValueError, match="leave task.queries None, or set layout to masked"):
            tiny(task_queries=2, layout=layout)
    config = tiny(task_queries=2, layout="masked", task_noise=0.5, training_pool_size=4)
    assert applicable(config) == ["heads"]
    with pytest.raises(ValueError, match="no option bidirectional: set model.bidirectional to"):
        dataclasses.replace(TWO_WAY, mixer="mesa")
    assert not TWO_WAY.causal and TransformerConfig().causal
    assert Config(task=LinearRegression(), layout="concatenated", model=TWO_WAY)


def test_every_learner_takes_images():
    for model, layout in (
        (FastWeightLSTMConfig(width=8), "paired"),
        (MAMLConfig(width=8), "shifted"),
        (MLPConfig(width=8), "paired"),
    ):
        learner = Learner(
            Config(task=ProjectedImages(points=4, size=4), layout=layout, model=model)
        )
        variables = learner.init(jax.random.key(0))
        predicted = learner.predict(variables, episodes_of(learner))
        assert predicted.shape == (6, 4, 10)
        np.testing.assert_allclose(predicted.sum(axis=-1), 1, rtol=1e-5)
