"""What stops a run: no memory, a full disk, a signal, another process in the folder."""

import contextlib
import errno
import io
import os
import resource
import signal
import sys
import threading
import types
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from rich.table import Table

import icl
from icl import output
from icl.cli import main
from icl.experiments import preset
from icl.training import (
    CannotSave,
    DiskFull,
    Interrupted,
    Learner,
    NonFiniteLoss,
    OutOfMemory,
    Run,
    RunError,
    estimate,
    loop,
    memory,
    metrics,
    single,
)
from icl.training import checkpoints as checkpoints_module
from icl.training.checkpoints import DamagedCheckpoint
from icl.training.config import TrainingConfig
from icl.training.disk import full_disk, refused
from icl.training.progress import ProgressDisplay

from .children import small
from .helpers import QUIET, assert_same_bits, contents, tiny

pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs):
    return icl.train(small(), tmp_path_factory.mktemp("runs") / "finished", logging=QUIET)


def lines(run):
    return [(r["step"], r["loss"], r["grad_norm"], r["learning_rate"]) for r in run.metrics()]


@contextlib.contextmanager
def files_end_at(size):
    """No file of this process can grow past `size` bytes, as on a full disk with another errno."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_file_opens():
    """This process can open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def at(monkeypatch, owner, name, step, limit):
    """Holds the context `limit()` while `owner.name(self, step, ...)` runs."""
    original = getattr(owner, name)

    def limited(self, now, *rest):
        with limit() if now == step else contextlib.nullcontext():
            return original(self, now, *rest)

    monkeypatch.setattr(owner, name, limited)


def full_at(monkeypatch, owner, name, step, size):
    """The disk is full while `owner.name(self, step, ...)` runs."""
    at(monkeypatch, owner, name, step, lambda: files_end_at(size()))


# A limit of 10 bytes stops the JSON files of Orbax, 8000 those of TensorStore, with another error.
@pytest.mark.parametrize(("size", "kind"), [(10, OSError), (8000, ValueError)])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capfd, finished, size, kind
):
    with monkeypatch.context() as patch, pytest.raises(DiskFull) as caught:
        full_at(patch, checkpoints_module.Checkpoints, "save", 20, lambda: size)
        icl.train(small(), tmp_path / "run", logging=QUIET)
    assert type(caught.value.__cause__) is kind
    assert "Traceback" not in capfd.readouterr().err
    message = str(caught.value)
    for part in ("the checkpoint of step 20", "last good checkpoint is step 10, which is whole",
                 f"icl train --resume {tmp_path / 'run'}"):  # fmt: skip
        assert part in message
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]
    run = Run.open(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedCheckpoint)
        assert run.variables()[0] == 10
        icl.resume(run, logging=QUIET)
    assert_same_bits(run.variables()[1], finished.variables()[1])
    assert lines(run) == lines(finished)


def test_a_full_disk_under_the_metrics(tmp_path, monkeypatch, finished):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        already = lambda: (run_dir / "metrics.jsonl").stat().st_size + 10
        full_at(patch, metrics.JsonLines, "write", 15, already)
        with pytest.raises(DiskFull, match="metrics of step 15 .*good checkpoint is step 10"):
            icl.train(small(), run_dir, logging=QUIET)
    run = Run.open(run_dir)
    assert [record["step"] for record in run.metrics()][:2] == [5, 10]
    with files_end_at(50), pytest.raises(DiskFull, match="metrics.jsonl could not be written"):
        icl.resume(run, logging=QUIET)
    assert [record["step"] for record in run.metrics()][:2] == [5, 10]
    icl.resume(run, logging=QUIET)
    assert lines(run) == lines(finished)
    assert_same_bits(run.variables()[1], finished.variables()[1])


def test_a_full_disk_under_the_settings_leaves_the_folder_free(tmp_path):
    with files_end_at(100), pytest.raises(DiskFull, match="config.json could not be written"):
        icl.train(small(), tmp_path / "run", logging=QUIET)
    assert Run.create(tmp_path / "run", small()).config == small()


