"""Towards understanding how transformers learn in-context through a representation learning lens.

Ren & Liu 2023 (arXiv 2310.13220). A softmax layer computes what a dual model does after gradient
descent on the demonstrations (`icl.analysis.dual`).

The task is the paper's: 15 demonstrations of linear regression in 10 dimensions. `ren/linear-xs`
trains a softmax layer, and `icl eval RUN` runs its dual model. `ren/variants-xs` is a sweep over
the variants of attention that the paper proposes. `icl study ren/random-features` compares
untrained layers with their dual models of random features.
"""

from typing import Any

from ..models import ContrastiveAttentionConfig, SelfAttentionConfig
from ..tasks import LinearRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

DEMONSTRATIONS = 15
TASK = LinearRegression(dim=10, points=DEMONSTRATIONS + 1, inputs="uniform")


def _variant(
    regularization: float = 0.0,
    values: str = "none",
    keys: str = "none",
    negatives: int = 0,
    weight: float = 0.0,
) -> dict[str, Any]:
    return {
        "model_regularization": regularization,
        "model_augment_values": values,
        "model_augment_keys": keys,
        "model_negatives": negatives,
        "model_negative_weight": weight,
    }


LINEAR = Config(
    task=TASK,
    layout="concatenated",
    model=SelfAttentionConfig(softmax="all", query_in_context=True, init_scale=0.1),
    optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=10.0),
    training=TrainingConfig(steps=2_000, batch_size=128),
)

register("ren/linear-xs", LINEAR)
register(
    "ren/variants-xs",
    LINEAR.replace(model=ContrastiveAttentionConfig(query_in_context=True, init_scale=0.1)),
    over={
        "variant": {
            "plain": _variant(),
            "alpha 0.5": _variant(regularization=0.5),
            "alpha 1": _variant(regularization=1.0),
            "augmented values": _variant(values="residual"),
            "augmented keys": _variant(keys="residual"),
            "augmented both": _variant(values="residual", keys="residual"),
            "augmented both, plain": _variant(values="plain", keys="plain"),
            "negatives 1": _variant(negatives=1, weight=0.1),
            "negatives 5": _variant(negatives=5, weight=0.5),
        }
    },
    report="variants",
)
