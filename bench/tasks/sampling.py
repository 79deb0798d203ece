"""Time to draw prompts: our samplers compared with samplers on the host.

Ours draws a chunk of batches in one program over all devices (a CPU's cores), as a training step
does. A host sampler draws one batch a call and copies nothing to a device.
"""

import argparse
import importlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from icl.tasks import Data, TaskFamily, sample_batch
from icl.training.data import load_data
from icl.training.parallel import DATA, make_mesh, place, use_cpu_cores

from ..common.driver import one_of, positive
from ..common.report import Bar, Report, Table, busy_notes
from ..common.turns import ratios, summary, take_turns
from ..common.worker import Commands, PatientWorker, Started, Worker, failures_as_values
from ..training.trainer import seconds_of, used
from .cases import CASES, File, family_of, make_files

START = {"ours": "bench.tasks.sampling:start", "host": "bench.tasks.sampling:start_host"}
BATCHES = 20  # in a turn
NO_PEER: tuple[str, ...] = ()  # cases without a host sampler


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.add_argument("families", nargs="*", type=one_of(CASES), metavar="FAMILY",
                        help=f"{', '.join(CASES)}; by default all")  # fmt: skip
    parser.set_defaults(rounds=5)
    parser.add_argument("--batch", type=positive, default=64, help="prompts in a batch")
    parser.add_argument("--size", type=positive, default=105, help="side of images in files")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    names = options.families or list(CASES)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(names, Path(folder), options.size)
        with_peer = {name: file for name, file in files.items() if name not in NO_PEER}
        with ThreadPoolExecutor() as pool:  # imports take seconds
            starting = pool.submit(PatientWorker, START["host"], with_peer, options.batch)
            ours, host = Worker(START["ours"], files, options.batch), starting.result()
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


def start(files: dict[str, File | None], batch: int) -> Started:
    """Commands that draw batches of a case on the device; the first draw compiles."""
    use_cpu_cores()
    device = jax.devices()[0].device_kind
    commands = {name: _compiled(family_of(name, file), batch) for name, file in files.items()}
    return {"device": device}, commands


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


def start_host(files: dict[str, File | None], batch: int) -> Started:
    """Commands that draw batches of a case on the host. Raises ValueError without PyTorch."""
    with failures_as_values():
        samplers = importlib.import_module("bench.tasks.host_samplers")
        samplers.torch.manual_seed(0)
        families = {name: family_of(name, file) for name, file in files.items()}
        functions = {name: getattr(samplers, name.partition("/")[0]) for name in files}

    def draw(name: str) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(BATCHES):
            functions[name](batch, families[name])
        return {"seconds": (time.perf_counter() - started) / BATCHES}

    commands: Commands = {name: lambda name=name: draw(name) for name in files}
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
            found.bars.append(Bar(name, {"on the host": over["median"]}))
        if "failed" in result:
            found.problems.append(f"{name}, host sampler: {result['failed']}")
        rows.append((name, f"{ms['ours']['median']:.3f}", *cells))
    headings = ("family", "ours, ms a batch", "host, ms", "host over ours", "range")
    shares = {name: result["others_cpu"] for name, result in results["families"].items()}
    found.parts = [
        f"Batches of {results['batch']} prompts at each paper's size.",
        Table(headings, rows),
        *busy_notes(shares),
    ]
    return found