def test_a_save_that_the_system_refuses_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, finished
):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(CannotSave) as caught:
        at(patch, checkpoints_module.Checkpoints, "save", 20, no_file_opens)
        icl.train(small(), run_dir, logging=QUIET)
    for part in ("checkpoint of step 20", "Too many open files", "ulimit -n", "are as they were",
                 f"icl train --resume {run_dir}"):  # fmt: skip
        assert part in str(caught.value)
    run = Run.open(run_dir)
    before = contents(run_dir)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="Too many open files"):
        restore = checkpoints_module.Checkpoints.restore

        def short(*arguments):
            with no_file_opens():
                return restore(*arguments)

        patch.setattr(checkpoints_module.Checkpoints, "restore", short)
        icl.resume(run, logging=QUIET)
    assert contents(run_dir) == before
    icl.resume(run, logging=QUIET)
    assert_same_bits(run.variables()[1], finished.variables()[1])


def test_errors_that_do_not_mean_damage():
    denied = 'PERMISSION_DENIED: Failed to open: "manifest.ocdbt": Permission denied [source]'
    assert refused(ValueError(denied)).errno == errno.EACCES
    assert refused(ValueError("Error decoding local file")) is None
    assert refused(OSError(errno.EIO, "Input/output error")).errno == errno.EIO
    for number in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
        assert refused(OSError(number, os.strerror(number))) is None


def test_errors_that_mean_a_full_disk():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert full_disk(OSError(number, os.strerror(number)))
    assert not full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not full_disk(ValueError("RESOURCE_EXHAUSTED: Out of memory"))


@pytest.mark.parametrize(
    "error",
    [
        DiskFull("the reason"),
        CannotSave("the reason"),
        OutOfMemory("the reason"),
        NonFiniteLoss("the reason"),
        OSError(errno.ENOSPC, "No space left on device: the reason"),
        OSError(errno.EACCES, "Permission denied", "the reason"),
    ],
)
def test_bad_days_are_exit_status_one(monkeypatch, capsys, error):
    def fail(*_, **options):
        assert options["microbatch_size"] == 4
        raise error

    monkeypatch.setattr("icl.training.resume", fail)
    assert main(["train", "--resume", "somewhere", "--microbatch-size", "4"]) == 1
    assert "the reason" in capsys.readouterr().err


def test_one_process_of_many_makes_the_run(tmp_path):
    path, gate, outcomes = tmp_path / "run", threading.Barrier(6), []

    def make(seed):
        gate.wait()
        try:
            outcomes.append(Run.create(path, small(training_seed=seed)).config)
        except RunError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [o for o in outcomes if not isinstance(o, str)]
    assert Run.open(path).config == winner
    assert all(str(path) in o for o in outcomes if isinstance(o, str))


