"""The small residual network of Chan et al. 2022 (arXiv 2205.05055)."""

import math

import jax
from flax import nnx

STEM_CHANNELS = 64
STRIDES = (1, 2, 2, 2)  # of the groups of blocks
CHANNELS = (16, 32, 32)  # of the groups before the last, which has the number of features
BLOCKS = 2  # in a group


class NormedConvolution(nnx.Module):
    """A convolution without bias, then batch normalisation.

    Args:
      before: number of input channels.
      after: number of output channels.
      size: height and width of the kernel.
      stride: step between outputs, in pixels.
      scale_init: initial scale of the normalised outputs.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        before: int,
        after: int,
        size: int,
        stride: int = 1,
        *,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        self.convolution = nnx.Conv(
            before, after, (size, size), strides=stride, use_bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(
            after, momentum=0.9, epsilon=1e-5, scale_init=scale_init, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.convolution(x))


class BottleneckBlock(nnx.Module):
    """Convolutions of sizes 1, 3 and 1 beside a shortcut (He et al. 2016, arXiv 1512.03385).

    With `projects`, the shortcut is a convolution of size 1, else the input. The block starts as
    its shortcut, for the last scale is 0.
    """

    def __init__(self, before: int, after: int, stride: int = 1, *, projects: bool, rngs: nnx.Rngs):
        inner, zeros = max(1, after // 4), nnx.initializers.zeros
        self.reduce = NormedConvolution(before, inner, 1, rngs=rngs)
        self.convolve = NormedConvolution(inner, inner, 3, stride, rngs=rngs)
        self.expand = NormedConvolution(inner, after, 1, scale_init=zeros, rngs=rngs)
        self.shortcut = NormedConvolution(before, after, 1, stride, rngs=rngs) if projects else None

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = jax.nn.relu(self.convolve(jax.nn.relu(self.reduce(x))))
        return jax.nn.relu(self.expand(inner) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A 7 x 7 convolution, max-pooling, four groups of two blocks, and the mean over pixels.

    Maps images `[N, height, width, channels]` to features `[N, features]`. In training mode
    normalises over the N images and their pixels, else by running means of these statistics.

    Args:
      channels: number of channels of the images.
      features: number of channels of the last group.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs):
        self.stem = NormedConvolution(channels, STEM_CHANNELS, 7, 2, rngs=rngs)
        blocks, before = [], STEM_CHANNELS
        for after, stride in zip((*CHANNELS, features), STRIDES):
            blocks.append(BottleneckBlock(before, after, stride, projects=True, rngs=rngs))
            more = range(1, BLOCKS)
            blocks += [BottleneckBlock(after, after, projects=False, rngs=rngs) for _ in more]
            before = after
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.stem(x))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return x.mean(axis=(1, 2))

    @staticmethod
    def activations(height: int, width: int, features: int) -> int:
        """Number of values an image in the largest activation: of the first or the last layer."""
        pixels = lambda stride: -(-height // stride) * -(-width // stride)
        return max(pixels(2) * STEM_CHANNELS, pixels(4 * math.prod(STRIDES)) * features)
