"""Goals of training speed, and whether the results meet them."""

from typing import Any, NamedTuple

from icl.experiments import preset

from .cases import size_of

# Least ratios to our time on a CPU, by size, of the first two of PEERS.
PEERS = ("torch", "torch.compile", "plain attention")
CPU_RATIOS = {"xs": (2.0, 1.5), "small": (1.25, 1.1), "standard": (1.1, 1.0)}
PLAIN_RATIO = 0.98  # plain attention must not be faster than ours; allows for noise
GPU_RATIO, GPU_SHARE, GARG_MINUTES = 10.0, 0.4, 20.0


class Goal(NamedTuple):
    """A goal, the measured value, and whether the value meets the goal (None: not measured)."""

    text: str
    value: str
    met: bool | None


def goals(results: dict[str, Any]) -> list[Goal]:
    """Goals for this platform, of the cases and contestants that were asked for."""
    found = []
    for case, result in results["cases"].items():
        if results["platform"] == "cpu":
            found += _on_cpu(case, result)
        else:
            found += _on_gpu(case, result)
    return found


def _on_cpu(case: str, result: dict[str, Any]) -> list[Goal]:
    if size_of(case) not in CPU_RATIOS:
        return []
    least = zip(PEERS, (*CPU_RATIOS[size_of(case)], PLAIN_RATIO), strict=True)
    return [_ratio(case, result, peer, ratio) for peer, ratio in least if peer in result["asked"]]


def _on_gpu(case: str, result: dict[str, Any]) -> list[Goal]:
    found = []
    if case == "standard@64":
        if "torch" in result["asked"]:
            found.append(_ratio(case, result, "torch", GPU_RATIO))
        steps = preset("garg/linear").training.steps
        for name in ("ours", "ours bf16"):
            text = f"garg/linear, {steps:,} steps by {name}: under {GARG_MINUTES:.0f} minutes"
            minutes = _of(result, name, "ms_a_step", steps / 60e3)
            found.append(_goal(text, minutes, "{:.1f} minutes, extrapolated", -GARG_MINUTES))
    if case == "standard@4096":
        text = f"{case}: at least {GPU_SHARE:.0%} of the measured bfloat16 peak"
        share = _of(result, "ours bf16", "share_of_peak")
        found.append(_goal(text, share, "{:.1%}", GPU_SHARE))
    return found


def _ratio(case: str, result: dict[str, Any], rival: str, least: float) -> Goal:
    ratio = result["times_ours"].get(rival, {}).get("median")
    return _goal(f"{case}: {rival} takes {least:g} times as long", ratio, "{:.2f}", least)


def _goal(text: str, value: float | None, form: str, limit: float) -> Goal:
    """A goal with a lower limit, or with an upper limit given as a negative number."""
    if value is None:
        return Goal(text, "not measured", None)
    return Goal(text, form.format(value), value >= limit if limit > 0 else value < -limit)


def _of(result: dict[str, Any], name: str, what: str, times: float = 1.0) -> float | None:
    """A contestant's median times `times`; None if it was not measured."""
    entry = result["contestants"].get(name)
    return entry and times * entry[what]["median"]
