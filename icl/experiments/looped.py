"""Looped transformers, and LSTMs beside them.

"Looped transformers are better at learning learning algorithms", Yang, Lee, Nowak and
Papailiopoulos 2023 (arXiv 2311.12424), section 5 and appendix. Loops (b), window (T), schedules and
sizes are those of the public code (Leiay/looped_transformer): one block of 8 heads and width 256,
Adam at 1e-4, batches of 64, 500,000 steps, and Garg et al.'s curriculum at intervals of 5,000
steps. The code's decision trees and sparse weights ignore the curriculum over dimensions; here they
follow it, as in Garg et al.

The LSTM is as large as a transformer of two blocks: 3 layers of width 256, 1.6M parameters. The
`-xs` presets learn the task of `garg/linear-xs`, on two CPU cores.
"""

import dataclasses

from ..models import LoopedTransformerConfig, LSTMConfig
from ..tasks import (
    DecisionTree,
    LinearRegression,
    ReLUNetwork,
    SparseLinearRegression,
    garg_curriculum,
)
from ..training.config import Config
from .garg import LINEAR_XS, PAPER_OPTIMIZER, PAPER_TRAINING
from .presets import register

POSITIONS = 203  # of the public code: 2 * 101 + 1
SLOW = dataclasses.replace(garg_curriculum(), interval=5000)
SLOW_LONG = dataclasses.replace(garg_curriculum(26, 5), interval=5000)

for _name, _task, _loops, _window in (
    ("linear", LinearRegression(), 30, 15),
    ("sparse", SparseLinearRegression(), 20, 10),
    ("tree", DecisionTree(), 70, 15),
    ("relu", ReLUNetwork(), 12, 5),
):
    register(
        f"looped/{_name}",
        Config(
            task=_task,
            model=LoopedTransformerConfig(max_tokens=POSITIONS, loops=_loops, window=_window),
            curriculum=SLOW if _task.points == 41 else SLOW_LONG,
            optimizer=PAPER_OPTIMIZER,
            training=PAPER_TRAINING,
        ),
    )
register(
    "looped/linear-xs",
    LINEAR_XS.replace(
        model=LoopedTransformerConfig(
            layers=1, heads=2, width=64, norm="rms", qk_norm=True, loops=8, window=5
        ),
        training_steps=2_000,
    ),
)
register(
    "lstm/linear",
    Config(
        task=LinearRegression(),
        model=LSTMConfig(),
        curriculum=garg_curriculum(),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
)
register(
    "lstm/linear-xs",
    LINEAR_XS.replace(model=LSTMConfig(layers=2, width=64)),
)
