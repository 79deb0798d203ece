"""The gate before any timing: both contestants are the same model, and compute the same."""

from typing import Any

import jax
import numpy as np
import torch
from contestants import SIZES, Started, make_peer
from peers.torch_gpt2 import InContextGPT2, prefix_loss

from icl.tasks import Episode, sample_batch
from icl.training.learner import Learner, Params
from icl.training.optimizer import make_optimizer
from icl.training.step import TrainState, batch_gradient, init_state

PREDICTION_TOLERANCE = 1e-4  # largest error, relative to the predictions' root mean square
GRADIENT_TOLERANCE = 1e-3  # relative
PERTURBATION = 0.05


def check(size: str) -> Started:
    """Compares the two models on a batch; answers with the largest errors, and no commands.

    Twice: with our initial parameters, and with noise added to every one of them, since
    biases and scales that are still 0 and 1 would fit anywhere.

    Raises:
      ValueError: they differ; the message says in what.
    """
    # An accelerator's default would round the factors of our products to fewer bits.
    with jax.default_matmul_precision("highest"):
        return _check(size), {}


def _check(size: str) -> dict[str, Any]:
    config = SIZES[size]
    learner = Learner(config)
    state = init_state(learner, make_optimizer(config.optimizer, config.training.steps))
    peer = make_peer(config)
    ours = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    theirs = sum(p.numel() for p in peer.parameters()) - peer.unused_parameters
    if ours != theirs:
        raise ValueError(f"{size}: our model has {ours} parameters, the peer's {theirs}")

    key = jax.random.fold_in(state.data_key, state.step)
    indices = np.arange(config.training.batch_size)
    episodes = sample_batch(learner.family, key, indices, learner.family.full)
    perturbed = state._replace(params=_add_noise(state.params, jax.random.key(3)))
    errors: dict[str, Any] = {"parameters": ours}
    for name, case in {"initial": state, "perturbed": perturbed}.items():
        errors[name] = _errors(learner, case, peer, episodes)
        for quantity, error in errors[name].items():
            limit = GRADIENT_TOLERANCE if quantity == "gradient_norm" else PREDICTION_TOLERANCE
            if not error <= limit:  # NaN fails too
                raise ValueError(
                    f"{size}, {name} parameters: {quantity} of the two models differ by "
                    f"{error:.1e} (relative), and may by {limit:.0e}; nothing was timed"
                )
    return errors


def _errors(
    learner: Learner, state: TrainState, peer: InContextGPT2, episodes: Episode
) -> dict[str, float]:
    """Relative differences of predictions, loss and gradient norm at the same parameters."""
    copy_parameters(state.params, peer)
    predictions = np.asarray(jax.jit(learner.predict)(state.params, episodes))
    # The trainer's own gradient, microbatches and all, of the batch that it draws itself.
    loss, gradient = jax.jit(lambda state: batch_gradient(learner, state))(state)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))

    x, y = (torch.from_numpy(np.array(a)) for a in (episodes.x, episodes.y))
    peer.zero_grad()
    peer_predictions = peer(x, y)
    peer_loss = prefix_loss(peer_predictions, y)
    peer_loss.backward()
    grads = [p.grad for p in peer.parameters() if p.grad is not None]
    peer_norm = torch.sqrt(sum((g**2).sum() for g in grads)).item()

    difference = np.abs(predictions - peer_predictions.detach().numpy()).max()
    return {
        "predictions": float(difference / np.sqrt((predictions**2).mean())),
        "loss": abs(float(loss) / peer_loss.item() - 1),
        "gradient_norm": float(abs(norm / peer_norm - 1)),
    }


def _add_noise(params: Params, key: jax.Array) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [a + PERTURBATION * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, noisy)


def copy_parameters(params: Params, peer: InContextGPT2) -> None:
    """Copies our parameters, as from `Learner.init`, into the peer's model."""
    gpt2 = peer.backbone
    _copy(peer.read_in.weight, params["read_in"]["kernel"].T)
    _copy(peer.read_in.bias, params["read_in"]["bias"])
    _copy(gpt2.wpe.weight, params["positions"])
    for index, block in enumerate(gpt2.h):
        ours = params["blocks"][index]
        # Transformers keeps these kernels [in, out], as flax does, and nn.Linear's [out, in].
        for theirs, name in ((block.ln_1, "mixer_norm"), (block.ln_2, "mlp_norm")):
            _copy(theirs.weight, ours[name]["scale"])
            _copy(theirs.bias, ours[name]["bias"])
        for theirs, dense in (
            (block.attn.c_attn, ours["mixer"]["qkv"]),
            (block.attn.c_proj, ours["mixer"]["out"]),
            (block.mlp.c_fc, ours["up"]),
            (block.mlp.c_proj, ours["down"]),
        ):
            _copy(theirs.weight, dense["kernel"])
            _copy(theirs.bias, dense["bias"])
    _copy(gpt2.ln_f.weight, params["norm"]["scale"])
    _copy(gpt2.ln_f.bias, params["norm"]["bias"])
    _copy(peer.read_out.weight, params["read_out"]["kernel"].T)
    _copy(peer.read_out.bias, params["read_out"]["bias"])


def _copy(target: torch.Tensor, source: jax.Array) -> None:
    if tuple(target.shape) != source.shape:
        raise ValueError(f"shapes differ: ours {source.shape}, the peer's {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(source)))