def test_a_folder_that_another_process_is_making_is_refused(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with Run(path, small()).locked(), pytest.raises(RunError, match=f"{path} is being trained by"):
        Run.create(path, small())
    assert Run.create(path, small()).path == path


class Program:
    """A compiled program that needs `needs` bytes beside its results."""

    def __init__(self, needs):
        self.needs = needs

    def memory_analysis(self):
        return types.SimpleNamespace(
            temp_size_in_bytes=self.needs,
            argument_size_in_bytes=300,
            output_size_in_bytes=400,
            alias_size_in_bytes=300,
        )


def guard_of(batch, microbatch, needs, shards=1):
    """A guard, and a list of the sizes that it compiles; `needs(share, microbatch)` is in bytes."""
    config = small(training_batch_size=batch, training_microbatch_size=microbatch)
    compiled = []

    def compile(learner, state):
        training = learner.config.training
        compiled.append(training.microbatch_size)
        return Program(needs(training.batch_size // shards, training.microbatch_size))

    state = jax.numpy.zeros(3)
    return memory.MemoryGuard(
        "icl train --resume RUN", Learner(config), state, compile, shards=shards
    ), compiled


@pytest.mark.parametrize(
    ("needs", "limit", "suggested", "compilations"),
    [
        (lambda batch, size: 1000 * size, 41_000, (32, 40), 3),
        (lambda batch, size: 1000 * size + 5000 * (size < batch), 41_000, (32, 32), 3),
        (lambda batch, size: 10 * size**2, 1500, (8, 8), 6),
        (lambda batch, size: 10**6, 41_000, None, 1),
    ],
)
def test_the_batch_that_is_suggested_fits(monkeypatch, needs, limit, suggested, compilations):
    monkeypatch.setattr(memory, "available_bytes", lambda devices: limit)
    guard, compiled = guard_of(256, 256, needs)
    with pytest.raises(OutOfMemory) as caught:
        guard.check(Program(needs(256, 256)))
    message = str(caught.value)
    assert f"has {limit / 1024:.1f} KiB" in message
    if suggested is None:
        assert "No smaller microbatch fits" in message
    else:
        microbatch, whole = suggested
        assert f"training.microbatch_size {microbatch} (" in message
        assert f"a whole batch of {whole}." in message
        assert f"icl train --resume RUN --microbatch-size {microbatch}" in message
        assert max(needs(256, microbatch), needs(whole, whole)) + 400 <= limit
    assert len(compiled) <= compilations
    guard.check(Program(limit - 400))


def test_a_batch_over_several_devices_is_told_per_device(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda devices: 41_000)
    guard, _ = guard_of(256, 64, lambda share, size: 1000 * size, shards=4)
    with pytest.raises(OutOfMemory, match="microbatch_size 32 .*whole batch of 160"):
        guard.check(Program(64_000))


def test_a_failed_compilation_is_told_too(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda devices: 40_000)
    guard, _ = guard_of(64, 64, lambda batch, size: 1000 * size)
    with pytest.raises(OutOfMemory, match="needs an unknown amount.*microbatch_size 16 "):
        with guard.as_out_of_memory():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: while compiling")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), guard.as_out_of_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_an_allocation_that_xla_refuses_is_told(monkeypatch):
    # XLA refuses more than a process can address before it touches any memory.
    huge = jax.jit(lambda x: jax.numpy.cumsum(jax.numpy.broadcast_to(x, 2**50))[:: 2**40])
    chunk = huge.lower(jax.numpy.float32(1)).compile()
    assert memory.needed_bytes(chunk) > 2**50
    monkeypatch.setattr(memory, "available_bytes", lambda devices: None)
    guard, _ = guard_of(64, 64, lambda batch, size: 2**46 * size)
    with pytest.raises(OutOfMemory, match="TiB.*has an unknown amount.*microbatch_size 32 "):
        with guard.as_out_of_memory():
            guard.check(chunk)
            jax.block_until_ready(chunk(jax.numpy.float32(1)))


def test_out_of_memory_and_on_with_a_smaller_microbatch(tmp_path, monkeypatch):
    config = small(
        task_points=41,  # prompts need more memory than the gradient
        optimizer_warmup_steps=0,
        training=TrainingConfig(
            steps=1, batch_size=2, microbatch_size=2, log_every=1, checkpoint_every=1
        ),
    )
    had = []

    def needed_bytes(compiled):
        had.append(original(compiled))
        return had[-1]

    original = memory.needed_bytes
    monkeypatch.setattr(memory, "needed_bytes", needed_bytes)
    monkeypatch.setattr(memory, "available_bytes", lambda devices: had[0] - 1 if had else None)
    with pytest.raises(OutOfMemory, match="microbatch_size 1 .*--microbatch-size 1"):
        icl.train(config, tmp_path / "run", logging=QUIET)
    run = icl.resume(tmp_path / "run", microbatch_size=1, logging=QUIET)
    assert had[0] > had[1] == had[-1]
    assert run.config.training.microbatch_size == 2 and run.variables()[0] == 1
    with pytest.raises(ValueError, match="must divide batch_size"):
        icl.resume(run, microbatch_size=3)


def test_memory_of_the_host_and_its_limits(tmp_path, monkeypatch):
    assert memory.host_bytes() > 2**20
    assert memory.available_bytes(jax.devices("cpu")[:1]) <= memory.host_bytes() * 1.5
    for name in ("CGROUPS", "OWN_CGROUPS", "MEMINFO"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_bytes(jax.devices("cpu")[:1]) is None
    (tmp_path / "MEMINFO").write_text("MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    assert memory.available_bytes(jax.devices("cpu")[:1]) == 5 * 1024
    group = tmp_path / "CGROUPS" / "a"
    (group / "b").mkdir(parents=True)
    (tmp_path / "OWN_CGROUPS").write_text("3:cpu:/x\n0::/a/b\n")
    assert memory.cgroup_bytes() is None
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "x 1\ninactive_file 100")):
        (group / f"memory.{name}").write_text(text)
        (group / "b" / f"memory.{name}").write_text(text.replace("1000", "max"))
    assert memory.cgroup_bytes() == 400
    first = tmp_path / "CGROUPS" / "memory"
    first.mkdir()
    (tmp_path / "OWN_CGROUPS").write_text("4:memory:/out/of/sight\n")
    for name, text in (("limit_in_bytes", "90"), ("usage_in_bytes", "70"), ("stat", "")):
        (first / f"memory.{name}").write_text(text)
    assert memory.cgroup_bytes() == 20


@pytest.mark.parametrize(
    ("log_every", "seconds", "expected"),
    [(100, None, 100), (100, 0.01, 100), (100, 0.5, 20), (100, 3, 2), (100, 60, 2), (7, 3, 7),
     (9, 3, 3), (1, 60, 1)],
)  # fmt: skip
def test_steps_at_once(log_every, seconds, expected):
    assert estimate.steps_at_once(log_every, seconds) == expected


@hypothesis.given(st.data())
def test_no_step_runs_alone(data):
    log_every, steps = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 70))
    sizes = [n for n in range(2, log_every + 1) if log_every % n == 0] or [1]
    step = 0
    while step < steps:
        end = min(step - step % log_every + log_every, steps)
        # A resume may choose another size.
        at_once = data.draw(st.sampled_from(sizes))
        length = estimate.chunk_length(step, end, at_once)
        assert 1 <= length <= min(end - step, at_once + 2)
        assert length > 1 or (step % log_every == 0 and end - step == 1)
        step += length


def test_a_long_run_is_told_before_it_starts(monkeypatch):
    monkeypatch.setattr(estimate, "product_flops_per_second", lambda: 200e9)
    seconds = estimate.step_seconds(Learner(preset("garg/linear")))
    assert 2 < seconds < 5
    message = estimate.long_run(500_000, seconds)
    assert message.startswith("about 1") and "days on this CPU (500,000 steps of" in message
    assert "-xs take minutes; Ctrl-C saves and leaves" in message
    assert "hours" in estimate.long_run(10_000, 3) and "minutes on" in estimate.long_run(1000, 3)
    assert estimate.long_run(10, 3) is estimate.long_run(10**6, None) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert estimate.step_seconds(Learner(preset("garg/linear"))) is None


def test_a_stop_between_two_lines_of_metrics(tmp_path, monkeypatch, finished, capsys):
    config = small(training_log_every=10)
    monkeypatch.setattr(single, "step_seconds", lambda learner: 4)
    monkeypatch.setattr(estimate, "LONG_SECONDS", 60)
    stop = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "saves_first", lambda: contextlib.nullcontext(stop))
        show = lambda display, step, record: step == 4 and stop.append(2)
        patch.setattr(ProgressDisplay, "update", show)
        with pytest.raises(Interrupted) as caught:
            icl.train(config, tmp_path / "run")
    assert "about 80 s on this CPU (20 steps of about 4 s)" in capsys.readouterr().out
    assert caught.value.step == 4
    run = Run.open(tmp_path / "run")
    assert run.variables()[0] == 4 and not run.metrics()
    icl.resume(run, logging=QUIET)
    # Chunks of 2 steps in this run and of 5 in the other give equal bits.
    assert_same_bits(run.variables()[1], finished.variables()[1])
    assert [record["step"] for record in run.metrics()] == [10, 20]
    last = np.mean([record["loss"] for record in finished.metrics()[2:]])
    np.testing.assert_allclose(run.metrics()[1]["loss"], last, rtol=1e-5)


