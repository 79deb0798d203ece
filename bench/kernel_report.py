"""The kernel benchmark's results as text."""

import textwrap
from typing import Any

from kernel_cases import METHODS

QUIET = 0.05  # share of the cores' time that others may take before the report warns
WIDTH = 116


def show_gate(case: tuple[str, str], gate: dict[str, Any]) -> None:
    """Prints a line of errors, and a line for each contestant that is wrong or did not run."""
    answers = gate["answers"]
    worst = {n: max(a["errors"].values()) for n, a in answers.items() if "errors" in a}
    _wrap(f"{' '.join(case)}: ", [f"{name} {error:.1e}" for name, error in worst.items()])
    for name, answer in answers.items():
        reason = answer.get("wrong") or answer.get("failed")
        if reason:
            print(f"    {name} {'is wrong' if 'wrong' in answer else 'failed'}: {reason}")
        if answer.get("same_bits") is False:
            print(f"    {name}: two runs differ in their bits")


def show(results: dict[str, Any]) -> None:
    """Prints the results that are written as JSON."""
    machine = results["machine"]
    print()
    print(f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores, {results['dtype']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    print(f"revision {machine['revision']}, {machine['date']}, seed {results['seed']}")
    flagged, methods = [], set()
    for name, workload in results["workloads"].items():
        shape = workload["shape"]
        less = f" of {workload['whole_batch']}" if shape["B"] != workload["whole_batch"] else ""
        print(
            f"\n{name}: {shape['B']}{less} batch rows, T={shape['T']}, N={shape['N']}, "
            f"H={shape['H']}, {'causal' if shape['is_causal'] else 'full'}; "
            f"ours is {workload['ours_is']}"
        )
        for way, result in workload["directions"].items():
            _show_direction(way, result)
            methods |= {c["method"] for c in result["contestants"].values() if "method" in c}
            if result["faster"]:
                flagged.append(f"{name} {way} ({', '.join(result['faster'])})")
    print()
    for method in sorted(methods):
        print(f"{method}: {METHODS[method]}")
    _wrap("ours is not the fastest: ", flagged or ["nowhere"])


def _show_direction(way: str, result: dict[str, Any]) -> None:
    contestants, peer = result["contestants"], result["best_peer"]
    ours = contestants["ours"]
    if "us" not in ours:
        print(f"  {way}: ours failed: {ours['failed']}")
        return
    line = f"  {way:<16} {ours['us']['median']:>11,.1f} us, "
    line += f"{result['of_floor']['median']:.1%} of the floor's speed"
    if peer:
        ratio = contestants[peer]["over_ours"]
        line += f"; best peer {peer} takes {ratio['median']:.2f} times as long "
        line += f"({ratio['min']:.2f} to {ratio['max']:.2f})"
    print(line)
    if result["faster"]:
        _wrap("    SLOWER THAN ", result["faster"])
    timed = {name: c["us"]["median"] for name, c in contestants.items() if "us" in c}
    rest = [f"{name} {us:,.1f}" for name, us in timed.items() if name != "ours"]
    rest += [f"{n} wrong" if "wrong" in c else f"{n} failed" for n, c in contestants.items()
             if "us" not in c]  # fmt: skip
    _wrap("    us: ", rest)
    _wrap(
        "    ",
        [
            f"floor {result['floor_us']['median']:,.1f} us at "
            f"{result['gigabytes_a_second']['median']:,.0f} GB/s and "
            f"{result['teraflops_a_second']['median']:,.2f} TFLOP/s",
            f"ours compiled in {ours['compile_seconds']:.1f} s",
            f"{len(ours['us']['reps'])} rounds by {ours['method']}",
        ],
    )
    if (result["others_cpu"] or 0) > QUIET and ours["method"] != "cupti":
        print(f"    other processes kept the machine {result['others_cpu']:.0%} busy meanwhile")


def _wrap(start: str, parts: list[str]) -> None:
    indent = " " * (len(start) - len(start.lstrip()) + 4)
    text = start + ", ".join(parts)
    print(textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False))
