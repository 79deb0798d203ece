"""Many devices and populations: equal losses, one all-reduce, and members equal to solo runs.

A process of its own has eight CPU devices, and compiles each program once for all tests.
"""

import json
import re

import jax
import numpy as np
import pytest

from icl.tasks import LinearRegression, sample_batch
from icl.training import Learner, population
from icl.training.parallel import largest_divisor, make_mesh, place
from icl.training.population import (
    compile_population,
    group_by_program,
    init_population,
    member_settings,
    shared_config,
)
from icl.training.step import compile_chunk, microbatch_size

from . import children
from .helpers import start, tiny

CONFIG = children.small(training_batch_size=16, training_steps=4, training_pool_size=50)
# The first and the last run the same program alone, from other parameters and keys.
MEMBERS = [
    CONFIG,
    CONFIG.replace(training_seed=1, training_pool_size=3, optimizer_learning_rate=1e-2),
    CONFIG.replace(training_seed=2),
]
COLLECTIVES = (
    "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"
)


def collectives(program):
    """The collective operations of a compiled program."""
    return re.findall(rf" ({COLLECTIVES})(?:-start)?\(", program.compiled.as_text())


def loops_around_all_reduces(program):
    """For each all-reduce of a compiled program, the number of loops around it."""
    inside, within, name = {}, [], None
    for line in program.compiled.as_text().splitlines():
        if line.endswith("{") and (found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(", line)):
            name = found[1]
        for body in re.findall(r"\bbody=%?([\w.-]+)", line):
            inside[body] = (name, 1)
        for called in re.findall(r"(?:to_apply|calls)=%?([\w.-]+)", line):
            inside.setdefault(called, (name, 0))
        if " all-reduce(" in line or " all-reduce-start(" in line:
            within.append(name)

    def depth(name):
        if name not in inside:
            return 0
        outer, loops = inside[name]
        return loops + depth(outer)

    return [depth(name) for name in within]


def answer_with_eight_devices():
    """Prints the answers of `eight`."""
    result = {"solo": {}}
    for devices, microbatch in ((4, 2), (8, None)):
        config = CONFIG.replace(training_microbatch_size=microbatch)
        learner, optimizer, state = start(config)
        mesh = make_mesh(16, devices=jax.devices()[:devices])
        state = place(state, mesh)
        chunk = compile_chunk(learner, optimizer, state, 4, mesh)
        _, metrics = chunk(state)
        answer = [metrics.loss.tolist(), collectives(chunk), loops_around_all_reduces(chunk)]
        result["solo"][devices] = answer
    mesh = make_mesh(16, len(MEMBERS))
    state, own = place((init_population(MEMBERS), member_settings(MEMBERS)), mesh, population=True)
    chunk = compile_population(shared_config(MEMBERS[0]), own, state, 4, mesh)
    _, metrics = chunk(state)
    result["population"] = [metrics.loss.tolist(), collectives(chunk), dict(mesh.shape)]
    print(json.dumps(result))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """The answers of a process with eight devices."""
    out = tmp_path_factory.mktemp("eight") / "answers"
    process = children.start(answer_with_eight_devices, out=out, devices=8)
    process.join()
    assert process.exitcode == 0, out.with_suffix(".err").read_text()
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def solo():
    """The losses of every member, trained alone."""
    chunks, losses = {}, []
    for config in MEMBERS:
        learner, optimizer, state = start(config)
        name = repr(config.replace(training_seed=0))
        if name not in chunks:
            chunks[name] = compile_chunk(learner, optimizer, state, 4)
        _, metrics = chunks[name](state)
        losses.append(np.asarray(metrics.loss))
    return np.array(losses)


def test_losses_are_the_same_on_any_number_of_devices(eight, solo):
    for losses, *_ in eight["solo"].values():
        np.testing.assert_allclose(losses, solo[0], rtol=2e-5)


def test_one_all_reduce_a_step_and_no_other_collective(eight):
    for devices, (_, collectives, loops) in eight["solo"].items():
        assert collectives == ["all-reduce"], devices
        # Only the loop over steps, not the loop over microbatches.
        assert loops == [1], devices


def test_members_of_a_population_are_their_solo_runs(eight, solo):
    np.testing.assert_allclose(eight["population"][0], solo, rtol=2e-5)
    assert (np.abs(np.diff(solo, axis=0)).max(axis=1) > 1e-4).all(), "members must differ"


def test_members_are_spread_over_devices_first(eight):
    _, collectives, shape = eight["population"]
    assert shape == {"members": 3, "data": 2} and collectives == ["all-reduce"]


def test_a_population_that_steps_together_is_the_same(monkeypatch, solo):
    monkeypatch.setattr(population.jax, "default_backend", lambda: "gpu")
    state, numbers = init_population(MEMBERS), member_settings(MEMBERS)
    chunk = compile_population(shared_config(MEMBERS[0]), numbers, state, 4)
    _, metrics = chunk(state)
    np.testing.assert_allclose(metrics.loss, solo, rtol=2e-5)


def test_the_parts_of_a_batch_are_its_bits():
    family = LinearRegression(dim=3, points=5)

    @jax.jit
    def draw(indices):
        return sample_batch(family, jax.random.key(0), indices, family.full)

    whole = draw(np.arange(16))
    parts = [draw(first + np.arange(2)) for first in range(0, 16, 2)]  # of eight devices
    for a, b in zip(jax.tree.leaves(whole), zip(*(jax.tree.leaves(part) for part in parts))):
        np.testing.assert_array_equal(a, np.concatenate(b))


def test_programs_are_by_shape():
    more = [
        CONFIG.replace(model_layers=2),
        CONFIG.replace(training_pool_size=None),
        CONFIG.replace(task_noise=0.5),
        CONFIG.replace(model_layers=2, training_seed=7),
    ]
    assert group_by_program(MEMBERS + more) == [[0, 1, 2], [3, 6], [4], [5]]


def test_as_many_devices_as_divide_the_work(monkeypatch):
    assert [largest_divisor(12, limit) for limit in (1, 5, 7, 100)] == [1, 4, 6, 12]
    devices = jax.devices()[:1]
    assert dict(make_mesh(7, 3, devices).shape) == {"members": 1, "data": 1}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="make training.batch_size a multiple of 2"):
        make_mesh(7, devices=[*devices, *devices])


def test_a_device_cuts_its_own_part_into_microbatches():
    learner = Learner(tiny(training_batch_size=24, training_microbatch_size=12))
    assert [microbatch_size(learner, devices) for devices in (1, 2, 4)] == [12, 12, 6]