def stopped(tmp_path, finished, signum, **options):
    """Trains a run that the signal stops; its resume ends with the bits of `finished`."""
    with pytest.raises(Interrupted, match="icl train --resume") as caught:
        icl.train(small(), tmp_path / "run", **options)
    run = Run.open(tmp_path / "run")
    assert caught.value.signum == signum and 0 < run.variables()[0] == caught.value.step < 20
    icl.resume(run, logging=QUIET)
    assert_same_bits(run.variables()[1], finished.variables()[1])


def test_a_terminal_that_closes_saves_the_run(tmp_path, monkeypatch, finished):
    def hang_up(display, step, record):
        if step == 10:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ProgressDisplay, "update", hang_up)
            stopped(tmp_path, finished, signal.SIGHUP, logging=QUIET)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with monkeypatch.context() as patch:
            patch.setattr(ProgressDisplay, "update", hang_up)
            icl.train(small(), tmp_path / "nohup", logging=QUIET)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_output_that_is_closed_saves_the_run(tmp_path, monkeypatch, finished):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        stopped(tmp_path, finished, signal.SIGPIPE)
        print("nowhere", flush=True)  # raises no error


def test_a_signal_while_compiling_stops_before_the_chunk(tmp_path, monkeypatch, finished):
    original, stop = single.compile_chunk, []

    def compile_chunk(*arguments):
        stop.append(signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "saves_first", lambda: contextlib.nullcontext(stop))
        patch.setattr(single, "compile_chunk", compile_chunk)
        with pytest.raises(Interrupted, match="stopped at step 0; continue with"):
            icl.train(small(), tmp_path / "run", logging=QUIET)
    run = icl.resume(tmp_path / "run", logging=QUIET)
    assert_same_bits(run.variables()[1], finished.variables()[1])


