"""Results of every kind, from invented numbers, in the sizes that figures and tables must stand."""

from pathlib import Path
from typing import Any

import numpy as np

from icl.analysis.alignment import MEASURES, Alignment
from icl.analysis.capacity import Capacity
from icl.analysis.circuits import METRICS, Circuits
from icl.analysis.comparison import Comparison, Learned
from icl.analysis.copying import GROUPS, Copying
from icl.analysis.decodability import Decodability, Map
from icl.analysis.descent_shifts import DescentShifts, ShiftCurves
from icl.analysis.descent_study import REFERENCE, DescentStudy
from icl.analysis.dual import DualCurves
from icl.analysis.emergence import IN_CONTEXT, IN_WEIGHTS, Curves, Emergence
from icl.analysis.few_shot import FewShot, Shown
from icl.analysis.final_losses import FinalLosses
from icl.analysis.fine_tuning import Tuning
from icl.analysis.function_transfer import FunctionTransfer, Kind
from icl.analysis.generalisation import SEEN, TRAINING, UNSEEN, Generalisation
from icl.analysis.heads import Heads
from icl.analysis.induction import Induction
from icl.analysis.layers import DESCENT, LEARNER, PRECONDITIONED, Layers
from icl.analysis.learned_function import NORMS, LearnedFunction
from icl.analysis.loops import ErrorsByLoop
from icl.analysis.memorisation import Memorisation
from icl.analysis.mode_records import SHARES, ModeCurves, ModeRecord
from icl.analysis.ngrams import KINDS, NGrams
from icl.analysis.patching import Patching
from icl.analysis.phase_change import Course, PhaseChange
from icl.analysis.plateau import Plateaus, Row
from icl.analysis.pool import PAIRS, PREDICTORS, TASKS, PoolEvaluation
from icl.analysis.preconditioning import Preconditioning
from icl.analysis.random_features import FeatureGaps
from icl.analysis.shifts import SHIFTS, Shifts
from icl.analysis.table_prior import Page, TablePrior
from icl.analysis.threshold import Line, Threshold
from icl.analysis.variants import Variant, Variants
from icl.evaluation.result import Curve, Evaluation
from icl.sweeps import SweepResult

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
STEPS: Any = np.arange(100, 4100, 100)
ERROR = "squared error / mean squared label"
ESTIMATORS = (
    "outer-product LSTM", "least squares", "ridge", "least mean squares", "averaging",
    "3-nearest neighbours", "zero", "greedy tree on signs, depth 3", "boosting on signs",
    "two-layer network by Adam", "Bayes mixture of ridges",
)  # fmt: skip


def falling(count=40, start=1.0, end=0.1, noise=0.03):
    """A curve that falls from `start` to `end`, float64 `[count]`."""
    curve = end + (start - end) * np.exp(-np.linspace(0, 5, count))
    return curve * (1 + noise * RNG.standard_normal(count))


def rising(count=40, end=0.9):
    return np.clip(end - falling(count, end, 0.02), 0, 1)


def curve(mean, width=0.1):
    half = width * np.abs(mean)
    return Curve(mean, mean - half, mean + half)


def evaluation(path, points=41, estimators=ESTIMATORS, peak=5.2):
    """Each estimator after the fourth leaves the axis; boosting predicts at a few points."""
    examples, curves = np.arange(points), {}
    for index, name in enumerate(estimators):
        mean = falling(points, 1.0, 0.05 * index)
        if name == "zero":
            mean = np.ones(points)
        elif index >= 4:
            mean[1:] += peak * np.exp(-np.arange(points - 1) / 4)
        if "boosting" in name:
            mean[examples % 8 != 0] = np.nan
        curves[name] = curve(mean)
    return Evaluation(
        examples, curves, "least squares", 3000, 1280, path,
        costs=dict.fromkeys(curves, 0.123), error_name=ERROR,
    )  # fmt: skip


