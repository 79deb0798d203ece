"""A user's task and model: uint8 images, ten classes, batch statistics, dropout.

The library knows them by the two decorators only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import icl
from icl.models import Model, ModelConfig
from icl.tasks import Classes, Episode, Images, TaskFamily
from icl.training import Config, TrainingConfig

CLASSES, EXEMPLARS, SIDE = 10, 3, 8


def write_images(path, seed=0):
    """Writes a file of noisy images of ten classes, uint8 `[CLASSES, EXEMPLARS, SIDE, SIDE]`."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 200, size=(CLASSES, 1, SIDE, SIDE))
    noise = rng.integers(0, 55, size=(CLASSES, EXEMPLARS, SIDE, SIDE))
    np.savez(path, images=(classes + noise).astype(np.uint8))
    return str(path)


@icl.register_family("test_images")
@dataclasses.dataclass(frozen=True)
class ImageClasses(TaskFamily):
    """Images from a file; a task is a permutation of the class labels."""

    file: str = ""
    """Path of the .npz file with the images."""

    @property
    def input_kind(self):
        return Images(SIDE, SIDE)

    @property
    def label_kind(self):
        return Classes(CLASSES)

    @property
    def data_source(self):
        return self.file

    def load_data(self):
        with np.load(self.file) as found:
            return {"images": found["images"]}

    def sample_task(self, key, difficulty, data=None):
        return jax.random.permutation(key, CLASSES)

    def sample_episode(self, key, task, difficulty, data=None):
        kind_key, exemplar_key = jax.random.split(key)
        kinds = jax.random.randint(kind_key, (self.points,), 0, 2)
        exemplars = jax.random.randint(exemplar_key, (self.points,), 0, EXEMPLARS)
        used = jnp.arange(self.points) < difficulty.points
        return Episode(data["images"][kinds, exemplars], task[kinds], used, used)


@icl.register_model("test_averages")
@dataclasses.dataclass(frozen=True)
class AveragesConfig(ModelConfig):
    """Settings of a model that averages features over the prompt."""

    layers: int = 1
    """Number of layers."""
    width: int = 16
    """Number of features of a token."""
    dropout: float = 0.1
    """Probability that a feature is dropped in training."""

    def activations(self, in_width):
        return self.width

    def build(self, in_width, tokens, *, outputs=None, rngs):
        return Averages(in_width, self, outputs, rngs)

    def flops_by_part(self, in_width, tokens, batch):
        return {"all": 6.0 * (in_width + CLASSES) * self.width * tokens * batch}


class Averages(Model):
    """Predicts from the normalised features of each token and their running mean."""

    def __init__(self, in_width, config, outputs, rngs):
        self.read_in = nnx.Linear(in_width, config.width, rngs=rngs)
        self.norm = nnx.BatchNorm(config.width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.read_out = nnx.Linear(2 * config.width, outputs, rngs=rngs)

    def __call__(self, tokens, read=slice(None)):
        x = self.dropout(jax.nn.relu(self.norm(self.read_in(tokens))))
        mean = jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1], dtype=x.dtype))[None, :, None]
        return self.read_out(jnp.concatenate([x, mean], axis=-1))[:, read]


@icl.register_model("test_pooled")
@dataclasses.dataclass(frozen=True)
class PooledConfig(ModelConfig):
    """Settings of a model that sees the whole prompt but its padding."""

    title = "pooling"
    causal = False
    takes_lengths = True

    def activations(self, in_width):
        return in_width

    def build(self, in_width, tokens, *, outputs=None, rngs):
        return Pooled(in_width, rngs)

    def flops_by_part(self, in_width, tokens, batch):
        return {"all": 6.0 * in_width * tokens * batch}


class Pooled(Model):
    """Predicts each token's label from the token and the mean of the tokens in use."""

    def __init__(self, in_width, rngs):
        self.read_out = nnx.Linear(2 * in_width, 1, rngs=rngs)

    def __call__(self, tokens, read=slice(None), *, lengths):
        used = (jnp.arange(tokens.shape[1])[None] < lengths[:, None])[..., None]
        mean = jnp.where(used, tokens, 0).sum(axis=1) / lengths[:, None].astype(tokens.dtype)
        both = jnp.concatenate([tokens, jnp.broadcast_to(mean[:, None], tokens.shape)], axis=-1)
        return self.read_out(both)[:, read, 0]


def config_of(file, **changes):
    """Settings of a run that takes a second."""
    config = Config(
        task=ImageClasses(points=4, file=file),
        model=AveragesConfig(embedder="convolution", embedding_width=8),
        training=TrainingConfig(steps=12, batch_size=8, log_every=2, checkpoint_every=2),
    )
    return config.replace(**changes)
