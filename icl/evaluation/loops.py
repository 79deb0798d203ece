"""Error of a looped transformer by its number of loops (Yang et al. 2023, arXiv 2311.12424)."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ..models import LoopedTransformer, LoopedTransformerConfig
from ..tasks import Episode
from ..training.learner import Learner, Params
from ..training.run import Run
from .curves import learner_errors, mean_of_finite
from .figures import STYLE, in_lines, pyplot, save_figure


def errors_by_loop(
    run: Run | str | Path, loops: Sequence[int], prompts: int = 1280, seed: int = 0
) -> np.ndarray:
    """Normalised error at full context by the number of loops, also beyond those of training.

    Writes `loops.png` in the run's folder: errors against loops, and where training ended.

    Args:
      run: a run of a looped transformer with a checkpoint, or its folder.
      loops: numbers of loops, each at least 1.
      prompts: number of prompts, the same as `evaluate` takes.
      seed: seed of the prompts.

    Returns:
      Mean error over prompts at the last point of a prompt, float64 `[len(loops)]`, in the units
      of the family's `error`.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: the run's model has no loops, or a number of loops below 1, or none.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    model = run.config.model
    if not isinstance(model, LoopedTransformerConfig):
        raise ValueError(f"{run.path} is a run of {type(model).__name__}, which has no loops")
    if not loops or min(loops) < 1:
        raise ValueError(f"loops must be numbers of at least 1, got {list(loops)}")
    learner = Learner(run.config)
    wanted = np.array(loops) - 1

    def predict(params: Params, episodes: Episode) -> jax.Array:
        looped = learner.model(params)
        assert isinstance(looped, LoopedTransformer)
        tokens = learner.encode(params, episodes)
        # In one pass: each number of loops is a prefix of the largest.
        outputs = looped.outputs_by_loop(tokens, learner.layout.read, max(loops))
        return outputs[wanted].swapaxes(0, 1)

    step, params = run.variables()
    _, errors = learner_errors(learner, predict, params, prompts, seed)
    mean = mean_of_finite(errors[..., -1])
    _figure(run, step, np.array(loops), mean, model.loops)
    return mean


def _figure(run: Run, step: int, loops: np.ndarray, errors: np.ndarray, trained: int) -> None:
    plt = pyplot()
    order = np.argsort(loops)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        axes.plot(loops[order], errors[order], linewidth=2.5, marker="o", markersize=4)
        axes.axvline(trained, color="0.6", linestyle=":", label=f"trained with {trained} loops")
        axes.set_xlabel("loops")
        axes.set_ylabel(in_lines(run.config.task.label_kind.error_name))
        axes.set_yscale("log")
        axes.set_title(f"{run.path.name}, step {step}, full context", fontsize=10)
        axes.legend(fontsize=8)
        save_figure(figure, run.path / "loops.png")
