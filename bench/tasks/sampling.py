"""Time to draw prompts: our samplers compared with PyTorch samplers on the host.

Ours draws a chunk of batches in one program over all devices (a CPU's cores), as a training step
does. A host sampler draws one batch a call and copies nothing to a device.
"""

import argparse
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from icl.tasks import FAMILIES, Data, TaskFamily, sample_batch
from icl.training.data import load_data
from icl.training.parallel import DATA, make_mesh, place, use_cpu_cores

from ..common.driver import one_of, positive
from ..common.report import Bar, Report, Table, busy_notes
from ..common.turns import ratios, summary, take_turns
from ..common.worker import Commands, PatientWorker, Started, Worker, failures_as_values
from ..training.trainer import seconds_of, used

START = {"ours": "bench.tasks.sampling:start", "host": "bench.tasks.sampling:start_host"}
BATCHES = 20  # in a turn
NO_PEER: tuple[str, ...] = ()  # families without a host sampler


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.add_argument("families", nargs="*", type=one_of(FAMILIES), metavar="FAMILY",
                        help=f"{', '.join(FAMILIES)}; by default all")  # fmt: skip
    parser.set_defaults(rounds=5)
    parser.add_argument("--batch", type=positive, default=64, help="prompts in a batch")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    names = options.families or list(FAMILIES)
    with_peer = [name for name in names if name not in NO_PEER]
    with ThreadPoolExecutor() as pool:  # imports take seconds
        starting = pool.submit(PatientWorker, START["host"], with_peer, options.batch)
        ours, host = Worker(START["ours"], names, options.batch), starting.result()
    with ours, host:
        return {
            "device": ours.ready["device"],
            "batch": options.batch,
            "families": {name: _measure(name, ours, host, options.rounds) for name in names},
        }


def _measure(name: str, ours: Worker, host: PatientWorker, rounds: int) -> dict[str, Any]:
    """Milliseconds a batch, after an untimed draw that compiles."""
    turns = {"ours": ours.asks(name)}
    result: dict[str, Any] = {"peer": None if name in NO_PEER else "host"}
    ours.ask(name)
    if name not in NO_PEER:
        if reason := host.ask(name).get("failed"):
            result["failed"] = reason
        else:
            turns["host"] = lambda: host.ask(name)["seconds"]
    taken, others = take_turns(turns, [ours, host], rounds)
    result["others_cpu"] = others
    result["ms_a_batch"] = {who: summary([1e3 * s for s in t]) for who, t in taken.items()}
    if "host" in taken:
        result["host_over_ours"] = ratios(taken["host"], taken["ours"])
    return result


def start(families: list[str], batch: int) -> Started:
    """Commands that draw batches of a family on the device; the first draw compiles."""
    use_cpu_cores()
    device = jax.devices()[0].device_kind
    return {"device": device}, {name: _compiled(FAMILIES[name](), batch) for name in families}


def _compiled(family: TaskFamily, batch: int):
    mesh = make_mesh(batch)
    share = batch // mesh.shape[DATA]

    def chunk(key: jax.Array, data: Data) -> jax.Array:
        mine = share * jax.lax.axis_index(DATA) + jnp.arange(share)

        def draw(_, step):
            key_of_step = jax.random.fold_in(key, step)
            return None, used(sample_batch(family, key_of_step, mine, family.full, data=data))

        _, sums = jax.lax.scan(draw, None, jnp.arange(BATCHES))
        return sums[None]

    program = jax.jit(
        jax.shard_map(chunk, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(DATA))
    )
    data = place(load_data(family), mesh)
    return lambda: {"seconds": seconds_of(lambda: program(jax.random.key(0), data)) / BATCHES}


def start_host(families: list[str], batch: int) -> Started:
    """Commands that draw batches of a family in PyTorch. Raises ValueError without PyTorch."""
    with failures_as_values():
        samplers = importlib.import_module("bench.tasks.host_samplers")
        samplers.torch.manual_seed(0)
        functions = {name: getattr(samplers, name) for name in families}

    def draw(name: str) -> dict[str, Any]:
        family, started = FAMILIES[name](), time.perf_counter()
        for _ in range(BATCHES):
            functions[name](batch, family)
        return {"seconds": (time.perf_counter() - started) / BATCHES}

    commands: Commands = {name: lambda name=name: draw(name) for name in families}
    return {}, commands


def report(results: dict[str, Any]) -> Report:
    """A table with a row for each family."""
    found, rows = Report(), []
    for name, result in results["families"].items():
        ms, over = result["ms_a_batch"], result.get("host_over_ours")
        cells = ("no peer", "", "") if result["peer"] is None else ("failed", "", "")
        if over:
            spread = f"{over['min']:.1f} to {over['max']:.1f}"
            cells = (f"{ms['host']['median']:.2f}", f"{over['median']:.1f}", spread)
            found.bars.append(Bar(name, {"PyTorch on the host": over["median"]}))
        if "failed" in result:
            found.problems.append(f"{name}, host sampler: {result['failed']}")
        rows.append((name, f"{ms['ours']['median']:.2f}", *cells))
    headings = ("family", "ours, ms a batch", "host, ms", "host over ours", "range")
    shares = {name: result["others_cpu"] for name, result in results["families"].items()}
    found.parts = [
        f"Batches of {results['batch']} prompts at each paper's size.",
        Table(headings, rows),
        *busy_notes(shares),
    ]
    return found
