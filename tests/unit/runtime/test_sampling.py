"""Sampling draws from the distribution it says, and repeats itself under a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native import needs_library

from pythia_export.base.errors import NumericsError, RecipeError
from pythia_export.runtime import drawing
from pythia_export.runtime.drawing import NativeDraws
from pythia_export.runtime.sampling import Draws, Sampling, ahead, choose, distribution, draw, probabilities

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def kept(**settings: float) -> dict[int, float]:
    tokens, p = probabilities(LOGITS, Sampling(**settings))  # type: ignore[arg-type]
    return {int(t): round(float(x), 6) for t, x in zip(tokens, p, strict=True)}


def test_temperature_sharpens_and_flattens() -> None:
    assert kept(temperature=1) == {1: 0.4, 3: 0.3, 4: 0.15, 0: 0.1, 2: 0.05}
    squared = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    assert kept(temperature=0.5)[1] == round(squared[1] / squared.sum(), 6)
    assert kept(temperature=1e9)[2] == pytest.approx(0.2, abs=1e-5)
    assert kept(temperature=1e-300) == {1: 1.0, 3: 0.0, 4: 0.0, 0: 0.0, 2: 0.0}


def test_top_k_keeps_the_k_likeliest_and_the_lower_id_of_equals() -> None:
    assert kept(temperature=1, top_k=2) == {1: round(4 / 7, 6), 3: round(3 / 7, 6)}
    assert len(kept(temperature=1, top_k=99)) == 5
    tokens, p = probabilities(np.zeros(6, np.float32), Sampling(1.0, top_k=2))
    assert tokens.tolist() == [0, 1] and p.tolist() == [0.5, 0.5]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    assert list(kept(temperature=1, top_p=0.69)) == [1, 3]
    assert list(kept(temperature=1, top_p=0.71)) == [1, 3, 4]
    assert kept(temperature=1, top_p=1e-9) == {1: 1.0}
    assert len(kept(temperature=1, top_p=1.0)) == 5
    # Eight tenths add up to 0.7999999999999999; that is no reason for a ninth.
    assert len(probabilities(np.zeros(10, np.float32), Sampling(1.0, top_p=0.8))[0]) == 8


def test_top_p_counts_what_top_k_left() -> None:
    # Of 4/7 and 3/7 the first alone reaches 0.5; of all five it would take two.
    assert list(kept(temperature=1, top_k=2, top_p=0.5)) == [1]
    assert list(kept(temperature=1, top_p=0.5)) == [1, 3]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 50),
    st.none() | st.floats(0.01, 1),
)
def test_against_the_definition(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    tokens, p = probabilities(np.array(logits, np.float32), Sampling(temperature, top_k, top_p))
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:top_k]
    weights = [math.exp((logits[t] - logits[order[0]]) / temperature) for t in order]
    total, mass, n = sum(weights), 0.0, 0
    while n < len(order) and (n == 0 or mass < (top_p or 2) * total * (1 - 1e-9)):
        mass += weights[n]
        n += 1
    # Where the sum meets top_p to a rounding, tokens more or less weigh no more than that rounding.
    more = sorted((len(tokens), n))
    assert len(tokens) == n or (top_p is not None and sum(weights[more[0] : more[1]][1:]) <= 1e-9 * total)
    assert tokens.tolist() == order[: len(tokens)]
    expected = np.array(weights[: len(tokens)])
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-9, atol=1e-300)


def test_draws_follow_the_probabilities() -> None:
    rng, n = np.random.default_rng(0), 20_000
    counts = np.bincount([choose(LOGITS, Sampling(1.0), rng) for _ in range(n)], minlength=5) / n
    p = np.exp(LOGITS)
    assert (np.abs(counts - p) < 4 * np.sqrt(p * (1 - p) / n)).all()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 40, 4096]),
    st.sampled_from([0.01, 0.3, 1.0, 4.0]),
    st.none() | st.integers(1, 60),
    st.none() | st.floats(0.01, 1),
)
def test_a_draw_is_the_one_from_the_whole_sorted_vocabulary(seed, size, temperature, top_k, top_p) -> None:
    """The same seed gives the same text as ever: only as much is sorted as the draw needs, and nothing moves."""
    logits = np.random.default_rng(seed).normal(0, 4, size).round(1).astype(np.float32)  # with equals among them
    sampling = Sampling(temperature, top_k, top_p)
    tokens = np.argsort(-logits.astype(np.float64), kind="stable")[:top_k]
    p = np.exp((logits[tokens].astype(np.float64) - logits.max()) / temperature)
    p /= p.sum()
    if top_p is not None:
        kept = int(np.searchsorted(np.cumsum(p), top_p * (1 - 1e-12))) + 1
        tokens, p = tokens[:kept], p[:kept] / p[:kept].sum()
    u = np.random.default_rng(seed).random()
    expected = tokens[min(int(np.searchsorted(np.cumsum(p), u, side="right")), len(tokens) - 1)]
    assert choose(logits, sampling, np.random.default_rng(seed)) == expected
    spread = np.zeros(size)
    spread[tokens] = p
    np.testing.assert_allclose(distribution(logits, sampling), spread, rtol=1e-12, atol=1e-300)


def test_greedy_takes_the_likeliest_and_the_lower_id_of_equals() -> None:
    rng = np.random.default_rng(0)
    assert choose(LOGITS, Sampling(), rng) == 1
    assert choose(np.array([1, 3, 3], np.float32), Sampling(), rng) == 1


def test_a_seed_repeats_and_rows_have_streams_of_their_own() -> None:
    def draws(seed: int | None, rows: int) -> list[list[int]]:
        sampling = Sampling(1.0, seed=seed)
        return [[choose(LOGITS, sampling, rng) for _ in range(30)] for rng in sampling.generators(rows)]

    assert draws(7, 3)[:2] == draws(7, 2)
    assert draws(7, 2) != draws(8, 2)
    assert draws(7, 2)[0] != draws(7, 2)[1]
    assert draws(None, 1) != draws(None, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p 0.0"),
        ({"temperature": 1.0, "top_p": 1.01}, "top_p 1.01"),
        ({"temperature": 1.0, "seed": -1}, "seed -1"),
        ({"top_k": 40}, "no effect at temperature 0"),
        ({"top_p": 0.9}, "no effect at temperature 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(NumericsError, match="1 of 5 logits .* token 3"):
        choose(logits, Sampling(temperature), np.random.default_rng(0))


SETTINGS = [{}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.5}, {"top_k": 400}]


@needs_library
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_librarys_draw_is_numpys(settings, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    sampling = Sampling(0.8, **settings)
    rows = rng.gumbel(0, 2, (300, 5000)).astype(np.float32)
    native = [draw(row, sampling, np.random.default_rng(i)) for i, row in enumerate(rows)]
    calls = []
    monkeypatch.setattr(NativeDraws, "__call__", lambda *given: calls.append(given))
    by_numpy = [draw(row, sampling, np.random.default_rng(i)) for i, row in enumerate(rows)]
    assert len(calls) == len(rows), "the library was asked"
    assert sum(a != b for a, b in zip(native, by_numpy, strict=True)) <= 3, "but where float32 rounds over a boundary"


@needs_library
@pytest.mark.parametrize("temperature", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.9, 0.999])
def test_the_librarys_draw_is_numpys_of_peaked_and_flat_logits(temperature, top_p, monkeypatch) -> None:
    """The classes by which the library finds a sum: one token, some dozens, or thousands of equals."""
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 2, (60, 4099)).round(2).astype(np.float32)
    rows[0], rows[1] = 0, -3e38
    rows[1, 77] = 3e38
    sampling = Sampling(temperature, top_p=top_p)
    native = [draw(row, sampling, np.random.default_rng(i)) for i, row in enumerate(rows)]
    monkeypatch.setattr(NativeDraws, "__call__", lambda *given: None)
    by_numpy = [draw(row, sampling, np.random.default_rng(i)) for i, row in enumerate(rows)]
    assert sum(a != b for a, b in zip(native, by_numpy, strict=True)) <= 1


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [*SETTINGS, {"top_k": 5000}])
@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_library), False])
def test_a_draw_finds_a_logit_that_is_not_finite(bad, settings, native, monkeypatch) -> None:
    """In a row's last number, behind whole vectors, as well as in its first."""
    if not native:
        monkeypatch.setattr(NativeDraws, "__call__", lambda *given: None)
    draws = Draws(Sampling(1.0, **settings))
    for token in (0, 700, 1002):
        logits = np.zeros((2, 1003), np.float32)
        logits[1, token] = bad
        assert 0 <= draws.token(logits, 0, 0.5) < 1003, "the other row"
        with pytest.raises(NumericsError, match=f"1 of 2,006 .* token {token} at place 0 of row 1") as told:
            draws.token(logits, 1, 0.5)
        assert "float16" in told.value.hint


