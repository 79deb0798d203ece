"""What tests of class sequences share: a small task, a generator on the host, comparisons."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from icl.tasks import ClassSequences, sample_batch

MANY = 8000  # sequences drawn on the device
HOST = 1500  # sequences drawn on the host
SIGMAS = 5.5
BASE = ClassSequences(
    source=("symbols",), rare=6, common=4, holdout=5, zipf_exponent=1.0, p_bursty=0.7,
    points=8, shots=2, ways=2, fewshot_shots=3,
)  # fmt: skip


def of(task=BASE, **changes):
    return dataclasses.replace(task, **changes)


@functools.cache
def drawn(task, count=MANY, seed=0):
    """Classes and labels of sequences, `[count, points]`."""
    keys = jax.random.split(jax.random.key(seed), count)
    found = jax.jit(jax.vmap(lambda key: task.sample_task(key, task.full)))(keys)
    assert found.classes.dtype == found.labels.dtype == jnp.int32
    return np.asarray(found.classes), np.asarray(found.labels)


@functools.partial(jax.jit, static_argnums=(0, 2))
def prompts(task, key, count, data=None):
    return sample_batch(task, key, jnp.arange(count), task.full, data=data)


class Host:
    """The sequences of a task, one after the other by NumPy, as Chan et al.'s code draws them."""

    def __init__(self, task, seed=0):
        self.task, self.rng = task, np.random.default_rng(seed)
        trained = task.rare + task.common
        zipf = np.array([1 / (trained - j) ** task.zipf_exponent for j in range(trained)])
        within = zipf if task.zipf_groups else np.ones(trained)
        groups = {
            "zipfian": (np.arange(trained), zipf),
            "rare": (np.arange(task.rare), within[: task.rare]),
            "common": (np.arange(task.rare, trained), within[task.rare :]),
            "holdout": (trained + np.arange(task.holdout), np.ones(task.holdout)),
        }
        self.groups = {name: (which, p / p.sum()) for name, (which, p) in groups.items()}

    def many(self, count):
        found = np.array([self.draw() for _ in range(count)])
        return found[:, 0], found[:, 1]

    def draw(self):
        task, kind = self.task, self.task.sequences
        name, _, group = kind.rpartition("_")
        if name == "fewshot":
            return self.few_shots(group, "unfixed", task.fewshot_shots)
        if name == "no_support" or kind == "copy_available":
            classes, labels = self.no_support(group if name == "no_support" else "zipfian")
            if kind == "copy_available":
                labels[self.rng.integers(task.points - 1)] = labels[-1]
            return classes, labels
        if kind in ("relabel", "flip"):
            return self.burst("zipfian", "unfixed" if kind == "relabel" else "flipped")
        if kind == "in_context":
            return self.few_shots("holdout", "ordered", task.fewshot_shots)
        if kind == "swap":
            return self.few_shots("zipfian", "swapped", task.fewshot_shots)
        if kind == "in_weights":
            return self.independent("zipfian")
        if kind == "mixed":
            if self.rng.random() < task.p_fewshot:
                return self.few_shots("rare", "unfixed", task.fewshot_shots)
            return self.independent("common")
        if self.rng.random() >= task.p_bursty:
            if task.non_bursty == "common_no_support":
                return self.no_support("common")
            return self.independent(task.non_bursty)
        common, zipfian = task.p_bursty_common, task.p_bursty_zipfian
        shares = [common, zipfian, 1 - common - zipfian]
        group = str(self.rng.choice(["common", "zipfian", "rare"], p=shares))
        return self.burst(group, "ordered" if group == "common" else task.labelling)

    def choose(self, group, count, replace=True, without=None):
        classes, p = self.groups[group]
        if without is not None:
            p = np.where(classes == without, 0, p)
            p = p / p.sum()
        return self.rng.choice(classes, count, replace, p)

    def own(self, classes):
        """Labels of classes, any of several of a rare one."""
        task = self.task
        if task.labels is not None:
            return classes % task.labels
        several = task.polysemy if task.labelling == "polysemous" else 1
        any_of_them = classes * several + self.rng.integers(several, size=len(classes))
        return np.where(classes < task.rare, any_of_them, classes + task.rare * (several - 1))

    def independent(self, group):
        classes = self.choose(group, self.task.points)
        return classes, self.own(classes)

    def no_support(self, group):
        query = self.choose(group, 1)
        classes = np.append(self.choose(group, self.task.points - 1, without=query[0]), query)
        return classes, self.own(classes)

    def few_shots(self, group, labelling, shots):
        ways = self.task.ways
        chosen = self.choose(group, ways, replace=self.task.repeated_ways)
        labels = self.rng.permutation(ways) if labelling == "unfixed" else self.own(chosen)
        if labelling == "flipped":
            labels = np.append(labels[1:], labels[0])
        if labelling == "swapped":
            labels = (labels + 1) % self.task.label_kind.number
        way = np.concatenate([self.rng.permutation(ways) for _ in range(shots)])
        if not self.task.grouped:
            self.rng.shuffle(way)
        way = np.append(way, self.rng.integers(ways))
        return chosen[way], labels[way]

    def burst(self, group, labelling):
        task, own = self.task, self.few_shots(group, labelling, self.task.shots)
        few = task.shots * task.ways
        rest = {"zipfian": "zipfian", "common": "rare", "rare": "common"}[group]
        others = self.choose(rest, task.points - 1 - few)
        places = self.rng.permutation(task.points - 1)
        places = np.sort(places[:few]) if task.grouped else places[:few]
        where = np.delete(np.arange(task.points - 1), places)
        found = np.zeros((2, task.points), np.int64)
        found[:, -1] = own[0][-1], own[1][-1]
        found[:, places] = own[0][:-1], own[1][:-1]
        found[:, where] = others, self.own(others)
        return found


def different(values):
    """How many different values a row has, `[N]`."""
    ordered = np.sort(values, axis=1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)


def assert_alike(found, expected, what):
    """Means of columns `[N, n]` and `[M, n]` differ by what chance allows."""
    deviation = np.concatenate([found, expected]).astype(float).std(axis=0)
    allowed = SIGMAS * deviation * (1 / len(found) + 1 / len(expected)) ** 0.5
    difference = np.abs(found.mean(axis=0) - expected.mean(axis=0))
    assert (difference <= allowed + 1e-9).all(), (what, found.mean(axis=0), expected.mean(axis=0))


def assert_share(found, probability):
    """Shares of true values along the first axis are the probabilities, as far as chance allows."""
    probability = np.asarray(probability)
    allowed = SIGMAS * (probability * (1 - probability) / len(found)) ** 0.5
    np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - probability), allowed + 1e-9)
