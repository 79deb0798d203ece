"""Scores of the methods beside ours, kept in a file so that a run of ours need not fit them."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from .methods import METHODS
from .protocol import FLOOR, MOST_TEST_ROWS, SIZES, SPLITS, score

# What scores depend on besides the method; files of another protocol are refused.
PROTOCOL = {"most_test_rows": MOST_TEST_ROWS, "floor": FLOOR}


def fit_baselines(
    sets: Collection[str],
    sizes: Collection[int] = SIZES,
    splits: int = SPLITS,
    methods: Collection[str] = tuple(METHODS),
    tell: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Scores of methods.

    Args:
      sets: names of tables.
      sizes: numbers of training rows.
      splits: number of splits of each.
      methods: names in `METHODS`.
      tell: is called with a line of progress.
      keep: is called with what has been found after each method.

    Returns:
      The `protocol`, `sets`, `sizes`, `splits`, and by method `scores` (see `protocol.Scores`)
      and `seconds`.
    """
    found: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sets": list(sets),
        "sizes": list(sizes),
        "splits": splits,
        "scores": {},
        "seconds": {},
    }
    for name in methods:
        tell(f"{name}: {len(sets)} tables, {len(sizes)} sizes, {splits} splits")
        scores, seconds = score(METHODS[name], sets, sizes, splits, one_hot=True)
        found["scores"][name], found["seconds"][name] = scores, seconds
        keep(found)
    return found


def read_baselines(
    path: Path, sets: Collection[str], sizes: Collection[int], splits: int
) -> dict[str, Any]:
    """The part of a file of `fit_baselines` that some tables, sizes and splits need.

    Raises:
      ValueError: the file has another protocol, or lacks a table, a size or splits.
    """
    found = json.loads(path.read_text())
    if found["protocol"] != PROTOCOL:
        raise ValueError(f"{path} has the protocol {found['protocol']}, not {PROTOCOL}")
    wanted = {"tables": sets, "sizes": sizes}
    for kind, have in (("tables", found["sets"]), ("sizes", found["sizes"])):
        if lacking := [one for one in wanted[kind] if one not in have]:
            raise ValueError(f"{path} has no {kind} {lacking}: write it again for them")
    if splits > found["splits"]:
        raise ValueError(f"{path} has {found['splits']} splits, fewer than {splits}")
    chosen = {
        method: {
            name: {
                str(size): {
                    metric: values[:splits] for metric, values in scores[name][str(size)].items()
                }
                for size in sizes
            }
            for name in sets
        }
        for method, scores in found["scores"].items()
    }
    return found | {
        "sets": list(sets), "sizes": list(sizes), "splits": splits, "scores": chosen,
    }  # fmt: skip
