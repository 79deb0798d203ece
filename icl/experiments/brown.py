"""Implicit and explicit meta-learning on one mixture of task families.

Brown et al. 2020 (GPT-3, arXiv 2005.14165, section 2) describe pretraining as the outer loop of a
meta-learner whose inner loop is learning in context: `brown/mixture`. Explicit meta-learners of
that mixture adapt a transformer's weights by gradients: MAML and first-order MAML of Finn et al.
2017 (arXiv 1703.03400), `finn/maml` and `finn/first-order`, and Reptile of Nichol et al. 2018
(arXiv 1803.02999), `nichol/reptile`. `icl eval RUN --beside RUN ...` has all of them in one figure;
docs/meta-learning.md tells the numbers. The text of none of the papers has this mixture.

The families that are held out were chosen before training. All learners are trained on 0 to 20
examples (64 with the larger sizes): the transformer predicts each point of a prompt, and the
explicit learners draw the number of examples of a prompt uniformly.
"""

import dataclasses

from ..models import SMALL, AdaptedTransformerConfig
from ..tasks import Mixture
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON, xs
from .presets import register

HELD_OUT = ("sparse_linear_regression", "decision_tree", "random_network")
XS_TASK = Mixture(
    dim=3,
    points=21,
    held_out=HELD_OUT,
    options=(
        "relu_network.hidden=20",
        "sparse_linear_regression.nonzeros=1",
        "decision_tree.depth=2",
    ),
)
TASK = Mixture(dim=8, points=65, held_out=HELD_OUT)
QUERIES = 8

register("brown/mixture-xs", xs(XS_TASK, steps=3_000))
register(
    "brown/mixture",
    Config(
        task=TASK,
        layout="tagged",
        model=dataclasses.replace(SMALL, norm="rms", qk_norm=True, max_tokens=None),
        optimizer=MUON,
        training=TrainingConfig(steps=50_000, batch_size=256),
    ),
)


def _explicit(task: Mixture, model: AdaptedTransformerConfig, training: TrainingConfig) -> Config:
    """An explicit learner of a mixture, with as many examples as the implicit one."""
    points = task.points - 1 + QUERIES
    return Config(
        task=dataclasses.replace(task, points=points, queries=QUERIES, fewest_points=QUERIES),
        layout="masked",
        model=model,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        training=training,
    )


XS = AdaptedTransformerConfig(layers=1, heads=2, width=32, norm="rms", qk_norm=True)
LARGER = dataclasses.replace(XS, layers=4, heads=4, width=128)
MAML = dict(method="maml", inner_steps=3, learn_rates=True)
FIRST_ORDER = dict(method="first-order", inner_steps=3, learn_rates=True)
REPTILE = dict(method="reptile", inner_steps=8)

for _name, _method, _steps in (
    ("finn/maml", MAML, 2_000),
    ("finn/first-order", FIRST_ORDER, 3_000),
    ("nichol/reptile", REPTILE, 4_000),
):
    for _suffix, _task, _model, _training in (
        ("-xs", XS_TASK, XS, TrainingConfig(steps=_steps, batch_size=32)),
        ("", TASK, LARGER, TrainingConfig(steps=50_000, batch_size=128)),
    ):
        register(
            f"{_name}{_suffix}",
            _explicit(_task, dataclasses.replace(_model, **_method), _training),
        )