def alignment(path):
    names = ("GD, 1 step", "GD++, 5 steps", "zero")
    steps = np.array([0, *STEPS])
    error = falling(len(steps))
    error[3:6] = 4.0
    measures = {n: {m: falling(len(steps), 2.0) for m in MEASURES} for n in names[:2]}
    losses = dict(zip(names, (0.5, 0.2, 1.0)))
    rates = {n: {"learning_rate": [0.5] * 5, "gamma": [0.1]} for n in ("learner", *names[:2])}
    half = falling(len(steps), 3.0)
    return Alignment(steps, error, half, losses, measures, rates, 1280, path, ERROR)


def capacity(path):
    dims = (10, 20, 30, 40, 50)
    label = lambda layers: f"{layers} layers, width {64 * layers}"
    errors = {
        label(n): {d: list(d / 40 / n * (1 + 0.1 * RNG.random(3))) for d in dims}
        for n in range(1, 5)
    }
    return Capacity(errors, path)


def circuits(path):
    metrics = {name: RNG.random((len(STEPS), 2, 3)) for name in METRICS}
    levels = {"the query alone": 0.41, "the labels": 0.75, "the context": 1.0}
    return Circuits(STEPS, rising(), rising(end=0.7), metrics, levels, 1000, path)


def comparison(path):
    models = ("transformer", "transformer, delta rule", "transformer, linear attention", "MAML",
              "outer-product LSTM", "LSTM", "MLP")  # fmt: skip
    runs = [
        Learned(
            f"kirsch-digits-xs-{model.replace(', ', '-').replace(' ', '-')}", model,
            int(10 ** RNG.uniform(3, 7)), int(10**index), 2000, falling(40, 0.9, 0.2),
        )
        for index, model in enumerate(models)
    ]  # fmt: skip
    name = "share of images that are misclassified"
    return Comparison(runs, np.arange(40), name, 1280, path)


def copying(path):
    norms = {name: rising() + index for index, name in enumerate(GROUPS)}
    return Copying(STEPS, norms, np.eye(21), falling(), ERROR, 64, path)


def decodability(path):
    concepts = [f"basis {n + 1}" for n in range(4)]
    scores = np.stack([np.stack([rising() for _ in concepts], 1) for _ in range(3)], 1)
    maps = [Map(step, RNG.standard_normal((400, 2))) for step in (100, 400, 1000, 4000)]
    known = {"Bayes mixture of ridges": 0.12, "ridge": 0.24}
    name = ERROR + " without noise"
    error = np.stack([falling() for _ in concepts], 1)
    return Decodability(concepts, STEPS, error, scores, 2, known, maps, name, 12, 100, path)


def descent_shifts(path):
    pair = lambda a, b: {"learner": list(a), "GD, 1 step": list(b)}
    grows = np.geomspace(0.5, 1e6, 50)
    sweeps = {
        "inputs times": ShiftCurves([0.5, 1.0, 1.5, 2.0], pair(np.ones(4), 2 * np.ones(4))),
        "tasks times": ShiftCurves([1.0, 2.0, 3.0], pair([0.5] * 3, [0.6] * 3)),
        "inputs": ShiftCurves(["uniform", "normal", "exponential", "laplace"],
                              pair([0.5, 3, 200, 20], [0.5, 3, 190, 20])),
        "random labels": ShiftCurves(list(range(11)), pair(rising(11), rising(11))),
        "times applied": ShiftCurves(list(range(1, 51)), {
            "learner": list(falling(50)), "GD, steps of rate 6.08": list(grows)}),
    }  # fmt: skip
    return DescentShifts(sweeps, 5000, 1280, path)


def descent_study(path):
    rows = {name: {"error": RNG.random(), "learning_rate": [0.1] * 2, "gamma": [0.05],
                   "construction differs by": 1e-7} for name in REFERENCE}  # fmt: skip
    return DescentStudy(ERROR, rows, {10: 0.18, 25: 0.1, 50: 0.06, 100: 0.03}, path)


