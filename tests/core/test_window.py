"""Reboot windows, with times worked out by hand and days on which clocks change."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core.window import Window, WindowError, closes, opens

WORKDAYS = Window("Mon..Fri 02:00 +2h Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "until"),
    [
        pytest.param("2026-11-23 00:59", None, id="monday-before"),
        pytest.param("2026-11-23 01:00", "2026-11-23 03:00", id="monday-2-o-clock-winter"),
        pytest.param("2026-11-23 02:59", "2026-11-23 03:00", id="last-minute"),
        pytest.param("2026-11-23 03:00", None, id="over"),
        pytest.param("2026-11-22 01:30", None, id="sunday"),
        pytest.param("2026-07-06 00:00", "2026-07-06 02:00", id="summer-time"),
    ],
)
def test_a_window_is_open_from_its_local_time_for_its_length(now: str, until: str | None) -> None:
    assert closes([WORKDAYS], utc(now)) == (until and utc(until))


@pytest.mark.parametrize(
    ("text", "now", "next_"),
    [
        ("Mon..Fri 02:00 +2h Europe/Berlin", "2026-11-20 12:00", "2026-11-23 01:00"),
        ("Sat 23:30 +1h", "2026-11-23 00:00", "2026-11-28 23:30"),
        ("Sat 23:30 +1h", "2026-11-28 23:30", "2026-12-05 23:30"),
        ("04:00 +30m Asia/Kolkata", "2026-11-23 00:00", "2026-11-23 22:30"),
        ("Fri..Mon 00:00 +1h", "2026-11-24 00:00", "2026-11-27 00:00"),
        ("Tue,Thu 12:00 +1h America/New_York", "2026-11-24 17:00", "2026-11-26 17:00"),
    ],
)
def test_the_next_opening_is_told(text: str, now: str, next_: str) -> None:
    assert opens([Window(text)], utc(now)) == utc(next_)


def test_a_window_over_midnight_belongs_to_the_day_of_its_beginning() -> None:
    window = Window("Sun 23:00 +3h")

    assert closes([window], utc("2026-11-23 01:59")) == utc("2026-11-23 02:00")  # a Monday
    assert closes([window], utc("2026-11-22 01:00")) is None


def test_a_window_that_begins_in_the_hour_that_is_left_out_is_as_long_as_ever() -> None:
    window = Window("02:30 +1h Europe/Berlin")  # 2026-03-29: 02:00 becomes 03:00, UTC 01:00

    assert opens([window], utc("2026-03-29 00:00")) == utc("2026-03-29 01:30")
    assert closes([window], utc("2026-03-29 01:30")) == utc("2026-03-29 02:30")


def test_a_window_that_begins_in_the_hour_that_comes_twice_begins_the_first_time() -> None:
    window = Window("02:30 +1h Europe/Berlin")  # 2026-10-25: 03:00 becomes 02:00, UTC 01:00

    assert closes([window], utc("2026-10-25 00:30")) == utc("2026-10-25 01:30")
    assert closes([window], utc("2026-10-25 01:30")) is None


def test_of_several_open_windows_the_last_to_close_counts() -> None:
    windows = [Window("02:00 +1h"), Window("02:30 +4h")]

    assert closes(windows, utc("2026-11-23 02:45")) == utc("2026-11-23 06:30")


def test_without_windows_nothing_opens_and_nothing_closes() -> None:
    assert closes([], utc("2026-11-23 02:45")) is None
    assert opens([], utc("2026-11-23 02:45")) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "wanted such as"),
        ("whenever", "wanted such as"),
        ("02:00", "wanted such as"),
        ("25:00 +1h", "hour must be in"),
        ("02:60 +1h", "minute must be in"),
        ("02:00 +0h", "its length is above 0 and at most 7d"),
        ("02:00 +8d", "its length is above 0 and at most 7d"),
        ("Moon 02:00 +1h", "'Moon' is no weekday; they are Mon Tue"),
        ("Mon.. 02:00 +1h", "'Mon..' is no weekday"),
        ("02:00 +1h Mars/Olympus", "there is no time zone Mars/Olympus"),
        ("02:00 +1h ../etc/passwd", "wanted such as"),
        ("02:00 +1h /etc/passwd", "is no reboot window"),
    ],
)
def test_what_is_no_window_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(WindowError, match="is no reboot window") as refused:
        Window(text)

    assert why in str(refused.value)


windows = st.builds(
    lambda days, hour, minute, length, zone: Window(
        f"{','.join(days)} {hour:02}:{minute:02} +{length}m {zone}"
    ),
    st.lists(st.sampled_from(["Mon", "Wed", "Sat..Sun", "fri"]), min_size=1, max_size=3),
    st.integers(0, 23),
    st.integers(0, 59),
    st.integers(1, 7 * 24 * 60),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "UTC"]),
)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)).map(  # noqa: DTZ001  made UTC
    lambda it: it.replace(tzinfo=UTC, microsecond=0)
)


@given(windows, moments)
def test_what_opens_is_open_then_for_its_whole_length(window: Window, now: datetime) -> None:
    begin = opens([window], now)

    assert begin
    assert begin > now
    until = closes([window], begin)
    assert until
    assert until >= begin + window.length
    assert begin - now <= timedelta(days=7, hours=2)
