"""Linear attention and the delta rule against a float64 recurrence, and their contract."""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import delta_rule, linear_attention
from icl.kernels.linear_attention import launch, reference, xla
from icl.kernels.linear_attention.problem import Operands, Problem
from icl.kernels.plans import forcing

from .implementations import ALL, FUSED, ON_GPU, on_device
from .recurrence_oracle import draw, recurrence

OPS = {"linear_attention": linear_attention, "delta_rule": delta_rule}
# For what the definition implies, with which the others are compared in all options together.
PLAIN = ["xla", "triton"]
# Decays besides mild ones.
EXTREMES = np.array([0, -0.01, -1, -30, -1e4, -np.inf])

# Options with which each op takes the most paths.
OPTIONS = {"linear_attention": dict(is_causal=True, normalize=True), "delta_rule": {}}


def draw_full(op, **sizes):
    """All arrays that the op takes, cotangents and OPTIONS."""
    options = OPTIONS[op]
    normalize = options.get("normalize", False)
    drawn = draw(op, 0, normalize=normalize, log_decay=True, initial_state=True, **sizes)
    return *drawn, options


@functools.cache
def _runner(op, implementation, options, with_gradients):
    def run(arrays, cotangents, lengths):
        extra = dict(options, implementation=implementation, return_state=True)
        attend = lambda arrays: OPS[op](**arrays, **extra | lengths)
        if not with_gradients:
            return dict(zip(("out", "state"), attend(arrays)))
        (out, state), pull_back = jax.vjp(attend, arrays)
        return dict(out=out, state=state) | pull_back(cotangents)[0]

    return jax.jit(run)


def results(op, implementation, arrays, cotangents=None, key_value_seq_lengths=None, **options):
    """The output, the last state and, with cotangents, the gradients, by the arrays' names."""
    run = _runner(op, implementation, tuple(options.items()), cotangents is not None)
    lengths = dict(key_value_seq_lengths=key_value_seq_lengths)
    found = run(arrays, cotangents, {} if key_value_seq_lengths is None else lengths)
    return {name: np.asarray(array).astype(np.float64) for name, array in found.items()}


def outputs(op, implementation, arrays, **options):
    return tuple(results(op, implementation, arrays, **options).values())


def close(ours, expected, atol=1e-5, rtol=1e-5):
    assert ours.keys() <= expected.keys()
    for name, mine in ours.items():
        theirs = expected[name]
        np.testing.assert_allclose(mine, theirs, atol=atol, rtol=rtol, err_msg=name)


def steps_of(arrays, steps):
    """The arrays of some of the steps, and the initial state as it is."""
    return {n: a if n == "initial_state" else a[:, steps] for n, a in arrays.items()}


def assert_as_exact_as(name, baseline, ours, exact, dtype, full, roundings=2):
    """As in test_attention, for the output, the state and all gradients.

    A rounding is a rounding of the largest result, or of the largest gradient.

    full: the size to which an array is broadcast; its gradient is then a sum.
    """
    size = lambda array: np.sqrt(np.mean(array**2))
    results = {"out", "state"}
    for part, mine in ours.items():
        truth = exact[part]
        alike = results if part in results else exact.keys() - results
        slack = roundings * float(jnp.finfo(dtype).eps) * max(size(exact[n]) for n in alike)
        terms = full.get(part, truth.size) / truth.size
        allowed = 2 * size(baseline[part] - truth) + slack * np.sqrt(terms)
        error = size(mine - truth)
        assert error <= allowed, f"{name}, {part}: {error:.3g} of at most {allowed:.3g}"


class Case(NamedTuple):
    """Sizes and options of a call that is compiled once and run on several draws."""

    dtype: Any
    length: int
    width: int
    columns: int
    batch: int = 2
    heads: int = 2
    key_length: int | None = None
    log_decay: bool = False
    initial_state: bool = False
    has_lengths: bool = False
    options: dict = {}


BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32
FULL = dict(is_causal=False)
CAUSAL = dict(is_causal=True)
NORMALIZED = dict(normalize=True)
CASES = {
    "linear_attention": [
        Case(BF16, 17, 8, 8, log_decay=True, initial_state=True, options=CAUSAL | NORMALIZED),
        Case(F16, 16, 24, 1, 1, 2, 65, initial_state=True, has_lengths=True, options=FULL),
        Case(BF16, 2, 1, 8, 2, 2, 15, has_lengths=True, options=FULL | NORMALIZED),
    ],
    "delta_rule": [
        Case(F16, 17, 3, 1, heads=3, initial_state=True),
        Case(BF16, 65, 32, 8, 1, 1, log_decay=True, initial_state=True),
    ],
}
if ON_GPU:
    # Elsewhere other tests are enough in float32.
    CASES["linear_attention"] += [
        Case(F32, 129, 32, 8, 1, 1, log_decay=True, has_lengths=True, options=CAUSAL),
        Case(F16, 64, 32, 16, 1, 1, log_decay=True, options=CAUSAL | NORMALIZED),
    ]
    CASES["delta_rule"] += [
        Case(F32, 15, 8, 24, log_decay=True),
        Case(BF16, 100, 16, 1, 1, 1),
    ]
SCALES = [None, 0.0, 100.0, 0.3]
DRAWS = ["mild", "extreme", "alike"]


def draw_call(op, number, kind):
    """Arrays, cotangents and options of a case.

    kind: "mild"; "extreme", with decays that forget, beta 2 and values that fit the keys; or
      "alike", with the keys nearly one, values far from 0, beta from {0, 1, 2} and small
      cotangents, of which that of the state is 0.
    """
    case = CASES[op][number]
    seed = 10 * number + DRAWS.index(kind)
    shapes, rng = np.random.default_rng(number), np.random.default_rng(seed)
    options = case.options | dict(scale=SCALES[number % len(SCALES)])
    drawn, (d_out, d_state) = draw(
        op,
        seed,
        *(case.batch, case.length, case.heads, case.width, case.columns),
        dtype=case.dtype,
        key_length=case.key_length or case.length,
        normalize=options.get("normalize", False),
        log_decay=case.log_decay,
        initial_state=case.initial_state,
    )
    arrays: dict[str, Any] = {n: np.asarray(array, np.float32) for n, array in drawn.items()}
    key, value = arrays["key"], arrays["value"]
    if kind == "extreme":
        weights = rng.normal(size=(key.shape[-1], value.shape[-1]))
        arrays["value"] = key @ weights
        if "beta" in arrays:
            arrays["beta"] = np.full_like(arrays["beta"], 2)
        if "log_decay" in arrays:
            decays = arrays["log_decay"]
            extreme = rng.random(decays.shape) < 0.2
            arrays["log_decay"] = np.where(extreme, rng.choice(EXTREMES, decays.shape), decays)
    if kind == "alike":
        arrays["key"] = key[:, :1] + 0.01 * key
        arrays["value"] = value + 10
        if "beta" in arrays:
            arrays["key"] /= np.linalg.norm(arrays["key"], axis=-1, keepdims=True)
            arrays["beta"] = rng.choice([0.0, 1.0, 2.0], arrays["beta"].shape)
        d_out = on_device(np.asarray(d_out) / 100, d_out.dtype)
        d_state = on_device(np.zeros(d_state.shape), d_state.dtype)
    # Some axes are cut to size 1, to broadcast.
    cut = lambda a: a[tuple(np.s_[:1] if shapes.random() < 0.5 else np.s_[:] for _ in a.shape)]
    for name in ("beta", "log_decay"):
        if name in arrays:
            arrays[name] = cut(arrays[name])
    if "initial_state" in arrays and shapes.random() < 0.5:
        arrays["initial_state"] = arrays["initial_state"][0]
    # These may have another dtype than the rest.
    dtypes = dict.fromkeys(arrays, case.dtype)
    for name in ("beta", "log_decay", "initial_state"):
        dtypes[name] = [case.dtype, F32][shapes.integers(2)]
    if case.has_lengths:
        options["key_value_seq_lengths"] = rng.integers(0, key.shape[1] + 1, case.batch)
    arrays = {name: on_device(array, dtypes[name]) for name, array in arrays.items()}
    return arrays, (d_out, d_state), options


