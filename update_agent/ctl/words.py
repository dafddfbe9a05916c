"""Ages, amounts and paragraphs, as people read them on 80 columns."""

import textwrap
from datetime import UTC, datetime

WIDTH = 80
_LABEL = 12

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def length(seconds: float) -> str:
    """Return a length of time in its two largest units, such as ``2 h 5 min``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for name, size in _UNITS:
        number, rest = divmod(left, size)
        if number or parts:
            parts.append(f"{number} {name}" if number else "")
            left = rest
        if len(parts) == 2:  # noqa: PLR2004  the two largest
            break
    return " ".join(part for part in parts if part) or "0 s"


def megabytes(size: float) -> str:
    """Return an amount of bytes."""
    return f"{size / 1e6:.1f} MB"


def clock(time: datetime, now: datetime) -> str:
    """Return a time of day in local time; with the date, unless that is today's."""
    local, today = time.astimezone(), now.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == today.date() else f"{local:%Y-%m-%d %H:%M}"


def when(time: datetime, now: datetime) -> str:
    """Return how long ago or ahead ``time`` is."""
    seconds = (time - now).total_seconds()
    return f"in {length(seconds)}" if seconds > 0 else f"{length(-seconds)} ago"


def time_of(microseconds: int) -> datetime | None:
    """Return the time that the daemon shows, or None where there is none."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC) if microseconds else None


def iso(time: datetime | None) -> str | None:
    """Return ``time`` for programs."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else None


def row(label: str, *paragraphs: str) -> list[str]:
    """Return lines of ``paragraphs`` beside their label, within the width of a terminal."""
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, WIDTH - _LABEL, break_on_hyphens=False) or [""]
    labels = [label, *[""] * (len(lines) - 1)]
    return [f"{it:<{_LABEL}}{line}".rstrip() for it, line in zip(labels, lines, strict=True)]
