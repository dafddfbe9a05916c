"""The governor on a model of a shared disk: the host's work does not notice, an idle host is used.

Numbers are those of the promise (DESIGN.md, 1): a log that syncs like etcd's, on a disk of 50 MB/s.
"""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared_disk import NONE, TICK, SharedDisk, When, Work
from update_agent.core.governor import Bounds, Pace

FLOOR = 4e6
BEGIN = Pace.begin(Bounds(floor=FLOOR))
ETCD = Work(rate=100, cost=0.002)

WORKS = [
    pytest.param(ETCD, id="etcd"),
    pytest.param(Work(rate=100, cost=0.001), id="etcd-on-a-faster-disk"),
    pytest.param(Work(rate=100, cost=0.0003), id="etcd-on-flash"),
    pytest.param(Work(rate=300, cost=0.002), id="a-busy-database"),
    pytest.param(Work(rate=10, cost=0.002), id="a-quiet-database"),
]


def always(work: Work) -> When:
    return lambda _: work


def alone(work: Work) -> float:
    return SharedDisk().run(60, always(work)).p99()


# What the host's work feels ----------------------------------------------------------------------


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_work_that_was_there_before_hardly_notices(
    work: Work, seed: int, figure: Callable[[str], None]
) -> None:
    run = SharedDisk(seed=seed).run(60, always(work), pace=BEGIN)

    times = run.p99() / alone(work)
    assert times <= 1.5
    figure(f"governor (model): {work.rate:.0f} syncs a second of {work.cost * 1000:g} ms:"
           f" p99 {times:.2f} times alone, the update at {run.moved() / 1e6:.0f} MB/s")  # fmt: skip


def test_without_a_governor_work_would_notice() -> None:
    """What the model is worth: on it, an update without limits is a nuisance."""
    work = Work(rate=100, cost=0.0003)

    assert SharedDisk().run(60, always(work), pace=BEGIN, governed=False).p99() > 3 * alone(work)


@pytest.mark.parametrize("work", [ETCD, Work(rate=300, cost=0.002), Work(rate=100, cost=0.001)])
def test_work_that_comes_is_given_way_within_a_second(work: Work) -> None:
    run = SharedDisk().run(60, lambda at: work if at >= 10 else NONE, pace=BEGIN)

    assert run.between(9.75)[0].rate > 50e6
    assert all(it.rate < 1.1 * FLOOR for it in run.between(11))
    assert run.p99(10) <= 1.5 * alone(work)


def test_work_that_comes_and_goes_is_met_each_time() -> None:
    run = SharedDisk().run(60, lambda at: ETCD if at % 10 >= 5 else NONE, pace=BEGIN)

    assert run.p99() <= 1.5 * alone(ETCD)
    for begin in range(0, 60, 10):
        assert run.moved(begin + 3, begin + 5) > 0.9 * 50e6
        assert run.moved(begin + 6, begin + 10) < 1.1 * FLOOR


# What the update gets ----------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [10e6, 50e6, 200e6])
def test_an_idle_host_is_used_at_nine_tenths_of_what_it_can(
    bandwidth: float, figure: Callable[[str], None]
) -> None:
    free = SharedDisk(bandwidth=bandwidth).run(20, pace=BEGIN, governed=False).moved()

    share = SharedDisk(bandwidth=bandwidth).run(20, pace=BEGIN).moved() / free

    assert share >= 0.9
    figure(f"governor (model): idle disk of {bandwidth / 1e6:.0f} MB/s used at {share:.0%}")


def test_a_host_that_hardly_waits_is_used_too() -> None:
    """A log that is synced once a second is no work to give way to."""
    run = SharedDisk().run(30, always(Work(rate=1, cost=0.002)), pace=BEGIN)

    assert run.moved(2) > 0.9 * 49e6


def test_a_busy_host_gives_the_floor_and_no_less() -> None:
    run = SharedDisk().run(30, always(Work(rate=300, cost=0.002)), pace=BEGIN)

    assert run.moved(5) == pytest.approx(FLOOR, rel=0.05)


def test_between_the_two_the_rate_settles_and_does_not_swing() -> None:
    """It is where the work waits as much as it may, and stays there."""
    run = SharedDisk(bandwidth=200e6).run(90, always(Work(rate=50, cost=0.0003)), pace=BEGIN)
    found = run.between(10)

    rates = [it.rate for it in found]
    turns = sum(
        (now - before) * (after - now) < 0
        for before, now, after in zip(rates, rates[1:], rates[2:], strict=False)
    )
    assert 30e6 < min(rates) < max(rates) < 200e6
    assert max(later / rate for rate, later in itertools.pairwise(rates)) < 2
    assert turns < len(rates) / 2
    assert sum(it.waited for it in found) / len(found) == pytest.approx(0.03, rel=0.1)


