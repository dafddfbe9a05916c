"""Reboot windows: the hours in which a host may reboot by itself.

``Mon..Fri 02:00 +2h Europe/Berlin``: days, local time of the beginning, length, time zone. Without
days it is every day, without a zone UTC. Several windows are one: a host may reboot while any of
them is open; without any, always.

A window is as long on the day on which clocks change as on any other. One that begins in the hour
that is left out begins when its clock time would have been by the old time (RFC 5545, 3.3.5); one
that begins in the hour that comes twice, the first time.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from update_agent.core import units
from update_agent.errors import HostError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MAX_LENGTH = timedelta(days=7)
_TEXT = re.compile(
    r"(?:(?P<days>[A-Za-z.,]+) +)?(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    r" +\+(?P<length>(?:[0-9]{1,6}[mhd])+)(?: +(?P<zone>[A-Za-z0-9_+/-]+))?"
)


class WindowError(HostError):
    """A text is no reboot window."""


class Window:
    """One window, immutable. ``Window(text)`` raises WindowError for a text that is none."""

    __slots__ = ("_days", "_start", "_zone", "length", "text")

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        found = _TEXT.fullmatch(self.text)
        if not found:
            raise _no_window(text, "wanted such as 'Mon..Fri 02:00 +2h Europe/Berlin'")
        self._days = _days(found["days"], text)
        try:
            self._start = time(int(found["hour"]), int(found["minute"]))
            self._zone: tzinfo = ZoneInfo(found["zone"]) if found["zone"] else UTC
        except ZoneInfoNotFoundError as error:
            raise _no_window(text, f"there is no time zone {found['zone']}") from error
        except ValueError as error:
            raise _no_window(text, str(error)) from error
        self.length = units.duration(found["length"])
        if not timedelta(0) < self.length <= MAX_LENGTH:
            raise _no_window(text, "its length is above 0 and at most 7d")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Window) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Window({self.text!r})"

    def beginnings(self, around: datetime) -> Iterator[datetime]:
        """Yield in UTC when the window begins, from a week before ``around`` to a week after."""
        today = around.astimezone(self._zone).date()
        for day in range(-8, 9):
            local = today + timedelta(days=day)
            if local.weekday() in self._days:
                yield self._beginning(local)

    def _beginning(self, day: date) -> datetime:
        return datetime.combine(day, self._start, self._zone).astimezone(UTC)


def closes(windows: Sequence[Window], now: datetime) -> datetime | None:
    """Return when the window closes that is open ``now``, the last of them; None if none is."""
    ends = (
        begin + window.length
        for window in windows
        for begin in window.beginnings(now)
        if begin <= now < begin + window.length
    )
    return max(ends, default=None)


def opens(windows: Iterable[Window], now: datetime) -> datetime | None:
    """Return when the next window opens after ``now``; None without any window."""
    return min(
        (begin for window in windows for begin in window.beginnings(now) if begin > now),
        default=None,
    )


def _days(text: str | None, whole: str) -> frozenset[int]:
    """Return the weekdays that ``Mon..Wed,Fri`` names; a range may go over the week's end."""
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            begin = DAYS.index(first.capitalize())
            end = DAYS.index(last.capitalize()) if dots else begin
        except ValueError as error:
            raise _no_window(whole, f"{part!r} is no weekday; they are {' '.join(DAYS)}") from error
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return frozenset(found)


def _no_window(text: str, why: str) -> WindowError:
    return WindowError(f"{text!r} is no reboot window: {why}")
