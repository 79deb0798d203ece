"""Exported weights: a trained model in one small file, without its run folder.

The file is NumPy's `.npz`, a zip archive. Its array `about` is JSON: the version of the format, the
settings of the run, the step, and the versions of the libraries. The other arrays are the model's
variables, by their path, such as `params/model/read_in/kernel`.
"""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from . import disk
from .config import config_from_dict, config_to_dict
from .disk import RunError, write_whole
from .learner import Learner, Variables
from .prediction import Predictor
from .run import Run, named, plain, versions

FORMAT = 1
Precision = Literal["float32", "float16"]
REMEDY = "bring back a copy of it, or export the run again"


class Exported:
    """A trained model read from a file.

    Attributes:
      path: the file.
      config: the settings of the run.
      step: number of training steps made.
      made_with: versions of libraries, by name, when the file was written.
      variables: all variables of the model, for `Learner(config).predict`.
    """

    def __init__(self, path: Path, learner: Learner, about: dict[str, Any], variables: Variables):
        self.path = path
        self.config = learner.config
        self.step = int(about["step"])
        self.made_with: dict[str, str] = dict(about["made_with"])
        self.variables = variables
        self._predictor = Predictor(learner, variables)

    def predict(self, x_context: Any, y_context: Any, x_query: Any) -> np.ndarray:
        """As `Run.predict`: the labels of queries from examples, NumPy arrays in and out."""
        return self._predictor(x_context, y_context, x_query)

    def __repr__(self) -> str:
        return f"Exported({str(self.path)!r})"


def export(
    run: Run | str | Path,
    file: str | Path,
    *,
    precision: Precision = "float32",
    overwrite: bool = False,
) -> Path:
    """Writes the newest checkpoint of a run to a file that predicts without the run's folder.

    Args:
      run: the run, or its folder.
      file: the file to write, by convention with the suffix `.npz`.
      precision: dtype of the saved parameters. float16 halves the size of the file and keeps three
        digits.
      overwrite: whether to replace a file that exists.

    Returns:
      The path of the file.

    Raises:
      RunError: the run cannot be read, or the file exists.
      ValueError: a parameter is too large for the precision.
      DiskFull, CannotSave: the file cannot be written.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}")
    path = named(file)
    with disk.usable(path):
        if path.exists() and not overwrite:
            raise RunError(
                f"{path} exists; choose another name, or replace it with overwrite=True "
                "(--overwrite on the command line)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
    run = run if isinstance(run, Run) else Run.open(run)
    step, variables = run.variables()
    arrays = {}
    for name, leaf in _named_leaves(variables).items():
        array = np.asarray(leaf)
        if array.dtype == np.float32:
            with np.errstate(over="ignore"):  # the next line finds infinities
                array = array.astype(precision)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite in {precision}")
        arrays[name] = array
    about = {
        "format": FORMAT,
        "config": plain(config_to_dict(run.config_at(step))),
        "step": step,
        "made_with": versions(),
    }
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(json.dumps(about, allow_nan=False)), **arrays)
    write_whole(path, content.getvalue())
    return path


def load_exported(file: str | Path) -> Exported:
    """Reads a file that `export` wrote.

    Raises:
      RunError: there is no such file, it was damaged or written by something else, or its settings
        cannot be read by this version.
    """
    path = named(file)
    with disk.usable(path):
        if not path.exists():
            raise RunError(f"{path} does not exist; `icl export RUN FILE` writes such a file")
        if path.is_dir() or not zipfile.is_zipfile(path):
            raise RunError(f"{path} is no exported run; `icl export RUN FILE` writes such a file")
        try:
            with np.load(path) as content:
                arrays = {name: content[name] for name in content.files}
            about = json.loads(str(arrays.pop("about")))
            written, settings = about["format"], about["config"]
        except KeyError as error:
            raise RunError(f"{path} cannot be read: it has no {error}; {REMEDY}") from error
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RunError(f"{path} cannot be read: {error}; {REMEDY}") from error
        if written != FORMAT:
            raise RunError(
                f"{path} has the format {written!r}, and this version of icl reads {FORMAT}; use "
                "the version that wrote it"
            )
        try:
            learner = Learner(config_from_dict(settings))
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        try:
            return Exported(path, learner, about, _variables(learner, arrays))
        except (ValueError, KeyError) as error:
            raise RunError(f"{path} cannot be read: {error}; {REMEDY}") from error


def _variables(learner: Learner, arrays: dict[str, np.ndarray]) -> Variables:
    """The variables of a learner from arrays by name; ValueError if they are not its own."""
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    wanted = _named_leaves(shapes)
    if set(arrays) != set(wanted):
        raise ValueError(
            "its arrays are not those of its settings: "
            + ", ".join(sorted(set(arrays) ^ set(wanted))[:3])
        )
    found = []
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(
                f"{name} has the shape {arrays[name].shape}, and its settings say {leaf.shape}"
            )
        found.append(arrays[name].astype(leaf.dtype))
    params, state = jax.tree.unflatten(jax.tree.structure((shapes.params, shapes.state)), found)
    # Keys of random layers are not used in predictions.
    keys = learner.init(jax.random.key(0)).keys if jax.tree.leaves(shapes.keys) else shapes.keys
    return Variables(params, state, keys)


def _named_leaves(variables: Variables) -> dict[str, Any]:
    """Parameters and state by name, in the order of the leaves."""
    kept = {"params": variables.params, "state": variables.state}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
    }
