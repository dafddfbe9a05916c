"""Curves as SVG: a rollout against its plan, and which versions hosts ran.

Pure: from numbers to text. What a curve looks like is in ``style.css``; nothing here has a colour.
Times are seconds since 1970, shares from 0 to 1.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from update_agent.core.rollout import RING, Rollout

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 26
_TICKS = 5
_POINTS = 240

Point = tuple[float, float]


def planned(rollout: Rollout, paused_for: float) -> list[Point]:
    """Return the plan of a rollout: (time, share offered), later by all its pauses."""
    start = rollout.started.timestamp() + rollout.held + paused_for
    points: list[Point] = [(start, 0.0)]
    share = 0.0
    for wave in rollout.waves:
        points.append((start + wave.opens, share))
        share = wave.share / RING
        points.append((start + wave.opens + wave.length, share))
    if rollout.deadline and share < 1:
        points += [(rollout.deadline.timestamp(), share), (rollout.deadline.timestamp(), 1.0)]
    return points


def rollout(plan: Sequence[Point], ran: Sequence[Point], now: float) -> str:
    """Return the curve of a rollout: who was to be offered it, who runs it, and where now is."""
    begin = plan[0][0]
    end = max(plan[-1][0], now, begin + 600)
    frame = _Frame(begin, end)
    shown = [*plan, (end, plan[-1][1])]
    label = f"{ran[-1][1]:.0%} of the hosts run it" if ran else "no host runs it yet"
    return frame.drawn(
        [
            f'<polyline class="plan" points="{frame.line(shown)}"/>',
            f'<polyline class="ran" points="{frame.line(ran)}"/>' if ran else "",
            f'<path class="now" d="M{frame.x(now)},{_TOP}V{_HEIGHT - _BOTTOM}"/>',
        ],
        label,
    )


def versions(samples: Iterable[tuple[int, str, int]], names: Sequence[str]) -> str:
    """Return how many hosts ran what, stacked: ``names`` from the bottom up, the rest on top."""
    by_time: dict[int, dict[str, int]] = {}
    for time, version, hosts in samples:
        by_time.setdefault(time, {})[version] = hosts
    times = _thinned(sorted(by_time))
    if len(times) < 2:  # noqa: PLR2004  a line has two ends
        return ""
    frame = _Frame(times[0], times[-1])
    totals = {time: sum(by_time[time].values()) or 1 for time in times}
    below = dict.fromkeys(times, 0.0)
    areas = []
    for number, name in enumerate(names):
        above = {it: below[it] + by_time[it].get(name, 0) / totals[it] for it in times}
        corners = [*((it, above[it]) for it in times), *((it, below[it]) for it in times[::-1])]
        areas.append(
            f'<polygon class="version-{number}" points="{frame.line(corners)}">'
            f"<title>{escape(name)}</title></polygon>"
        )
        below = above
    return frame.drawn(areas, "versions over time: " + ", ".join(names))


def _thinned(times: list[int]) -> list[int]:
    """Return as many of ``times`` as can be told apart, the last among them."""
    step = len(times) // _POINTS + 1
    return times[::-step][::-1]


class _Frame:
    """A box with axes: time to the right, shares upwards."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, max(end, begin + 1)

    def x(self, time: float) -> float:
        part = (min(max(time, self._begin), self._end) - self._begin) / (self._end - self._begin)
        return round(_LEFT + part * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, share: float) -> float:
        return round(_TOP + (1 - min(max(share, 0), 1)) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def line(self, points: Iterable[Point]) -> str:
        return " ".join(f"{self.x(time)},{self.y(share)}" for time, share in points)

    def drawn(self, inner: Iterable[str], label: str) -> str:
        """Return the whole picture, which is called ``label`` for who can't see it."""
        right, low = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        box = f"0 0 {_WIDTH} {_HEIGHT}"
        parts = [f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}">']
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = self.y(share)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>'
            )
        for number in range(_TICKS):
            time = self._begin + (self._end - self._begin) * number / (_TICKS - 1)
            anchor = ("start", *("middle",) * (_TICKS - 2), "end")[number]
            parts.append(
                f'<text x="{self.x(time)}" y="{low + 18}" text-anchor="{anchor}">'
                f"{self._said(time)}</text>"
            )
        return "".join([*parts, *inner, "</svg>"])

    def _said(self, time: float) -> str:
        long = self._end - self._begin > 2 * 86400
        return f"{datetime.fromtimestamp(time, UTC):{'%d %b' if long else '%a %H:%M'}}"