@needs_library
def test_a_library_of_before_draws_and_numpy_looks_at_the_logits(monkeypatch) -> None:
    asked = []

    class Before:
        @staticmethod
        def pythia_draw(*given):
            asked.append(given)
            return 4

    monkeypatch.setattr(drawing.ctypes, "CDLL", lambda path: Before)
    monkeypatch.setattr(drawing, "_function", drawing._function.__wrapped__)
    draws, logits = Draws(Sampling(1.0, top_p=0.9)), np.zeros((1, 9), np.float32)
    assert draws.token(logits, 0, 0.5) == 4 and len(asked) == 1 and asked[0][1:] == (9, 1.0, 0, 0.9, 0.5)
    logits[0, 3] = math.nan
    with pytest.raises(NumericsError, match="token 3"):
        draws.token(logits, 0, 0.5)
    assert len(asked) == 1
    del Before.pythia_draw
    assert Draws(Sampling(1.0)).token(np.zeros((1, 9), np.float32), 0, 0.5) == 4, "NumPy's, of a library older still"


@needs_library
@pytest.mark.parametrize("logits", [np.zeros((1, 9), np.float64), np.zeros((1, 18), np.float32)[:, ::2]])
def test_what_the_library_does_not_read_is_drawn_by_numpy(logits) -> None:
    assert NativeDraws(1.0, None, None)(logits, 0, 0.5) is None
    assert draw(logits[0], Sampling(1.0), np.random.default_rng(0)) in range(9)
    assert NativeDraws(1.0, None, None)(np.zeros((1, 9), np.float32), 0, 0.5) == 4


