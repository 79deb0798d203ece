"""The benchmark's results as tables."""

from typing import Any

from goals import goals
from rich.console import Console
from rich.table import Table
from training_cases import case_config, prompt_tokens

QUIET = 0.05  # share of the cores' time that others may take before the report warns
VERDICTS = {True: "met", False: "MISSED", None: ""}


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the results that are written as JSON."""
    machine = results["machine"]
    console.print(f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores")
    console.print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    for axis, found in results.get("scaling", {}).items():
        console.print(_scaling_table(axis, found))
        console.print(
            f"time grows as {axis}^{found['exponent']:.2f}, "
            f"operations as {axis}^{found['flops_exponent']:.2f}"
        )
        _warn(axis, found["others_cpu"], console)
    if "cases" not in results:
        return
    console.print(_table(results))
    if results["platform"] != "cpu":
        console.print(
            "float32 is each framework's default: JAX may round factors to TF32, in the peak too; "
            "PyTorch does not"
        )
    for case, result in results["cases"].items():
        _show_case(case, result, console)
    table = _new_table("goals", "goal", "measured", "")
    for goal in goals(results):
        table.add_row(goal.text, goal.value, VERDICTS[goal.met])
    console.print(table)


def _new_table(title: str, *headings: str, left: int = 1) -> Table:
    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table


def _table(results: dict[str, Any]) -> Table:
    headings = ("ms median", "ms min", "tokens/s", "of peak")
    headings += ("peak MiB", "grown by", "program's", "start-up s")
    title = f"a training step; revision {results['machine']['revision']}"
    table = _new_table(title, "case", "", *headings, left=2)
    for case, result in results["cases"].items():
        config = case_config(case)
        tokens = config.training.batch_size * prompt_tokens(config)
        for name, contestant in result["contestants"].items():
            ms, ready = contestant["ms_a_step"], contestant["ready"]
            table.add_row(
                case,
                name,
                f"{ms['median']:.1f}",
                f"{ms['min']:.1f}",
                f"{1e3 * tokens / ms['median']:,.0f}",
                f"{contestant['share_of_peak']['median']:.0%}",
                *_mebibytes(contestant["memory"]),
                f"{ready['compile_seconds']:.1f} + {ready['warm_seconds']:.1f}",
            )
        for name in result["failed"]:
            table.add_row(case, name, "failed")
        table.add_section()
    return table


def _mebibytes(memory: dict[str, Any]) -> list[str]:
    """The peak of the device or else of the process, that less the start's, the program's own."""
    before, resident = memory["resident"]["before"], memory["resident"]["peak"]
    grown = None if memory["device"] else resident - before
    cells = (memory["device"] or resident, grown, memory["program"])
    return ["" if size is None else f"{size / 2**20:,.0f}" for size in cells]


def _show_case(case: str, result: dict[str, Any], console: Console) -> None:
    for name, reason in result["failed"].items():
        console.print(f"{case}: {name} failed: {reason}")
    for name, ratio in result["times_ours"].items():
        apart = "" if ratio["in_turn"] else "; one after the other: memory did not suffice for both"
        console.print(
            f"{case}: {name} takes {ratio['median']:.2f} times as long as {ratio['ours']} "
            f"({ratio['min']:.2f} to {ratio['max']:.2f} over {len(ratio['reps'])} rounds, "
            f"{ratio['fastest']:.2f} between the fastest{apart})"
        )
    for dtype, peak in result.get("peak_gflops", {}).items():
        console.print(f"{case}: {dtype} peak {peak['median']:,.0f} GFLOP/s")
    if "draw_ms" in result:
        console.print(
            f"{case}: drawing tasks {result['draw_ms']['median']:.2f} ms, "
            f"{result['draw_share']['median']:.1%} of a step"
        )
    _warn(case, max((share or 0 for share in result["others_cpu"]), default=0), console)
    if "profile" in result:
        console.print(_profile_table(case, result["profile"]["rows"]))
        _warn(f"{case}, profile", result["profile"]["others_cpu"], console)


def _warn(what: str, others: float | None, console: Console) -> None:
    if (others or 0) > QUIET:
        console.print(
            f"{what}: other processes kept the machine {others:.0%} busy meanwhile; "
            "measure again when it is idle"
        )


def _profile_table(case: str, rows: list[dict[str, Any]]) -> Table:
    table = _new_table(f"where our step goes, {case}", "", "ms", "share", "ms at peak")
    for row in rows:
        at_peak = "" if row["ms_at_peak"] is None else f"{row['ms_at_peak']:.1f}"
        table.add_row(row["name"], f"{row['ms']:.2f}", f"{row['share']:.1%}", at_peak)
    return table


def _scaling_table(axis: str, found: dict[str, Any]) -> Table:
    title = f"{axis}, from {found['base']}"
    table = _new_table(title, axis, "ms median", "tokens/s", "of peak", left=0)
    for row in found["rows"]:
        ms = row["ms_a_step"]["median"]
        table.add_row(
            str(row["value"]),
            f"{ms:.2f}",
            f"{1e3 * row['tokens'] / ms:,.0f}",
            f"{row['share_of_peak']['median']:.0%}",
        )
    return table
