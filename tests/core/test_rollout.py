"""Rollouts: numbers worked out by hand, and promises that hold for every plan."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from update_agent.core.rollout import MAX_SECONDS, RING, Pause, Rollout, Wave, percent, place
from update_agent.core.version import Version

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
HOUR = 3600
V = Version("1.4.2")

THREE = Rollout(
    started=START,
    waves=(
        Wave(share=RING // 100, opens=0, length=HOUR),
        Wave(share=RING // 10, opens=HOUR, length=4 * HOUR),
        Wave(share=RING, opens=5 * HOUR, length=24 * HOUR),
    ),
)
"""1 % in an hour, 10 % four hours later, everyone a day later."""


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def pause(hours: float) -> Pause:
    return Pause(since=at(hours), reason="hosts don't come back", author="ann")


# Places ------------------------------------------------------------------------------------------


def test_a_place_never_changes_between_programs_and_releases_of_this_one() -> None:
    # printf 'ID\0os\0001.4.2' | sha256sum | cut -c1-16, times a million, over 2^64
    assert place("4b5e0c0f6a2d4d0f8a4e6f3a2b1c0d9e", "os", V) == 754_579


@pytest.mark.case(97)
def test_a_place_follows_from_host_product_and_version_alone() -> None:
    mine = place("a", "os", V)

    assert place("a", "os", Version("1.4.2")) == mine
    assert (
        len({mine, place("b", "os", V), place("a", "so", V), place("a", "os", Version("1.4.3"))})
        == 4
    )


def test_no_two_hosts_are_one_because_of_how_their_names_meet() -> None:
    assert place("ab", "c", V) != place("a", "bc", V)


def test_places_are_even_and_new_for_each_release() -> None:
    hosts = [f"{number:032x}" for number in range(20_000)]
    old = [place(host, "os", V) for host in hosts]
    new = [place(host, "os", Version("1.5.0")) for host in hosts]

    for tenth in range(10):
        count = sum(tenth * RING // 10 <= it < (tenth + 1) * RING // 10 for it in old)
        assert count == pytest.approx(2000, abs=200)  # more than four standard deviations
    first = [now for before, now in zip(old, new, strict=True) if before < RING // 100]
    assert sum(it < RING // 100 for it in first) < 10  # 2 expected of 200


# Waves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "hours"),
    [
        pytest.param(0, 0, id="the-very-first"),
        pytest.param(5_000, 0.5, id="half-of-the-first-wave"),
        pytest.param(10_000, 1, id="first-of-the-second"),
        pytest.param(55_000, 3, id="half-of-the-second"),
        pytest.param(100_000, 5, id="first-of-the-third"),
        pytest.param(325_000, 11, id="a-quarter-of-the-third"),
        pytest.param(550_000, 17, id="half-of-the-third"),
    ],
)
def test_a_place_opens_when_its_part_of_the_wave_is_over(where: int, hours: float) -> None:
    assert THREE.opens_at(where) == at(hours)
    assert THREE.is_open(where, at(hours))
    assert not THREE.is_open(where, at(hours) - timedelta(seconds=1))


def test_everyone_is_open_when_the_last_wave_is_over() -> None:
    assert THREE.is_open(RING - 1, at(29))
    assert THREE.share(at(29)) == RING


def test_a_wave_without_length_opens_at_once() -> None:
    rollout = Rollout(started=START, waves=(Wave(share=RING // 2), Wave(share=RING, opens=HOUR)))

    assert rollout.is_open(RING // 2 - 1, START)
    assert not rollout.is_open(RING // 2, START)
    assert rollout.is_open(RING - 1, at(1))


def test_between_two_waves_nothing_opens() -> None:
    rollout = Rollout(
        started=START,
        waves=(Wave(share=RING // 2, length=HOUR), Wave(share=RING, opens=3 * HOUR, length=HOUR)),
    )

    assert {rollout.share(at(hours)) for hours in (1, 2, 2.99)} == {RING // 2}


def test_hosts_beyond_the_last_wave_are_never_offered_it() -> None:
    canaries = Rollout(started=START, waves=(Wave(share=RING // 100),))

    assert canaries.opens_at(RING // 100) is None
    assert not canaries.is_open(RING // 100, at(24 * 365))


def test_before_the_start_nobody_is_offered_anything() -> None:
    assert not any(THREE.is_open(where, at(-0.001)) for where in range(0, RING, 997))
    assert THREE.share(at(-0.001)) == 0


@pytest.mark.case(100)
@pytest.mark.parametrize(
    ("waves", "message"),
    [
        ((Wave(share=RING), Wave(share=RING)), "a wave up to 100 % follows one up to 100 %"),
        ((Wave(share=2000), Wave(share=1000)), "a wave up to 0.1 % follows one up to 0.2 %"),
        (
            (Wave(share=1000, opens=HOUR), Wave(share=RING, opens=0)),
            "the wave up to 100 % opens before the earlier",
        ),
    ],
)
def test_waves_that_go_back_are_refused(waves: tuple[Wave, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rollout(started=START, waves=waves)


@pytest.mark.parametrize("year", [1, 1969, 2501, 9999])
def test_times_to_which_nothing_can_be_added_are_refused(year: int) -> None:
    time = START.replace(year=year)

    with pytest.raises(ValueError, match=f"the year {year} is not one of 1970 to 2500"):
        Rollout(started=time)
    with pytest.raises(ValueError, match=f"the year {year} is not one of 1970 to 2500"):
        Rollout(started=START, deadline=time)


# Pauses and deadlines ----------------------------------------------------------------------------


def test_a_pause_lets_those_go_on_that_were_offered_it_and_nobody_else() -> None:
    paused = THREE.pause(pause(0.5))

    assert paused.is_open(5_000, at(100))
    assert not paused.is_open(5_001, at(100))
    assert paused.opens_at(5_001) is None
    assert paused.share(at(100)) == paused.share(at(0.5)) == 5_001


def test_after_a_pause_everything_comes_later_by_its_length() -> None:
    resumed = THREE.pause(pause(0.5)).resume(at(10.5))

    assert resumed.share(at(10.5)) == THREE.share(at(0.5))
    assert resumed.opens_at(10_000) == at(11)
    assert resumed.opens_at(550_000) == at(27)


def test_a_second_pause_adds_to_the_first() -> None:
    twice = THREE.pause(pause(0.5)).resume(at(10.5)).pause(pause(11.5)).resume(at(13.5))

    assert twice.opens_at(550_000) == at(17 + 10 + 2)


def test_pausing_twice_keeps_the_first_pause_and_resuming_twice_changes_nothing() -> None:
    paused = THREE.pause(pause(0.5))
    resumed = paused.resume(at(1))

    assert paused.pause(pause(0.7)) is paused
    assert resumed.resume(at(2)) is resumed


def test_at_the_deadline_everyone_is_offered_it() -> None:
    rollout = replace(THREE, deadline=at(6))

    assert rollout.opens_at(RING - 1) == at(6)
    assert not rollout.is_open(RING - 1, at(5.99))
    assert rollout.is_open(RING - 1, at(6))
    assert rollout.share(at(6)) == RING
    assert rollout.opens_at(5_000) == at(0.5)


def test_a_pause_holds_past_the_deadline() -> None:
    rollout = replace(THREE, deadline=at(6)).pause(pause(5))

    assert not rollout.is_open(RING - 1, at(7))
    assert rollout.resume(at(8)).is_open(RING - 1, at(8))


def test_a_pause_after_the_deadline_takes_nothing_back() -> None:
    rollout = replace(THREE, deadline=at(6)).pause(pause(7))

    assert rollout.is_open(RING - 1, at(8))


# Whatever the plan -------------------------------------------------------------------------------


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    shares = sorted(draw(st.sets(st.integers(1, RING), min_size=1, max_size=6)))
    opens = sorted(
        draw(st.lists(st.integers(0, 10**6), min_size=len(shares), max_size=len(shares)))
    )
    lengths = draw(st.lists(st.integers(0, 10**6), min_size=len(shares), max_size=len(shares)))
    waves = [
        Wave(share=share, opens=start, length=length)
        for share, start, length in zip(shares, opens, lengths, strict=True)
    ]
    return Rollout(started=START, waves=tuple(waves), held=draw(st.integers(0, MAX_SECONDS)))


times = st.integers(-(10**6), 10**7).map(lambda seconds: START + timedelta(seconds=seconds))
places = st.integers(0, RING - 1)


@given(rollouts(), places, times, times)
def test_what_is_open_stays_open(
    rollout: Rollout, where: int, one: datetime, two: datetime
) -> None:
    assert rollout.is_open(where, min(one, two)) <= rollout.is_open(where, max(one, two))


@given(rollouts(), places)
def test_a_place_opens_at_the_time_that_was_told(rollout: Rollout, where: int) -> None:
    when = rollout.opens_at(where)

    if when is None:
        assert where >= rollout.waves[-1].share
    else:
        assert rollout.is_open(where, when + timedelta(microseconds=1))
        assert not rollout.is_open(where, when - timedelta(seconds=1))


@given(rollouts())
def test_within_a_wave_nobody_overtakes(rollout: Rollout) -> None:
    first = 0
    for wave in rollout.waves:
        steps = range(first, wave.share, max(1, (wave.share - first) // 50))
        openings = [rollout.opening(where) or 0.0 for where in steps]
        assert openings == sorted(openings)
        assert all(wave.opens <= it <= wave.opens + wave.length for it in openings)
        first = wave.share


@given(rollouts(), st.lists(st.integers(0, 10**6), min_size=2, max_size=8), places)
def test_no_pause_makes_anything_earlier(rollout: Rollout, gaps: list[int], where: int) -> None:
    planned = rollout.opens_at(where)
    changed, now = rollout, START
    for before, after in pairwise(gaps):
        now += timedelta(seconds=before)
        changed = changed.pause(Pause(since=now, reason="", author=""))
        now += timedelta(seconds=after, microseconds=1)
        changed = changed.resume(now)

    later = changed.opens_at(where)

    assert (later is None) == (planned is None)
    if planned and later:
        assert later >= planned


@given(rollouts(), times, times, places)
def test_a_pause_freezes_who_is_offered_it(
    rollout: Rollout, since: datetime, now: datetime, where: int
) -> None:
    paused = rollout.pause(Pause(since=since, reason="", author=""))

    assert paused.is_open(where, max(since, now)) == rollout.is_open(where, since)
    assert paused.resume(max(since, now)).is_open(where, max(since, now)) <= paused.is_open(
        where, max(since, now)
    )


@settings(max_examples=30)
@given(rollouts(), times)
def test_the_share_is_how_many_places_are_open(rollout: Rollout, now: datetime) -> None:
    step = 997
    sample = range(0, RING, step)
    counted = sum(rollout.is_open(where, now) for where in sample)

    assert counted * step == pytest.approx(rollout.share(now), abs=step * (len(rollout.waves) + 2))


# A fleet -----------------------------------------------------------------------------------------


def test_a_fleet_follows_the_plan(figure: Callable[[str], None]) -> None:
    fleet = [place(f"{number:032x}", "os", V) for number in range(100_000)]
    plan = {0.5: 0.5, 1: 1.0, 3: 5.5, 5: 10.0, 11: 32.5, 17: 55.0, 28: 96.25, 29: 100.0}
    worst = 0.0
    for hours, wanted in plan.items():
        share = sum(THREE.is_open(where, at(hours)) for where in fleet) / 1000
        assert share == pytest.approx(wanted, abs=0.5)
        worst = max(worst, abs(share - wanted))
    figure(f"rollout of 100,000 hosts in three waves: at most {worst:.2f} points off the plan")


def test_after_a_pause_no_host_of_a_fleet_is_offered_it_earlier(
    figure: Callable[[str], None],
) -> None:
    fleet = [place(f"{number:032x}", "os", V) for number in range(100_000)]
    paused = THREE.pause(pause(2))
    resumed = paused.resume(at(9))
    offered = {where for where in fleet if THREE.is_open(where, at(2))}
    earlier = sum(
        resumed.is_open(where, at(hours)) and not THREE.is_open(where, at(hours))
        for where in fleet
        for hours in (9, 12, 24)
    )

    assert {where for where in fleet if resumed.is_open(where, at(9))} == offered
    assert all(resumed.is_open(where, at(9)) for where in offered)
    assert earlier == 0
    figure(f"rollout of 100,000 hosts, paused for 7 h: {earlier} offered it earlier than planned")


def test_percent_says_it_shortly() -> None:
    assert [percent(it) for it in (1, 100, 10_000, 125_000, RING)] == [
        "0.0001 %", "0.01 %", "1 %", "12.5 %", "100 %",
    ]  # fmt: skip


def test_waves_are_counted_from_later_by_all_pauses() -> None:
    once = THREE.pause(pause(2)).resume(at(5))
    again = once.pause(pause(6))

    assert THREE.zero(at(9)) == START
    assert once.zero(at(5.5)) == once.zero(at(9)) == at(3)
    assert again.zero(at(6)) == at(3)
    assert again.zero(at(8)) == at(5)
    assert again.resume(at(8)).zero(at(10)) == at(5)
