"""Prior-fitted networks: predictions on tables, learned from synthetic ones.

Müller et al. 2022 (arXiv 2112.10510) and Hollmann et al. 2023 (TabPFN, arXiv 2207.01848). A row is
a token, without a position, and sees the examples alone. In `pfn/cells`, with the sizes of
nanoTabPFN (Pfefferle et al. 2025, arXiv 2511.03634), every number of a row is a token. The page
docs/tables.md tells what the networks are good for, and `icl.sklearn` applies them to real tables.
"""

import dataclasses

from ..models import CellsConfig, TransformerConfig
from ..tasks import Tables
from ..training.config import Config, OptimizerConfig, TrainingConfig
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
    training=TrainingConfig(steps=3_000, microbatch_size=8),
)

register("pfn/tables-xs", TABLES)
register("pfn/regression-xs", TABLES.replace(task_target="number", training_steps=1_000))

# 32 tables of 150 rows with 5 columns and a label: 4,800 rows of 6 cells, 192 columns of 150.
register(
    "pfn/cells",
    Config(
        task=Tables(points=150, queries=50, columns=5),
        layout="masked",
        model=CellsConfig(columns=5),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, clip_norm=1.0),
        training=TrainingConfig(steps=20_000, batch_size=32),
    ),
)
register(
    "pfn/cells-xs",
    TABLES.replace(
        task=Tables(points=80, queries=16, columns=6),
        model=CellsConfig(columns=6, width=48),
        training_steps=1_000,
    ),
)
