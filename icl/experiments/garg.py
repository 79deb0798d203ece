"""What can transformers learn in context? Garg, Tsipras, Liang and Valiant 2022.

Paper size follows appendix A.2: Adam at 1e-4, no warm-up, no clipping, batches of 64,
500,001 steps in the public code and 500,000 here, and the curriculum over dimensions and
points. The `-xs` presets train on two CPU cores in a minute or two. They have the recipe of
docs/recipes.md, and a curriculum only if they do not learn without one.

`garg/capacity` is figure 6 as a sweep: models of three sizes learn linear regression in d = 10 to
50 dimensions from 2d + 1 points (the paper has three seeds: `--seeds 3`). `garg/capacity-xs` has
models of one to three layers in 2 to 5 dimensions.
"""

import dataclasses
from collections.abc import Iterable

from ..models import SMALL, STANDARD, XS, TransformerConfig
from ..tasks import (
    Curriculum,
    DecisionTree,
    LinearClassification,
    LinearRegression,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
    TaskFamily,
    garg_curriculum,
)
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

PAPER_OPTIMIZER = OptimizerConfig(name="adam", learning_rate=1e-4, schedule="constant")
PAPER_TRAINING = TrainingConfig(steps=500_000, batch_size=64, checkpoint_every=10_000)
# The recipe of docs/recipes.md.
MUON = OptimizerConfig(name="muon", learning_rate=0.01, schedule="cosine", warmup_steps=100)
XS_MODEL = dataclasses.replace(XS, norm="rms", qk_norm=True, max_tokens=None)


def xs(task: TaskFamily, steps: int = 2_000, curriculum: Curriculum | None = None) -> Config:
    """An xs model on a small task, for a CPU."""
    return Config(
        task=task,
        layout="tagged",
        model=XS_MODEL,
        curriculum=curriculum or Curriculum(),
        optimizer=MUON,
        training=TrainingConfig(steps=steps),
    )


def _paper(
    task: TaskFamily,
    model: TransformerConfig = STANDARD,
    curriculum: Curriculum = garg_curriculum(),  # noqa: B008, it is frozen
    max_tokens: int = 101,
) -> Config:
    """The paper's training; `max_tokens` is the number of positions of the public checkpoints."""
    return Config(
        task=task,
        model=dataclasses.replace(model, max_tokens=max_tokens),
        curriculum=curriculum,
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    )


LONG = garg_curriculum(points_start=26, points_increment=5)
LINEAR_XS = xs(LinearRegression(dim=5, points=11), steps=3_000)

register("garg/linear-xs", LINEAR_XS)
for _mixer, _steps in (("linear_attention", 3_000), ("delta_rule", 4_000)):
    register(
        f"garg/linear-xs-{_mixer.replace('_', '-')}",
        LINEAR_XS.replace(model_mixer=_mixer, model_qk_norm=False, training_steps=_steps),
    )
register(
    "garg/linear-evening",
    LINEAR_XS.replace(
        task=LinearRegression(),
        model=dataclasses.replace(SMALL, norm="rms", qk_norm=True, max_tokens=None),
        curriculum=dataclasses.replace(garg_curriculum(), interval=80),
        training=TrainingConfig(steps=6_400, log_every=20, checkpoint_every=200),
    ),
)
register("garg/linear-small", _paper(LinearRegression(), SMALL))
register("garg/linear", _paper(LinearRegression()))
register("garg/sparse-xs", xs(SparseLinearRegression(dim=3, points=9, nonzeros=1), steps=4_000))
register("garg/sparse", _paper(SparseLinearRegression(), max_tokens=200))
register("garg/tree-xs", xs(DecisionTree(dim=5, points=26, depth=3)))
register("garg/tree", _paper(DecisionTree(), curriculum=LONG, max_tokens=202))
register("garg/relu-xs", xs(ReLUNetwork(dim=5, points=21, hidden=20)))
register("garg/relu", _paper(ReLUNetwork(), curriculum=LONG, max_tokens=202))
register("garg/noisy-xs", xs(LinearRegression(dim=5, points=16, noise=0.5)))
register("garg/noisy", _paper(LinearRegression(noise=1.0)))
register("garg/noisy-code", _paper(LinearRegression(noise=1.0, renormalize=True)))
register("garg/quadratic-xs", xs(QuadraticRegression(dim=4, points=17)))
register("garg/quadratic", _paper(QuadraticRegression()))
register("garg/classification-xs", xs(LinearClassification(dim=4, points=17)))
register("garg/classification", _paper(LinearClassification()))

MODEL = ("model_layers", "model_heads", "model_width")
DIM, POINTS = "task_dim", "task_points"


def _models(models: Iterable[TransformerConfig]) -> dict[str, dict[str, int]]:
    return {
        f"{model.layers} layers, width {model.width}": {
            name: getattr(model, name.partition("_")[2]) for name in MODEL
        }
        for model in models
    }


def _dimensions(dims: Iterable[int]) -> dict[str, dict[str, int]]:
    return {f"d={dim}": {DIM: dim, POINTS: 2 * dim + 1} for dim in dims}


register(
    "garg/capacity",
    Config(
        task=LinearRegression(dim=20, points=41),
        model=dataclasses.replace(STANDARD, max_tokens=None),
        curriculum=garg_curriculum(),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
    over={
        "model": _models([XS, SMALL, STANDARD]),
        "dimension": _dimensions([10, 20, 30, 40, 50]),
    },
    report="capacity",
)
register(
    "garg/capacity-xs",
    xs(LinearRegression(dim=3, points=7), steps=1_000),
    over={
        "model": _models([dataclasses.replace(XS, layers=layers) for layers in (1, 2, 3)]),
        "dimension": _dimensions([2, 3, 5]),
    },
    report="capacity",
)
