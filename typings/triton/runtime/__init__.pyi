from typing import Any

interpreter: Any
