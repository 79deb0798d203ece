"""Chooses an implementation, by the machine and by what each implementation cannot do."""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import jax

from .untyped import platform_dependent


@dataclass(frozen=True)
class Target:
    """The machine for which programs are compiled.

    platform: "cpu", "cuda", "rocm" or "tpu".
    capability: CUDA's compute capability, 90 for 9.0; None off CUDA.
    device: the device's name, as in "NVIDIA H200".
    """

    platform: str
    capability: int | None = None
    device: str = ""


_choices: ContextVar[list[tuple[str, str]] | None] = ContextVar("choices", default=None)
_target: ContextVar[Target | None] = ContextVar("target", default=None)


def target() -> Target:
    """The machine of JAX's default device, or the one given to `targeting`."""
    override = _target.get()
    if override is not None:
        return override
    device: Any = setting("jax_default_device") or jax.local_devices()[0]
    if isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    platform = device.platform
    if platform != "gpu":
        return Target(platform, device=device.device_kind)
    if "rocm" in device.client.platform_version.lower():
        return Target("rocm", device=device.device_kind)
    capability = int(device.compute_capability.replace(".", ""))
    return Target("cuda", capability, device.device_kind)


def setting(name: str) -> Any:
    """A setting of `jax.config`, whose type lists none of them."""
    return getattr(jax.config, name)


@contextlib.contextmanager
def targeting(
    platform: str, capability: int | None = None, device: str = ""
) -> Generator[None, None, None]:
    """Traces for another machine, to compile for a GPU that this one lacks.

    with targeting("cuda", 90):
        jax.jit(step).trace(state).lower(lowering_platforms=("cuda",))
    """
    token = _target.set(Target(platform, capability, device))
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def choices() -> Generator[list[tuple[str, str]], None, None]:
    """Lists the ops that are traced inside, each as (op, implementation that it takes).

    with choices() as chosen:
        jax.eval_shape(model, x)  # traces, computes nothing
    print(chosen)  # [("attention", "triton")]

    A function that `jax.jit` has traced before is not traced again: see `jax.clear_caches`.
    """
    token = _choices.set(chosen := [])
    try:
        yield chosen
    finally:
        _choices.reset(token)


def interpreting() -> bool:
    """Whether kernels run step by step on the CPU: `ICL_KERNELS_INTERPRET=1`, for tests."""
    return is_set("ICL_KERNELS_INTERPRET")


def is_set(variable: str) -> bool:
    """Whether an environment variable is set, to something other than 0."""
    return os.environ.get(variable, "0") not in ("", "0")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    run: `(problem, operands) -> out`.
    refusal: `(target, problem, operands) -> str | None`, why it cannot take the call, or None.
    is_best: `(target, problem, operands) -> bool`, whether it is the fastest known for this call.
    run_anywhere: like run, and correct too if the program is lowered for another platform; used
      if the caller asked for no implementation.
    """

    run: Callable[[Any, Any], Any]
    refusal: Callable[[Target, Any, Any], str | None] = lambda target, problem, operands: None
    is_best: Callable[[Target, Any, Any], bool] = lambda target, problem, operands: False
    run_anywhere: Callable[[Any, Any], Any] | None = None


def choose(
    op: str,
    implementations: Mapping[str, Implementation],
    asked: str | Sequence[str] | None,
    problem: Any,
    operands: Any,
    default: str,
) -> Callable[[Any, Any], Any]:
    """The function to run.

    Args:
      op: the op's name, for messages.
      implementations: by name, in the order in which they are considered when None is asked.
      asked: a name, names in order of preference, or None for the best one here.
      problem, operands: the call.
      default: the name of the implementation that takes every call.

    Raises:
      ValueError, TypeError: as `names_of`.
      NotImplementedError: no implementation of these names can take the call here; the message says
        why.
    """
    here, names = target(), names_of(op, implementations, asked)
    if names is None:
        for name, candidate in implementations.items():
            best = candidate.is_best(here, problem, operands)
            if best and candidate.refusal(here, problem, operands) is None:
                _note(op, name)
                return candidate.run_anywhere or candidate.run
        _note(op, default)
        return implementations[default].run
    reasons: list[str] = []
    for name in names:
        reason = implementations[name].refusal(here, problem, operands)
        if reason is None:
            _note(op, name)
            return implementations[name].run
        reasons.append(f"{name}: {reason}")
    raise NotImplementedError(f"{op} cannot run here as asked. " + "; ".join(reasons))


def _note(op: str, name: str) -> None:
    chosen = _choices.get()
    if chosen is not None:
        chosen.append((op, name))


def run(
    op: str,
    implementations: Mapping[str, Implementation],
    asked: str | Sequence[str] | None,
    problem: Any,
    operands: Any,
    *,
    forward_mode: str,
) -> Any:
    """Runs the implementation that `choose` finds, "xla" by default.

    forward_mode: the implementation to recommend when JAX says that this one has no forward mode.

    Raises:
      ValueError, TypeError, NotImplementedError: as `choose`.
    """
    call = choose(op, implementations, asked, problem, operands, "xla")
    try:
        return call(problem, operands)
    except TypeError as error:
        if "forward-mode" in str(error):
            error.add_note(f"icl.kernels: ask for implementation={forward_mode!r} to use jax.jvp")
        raise


def names_of(
    op: str, implementations: Mapping[str, Implementation], asked: Any
) -> list[str] | None:
    """The names asked for, in order of preference; None if the best one is wanted.

    Raises:
      ValueError: a name that does not exist, or no name at all.
      TypeError: an object that is not a name.
    """
    if asked is None:
        return None
    names: Any = [asked] if isinstance(asked, str) else asked
    if not _are_names(names):
        raise TypeError(f"implementation must be a name, several or None, got {asked!r}")
    unknown: list[str] = [name for name in names if name not in implementations]
    if unknown or not names:
        raise ValueError(
            f"no implementation of {op} called {', '.join(map(repr, unknown)) or 'nothing'}; "
            f"there are {', '.join(map(repr, implementations))}, or None for the best one here"
        )
    return list(names)


def _are_names(names: Any) -> TypeGuard[Sequence[str]]:
    is_sequence = isinstance(names, Sequence)
    return is_sequence and all(isinstance(name, str) for name in cast(Any, names))


def portable(
    kernel: Callable[..., Any], plain: Callable[..., Any], platform: str = "cuda"
) -> Callable[..., Any]:
    """`kernel` when lowered for `platform`, `plain` elsewhere; both `(problem, *operands)`."""

    def call(problem: Any, *operands: Any) -> Any:
        fused, default = functools.partial(kernel, problem), functools.partial(plain, problem)
        return platform_dependent(*operands, **{platform: fused}, default=default)

    return call