def test_an_update_that_waits_for_the_network_does_not_pounce_when_it_comes() -> None:
    pace = BEGIN
    for _ in range(40):
        pace = pace.step(0.0, moved=min(pace.rate, 6e6), seconds=TICK)

    assert pace.rate == 24e6
    assert pace.throttled_by is None


# Bounds ------------------------------------------------------------------------------------------

bounds = st.builds(
    lambda floor, more, pressure: Bounds(floor=floor, ceiling=floor * more, pressure=pressure),
    st.floats(1, 1e9), st.floats(1, 1e6) | st.just(math.inf), st.floats(0.01, 1),
)  # fmt: skip
ticks = st.tuples(st.floats(0, 1), st.floats(0, 1e12), st.floats(1e-3, 1e6))


@given(bounds=bounds, ticks=st.lists(ticks, max_size=60))
def test_the_rate_is_always_within_its_bounds(
    bounds: Bounds, ticks: list[tuple[float, float, float]]
) -> None:
    pace = Pace.begin(bounds)
    for waited, moved, seconds in ticks:
        pace = pace.step(waited, moved=moved, seconds=seconds)

        assert bounds.floor <= pace.rate <= bounds.ceiling
        assert math.isfinite(pace.rate)
        assert 32 * 1024 <= pace.piece <= 2**20
        assert pace.piece % 4096 == 0


@given(pace=ticks, waited=st.floats(0, 1), more=st.floats(0, 1))
def test_who_waits_longer_is_never_given_less_way(
    pace: tuple[float, float, float], waited: float, more: float
) -> None:
    waited, more = sorted((waited, more))
    before, moved, seconds = pace
    now = BEGIN.step(before, moved=moved, seconds=seconds)

    slow = now.step(more, moved=moved, seconds=TICK)
    fast = now.step(waited, moved=moved, seconds=TICK)

    assert slow.rate <= fast.rate


@given(ticks=st.lists(ticks, max_size=30))
def test_floor_and_ceiling_in_one_are_a_static_limit(
    ticks: list[tuple[float, float, float]],
) -> None:
    pace = Pace.begin(Bounds(floor=1e6, ceiling=1e6))
    for waited, moved, seconds in ticks:
        pace = pace.step(waited, moved=moved, seconds=seconds)

    assert pace.rate == 1e6


@pytest.mark.parametrize(
    ("waited", "moved", "wanted"),
    [
        pytest.param(0.0, 50e6, None, id="the-disk"),
        pytest.param(0.0, 0.0, None, id="the-network"),
        pytest.param(0.5, 4e6, "the host's work", id="at-the-floor"),
        pytest.param(0.03, 1e12, "the host's work", id="in-between"),
    ],
)
def test_it_says_what_holds_the_update_back(waited: float, moved: float, wanted: str) -> None:
    pace = BEGIN
    for _ in range(20):
        pace = pace.step(waited, moved=min(moved, pace.rate), seconds=TICK)

    assert pace.throttled_by == wanted


def test_it_says_when_that_is_the_ceiling() -> None:
    pace = Pace.begin(Bounds(floor=4e6, ceiling=8e6))
    for _ in range(4):
        pace = pace.step(0.0, moved=pace.rate, seconds=TICK)

    assert (pace.rate, pace.throttled_by) == (8e6, "limits.ceiling")


# What is no tick, and no bound -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floor", "ceiling", "pressure"),
    [(0, 1, 0.1), (-1, 1, 0.1), (2, 1, 0.1), (math.nan, 1, 0.1), (math.inf, math.inf, 0.1),
     (1, math.nan, 0.1), (1, 2, 0), (1, 2, 1.01), (1, 2, math.nan)],
)  # fmt: skip
def test_bounds_that_are_none_are_refused(floor: float, ceiling: float, pressure: float) -> None:
    with pytest.raises(ValueError, match=r"wanted 0 < floor <= ceiling|a share of the time"):
        Bounds(floor=floor, ceiling=ceiling, pressure=pressure)


@pytest.mark.parametrize(
    ("waited", "moved", "seconds"),
    [(-0.1, 0, 1), (1.1, 0, 1), (math.nan, 0, 1), (0, -1, 1), (0, math.inf, 1), (0, math.nan, 1),
     (0, 0, 0), (0, 0, -1), (0, 0, math.nan)],
)  # fmt: skip
def test_a_tick_that_is_none_is_refused(waited: float, moved: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="no tick"):
        BEGIN.step(waited, moved=moved, seconds=seconds)
