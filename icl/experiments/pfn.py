"""Prior-fitted networks: predictions on tables, learned from synthetic ones.

Müller et al. 2022 (arXiv 2112.10510) and Hollmann et al. 2023 (TabPFN, arXiv 2207.01848). A row is
a token, without a position, and sees the examples alone. docs/tables.md tells what they are good
for, and `icl.sklearn` applies them to real tables.
"""

import dataclasses

from ..models import TransformerConfig
from ..tasks import Tables
from ..training.config import Config, TrainingConfig
from .garg import MUON
from .presets import register

ROWS = TransformerConfig(
    layers=4,
    heads=2,
    width=64,
    embedder="row",
    position_encoding="none",
    examples_only=True,
    norm="rms",
    qk_norm=True,
)
# At most 128 examples and 20 columns; other tables are shown in parts by `icl.sklearn`.
TABLES = Config(
    task=Tables(points=144, queries=16, columns=20),
    layout="masked",
    model=ROWS,
    optimizer=dataclasses.replace(MUON, clip_norm=1.0),
    training=TrainingConfig(steps=4_000, microbatch_size=8),
)

register("pfn/tables-xs", TABLES)
register("pfn/regression-xs", TABLES.replace(task_target="number", training_steps=2_000))
