"""Whether a program fits its device, and if not, which batch does."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from .learner import Learner
from .step import microbatch_size

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
# By version: files of the limit and of the usage, and the entry of the reclaimable part of usage.
CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
# After a failed allocation, a suggestion may use this share of the memory that seemed free.
MARGIN = 0.8
TRIES = 4  # compilations of a search
ENDLESS = 2**63


class OutOfMemory(RuntimeError):
    """A step does not fit its device; the message says which batch does."""


class Program(Protocol):
    """A compiled program: a `jax.stages.Compiled`, or something around one."""

    def memory_analysis(self) -> Any: ...


def needed_bytes(compiled: Program) -> int | None:
    """Memory of a compiled program on each of its devices, in bytes; None if unknown."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + results


def available_bytes(devices: Sequence[Any]) -> int | None:
    """Memory that a program may use on each of these JAX devices, in bytes; None if unknown."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if all(limits):
        return min(limits)
    if devices[0].platform != "cpu":
        return None
    host = [size for size in (host_bytes(), cgroup_bytes()) if size is not None]
    return min(host) // len(devices) if host else None


def host_bytes() -> int | None:
    """Memory of the host that is available without swapping, in bytes; None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def cgroup_bytes() -> int | None:
    """Memory left below the limits of this process's control groups, in bytes; None if no limit."""
    left = []
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            version = 1 if controllers else 2
            top = CGROUPS / "memory" if controllers else CGROUPS
            below = [top / own.lstrip("/")]
            # A container may see the path of the host, but only the top of its folders.
            left += [_left(group, version) for group in (*below, *below[0].parents)
                     if group == top or top in group.parents]  # fmt: skip
    return min((size for size in left if size is not None), default=None)


def _left(group: Path, version: int) -> int | None:
    limit, usage, reclaimable = CGROUP_FILES[version]
    try:
        words = (group / limit).read_text().strip()
        if words == "max":
            return None
        free = int(words) - int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, free + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None


