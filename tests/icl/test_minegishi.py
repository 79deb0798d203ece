"""In-context meta-learning: the task against NumPy, its oracles, and the metrics of circuits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.analysis.circuits import METRICS, Circuits, pattern_metrics
from icl.evaluation.baselines.known_tasks import SEEN, predict_from
from icl.evaluation.comparators import comparators
from icl.models import TransformerConfig
from icl.tasks import RelabelledClasses, Relabelling

from .class_tasks import MANY, assert_alike, assert_share, different, prompts
from .helpers import build, jitted, prompt

BASE = RelabelledClasses(points=5, tasks=3, classes=7, labels=4, dim=6)
VARIANTS = {
    "plain": BASE,
    "several items of a class": dataclasses.replace(BASE, shots=2, p_supported=0.4),
    "query in the context": dataclasses.replace(BASE, shots=4, p_supported=1.0),
    "exponents": dataclasses.replace(BASE, zipf_exponent=1.0, task_zipf_exponent=2.0),
    "moved labels": dataclasses.replace(BASE, labelling="shifted", tasks=6),
}


@functools.cache
def drawn(task, count=MANY):
    """Tasks, classes and labels of prompts."""
    keys = jax.random.split(jax.random.key(0), count)
    found = jax.jit(jax.vmap(lambda key: task.sample_task(key, task.full)))(keys)
    return tuple(np.asarray(part) for part in found)


def table_of(task):
    return np.asarray(jax.jit(task.table)())


def on_host(task, count=2000):
    """Tasks and classes of prompts, one after the other, as the public code draws them."""
    rng = np.random.default_rng(0)
    zipf = lambda number, exponent: np.array([1 / (k + 1) ** exponent for k in range(number)])
    of_tasks, of_classes = (
        p / p.sum()
        for p in (zipf(task.tasks, task.task_zipf_exponent), zipf(task.classes, task.zipf_exponent))
    )
    tasks, classes = [], []
    for _ in range(count):
        different_ones = (task.points - 1) // task.shots
        shown = rng.choice(task.classes, different_ones, replace=False, p=of_classes)
        context = rng.permutation(np.repeat(shown, task.shots))
        supported = rng.random() < task.p_supported
        query = rng.choice(context) if supported else rng.choice(task.classes, p=of_classes)
        tasks.append(rng.choice(task.tasks, p=of_tasks))
        classes.append([*context, query])
    return np.array(tasks), np.array(classes)


@pytest.mark.parametrize("name", VARIANTS)
def test_prompts_are_those_of_a_generator_on_the_host(name):
    task = VARIANTS[name]
    which, classes, labels = drawn(task)
    expected, expected_classes = on_host(task)
    count = lambda values, most: (values[:, :, None] == np.arange(most)).sum(axis=1)
    statistics = lambda which, classes: {
        "task": count(which[:, None], task.tasks),
        "query": count(classes[:, -1:], task.classes),
        "first example": count(classes[:, :1], task.classes),
        "context": count(classes[:, :-1], task.classes),
        "number of classes": count(different(classes[:, :-1])[:, None], task.points),
        "places of the query's class": classes[:, :-1] == classes[:, -1:],
        "equal neighbours": classes[:, 1:-1] == classes[:, :-2],
    }
    theirs = statistics(expected, expected_classes)
    for what, values in statistics(which, classes).items():
        assert_alike(values, theirs[what], what)
    table = table_of(task)
    np.testing.assert_array_equal(labels, table[which[:, None], classes])


def test_shuffled_labels_stay_those_of_the_context():
    task, own = BASE, drawn(BASE)
    shuffled = drawn(dataclasses.replace(task, shuffled_labels=True))
    np.testing.assert_array_equal(shuffled[1], own[1])
    np.testing.assert_array_equal(np.sort(shuffled[2][:, :-1]), np.sort(own[2][:, :-1]))
    np.testing.assert_array_equal(shuffled[2][:, -1], own[2][:, -1])
    where = np.asarray(np.apply_along_axis(lambda row: len(set(row)) == 4, 1, own[2][:, :-1]))
    stays = shuffled[2][where, :-1] == own[2][where, :-1]
    assert_share(stays, [0.25] * 4)


def test_labels_are_uniform_and_independent_or_moved_on():
    task = dataclasses.replace(BASE, tasks=50, classes=400)
    table = table_of(task)
    assert_share((table[..., None] == np.arange(4)).reshape(-1, 4), [0.25] * 4)
    pairs = 4 * table[:-1] + table[1:]
    assert_share((pairs[..., None] == np.arange(16)).reshape(-1, 16), [1 / 16] * 16)
    more = dataclasses.replace(task, tasks=3, classes=9)
    np.testing.assert_array_equal(table_of(more), table[:3, :9])
    moved = table_of(dataclasses.replace(more, labelling="shifted"))
    np.testing.assert_array_equal(moved, (moved[:1] + np.arange(3)[:, None]) % 4)


def test_items_are_near_the_mean_of_their_class():
    task = dataclasses.replace(BASE, classes=300, dim=40, spread=0.5)
    means = np.asarray(jax.jit(task.means)())
    assert abs(means.std() * 40**0.5 - 1) < 0.03
    which = Relabelling(jnp.int32(0), jnp.arange(0, 300, 60), jnp.arange(5))
    keys = jax.random.split(jax.random.key(3), 50)
    draw = jax.jit(jax.vmap(lambda key: task.sample_episode(key, which, task.full)))
    episodes = draw(keys)
    assert episodes.x.shape == (50, 5, 40) and episodes.x.dtype == jnp.float32
    noise = np.asarray(episodes.x) * 1.25**0.5 - means[which.classes]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() * 40**0.5 - 0.5) < 0.02
    assert np.abs(np.corrcoef(noise.reshape(50, -1)[:, ::40].T) - np.eye(5)).max() < 0.7
    assert np.asarray(episodes.queries).tolist() == [[False] * 4 + [True]] * 50
    np.testing.assert_array_equal(episodes.context, ~np.asarray(episodes.queries))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(labelling="permuted"), "task.labelling must be independent or shifted"),
        (dict(points=1), "raise task.points"),
        (dict(shots=3), "4 examples cannot be 3 of each class: set task.shots to a divisor"),
        (dict(points=9), "context of 8 different classes needs as many: raise task.classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def by_loops(task, episodes, seen):
    """The probabilities of the query's label by Bayes' rule, one prompt after the other."""
    table, means = table_of(task), np.asarray(jax.jit(task.means)())
    prior = np.array([1 / (t + 1) ** task.task_zipf_exponent for t in range(task.tasks)])
    found = np.zeros((len(episodes.x), task.labels))
    for b, (x, y) in enumerate(zip(np.asarray(episodes.x), np.asarray(episodes.y))):
        classes = [int(((means - one) ** 2).sum(axis=1).argmin()) for one in x]
        weights = prior.copy()
        for t in range(task.tasks):
            for c, label in zip(classes[:-1], y[:-1]):
                likely = {"the labels": np.mean(table[t] == label), "the query alone": 1.0}
                weights[t] *= likely.get(seen, float(table[t, c] == label))
        for t in range(task.tasks):
            found[b, table[t, classes[-1]]] += weights[t] / weights.sum()
    return found


@pytest.mark.parametrize("seen", SEEN)
def test_oracles_are_bayes_rule(seen):
    task = dataclasses.replace(BASE, task_zipf_exponent=0.5, dim=12)
    episodes = prompts(task, jax.random.key(1), 50)
    expected = by_loops(task, episodes, seen)
    known, optimal = comparators(task)
    assert optimal == f"known tasks, from {SEEN[-1]}" == known[2].names[0]
    found = np.asarray(jax.jit(known[SEEN.index(seen)].predict)(episodes))
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def test_a_context_that_no_task_explains_is_left_out():
    task = dataclasses.replace(BASE, tasks=1)
    episodes = prompts(task, jax.random.key(1), 3)
    wrong = episodes._replace(y=(episodes.y + 1) % task.labels)
    predict = jax.jit(lambda seen: predict_from(seen, task, wrong), static_argnums=0)
    np.testing.assert_array_equal(predict(SEEN[2]), predict(SEEN[0]))


def test_metrics_of_patterns_built_by_hand():
    query, patterns = 8, np.zeros((3, 2, 9, 9))
    patterns[0, :, query, query] = 1  # to itself
    patterns[1, :, query, 1:query:2] = [0.5, 0.25, 0.125, 0.125]  # to the labels
    patterns[2, :, range(1, query, 2), range(0, query, 2)] = 1  # from each label to its item
    np.testing.assert_array_equal(pattern_metrics(patterns, query)[:, :, 1], np.eye(3))
    # Uniform causal attention, of ten tokens of which the last is the query's label.
    uniform = np.tril(np.ones((10, 10)))
    uniform /= uniform.sum(axis=1, keepdims=True)
    expected = [1 / 9, 4 / 9, (1 / 2 + 1 / 4 + 1 / 6 + 1 / 8) / 4]
    np.testing.assert_allclose(pattern_metrics(uniform, query), expected)


def test_attention_alone_without_norms_and_a_read_out_with_hidden_layers():
    config = TransformerConfig(
        layers=2, heads=2, width=8, mlp=False, norm="none", init_std=0.3, readout_layers=2
    )
    model, tokens = build(config), prompt()
    softmax = lambda s: np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
    apply = lambda layer, x: x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    x = apply(model.read_in, np.asarray(tokens)) + np.asarray(model.positions[...])
    assert abs(float(np.std(model.positions[...])) - 0.3) < 0.1
    for block in model.blocks:
        q, k, v = np.split(apply(block.mixer.qkv, x), 3, axis=-1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = q[..., h] @ k[..., h].transpose(0, 2, 1) / 2
            heads.append(softmax(np.where(np.tril(np.ones((12, 12))), scores, -np.inf)) @ v[..., h])
        x = x + apply(block.mixer.out, np.concatenate(heads, axis=-1))
    for layer in model.hidden:
        x = np.maximum(apply(layer, x), 0)
    expected = apply(model.read_out, x)[..., 0]
    np.testing.assert_allclose(jitted(model)(tokens), expected, rtol=2e-4, atol=1e-5)


def test_the_steps_at_which_levels_are_reached(tmp_path):
    found = Circuits(
        np.array([10, 20, 30]), np.array([0.1, 0.36, 0.8]), np.zeros(3),
        {name: np.zeros((3, 1, 1)) for name in METRICS},
        dict(zip(SEEN, (0.38, 0.77, 1.0))), 1, tmp_path,
    )  # fmt: skip
    assert list(found.reached().values()) == [20, 30, None]
    assert "not reached" in str(found)
