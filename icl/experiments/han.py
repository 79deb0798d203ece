"""Concept encoding and decoding: transformers that learn which of several bases made a prompt.

Han, Song, Gore and Agrawal 2024, "Emergence and effectiveness of task vectors in in-context
learning: an encoder decoder perspective" (arXiv 2412.12276; the first versions are called
"Emergence of abstractions: concept encoding and decoding mechanism for in-context learning in
transformers"). Sizes and training follow appendix D.2, with 20 examples and then a query.
`han/bases` is the mixture of four sparse bases, `han/six-bases` and `han/overlapping` are those of
appendix E, `han/functions` that of section 3.3 and appendix F. Checkpoints are kept, so that
`icl eval` can draw decodability over training.

`han/bases-xs` has four bases of one coordinate and an LSTM, `han/bases-xs-transformer` a
transformer of four layers on that task (docs/han.md).
"""

import dataclasses

from ..models import STANDARD, LSTMConfig
from ..tasks import BasisRegression, MixedRegression, TaskFamily
from ..training.config import Config, OptimizerConfig, TrainingConfig
from .garg import MUON, XS_MODEL
from .presets import register

NOISE = 0.1  # a variance of 0.01


def _paper(task: TaskFamily) -> Config:
    return Config(
        task=task,
        model=dataclasses.replace(STANDARD, max_tokens=None),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=1e-4, schedule="constant", options={"b2": 0.9999}
        ),
        training=TrainingConfig(
            steps=80_000, batch_size=128, checkpoint_every=2_000, keep_checkpoints=40
        ),
    )


# An LSTM tells later tokens about the basis through its state alone, so its state must encode it.
# A small transformer looks the examples up again at each query.
XS_TASK = BasisRegression(dim=4, points=17, bases=4, noise=NOISE)
for _name, _model in (
    ("han/bases-xs", LSTMConfig(layers=2, width=64)),
    ("han/bases-xs-transformer", dataclasses.replace(XS_MODEL, layers=4)),
):
    register(
        _name,
        Config(
            task=XS_TASK,
            layout="tagged",
            model=_model,
            optimizer=MUON,
            training=TrainingConfig(
                steps=4_000, log_every=50, checkpoint_every=100, keep_checkpoints=40
            ),
        ),
    )
register("han/bases", _paper(BasisRegression(noise=NOISE)))
register("han/six-bases", _paper(BasisRegression(dim=24, bases=6, noise=NOISE)))
register("han/eight-bases", _paper(BasisRegression(dim=32, bases=8, noise=NOISE)))
register("han/overlapping", _paper(BasisRegression(bases=8, overlapping=True, noise=NOISE)))
register("han/functions", _paper(MixedRegression(noise=NOISE)))
