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
from .cases import case_config, contestant, prompt_tokens
from .trainer import resident_bytes

# Largest relative difference of the compiled program's loss.
COMPILED_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def start(case: str, name: str, steps: int, device: str) -> Started:
    """The peer as a contestant; `step` answers with the seconds of a step, `memory` with bytes.

    Raises:
      ValueError: the peer cannot run; the message gives the reason.
    """
    with failures_as_values():
        return _start(case, name, steps, device)


def _start(case: str, name: str, steps: int, device: str) -> Started:
    config, who = case_config(case), contestant(name)
    before = resident_bytes()
    started = time.perf_counter()
    torch.manual_seed(config.training.seed)
    trainer = Trainer(
        make_peer(config).to(device),
        config.training.batch_size,
        config.task.points,
        config.task.dim,
        config.optimizer.learning_rate,
        device,
        bf16=who.dtype == "bfloat16",
        compiled=who.variant == "compile",
    )
    if who.variant == "compile":
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
    return InContextGPT2(config.task.dim, model.layers, model.heads, model.width, positions)


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


def draw_prompts(batch: int, points: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear regression on the host: x `[batch, points, dim]`, y = w.x `[batch, points]`."""
    x = torch.randn(batch, points, dim)
    w = torch.randn(batch, dim, 1)
    return x, (x @ w)[:, :, 0]


def prefix_loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all prefixes of all prompts."""
    return ((prediction - y) ** 2).mean()


class Trainer:
    """The training loop's body.

    Args:
      model: the model, already on the device.
      batch, points, dim: shape of a batch.
      learning_rate: learning rate of Adam.
      device: `cpu` or `cuda`.
      bf16: whether to compute in bfloat16 under autocast.
      compiled: whether `torch.compile` compiles the forward pass and the loss with its gradient.
    """

    def __init__(
        self,
        model: InContextGPT2,
        batch: int,
        points: int,
        dim: int,
        learning_rate: float,
        device: str = "cpu",
        *,
        bf16: bool = False,
        compiled: bool = False,
    ):
        self.model = model.train()
        self.shape = (batch, points, dim)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.device = device
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
        x, y = draw_prompts(*self.shape)
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
