"""The toolbox: activations are captured, replaced and scored, and predictions do not change."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from icl.analysis.instrument import Instrument, add, mean, over_checkpoints, patch, zero
from icl.layers import mixers
from icl.models import (
    AdaptedTransformerConfig,
    LoopedTransformerConfig,
    LSTMConfig,
    MAMLConfig,
    PreconditionedConfig,
    SelfAttentionConfig,
    TransformerConfig,
)
from icl.models import transformer as transformer_module
from icl.tasks import LinearRegression, WhitenedRegression
from icl.training import Config, Learner, Run, RunError
from icl.training.learner import Params
from icl.training.step import initial_variables, variable_items

from .helpers import tiny, untrained

MIXERS = ("attention", "linear_attention", "delta_rule", "mesa")


LINEAR = LinearRegression(dim=3, points=5)


@functools.cache
def of_model(model, layout="interleaved", task=LINEAR):
    learner = Learner(Config(task=task, layout=layout, model=model))
    shapes = jax.eval_shape(lambda: initial_variables(learner))
    normal = np.random.default_rng(0).normal

    def drawn(leaf):
        """Larger than initial weights, so that each part of the model acts on the predictions."""
        if leaf.ndim < 2:
            return np.ones(leaf.shape, np.float32)
        return (2 * normal(size=leaf.shape) / leaf.shape[0] ** 0.5).astype(np.float32)

    return Instrument.of(learner, shapes._replace(params=jax.tree.map(drawn, shapes.params)))


@functools.cache
def prompts_of(inside, seed=0):
    return inside.prompts(4, seed=seed)


def transformer(**options):
    return of_model(TransformerConfig(layers=2, heads=2, width=16, **options))


@functools.cache
def program(inside):
    return jax.jit(inside.learner.predict)


def plain(inside, prompts):
    return np.asarray(program(inside)(inside.variables, prompts))


def test_predictions_are_those_of_the_fused_model():
    inside = transformer()
    prompts = prompts_of(inside)
    whole, seen = plain(inside, prompts), inside.capture(prompts)
    np.testing.assert_allclose(inside.predict(prompts), whole, rtol=1e-5, atol=1e-6)
    shapes = {site: (len(found), found[0].shape) for site, found in seen.items()}
    wide = (4, 10, 16)
    assert shapes == {
        "residual": (3, wide), "mixer": (2, wide), "mlp": (2, wide),
        "heads": (2, (4, 10, 2, 8)), "pattern": (2, (4, 2, 10, 10)),
    }  # fmt: skip
    for layer in range(2):
        parts = (seen["residual"][layer], seen["mixer"][layer], seen["mlp"][layer])
        np.testing.assert_allclose(sum(parts), seen["residual"][layer + 1], rtol=1e-5, atol=1e-5)
    pattern = seen["pattern"][1]
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-5)
    assert (pattern[..., ~np.tri(10, dtype=bool)] == 0).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_patterns_times_values_are_the_mixed_values(mixer):
    inside = transformer(mixer=mixer)
    prompts = prompts_of(inside)
    whole, patterns = plain(inside, prompts), inside.frozen_patterns(prompts)
    np.testing.assert_allclose(inside.predict(prompts, patterns), whole, rtol=1e-4, atol=1e-4)
    uniform = np.broadcast_to(np.tri(10) / np.arange(1, 11)[:, None], patterns[0].values.shape)
    changed = [dataclasses.replace(patterns[0], values=uniform), patterns[1]]
    assert np.abs(inside.predict(prompts, changed) - whole).max() > 1e-3


def test_a_model_without_taps_is_the_program_it_was(monkeypatch):
    inside = transformer()
    prompts = inside.prompts(2)
    program = lambda: str(jax.make_jaxpr(inside.learner.predict)(inside.variables, prompts))
    untapped = program()
    monkeypatch.setattr(transformer_module, "tap", lambda site, value: value)
    monkeypatch.setattr(mixers, "tap_heads", lambda mixed, value, weights: mixed)
    assert program() == untapped


def without_head(params: Params, layer: int, head: int) -> Params:
    params = jax.tree.map(lambda leaf: leaf, params)
    kernel = params["blocks"][layer]["mixer"]["out"]["kernel"]
    params["blocks"][layer]["mixer"]["out"]["kernel"] = kernel = kernel.copy()
    kernel[8 * head : 8 * head + 8] = 0
    return params


def test_an_ablated_head_is_a_head_without_output_weights():
    inside = transformer()
    prompts = prompts_of(inside)
    params = without_head(inside.variables.params, 1, 0)
    expected = program(inside)(inside.variables._replace(params=params), prompts)
    found = inside.predict(prompts, [zero("heads", 1, head=0)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - plain(inside, prompts)).max() > 1e-3


def test_patches_move_what_a_prompt_knows_to_another():
    inside = transformer()
    prompts, others = prompts_of(inside), prompts_of(inside, seed=1)
    residual = inside.capture(others, ["residual"])["residual"]
    found = inside.predict(prompts, [patch("residual", 1, residual[1])])
    np.testing.assert_allclose(found, plain(inside, others), rtol=1e-4, atol=1e-5)
    # Token 4 is x_3: predictions before it cannot change.
    one = inside.predict(prompts, [patch("residual", 0, residual[0][:, 4:5], tokens=4)])
    changed = np.abs(one - plain(inside, prompts)).max(axis=0) > 1e-6
    assert changed.tolist() == [False, False, True, True, True]


def test_means_and_additions():
    inside = transformer()
    prompts = prompts_of(inside)
    seen = inside.capture(prompts, ["residual", "heads"])
    edited = lambda *edits: inside.capture(prompts, ["residual", "heads"], edits)
    labels = seen["residual"][1].copy()
    labels[:, 1::2] = labels[:, 1::2].mean(axis=0)
    found = edited(mean("residual", 1, tokens=slice(1, None, 2)))["residual"][1]
    np.testing.assert_allclose(found, labels, rtol=1e-5, atol=1e-5)
    found = edited(add("residual", 1, np.ones(16), tokens=[0, 5, -1]))["residual"][1]
    expected = seen["residual"][1] + np.isin(np.arange(10), [0, 5, 9])[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = edited(patch("heads", 0, 7.0, head=1, tokens=[3, 2]))["heads"][0]
    expected = seen["heads"][0].copy()
    expected[:, 2:4, 1] = 7
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_looped_models_count_every_application():
    model = LoopedTransformerConfig(layers=1, heads=2, width=16, loops=3, window=2)
    inside = of_model(model)
    prompts = prompts_of(inside)
    np.testing.assert_allclose(inside.predict(prompts), plain(inside, prompts), rtol=1e-5)
    assert inside.layers()["pattern"] == 3


@pytest.mark.parametrize("softmax", ["all", "none"])
def test_layers_of_self_attention(softmax):
    inside = of_model(SelfAttentionConfig(layers=2, softmax=softmax, shared=False), "concatenated")
    prompts = prompts_of(inside)
    whole = plain(inside, prompts)
    np.testing.assert_allclose(inside.predict(prompts), whole, rtol=1e-5, atol=1e-6)
    kept = inside.predict(prompts, inside.frozen_patterns(prompts))
    np.testing.assert_allclose(kept, whole, rtol=1e-4, atol=1e-5)
    assert inside.layers() == {"residual": 3, "pattern": 2, "heads": 2, "mixer": 2}


def test_layers_of_preconditioned_attention():
    task = WhitenedRegression(dim=3, points=5, scales=(1.0, 0.5, 2.0))
    inside = of_model(PreconditionedConfig(layers=2), "concatenated", task)
    prompts = prompts_of(inside)
    kept = inside.predict(prompts, inside.frozen_patterns(prompts))
    np.testing.assert_allclose(kept, plain(inside, prompts), rtol=1e-4, atol=1e-5)


def test_models_without_attention_have_a_residual_stream_or_nothing():
    inside = of_model(LSTMConfig(layers=2, width=16))
    assert inside.layers() == {"residual": 3}
    with pytest.raises(ValueError, match='has no site "pattern"; it has: residual'):
        inside.capture(inside.prompts(2), ["pattern"])
    adapted = of_model(
        AdaptedTransformerConfig(layers=1, width=8),
        "masked",
        LinearRegression(dim=3, points=5, queries=2),
    )
    assert adapted.layers() == {}
    nothing = of_model(MAMLConfig(loss="squared"), "shifted")
    with pytest.raises(ValueError, match='has no site "residual"; it has: none'):
        nothing.capture(nothing.prompts(2), ["residual"])


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (zero("attention", 0), 'no site "attention"; there are residual'),
        (zero("pattern", 2), 'layers at "pattern" are from 0 to 1; got 2'),
        (zero("mlp", 0, head=1), '"mlp" has no heads; choose "heads" or "pattern"'),
        (zero("heads", 0, head=2), "heads are from 0 to 1; got 2"),
        (zero("mlp", 0, tokens=np.int64(10)), "tokens are from 0 to 9; got 10"),
        (patch("mlp", 0, np.zeros((3, 16)), tokens=[1, 2]), "cannot be broadcast to"),
    ],
)
def test_edits_that_do_not_fit(edit, says):
    inside = transformer()
    with pytest.raises(ValueError, match=says):
        inside.predict(prompts_of(inside), [edit])


def test_scores_over_checkpoints(tmp_path):
    run = untrained(tmp_path / "run", tiny())
    later = Learner(tiny()).init(jax.random.key(1))
    with contextlib.closing(run.checkpoints()) as checkpoints:
        checkpoints.save(2, variable_items(later))
    score = lambda inside: float(np.nanmean(inside.errors(inside.prompts(8))))
    found = over_checkpoints(run, score)
    assert list(found) == [1, 2] and found[1] != found[2]
    assert found == {step: score(Instrument(run.path, step)) for step in (1, 2)}
    assert Instrument(run).step == 2
    with pytest.raises(RunError, match="no checkpoint of step 7; there are: 1, 2"):
        Instrument(run, 7)
    with pytest.raises(RunError, match="has no checkpoint yet"):
        over_checkpoints(Run.create(tmp_path / "new", tiny()), score)
