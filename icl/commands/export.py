"""The command `icl export`."""

from typing import Literal

import tyro

from ..output import say
from ..training import export


def main(arguments: list[str]) -> int:
    """Writes the weights of a run to a file; returns the exit status."""
    tyro.cli(export_run, args=arguments, prog="icl export")
    return 0


def export_run(
    run: tyro.conf.Positional[str],
    file: tyro.conf.Positional[str],
    precision: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Writes the newest checkpoint of a run to one file, which predicts without the folder.

    Args:
      run: Folder of the run.
      file: File to write, such as mine.npz.
      precision: Dtype of the saved parameters; float16 halves the size of the file.
      overwrite: Replace a file that exists.
    """
    path = export(run, file, precision=precision, overwrite=overwrite)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
