"""Chan et al. 2022, Singh et al. 2023 and Reddy 2023: what makes learning in context emerge.

"Data distributional properties drive emergent in-context learning in transformers" (arXiv
2205.05055), with presets named as the configs of its public code; "The transient nature of emergent
in-context learning in transformers" (arXiv 2311.08360); "The mechanistic basis of data dependence
and abrupt learning in an in-context classification task" (arXiv 2312.03002).
"""

import dataclasses
from typing import Any

from ..models import LSTMConfig, ModelConfig, RNNConfig, TransformerConfig
from ..tasks import ClassSequences
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON
from .presets import register

BURSTINESS: dict[str, Any] = {"p_bursty": [0.0, 0.5, 0.9, 1.0], "zipf_exponent": [0.0, 1.0]}

# On a CPU: classes share 32 labels, as Reddy's do, and a token holds an item and its label.
XS_TASK = ClassSequences(
    source=("gaussians",), dim=32, spread=0.5, rare=2000, common=10, holdout=1000, labels=32
)
XS_MODEL = TransformerConfig(
    layers=2, heads=2, width=64, embedding_width=32, embed_labels=True, qk_norm=True, norm="rms"
)
IMAGES_XS_MODEL = dataclasses.replace(XS_MODEL, embedder="mlp", embedding_width=64)


def _xs(task: ClassSequences, model: ModelConfig = XS_MODEL, steps: int = 2000) -> Config:
    return Config(
        task=task,
        layout="concatenated",
        model=model,
        optimizer=dataclasses.replace(MUON, schedule="stable"),
        training=TrainingConfig(
            steps=steps, batch_size=128, log_every=50, checkpoint_every=100, keep_checkpoints=50
        ),
    )


register("chan/burstiness-xs", _xs(XS_TASK), over=BURSTINESS, report="emergence")
register(
    "chan/glyphs-xs",
    _xs(dataclasses.replace(XS_TASK, source=("glyphs",), spread=None), IMAGES_XS_MODEL),
    over=BURSTINESS,
    report="emergence",
)
XS_RECURRENT: dict[str, Any] = dict(layers=2, width=64, embedding_width=32, embed_labels=True)
register("chan/lstm-xs", _xs(XS_TASK, LSTMConfig(**XS_RECURRENT)))
register("chan/rnn-xs", _xs(XS_TASK, RNNConfig(**XS_RECURRENT)))
# The small sets of Omniglot have 242 classes, and 1,936 with flips and turns.
register(
    "chan/omniglot-xs",
    _xs(
        ClassSequences(
            source=("omniglot",), size=28, augmented=True, rare=1846, common=10, holdout=80
        ),
        IMAGES_XS_MODEL,
    ),
    over=BURSTINESS,
    report="emergence",
)
# Learning in context comes first, and fades as the classes are learned in weights.
register(
    "singh/transience-xs",
    _xs(dataclasses.replace(XS_TASK, rare=1000, p_bursty=0.7), steps=4000).replace(
        optimizer_schedule="constant"
    ),
)
# Reddy's data: two classes of four items each, and tokens of their own for items and labels.
REDDY = ClassSequences(
    source=("gaussians",), dim=63, spread=0.1, rare=1024, common=0, holdout=1000, labels=32,
    p_bursty=1.0, shots=4,
)  # fmt: skip
register(
    "reddy/gaussian-xs",
    _xs(REDDY, dataclasses.replace(XS_MODEL, heads=1, embedding_width=63)).replace(
        layout="interleaved"
    ),
    over={"p_bursty": [0.0, 0.5, 0.75, 1.0]},
    report="emergence",
)

# The public code draws the classes of a burst with replacement.
OMNIGLOT = ClassSequences(
    source=("omniglot",), size=105, rare=1603, common=10, holdout=10, repeated_ways=True
)
MODEL = TransformerConfig(
    layers=12, heads=8, width=64, embedder="resnet", embedding_width=64, embed_labels=True,
    position_encoding="sinusoidal", sinusoid_base=30.0,
)  # fmt: skip
RECURRENT: dict[str, Any] = dict(
    layers=12, width=64, embedder="resnet", embedding_width=64, embed_labels=True
)


def _paper(task: ClassSequences, model: ModelConfig = MODEL) -> Config:
    """The public configs: Adam, 4,000 steps of warm-up to 3e-4, then the inverse square root.

    Their `clip_level` is never used.
    """
    return Config(
        task=task,
        model=model,
        optimizer=OptimizerConfig(
            name="adam", learning_rate=3e-4, schedule="inverse_sqrt", warmup_steps=4000
        ),
        training=TrainingConfig(
            steps=500_000, batch_size=32, checkpoint_every=5000, keep_checkpoints=100
        ),
    )


register("chan/images_all_exemplars", _paper(OMNIGLOT), over=BURSTINESS, report="emergence")
register(
    "chan/images_augmented",
    _paper(dataclasses.replace(OMNIGLOT, augmented=True, rare=12700, common=100, holdout=80)),
    over=BURSTINESS,
    report="emergence",
)
register(
    "chan/images_identical",
    _paper(dataclasses.replace(OMNIGLOT, exemplars=1)),
    over=BURSTINESS,
    report="emergence",
)
register(
    "chan/symbolic",
    _paper(
        dataclasses.replace(OMNIGLOT, source=("symbols",), rare=980),
        dataclasses.replace(MODEL, embedder="table"),
    ),
)
register("chan/lstm", _paper(OMNIGLOT, LSTMConfig(**RECURRENT)))
register("chan/rnn", _paper(OMNIGLOT, RNNConfig(**RECURRENT)))