@pytest.mark.parametrize("op, number", [(op, n) for op in CASES for n in range(len(CASES[op]))])
def test_all_options_together(op, number):
    """Every implementation on the same calls."""
    for kind in DRAWS:
        arrays, cotangents, options = draw_call(op, number, kind)
        exact = recurrence(arrays, *cotangents, **options)
        steps = arrays["key"][..., 0].size
        full = dict(beta=steps, log_decay=steps, initial_state=exact["state"].size)
        ours = {name: results(op, name, arrays, cotangents, **options) for name in ALL}
        for name, mine in ours.items():
            assert mine.keys() == exact.keys()
            baseline = ours["reference" if name == "xla" else "xla"]
            # A chunk adds and subtracts terms that single steps never hold, and its products have
            # the dtype of the inputs.
            roundings = 8 if name == "xla" else 2
            dtype = CASES[op][number].dtype
            assert_as_exact_as(f"{name}, {kind}", baseline, mine, exact, dtype, full, roundings)
            if (op, number, kind) == ("delta_rule", 0, "extreme") and name in FUSED:
                # A narrow inverse would need roundings in addition; beta's gradient cancels.
                others = {part: array for part, array in mine.items() if part != "beta"}
                assert_as_exact_as(name, baseline, others, exact, dtype, full, roundings=0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ALL)
