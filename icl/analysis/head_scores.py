"""Scores of attention heads: what they attend to, and what they copy.

The scores are those of Olsson et al. 2022, "In-context learning and induction heads" (appendix),
and of Elhage et al. 2021, "A mathematical framework for transformer circuits".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import Episode, Symbols, TaskFamily
from .instrument import Instrument

REPEATS = 4  # blocks of a repeated sequence


def repeated_block(family: TaskFamily, prompts: int, key: jax.Array) -> tuple[Episode, int]:
    """Blocks of different random symbols, each repeated to the end of a prompt.

    A block is a quarter of a prompt, or the whole vocabulary if that is shorter. Its symbols
    differ, so that each has one symbol that came after it.

    Args:
      family: a family of sequences of symbols.
      prompts: number B of prompts.
      key: it is consumed.

    Returns:
      The prompts, and the number of symbols of a block.
    """
    assert isinstance(family.input_kind, Symbols)
    points, vocabulary = family.points, family.input_kind.vocabulary
    period = min(points // REPEATS, vocabulary)
    order = jax.random.permutation(key, jnp.arange(vocabulary)[None].repeat(prompts, 0), 1, True)
    at = jnp.arange(points + 1) % period
    symbols = order[:, :period][:, at].astype(jnp.int32)
    every = jnp.ones((prompts, points), bool)
    return Episode(symbols[:, :-1], symbols[:, 1:], every, every), period


def prefix_matching(pattern: np.ndarray, period: int) -> np.ndarray:
    """Attention to the symbols after the earlier occurrences of the present symbol, `[N]`.

    The mean over all tokens after the first block, of the sum over the earlier blocks. A head that
    attends only to what came after the present symbol has score 1.

    Args:
      pattern: attention weights `[B, N, T, T]` on prompts of `repeated_block`.
      period: number of symbols of a block.
    """
    length = pattern.shape[-1]
    query, key = np.indices((length, length))
    after = (key <= query) & (key > 0) & ((query - key + 1) % period == 0)
    return (pattern * after).sum(axis=-1)[..., period:].mean(axis=(0, 2))


def previous_token(pattern: np.ndarray) -> np.ndarray:
    """Attention of a token to the token before, mean over tokens but the first, `[N]`."""
    return np.diagonal(pattern, -1, axis1=-2, axis2=-1).mean(axis=(0, 2))


def copying(inside: Instrument) -> list[np.ndarray]:
    """The copying score of each head, from -1 to 1: `[N]` for each layer.

    It is the sum of the eigenvalues of the head's map from symbols to logits, divided by the sum of
    their sizes: 1 for a head that raises the logit of each symbol that it attends to (Elhage et
    al. 2021). The map is W_U W_O W_V W_E with the norms' scales; positions are left out, and so are
    the sizes by which the norms divide. NaN if all eigenvalues are 0.

    Args:
      inside: an instrument of a transformer that reads symbols and predicts symbols.
    """
    maps = jax.jit(_symbol_maps, static_argnums=0)(inside.learner, inside.variables)
    return [_share(np.asarray(of_layer, np.float64)) for of_layer in maps]


def _symbol_maps(learner: Any, variables: Any) -> list[jax.Array]:
    """For each layer, by head, the logits (column) that a symbol (row) adds: `[N, V, V]`."""
    model = learner.model(variables)
    number = learner.family.input_kind.vocabulary
    one = jnp.ones((number, 1), bool)
    symbols = jnp.arange(number, dtype=jnp.int32)[:, None]
    tokens = learner.encode(variables, Episode(symbols, symbols, one, one))
    embedded = model.read_in(tokens)[:, 0].astype(jnp.float32)
    read_out = model.read_out.kernel[...]
    if (scale := getattr(model.norm, "scale", None)) is not None:
        read_out = scale[...][:, None] * read_out
    # Softmax takes no notice of what all logits have in common.
    read_out = read_out - read_out.mean(axis=1, keepdims=True)
    with jax.default_matmul_precision("highest"):
        return [
            jnp.einsum(
                "sw,nwv,nvu,uo->nso", block.mixer_norm(embedded), w.value, w.output, read_out
            )
            for block, w in zip(model.blocks, model.heads(), strict=True)
        ]


def _share(matrices: np.ndarray) -> np.ndarray:
    eigenvalues = np.linalg.eigvals(matrices)
    sizes = np.abs(eigenvalues).sum(axis=-1)
    return np.where(sizes > 0, eigenvalues.real.sum(axis=-1) / np.maximum(sizes, 1e-30), np.nan)


def windows(points: int) -> tuple[slice, slice]:
    """The early and the late positions of `in_context_score`: the second and the last tenth."""
    tenth = max(1, points // 10)
    return slice(tenth, 2 * tenth), slice(points - tenth, points)


def in_context_score(losses: np.ndarray) -> np.ndarray:
    """Loss late in a prompt minus loss early, in nats; more negative is better.

    Olsson et al. 2022 take the loss at token 500 of 512 minus that at token 50. Here both are means
    over a tenth of the positions.

    Args:
      losses: `[..., points]`.
    """
    early, late = windows(losses.shape[-1])
    return losses[..., late].mean(axis=-1) - losses[..., early].mean(axis=-1)
