"""Trains a preset until its time is used, continues it in the next call, and evaluates it."""

import argparse
import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path

from icl import evaluate, preset, resume, train
from icl.evaluation import training_figure
from icl.training import Config, Interrupted, Run

from .steps import STEPS_LEFT

TO_EVALUATE = 90.0  # seconds; a third of the time if that is less


def main(argv: list[str] | None = None) -> int:
    """Trains and evaluates; returns 0 if all steps are made, else `STEPS_LEFT`."""
    options = parse(argv)
    config, prompts = preset(options.name), 1280
    if options.tiny:
        config, prompts = tiny(config), 16
    seconds = max(1.0, options.seconds - min(TO_EVALUATE, options.seconds / 3))
    stop = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    stop.daemon = True
    stop.start()
    status = 0
    try:
        if (options.run / "config.json").exists():
            resume(options.run)
        else:
            train(config, options.run)
    except Interrupted as stopped:
        print(stopped, flush=True)
        status = STEPS_LEFT
    stop.cancel()
    run = Run.open(options.run)
    if not run.checkpoint_steps():
        return status  # it was stopped while it compiled
    print(evaluate(run, prompts=prompts), flush=True)
    training_figure(run, run.path / "training.png")
    last, steps = run.checkpoint_steps()[-1], run.config.training.steps
    print(f"evaluated at step {last:,} of {steps:,}; run folder: {run.path}", flush=True)
    return status


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_day.preset", description=__doc__)
    parser.add_argument("name", help="a preset")
    parser.add_argument("run", type=Path, help="folder of the run, new or to be continued")
    parser.add_argument("--seconds", type=float, required=True, help="time limit, evaluation too")
    parser.add_argument("--tiny", action="store_true", help="a tiny model for a few steps")
    return parser.parse_args(argv)


def tiny(config: Config) -> Config:
    """A preset of linear regression at a size that takes seconds on a CPU."""
    return config.replace(
        task=dataclasses.replace(config.task, dim=2, points=4),
        model=dataclasses.replace(config.model, layers=1, heads=1, width=8, max_tokens=None),
        curriculum=dataclasses.replace(config.curriculum, dim_start=None, points_start=None),
        training_steps=4,
        training_batch_size=4,
        training_log_every=2,
        training_checkpoint_every=2,
    )


if __name__ == "__main__":
    sys.exit(main())
