"""In-context meta-learning, and the circuits that emerge in phases: Minegishi et al. 2025.

"Beyond induction heads: in-context meta learning induces multi-phase circuit emergence" (arXiv
2505.16694). Three tasks relabel 64 classes, and a context shows four of them.
"""

import dataclasses

from ..models import TransformerConfig
from ..tasks import RelabelledClasses
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

# Attention alone and a read-out with one hidden layer. Plain SGD, as in the paper, from initial
# weights that keep the size of vectors: by Adam the loss falls without plateaus.
XS_MODEL = TransformerConfig(
    layers=2, heads=1, width=64, mlp=False, norm="none", readout_layers=1, init_std=0.2
)
MODEL = dataclasses.replace(XS_MODEL, width=128, init_std=0.14)


def _config(model: TransformerConfig, learning_rate: float, steps: int, batch_size: int) -> Config:
    return Config(
        task=RelabelledClasses(),
        layout="separate",
        model=model,
        optimizer=OptimizerConfig(name="sgd", learning_rate=learning_rate, schedule="constant"),
        training=TrainingConfig(
            steps=steps, batch_size=batch_size, log_every=steps // 100,
            checkpoint_every=steps // 50, keep_checkpoints=50,
        ),
    )  # fmt: skip


# Clipped gradients keep the last phase finite.
register(
    "minegishi/circuits-xs",
    _config(XS_MODEL, 0.1, 20_000, 64).replace(
        optimizer_schedule="stable", optimizer_clip_norm=3.0
    ),
)
register("minegishi/circuits", _config(MODEL, 0.01, 400_000, 128))
