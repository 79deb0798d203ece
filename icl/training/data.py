"""The arrays that a family's samplers draw from: loading, and checks by fingerprint."""

import functools
import hashlib
from typing import Any

import jax
import numpy as np

from ..data import stamps
from ..tasks import Data, TaskFamily
from .disk import RunError

Fingerprint = dict[str, Any]  # {"source": str | None, "sha256": str}


def load_data(family: TaskFamily) -> Data:
    """The NumPy arrays that `family.load_data` returns, cached until a file changes.

    Raises:
      RunError: the file cannot be read.
      TypeError: a leaf is not an array of numbers.
    """
    try:
        return _load(family, stamps(family.data_files))
    except OSError as error:
        raise RunError(
            f"the data of {type(family).__name__}, {error.filename or family.data_source}, cannot "
            f"be read: {error.strerror or error}"
        ) from error


@functools.lru_cache(maxsize=4)
def _load(family: TaskFamily, stamp: Any) -> Data:
    data = jax.tree.map(np.asarray, family.load_data())
    for leaf in jax.tree.leaves(data):
        if leaf.dtype.kind not in "biuf":
            raise TypeError(
                f"load_data of {type(family).__name__} must return arrays of numbers, got one of "
                f"dtype {leaf.dtype}"
            )
    return data


def fingerprint(family: TaskFamily) -> Fingerprint | None:
    """Source and checksum of a family's data; None for a family without data.

    Raises:
      RunError, TypeError: as `load_data`.
    """
    data = load_data(family)
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        return None
    digest = hashlib.sha256()
    for path, leaf in leaves:
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return {"source": family.data_source, "sha256": digest.hexdigest()}


def check_same(written: Fingerprint | None, family: TaskFamily, who: str) -> None:
    """Raises RunError if a family's data differ from those of a run.

    Args:
      written: the fingerprint of the run's data; None for a run without data.
      family: the family whose data are checked.
      who: names the run in the error.
    """
    now = fingerprint(family)
    if (written or {}).get("sha256") == (now or {}).get("sha256"):
        return
    place = lambda it: "no data" if it is None else f"{it['source']} (sha256 {it['sha256'][:12]})"
    raise RunError(
        f"{who} was trained on other data: {place(written)} then, {place(now)} now. Restore "
        "the data it was trained on, or start another run; nothing was changed"
    )