def test_float32_is_exact(implementation, op):
    """In each result by itself: the roundings of half precision hide small errors."""
    arrays, cotangents, options = draw_full(op)
    ours = results(op, implementation, arrays, cotangents, **options)
    close(ours, recurrence(arrays, *cotangents, **options), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_the_length_of_a_chunk_changes_nothing(op):
    arrays, cotangents, options = draw_full(op, batch=1, length=25, heads=1)
    operands = Operands(**arrays)
    problem = Problem(scale=0.3, returns_state=True, **options)

    @jax.jit
    def run(operands):
        forms = [functools.partial(xla.chunked, chunk=chunk) for chunk in (1, 11)]
        found = []
        for form in (reference.recurrence, *forms):
            result, pull_back = jax.vjp(functools.partial(form, problem), operands)
            found.append((result, pull_back(type(result)(*cotangents))))
        return found

    expected, *ours = (jax.tree.leaves(found) for found in run(operands))
    for found in ours:
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", PLAIN)
def test_a_sequence_in_two_parts(implementation, op):
    """Two calls that pass on the state equal one call, and so do their gradients."""
    arrays, cotangents, options = draw_full(op)

    def in_parts(arrays, cotangents):
        def attend(arrays):
            run = lambda a: OPS[op](
                **a, return_state=True, implementation=implementation, **options
            )
            first, state = run(steps_of(arrays, np.s_[:13]))
            second, state = run(steps_of(arrays, np.s_[13:]) | dict(initial_state=state))
            return jnp.concatenate([first, second], axis=1), state

        (out, state), pull_back = jax.vjp(attend, arrays)
        return dict(out=out, state=state) | pull_back(cotangents)[0]

    whole = results(op, implementation, arrays, cotangents, **options)
    close(jax.jit(in_parts)(arrays, cotangents), whole, atol=2e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", PLAIN)
def test_the_last_of_causal_queries_sees_what_all_see_otherwise(implementation, normalize):
    arrays, _ = draw("linear_attention", 0, normalize=normalize, initial_state=True)
    run = lambda is_causal: outputs(
        "linear_attention", implementation, arrays, is_causal=is_causal, normalize=normalize
    )
    (causal, causal_state), (full, state) = run(True), run(False)
    np.testing.assert_allclose(causal[:, -1], full[:, -1], atol=1e-5)
    np.testing.assert_allclose(causal_state, state, atol=1e-5)
    assert np.abs(causal[:, 0] - full[:, 0]).max() > 0.01


@pytest.mark.parametrize("implementation", PLAIN)
def test_decays_of_any_shape(implementation):
    """Fewer axes equal repeated decays, and gradients are summed over the repeated axes."""
    arrays, cotangents, options = draw_full("delta_rule")
    run = lambda decay: results(
        "delta_rule", implementation, arrays | dict(log_decay=decay), cotangents, **options
    )
    small = arrays["log_decay"][0, 0]
    ours, full = run(small), run(on_device(np.broadcast_to(small, (2, 20, 2)), F32))
    full["log_decay"] = full["log_decay"].sum(axis=(0, 1))
    close(ours, full, atol=2e-5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", PLAIN)
def test_a_decay_of_zero_is_none(implementation, op):
    arrays, cotangents, options = draw_full(op)
    arrays["log_decay"] = np.zeros_like(arrays["log_decay"])
    zero = results(op, implementation, arrays, cotangents, **options)
    del arrays["log_decay"]
    without = outputs(op, implementation, arrays, **options)
    for mine, theirs in zip((zero["out"], zero["state"]), without):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_a_decay_of_minus_infinity_forgets(implementation, op):
    """Later steps are as if they began there, whatever the state was; so they are after -1e4."""
    arrays, (d_out, d_state), options = draw_full(op)
    decay = arrays["log_decay"]
    cotangents = d_out.at[:, :9].set(0), d_state
    run = lambda forgetting: results(
        op,
        implementation,
        arrays | dict(log_decay=decay.at[:, 9].set(forgetting)),
        cotangents,
        **options,
    )
    forgets, nearly = run(-np.inf), run(-1e4)
    after = {n: a[:, 9:] for n, a in arrays.items() if n != "initial_state"}
    alone = recurrence(after, d_out[:, 9:], d_state, **options)
    # The first step alone has no state to decay.
    alone["log_decay"][:, 0] = 0
    for name, theirs in alone.items():
        mine = forgets[name] if name == "state" else forgets[name][:, 9:]
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=name)
    for name in arrays:
        lost = forgets[name] if name == "initial_state" else forgets[name][:, :9]
        # The gradient of a decay may be a difference of sums.
        atol = 1e-5 if name == "log_decay" else 0
        np.testing.assert_allclose(lost, 0, atol=atol, err_msg=name)
    close(nearly, forgets, atol=1e-6)
    assert np.abs(forgets["out"][:, :9]).min() > 0


# XLA's form has one code for the decays of both, and is slow to compile for the delta rule.
DECAYS = [(op, name) for op in OPS for name in ALL if (op, name) != ("delta_rule", "xla")]


@pytest.mark.parametrize("op, implementation", DECAYS)
def test_decays_stay_exact_over_many_steps(op, implementation):
    """Weak decays after strong ones in the first batch row, strong ones at all steps in the second.

    In the first, exp of the difference of two sums would lose digits to the growth of the sums. In
    the second, the product of all decays is far below the smallest float, and its inverse
    overflows.
    """
    length = 144
    arrays, cotangents = draw(op, 0, 2, length, 1, 4, log_decay=True, initial_state=True)
    arrays, cotangents = jax.tree.map(np.array, (arrays, cotangents))
    decay = arrays.pop("log_decay")
    for array in (*arrays.values(), *cotangents):
        array[0] = np.abs(array[0])  # no sum is small by cancellation
    decay[0] = np.where(np.arange(length) % 72 < 30, -80, -0.01)[:, None]
    decay[1] *= 50
    arrays["log_decay"] = decay
    options = dict(is_causal=True) if op == "linear_attention" else {}
    exact = recurrence(arrays, *cotangents)
    ours = results(op, implementation, arrays, cotangents, **options)
    for name in ("out", "state", "query"):
        mine, truth = ours[name][0], exact[name][0]
        largest = np.abs(truth).max(axis=-1, keepdims=True)
        assert (np.abs(mine - truth) <= 5e-6 * largest).all(), name
    second = lambda found: {name: array[1] for name, array in found.items()}
    close(second(ours), second(exact), atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_weak_decay_over_many_steps(implementation):
    """A factor near 1 with the same rounding error at every step would drift."""
    arrays, _ = draw("linear_attention", 0, 1, 4096, 1, 4, initial_state=True)
    arrays |= dict(log_decay=jnp.full(1, -3e-4), value=jnp.abs(arrays["value"]))
    arrays |= dict(key=jnp.abs(arrays["key"]), query=jnp.abs(arrays["query"]))
    exact = recurrence(arrays)
    ours = outputs("linear_attention", implementation, arrays, is_causal=True)
    for mine, name in zip(ours, ("out", "state")):
        np.testing.assert_allclose(mine, exact[name], rtol=5e-6, err_msg=name)


def unit_keys(length):
    """Arrays of the delta rule in one head, with keys of length 1 and beta 1."""
    arrays, cotangents = draw("delta_rule", 0, 1, length, 1, initial_state=True)
    key = arrays["key"] / jnp.linalg.norm(arrays["key"], axis=-1, keepdims=True)
    return arrays | dict(query=key, key=key, beta=jnp.ones((1, length, 1))), cotangents


@pytest.mark.parametrize("implementation", PLAIN)
def test_what_beta_does(implementation):
    """0 leaves the state, 1 puts the value in it, 2 reflects it."""
    run = lambda arrays: outputs("delta_rule", implementation, arrays, scale=1)
    arrays, _ = unit_keys(6)
    before = arrays["initial_state"]
    out, state = run(arrays | dict(beta=jnp.zeros((6, 1))))
    np.testing.assert_array_equal(state, before)
    read = jnp.einsum("bnhv,btnh->btnv", before, arrays["query"], precision="highest")
    np.testing.assert_allclose(out, read, atol=1e-6)
    out, _ = run(arrays)
    np.testing.assert_allclose(out, arrays["value"], atol=1e-6)
    again = steps_of(arrays, np.array([0, 0])) | dict(beta=jnp.full((2, 1), 2.0))
    out, state = run(again)
    value = arrays["value"][:, 0]
    np.testing.assert_allclose(out[:, 0] - value, value - read[:, 0], atol=1e-5)
    np.testing.assert_allclose(state, before, atol=1e-5)


@pytest.mark.parametrize("implementation", ALL)
def test_the_same_key_again_and_again(implementation):
    """The powers of a triangular matrix of ones grow before they cancel."""
    arrays, cotangents = unit_keys(31)
    arrays["query"] = arrays["key"] = jnp.tile(arrays["key"][:, :1], (1, 31, 1, 1))
    ours = results("delta_rule", implementation, arrays, cotangents, scale=1)
    np.testing.assert_allclose(ours["out"], arrays["value"], atol=1e-5)
    close(ours, recurrence(arrays, *cotangents, scale=1), atol=1e-5)


def regression(seed, batch=3, examples=10, inputs=5, labels=2):
    """Inputs and labels of linear tasks; one more input than labels are seen."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(batch, examples + 1, inputs)).astype(np.float32)
    y = np.einsum("bti,bio->bto", x, rng.normal(size=(batch, inputs, labels)))
    return x, y.astype(np.float32)


@pytest.mark.parametrize("implementation", PLAIN)
def test_a_layer_that_does_a_step_of_gradient_descent(implementation):
    """von Oswald et al. 2023, proposition 1, with their weights, from W = 0."""
    x, y = regression(0)
    batch, tokens, inputs = x.shape
    examples, labels, rate = tokens - 1, y.shape[-1], 0.7
    in_context = np.arange(tokens)[:, None] < examples
    token = np.concatenate([x, np.where(in_context, y, 0)], axis=-1)[:, :, None]
    to_key = np.diag([1.0] * inputs + [0.0] * labels)
    to_value = np.diag([0.0] * inputs + [-1.0] * labels)
    arrays = dict(query=token @ to_key, key=token @ to_key, value=token @ to_value)
    arrays = {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}
    update, _ = outputs(
        "linear_attention",
        implementation,
        arrays,
        is_causal=False,
        scale=1,
        key_value_seq_lengths=np.full(batch, examples),
    )
    prediction = -(token + rate / examples * update)[:, -1, 0, inputs:]

    def loss(weights, x, y):
        return ((x @ weights - y) ** 2).sum() / (2 * examples)

    gradient = jax.vmap(jax.grad(loss), (None, 0, 0))(
        jnp.zeros((inputs, labels)), x[:, :-1], y[:, :-1]
    )
    expected = np.einsum("bi,bio->bo", x[:, -1], -rate * gradient)
    np.testing.assert_allclose(prediction, expected, atol=1e-6)


@pytest.mark.parametrize("implementation", PLAIN)
def test_the_delta_rule_is_least_mean_squares(implementation):
    """Widrow and Hoff 1960. The next input as query gives the prediction before its label."""
    x, y = regression(1)
    batch, tokens, inputs = x.shape
    rate, examples = 0.3, tokens - 1
    before, after = np.zeros((2, batch, examples, 1, y.shape[-1]))
    weights = np.zeros((batch, inputs, y.shape[-1]))
    for b in range(batch):
        for t in range(examples):
            error = weights[b].T @ x[b, t] - y[b, t]
            weights[b] -= rate * np.outer(x[b, t], error)
            after[b, t, 0] = weights[b].T @ x[b, t]
            before[b, t, 0] = weights[b].T @ x[b, t + 1]
    inputs, label = x[:, :, None], y[:, :-1, None]
    fixed = dict(key=inputs[:, :-1], value=label, beta=np.full(1, rate, np.float32))
    for query, expected in ((inputs[:, 1:], before), (inputs[:, :-1], after)):
        out, state = outputs("delta_rule", implementation, dict(query=query, **fixed), scale=1)
        np.testing.assert_allclose(out, expected, atol=1e-6)
        np.testing.assert_allclose(state[:, 0], weights, atol=1e-6)


# The ops read keys, values and decays alike, so each of them takes one of NaN and infinity.
BROKEN = {
    "linear_attention": [("key", np.nan), ("value", np.inf), ("log_decay", np.nan)],
    "delta_rule": [
        ("key", np.inf),
        ("value", np.nan),
        ("log_decay", np.inf),
        ("beta", np.nan),
        ("beta", np.inf),
    ],
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ALL)
def test_the_future_never_leaks(implementation, op):
    """NaN in a step of one head changes no bit before it, nor in the other head.

    The two batch rows take two kinds of broken numbers at once.
    """
    arrays, (d_out, d_state), options = draw_full(op)
    sees = (np.arange(20) >= 17)[:, None] & (np.arange(2) == 0)
    # Only results of the spared queries are compared; the others see NaN.
    cotangents = jnp.where(sees[..., None], 0, d_out), d_state.at[:, 0].set(0)
    run = lambda arrays: results(op, implementation, arrays, cotangents, **options)
    clean = run(arrays)
    for first in range(0, len(BROKEN[op]), 2):
        broken, kinds = jax.tree.map(np.array, arrays), (2 * BROKEN[op])[first : first + 2]
        for row, (name, number) in enumerate(kinds):
            broken[name][row, 17, 0] = number
        bad, name = run(broken), str(kinds)
        assert np.isnan(bad["out"][:, sees]).all() and np.isnan(bad["state"][:, 0]).all(), name
        np.testing.assert_array_equal(bad["state"][:, 1], clean["state"][:, 1], name)
        for part in clean.keys() - {"state", "initial_state"}:
            np.testing.assert_array_equal(bad[part][:, ~sees], clean[part][:, ~sees], name)
        for part in ("query", "initial_state"):
            np.testing.assert_array_equal(bad[part], clean[part], name)


# One chunk, with states and without; several chunks in each pass or only in the forward one.
SIZES = [(BF16, 16, False), (F16, 33, True), (F32, 33, True), (BF16, 80, True)]


@pytest.mark.parametrize("dtype, length, has_states", SIZES)
@pytest.mark.parametrize(
    "op, is_causal", [*((op, True) for op in OPS), ("linear_attention", False)]
)
@pytest.mark.parametrize("implementation", [*FUSED, "segments"])
def test_one_broken_number_anywhere(implementation, op, is_causal, dtype, length, has_states):
    """Every batch row has its own, in the first, the last or an inner number of a tensor.

    The results that see it are NaN, and all else is as if it were 0. Off a GPU each tensor has it
    in one place, by turns.
    """
    if implementation == "pallas" and (length == 80 or dtype == F16):
        pytest.skip("Pallas takes lengths and dtypes alike")
    plan = contextlib.nullcontext()
    if implementation == "segments":
        if op == "delta_rule" or not is_causal or length < 80:
            pytest.skip("is not taken in segments")
        implementation, config = "triton", launch.Config(16, 1)
        plan = forcing(launch.Plan(config, config, segments=5))
    places = [(0, 0), (length // 2, 3), (length - 1, 7)]
    names = ["key", "value"] + ["beta"] * (op == "delta_rule") + ["log_decay"] * is_causal
    cases = [(name, *place) for name in names for place in places]
    turn = SIZES.index((dtype, length, has_states))
    if not ON_GPU:
        cases = [(name, *places[(i + turn) % 3]) for i, name in enumerate(names)]
    sizes = dict(batch=len(cases), length=length, heads=1, dtype=dtype)
    arrays, (d_out, d_state) = draw(op, 0, log_decay=is_causal, initial_state=has_states, **sizes)
    options = {} if op == "delta_rule" else dict(is_causal=is_causal)
    options |= dict(return_state=has_states, implementation=implementation)

    @jax.jit
    def run(arrays):
        result, pull_back = jax.vjp(lambda arrays: OPS[op](**arrays, **options), arrays)
        out, state = result if has_states else (result, jnp.zeros(len(cases)))
        gradient = pull_back((d_out, d_state) if has_states else d_out)[0]
        return gradient | dict(out=out, state=state)

    zeroed, bad = (jax.tree.map(np.array, arrays) for _ in range(2))
    at = lambda row, name, *place: (row, name, (row, place[0], 0, place[1])[: arrays[name].ndim])
    for row, name, index in (at(row, *case) for row, case in enumerate(cases)):
        broken = [np.nan, np.inf, -np.inf][(row + turn) % (2 if name == "log_decay" else 3)]
        zeroed[name][index], bad[name][index] = 0, broken
    wide = lambda found: {n: np.array(a, np.float32) for n, a in found.items()}
    with plan:
        expected, ours = wide(run(zeroed)), wide(run(bad))
    for row, name, index in (at(row, *case) for row, case in enumerate(cases)):
        expected["out"][row, index[1] if is_causal else 0 :] = np.nan
        expected["state"][row] = np.nan if has_states else 0
        # The gradient of what is broken may be anything.
        expected[name][index] = ours[name][index]
    for name, theirs in expected.items():
        np.testing.assert_array_equal(ours[name], theirs, name)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("implementation", ALL)
def test_padding_may_hold_anything(implementation, is_causal):
    """Past the lengths key, value and decay are NaN, and gradients are unaffected, 0 there."""
    lengths = np.array([0, 5, 20])
    options = dict(is_causal=is_causal, normalize=True, key_value_seq_lengths=lengths)
    arrays, cotangents = draw(
        "linear_attention", 0, 3, normalize=True, log_decay=is_causal, initial_state=True
    )
    past = np.arange(20) >= lengths[:, None]
    of_steps = arrays.keys() - {"query", "initial_state"}
    bad = arrays | {name: arrays[name].at[past].set(jnp.nan) for name in of_steps}
    clean = results("linear_attention", implementation, arrays, cotangents, **options)
    poisoned = results("linear_attention", implementation, bad, cotangents, **options)
    for name, theirs in clean.items():
        assert np.isfinite(theirs).all(), name
        np.testing.assert_array_equal(poisoned[name], theirs, name)
    for name in of_steps:
        np.testing.assert_array_equal(clean[name][past], 0, name)
    exact = recurrence(arrays, *cotangents, **options)
    close(clean, exact, atol=1e-4)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("implementation", ALL)
def test_a_query_that_sees_nothing_is_zero_with_zero_gradient(implementation, is_causal):
    """A row of length 0, or a query whose weights add up to 0."""
    options = dict(is_causal=is_causal, normalize=True, key_value_seq_lengths=np.array([0, 20]))
    arrays, cotangents = draw("linear_attention", 0, normalize=True)
    arrays["query"] = arrays["query"].at[:, 7].set(0)
    ours = results("linear_attention", implementation, arrays, cotangents, **options)
    for name, array in ours.items():
        assert np.isfinite(array).all(), name
        np.testing.assert_array_equal(array[0], 0, name)
        assert np.abs(array[1]).max() > 0
    np.testing.assert_array_equal(ours["out"][1, 7], 0)
    np.testing.assert_array_equal(ours["query"][1, 7], 0)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", FUSED)
def test_two_runs_give_the_same_bits(implementation, op):
    arrays, cotangents = draw(op, 0, 2, 33, log_decay=True, initial_state=True, dtype=jnp.bfloat16)
    arrays["log_decay"], arrays["initial_state"] = (
        arrays["log_decay"][0],
        arrays["initial_state"][0],
    )
    options = dict(is_causal=True) if op == "linear_attention" else {}
    first, second = (results(op, implementation, arrays, cotangents, **options) for _ in range(2))
    for name, mine in first.items():
        np.testing.assert_array_equal(mine, second[name], name)


@pytest.mark.parametrize("batch", [(), (2, 1, 2), (2, 0)])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", PLAIN)
def test_any_leading_axes(implementation, op, batch):
    arrays, _ = draw(op, 0, int(np.prod(batch)), 5, columns=3, log_decay=True, initial_state=True)
    shaped = {name: a.reshape(*batch, *a.shape[1:]) for name, a in arrays.items()}
    options = dict(is_causal=True) if op == "linear_attention" else {}
    out, state = outputs(op, implementation, shaped, **options)
    assert out.shape == (*batch, 5, 2, 3) and state.shape == (*batch, 2, 8, 3)
    exact = recurrence(arrays)
    np.testing.assert_allclose(out.reshape(exact["out"].shape), exact["out"], atol=1e-5)
    np.testing.assert_allclose(state.reshape(exact["state"].shape), exact["state"], atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_no_steps(op):
    """The last state is the initial one."""
    arrays, cotangents = draw(op, 0, length=0, log_decay=True, initial_state=True)
    options = dict(is_causal=True) if op == "linear_attention" else {}
    ours = results(op, None, arrays, cotangents, **options)
    assert ours["out"].shape == (2, 0, 2, 8)
    np.testing.assert_array_equal(ours["state"], arrays["initial_state"])
    np.testing.assert_array_equal(ours["initial_state"], cotangents[1])


def test_queries_without_steps_and_steps_without_queries():
    arrays, cotangents = draw("linear_attention", 0, key_length=0, initial_state=True)
    ours = results("linear_attention", None, arrays, cotangents, is_causal=False)
    exact = recurrence(arrays, *cotangents, is_causal=False)
    close(ours, exact)
    arrays, cotangents = draw("linear_attention", 0, length=0, key_length=9)
    ours = results("linear_attention", None, arrays, cotangents, is_causal=False)
    close(ours, recurrence(arrays, *cotangents, is_causal=False))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_float64_is_computed_in_float64(implementation, op):
    with jax.enable_x64(True):
        arrays, cotangents, options = draw_full(op, dtype=jnp.float64)
        ours = results(op, implementation, arrays, cotangents, **options)
    exact = recurrence(arrays, *cotangents, **options)
    close(ours, exact, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length, dtype", [(1, BF16), (11, F16), (64, BF16)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_narrow_inputs_of_many_rows_and_heads(length, is_causal, dtype):
    """The default form has bfloat16 products in layouts that XLA's CPU backend lacks."""
    arrays, cotangents = draw("linear_attention", 0, batch=3, length=length, heads=4, dtype=dtype)
    ours = results("linear_attention", None, arrays, cotangents, is_causal=is_causal)
    exact = recurrence(arrays, *cotangents, is_causal=is_causal)
    for name, mine in ours.items():
        assert np.abs(mine - exact[name]).max() <= 0.03 * np.abs(exact[name]).max(), name


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("implementation", ALL)
def test_a_later_key_that_overflows_changes_nothing(implementation, decay):
    arrays, _ = draw("linear_attention", 0, log_decay=decay)
    arrays["query"] = arrays["query"] * 1e10
    huge = arrays | dict(key=arrays["key"].at[:, 15].set(1e30))
    run = lambda arrays: outputs("linear_attention", implementation, arrays, is_causal=True)[0]
    np.testing.assert_array_equal(run(huge)[:, :15], run(arrays)[:, :15])
