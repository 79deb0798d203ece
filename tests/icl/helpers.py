"""What tests of several files share: a tiny run, comparisons, prompts, loops over prefixes."""

import jax
import jax.numpy as jnp
import numpy as np

from icl.evaluation import draw_prompts
from icl.models import TransformerConfig
from icl.tasks import FAMILIES, LinearRegression, SineRegression
from icl.training import Config, Learner, LoggingConfig, OptimizerConfig
from icl.training.config import TrainingConfig
from icl.training.optimizer import make_optimizer
from icl.training.step import init_state

QUIET = LoggingConfig(progress=False)


def tiny(**changes):
    config = Config(
        task=LinearRegression(dim=3, points=5),
        model=TransformerConfig(layers=1, heads=2, width=16),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        training=TrainingConfig(steps=20, batch_size=8, log_every=5, checkpoint_every=10),
    )
    return config.replace(**changes)


def start(config):
    learner = Learner(config)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    return learner, optimizer, init_state(learner, optimizer)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sized(name, dim, points):
    """A family of that size, where it is one of vectors."""
    if name == "sine":
        return SineRegression(points=points)
    more = dict(scales=(1.0, 0.5, 2.0, 1.5)[:dim]) if name == "whitened_regression" else {}
    return FAMILIES[name](dim=dim, points=points, **more)


def episodes_of(learner, count=6, seed=0):
    return draw_prompts(learner.family, jax.random.key(seed), count)


def query_predictions(learner, params, episodes):
    return np.asarray(jax.jit(learner.predict)(params, episodes))[:, -1]


def predictions(function, x, y, jit=True):
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64), jnp.asarray(y, jnp.float64)
        return np.asarray((jax.jit(function) if jit else function)(*wide))


def per_prefix(predict, x, y):
    """Refits for every prompt and prefix, as Garg et al. do."""
    result = np.zeros(y.shape)
    for b in range(len(x)):
        for k in range(1, x.shape[1]):
            result[b, k] = predict(x[b, :k], y[b, :k], x[b, k])
    return result


def linear_prompts(prompts, points, dim, nonzero=None, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(prompts, points, dim))
    w = rng.normal(size=(prompts, dim))
    w[:, nonzero:] *= nonzero is None
    return x, np.einsum("bpd,bd->bp", x, w) + noise * rng.normal(size=(prompts, points))
