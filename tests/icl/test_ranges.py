"""Every numeric setting has a range, and errors name the setting."""

import dataclasses
import re
import types
import typing

import jax
import pytest

from icl.models import MODELS
from icl.ranges import SEED
from icl.tasks import FAMILIES, Curriculum, LinearRegression, WhitenedRegression
from icl.training import Config, OptimizerConfig
from icl.training.config import TrainingConfig

from .helpers import tiny

SECTIONS = {
    **{f"task {name}": family() for name, family in FAMILIES.items()},
    **{f"model {kind}": model() for kind, model in MODELS.items()},
    "curriculum": Curriculum(),
    "optimizer": OptimizerConfig(),
    "training": TrainingConfig(),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_numeric_setting_has_a_range(section):
    settings, numbers = SECTIONS[section], 0
    for name, hint in typing.get_type_hints(type(settings)).items():
        union = typing.get_origin(hint) is types.UnionType
        kinds = typing.get_args(hint) if union else (hint,)
        if not {int, float} & set(kinds):
            continue
        numbers += 1
        wrong = [-(10.0**39), 10**39, float("nan"), float("inf"), "1", True]
        wrong += [1.5, -(10**20)] if int in kinds else []
        wrong += [None] if type(None) not in kinds else []
        for value in wrong:
            said = re.escape(f"{section.split()[0]}.{name} must be a")
            with pytest.raises(ValueError, match=rf"^{said}.* to .*, got {re.escape(repr(value))}"):
                dataclasses.replace(settings, **{name: value})
    assert numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(curriculum_dim_start=4), "curriculum.dim_start must be a .* from 1 to 3, got 4"),
        (dict(curriculum_points_start=6), "curriculum.points_start .* from 1 to 5, got 6"),
        (dict(curriculum_dim_increment=0), "curriculum.dim_increment .* from 1 to 1000000"),
        (dict(curriculum_points_increment=-100), "curriculum.points_increment .*, got -100"),
        (dict(task_covariance_decay=-5.0), "task.covariance_decay .* from 0 to 100, got -5.0"),
        (dict(model_max_tokens=0), "model.max_tokens .* from 1 to"),
        (dict(optimizer_learning_rate=1e-300), "optimizer.learning_rate .* from 1.175494e-38 to"),
        (dict(optimizer_options={"b2": 2}), "optimizer.options.b2 .* from 0 to 0.9999999, got 2"),
        (dict(optimizer_options={"weight_decay": -1.0}), "optimizer.options.weight_decay must"),
        (dict(training_seed=2**32), "training.seed .* from 0 to 4294967295"),
        (dict(task=WhitenedRegression(dim=2, scales=(1, 2))), None),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    if message is None:
        assert tiny(**changes)
        return
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_seeds_at_both_ends_of_the_range_give_different_keys():
    keys = {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in (*SEED, 2**31)}
    assert len(keys) == 3


def test_a_steep_curriculum_does_not_overflow():
    family = LinearRegression(dim=20, points=41)
    steep = Curriculum(dim_start=1, dim_increment=10**6, interval=1)
    assert steep.at(2**31 - 2, family).dim == 20 and steep.at(0, family).dim == 1
    Config(task=family, curriculum=steep)
