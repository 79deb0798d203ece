"""What can transformers learn in context? Garg, Tsipras, Liang and Valiant 2022.

Paper size follows appendix A.2: Adam at 1e-4, no warm-up, no clipping, batches of 64,
500,001 steps in the public code and 500,000 here, and the curriculum over dimensions and
points. The `-xs` presets train on two CPU cores in minutes: a higher learning rate with warm-up
and a cosine, a shorter memory of squared gradients (b2 0.95), which leaves the first plateau
sooner, no clipping, which prolongs it, and a curriculum only where they are stuck without.
"""

import dataclasses

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
FAST_OPTIMIZER = OptimizerConfig(
    name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=500, options={"b2": 0.95}
)


def xs(task: TaskFamily, steps: int = 10_000, curriculum: Curriculum | None = None) -> Config:
    """An xs model on a small task, for a CPU."""
    return Config(
        task=task,
        model=dataclasses.replace(XS, max_tokens=max(101, 2 * task.points)),
        curriculum=curriculum or Curriculum(),
        optimizer=FAST_OPTIMIZER,
        training=TrainingConfig(steps=steps),
    )


def _paper(
    task: TaskFamily,
    model: TransformerConfig = STANDARD,
    curriculum: Curriculum = garg_curriculum(),  # noqa: B008, it is frozen
    max_tokens: int = 101,
) -> Config:
    """The paper's training, with as many learned positions as the public checkpoints have."""
    return Config(
        task=task,
        model=dataclasses.replace(model, max_tokens=max_tokens),
        curriculum=curriculum,
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    )


LONG = garg_curriculum(points_start=26, points_increment=5)
LINEAR_XS = xs(LinearRegression(dim=5, points=11))

register(
    "garg/linear-xs",
    "linear regression, d=5, 11 points, xs model: minutes on a CPU",
    LINEAR_XS,
)
for _mixer, _what in (("linear_attention", "linear attention"), ("delta_rule", "the delta rule")):
    register(
        f"garg/linear-xs-{_mixer.replace('_', '-')}",
        f"linear regression, d=5, 11 points, xs model with {_what}: minutes on a CPU",
        dataclasses.replace(LINEAR_XS, model=dataclasses.replace(XS, mixer=_mixer)),
    )
register(
    "garg/linear-small",
    "linear regression as in figure 2, d=20, 41 points, small model",
    _paper(LinearRegression(), SMALL),
)
register(
    "garg/linear",
    "linear regression as in figure 2, d=20, 41 points, standard model (for a GPU)",
    _paper(LinearRegression()),
)
register(
    "garg/sparse-xs",
    "sparse linear regression, 1 of d=3 coordinates, 9 points, xs model: minutes on a CPU",
    xs(SparseLinearRegression(dim=3, points=9, nonzeros=1)),
)
register(
    "garg/sparse",
    "sparse linear regression as in figure 5a, 3 of d=20 coordinates, 41 points (for a GPU)",
    _paper(SparseLinearRegression(), max_tokens=200),
)
register(
    "garg/tree-xs",
    "decision trees of depth 3, d=5, 26 points, xs model: minutes on a CPU",
    xs(DecisionTree(dim=5, points=26, depth=3), steps=6_000),
)
register(
    "garg/tree",
    "decision trees of depth 4 as in figure 5b, d=20, 101 points, standard model (for a GPU)",
    _paper(DecisionTree(), curriculum=LONG, max_tokens=202),
)
register(
    "garg/relu-xs",
    "two-layer ReLU networks, 20 hidden units, d=5, 21 points, xs model: minutes on a CPU",
    xs(ReLUNetwork(dim=5, points=21, hidden=20), steps=6_000),
)
register(
    "garg/relu",
    "two-layer ReLU networks as in figure 5c, 100 hidden units, d=20, 101 points (for a GPU)",
    _paper(ReLUNetwork(), curriculum=LONG, max_tokens=202),
)
register(
    "garg/noisy-xs",
    "linear regression with noise 0.5, d=5, 16 points, xs model: minutes on a CPU",
    xs(
        LinearRegression(dim=5, points=16, noise=0.5),
        steps=6_000,
        curriculum=Curriculum(dim_start=2, interval=300),
    ),
)
register(
    "garg/noisy",
    "linear regression with noise of variance d/20, d=20, 41 points, as the text (for a GPU)",
    _paper(LinearRegression(noise=1.0)),
)
register(
    "garg/noisy-code",
    "the same with renormalised labels, as the public code (for a GPU)",
    _paper(LinearRegression(noise=1.0, renormalize=True)),
)
register(
    "garg/quadratic-xs",
    "quadratic regression, d=4, 17 points, xs model: minutes on a CPU",
    xs(QuadraticRegression(dim=4, points=17), steps=5_000),
)
register(
    "garg/quadratic",
    "quadratic regression of the public code, d=20, 41 points, standard model (for a GPU)",
    _paper(QuadraticRegression()),
)
register(
    "garg/classification-xs",
    "linear classification, d=4, 17 points, xs model: minutes on a CPU",
    xs(
        LinearClassification(dim=4, points=17),
        steps=5_000,
        curriculum=Curriculum(dim_start=1, interval=500),
    ),
)
register(
    "garg/classification",
    "linear classification of the public code, d=20, 41 points, standard model (for a GPU)",
    _paper(LinearClassification()),
)
