"""Real SIGKILLs: a run killed at any moment and resumed ends with the same bits.

ICL_KILLS sets the number of kills (default 6); `ICL_KILLS=50 pytest tests/icl/test_kill.py` for a
long look.
"""

import os
import random
import time

import icl
from icl.training import Run

from . import children
from .helpers import QUIET, assert_same_bits

KILLS = int(os.environ.get("ICL_KILLS", "6"))


def resume(path):
    icl.resume(path, logging=QUIET)


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, programs):
    # Long enough for every kill to find work left, with checkpoints all the time.
    config = children.small(
        training_steps=30 * KILLS, training_log_every=2, training_checkpoint_every=2
    )
    seldom = {"training_checkpoint_every": config.training.steps}
    whole = icl.train(config.replace(**seldom), tmp_path / "whole", logging=QUIET)
    broken = Run.create(tmp_path / "broken", config)
    draw = random.Random(0)
    reached, landed = [], 0
    for kill in range(KILLS):
        before = last_step(broken)
        process = children.start(resume, broken.path, out=tmp_path / "out")
        if kill % 4 == 1:  # one in four falls before training
            time.sleep(draw.uniform(0, 1.0))
        else:  # the others at a random moment of some step of it
            further = before + draw.choice([0, 2, 4, 6])
            while last_step(broken) <= further and process.is_alive():
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3))
        landed += process.is_alive()
        process.kill()
        process.join()
        reached.append(max(broken.checkpoints().steps(), default=0))
    assert landed == KILLS, "the run ended before the last kill"
    assert 0 < reached[-1] < config.training.steps and len(set(reached)) > KILLS // 3
    icl.resume(broken, logging=QUIET, **seldom)
    assert_same_bits(whole.variables()[1], broken.variables()[1])
    for a, b in zip(whole.metrics(), broken.metrics(), strict=True):
        assert (a["step"], a["loss"], a["grad_norm"]) == (b["step"], b["loss"], b["grad_norm"])


def last_step(run):
    return max((record["step"] for record in run.metrics()), default=0)
