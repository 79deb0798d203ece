"""What can transformers learn in context? Garg, Tsipras, Liang and Valiant 2022.

Paper size follows appendix A.2: Adam at 1e-4, no warm-up, no clipping, batches of 64,
500,001 steps in the public code and 500,000 here, and the curriculum over dimensions and
points. The `-xs` presets train on two CPU cores in minutes: a higher learning rate with warm-up
and a cosine, a shorter memory of squared gradients (b2 0.95), which leaves the first plateau
sooner, no clipping, which prolongs it, and no curriculum, which problems that small do not need.
"""

import dataclasses

from ..models import SMALL, STANDARD, XS
from ..tasks import DecisionTree, LinearRegression, garg_curriculum
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

PAPER_OPTIMIZER = OptimizerConfig(name="adam", learning_rate=1e-4, schedule="constant")
PAPER_TRAINING = TrainingConfig(steps=500_000, batch_size=64, checkpoint_every=10_000)
FAST_OPTIMIZER = OptimizerConfig(
    name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=500, options={"b2": 0.95}
)

LINEAR_XS = Config(
    task=LinearRegression(dim=5, points=11),
    model=XS,
    optimizer=FAST_OPTIMIZER,
    training=TrainingConfig(steps=10_000),
)

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
    Config(
        task=LinearRegression(dim=20, points=41),
        model=SMALL,
        curriculum=garg_curriculum(),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
)
register(
    "garg/linear",
    "linear regression as in figure 2, d=20, 41 points, standard model (for a GPU)",
    Config(
        task=LinearRegression(dim=20, points=41),
        model=STANDARD,
        curriculum=garg_curriculum(),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
)
register(
    "garg/tree-xs",
    "decision trees of depth 2, d=5, 26 points, xs model: minutes on a CPU",
    Config(
        task=DecisionTree(dim=5, points=26, depth=2),
        model=XS,
        optimizer=FAST_OPTIMIZER,
        training=TrainingConfig(steps=10_000),
    ),
)
register(
    "garg/tree",
    "decision trees of depth 4 as in figure 5b, d=20, 101 points, standard model (for a GPU)",
    Config(
        task=DecisionTree(dim=20, points=101, depth=4),
        model=dataclasses.replace(STANDARD, max_tokens=202),
        curriculum=garg_curriculum(points_start=26, points_increment=5),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
)
