"""jax-triton ships without types, and is installed only beside a GPU."""

from typing import Any

def __getattr__(name: str) -> Any: ...
