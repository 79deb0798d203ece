"""The contestants that run in PyTorch: one process."""
# torch is needed by this benchmark alone, so type checkers may not find it.
# pyright: reportMissingImports=false

import functools
import importlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from device_time import host_seconds, launches, warm_up
from kernel_cases import (
    CASES,
    FORWARD,
    Answer,
    Started,
    at_hand,
    checked_rows,
    commands_of,
    errors,
    input_sets,
)


def start_torch(
    workloads: Sequence[str], directions: Sequence[str], seed: int, platform: str, dtype: str
) -> Started:
    """What runs here, and the commands `gate` and `time` of each. Raises ValueError without it."""
    # Compiling in processes of its own would share this one's pipes.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"PyTorch is not installed ({error})") from error
    if platform == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} here sees no GPU")
    bench = _Bench(platform, dtype, seed)
    return {}, commands_of(bench, workloads, directions, platform, "torch")


class _Bench:
    """Keeps the functions, and the inputs of the workload that is at work.

    All arrays are contiguous, `[B, N, T, H]` for attention and `[B, T, N, H]` for the others, as
    these functions like them best.
    """

    def __init__(self, platform: str, dtype: str, seed: int):
        import torch

        self._torch, self._platform, self._seed = torch, platform, seed
        self._dtype_name, self._dtype = dtype, getattr(torch, dtype)
        self._inputs = functools.lru_cache(maxsize=1)(self._draw)
        self._reference = functools.lru_cache(maxsize=1)(self._expected)
        self._attend = functools.cache(self._make)
        if platform == "cuda":
            # A shape is a program of its own; past its limit torch would quietly not compile.
            config = importlib.import_module("torch._dynamo").config
            for limit in ("recompile_limit", "cache_size_limit"):
                if hasattr(config, limit):
                    setattr(config, limit, 1000)

    def gate(self, name: str, direction: str, contestant: str) -> Answer:
        """Errors on the checked rows."""
        results = self._call(name, direction, contestant)(*self._inputs(name)[0])
        rows = checked_rows(at_hand(name, self._platform))
        whole = all(bool(self._torch.isfinite(result).all()) for result in results)
        found = errors([self._wide(r, rows, name) for r in results], self._reference(name))
        return {"errors": found if whole else dict.fromkeys(found, float("nan"))}

    def time(self, name: str, direction: str, contestant: str) -> Answer:
        call = self._call(name, direction, contestant)
        count = input_sets(at_hand(name, self._platform), self._dtype_name)
        sets = self._inputs(name, count)
        if self._platform == "cpu":
            return {"seconds": host_seconds(call, sets), "method": "wall"}
        return self._device_seconds(call, sets)

    def check_alive(self) -> None:
        self._torch.ones(8, device=self._platform).sum().item()

    def _make(self, name: str, contestant: str) -> Callable:
        """Of the inputs to the output."""
        functional = self._torch.nn.functional
        op, workload = CASES[name]
        if contestant in ("torch-chunked", "fla"):
            from peers import torch_linear_attention as peers

            function = (
                peers.chunked if contestant == "torch-chunked" else peers.flash_linear_attention
            )
            function = functools.partial(function, is_causal=workload.is_causal)
            return lambda *inputs: function(**dict(zip(op.inputs, inputs, strict=True)))
        if contestant == "torch-sdpa":
            return functools.partial(
                functional.scaled_dot_product_attention, is_causal=workload.is_causal
            )
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = None
        if workload.is_causal:
            mask = create_block_mask(
                lambda b, h, query, key: query >= key,
                None, None, workload.T, workload.T, device=self._platform,
            )  # fmt: skip
        compiled = self._torch.compile(flex_attention, dynamic=False)
        return functools.partial(compiled, block_mask=mask)

    def _call(self, name: str, direction: str, contestant: str) -> Callable:
        """Of the inputs and the cotangent to the results that `Op.results` names."""
        torch, attend = self._torch, self._attend(name, contestant)

        def forward(*tensors):
            with torch.no_grad():
                return (attend(*tensors[:-1]),)

        def both(*tensors):
            out = attend(*tensors[:-1])
            return (out.detach(), *torch.autograd.grad(out, tensors[:-1], tensors[-1]))

        return forward if direction == FORWARD else both

    def _draw(self, name: str, count: int = 1) -> list[list[Any]]:
        op, workload = CASES[name][0], at_hand(name, self._platform)
        generator = self._torch.Generator(self._platform).manual_seed(self._seed)
        shapes = op.shapes(workload)
        if op.heads_first:
            shapes = [(batch, heads, length, *rest) for batch, length, heads, *rest in shapes]
        sets = []
        for _ in range(count):
            normals = [
                self._torch.randn(shape, generator=generator, device=self._platform)
                for shape in shapes
            ]
            *inputs, d_out = [tensor.to(self._dtype) for tensor in op.draw(normals)]
            sets.append([*(tensor.requires_grad_() for tensor in inputs), d_out])
        return sets

    def _expected(self, name: str) -> dict[str, np.ndarray]:
        rows = checked_rows(at_hand(name, self._platform))
        arrays = [self._wide(tensor, rows, name) for tensor in self._inputs(name)[0]]
        op, workload = CASES[name]
        return op.expected(workload.is_causal, arrays)

    def _wide(self, tensor: Any, rows: list[int], name: str) -> np.ndarray:
        """float64 `[rows, T, N, H]`."""
        tensor = tensor.detach()[rows]
        if CASES[name][0].heads_first:
            tensor = tensor.transpose(1, 2)
        return tensor.cpu().double().numpy()

    def _device_seconds(self, call: Callable, sets: Sequence[Sequence[Any]]) -> Answer:
        """What its kernels took by `torch.profiler`, as CUPTI says it of JAX's.

        Never more than CUDA events around as many launches say, which count gaps too.
        """
        cuda, profiler = self._torch.cuda, self._torch.profiler
        warm_up(lambda: (call(*sets[0]), cuda.synchronize()))
        count = launches(sets)

        def launch() -> None:
            for arguments in itertools.islice(itertools.cycle(sets), 1, count + 1):
                call(*arguments)

        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        cuda.synchronize()
        outside = begin.elapsed_time(end) / 1e3 / count
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            launch()
            cuda.synchronize()
        # Not what the driver copies or clears, which CUPTI does not count for JAX either.
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
