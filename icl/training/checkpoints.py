"""Checkpoints: saved by Orbax with a checksum of every array; restores skip damaged ones."""

import contextlib
import gc
import json
import logging
import os
import re
import shutil
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import tree
from jax.sharding import SingleDeviceSharding

from . import disk, processes
from .disk import RunError

CHECKSUMS = "checksums"  # saved as another item, so it exists if the arrays do
SHOWN = 3  # number of arrays that an error names
LOGGERS = ("absl", "asyncio")
REMOVALS, REMOVAL_SECONDS = 20, 0.05

Items = dict[str, Any]  # name -> pytree of arrays
# Shapes of the items of a checkpoint, or a function from a step to those shapes.
Abstract = Items | Callable[[int], Items]


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint in a folder, ascending; empty if there is no such folder.

    Raises:
      RunError: the system refuses the folder.
    """
    with disk.usable(folder):
        names = os.listdir(folder) if folder.exists() else []  # Orbax's own listing omits files
    return sorted(int(name) for name in names if name.isdecimal())


class DamagedCheckpoint(UserWarning):
    """A checkpoint was skipped because its files changed after they were written."""


class Checkpoints:
    """The checkpoints of a run, by step. `save` returns after the checkpoint is complete on disk.

    A checkpoint holds named pytrees ("items") that can be read separately: parameters alone are
    enough to evaluate a run.

    Args:
      folder: folder of the checkpoints; it is made if it does not exist.
      keep: number of newest checkpoints to keep; None for all.
      resume: the command that continues the run, for errors.
      settings: from a step to the settings at that step, by name, as JSON. `restore` refuses a
        checkpoint that was made with other values of these settings.

    Raises:
      RunError: the system refuses the folder.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | None,
        resume: str,
        settings: Callable[[int], dict[str, Any]] = lambda step: {},
    ):
        self._resume = resume
        self._settings = settings
        self.folder = Path(folder).absolute()
        with disk.usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        # Orbax would wait for the other processes, which never save.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="icl"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        with disk.usable(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps that have a folder of a checkpoint, in ascending order."""
        return steps_in(self.folder)

    def save(self, step: int, items: Items) -> None:
        """Writes a checkpoint, unless one of this step exists.

        Raises:
          DiskFull: the disk is full. Older checkpoints are unchanged, and the incomplete one is
            removed.
          CannotSave: the system refuses a write for another reason. Older checkpoints are
            unchanged, and the incomplete one is removed.
        """
        if self._path(step).exists():
            return
        room = disk.saving(f"the checkpoint of step {step}", self.folder.parent, self._resume)
        with room, _quiet():
            try:
                saves: dict[str, Any] = {
                    name: ocp.args.StandardSave(on_one_device(item)) for name, item in items.items()
                }
                written = {
                    "step": step,
                    "settings": self._settings(step),
                    "arrays": _checksums(items),
                }
                saves[CHECKSUMS] = ocp.args.JsonSave(written | {"crc32": _seal(written)})
                self._manager.save(step, args=ocp.args.Composite(**saves))
            except Exception as error:
                # Orbax's tasks print warnings when they are deleted, so delete them here.
                traceback.clear_frames(error.__traceback__)
                gc.collect()
                time.sleep(REMOVAL_SECONDS)
                with contextlib.suppress(OSError):
                    self._remove_partial()
                raise

    def restore(self, abstract: Items, step: int) -> Items:
        """Reads items of a checkpoint.

        Raises:
          RunError: the checkpoint has arrays of other shapes or was made with other settings, or
            the system refuses to read it.
          DamagedCheckpoint: the files changed after they were written.
        """
        written = None
        try:
            written = self._written(step)
            if written is not None:
                self._check_fit(step, abstract, written)
            items = self._read(abstract, step)
        except (RunError, DamagedCheckpoint):
            raise
        except Exception as error:  # Orbax raises a different type for each kind of damage
            if said := disk.refused(error) or self._refused(step):
                raise RunError(
                    f"checkpoint {step} may be whole, but "
                    f"{disk.refusal(said.filename or self._path(step), said)}; nothing was changed"
                ) from error
            if written is None:
                self._check_fit_without_checksums(step, abstract, error)
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            raise DamagedCheckpoint(f"{type(error).__name__}: {reason}") from error
        if written is not None:
            read = _checksums(items)
            for item, arrays in read.items():
                for name, array in arrays.items():
                    if array != written[item][name]:
                        raise DamagedCheckpoint(f"wrong checksum of {item}{name}")
        return items

    def restore_newest(self, abstract: Abstract) -> tuple[int, Items] | None:
        """Step and items of the newest checkpoint that can be read; None if there is none.

        Each damaged checkpoint that is skipped gives a `DamagedCheckpoint` warning.

        Raises:
          RunError: as `restore`.
        """
        return next(self.restore_all(abstract), None)

    def restore_all(self, abstract: Abstract) -> Iterator[tuple[int, Items]]:
        """Step and items of every checkpoint that can be read, newest first.

        Each damaged checkpoint that is skipped gives a `DamagedCheckpoint` warning.

        Raises:
          RunError: as `restore`.
        """
        for step in reversed(self.steps()):
            try:
                items = self.restore(abstract(step) if callable(abstract) else abstract, step)
            except DamagedCheckpoint as damage:
                warnings.warn(
                    f"checkpoint {self._path(step)} is damaged ({damage}); "
                    "trying the one before it",
                    DamagedCheckpoint,
                    stacklevel=3,
                )
            else:
                yield step, items

    def restore_to_continue(
        self, abstract: Abstract, become: Callable[[int, Items], Items] = lambda step, items: items
    ) -> tuple[int, Items] | None:
        """Restores the newest checkpoint that can be read, sets newer ones aside, and closes.

        An error leaves all files unchanged.

        Args:
          abstract: as for `restore_newest`.
          become: from step and items to the items to continue with; raises if they do not fit.

        Raises:
          RunError: as `restore`, or all checkpoints are damaged.
        """
        try:
            found = self.restore_newest(abstract)
            if found is None and self.steps():
                raise RunError(self.all_damaged())
            if found is not None:
                found = found[0], become(*found)
            with disk.usable(self.folder):
                self.set_aside_after(found[0] if found else -1)
        finally:
            self.close()
        return found

    def all_damaged(self) -> str:
        """The error message if no checkpoint can be read."""
        return (
            f"every checkpoint in {self.folder} is damaged; nothing was changed. Restore a "
            f"copy, or start again from step 0 with: mv {self.folder} "
            f"{self.folder.with_name('damaged-checkpoints')} && {self._resume}"
        )

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step` into the folder `damaged` beside this one.

        Files of interrupted saves are removed.
        """
        self._remove_partial()
        newer = [s for s in self.steps() if s > step]
        for damaged in newer:
            target = disk.free_name(self.folder.parent / "damaged" / str(damaged))
            target.parent.mkdir(exist_ok=True)
            self._path(damaged).rename(target)
        if newer:
            self._manager.reload()

    def close(self) -> None:
        self._manager.close()

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _read(self, abstract: Items, step: int) -> Items:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)
        shapes = {name: tree.map(shape, a) for name, a in abstract.items()}
        restores = {name: ocp.args.StandardRestore(shape) for name, shape in shapes.items()}
        found = dict(self._manager.restore(step, args=ocp.args.Composite(**restores)).items())
        return tree.map(processes.from_data, found, abstract)

    def _written(self, step: int) -> dict[str, Any] | None:
        """The checksums of a checkpoint; None if it has none, as in old runs."""
        if CHECKSUMS not in os.listdir(self._path(step)):
            return None
        args = ocp.args.Composite(**{CHECKSUMS: ocp.args.JsonRestore()})
        written = dict(self._manager.restore(step, args=args)[CHECKSUMS])
        if written.pop("crc32") != _seal(written):
            raise DamagedCheckpoint("wrong checksum of the checksums")
        if written["step"] != step:
            raise DamagedCheckpoint(f"it is the checkpoint of step {written['step']}")
        # Compare common settings only: another version may have others.
        settings = self._settings(step)
        different = [
            f"{name} is {theirs!r} in the checkpoint, {settings[name]!r} now"
            for name, theirs in written["settings"].items()
            if name in settings and settings[name] != theirs
        ]
        if different:
            raise RunError(self._misfit(step, "; ".join(different)))
        return {
            item: {name: (shape, dtype, crc) for name, (shape, dtype, crc) in named.items()}
            for item, named in written["arrays"].items()
        }

    def _check_fit(self, step: int, abstract: Items, written: dict[str, Any]) -> None:
        wanted = _shapes(abstract)
        different = [
            f"{item}{name} is {_shown(has.get(name))} in the checkpoint, "
            f"{_shown(wants.get(name))} now"
            for item, wants in wanted.items()
            for has in [{name: array[:2] for name, array in written[item].items()}]
            for name in dict.fromkeys([*has, *wants])
            if has.get(name) != wants.get(name)
        ]
        if different:
            more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            raise RunError(self._misfit(step, f"{'; '.join(different[:SHOWN])}{more}"))

    def _check_fit_without_checksums(self, step: int, abstract: Items, error: Exception) -> None:
        """Raises RunError if the shapes saved by Orbax differ; returns if they cannot be read."""
        for item, wants in _shapes(abstract).items():
            try:
                file = self._path(step) / item / "_METADATA"
                arrays = json.loads(file.read_bytes())["tree_metadata"].values()
                has = [a["value_metadata"].get("write_shape") for a in arrays]
                has = sorted(shape for shape in has if shape is not None)
            except (OSError, ValueError, TypeError, LookupError, AttributeError):
                return
            if has != sorted(shape for shape, _ in wants.values()):
                raise RunError(
                    self._misfit(step, f"its {item} have other shapes or another number of arrays")
                ) from error

    def _misfit(self, step: int, what: str) -> str:
        return (
            f"checkpoint {self._path(step)} does not fit the settings: {what}. Was config.json "
            "edited, or another optimiser given? Restore the old settings and optimiser, and "
            "change settings by options of icl train --resume; nothing was changed"
        )

    def _refused(self, step: int) -> OSError | None:
        """The system's error for a checkpoint's files; Orbax may report them as missing."""

        def fail(error: OSError) -> None:
            raise error

        try:
            for folder, _, files in os.walk(self._path(step), onerror=fail):
                for name in files:
                    os.close(os.open(Path(folder) / name, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            return disk.refused(error)
        return None

    def _remove_partial(self) -> None:
        # TensorStore's threads may still write, and so make a removed folder again.
        for _ in range(REMOVALS):
            parts = list(self.folder.glob("*.orbax-checkpoint-tmp*"))
            for part in parts:
                shutil.rmtree(part, ignore_errors=True)
            if not parts:
                return
            time.sleep(REMOVAL_SECONDS)


def on_one_device(items: Any) -> Any:
    """A pytree of arrays, moved to a single device, so that it can be restored on any devices."""
    if jax.process_count() > 1:
        return processes.on_host(items)  # Orbax refuses local arrays of one of several processes
    return jax.device_put(items, jax.local_devices()[0])


def _shapes(items: Items) -> dict[str, Any]:
    """Shape and dtype of every array, by item and name; a key counts as its key data."""

    def shape(leaf: Any) -> tuple[list[int], str]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return list(leaf.shape), str(leaf.dtype)

    return {
        item: {
            jax.tree_util.keystr(path): shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        }
        for item, arrays in items.items()
    }


def carried_over(items: Items, abstract: Items) -> Items:
    """The arrays of `items` in the tree structure of `abstract`.

    Settings may change the structure of an optimiser's state without changing its arrays: gradient
    clipping has a place in the structure but no arrays.

    Raises:
      RunError: names, shapes or dtypes of the arrays differ.
    """
    # Remove positions in tuples from the names.
    bare = lambda items: {
        item: [(re.sub(r"\[\d+\]", "", name), array) for name, array in arrays.items()]
        for item, arrays in _shapes(items).items()
    }
    if bare(items) != bare(abstract):
        raise RunError(
            "the state of the optimiser in the checkpoint has other arrays than the optimiser to "
            "continue with; pass an optimiser of the same kind. Nothing was changed"
        )
    return {
        name: tree.unflatten(tree.structure(abstract[name]), tree.leaves(arrays))
        for name, arrays in items.items()
    }


def _checksums(items: Items) -> dict[str, Any]:
    """Shape, dtype and CRC-32 of every array, by item and name."""
    shapes = _shapes(items)
    for item, arrays in items.items():
        for name, leaf in zip(shapes[item], tree.leaves(arrays), strict=True):
            data: Any = np.ascontiguousarray(processes.on_host(leaf)).reshape(-1).view(np.uint8)
            shapes[item][name] = (*shapes[item][name], zlib.crc32(data))
    return shapes


def _seal(written: dict[str, Any]) -> int:
    """A checksum of the checksums, which can be damaged as the arrays can."""
    return zlib.crc32(json.dumps(written, sort_keys=True).encode())


def _shown(array: tuple[list[int], str] | None) -> str:
    return "missing" if array is None else f"{array[1]} {array[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's threads and tasks, which print tracebacks when `save` raises."""
    silence = lambda record: False
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    for name in LOGGERS:
        logging.getLogger(name).addFilter(silence)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(silence)


class NoCheckpoints:
    """Stands for a run's checkpoints in processes that save none."""

    def steps(self) -> list[int]:
        return []

    def save(self, step: int, items: Items) -> None:
        pass

    def close(self) -> None:
        pass
