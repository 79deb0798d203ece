"""The training benchmark's report."""

from typing import Any

from ..common.report import Bar, Report, Table, busy_notes
from .cases import NO_PEER, case_config, prompt_tokens, size_of
from .goals import goals

VERDICTS = {True: "met", False: "missed", None: "not measured"}


def report(results: dict[str, Any]) -> Report:
    """Tables of times, memory and goals, and the bars of the picture."""
    cases = results["cases"]
    found = Report([_speed(cases), _memory(cases)], share="the machine's peak")
    if results["platform"] != "cpu":
        found.parts.append(
            "float32 is each framework's default: JAX may round factors to TF32, in the peak too; "
            "PyTorch does not."
        )
    for case, result in cases.items():
        mine = result["contestants"].get("ours")
        share = mine and mine["share_of_peak"]["median"]
        ratios = {name: ratio["median"] for name, ratio in result["times_ours"].items()}
        found.bars.append(Bar(case, ratios, share))
        found.problems += [f"{case}, {n}: {reason}" for n, reason in result["failed"].items()]
    found.parts.append("\n".join(f"- {note}" for c, r in cases.items() for note in _notes(c, r)))
    found.parts += busy_notes({c: max((s or 0 for s in r["others_cpu"]), default=0)
                               for c, r in cases.items()})  # fmt: skip
    table = goals(results)
    rows = [(goal.text, goal.value, VERDICTS[goal.met]) for goal in table]
    if rows:
        found.parts.append(Table(("goal", "measured", ""), rows))
    found.problems += [f"goal: {goal.text}" for goal in table if goal.met is None]
    return found


def _speed(cases: dict[str, Any]) -> Table:
    shown = ("ms a step", "fastest", "tokens/s", "of peak", "time over ours", "range")
    rows = []
    for case, result in cases.items():
        config = case_config(case)
        tokens = config.training.batch_size * prompt_tokens(config)
        for name, contestant in result["contestants"].items():
            ms, ratio = contestant["ms_a_step"], result["times_ours"].get(name)
            over = ("", "")
            if ratio:
                over = (f"{ratio['median']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}")
            elif size_of(case) in NO_PEER:
                over = ("no peer", "")
            speed = f"{1e3 * tokens / ms['median']:,.0f}"
            of_peak = f"{contestant['share_of_peak']['median']:.0%}"
            rows.append(
                (case, name, f"{ms['median']:.1f}", f"{ms['min']:.1f}", speed, of_peak, *over)
            )
        rows += [(case, name, "failed", *[""] * 5) for name in result["failed"]]
    return Table(("case", "", *shown), rows, left=2)


def _memory(cases: dict[str, Any]) -> Table:
    headings = ("case", "", "peak MiB", "grown by", "program's", "compiling, s", "first turn, s")
    rows = []
    for case, result in cases.items():
        for name, contestant in result["contestants"].items():
            ready, memory = contestant["ready"], contestant["memory"]
            before, resident = memory["resident"]["before"], memory["resident"]["peak"]
            grown = None if memory["device"] else resident - before
            sizes = (memory["device"] or resident, grown, memory["program"])
            mebibytes = ["" if size is None else f"{size / 2**20:,.0f}" for size in sizes]
            seconds = (f"{ready['compile_seconds']:.1f}", f"{ready['warm_seconds']:.1f}")
            rows.append((case, name, *mebibytes, *seconds))
    return Table(headings, rows, left=2)


def _notes(case: str, result: dict[str, Any]) -> list[str]:
    peaks = [
        f"{d} peak {p['median']:,.0f} GFLOP/s" for d, p in result.get("peak_gflops", {}).items()
    ]
    found = [f"{case}: contestants: {len(result['contestants'])}, rounds: {_rounds(result)}, "
             f"steps a turn: {result['steps_a_turn']}; {', '.join(peaks)}"]  # fmt: skip
    if "draw_ms" in result:
        share = result["draw_share"]["median"]
        ms = result["draw_ms"]["median"]
        found.append(f"{case}: drawing the tasks takes {ms:.2f} ms, {share:.1%} of a step")
    for name, ratio in result["times_ours"].items():
        if not ratio["in_turn"]:
            found.append(f"{case}: {name} was timed after ours: memory did not suffice for both")
    return found


def _rounds(result: dict[str, Any]) -> int:
    return max((len(c["ms_a_step"]["rounds"]) for c in result["contestants"].values()), default=0)