def dual_curves(gap=0.6):
    by_step = lambda end: np.stack([falling(16, gap, end) * factor for factor in (0.5, 1, 1.5)])
    counts = {"1000": 0.3, "12000": 0.1, "100000": 0.05}
    return {"kernel": by_step(0.001)} | {name: by_step(end) for name, end in counts.items()}


def dual(path):
    return DualCurves(dual_curves(), dual_curves(4.0), 0.5, 2000, 64, path)


def random_features(path):
    return FeatureGaps(200, 0, np.array([0.5, 0.6, 0.7]), dual_curves(), path)


def emergence(path):
    modes = {IN_CONTEXT: "fewshot_holdout", IN_WEIGHTS: "no_support_zipfian"}
    several = lambda: {mode: rising() for mode in modes.values()}
    chance = dict.fromkeys(modes.values(), 0.5)
    curves = [
        Curves([f"{bursty:g}", f"{zipf}"], STEPS, several(), several(), chance, 32)
        for bursty in (0, 0.5, 0.9, 1) for zipf in (0, 1)
    ]  # fmt: skip
    return Emergence(["p_bursty", "zipf_exponent"], curves, modes, 3, 1000, path)


def few_shot(path):
    shots = np.array([0, 1, 2, 4, 8, 16, 20])
    comparators = (
        "least squares on squares",
        "two-layer network by Adam",
        "greedy tree on signs, depth 2",
        "least squares",
    )
    families = ("quadratic_regression", "relu_network", "decision_tree",
                "sparse_linear_regression")  # fmt: skip
    learners = ("transformer in context", "MAML", "first-order MAML", "Reptile", "fine-tuned")
    shown = {}
    for index, (family, comparator) in enumerate(zip(families, comparators)):
        curves = {name: curve(falling(7, 1.0, 0.05), 0.3) for name in (*learners, comparator)}
        curves["MAML"].mean[2] = 7.0
        shown[family] = Shown(index < 2, curves, comparator, comparator == "least squares")
    tuned = {int(count): Tuning(1e-3, 100) for count in shots}
    runs = dict.fromkeys(learners, str(path))
    return FewShot(shots, shown, tuned, runs, ERROR, 256, 20_000, path)


def final_losses(path):
    labels = ("linear", "softmax, 1 head", "softmax, 2 heads", "softmax, 2 heads, no value")
    error = {label: [0.4 * RNG.random() for _ in range(3)] for label in labels}
    return FinalLosses(ERROR, error, 0.21, path)


def function_transfer(path):
    x = np.sort(RNG.uniform(-1, 1, (3, 50)))
    kind = lambda: Kind(0.01, 1.0, x, np.sin(5 * x), np.sin(5 * x[:, -10:]))
    names = ("training tasks", "sines", "lines")
    return FunctionTransfer({name: kind() for name in names}, 1280, 40, 5000, path)


def generalisation(path):
    kinds = (TRAINING, SEEN, UNSEEN, "on mnist", "on random")
    names = ("transformer, linear attention", "1-nearest neighbour", "ridge", "SGD",
             "class frequencies")  # fmt: skip
    shown = lambda kind: names[:1] if kind in (TRAINING, SEEN) else names
    accuracy = {kind: {name: rising(40) for name in shown(kind)} for kind in kinds}  # fmt: skip
    return Generalisation(
        np.arange(40), accuracy, 10, 200_000, 30_000, 65_536, 20_000, 1280, 0, path
    )


def heads(path):
    weights = lambda *shape: RNG.standard_normal((1, 2, *shape)).astype(np.float32)
    scores = weights(21, 21)
    return Heads(
        weights(11, 4), weights(11, 4), weights(11, 4), weights(4, 11), scores, scores,
        np.full((1, 2), 0.5), 5000, 64, True, path,
    )  # fmt: skip


