"""Views of attention heads: scores, weight products, eigenvalues; what of them is saved."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl.analysis.heads import Heads, has_heads, heads, scores, symmetric_share
from icl.layers import MIXERS
from icl.models import LoopedTransformerConfig, LSTMConfig, SelfAttentionConfig, TransformerConfig
from icl.training import Learner
from icl.training.run import Run, RunError

from .helpers import tiny

TINY = TransformerConfig(layers=2, heads=2, width=16)


def build(config, in_width=5, tokens=12):
    """Graph and state of a model whose parameters are all drawn, biases too."""
    rngs = lambda: nnx.Rngs(params=jax.random.key(0))
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(in_width, tokens, rngs=rngs())))
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype)
    return graph, jax.tree.map(draw, state)


def prompt(batch=3, length=12, in_width=5):
    return np.random.default_rng(1).normal(size=(batch, length, in_width)).astype(np.float32)


def seen(split, look):
    """What a function of the model and a prompt finds."""
    graph, state = split
    return jax.jit(lambda state, tokens: look(nnx.merge(graph, state), tokens))(state, prompt())


@pytest.mark.parametrize("mixer", MIXERS)
def test_scores_are_of_the_queries_and_keys_that_the_mixer_computes(mixer, monkeypatch):
    calls = []
    mix = MIXERS[mixer].mix
    monkeypatch.setattr(
        MIXERS[mixer], "mix", lambda *given: (calls.append(given[1:]), mix(*given))[1]
    )

    def look(model, tokens):
        model(tokens)
        used = calls[:]
        inputs = model.head_inputs(tokens)
        return used, inputs, [scores(w, x) for w, x in zip(model.heads(), inputs, strict=True)]

    config = TransformerConfig(layers=2, heads=2, width=16, mixer=mixer)
    used, inputs, found = seen(build(config), look)
    assert len(used) == len(inputs) == 2
    for (x, qkv), entering, ours in zip(used, inputs, found):
        np.testing.assert_allclose(entering, x, rtol=1e-5, atol=1e-5)
        expected = np.einsum("bqnh,bknh->bnqk", np.asarray(qkv[:, :, 0]), np.asarray(qkv[:, :, 1]))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_what_a_head_writes_is_its_weights_product():
    x = np.random.default_rng(2).normal(size=(4, 1, 16)).astype(np.float32)

    def look(model, _):
        mixer = model.blocks[0].mixer
        # A lone token attends to itself alone; without a token biases are left.
        return model.heads()[0], mixer(x) - mixer(jnp.zeros_like(x))

    weights, change = seen(build(TINY), look)
    assert [a.shape for a in weights] == [(2, 16, 8)] * 3 + [(2, 8, 16)] + [(2, 8)] * 2
    written = np.einsum("btw,nwv,nvu->btu", x, weights.value, weights.output)
    np.testing.assert_allclose(change, written, rtol=1e-4, atol=1e-4)


def test_of_loops_it_is_the_last():
    def look(model, tokens):
        x = model.embed(tokens)
        z = model.transform(model.transform(x) + x) + x
        first, second = model.blocks
        return model.head_inputs(tokens), [first.mixer_norm(z), second.mixer_norm(first(z))]

    config = LoopedTransformerConfig(layers=2, heads=2, width=16, loops=3, window=3)
    for ours, expected in zip(*seen(build(config), look), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_of_self_attention_layers_alone():
    def last(model, tokens):
        assert len(model.heads()) == 1
        return model.head_inputs(tokens), [model.hidden(tokens, 2)]

    for ours, expected in zip(*seen(build(SelfAttentionConfig(layers=3)), last), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def first(model, tokens):
        inputs, (layer, _) = model.head_inputs(tokens), model.heads()
        return inputs, layer, scores(layer, inputs[0])

    config = SelfAttentionConfig(layers=2, heads=2, key_size=4, shared=False)
    (entering, after), layer, scored = seen(build(config), first)
    np.testing.assert_array_equal(entering, prompt())
    moved = np.einsum(
        "bnqk,bkw,nwv,nvu->bqu", scored[..., :-1], prompt()[:, :-1], layer.value, layer.output,
        optimize=True,
    )  # fmt: skip
    np.testing.assert_allclose(after, prompt() + moved, rtol=1e-4, atol=1e-4)


def built_by_hand(value, output):
    """The analysis of one layer whose heads have these weights."""
    value, output = np.asarray(value, np.float32)[None], np.asarray(output, np.float32)[None]
    zeros = np.zeros((1, len(value[0]), 3, 3), np.float32)
    return Heads(value, value, value, output, zeros, zeros, zeros[..., 0, 0], 0, 1, True, None)


def test_a_head_that_copies_scores_1():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0]
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    value = np.stack([basis] * 4)
    output = np.stack([2 * basis.T, -basis.T, turn @ basis.T, 0 * basis.T])
    result = built_by_hand(value, output)
    np.testing.assert_allclose(result.copying[0, :3], [1, -1, 1 / 3], atol=1e-6)
    assert np.isnan(result.copying[0, 3])
    np.testing.assert_allclose(np.sort(result.eigenvalues[0, 2].imag), [-1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(result.output_value[0, 0], 2 * basis @ basis.T, atol=1e-6)


def test_eigenvalues_are_those_of_the_wide_product():
    rng = np.random.default_rng(0)
    result = built_by_hand(rng.normal(size=(2, 16, 4)), rng.normal(size=(2, 4, 16)))
    for small, wide in zip(result.eigenvalues[0], result.output_value[0].astype(np.float64)):
        large = np.linalg.eigvals(wide)
        large = large[np.argsort(-np.abs(large))]
        # float32 products leave some rounding where the others are 0.
        assert np.abs(large[4:]).max() < 1e-4
        np.testing.assert_allclose(
            np.sort_complex(small), np.sort_complex(large[:4]), rtol=1e-4, atol=1e-4
        )


def test_symmetric_share():
    a = np.random.default_rng(0).normal(size=(400, 400))
    shares = symmetric_share(np.stack([a + a.T, a - a.T, a, 0 * a]))
    np.testing.assert_allclose(shares, [1, 0, 0.5, np.nan], atol=0.02)


def untrained(path, **settings):
    """A run whose newest checkpoint has the initial parameters, as if it had one."""
    run = Run.create(path, tiny(**settings))
    initial = functools.cache(lambda: jax.jit(Learner(run.config).init)(jax.random.key(0)))
    run.variables = lambda: (0, initial())
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = TransformerConfig(layers=2, heads=1, width=8)
    return untrained(tmp_path_factory.mktemp("heads") / "run", model=model)


def test_heads_of_a_run_are_saved_shown_and_drawn(run, monkeypatch):
    result = heads(run, prompts=5)
    assert result.scores.shape == (2, 1, 10, 10) and result.key_query.shape == (2, 1, 8, 8)
    assert result.step == 0 and result.causal and not (run.path / "heads.npz.tmp").exists()
    assert ((result.positional > 0) & (result.positional < 1)).all()
    table = str(result)
    assert "copying" in table and str(Heads.load(run)) == table
    assert table.count("\n") > 6
    assert (run.path / "heads.png").stat().st_size > 10_000
    with np.load(run.path / "heads.npz") as saved:
        np.testing.assert_array_equal(saved["eigenvalues"], result.eigenvalues)
    large = (run.path / "heads.png").stat().st_size
    monkeypatch.setattr(sys.modules["icl.analysis.heads"], "MAX_ROWS", 1)
    one = heads(run, prompts=1)
    assert 10_000 < (run.path / "heads.png").stat().st_size < large
    np.testing.assert_array_equal(one.scores, one.mean_scores)
    np.testing.assert_array_equal(one.scores, result.scores)
    assert (result.mean_scores != result.scores).any()
    np.testing.assert_allclose(one.positional, 1, rtol=1e-5)


def test_models_without_heads_are_told_apart(run, tmp_path):
    recurrent = tiny(model=LSTMConfig(layers=1, width=8))
    assert has_heads(run.config) and not has_heads(recurrent)
    assert has_heads(tiny(model=SelfAttentionConfig(), layout="concatenated"))
    other = untrained(tmp_path / "run", model=recurrent.model)
    abstract = jax.eval_shape(Learner(other.config).init, jax.random.key(0))
    other.variables = lambda: (0, abstract)
    with pytest.raises(NotImplementedError, match="a LSTM has no attention heads; transformers"):
        heads(other)
    with pytest.raises(RunError, match="no heads.npz.*icl eval"):
        Heads.load(other)
    with pytest.raises(ValueError, match="at least 1"):
        heads(run, prompts=0)
    with pytest.raises(RunError, match="no checkpoint"):
        heads(other.path)
