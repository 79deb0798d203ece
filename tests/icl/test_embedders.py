"""The ResNet against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from icl.layers.embedders import EMBEDDERS
from icl.layers.resnet import NormedConvolution
from icl.models import parameter_count
from icl.tasks import Images

ResNet = EMBEDDERS["resnet"]
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 16, 16)).astype(np.uint8)


def resnet(kind, features):
    return ResNet(kind, features, rngs=nnx.Rngs(params=jax.random.key(0)))


def relu(x):
    return np.maximum(x, 0)


def windows(x, size, stride, fill=0.0):
    """The pixels under each weight of a window with SAME padding, `[size**2, N, H, W, C]`."""
    side = -(-x.shape[1] // stride)
    extra = max(0, (side - 1) * stride + size - x.shape[1])
    pad = (extra // 2, extra - extra // 2)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=fill)
    at = lambda i: slice(i, i + (side - 1) * stride + 1, stride)
    return np.stack([x[:, at(i), at(j)] for i in range(size) for j in range(size)])


def convolved(part, x, stride=1):
    """A convolution, then normalisation over images and pixels, in float64."""
    kernel = np.asarray(part.convolution.kernel, np.float64)
    found = windows(x, len(kernel), stride) @ kernel.reshape(-1, 1, 1, *kernel.shape[2:])
    x = found.sum(axis=0)
    x = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    return np.asarray(part.norm.scale) * x + np.asarray(part.norm.bias)


def by_definition(model, images):
    x = relu(convolved(model.resnet.stem, images[..., None] / 255.0, 2))
    x = windows(x, 3, 2, -np.inf).max(axis=0)
    for index, block in enumerate(model.resnet.blocks):
        stride = 2 if index in (2, 4, 6) else 1
        inner = relu(convolved(block.convolve, relu(convolved(block.reduce, x)), stride))
        shortcut = convolved(block.shortcut, x, stride) if index % 2 == 0 else x
        x = relu(convolved(block.expand, inner) + shortcut)
    return x.mean(axis=(1, 2))


def test_a_resnet_matches_its_definition_and_keeps_batch_statistics():
    model = resnet(Images(16, 16), 8)
    parts = [part for _, part in nnx.iter_modules(model) if isinstance(part, NormedConvolution)]
    assert len(parts) == 1 + 4 * (4 + 3)
    for index, part in enumerate(parts):
        keys = jax.random.split(jax.random.key(index), 2)
        part.norm.scale[...] = 1 + 0.3 * jax.random.normal(keys[0], part.norm.scale.shape)
        part.norm.bias[...] = 0.3 * jax.random.normal(keys[1], part.norm.bias.shape)
    call = nnx.jit(lambda model, x: model(x))
    model.train()
    found = call(model, jnp.asarray(IMAGES))
    assert found.shape == (6, 8) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_definition(model, IMAGES), rtol=1e-3, atol=1e-3)

    seen = model.resnet.stem.convolution(jnp.asarray(IMAGES[..., None] / np.float32(255)))
    statistics = model.resnet.stem.norm
    np.testing.assert_allclose(statistics.mean, 0.1 * seen.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics.var, 0.9 + 0.1 * seen.var(axis=(0, 1, 2)), rtol=1e-4)
    model.eval()
    alone, together = (call(model, jnp.asarray(x)) for x in (IMAGES[:2], IMAGES))
    np.testing.assert_allclose(alone, together[:2], rtol=1e-4, atol=1e-5)


def test_a_resnet_starts_as_its_shortcuts_and_has_the_size_of_chans():
    model = resnet(Images(105, 105), 64)
    assert parameter_count(model) == 22_176
    for block in model.resnet.blocks:
        np.testing.assert_array_equal(block.expand.norm.scale, 0)
    assert ResNet.activations(Images(105, 105), 64) == 53 * 53 * 64
    assert ResNet.activations(Images(8, 8), 4096) == 4096


def test_a_resnet_takes_images_of_any_shape():
    def features(shape):
        """Abstract features of images of a shape, and their number of parameters."""
        found = resnet(Images(*shape), 1)
        return found(jnp.zeros((2, *shape), jnp.uint8)), jnp.zeros(parameter_count(found))

    flat, deep = (nnx.eval_shape(lambda s=s: features(s)) for s in ((16, 16), (16, 16, 1)))
    assert flat == deep and flat[0].shape == (2, 1)
    for shape in ((1, 1), (7, 20), (9, 5, 3)):
        assert nnx.eval_shape(lambda shape=shape: features(shape))[0].shape == (2, 1)
