"""Checkpoints: Orbax underneath, and a restore that walks back past damaged ones."""

import contextlib
import gc
import logging
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax import tree
from jax.sharding import SingleDeviceSharding

from . import disk, processes

LOGGERS = ("absl", "asyncio")
REMOVALS, REMOVAL_SECONDS = 20, 0.05

Items = dict[str, Any]  # name -> pytree of arrays


class DamagedCheckpoint(UserWarning):
    """A checkpoint that could not be read was passed over."""


class Checkpoints:
    """The checkpoints of a run, by step. A save is on disk, whole, when it returns.

    A checkpoint holds named pytrees, which can be read apart: parameters alone are enough to
    evaluate a run.

    Args:
      folder: where they are; made where it is missing.
      keep: how many of the newest stay; None for all.
      resume: the command that continues from them.
    """

    def __init__(self, folder: Path, keep: int | None, resume: str):
        self._resume = resume
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Orbax would wait for processes that never come here.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="icl"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps that seem to have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Items) -> None:
        """Writes a checkpoint, unless the step has one.

        Raises:
          DiskFull: there is no room. Older checkpoints are as they were, and nothing of this one
            stays.
        """
        if step in self._manager.all_steps():
            return
        saves = {name: ocp.args.StandardSave(on_one_device(item)) for name, item in items.items()}
        room = disk.told(f"the checkpoint of step {step}", self.folder.parent, self._resume)
        with room, _quiet():
            try:
                self._manager.save(step, args=ocp.args.Composite(**saves))
            except Exception as error:
                # Here, where they are quiet, end the tasks that complain when they are deleted.
                traceback.clear_frames(error.__traceback__)
                gc.collect()
                time.sleep(REMOVAL_SECONDS)
                self._remove_partial()
                raise

    def restore(self, abstract: Items, step: int) -> Items:
        """Reads items of a checkpoint; raises what Orbax raises where it is damaged."""
        here = SingleDeviceSharding(jax.local_devices()[0])
        shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)
        shapes = {name: tree.map(shape, a) for name, a in abstract.items()}
        restores = {name: ocp.args.StandardRestore(shape) for name, shape in shapes.items()}
        found = dict(self._manager.restore(step, args=ocp.args.Composite(**restores)).items())
        return tree.map(processes.from_data, found, abstract)

    def restore_newest(self, abstract: Items) -> tuple[int, Items] | None:
        """The newest checkpoint that can be read, with its step; None where there is none.

        Each damaged one on the way gives a `DamagedCheckpoint` warning.
        """
        return next(self.restore_all(abstract), None)

    def restore_all(self, abstract: Items) -> Iterator[tuple[int, Items]]:
        """Every checkpoint that can be read, with its step, from the newest on.

        Each damaged one on the way gives a `DamagedCheckpoint` warning.
        """
        for step in reversed(self.steps()):
            try:
                items = self.restore(abstract, step)
            except Exception as error:  # Orbax raises a different type for each kind of damage
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                warnings.warn(
                    f"checkpoint {self.folder / str(step)} is damaged "
                    f"({type(error).__name__}: {reason}); trying the one before it",
                    DamagedCheckpoint,
                    stacklevel=3,
                )
            else:
                yield step, items

    def restore_to_continue(self, abstract: Items) -> tuple[int, Items] | None:
        """`restore_newest`, with newer checkpoints set aside; then closes."""
        try:
            found = self.restore_newest(abstract)
            self.set_aside_after(found[0] if found else -1)
        finally:
            self.close()
        return found

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step` to a folder `damaged` beside, to be saved anew.

        What saves that were cut short left behind is removed.
        """
        self._remove_partial()
        newer = [s for s in self.steps() if s > step]
        for damaged in newer:
            target = self.folder.parent / "damaged" / str(damaged)
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            (self.folder / str(damaged)).rename(target)
        if newer:
            self._manager.reload()

    def close(self) -> None:
        self._manager.close()

    def _remove_partial(self) -> None:
        # TensorStore's threads may still be writing, and make a folder again.
        for _ in range(REMOVALS):
            parts = list(self.folder.glob("*.orbax-checkpoint-tmp*"))
            for part in parts:
                shutil.rmtree(part, ignore_errors=True)
            if not parts:
                return
            time.sleep(REMOVAL_SECONDS)


def on_one_device(items: Any) -> Any:
    """A pytree of arrays from wherever they are to one device, where any other can read them."""
    if jax.process_count() > 1:
        return processes.on_host(items)  # Orbax refuses the arrays of one process among several
    return jax.device_put(items, jax.local_devices()[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's threads and tasks from printing tracebacks of what its `save` raises."""
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
    """In place of a run's checkpoints in processes that keep none."""

    def steps(self) -> list[int]:
        return []

    def save(self, step: int, items: Items) -> None:
        pass

    def close(self) -> None:
        pass