@needs_library
def test_a_top_k_beyond_64_bits_leaves_out_no_token() -> None:
    flat = np.zeros((1, 9), np.float32)
    assert NativeDraws(1.0, 2**64 + 1, None)(flat, 0, 0.5) == NativeDraws(1.0, None, None)(flat, 0, 0.5) == 4


def test_what_was_drawn_from_one_buffer_is_not_taken_for_another() -> None:
    """Where a buffer begins is asked once. Rows, parts and other arrays of the same shape still are themselves."""
    draws = Draws(Sampling(1.0))
    buffer = np.full((3, 1, 9), -100, np.float32)
    for row, token in enumerate((2, 5, 7)):
        buffer[row, 0, token] = 100
    other = np.full((3, 9), -100, np.float32)
    other[:, 1] = 100
    for _ in range(2):
        assert [draws.token(buffer[:, 0], at, 0.5) for at in range(3)] == [2, 5, 7]
        assert draws.token(buffer[1:2, 0], 0, 0.5) == 5
        assert [draws.token(buffer[::-1, 0], at, 0.5) for at in range(3)] == [7, 5, 2]
        assert draws.token(other, 2, 0.5) == 1
        assert draws.token(other.copy(), 0, 0.5) == 1
    buffer[:] = buffer[::-1].copy()
    assert [draws.token(buffer[:, 0], at, 0.5) for at in range(3)] == [7, 5, 2], "what it holds now"


def test_numbers_drawn_ahead_are_those_of_one_call_after_another() -> None:
    numbers = ahead(np.random.default_rng([7, 0]))
    rng = np.random.default_rng([7, 0])
    assert [next(numbers) for _ in range(100)] == [rng.random() for _ in range(100)]
