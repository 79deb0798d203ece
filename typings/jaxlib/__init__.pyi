"""JAX's compiled modules ship without types, so that parts of JAX's signatures have none."""

from typing import Any

def __getattr__(name: str) -> Any: ...
