from typing import Any, TypeAlias

Device: TypeAlias = Any

def __getattr__(name: str) -> Any: ...