def test_memory_that_ends_while_a_model_is_made_is_told(tmp_path, monkeypatch):
    with pytest.raises(OutOfMemory, match="the model, .* needs .* TiB; the device has"):
        icl.train(tiny(model_width=10**6), tmp_path / "run", logging=QUIET)
    assert not (tmp_path / "run").exists()

    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(single, "prepare", lambda config, optimizer: (Learner(config), None))
        patch.setattr(single, "init_state", fail)
        with pytest.raises(OutOfMemory, match="does not fit. Make it smaller .model.width"):
            icl.train(small(), tmp_path / "run", logging=QUIET)


def test_output_can_be_plain_narrow_or_full_of_brackets(capsys, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(), "ascii")
    table = Table("k", *(str(k) for k in range(9)), title="[bold]x[/nothing] :smile:")
    table.add_row("transformer", *["±0.123"] * 9)
    monkeypatch.setenv("COLUMNS", "40")
    output.show(table)
    wide = capsys.readouterr().out
    assert wide.count("±0.123") == 9 and "[bold]x[/nothing] :smile:" in wide
    monkeypatch.setattr(sys, "stdout", text)
    output.show(table)
    output.say("[bold]x[/nothing] é\udcff")
    text.flush()
    plain = text.buffer.getvalue().decode("ascii")
    assert plain.count("~0.123") == 9 and "[bold]x[/nothing] e?" in plain
    assert len({len(line) for line in plain.splitlines()[1:-1]}) == 1
