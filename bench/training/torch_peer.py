"""The peer: a PyTorch trainer of in-context learners, like Garg et al.'s public one.

It has Transformers' GPT-2 between two linear layers and Adam. Each step is a Python iteration that
draws prompts on the host and copies the loss to the host.
"""
# Only this benchmark needs torch, so type checkers may not find it.
# pyright: reportMissingImports=false

import time
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from icl.models import TransformerConfig
from icl.training import Config

from ..common.worker import Started, failures_as_values
from ..tasks.host_samplers import linear_regression
from .cases import case_config, contestant, prompt_tokens
from .trainer import resident_bytes

# Largest relative difference of the compiled program's loss.
COMPILED_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


@failures_as_values()
def start(case: str, name: str, steps: int, device: str) -> Started:
    """The peer as a contestant; `step` answers with the seconds of a step, `memory` with bytes.

    Raises:
      ValueError: the peer cannot run; the message gives the reason.
    """
    config, who = case_config(case), contestant(name)
    before = resident_bytes()
    started = time.perf_counter()
    torch.manual_seed(config.training.seed)
    compiled = who.variant == "compile"
    trainer = Trainer(config, device, bf16=who.dtype == "bfloat16", compiled=compiled)
    if compiled:
        error, limit = trainer.compiled_error(), COMPILED_TOLERANCE[who.dtype]
        if not error <= limit:
            raise ValueError(f"compiling changes the loss by {error:.1e}; the limit is {limit:.0e}")
    build_seconds = time.perf_counter() - started

    def step() -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(steps):
            loss = trainer.step()
        return {"seconds": (time.perf_counter() - started) / steps, "loss": loss}

    def memory() -> dict[str, Any]:
        resident = {"before": before, "peak": resident_bytes()}
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return {"device": peak, "resident": resident, "program": None}

    ready = {
        "compile_seconds": build_seconds,
        "warm_seconds": step()["seconds"] * steps,
        "threads": torch.get_num_threads(),
        "attention": trainer.model.backbone.config._attn_implementation,
        "float32_products": torch.get_float32_matmul_precision(),
    }
    return ready, {"step": step, "memory": memory}


def make_peer(config: Config) -> "InContextGPT2":
    """The peer's model with the sizes of ours."""
    model = config.model
    assert isinstance(model, TransformerConfig)
    positions = model.max_tokens or prompt_tokens(config)
    dim = int(config.task.full.dim)
    return InContextGPT2(dim, model.layers, model.heads, model.width, positions)


class InContextGPT2(nn.Module):
    """Predicts y_i at x_i in prompts x_1, y_1, x_2, y_2, ...

    Args:
      dim: features of a token.
      layers, heads, width: sizes of the model.
      positions: number of learned positions, at least twice the points of a prompt.
    """

    def __init__(self, dim: int, layers: int, heads: int, width: int, positions: int):
        super().__init__()
        config = GPT2Config(
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        self.read_in = nn.Linear(dim, width)
        self.backbone = GPT2Model(config)
        self.read_out = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Predictions `[B, points]` from x `[B, points, dim]` and y `[B, points]`."""
        batch, points, dim = x.shape
        labels = torch.zeros_like(x)
        labels[:, :, 0] = y
        tokens = torch.stack([x, labels], dim=2).reshape(batch, 2 * points, dim)
        hidden = self.backbone(inputs_embeds=self.read_in(tokens)).last_hidden_state
        return self.read_out(hidden)[:, ::2, 0]

    @property
    def unused_parameters(self) -> int:
        """Size of GPT-2's table of word embeddings, which prompts of vectors never read."""
        return self.backbone.wte.weight.numel()


def prefix_loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all prefixes of all prompts."""
    return ((prediction - y) ** 2).mean()


class Trainer:
    """The training loop's body.

    Args:
      config: the settings of our trainer.
      device: `cpu` or `cuda`.
      bf16: whether to compute in bfloat16 under autocast.
      compiled: whether `torch.compile` compiles the forward pass and the loss with its gradient.
    """

    def __init__(self, config: Config, device: str, *, bf16: bool, compiled: bool):
        self.model = make_peer(config).to(device).train()
        self.batch, self.task, self.device = config.training.batch_size, config.task, device
        learning_rate = config.optimizer.learning_rate
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return prefix_loss(self.model(x, y), y)

    def compiled_error(self) -> float:
        """Relative difference of the compiled program's loss on a batch from the model's."""
        x, y = self._draw()
        with torch.no_grad(), self.autocast:
            eager = self._loss(x, y).item()
        with self.autocast:
            return abs(self.loss(x, y).item() / eager - 1)

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = linear_regression(self.batch, self.task)
        return x.to(self.device), y.to(self.device)

    def step(self) -> float:
        """Draws a batch and updates the parameters; returns the loss."""
        x, y = self._draw()
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.loss(x, y)
        loss.backward()
        self.optimizer.step()
        return loss.item()
