"""The kernel benchmark's report."""

from collections.abc import Iterator
from typing import Any

from ..common.report import Bar, Report, Table, busy_notes
from .ops import DIRECTIONS, PEERS

METHODS = {
    "wall": "wall time of calls one after the other",
    "cupti": "durations of the kernels by CUPTI: no gaps, no copies by the driver, no memsets",
    "chain": "wall time of many launches in one program, by the number of launches",
    "torch.profiler": "durations of the kernels by torch.profiler, as with cupti",
    "CUDA events": "time between CUDA events around many launches, by their number",
}
NAMED = 3  # number of cases that a fault names

Results = dict[str, Any]


def show_gate(key: tuple[str, str], answers: dict[str, Any]) -> None:
    """Prints a line of the largest errors and a line for each fault."""
    worst = {n: max(a["errors"].values()) for n, a in answers.items() if "errors" in a}
    print(f"{' '.join(key)}: {', '.join(f'{name} {error:.1e}' for name, error in worst.items())}")
    for name, answer in answers.items():
        for fault in ("wrong", "failed", "cannot"):
            if fault in answer:
                print(f"    {name} {fault}: {answer[fault]}")
        if answer.get("same_bits") is False:
            print(f"    {name}: two runs differ in their bits")


def report(results: Results) -> Report:
    """Tables, paragraphs, bars and problems of the results of `benchmark.measure`."""
    cases = list(_cases(results))
    timed = [(name, way, result) for name, way, result in cases if "faster" in result]
    parts: list[str | Table] = [
        f"{results['dtype']}, seed {results['seed']}. The columns of contestants are their times "
        "over ours, medians of ratios round by round: above 1, ours is faster. "
        "A star marks the best peer."
    ]
    for way in DIRECTIONS:
        parts += _tables(results, way)
    if results.get("against"):
        parts.append(_older(results, f"ours at {results['against']}"))
    slower = [f"{name} {way} ({', '.join(r['faster'])})" for name, way, r in timed if r["faster"]]
    parts.append(f"ours is not the fastest: {', '.join(slower) or 'nowhere'}")
    methods = {c["method"] for *_, r in cases for c in r["contestants"].values() if "method" in c}
    parts += [f"{method}: {METHODS[method]}." for method in sorted(methods)]
    parts += [f"cannot: {reason}" for reason in _reasons(cases, "cannot")]
    if methods != {"cupti"}:  # other processes do not affect the durations of kernels
        parts += busy_notes({f"{name} {way}": result["others_cpu"] for name, way, result in cases})
    problems = [f"{reason}" for fault in ("wrong", "failed") for reason in _reasons(cases, fault)]
    problems += [
        f"the floor of {name} {way}: {result['ceiling_failed']}"
        for name, way, result in cases
        if "ceiling_failed" in result
    ]
    bars = [Bar(f"{name} {way}", _ratios(result), _share(result)) for name, way, result in timed]
    return Report(parts, bars, "the floor's speed", problems)


def _cases(results: Results) -> Iterator[tuple[str, str, Results]]:
    for name, workload in results["workloads"].items():
        for way, result in workload["directions"].items():
            yield name, way, result


def _sight(shape: dict[str, Any]) -> str:
    """Which keys are seen, after a shape; "" if the workload is causal."""
    if shape["is_causal"]:
        return ""
    fewest, most = shape.get("keys", (None, None))
    if fewest is None:
        return " full"
    return f" {fewest} keys" if fewest == most else f" {fewest} to {most} keys"


def _tables(results: Results, way: str) -> Iterator[str | Table]:
    """A heading and a table for each set of workloads that share their contestants."""
    rows: dict[tuple[str, ...], list[list[str]]] = {}
    for name, workload in results["workloads"].items():
        if way not in workload["directions"]:
            continue
        result, shape = workload["directions"][way], workload["shape"]
        ours, share = result["contestants"]["ours"], _share(result)
        row = [
            name,
            "x".join(str(shape[size]) for size in "BTNH") + _sight(shape),
            workload["ours_is"],
            f"{ours['us']['median']:,.1f}" if "us" in ours else "failed",
            f"{share:.0%}" if share is not None else "-",
        ]
        others = tuple(other for other in result["contestants"] if other != "ours")
        cells = [_cell(result["contestants"][other]) for other in others]
        row += [f"{c}*" if o == result.get("best_peer") else c for o, c in zip(others, cells)]
        rows.setdefault(others, []).append(row)
    for others, found in rows.items():
        yield f"{way}:"
        yield Table(["", "BxTxNxH", "ours is", "us", "of floor", *others], found, left=3)


def _cell(contestant: Results) -> str:
    if "over_ours" in contestant:
        return f"{contestant['over_ours']['median']:.2f}"
    return next((fault for fault in ("wrong", "failed", "cannot") if fault in contestant), "-")


def _older(results: Results, older: str) -> Table:
    found = [
        (name, way, result["contestants"][older]["over_ours"])
        for name, way, result in _cases(results)
        if "over_ours" in result["contestants"][older]
    ]
    rows = [[f"{n} {way}", *(f"{r[key]:.3f}" for key in ("median", "min", "max"))]
            for n, way, r in found]  # fmt: skip
    return Table([f"{older}, time over ours", "median", "least", "most"], rows)


def _ratios(result: Results) -> dict[str, float]:
    """Times over ours of the peers, and of our implementations as `our <name>`."""
    found = result["contestants"].items()
    ratios = {n: c["over_ours"]["median"] for n, c in found if "over_ours" in c and n != "ours"}
    label = lambda name: name if name in PEERS or name.startswith("ours") else f"our {name}"
    return {label(name): ratio for name, ratio in ratios.items()}


def _share(result: Results) -> float | None:
    return result["of_floor"]["median"] if "of_floor" in result else None


def _reasons(cases: list[tuple[str, str, Results]], fault: str) -> list[str]:
    """Each reason of a fault, with its contestant and the cases that have it."""
    where: dict[str, list[str]] = {}
    for name, way, result in cases:
        for contestant, answer in result["contestants"].items():
            if fault in answer:
                text = f"{contestant} {fault}: {answer[fault]}"
                where.setdefault(text, []).append(f"{name} {way}")
    more = lambda found: f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"{t} ({', '.join(found[:NAMED])}{more(found)})" for t, found in where.items()]
