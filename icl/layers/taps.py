"""Taps: places of a model where an analysis reads or replaces activations.

Layers pass activations through `tap`, which returns them unchanged unless taps are installed. Taps
are installed while a function is traced, so a model without taps compiles to the program that it
would be without this file. `icl.analysis.instrument` is the interface for users.

The sites, and the axes of their activations, for B prompts of T tokens:
"residual" `[B, T, width]`, the input of the first layer, then the output of each layer;
"mixer" and "mlp" `[B, T, width]`, what the parts of a block add;
"heads" `[B, T, N, H]`, the mixed values of each head, before the output projection;
"pattern" `[B, N, T, S]`, the weights with which a query (row) sums the values.
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

SITES = ("residual", "mixer", "mlp", "heads", "pattern")
Edits = dict[tuple[str, int], list[Callable[[jax.Array], jax.Array]]]


class Taps:
    """Activations to keep and to replace, in one call of a model.

    Args:
      keep: sites whose activations are kept in `found`.
      edits: by site and layer, functions that replace the activation, applied in order.

    Attributes:
      found: by site, the activations of each layer, after the edits.
      seen: by site, the number of layers.
    """

    def __init__(self, keep: tuple[str, ...] = (), edits: Edits | None = None):
        self._keep, self._edits = keep, edits or {}
        self.found: dict[str, list[jax.Array]] = {}
        self.seen: dict[str, int] = {}

    def wants(self, site: str) -> bool:
        """Whether any activation of a site is kept or replaced."""
        return site in self._keep or any(of == site for of, _ in self._edits)

    def visit(self, site: str, value: jax.Array) -> jax.Array:
        """The activation of the next layer at a site, replaced if an edit says so."""
        layer = self.seen.get(site, 0)
        self.seen[site] = layer + 1
        for edit in self._edits.get((site, layer), []):
            value = edit(value)
        if site in self._keep:
            self.found.setdefault(site, []).append(value)
        return value


_installed: ContextVar[Taps | None] = ContextVar("taps", default=None)


@contextmanager
def installed(taps: Taps | None):
    """Installs taps for the models that are called inside; None for a model without sites."""
    token = _installed.set(taps)
    try:
        yield taps
    finally:
        _installed.reset(token)


def tap(site: str, value: jax.Array) -> jax.Array:
    """The activation, or what an installed tap replaces it with."""
    taps = _installed.get()
    return value if taps is None else taps.visit(site, value)


def tap_heads(
    mixed: jax.Array, value: Callable[[], jax.Array], weights: Callable[[], jax.Array]
) -> jax.Array:
    """Taps the pattern and the mixed values of the heads of a layer.

    Args:
      mixed: mixed values `[B, T, N, H]`, as the fused function computes them.
      value: gives the values `[B, S, N, H]`; called only if a tap replaces the pattern.
      weights: computes the pattern `[B, N, T, S]`; called only if a tap wants it.

    Returns:
      The mixed values: those given, unless a tap replaces the pattern or the values of a head.
    """
    taps = _installed.get()
    if taps is None:
        return mixed
    if taps.wants("pattern"):
        own = weights()
        pattern = taps.visit("pattern", own)
        if pattern is not own:
            mixed = jnp.einsum(
                "bnts,bsnh->btnh", pattern, value().astype(pattern.dtype), precision="highest"
            ).astype(mixed.dtype)
    return taps.visit("heads", mixed)


def repeat(count: Any, body: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    """Applies `body` a number of times: a loop on the device, unrolled if taps are installed."""
    if _installed.get() is not None and isinstance(count, int):
        for _ in range(count):
            start = body(start)
        return start
    return jax.lax.fori_loop(0, count, lambda _, x: body(x), start)
