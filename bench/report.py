"""The benchmark's results as tables."""

from typing import Any

from contestants import SIZES, prompt_tokens
from rich.console import Console
from rich.table import Table

QUIET = 0.05  # share of the cores' time that others may take before the report warns


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the results that are written as JSON."""
    machine = results["machine"]
    console.print(f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores")
    console.print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    table = Table(title=f"a training step; revision {machine['revision']}")
    for heading in ("size", "", "ms median", "ms min", "tokens/s", "of peak", "start-up s"):
        table.add_column(heading, justify="left" if heading in ("size", "") else "right")
    for size, result in results["sizes"].items():
        tokens = SIZES[size].training.batch_size * prompt_tokens(SIZES[size])
        for name, contestant in result["contestants"].items():
            ms, ready = contestant["ms_a_step"], contestant["ready"]
            table.add_row(
                size,
                name,
                f"{ms['median']:.1f}",
                f"{ms['min']:.1f}",
                f"{1e3 * tokens / ms['median']:,.0f}",
                f"{contestant['share_of_peak']['median']:.0%}",
                f"{ready['compile_seconds']:.1f} + {ready['warm_seconds']:.1f}",
            )
    console.print(table)
    for size, result in results["sizes"].items():
        if "torch_over_ours" in result:
            ratio = result["torch_over_ours"]
            console.print(
                f"{size}: torch takes {ratio['median']:.2f} times as long "
                f"({ratio['min']:.2f} to {ratio['max']:.2f} over {len(ratio['reps'])} pairs)"
            )
        console.print(
            f"{size}: peak {result['peak_gflops']['median']:.0f} GFLOP/s; drawing tasks "
            f"{result['draw_ms']['median']:.2f} ms, {result['draw_share']['median']:.1%} of a step"
        )
        _warn(size, result["others_cpu"], console)
        if "profile" in result:
            console.print(_profile_table(size, result["profile"]["rows"]))
            _warn(f"{size}, profile", result["profile"]["others_cpu"], console)


def _warn(what: str, others: float | None, console: Console) -> None:
    if (others or 0) > QUIET:
        console.print(
            f"{what}: other processes kept the machine {others:.0%} busy meanwhile; "
            "measure again when it is idle"
        )


def _profile_table(size: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"where our step goes, {size}")
    table.add_column("")
    for heading in ("ms", "share", "ms at peak"):
        table.add_column(heading, justify="right")
    for index, row in enumerate(rows):
        if index and row["group"] != rows[index - 1]["group"]:
            table.add_section()
        at_peak = "" if row["ms_at_peak"] is None else f"{row['ms_at_peak']:.1f}"
        table.add_row(row["name"], f"{row['ms']:.2f}", f"{row['share']:.1%}", at_peak)
    return table
