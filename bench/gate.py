"""The gate before any timing: both contestants are the same model, and compute the same."""
# torch is needed by this benchmark alone, so type checkers may not find it.
# pyright: reportMissingImports=false

from typing import Any

import jax
import jax.numpy as jnp
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
    indices = jnp.arange(config.training.batch_size)
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
    peer_norm = np.sqrt(sum((g**2).sum().item() for g in grads))

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
    """Copies our parameters, as from `Learner.init`, into the peer's model.

    Raises:
      ValueError: one of the peer's parameters, other than the unused table, is left out.
    """
    # Transformers keeps its kernels [in, out], as flax does; nn.Linear keeps them [out, in].
    copied = {
        "read_in.weight": params["read_in"]["kernel"].T,
        "read_in.bias": params["read_in"]["bias"],
        "backbone.wpe.weight": params["positions"],
        "backbone.ln_f.weight": params["norm"]["scale"],
        "backbone.ln_f.bias": params["norm"]["bias"],
        "read_out.weight": params["read_out"]["kernel"].T,
        "read_out.bias": params["read_out"]["bias"],
    }
    for index, block in params["blocks"].items():
        layers = {
            "ln_1": block["mixer_norm"],
            "attn.c_attn": block["mixer"]["qkv"],
            "attn.c_proj": block["mixer"]["out"],
            "ln_2": block["mlp_norm"],
            "mlp.c_fc": block["up"],
            "mlp.c_proj": block["down"],
        }
        for name, layer in layers.items():
            weight = layer["scale" if "scale" in layer else "kernel"]
            copied[f"backbone.h.{index}.{name}.weight"] = weight
            copied[f"backbone.h.{index}.{name}.bias"] = layer["bias"]
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in copied.items()}
    left = {name for name, _ in peer.named_parameters()} ^ {*tensors, "backbone.wte.weight"}
    if left:
        raise ValueError(f"parameters without a counterpart: {', '.join(sorted(left))}")
    peer.load_state_dict(tensors, strict=False)
