"""The variables of the members of a sweep at every checkpoint."""

import contextlib
from collections.abc import Iterator

import jax

from ..training.learner import Variables
from ..training.population import init_population
from ..training.step import TrainState, variable_items, variables_from
from .folder import Sweep


def variables_by_step(sweep: Sweep, index: int) -> Iterator[tuple[int, list[Variables]]]:
    """Each checkpoint of a program of a sweep: its step, and the variables of each member.

    The newest comes first. Members are in the order of `sweep.programs()[index]`; those whose loss
    became infinite are among them.
    """
    configs = [member.config for member in sweep.programs()[index]]
    abstract = jax.eval_shape(lambda: init_population(configs).items())
    variables = TrainState.from_items(abstract).variables
    keep = configs[0].training.keep_checkpoints
    with contextlib.closing(sweep.program_checkpoints(index, keep)) as checkpoints:
        for step, items in checkpoints.restore_all(variable_items(variables)):
            whole = variables_from(items)
            nth = lambda position, whole=whole: jax.tree.map(lambda a: a[position], whole)
            yield step, [nth(position) for position in range(len(configs))]
