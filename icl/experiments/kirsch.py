"""General-purpose in-context learning by meta-learning transformers.

Kirsch, Harrison, Sohl-Dickstein and Metz 2022 (arXiv 2212.04458): image classification under a
random linear map and permuted labels, where a learner memorises its tasks or learns to learn.
`kirsch/mnist` and `kirsch/map` have the paper's sizes, and want MNIST's files in the folder
`mnist`, or another path as `--task.images`. The text leaves batches and learning rates open; they
are those of public replications.

The `-xs` presets need no files: they use scikit-learn's digits. They have the recipe of
docs/recipes.md and, on mapped images, the layout `paired`, in which there is hardly a plateau. MAML
and the interventions have the paper's tokens, `shifted`, in which there is a long one.

`kirsch/few-shot` is the image part of the repository meta-in-context-learning, and
`kirsch/functions` and `kirsch/sines` are the public notebook on random networks; docs/kirsch.md
tells where they differ.
"""

import dataclasses
from typing import Any

from ..models import (
    FastWeightLSTMConfig,
    LoopedTransformerConfig,
    LSTMConfig,
    MAMLConfig,
    MLPConfig,
    TransformerConfig,
)
from ..tasks import Curriculum, ProjectedImages, RandomNetwork, fast_sines
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON, XS_MODEL
from .presets import register

ADAM = OptimizerConfig(name="adam", learning_rate=3e-4, schedule="constant", clip_norm=2.0)
TRANSFORMER = TransformerConfig(layers=4, heads=8, width=256)
MNIST = ProjectedImages(images=("mnist",), size=28)
PAPER = Config(
    task=MNIST,
    layout="shifted",
    model=TRANSFORMER,
    optimizer=ADAM,
    training=TrainingConfig(steps=50_000, batch_size=128, pool_size=2**16),
)
XS = Config(
    task=ProjectedImages(points=40),
    layout="paired",
    model=XS_MODEL,
    optimizer=MUON,
    training=TrainingConfig(steps=2_000),
)

register("kirsch/digits-xs", XS)
for _name, _config in {
    "linear-attention": XS.replace(model_mixer="linear_attention", model_qk_norm=False),
    "delta-rule": XS.replace(model_mixer="delta_rule", model_qk_norm=False),
    "lstm": XS.replace(model=LSTMConfig(layers=2, width=64)),
    "outer-product-lstm": XS.replace(model=FastWeightLSTMConfig(layers=2, heads=2, width=64)),
    "maml": XS.replace(
        model=MAMLConfig(),
        layout="shifted",
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
    ),
    "mlp": XS.replace(model=MLPConfig(width=64)),
}.items():
    register(f"kirsch/digits-xs-{_name}", _config)
register(
    "kirsch/map-xs",
    XS.replace(task_points=20),
    over={"width": [16, 32, 64], "pool_size": [2**n for n in (0, 4, 7, 9, 11, 16)]},
    report="memorisation",
)
register(
    "kirsch/plateau-xs",
    XS.replace(task_points=20, training_steps=1_000, training_log_every=10),
    over={"batch_size": [16, 32, 64, 128, 256]},
    report="plateau",
)
PLAIN: dict[str, Any] = dict(layout="shifted", biased=0.0, classes_start=None, points_start=None)
register(
    "kirsch/interventions-xs",
    XS.replace(
        task_points=20,
        training_steps=4_000,
        training_log_every=50,
        curriculum=Curriculum(interval=400),
    ),
    over={
        "intervention": {
            "none": PLAIN,
            "biased labels": PLAIN | dict(biased=0.9),
            "more and more classes": PLAIN | dict(classes_start=2),
            "more and more classes and points": PLAIN | dict(classes_start=2, points_start=8),
            "paired tokens": PLAIN | dict(layout="paired"),
        }
    },
    report="plateau",
)
register("kirsch/mnist", PAPER)
register(
    "kirsch/lstm",
    PAPER.replace(model=LSTMConfig(layers=1), training_steps=100_000),
)
register(
    "kirsch/map",
    PAPER.replace(training_pool_size=1),
    over={"width": [16, 64, 256, 512], "pool_size": [2**n for n in range(0, 21, 2)]},
    report="memorisation",
)
FEW_SHOT = Config(
    task=ProjectedImages(points=7, ways=3, shots=2, projection="none"),
    layout="concatenated",
    model=dataclasses.replace(
        XS_MODEL, bidirectional=True, position_encoding="none", embedder="mlp", embedding_width=64
    ),
    optimizer=MUON,
    training=TrainingConfig(steps=2_000),
)
register("kirsch/few-shot-xs", FEW_SHOT)
register(
    "kirsch/few-shot",
    FEW_SHOT.replace(
        task=dataclasses.replace(
            MNIST,
            images=("features.npz",),
            features=512,
            points=7,
            ways=3,
            shots=2,
            projection="diagonal",
        ),
        model=dataclasses.replace(TRANSFORMER, bidirectional=True),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3),
        training=TrainingConfig(steps=10_000, batch_size=648),
    ),
)
FUNCTIONS = Config(
    task=RandomNetwork(points=100, queries=16),
    layout="masked",
    model=dataclasses.replace(XS_MODEL, bidirectional=True, position_encoding="none"),
    optimizer=MUON,
    training=TrainingConfig(steps=2_000),
)
NOTEBOOK = LoopedTransformerConfig(
    layers=8, heads=2, width=16, loops=3, window=3, bidirectional=True, position_encoding="none"
)
register("kirsch/functions-xs", FUNCTIONS)
register("kirsch/sines-xs", FUNCTIONS.replace(task=fast_sines(points=100, queries=16)))
for _name, _task in {
    "functions": RandomNetwork(points=500, queries=16),
    "sines": fast_sines(points=100, queries=1),
}.items():
    register(
        f"kirsch/{_name}",
        FUNCTIONS.replace(
            task=_task,
            model=NOTEBOOK,
            training=TrainingConfig(steps=20_000, batch_size=200),
        ),
    )
