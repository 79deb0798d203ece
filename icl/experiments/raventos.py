"""Pretraining task diversity and the emergence of non-Bayesian in-context learning for regression.

Raventós, Paul, Chen & Ganguli 2023 (arXiv 2306.15063). Linear regression with noise, trained on a
pool of M tasks. Below a threshold of M the learner predicts like the optimal estimator for the pool
(dMMSE). Above it the learner predicts like the optimal estimator for all tasks (ridge), which has a
larger error on the pool.

`raventos/pool` follows section 2 and the public code: 8 dimensions, 16 points, noise of variance
0.25, tokens (0, x) and (y, 0), GPT-2 of 8 layers without biases at its ends, Adam with the
"triangle" learning rate, 500,000 batches of 256, the loss on all labels. The initial weights of
the read-in and read-out are uniform, as elsewhere in this library, and not N(0, 0.02^2).
`raventos/pool-small` is the paper's smaller model (section 3.3). `raventos/pool-xs` has 3
dimensions, 8 points and 1/1000 of the prompts, for two CPU cores, and the recipe of
docs/recipes.md. Its largest pool has 32 tasks: the distance between ridge and dMMSE falls as the
pool grows, and must stay above the learner's own error.

A sweep of one of them over pool sizes ends with the paper's figure 2 (`icl.analysis.threshold`).
"""

import dataclasses
from typing import Any

from ..models import TransformerConfig
from ..tasks import LinearRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON, XS_MODEL
from .presets import register


def _triangle(steps: int, **options: Any) -> OptimizerConfig:
    """Adam with a learning rate that rises for half of the steps and then falls."""
    return OptimizerConfig(name="adam", schedule="linear", warmup_steps=steps // 2, **options)


PAPER = Config(
    task=LinearRegression(dim=8, points=16, noise=0.5),
    layout="tagged",
    model=TransformerConfig(layers=8, heads=2, width=128, end_bias=False),
    optimizer=_triangle(500_000, learning_rate=1e-3),
    training=TrainingConfig(
        steps=500_000, batch_size=256, pool_size=2**20, checkpoint_every=10_000
    ),
)

register(
    "raventos/pool",
    PAPER,
    over={"pool_size": [2**n for n in range(21)]},
    report="threshold",
)
register(
    "raventos/pool-small",
    PAPER.replace(model_layers=4, model_width=64),
    over={"pool_size": [2**n for n in range(21)]},
    report="threshold",
)
register(
    "raventos/pool-xs",
    Config(
        task=LinearRegression(dim=3, points=8, noise=0.5),
        layout="tagged",
        model=dataclasses.replace(XS_MODEL, end_bias=False),
        optimizer=MUON,
        training=TrainingConfig(steps=2_000, batch_size=64, pool_size=2**12),
    ),
    over={"pool_size": [2**n for n in range(2, 6)]},
    report="threshold",
)
