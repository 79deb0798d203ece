"""Prompts drawn per second: ours, as the trainer draws them, beside host samplers, in turn.

Ours draws a chunk of batches in one program over all devices (a CPU's cores), as a training step
does; a peer makes one batch a call, in PyTorch, and moves nothing to a device.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
from harness import ratios, summary, take_turns, write_results
from jax.sharding import PartitionSpec
from machine import describe
from peers import host_samplers

from icl.tasks import FAMILIES, TaskFamily, sample_batch
from icl.training.parallel import DATA, make_mesh, use_cpu_cores

BATCHES = 20  # of a turn


def main(argv: list[str] | None = None) -> None:
    """Prints and writes milliseconds a batch of every family at its paper's size."""
    parser = argparse.ArgumentParser(prog="bench/sampling.py", description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="names in icl.tasks")
    parser.add_argument("--batch", type=int, default=64, help="prompts a batch")
    parser.add_argument("--reps", type=int, default=9, help="turns each gets")
    parser.add_argument("--output", type=Path, help="JSON file in place of the one in results/")
    options = parser.parse_args(argv)
    use_cpu_cores()
    machine = describe() | {"device": jax.devices()[0].device_kind}
    results = {"machine": machine, "batch": options.batch, "families": {}}
    print(f"{'family':32}{'ours, ms':>10}{'host, ms':>10}{'host / ours':>26}")
    for name in options.families:
        family = FAMILIES[name]()
        turns = {"ours": _ours(family, options.batch), "host": _host(name, family, options.batch)}
        for turn in turns.values():
            turn()
        taken = take_turns(turns, options.reps)
        over = ratios(taken["host"], taken["ours"])
        ms = {who: summary([1e3 * seconds for seconds in t]) for who, t in taken.items()}
        results["families"][name] = {"ms_a_batch": ms, "host_over_ours": over}
        spread = f"{over['median']:.1f} ({over['min']:.1f} to {over['max']:.1f})"
        print(f"{name:32}{ms['ours']['median']:10.2f}{ms['host']['median']:10.2f}{spread:>26}")
    print(f"written to {write_results('sampling', results, options.output)}")


def _ours(family: TaskFamily, batch: int) -> Callable[[], float]:
    mesh = make_mesh(batch)
    share = batch // mesh.shape[DATA]

    def chunk(key: jax.Array) -> jax.Array:
        mine = share * jax.lax.axis_index(DATA) + jnp.arange(share)

        def draw(_, step):
            episodes = sample_batch(family, jax.random.fold_in(key, step), mine, family.full)
            # Whatever is drawn is used, or XLA would leave it out.
            return None, sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(episodes))

        _, sums = jax.lax.scan(draw, None, jnp.arange(BATCHES))
        return jnp.asarray(sums)[None]

    program = jax.jit(
        jax.shard_map(chunk, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(DATA))
    )
    return partial(_seconds, lambda: program(jax.random.key(0)).block_until_ready())


def _host(name: str, family: TaskFamily, batch: int) -> Callable[[], float]:
    sample = getattr(host_samplers, name)
    torch.manual_seed(0)

    def batches() -> None:
        for _ in range(BATCHES):
            sample(batch, family)

    return partial(_seconds, batches)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds a batch."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / BATCHES


if __name__ == "__main__":
    main()