def check_state(state: Any, members: int = 1) -> None:
    """Raises OutOfMemory if the state of a run does not fit its devices.

    Args:
      state: shapes of the parameters of a model and of the state of its optimiser.
      members: number of such models, which are spread over the devices.
    """
    devices = jax.local_devices()
    sizes = (math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needs, has = sum(sizes) * -(-members // len(devices)), available_bytes(devices)
    if has is not None and needs > has:
        raise OutOfMemory(_too_large(f" needs {_bytes(needs)}; the device has {_bytes(has)}"))


@contextlib.contextmanager
def making_state() -> Iterator[None]:
    """Turns an error for lack of memory while a model is initialised into OutOfMemory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(_too_large(" does not fit")) from error


def _too_large(why: str) -> str:
    return (
        f"out of memory: the model, with the state of its optimiser,{why}. Make it smaller "
        "(model.width, model.layers, task.dim), or free memory"
    )


class MemoryGuard:
    """Raises `OutOfMemory`, with a batch that fits, if a program does not fit.

    Args:
      resume: the command that continues the run.
      learner: the learner that is trained.
      state: the state that the programs take.
      compile: compiles one step of a learner with other sizes, for a state of these shapes.
      say: shows a message to the user.
      shards: number of devices over which a batch is split.
    """

    def __init__(
        self,
        resume: str,
        learner: Learner,
        state: Any,
        compile: Callable[[Learner, Any], Program],
        say: Callable[[str], None] = lambda message: None,
        shards: int = 1,
    ):
        self._resume = resume
        self._learner = learner
        self._compile = compile
        self._say = say
        self._shards = shards
        # Shapes only: a program that fails has consumed the arrays.
        self._state = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
        )
        shardings = (leaf.sharding for leaf in jax.tree.leaves(state))
        devices = {device for sharding in shardings for device in sharding.addressable_devices}
        self._devices = sorted(devices, key=lambda device: device.id)
        self._needs: int | None = None

    def check(self, compiled: Program) -> None:
        """Raises OutOfMemory if a program needs more memory than its devices have."""
        self._needs = needed_bytes(compiled)
        has = available_bytes(self._devices)
        if self._needs is not None and has is not None and self._needs > has:
            raise OutOfMemory(self._message(has, limit=has))

    @contextlib.contextmanager
    def as_out_of_memory(self) -> Iterator[None]:
        """Turns an error of JAX for lack of memory into OutOfMemory."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            has = available_bytes(self._devices)
            failed = [size for size in (self._needs, has) if size is not None]
            limit = int(MARGIN * min(failed)) if failed else None
            raise OutOfMemory(self._message(has, limit)) from error

    def _message(self, has: int | None, limit: int | None) -> str:
        training = self._learner.config.training
        size = microbatch_size(self._learner, self._shards)
        many = f"{len(self._devices)} devices, each" if len(self._devices) > 1 else "the device"
        parts = "" if size * self._shards == training.batch_size else f" in microbatches of {size}"
        what = (
            f"out of memory: a step of batch {training.batch_size}{parts} needs "
            f"{_bytes(self._needs)}; {many} ({self._devices[0].device_kind}) has {_bytes(has)}"
        )
        if limit is None:
            return f"{what}. Lower training.microbatch_size or training.batch_size"
        self._say("out of memory; looking for a batch that fits")
        fitting = self._largest_microbatch(size, limit)
        if fitting is None:
            return (
                f"{what}. No smaller microbatch fits: make the model or its prompts smaller, or "
                "free memory"
            )
        microbatch, whole = fitting
        return (
            f"{what}. What fits: training.microbatch_size {microbatch} (gradients are "
            f"accumulated: the same updates up to rounding), or a whole batch of {whole}. "
            "Nothing saved is lost; go on with: "
            f"{self._resume} --microbatch-size {microbatch}"
        )

    def _largest_microbatch(self, size: int, limit: int) -> tuple[int, int] | None:
        """The largest smaller microbatch and a whole batch that fit; None if none does."""
        batch = self._learner.config.training.batch_size
        share = batch // self._shards
        sizes = [n for n in range(1, size) if share % n == 0]
        known = {size: ENDLESS if self._needs is None else self._needs}
        if not sizes:
            return None
        known[1] = self._compiled_bytes(batch, 1)
        if known[1] > limit:
            return None
        best, over = 1, size
        for attempt in range(TRIES):
            between = [n for n in sizes if best < n < over]
            guess = _line(known, limit)
            if not between or (attempt and guess < between[0]):
                break
            middle = between[len(between) // 2]
            n = max((n for n in between if n <= guess), default=middle)
            known[n] = self._compiled_bytes(batch, n)
            best, over = (n, over) if known[n] <= limit else (best, n)
        microbatch, guess = best, _line(known, limit)
        whole = _round(min(guess, share - 1))
        if whole > microbatch and self._compiled_bytes(whole * self._shards, whole) <= limit:
            return microbatch, whole * self._shards
        return microbatch, microbatch * self._shards

    def _compiled_bytes(self, batch: int, microbatch: int) -> int:
        """Memory of a step with these sizes, by compiling it; ENDLESS if compiling fails."""
        config = self._learner.config.replace(
            training_batch_size=batch, training_microbatch_size=microbatch
        )
        try:
            needs = needed_bytes(self._compile(Learner(config), self._state))
        except (jax.errors.JaxRuntimeError, ValueError):
            needs = None
        return ENDLESS if needs is None else needs


def _line(known: dict[int, int], limit: int) -> float:
    """The size at which the memory reaches the limit, by a line through the two nearest sizes.

    Args:
      known: memory by size, in bytes; at least one size fits.
      limit: memory that may be used, in bytes.
    """
    fitting = sorted(n for n, needs in known.items() if needs <= limit)
    larger = sorted(n for n, needs in known.items() if limit < needs < ENDLESS)
    low = fitting[-1]
    others = larger[:1] or fitting[-2:-1]
    if not others:
        return low
    slope = (known[others[0]] - known[low]) / (others[0] - low)
    return low + (limit - known[low]) / max(1.0, slope)


def _round(number: float) -> int:
    """Rounds down to three binary digits."""
    whole = max(1, int(number))
    return whole - whole % (1 << max(0, whole.bit_length() - 3))


def _bytes(number: int | None) -> str:
    if number is None:
        return "an unknown amount"
    power = min(4, max(0, number.bit_length() - 1) // 10)
    return f"{number / 1024**power:,.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
