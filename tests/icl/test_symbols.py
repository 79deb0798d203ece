"""Sequences of symbols: samplers, predictors of the next symbol, the layout, induction heads."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.analysis.head_scores import (
    copying,
    in_context_score,
    prefix_matching,
    previous_token,
    repeated_block,
)
from icl.analysis.induction import has_symbols, induction
from icl.analysis.instrument import Instrument
from icl.analysis.ngrams import ngrams
from icl.evaluation import draw_prompts
from icl.evaluation.baselines import symbols
from icl.layers.mixers import MIXERS
from icl.models import TransformerConfig
from icl.tasks import (
    AssociativeRecall,
    Curriculum,
    LinearRegression,
    MarkovChains,
    RepeatedSequences,
)
from icl.tasks.labels import NextSymbol
from icl.training import Config, Learner
from icl.training.step import initial_variables

from .helpers import untrained

MODEL = TransformerConfig(
    layers=2, heads=2, width=16, embedder="table", embedding_width=16, mlp=False
)
REPEATED = RepeatedSequences(points=12, vocabulary=8, shortest=3, longest=5)


def drawn(family, count, seed=0):
    return jax.tree.map(np.asarray, draw_prompts(family, jax.random.key(seed), count))


def test_repeated_sequences():
    found = drawn(REPEATED, 2000)
    np.testing.assert_array_equal(found.x[:, 1:], found.y[:, :-1])
    whole = np.concatenate([found.x, found.y[:, -1:]], axis=1)
    fits = np.array([(whole[:, p:] == whole[:, :-p]).all(axis=1) for p in (3, 4, 5)])
    assert fits.any(axis=0).all()
    # Short sequences may fit two periods; each is drawn a third of the time, and hardly more often.
    assert (np.abs(fits.mean(axis=1) - 1 / 3) < 0.05).all()
    assert np.abs(np.bincount(found.x[:, 0]) / 2000 - 1 / 8).max() < 0.03


def test_markov_chains():
    family = MarkovChains(points=20, vocabulary=3, concentration=0.5)
    of_keys = lambda sample, seed: np.asarray(
        jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(seed), 4000))
    )
    tasks = of_keys(lambda key: family.sample_task(key, family.full), 0)
    np.testing.assert_allclose(tasks.sum(axis=-1), 1, rtol=1e-5)
    # Beta(1/2, 1) has the variance 4/45 and the mean 1/3.
    np.testing.assert_allclose(tasks[:, 0, 0].mean(), 1 / 3, atol=0.02)
    np.testing.assert_allclose(tasks[:, 0, 0].var(), 4 / 45, atol=0.01)
    task = jnp.asarray(tasks[0])
    stationary = np.asarray(jax.jit(family.stationary)(task), np.float64)
    np.testing.assert_allclose(stationary @ tasks[0], stationary, atol=1e-5)
    rows = of_keys(lambda key: family.sample_sequence(key, task), 1)
    np.testing.assert_allclose(np.bincount(rows[:, 0], minlength=3) / 4000, stationary, atol=0.03)
    for state in range(3):
        after = rows[:, 1:][rows[:, :-1] == state]
        counts = np.bincount(after, minlength=3) / max(len(after), 1)
        if len(after) > 500:
            np.testing.assert_allclose(counts, tasks[0, state], atol=0.05)


def test_associative_recall():
    family = AssociativeRecall(points=24, vocabulary=20, pairs=3, gap_exponent=0.5)
    found = drawn(family, 3000)
    keys, values = found.x[:, 0:6:2], found.x[:, 1:6:2]
    assert (keys < 10).all() and (values >= 10).all()
    assert all(len(set(row)) == 3 for row in (*keys, *values))
    assert (found.queries.sum(axis=1) == 3).all() and not found.queries[:, :6].any()
    assert not found.queries[:, 1::2].any()
    for row in range(50):
        known = dict(zip(keys[row], values[row]))
        asked = np.flatnonzero(found.queries[row])
        assert sorted(found.x[row, asked]) == sorted(keys[row])
        assert [known[key] for key in found.x[row, asked]] == list(found.y[row, asked])
    # The first of draws without replacement has the weights; here all three are counted.
    weights = np.arange(1, 10) ** -0.5
    expected = np.zeros(9)
    for order in itertools.permutations(range(9), 3):
        left, probability = weights.sum(), 1.0
        for place in order:
            probability *= weights[place] / left
            left -= weights[place]
        expected[list(order)] += probability
    np.testing.assert_allclose(found.queries[:, 6::2].mean(axis=0), expected, atol=0.03)
    plain = drawn(AssociativeRecall(points=24, vocabulary=20, pairs=3, random_rest=False), 5)
    assert (plain.x[:, 6:][~plain.queries[:, 6:]] == 0).all()


def counted(x, number, concentration, order):
    """Probabilities of the next symbol by counting, position by position."""
    found = np.zeros((*x.shape, number))
    for row, position in np.ndindex(x.shape):
        past = x[row, : position + 1].tolist()
        pairs = Counter(zip(past, past[1:]))
        single = Counter(past)
        counts = [pairs[past[-1], s] if order == 2 else single[s] for s in range(number)]
        found[row, position] = np.array(counts) + concentration
    return found / found.sum(axis=-1, keepdims=True)


def test_counts_of_unigrams_and_bigrams():
    x = np.random.default_rng(0).integers(0, 3, (4, 15))
    for order, predict in ((1, symbols.unigrams), (2, symbols.bigrams)):
        found = jax.jit(lambda x, predict=predict: predict(x, 3, concentration=0.5))(x)
        np.testing.assert_allclose(found, counted(x, 3, 0.5, order), rtol=1e-5)


def test_mixture_over_periods_is_bayes():
    """All sequences of each period are listed, and those that begin as seen are counted."""
    number, points, periods = 2, 5, (2, 3)
    family = RepeatedSequences(points=points, vocabulary=2, shortest=2, longest=3)
    listed = [
        (number**-period, [block[t % period] for t in range(points + 1)])
        for period in periods
        for block in itertools.product(range(number), repeat=period)
    ]
    x = drawn(family, 8).x
    found = np.asarray(jax.jit(lambda x: symbols.periods(*periods, x, number))(x))
    for row, position in np.ndindex(x.shape):
        seen = x[row, : position + 1].tolist()
        weights = np.zeros(number)
        for weight, sequence in listed:
            if sequence[: position + 1] == seen:
                weights[sequence[position + 1]] += weight
        np.testing.assert_allclose(found[row, position], weights / weights.sum(), rtol=1e-5)


def test_recall_finds_the_value():
    family = AssociativeRecall(points=16, vocabulary=12, pairs=3)
    found = drawn(family, 20)
    recall = jax.jit(lambda x: symbols.recall(3, x, 12).argmax(axis=-1))
    predicted = np.asarray(recall(found.x))
    np.testing.assert_array_equal(predicted[found.queries], found.y[found.queries])


def test_cross_entropy_is_the_error():
    kind, rng = NextSymbol(4), np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.integers(0, 4, (3, 5))
    loss = kind.loss(jnp.asarray(logits), jnp.asarray(y))
    error = kind.error(np.asarray(kind.prediction(jnp.asarray(logits)), np.float64), y)
    np.testing.assert_allclose(error, loss, rtol=1e-5)
    for prediction in (np.eye(4)[[0]], jnp.eye(4)[:1]):
        assert np.isfinite(kind.error(prediction, np.array([1]))).all()


def test_prompts_of_inputs_alone_need_their_layout():
    with pytest.raises(ValueError, match="made of inputs alone: set layout to inputs, not inter"):
        Config(task=REPEATED, model=MODEL)
    with pytest.raises(ValueError, match="shows no labels, which LinearRegression needs"):
        Config(task=LinearRegression(), layout="inputs")
    with pytest.raises(ValueError, match="task.longest must be a whole number from 1 to 12"):
        RepeatedSequences(points=12, longest=13)
    with pytest.raises(ValueError, match="mixer linear_attention has no option smeared_keys"):
        TransformerConfig(mixer="linear_attention", smeared_keys=True)
    config = Config(task=REPEATED, layout="inputs", model=MODEL)
    assert has_symbols(config) and not has_symbols(config.replace(model_readout_layers=1))
    assert not has_symbols(config.replace(task=MarkovChains()))
    with pytest.raises(ValueError, match="show no labels: set model.embed_labels to False"):
        config.replace(model_embed_labels=True)
    with pytest.raises(ValueError, match="AssociativeRecall have no query: set curriculum.points"):
        config.replace(task=AssociativeRecall(vocabulary=8), curriculum=Curriculum(points_start=8))


def test_smeared_keys_mix_neighbours():
    from flax import nnx

    init = nnx.initializers.normal(0.5)
    make = lambda **more: MIXERS["attention"](
        16, 2, kernel_init=init, out_init=init, rngs=nnx.Rngs(params=jax.random.key(0)), **more
    )
    smeared, plain = make(smeared_keys=True), make()
    smeared.smear[...] = jnp.array([1.0, -30.0])
    x = jax.random.normal(jax.random.key(1), (2, 6, 16))
    qkv = plain.qkv(x).reshape(2, 6, 3, 2, 8)
    own = np.array([1 / (1 + np.exp(-1)), 0.0])[:, None]
    key = np.asarray(qkv[:, :, 1])
    before = np.concatenate([key[:, :1], key[:, :-1]], axis=1)
    mixed = qkv.at[:, :, 1].set(own * key + (1 - own) * before)
    expected = plain.mix(x, mixed)
    np.testing.assert_allclose(smeared.mix(x, qkv), expected, rtol=1e-4, atol=1e-5)
    assert plain.takes_mask and not smeared.takes_mask


def hand_built():
    """Two layers: the first brings each symbol to the token after it; the second looks it up.

    Features of a token: its position, its symbol, the symbol before, the symbol to predict.
    """
    family = RepeatedSequences(points=16, vocabulary=8, shortest=4, longest=4)
    place, number = 16, 8
    width = place + 3 * number
    model = TransformerConfig(
        layers=2, heads=1, width=width, embedder="table", embedding_width=number, mlp=False,
        norm="rms",
    )  # fmt: skip
    learner = Learner(Config(task=family, layout="inputs", model=model))
    params = jax.tree.map(jnp.zeros_like, initial_variables(learner).params)
    symbol, before, after = (place + i * number + np.arange(number) for i in range(3))
    model_params, big = params["model"], 100.0
    params["embedder"]["table"]["embedding"] = jnp.eye(number)
    model_params["read_in"]["kernel"] = (
        jnp.zeros((number, width)).at[np.arange(number), symbol].set(1)
    )
    model_params["positions"] = jnp.eye(place, width)
    for norm in (model_params["norm"], *(b["mixer_norm"] for b in model_params["blocks"].values())):
        norm["scale"] = jnp.ones(width)
    kernel = np.zeros((2, width, 3 * width), np.float32)
    out = np.zeros((2, width, width), np.float32)
    at = np.arange(place)
    kernel[0, at, at] = big  # query: the position
    kernel[0, at[:-1], width + at[1:]] = 1  # key: the position after
    kernel[0, symbol, 2 * width + symbol] = 1
    out[0, symbol, before] = 1
    kernel[1, symbol, symbol] = big
    kernel[1, before, width + symbol] = 1
    # The first token has no symbol before it, and shows its own.
    bias = np.zeros((2, 3 * width), np.float32)
    bias[1, 0], kernel[1, 0, width] = big, -1
    kernel[1, symbol, 2 * width + symbol] = 1
    out[1, symbol, after] = 1
    for layer in range(2):
        mixer = model_params["blocks"][layer]["mixer"]
        mixer["qkv"] |= {"kernel": jnp.asarray(kernel[layer]), "bias": jnp.asarray(bias[layer])}
        mixer["out"]["kernel"] = jnp.asarray(out[layer])
    model_params["read_out"]["kernel"] = (
        jnp.zeros((width, number)).at[after, np.arange(number)].set(20)
    )
    return Instrument.of(learner, params)


def test_a_hand_built_induction_head_scores_1():
    inside = hand_built()
    probe, period = repeated_block(inside.learner.family, 6, jax.random.key(0))
    assert period == 4 and all(len(set(row[:4].tolist())) == 4 for row in np.asarray(probe.x))
    first, second = inside.capture(probe, ["pattern"])["pattern"]
    np.testing.assert_allclose(previous_token(first), 1, atol=1e-3)
    np.testing.assert_allclose(prefix_matching(second, period), 1, atol=1e-3)
    assert prefix_matching(first, period)[0] < 0.05 and previous_token(second)[0] < 0.5
    np.testing.assert_allclose(copying(inside)[1], 1, atol=1e-3)
    errors = inside.errors(probe)
    assert errors[:, period:].max() < 0.01 and in_context_score(errors).mean() < -1


def test_scores_of_simple_patterns():
    uniform = np.tri(12)[None, None] / np.arange(1, 13)[:, None]
    # Of tokens 4 to 11, token t sees t + 1 tokens, among them one or two after its symbol.
    expected = np.mean([t // 4 / (t + 1) for t in range(4, 12)])
    np.testing.assert_allclose(prefix_matching(uniform, 4), expected)
    np.testing.assert_allclose(previous_token(np.eye(5, k=-1)[None, None]), 1)
    losses = np.array([9.0, 9.0, 3.0, 3.0, *[1.0] * 14, 0.5, 0.5])
    assert in_context_score(losses) == 0.5 - 3.0


def test_reports_of_runs(tmp_path):
    config = Config(task=REPEATED, layout="inputs", model=MODEL)
    run = untrained(tmp_path / "run", config.replace(model_norm="none"))
    found = induction(run, prompts=8)
    assert found.prefix_matching.shape == (1, 2, 2) and found.ablated.shape == (2, 2)
    assert type(found).load(run).loss.shape == (1, 12) and found.figure_path.exists()
    chains = MarkovChains(points=30)
    run = untrained(tmp_path / "chain", Config(task=chains, layout="inputs", model=MODEL))
    near = ngrams(run, prompts=100)
    assert set(near.divergence) == {"uniform", "unigrams", "bigrams"}
    assert all((values >= 0).all() for values in near.divergence.values())
    # Cross-entropy under the best statistics is the least.
    assert near.losses["bigrams"] < near.losses["unigrams"] < near.losses["uniform"]
    np.testing.assert_allclose(near.losses["uniform"], np.log(3))