def induction(path, heads=4):
    by_head = lambda: np.stack([rising() for _ in range(2 * heads)], 1).reshape(-1, 2, heads)
    loss = np.stack([falling(64, 3.5, 0.1) for _ in STEPS])
    ends = RNG.random((2, heads))
    return Induction(
        STEPS, loss, -rising(end=3.5), by_head(), by_head(), by_head(), ends, ends, 256, path
    )


def layers(path):
    numbers = [1, 2, 3, 4]
    error = {LEARNER: [[10.0**-n, 2 * 10.0**-n] for n in numbers]}
    error |= {name: [0.8**n for n in numbers] for name in (DESCENT, PRECONDITIONED)}
    distance = {name: [RNG.random((2, n)).tolist() for n in numbers] for name in "QP"}
    rate = {name: [0.1] * 4 for name in (DESCENT, PRECONDITIONED)}
    return Layers(20_000, numbers, ERROR, error, 5.0, rate, distance, path)


def learned_function(path):
    norms = NORMS * 5**0.5
    example = {who: 0.5 * norms for who in ("truth", "learner", "least squares")}
    error = {who: RNG.random((11, len(norms))) for who in ("learner", "least squares")}
    cosine = {which: rising(11) for which in ("w", "projected w")}
    return LearnedFunction(norms, example, error, cosine, 3000, 1280, path)


def loops(path):
    return ErrorsByLoop(np.arange(1, 37), falling(36, 1.0, 0.02, 0), 12, ERROR, 20_000, 1280, path)


def memorisation(path):
    models = [f"width {64 * 2**n}, layers 4" for n in range(3)]
    part = lambda: {end: RNG.random((3, 6)) for end in ("early", "late")}
    sizes = [1, 16, 128, 512, 2048, 65_536]
    return Memorisation(models, sizes, {SEEN: part(), UNSEEN: part()}, 3, 1024, path)


def modes(path):
    kinds = ("fewshot_holdout", "no_support_zipfian", "no_support_common", "flip", "in_context")
    shares = dict.fromkeys(SHARES, 0.25)
    records = [
        ModeRecord(int(step), mode, 10_000, 0, value, value, 0.5, 1.0, 0.3, shares)
        for mode in kinds
        for step, value in zip(500 * STEPS, rising())
    ]
    return ModeCurves(records, path)


def ngrams(path):
    several = {str(kind): falling(end=0.01) for kind in KINDS}
    losses = dict(zip(map(str, KINDS), (1.1, 1.0, 0.89)))
    return NGrams(STEPS, several, several, falling(), losses, 512, path)


def patching(path, count=8):
    concepts = [f"basis {n + 1}" for n in range(count)]
    change = 0.05 * RNG.standard_normal((count, count))
    name = ERROR + " without noise"
    return Patching(concepts, RNG.random(count), change, change, 2, name, 20_000, 100, path)


def phase_change(path):
    names = ("1 layer", "1 layer, smeared keys", "2 layers", "2 layers, smeared keys")
    course = lambda: Course(
        STEPS, falling(start=3.5), -rising(end=3.5), np.stack([rising()] * 2, 1), rising()
    )
    return PhaseChange({name: course() for name in names}, 3, 256, path)


def plateau(path):
    rows = [
        Row(f"{size}", [600 / size**0.5] * 2, [0.3] * 2, [list(STEPS)] * 2, [list(falling())] * 2)
        for size in (16, 24, 32, 64, 128, 256)
    ]
    return Plateaus(rows, "batch_size", -0.53, path)


def plateau_by_name(path):
    names = ("none", "biased labels", "more and more classes and points", "paired tokens")
    rows = [Row(n, [600.0], [0.3], [list(STEPS)], [list(falling())]) for n in names]
    return Plateaus(rows, None, float("nan"), path)


def pool(path):
    errors = {kind: {name: falling(16) for name in PREDICTORS} for kind in TASKS}
    differences = {kind: {", ".join(pair): falling(16) for pair in PAIRS} for kind in TASKS}
    return PoolEvaluation(np.arange(16), errors, differences, 1024, 20_000, 2048, 0, path)


