"""Checkpoints: Orbax underneath, and a restore that walks back past damaged ones."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax import tree

Items = dict[str, Any]  # name -> pytree of arrays


class DamagedCheckpoint(UserWarning):
    """A checkpoint that could not be read was passed over."""


class Checkpoints:
    """The checkpoints of a run, by step. A save is on disk, whole, when it returns.

    A checkpoint holds named pytrees, which can be read apart: parameters alone are enough to
    evaluate a run.

    Args:
      folder: where they are; made at the first save.
      keep: how many of the newest stay; None for all.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps that seem to have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Items) -> None:
        """Writes a checkpoint, unless the step has one."""
        if step not in self._manager.all_steps():
            saves = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**saves))

    def restore(self, abstract: Items, step: int) -> Items:
        """Reads items of a checkpoint; raises what Orbax raises where it is damaged."""
        shapes = {
            name: tree.map(ocp.utils.to_shape_dtype_struct, a) for name, a in abstract.items()
        }
        restores = {name: ocp.args.StandardRestore(shape) for name, shape in shapes.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**restores)).items())

    def restore_newest(self, abstract: Items) -> tuple[int, Items] | None:
        """The newest checkpoint that can be read, with its step; None where there is none.

        Each damaged one on the way gives a `DamagedCheckpoint` warning.
        """
        for step in reversed(self.steps()):
            try:
                return step, self.restore(abstract, step)
            except Exception as error:  # Orbax raises a different type for each kind of damage
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                warnings.warn(
                    f"checkpoint {self.folder / str(step)} is damaged "
                    f"({type(error).__name__}: {reason}); trying the one before it",
                    DamagedCheckpoint,
                    stacklevel=2,
                )
        return None

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints newer than `step` to a folder `damaged` beside, to be saved anew."""
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
