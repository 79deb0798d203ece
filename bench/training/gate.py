"""The gate before any timing: all contestants must compute the same function."""
# Only this benchmark needs torch, so type checkers may not find it.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from icl.tasks import Episode, sample_batch
from icl.training.learner import Learner, Params
from icl.training.optimizer import make_optimizer
from icl.training.step import TrainState, batch_gradient, init_state

from ..common.worker import Started
from . import plain_mixer
from .cases import CONTESTANTS, SIZES, case_config
from .torch_peer import InContextGPT2, make_peer, prefix_loss

# Largest relative errors; errors of predictions are relative to their root mean square.
TOLERANCES = {
    "float32": {"predictions": 1e-4, "loss": 1e-4, "gradient_norm": 1e-3},
    "bfloat16": {"predictions": 1e-1, "loss": 2e-2, "gradient_norm": 5e-2},
}
PERTURBATION = 0.05
PROMPTS = dict(training_batch_size=8, training_microbatch_size=4)  # few prompts in two microbatches


class Quantities(NamedTuple):
    """The compared quantities; predictions are `[B, points]`."""

    predictions: np.ndarray
    loss: float
    gradient_norm: float


def start(size: str, names: list[str]) -> Started:
    """Compares ours with the peer on a few prompts; answers with the errors and no commands.

    Each named contestant is compared twice: with our initial parameters, and with noise added to
    all of them, because biases of 0 and scales of 1 would hide parameters that are swapped.

    Raises:
      ValueError: a contestant differs from the peer; the message names the quantity.
    """
    plain_mixer.register()
    # An accelerator rounds the factors of products to fewer bits by default.
    with jax.default_matmul_precision("highest"):
        return _check(size, names), {}


def _check(size: str, names: list[str]) -> dict[str, Any]:
    config = SIZES[size].replace(**PROMPTS)
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
    noisy = _add_noise(state.params, jax.random.key(3))
    perturbed = state._replace(variables=state.variables._replace(params=noisy))
    states = {"initial": state, "perturbed": perturbed}
    right = {name: _peer_quantities(case.params, peer, episodes) for name, case in states.items()}
    errors: dict[str, Any] = {"parameters": ours}
    for name in names:
        contestant = CONTESTANTS[name]
        run = _compile(Learner(case_config(size, contestant).replace(**PROMPTS)))
        errors[name] = {at: _errors(run(states[at], episodes), right[at]) for at in states}
        for at, found in errors[name].items():
            for quantity, error in found.items():
                limit = TOLERANCES[contestant.dtype][quantity]
                if not error <= limit:  # NaN fails too
                    raise ValueError(
                        f"{size}, {name}, {at} parameters: {quantity} differ from the peer's by "
                        f"{error:.1e} (relative) and may differ by {limit:.0e}; nothing was timed"
                    )
    return errors


def _compile(learner: Learner) -> Callable[[TrainState, Episode], Quantities]:
    """A function that computes the trainer's quantities, in microbatches."""

    @jax.jit
    def quantities(state: TrainState, episodes: Episode):
        loss, gradient, _ = batch_gradient(learner, state)
        return learner.predict(state.params, episodes), loss, optax.global_norm(gradient)

    def run(state: TrainState, episodes: Episode) -> Quantities:
        predictions, loss, norm = quantities(state, episodes)
        return Quantities(np.asarray(predictions), float(loss), float(norm))

    return run


def _peer_quantities(params: Params, peer: InContextGPT2, episodes: Episode) -> Quantities:
    """The peer's quantities with these parameters, on the batch that the trainer draws."""
    copy_parameters(params, peer)
    x, y = (torch.from_numpy(np.array(a)) for a in (episodes.x, episodes.y))
    peer.zero_grad()
    predictions = peer(x, y)
    loss = prefix_loss(predictions, y)
    loss.backward()
    grads = [p.grad for p in peer.parameters() if p.grad is not None]
    norm = sum((g**2).sum().item() for g in grads) ** 0.5
    return Quantities(predictions.detach().numpy(), loss.item(), norm)


def _errors(ours: Quantities, right: Quantities) -> dict[str, float]:
    """Relative differences from the peer's quantities."""
    difference = np.abs(ours.predictions - right.predictions).max()
    return {
        "predictions": float(difference / np.sqrt((right.predictions**2).mean())),
        "loss": abs(ours.loss / right.loss - 1),
        "gradient_norm": abs(ours.gradient_norm / right.gradient_norm - 1),
    }


def _add_noise(params: Params, key: jax.Array) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [a + PERTURBATION * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, noisy)


def copy_parameters(params: Params, peer: InContextGPT2) -> None:
    """Copies our parameters into the peer's model.

    Raises:
      ValueError: a parameter has no counterpart; the peer's unused table needs none.
    """
    # Kernels are [in, out] in Transformers and flax, and [out, in] in nn.Linear.
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
