"""Can Mamba learn how to learn? A comparative study on in-context learning tasks. Park et al. 2024.

Garg et al.'s set-up on tasks at which transformers and state-space models differ: parities,
regression with outliers, retrieval of vectors. Paper size: Adam at 1e-4 (4e-4 for parities, 2e-4
for retrieval), gradients clipped at 10 (100 for retrieval), at most a million steps.
"""

import dataclasses

from ..models import STANDARD
from ..tasks import (
    Curriculum,
    ManyOutlierRegression,
    OrthogonalOutlierRegression,
    Parity,
    TaskFamily,
    VectorRetrieval,
)
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import xs
from .presets import register

DIMENSIONS = Curriculum(dim_start=4, interval=2000)


def _paper(task: TaskFamily, learning_rate: float = 1e-4, clip_norm: float = 10.0) -> Config:
    return Config(
        task=task,
        model=dataclasses.replace(STANDARD, max_tokens=None),
        curriculum=DIMENSIONS if isinstance(task, ManyOutlierRegression) else Curriculum(),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, schedule="constant", clip_norm=clip_norm
        ),
        training=TrainingConfig(steps=1_000_000, checkpoint_every=10_000),
    )


register(
    "park/parity-xs",
    xs(Parity(dim=5, points=21), steps=4_000, curriculum=Curriculum(dim_start=2, interval=240)),
)
register("park/parity", _paper(Parity(), learning_rate=4e-4))
register(
    "park/many-outliers-xs",
    xs(ManyOutlierRegression(dim=3, points=16, outliers=0.5)),
)
register("park/many-outliers", _paper(ManyOutlierRegression()))
register(
    "park/orthogonal-outliers-xs",
    xs(OrthogonalOutlierRegression(dim=3, points=16)),
)
register("park/orthogonal-outliers", _paper(OrthogonalOutlierRegression()))
register("park/retrieval-xs", xs(VectorRetrieval(dim=8, points=9), steps=4_000))
register("park/retrieval", _paper(VectorRetrieval(), learning_rate=2e-4, clip_norm=100.0))
