"""What tests of several files share: a tiny run, comparisons, prompts, loops over prefixes."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from icl.evaluation import draw_prompts
from icl.models import Transformer, TransformerConfig
from icl.tasks import (
    FAMILIES,
    ClassSequences,
    Curriculum,
    LinearRegression,
    Mixture,
    ProjectedImages,
    SymbolSequences,
    Tables,
    WhitenedRegression,
)
from icl.training import Config, Learner, LoggingConfig, OptimizerConfig, Run
from icl.training.config import TrainingConfig
from icl.training.optimizer import make_optimizer
from icl.training.step import init_state, variable_items

QUIET = LoggingConfig(progress=False)
TINY = TransformerConfig(layers=2, heads=2, width=16)


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
    if name in ("sine", "lines"):
        return FAMILIES[name](points=points)
    more = dict(scales=(1.0, 0.5, 2.0, 1.5)[:dim]) if name == "whitened_regression" else {}
    more |= dict(bases=dim) if name == "basis_regression" else {}
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


def untrained(path, config, step=1):
    """A run whose only checkpoint has the initial parameters, as of a step."""
    run = Run.create(path, config)
    variables = jax.jit(Learner(config).init)(jax.random.key(config.training.seed))
    with contextlib.closing(run.checkpoints()) as checkpoints:
        checkpoints.save(step, variable_items(variables))
    return run


def shrunk(config):
    """The settings of a preset at a tiny size, with every part that makes its code differ."""
    task, model = config.task, config.model
    sizes = dict(points=min(task.points, 7))
    if isinstance(task, ProjectedImages):
        # Presets of MNIST, and of features in a file, get images that need no file.
        sizes |= dict(images=("digits",), size=4, features=None)
        sizes |= dict(points=task.points) if task.shots else {}
    elif isinstance(task, ClassSequences):
        # Presets of Omniglot get drawings that need no file.
        sizes = dict(size=8, dim=5, rare=12, common=min(task.common, 4), holdout=5)
        sizes |= {} if task.is_built_in else dict(source=("glyphs",))
        sizes |= {} if task.labels is None else dict(labels=6)
    elif isinstance(task, Mixture):
        # Each family costs the programs of its estimators.
        sizes |= dict(families=task.families[:2], shares=(), options=(), dim=2)
        sizes |= dict(held_out=("random_network",))
    elif isinstance(task, Tables):
        # Each mechanism costs a second to compile.
        sizes |= dict(mechanisms=("linear",), shares=())
    elif not isinstance(task, WhitenedRegression) and hasattr(task, "dim"):
        sizes |= dict(dim=min(task.dim, 4))
    if isinstance(task, SymbolSequences):
        sizes = dict(points=min(task.points, 12))  # four blocks of more than one symbol
    limits = dict(nonzeros=2, hidden=4, depth=2, queries=3, shortest=2, longest=3, pairs=1)
    limits |= dict(bases=2, fewest_points=3, columns=3, fewest_examples=2)
    for name, most in limits.items():
        if hasattr(task, name):
            sizes[name] = getattr(task, name) and min(getattr(task, name), most)
    most = dict(layers=2, heads=2, width=8, features=6, key_size=4, loops=3, window=2)
    most |= dict(embedding_width=8, inner_steps=2, columns=3)
    small = {
        name: min(getattr(model, name), size)
        for name, size in most.items()
        if type(getattr(model, name, None)) is int
    }
    if hasattr(model, "max_tokens"):
        small["max_tokens"] = None
    return dataclasses.replace(
        config,
        task=dataclasses.replace(task, **sizes),
        model=dataclasses.replace(model, **small),
        curriculum=Curriculum(),
        optimizer=OptimizerConfig(),
        training=dataclasses.replace(
            config.training, steps=10, batch_size=4, log_every=5, checkpoint_every=5,
            microbatch_size=None, pool_size=config.training.pool_size and 8,
        ),
    )  # fmt: skip


def build(config=TINY, in_width=5, tokens=12):
    return Transformer(in_width, tokens, config, rngs=nnx.Rngs(params=jax.random.key(0)))


def prompt(length=12, in_width=5, batch=3):
    return jax.random.normal(jax.random.key(1), (batch, length, in_width))


def jitted(model):
    """The model as a compiled function of tokens and the limits of `read`."""
    graph, state = nnx.split(model)
    call = lambda state, tokens, read: nnx.merge(graph, state)(tokens, slice(*read))
    compiled = jax.jit(call, static_argnums=2)
    return lambda tokens, *read: compiled(state, tokens, read or (None,))
