"""Real SIGKILLs: a run killed at any moment and resumed ends with the same bits.

ICL_KILLS sets how many (default 4); `ICL_KILLS=50 pytest tests/icl/test_kill.py` for a long look.
"""

import os
import random
import signal
import subprocess
import sys
import time

import icl
from icl.training import Run

from .helpers import QUIET, assert_same_bits, tiny

KILLS = int(os.environ.get("ICL_KILLS", "6"))

PROGRAM = """
import sys, icl, warnings
from icl.training import LoggingConfig
warnings.simplefilter("always")
icl.resume(sys.argv[1], logging=LoggingConfig(progress=False))
"""


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    # Long enough for every kill to find work left, with checkpoints all the time.
    config = tiny(training_steps=30 * KILLS, training_log_every=2, training_checkpoint_every=2)
    unbroken = config.replace(training_checkpoint_every=config.training.steps)
    whole = icl.train(unbroken, tmp_path / "whole", logging=QUIET)
    broken = Run.create(tmp_path / "broken", config)
    draw = random.Random(0)
    reached, landed = [], 0
    for kill in range(KILLS):
        before = _lines(broken)
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(broken.path)])
        if kill % 4 == 1:  # one in four falls before training
            time.sleep(draw.uniform(0, 1.0))
        else:  # the others at a random moment of some step of it
            further = before + draw.choice([0, 2, 4, 6])
            while _lines(broken) <= further and process.poll() is None:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3))
        landed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(max(broken.checkpoints().steps(), default=0))
    assert landed == KILLS, "the run ended before the last kill"
    assert 0 < reached[-1] < config.training.steps and len(set(reached)) > KILLS // 3
    icl.resume(broken, logging=QUIET)
    assert_same_bits(whole.variables()[1], broken.variables()[1])
    for a, b in zip(whole.metrics(), broken.metrics(), strict=True):
        assert (a["step"], a["loss"], a["grad_norm"]) == (b["step"], b["loss"], b["grad_norm"])


def _lines(run):
    return max((record["step"] for record in run.metrics()), default=0)
