"""Chan et al. 2022, Singh et al. 2023 and Reddy 2023: what makes learning in context emerge.

"Data distributional properties drive emergent in-context learning in transformers" (arXiv
2205.05055) and its public code, whose configs give the names; "The transient nature of emergent
in-context learning in transformers" (arXiv 2311.08360); "The mechanistic basis of data dependence
and abrupt learning in an in-context classification task" (arXiv 2312.03002).
"""

import dataclasses

from ..models import LSTMConfig, RNNConfig, TransformerConfig
from ..tasks import ClassSequences
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON
from .presets import register

# On a CPU: classes share 32 labels, as Reddy's do, and a token holds an item and its label.
XS_TASK = ClassSequences(
    source=("gaussians",), dim=32, spread=0.5, rare=2000, common=10, holdout=1000, labels=32
)
XS_MODEL = TransformerConfig(
    layers=2, heads=2, width=64, embedding_width=32, embed_labels=True, qk_norm=True, norm="rms"
)


def _xs(task: ClassSequences, steps: int = 2000, **model: object) -> Config:
    return Config(
        task=task,
        layout="concatenated",
        model=dataclasses.replace(XS_MODEL, **model),
        optimizer=MUON,
        training=TrainingConfig(
            steps=steps, batch_size=128, log_every=50, checkpoint_every=200, keep_checkpoints=50
        ),
    )


register(
    "chan/burstiness-xs",
    _xs(XS_TASK),
    over={"p_bursty": [0.0, 0.5, 0.9, 1.0], "zipf_exponent": [0.0, 1.0]},
    report="emergence",
)
