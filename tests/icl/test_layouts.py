"""Layouts: contents of tokens; scored predictions cannot depend on their own label."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.tasks import (
    LAYOUTS,
    LinearRegression,
    ManyOutlierRegression,
    Masked,
    VectorRetrieval,
    sample_prompt,
)
from icl.tasks.base import Difficulty

FAMILY = LinearRegression(dim=3, points=5)


@pytest.fixture(params=sorted(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


def episode(points=5, layout=None):
    apart = isinstance(layout, Masked) and points > 1
    family = dataclasses.replace(FAMILY, queries=2) if apart else FAMILY
    return sample_prompt(family, jax.random.key(0), Difficulty(3, points))


def test_shapes_as_declared(layout):
    tokens = layout.encode(episode())
    assert tokens.shape == (layout.tokens(5), layout.width(3, FAMILY.label_kind))
    assert jnp.arange(layout.tokens(5))[layout.read].shape == (5,)
    assert layout.scored(episode()).shape == (5,)


@pytest.mark.parametrize("points", [1, 3, 5])
def test_scored_predictions_cannot_see_their_label(layout, points):
    """Tokens up to the position that predicts y_i do not change with y_i or later labels."""
    drawn = episode(points, layout)
    read = np.arange(layout.tokens(5))[layout.read]
    scored = np.asarray(layout.scored(drawn))
    assert scored.any()
    for i in np.flatnonzero(scored):
        other = drawn._replace(y=drawn.y.at[i:].add(100.0))
        before = slice(0, read[i] + 1)
        np.testing.assert_array_equal(layout.encode(drawn)[before], layout.encode(other)[before])


def test_every_example_before_a_scored_prediction_is_visible(layout):
    drawn = episode(layout=layout)
    if layout is LAYOUTS["inputs"]:  # later inputs show the labels
        np.testing.assert_array_equal(layout.encode(drawn), drawn.x)
        return
    read = np.arange(layout.tokens(5))[layout.read]
    for i in np.flatnonzero(layout.scored(drawn)):
        for j in np.flatnonzero(drawn.context[:i]):
            other = drawn._replace(y=drawn.y.at[j].add(100.0))
            before = slice(0, read[i] + 1)
            assert (layout.encode(drawn)[before] != layout.encode(other)[before]).any()


def test_interleaved_is_x_then_y():
    tokens = LAYOUTS["interleaved"].encode(episode())
    np.testing.assert_array_equal(tokens[::2], episode().x)
    np.testing.assert_array_equal(tokens[1::2, 0], episode().y)
    np.testing.assert_array_equal(tokens[1::2, 1:], 0)


def test_shifted_shows_the_label_before():
    tokens = LAYOUTS["shifted"].encode(episode())
    np.testing.assert_array_equal(tokens[:, :3], episode().x)
    np.testing.assert_array_equal(tokens[1:, 3], episode().y[:-1])
    assert tokens[0, 3] == 0


def test_paired_repeats_the_input_beside_its_label():
    tokens = LAYOUTS["paired"].encode(episode())
    for first in (0, 1):
        np.testing.assert_array_equal(tokens[first::2, :3], episode().x)
    np.testing.assert_array_equal(tokens[1::2, 3], episode().y)
    np.testing.assert_array_equal(tokens[::2, 3], 0)


def test_masked_marks_queries_and_hides_their_labels():
    layout = LAYOUTS["masked"]
    drawn = episode(4, layout)
    tokens = layout.encode(drawn)
    np.testing.assert_array_equal(tokens[:, :3], drawn.x)
    np.testing.assert_array_equal(tokens[:, 3], [*drawn.y[:2], 0, 0, 0])
    np.testing.assert_array_equal(tokens[:, 4], [0, 0, 1, 1, 0])
    np.testing.assert_array_equal(layout.examples(drawn), 2)
    assert layout.length(drawn) == 4


def test_vector_labels_and_label_tokens_are_shown():
    interleaved = LAYOUTS["interleaved"]
    retrieval = VectorRetrieval(dim=3, points=5)
    shown = sample_prompt(retrieval, jax.random.key(0), retrieval.full)
    np.testing.assert_array_equal(interleaved.encode(shown)[1::2], shown.y)
    outliers = ManyOutlierRegression(dim=3, points=5, outliers=0.5)
    drawn = sample_prompt(outliers, jax.random.key(0), outliers.full)
    np.testing.assert_array_equal(interleaved.encode(drawn)[1::2], drawn.label_tokens)
    tokens = LAYOUTS["concatenated"].encode(shown, retrieval.label_kind)
    np.testing.assert_array_equal(tokens[:4, 3:], shown.y[:4])
    np.testing.assert_array_equal(tokens[4, 3:], 0)


def test_concatenated_predicts_the_last_point_in_use_of_a_curriculum():
    layout, drawn = LAYOUTS["concatenated"], episode(3)
    np.testing.assert_array_equal(layout.scored(drawn), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(layout.encode(drawn)[:2, 3], drawn.y[:2])
    np.testing.assert_array_equal(layout.encode(drawn)[2:, 3], 0)
