"""Embedders: the part of a model that turns an input into features, before a layout makes tokens.

An embedder is built as `Embedder(kind, features, rngs=...)` and maps inputs `[N, *kind.shape]` to
float32 `[N, features]`, each input by itself; batch statistics are over all N. `takes` names the
kinds of inputs it is for. Add one to `EMBEDDERS` to use it by name.
"""

from abc import abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..tasks.inputs import Images, InputKind, Symbols, Vectors

BYTE = 255.0
CHANNELS = (32, 64)  # of the convolutions


class Embedder(nnx.Module):
    """What every embedder has.

    Args:
      kind: what an input is.
      features: number of features.
      rngs: `nnx.Rngs` with a `params` stream, and a `dropout` stream.
    """

    takes: ClassVar[tuple[type, ...]]

    @abstractmethod
    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs): ...

    @abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features float32 `[N, features]` of inputs `[N, *kind.shape]`."""

    @staticmethod
    def activations(kind: InputKind, features: int) -> int:
        """Numbers an input in the largest of the activations."""
        return max(int(np.prod(kind.shape)), 4 * features)


class LinearEmbedder(Embedder):
    """A linear map of all numbers of an input; bytes are scaled to 0 to 1."""

    takes = (Vectors, Images)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(int(np.prod(kind.shape)), features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(_numbers(x).reshape(len(x), -1))


class MLPEmbedder(Embedder):
    """A GELU MLP with one hidden layer of `4 * features` units; bytes are scaled to 0 to 1."""

    takes = (Vectors, Images)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(int(np.prod(kind.shape)), 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(_numbers(x).reshape(len(x), -1))))


class ConvolutionEmbedder(Embedder):
    """Two 3 x 3 convolutions of stride 2 with ReLUs, the mean over pixels, and a linear map."""

    takes = (Images,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        sizes = (kind.shape[2] if len(kind.shape) == 3 else 1, *CHANNELS)
        self.convolutions = nnx.List(
            nnx.Conv(before, after, kernel_size=(3, 3), strides=2, rngs=rngs)
            for before, after in zip(sizes, sizes[1:])
        )
        self.out = nnx.Linear(CHANNELS[-1], features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = _numbers(x)
        if x.ndim == 3:
            x = x[..., None]
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.out(x.mean(axis=(1, 2)))

    @staticmethod
    def activations(kind: InputKind, features: int) -> int:
        return max(int(np.prod(kind.shape[:2])) * CHANNELS[0] // 4, features)


class SymbolEmbedder(Embedder):
    """A table with a row of features for each symbol."""

    takes = (Symbols,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        assert isinstance(kind, Symbols)
        self.table = nnx.Embed(kind.vocabulary, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.table(x)


def _numbers(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) / BYTE if x.dtype == jnp.uint8 else x


EMBEDDERS: dict[str, type[Embedder]] = {
    "linear": LinearEmbedder,
    "mlp": MLPEmbedder,
    "convolution": ConvolutionEmbedder,
    "table": SymbolEmbedder,
}


def check_embedder(name: str | None, kind: InputKind) -> None:
    """Raises ValueError if inputs of a kind cannot be read by the embedder of a name.

    Without an embedder a layout takes vectors as they are.
    """
    fitting = [known for known, embedder in EMBEDDERS.items() if isinstance(kind, embedder.takes)]
    if name is not None and name not in EMBEDDERS:
        raise ValueError(f"no embedder called {name!r}; there are {', '.join(EMBEDDERS)}")
    if name not in (fitting if name is not None else [None] * isinstance(kind, Vectors)):
        what = "without an embedder" if name is None else f"by the embedder {name}"
        raise ValueError(
            f"{type(kind).__name__.lower()} cannot be read {what}: set model.embedder to "
            f"{' or '.join(fitting)}"
        )
