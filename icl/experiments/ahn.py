"""Transformers learn to implement preconditioned gradient descent for in-context learning.

Ahn, Cheng, Daneshmand & Sra 2023 (arXiv 2306.00297), section 6 and the public code. Linear
attention, in which weights that are 0 at the optimum are fixed at 0, learns regression of inputs
with covariance U D^2 U^T. A layer becomes a step of gradient descent with the inverse covariance as
preconditioner; `icl.analysis.preconditioning` shows the learned preconditioners.

`ahn/isotropic` and `ahn/rotated` are the paper's demonstrations: three layers, without and with a
random rotation U. `ahn/layers` compares one to four layers with one to four steps of descent. Every
step draws a new batch; the public code draws one every 100 steps for `rotated` and `layers`. The
`-xs` presets have smaller batches and other learning rates.
"""

from ..models import PreconditionedConfig
from ..tasks import WhitenedRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

TASK = WhitenedRegression()
ISOTROPIC = WhitenedRegression(scales=(1.0,) * 5)


def _config(
    task: WhitenedRegression, optimizer: OptimizerConfig, steps: int, batch_size: int
) -> Config:
    every = max(100, steps // 50)
    return Config(
        task=task,
        layout="concatenated",
        model=PreconditionedConfig(layers=3),
        optimizer=optimizer,
        training=TrainingConfig(
            steps=steps, batch_size=batch_size, checkpoint_every=every, keep_checkpoints=50
        ),
    )


# b2 = 0.999 is very slow here, as the public code notes.
LAYERS_OPTIMIZER = OptimizerConfig(
    learning_rate=0.01,
    schedule="halving",
    halving_steps=4_000,
    clip_each=0.01,
    options={"b1": 0.99, "b2": 0.9},
)
ROTATED = WhitenedRegression(rotation_seed=0)
BY_LAYERS = {"model_layers": [1, 2, 3, 4]}

register(
    "ahn/isotropic",
    _config(
        ISOTROPIC,
        OptimizerConfig(learning_rate=1e-3, schedule="constant", options={"b1": 0.9, "b2": 0.9}),
        steps=10_000,
        batch_size=4_000,
    ),
)
register(
    "ahn/isotropic-xs",
    _config(
        ISOTROPIC,
        OptimizerConfig(learning_rate=0.01, clip_each=0.01, options={"b1": 0.9, "b2": 0.9}),
        steps=3_000,
        batch_size=1_000,
    ),
)
register(
    "ahn/rotated",
    _config(
        ROTATED,
        OptimizerConfig(
            learning_rate=0.1,
            schedule="constant",
            clip_each=0.01,
            options={"b1": 0.99, "b2": 0.9},
        ),
        steps=100_000,
        batch_size=20_000,
    ),
)
register(
    "ahn/layers",
    _config(ROTATED, LAYERS_OPTIMIZER, steps=20_000, batch_size=20_000),
    over=BY_LAYERS,
    report="layers",
)
register(
    "ahn/layers-xs",
    _config(
        # With the paper's scales the fourth dimension takes many times as long.
        WhitenedRegression(scales=(1.0, 1.0, 0.75, 0.5, 1.0), rotation_seed=0),
        OptimizerConfig(learning_rate=0.03, clip_each=0.01, options={"b1": 0.99, "b2": 0.9}),
        steps=3_000,
        batch_size=1_000,
    ),
    over=BY_LAYERS,
    report="layers",
)
