"""A message before JAX aborts this process, as it does if another process is lost.

JAX aborts from a C++ thread of its own. Python runs its signal handlers in the main thread only,
so that the handler of SIGABRT must be a C function.
"""

import ctypes
import os
import signal
from collections.abc import Callable

_explanation: Callable[[], str] | None = None


def explain_abort(explanation: Callable[[], str] | None) -> None:
    """Sets what an abort prints before the process exits with status 1.

    Args:
      explanation: returns the message; None for an abort like that of any other program.
    """
    global _explanation
    _explanation = explanation
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    set_handler(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(signum: int) -> None:
    if _explanation is not None:  # otherwise the abort goes on after this function
        os.write(2, f"icl: {_explanation()}\n".encode())
        os._exit(1)
