"""The goals of training speed, and whether the results meet them."""

from typing import Any, NamedTuple

from training_cases import size_of

from icl.experiments import preset

CPU_RATIOS = {"xs": 1.5, "small": 1.2, "standard": 1.2}
GPU_RATIO, GPU_SHARE, GARG_MINUTES = 10.0, 0.4, 20.0
NOT_MEASURED = "not measured"


class Goal(NamedTuple):
    """A goal, what was measured in its place, and whether that meets it (None: not measured)."""

    text: str
    value: str
    met: bool | None


def goals(results: dict[str, Any]) -> list[Goal]:
    """Those that apply to the machine."""
    cases = results["cases"]
    return _on_cpu(cases) if results["platform"] == "cpu" else _on_gpu(cases)


def _on_cpu(cases: dict[str, Any]) -> list[Goal]:
    found = []
    for size, least in CPU_RATIOS.items():
        of_size = [f"{size}@64", *(case for case in cases if size_of(case) == size)]
        found += [_ratio(cases, case, "torch", least) for case in dict.fromkeys(of_size)]
    return found


def _on_gpu(cases: dict[str, Any]) -> list[Goal]:
    found = [_ratio(cases, "standard@64", "torch", GPU_RATIO)]
    share = _of(cases, "standard@4096", "ours bf16", "share_of_peak")
    text = f"standard@4096: at least {GPU_SHARE:.0%} of the measured bfloat16 peak"
    met = None if share is None else share >= GPU_SHARE
    found.append(Goal(text, NOT_MEASURED if share is None else f"{share:.1%}", met))
    steps = preset("garg/linear").training.steps
    for name in ("ours", "ours bf16"):
        ms = _of(cases, "standard@64", name, "ms_a_step")
        text = f"garg/linear, {steps:,} steps by {name}: under {GARG_MINUTES:.0f} minutes"
        minutes = None if ms is None else ms * steps / 60e3
        value = NOT_MEASURED if minutes is None else f"{minutes:.1f} minutes, extrapolated"
        found.append(Goal(text, value, None if minutes is None else minutes < GARG_MINUTES))
    return found


def _ratio(cases: dict[str, Any], case: str, rival: str, least: float) -> Goal:
    text = f"{case}: at least {least:g} times the steps a second of eager PyTorch"
    found = cases.get(case, {}).get("times_ours", {})
    if rival not in found:
        return Goal(text, NOT_MEASURED, None)
    value = f"{found[rival]['median']:.2f}"
    if "torch.compile" in found:
        value += f" (of torch.compile: {found['torch.compile']['median']:.2f})"
    return Goal(text, value, found[rival]["median"] >= least)


def _of(cases: dict[str, Any], case: str, name: str, what: str) -> float | None:
    """A contestant's median of something; None where it was not measured."""
    entry = cases.get(case, {}).get("contestants", {}).get(name)
    return entry and entry[what]["median"]
