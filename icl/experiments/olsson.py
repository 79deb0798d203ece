"""Induction heads: Olsson et al. 2022, Edelman et al. 2024 and Arora et al. 2023.

"In-context learning and induction heads" (transformer-circuits.pub), on repeated random symbols in
place of language; "The evolution of statistical induction heads: in-context learning Markov chains"
(arXiv 2402.11004); "Zoology: measuring and improving recall in efficient language models" (arXiv
2312.04927).
"""

import dataclasses

from ..models import TransformerConfig
from ..tasks import AssociativeRecall, MarkovChains, RepeatedSequences, TaskFamily
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON
from .presets import register

# A slower optimiser than the recipe's, so that the phases of training are apart.
ADAM = OptimizerConfig(learning_rate=2e-3, schedule="constant", warmup_steps=20)
ATTENTION_ONLY = TransformerConfig(
    layers=2, heads=2, width=64, embedder="table", embedding_width=64, mlp=False
)
NORMALISED = dataclasses.replace(ATTENTION_ONLY, qk_norm=True, norm="rms")


def _xs(
    task: TaskFamily,
    steps: int,
    model: TransformerConfig = NORMALISED,
    optimizer: OptimizerConfig = ADAM,
) -> Config:
    return Config(
        task=task,
        layout="inputs",
        model=model,
        optimizer=optimizer,
        training=TrainingConfig(
            steps=steps, batch_size=64, log_every=25, checkpoint_every=25, keep_checkpoints=100
        ),
    )


MODELS = {
    "1 layer": {"model_layers": 1, "model_smeared_keys": False},
    "1 layer, smeared keys": {"model_layers": 1, "model_smeared_keys": True},
    "2 layers": {"model_layers": 2, "model_smeared_keys": False},
}

register(
    "olsson/induction-xs",
    _xs(RepeatedSequences(), steps=1200),
    over={"model": MODELS},
    report="phase-change",
)
register(
    "olsson/induction",
    _xs(
        RepeatedSequences(points=511, vocabulary=1024, shortest=64, longest=192),
        steps=20_000,
        model=dataclasses.replace(ATTENTION_ONLY, heads=8, width=512, embedding_width=512),
        optimizer=dataclasses.replace(ADAM, learning_rate=3e-4, warmup_steps=500),
    ).replace(training_checkpoint_every=200),
    over={"model": MODELS},
    report="phase-change",
)
register(
    "edelman/markov-xs",
    _xs(
        MarkovChains(),
        steps=1500,
        model=ATTENTION_ONLY,
        optimizer=dataclasses.replace(ADAM, schedule="stable"),
    ),
)
register(
    "arora/recall-xs",
    _xs(AssociativeRecall(vocabulary=128, points=48, pairs=8), steps=500, optimizer=MUON),
)
# The attention model of the paper's figure 2, at its middle size.
register(
    "arora/recall",
    _xs(
        AssociativeRecall(points=512, pairs=64),
        steps=50_000,
        model=dataclasses.replace(ATTENTION_ONLY, heads=1, width=128, embedding_width=128),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=1000),
    ).replace(model_mlp=True, training_checkpoint_every=500),
)
