"""The token bucket, as a property of all sequences: never more than the rate, and never idle."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core.bucket import Bucket

FULL = Bucket(rate=100, burst=50, level=50, since=0)


def test_a_full_bucket_gives_its_burst_at_once() -> None:
    bucket, seconds = FULL.take(50, 0)

    assert (bucket.level, seconds) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "now", "seconds"),
    [
        pytest.param(0, 0, 0, id="nothing"),
        pytest.param(51, 0, 0.01, id="one-too-many"),
        pytest.param(250, 0, 2, id="much-more-than-the-burst"),
        pytest.param(150, 3600, 1, id="an-hour-saves-no-more-than-a-burst"),
    ],
)
def test_what_is_not_there_is_waited_for(tokens: float, now: float, seconds: float) -> None:
    assert FULL.take(tokens, now)[1] == pytest.approx(seconds)


def test_who_comes_while_another_waits_waits_behind_it() -> None:
    first, _ = FULL.take(150, 0)

    assert first.take(100, 0)[1] == pytest.approx(2)
    assert first.take(100, 1)[1] == pytest.approx(1)


def test_what_was_taken_before_is_not_changed() -> None:
    FULL.take(50, 10)

    assert Bucket(rate=100, burst=50, level=50, since=0) == FULL


rates = st.floats(1, 1e9)
steps = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 20)), min_size=1, max_size=50)


@given(rate=rates, burst=st.floats(0, 1e8), steps=steps)
def test_whoever_waits_as_told_never_exceeds_the_rate(
    rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    bucket = Bucket(rate=rate, burst=burst, level=burst, since=0)
    now = used = 0.0
    for idle, tokens in steps:
        now += idle
        bucket, seconds = bucket.take(tokens, now)
        now += seconds
        used += tokens

        assert used <= (burst + rate * now) * (1 + 1e-9) + 1e-3


@given(rate=rates, burst=st.floats(0, 1e8), sizes=st.lists(st.integers(1, 1 << 20), min_size=1))
def test_whoever_never_idles_gets_all_of_the_rate(
    rate: float, burst: float, sizes: list[int]
) -> None:
    bucket = Bucket(rate=rate, burst=burst, level=burst, since=0)
    now = 0.0
    for tokens in sizes:
        bucket, seconds = bucket.take(tokens, now)
        now += seconds

    assert math.isclose(
        now, max(0.0, (sum(sizes) - burst) / rate), rel_tol=1e-6, abs_tol=1e-6 * (1 + burst / rate)
    )
