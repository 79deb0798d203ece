"""Child processes of tests: forks of one interpreter that has imported the library already.

A child has its own JAX backend, devices, signals and exit handlers, like a process that a user
starts. It does not pay for the imports, which cost seconds of CPU time.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from icl.models import SelfAttentionConfig

from .helpers import tiny

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.icl.helpers"])
# Without this nobody waits for the interpreter, and its CPU time is not counted as the tests'.
atexit.register(multiprocessing.forkserver._forkserver._stop)


def start(
    program: Callable[..., Any], *arguments: Any, out: Path, cwd: Path | None = None, devices=1
) -> BaseProcess:
    """Starts `program(*arguments)` in a process of its own.

    Args:
      program: a function at the top of a test module.
      arguments: the arguments of the function.
      out: the file for standard output; standard error goes to the same name with `.err`.
      cwd: the working directory; None for that of the test.
      devices: number of CPU devices.

    Returns:
      The process; `exitcode` becomes 1 if the function raised an error.
    """
    for path in (out, out.with_suffix(".err")):  # for tests that read them before the child starts
        path.touch()
    process = _context.Process(target=_run, args=(program, arguments, out, cwd, devices))
    process.start()
    return process


def small(**changes):
    """Settings of a run whose programs compile in half the time of `tiny`'s."""
    model = SelfAttentionConfig(heads=4, key_size=64, softmax="all", init_scale=1.0)
    return tiny(model=model, layout="concatenated").replace(**changes)


def _run(program, arguments, out, cwd, devices):
    import jax

    for descriptor, path in ((1, out), (2, out.with_suffix(".err"))):
        with open(path, "w") as file:
            os.dup2(file.fileno(), descriptor)
    if cwd is not None:
        os.chdir(cwd)
    jax.config.update("jax_num_cpu_devices", devices)
    # JAX's check of key reuse takes a key that `shard_map` hands to each device for a used one.
    jax.config.update("jax_debug_key_reuse", False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    status = 0
    try:
        program(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    # multiprocessing skips the exit handlers, which JAX and the library rely on.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)
