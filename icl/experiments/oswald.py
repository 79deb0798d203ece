"""Transformers learn in-context by gradient descent. Von Oswald et al. 2023 (arXiv 2212.07677).

Linear regression, d = N = 10, from tokens (x, y) and a query (x, 0); learners are layers of linear
self-attention without MLPs or norms. The paper's text draws x from U(-1, 1), its public code from
U(-1/2, 1/2); presets follow the code, and those with `-paper-range` the text. Everything else
follows the code: Adam (b2 0.98) at 1e-3 (5e-4 beyond three layers), batches of 2,048 prompts,
gradients clipped at norm 10 if there are more than two layers. The loss is the squared error here
and half of it in the code, so clipping starts at half of the code's norm. Errors are shown as
squared error / mean squared label. For x in +-1/2 and d = 10 they are 2.4 times half the squared
error.

`icl eval RUN` compares such runs with gradient descent (`icl.analysis.alignment` and
`icl.analysis.descent_shifts`). With `--against` it compares a run on sines with a run of its
comparator. `icl study oswald/descent` computes the errors of gradient descent itself.
"""

from typing import Literal

from ..models import GradientDescentConfig, SelfAttentionConfig
from ..tasks import LinearRegression, SineRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .presets import register

DIM = EXAMPLES = 10
REGRESSION = LinearRegression(dim=DIM, points=EXAMPLES + 1, inputs="uniform", input_scale=0.5)


def _config(
    model: SelfAttentionConfig | GradientDescentConfig,
    steps: int,
    learning_rate: float = 1e-3,
    clip_norm: float | None = None,
    task: LinearRegression | SineRegression = REGRESSION,
    layout: Literal["concatenated", "separate"] = "concatenated",
    schedule: Literal["constant", "cosine"] = "constant",
    batch_size: int = 2048,
) -> Config:
    return Config(
        task=task,
        layout=layout,
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            schedule=schedule,
            clip_norm=clip_norm,
            options={"b2": 0.98},
        ),
        training=TrainingConfig(
            steps=steps,
            batch_size=batch_size,
            checkpoint_every=steps // 50,
            log_every=steps // 100,
            keep_checkpoints=50,
        ),
    )


ONE_LAYER = _config(SelfAttentionConfig(), 5_000)

register("oswald/one-layer", ONE_LAYER)
register("oswald/one-layer-paper-range", ONE_LAYER.replace(task_input_scale=1.0))
register("oswald/two-layers", _config(SelfAttentionConfig(layers=2), 5_000))
register(
    "oswald/five-layers",
    _config(
        SelfAttentionConfig(layers=5, shared=False, clip=10.0),
        50_000,
        learning_rate=5e-4,
        clip_norm=10.0,
    ),
)
register(
    "oswald/five-layers-xs",
    _config(
        SelfAttentionConfig(layers=5, shared=False, clip=10.0),
        10_000,
        learning_rate=2e-3,
        clip_norm=10.0,
        schedule="cosine",
        batch_size=512,
    ),
)

SINES = SineRegression(high_amplitude=0.5)
FEATURES = 40
SINE_ATTENTION = _config(
    SelfAttentionConfig(features=FEATURES), 20_000, clip_norm=100.0, task=SINES
)
SINE_DESCENT = _config(
    GradientDescentConfig(features=FEATURES), 20_000, learning_rate=3e-4, task=SINES
)
SMALLER = dict(
    training_steps=10_000,
    training_batch_size=256,
    training_checkpoint_every=200,
    training_log_every=100,
    optimizer_learning_rate=2e-3,
    optimizer_schedule="cosine",
)

register("oswald/sine", SINE_ATTENTION)
register("oswald/sine-paper-range", SINE_ATTENTION.replace(task_high_amplitude=5.0))
register("oswald/sine-descent", SINE_DESCENT)
register("oswald/sine-xs", SINE_ATTENTION.replace(**SMALLER))
register("oswald/sine-descent-xs", SINE_DESCENT.replace(**SMALLER))

COPYING = _config(
    SelfAttentionConfig(
        layers=2, shared=False, softmax="first", key_size=20, positions=10, init_scale=0.02
    ),
    50_000,
    layout="separate",
)

register("oswald/copying", COPYING)
register("oswald/copying-xs", COPYING.replace(task_dim=5, **SMALLER))


FEWER = ONE_LAYER.replace(
    training_steps=4_000,
    training_batch_size=512,
    training_checkpoint_every=2_000,
    training_log_every=100,
)

register(
    "oswald/softmax",
    FEWER,
    over={
        "attention": {
            name: {"model_softmax": softmax, "model_heads": heads}
            for name, softmax, heads in (
                ("linear", "none", 1),
                ("softmax, 1 head", "all", 1),
                ("softmax, 2 heads", "all", 2),
            )
        }
    },
    report="losses",
)
register(
    "oswald/data-sets",
    FEWER.replace(training_pooled="prompts", training_pool_size=128),
    over={"training_pool_size": [128, 512, 2048, 8192]},
    report="losses",
)
