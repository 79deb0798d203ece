from ..dispatch import Implementation
from .xla import chunked

IMPLEMENTATION = Implementation(chunked, refusal=lambda *_: "not written yet")
