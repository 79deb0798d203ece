"""The process of contestants in PyTorch."""
# Only this benchmark needs torch, so type checkers may not find it.
# pyright: reportMissingImports=false

import functools
import importlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..common.worker import Started
from .device_time import host_seconds, launches, warm_up
from .ops import FORWARD
from .sides import Answer, Side, checked_rows, not_installed


def start(workloads: Sequence[str], seed: int, rows: int | None, platform: str) -> Started:
    """The commands `gate` and `time` of each contestant.

    Raises:
      ValueError: PyTorch is missing, or sees no GPU although JAX sees one.
    """
    # Compiler processes would inherit this process's pipes.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        import torch
    except ImportError as error:
        raise ValueError(not_installed("torch")) from error
    if platform == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} here sees no GPU")
    return {}, TorchSide(workloads, seed, rows, platform).commands("torch")


class TorchSide(Side):
    """Tensors are contiguous, and `[B, N, T, H]` for ops with `heads_first`."""

    def __init__(self, workloads: Sequence[str], seed: int, rows: int | None, platform: str):
        import torch

        super().__init__(workloads, seed, rows, platform)
        self._torch = torch
        self._attend = functools.cache(self._make_forward)
        if platform == "cuda":
            # Each shape is compiled; beyond its limit torch would silently not compile.
            config = importlib.import_module("torch._dynamo").config
            for limit in ("recompile_limit", "cache_size_limit"):
                if hasattr(config, limit):
                    setattr(config, limit, 1000)

    def draw(self, name: str, count: int) -> list[list[Any]]:
        torch, case = self._torch, self.cases[name]
        generator = torch.Generator(self.platform).manual_seed(self.seed)
        shapes = case.shapes()
        if case.op.heads_first:
            shapes = {n: (b, heads, length, h) for n, (b, length, heads, h) in shapes.items()}
        sets = []
        for _ in range(count):
            normals = {
                name: torch.randn(shape, generator=generator, device=self.platform)
                for name, shape in shapes.items()
            }
            *inputs, d_out = [t.to(getattr(torch, self.dtype)) for t in case.draw(normals)]
            sets.append([*(tensor.requires_grad_() for tensor in inputs), d_out])
        return sets

    def make(self, name: str, direction: str, contestant: str) -> Callable:
        torch, attend = self._torch, self._attend(name, contestant)

        def forward(*tensors):
            with torch.no_grad():
                return (attend(*tensors[:-1]),)

        def both(*tensors):
            out = attend(*tensors[:-1])
            return (out.detach(), *torch.autograd.grad(out, tensors[:-1], tensors[-1]))

        return forward if direction == FORWARD else both

    def _make_forward(self, name: str, contestant: str) -> Callable:
        """A contestant's function from the inputs to the output."""
        torch, case = self._torch, self.cases[name]
        is_causal, names = case.workload.is_causal, list(case.shapes())[:-1]
        lengths = case.lengths
        if lengths is not None:
            lengths = torch.from_numpy(lengths).to(self.platform)
        if contestant in ("torch-chunked", "fla"):
            from . import torch_linear_attention as peers

            peer = peers.chunked if contestant == "torch-chunked" else peers.flash_linear_attention
            return lambda *inputs: peer(**dict(zip(names, inputs)), is_causal=is_causal)
        if contestant == "torch-sdpa":
            sdpa = torch.nn.functional.scaled_dot_product_attention
            attend = functools.partial(sdpa, is_causal=is_causal)
            if lengths is not None:
                seen = torch.arange(case.workload.T, device=self.platform) < lengths[:, None]
                attend = functools.partial(attend, attn_mask=seen[:, None, None])
        else:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            length, mask, sees = case.workload.T, None, None
            if is_causal:
                rows, sees = None, lambda b, h, query, key: query >= key
            elif lengths is not None:
                rows, sees = len(lengths), lambda b, h, query, key: key < lengths[b]
            if sees is not None:
                sizes = (rows, None, length, length)
                mask = create_block_mask(sees, *sizes, device=self.platform)
            compiled = torch.compile(flex_attention, dynamic=False)
            attend = functools.partial(compiled, block_mask=mask)
        if names == ["qkv"]:  # views, which the function copies if it must
            return lambda qkv: attend(*qkv.transpose(1, 3).unbind(2)).transpose(1, 2)
        return attend

    def run(self, program: Callable, arguments: list[Any]):
        results = program(*arguments)
        return results, all(bool(self._torch.isfinite(result).all()) for result in results), {}

    def wide(self, array: Any, name: str) -> np.ndarray:
        tensor = array.detach()[checked_rows(self.cases[name])]
        if self.cases[name].op.heads_first:
            tensor = tensor.transpose(1, 2)
        return tensor.cpu().double().numpy()

    def check_alive(self) -> None:
        self._torch.ones(8, device=self.platform).sum().item()

    def seconds(self, program: Callable, sets: list[list[Any]]) -> Answer:
        """On a GPU the kernels' durations by `torch.profiler`, which correspond to CUPTI's in JAX.

        If CUDA events around the launches, which include gaps, report less, their time is used.
        """
        if self.platform == "cpu":
            return {"seconds": host_seconds(program, sets), "method": "wall"}
        cuda, profiler = self._torch.cuda, self._torch.profiler
        warm_up(lambda: (program(*sets[0]), cuda.synchronize()))
        count = launches(sets)

        def launch() -> None:
            for arguments in itertools.islice(itertools.cycle(sets), 1, count + 1):
                program(*arguments)

        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        cuda.synchronize()
        outside = begin.elapsed_time(end) / 1e3 / count
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            launch()
            cuda.synchronize()
        # No copies and memsets by the driver, which CUPTI does not count for JAX either.
        kernels = [
            event.time_range.elapsed_us()
            for event in profile.events() or ()
            if str(event.device_type).endswith("CUDA")
            and not event.name.startswith(("Memcpy", "Memset"))
            and not getattr(event, "is_user_annotation", False)
        ]
        inside = sum(kernels) / 1e6 / count
        if not kernels or inside > outside:
            return {"seconds": outside, "method": "CUDA events"}
        return {"seconds": inside, "method": "torch.profiler"}
