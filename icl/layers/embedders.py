"""Embedders: the part of a model that turns inputs into features, before a layout makes tokens.

An embedder is built as `Embedder(kind, features, rngs=...)` and maps inputs `[N, *kind.shape]` to
float32 `[N, features]`, each input independently; batch statistics are over all N. `takes` lists
the supported input kinds. Add an embedder to `EMBEDDERS` to use it by name.
"""

from abc import abstractmethod
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..tasks.inputs import Images, InputKind, Rows, Symbols, Vectors
from .resnet import ResNet

BYTE = 255.0
CHANNELS = (32, 64)  # output channels of the convolutions


class Embedder(nnx.Module):
    """Base class of embedders.

    Args:
      kind: kind of the inputs.
      features: number of features of an embedded input.
      rngs: `nnx.Rngs` with the streams `params` and `dropout`.
    """

    takes: ClassVar[tuple[type, ...]]

    @abstractmethod
    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs): ...

    @abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features float32 `[N, features]` of inputs `[N, *kind.shape]`."""

    @staticmethod
    def activations(kind: InputKind, features: int) -> int:
        """Number of values an input in the largest activation."""
        return max(int(np.prod(kind.shape)), 4 * features)


class LinearEmbedder(Embedder):
    """A linear map of the flattened input; bytes are first scaled to the range 0 to 1."""

    takes = (Vectors, Images)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(int(np.prod(kind.shape)), features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(_as_floats(x).reshape(len(x), -1))


class MLPEmbedder(Embedder):
    """A GELU MLP with `4 * features` hidden units; bytes are first scaled to the range 0 to 1."""

    takes = (Vectors, Images)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(int(np.prod(kind.shape)), 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(_as_floats(x).reshape(len(x), -1))))


class ConvolutionEmbedder(Embedder):
    """Two 3 x 3 convolutions of stride 2 with ReLU, then the mean over pixels and a linear map."""

    takes = (Images,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        sizes = (_channels(kind), *CHANNELS)
        self.convolutions = nnx.List(
            nnx.Conv(before, after, kernel_size=(3, 3), strides=2, rngs=rngs)
            for before, after in zip(sizes, sizes[1:])
        )
        self.out = nnx.Linear(CHANNELS[-1], features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = _with_channels(_as_floats(x))
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.out(x.mean(axis=(1, 2)))

    @staticmethod
    def activations(kind: InputKind, features: int) -> int:
        return max(int(np.prod(kind.shape[:2])) * CHANNELS[0] // 4, features)


class ResNetEmbedder(Embedder):
    """The ResNet of Chan et al. 2022 (arXiv 2205.05055), with batch normalisation."""

    takes = (Images,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        self.resnet = ResNet(_channels(kind), features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.resnet(_with_channels(_as_floats(x)))

    @staticmethod
    def activations(kind: InputKind, features: int) -> int:
        height, width = kind.shape[:2]
        return ResNet.activations(height, width, features)


class SymbolEmbedder(Embedder):
    """A table of learned features, one row for each symbol."""

    takes = (Symbols,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        assert isinstance(kind, Symbols)
        self.table = nnx.Embed(kind.vocabulary, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.table(x)


class RowEmbedder(Embedder):
    """A linear map of the known values, of marks of missing values, and of the share of known ones.

    Known values are scaled as if all were known, so that tables with few columns in use have
    features as large as those of tables with many.
    """

    takes = (Rows,)

    def __init__(self, kind: InputKind, features: int, *, rngs: nnx.Rngs):
        assert isinstance(kind, Rows)
        self.linear = nnx.Linear(2 * kind.columns + 1, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        missing = jnp.isnan(x)
        share = 1 - missing.mean(axis=1, keepdims=True, dtype=x.dtype)
        least = 1 / x.shape[1]
        values = jnp.where(missing, 0, x) * jax.lax.rsqrt(jnp.maximum(share, least))
        return self.linear(jnp.concatenate([values, missing.astype(x.dtype), share], axis=1))


def _as_floats(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) / BYTE if x.dtype == jnp.uint8 else x


def _channels(kind: InputKind) -> int:
    """Number of channels of images, which may have no axis for them."""
    return kind.shape[2] if len(kind.shape) == 3 else 1


def _with_channels(x: jax.Array) -> jax.Array:
    """Images `[N, height, width, channels]`, from images with or without the last axis."""
    return x[..., None] if x.ndim == 3 else x


EMBEDDERS: dict[str, type[Embedder]] = {
    "linear": LinearEmbedder,
    "mlp": MLPEmbedder,
    "convolution": ConvolutionEmbedder,
    "resnet": ResNetEmbedder,
    "table": SymbolEmbedder,
    "row": RowEmbedder,
}


def check_embedder(name: str | None, kind: InputKind, takes_rows: bool = False) -> None:
    """Raises ValueError if the named embedder is unknown or does not take inputs of a kind.

    With the name None, vectors are used as features, and so are rows if the model `takes_rows`;
    other kinds are refused.
    """
    fitting = [known for known, embedder in EMBEDDERS.items() if isinstance(kind, embedder.takes)]
    if name is not None and name not in EMBEDDERS:
        raise ValueError(f"no embedder called {name!r}; there are {', '.join(EMBEDDERS)}")
    plain = (Vectors, Rows) if takes_rows else Vectors
    allowed = isinstance(kind, plain) if name is None else name in fitting
    if not allowed:
        what = "without an embedder" if name is None else f"by the embedder {name}"
        raise ValueError(
            f"{type(kind).__name__.lower()} cannot be read {what}: set model.embedder to "
            f"{' or '.join(fitting)}"
        )