def threshold(path):
    sizes, seeds = [4, 8, 16, 32, 64], [0, 1, 2]
    some = lambda: RNG.uniform(0.1, 1, (len(sizes), len(seeds)))
    error = {kind: {name: some() for name in PREDICTORS} for kind in TASKS}
    share = np.array([0.1, 0.2, 0.6, 0.8, 0.9])[:, None] + 0.05 * RNG.random((5, 3))
    differences = {"learner, ridge": (1 - share) ** 2, "learner, dMMSE": share**2,
                   "ridge, dMMSE": 0.9 * np.ones((5, 3))}  # fmt: skip
    of_kind = dict.fromkeys(TASKS, differences)
    line = Line({"model_layers": 4}, sizes, seeds, error, of_kind)
    return Threshold(2048, [line], path)


def preconditioning(path):
    query = -np.eye(5) * np.array([0.2, 1.0, 2.0])[:, None, None]
    by_layer = lambda count: np.stack([falling() for _ in range(count)], 1)
    return Preconditioning(query, 3 * query[1:], STEPS, by_layer(3), by_layer(2), path)


def shifts(path):
    both = lambda: {who: curve(falling(11)) for who in ("learner", "least squares")}
    names = list(SHIFTS)[-7:]  # with the longest names
    curves = {name: both() for name in names}
    curves["noise_paper"]["least squares"].mean[5] = 40.0
    name = f"{ERROR} (of noise_paper without its noise)"
    return Shifts(np.arange(11), curves, name, 3000, 1280, path)


def table_prior(path):
    mechanisms = [("linear", "network", "causal", "clusters", "trees")[n % 5] for n in range(8)]
    methods = ("pfn transformer", "logistic regression", "random forest", "class frequencies")
    pages = [Page(RNG.standard_normal((64, 2)), RNG.integers(0, 5, 64), n + 2) for n in range(8)]
    some = lambda: {name: RNG.random(8) for name in methods}
    examples = RNG.integers(8, 100, 8)
    return TablePrior(mechanisms, examples, some(), some(), "log loss, nats", 20_000, path, pages)


def variants(path):
    labels = ("plain", "regularised, alpha 0.5", "augmented values (residual)",
              "augmented keys (residual)", "augmented values and keys (residual)",
              "augmented values and keys", "1 negatives, beta 0.1",
                    "5 negatives, beta 0.5")  # fmt: skip
    of = {n: Variant([0.6, 0.7, 0.9], np.stack([falling(end=0.5)] * 3)) for n in labels}
    return Variants(STEPS.tolist(), of, path)


def sweep(path):
    records = [
        {"member": f"{seed}-{kind}-{rate}",
         "changes": {"optimizer_name": kind, "learning_rate": rate, "model_positions": "learned",
                     "training_seed": seed},
         "examples": list(range(41)), "normalised_error": list(falling(41))}
        for kind in ("schedule_free_adamw", "muon") for rate in (0.0005, 0.01) for seed in (0, 1)
    ]  # fmt: skip
    return SweepResult(path, 1280, records, ERROR)


INVENTED: dict[str, Any] = {
    "eval": evaluation,
    "eval-3": lambda path: evaluation(path, 11, ESTIMATORS[:3]),
    "eval-single": lambda path: evaluation(path, 1, peak=0),
} | {
    make.__name__.replace("_", "-"): make
    for make in (
        alignment, capacity, circuits, comparison, copying, decodability, descent_shifts,
        descent_study, dual, emergence, few_shot, final_losses, function_transfer, generalisation,
        heads, induction, layers, learned_function, loops, memorisation, modes, ngrams, patching,
        phase_change, plateau, plateau_by_name, pool, preconditioning, random_features, shifts,
        sweep, table_prior, threshold, variants,
    )
}  # fmt: skip


def invented(name: str, path: Path) -> Any:
    """The result of that name in that folder; its numbers are always the same."""
    RNG.bit_generator.state = START
    return INVENTED[name](path)
