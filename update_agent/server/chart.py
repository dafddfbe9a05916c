"""Curves: a rollout against its plan, which versions hosts ran; and bars.

Pure: from numbers to text. A picture is stretched to whatever room there is, so its words stand
beside it; what it looks like is in ``style.css``, and nothing here has a colour. Times are seconds
since 1970, shares from 0 to 1.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from update_agent.core.rollout import RING, Rollout

_WIDTH, _HEIGHT = 1000, 200
_TICKS = 4
_POINTS = 240

Point = tuple[float, float]


def planned(rollout: Rollout, now: float) -> list[Point]:
    """Return the plan of a rollout: (time, share offered), later by all its pauses."""
    start = rollout.zero(datetime.fromtimestamp(now, UTC)).timestamp()
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
    inner = [f'<path class="now" d="M{frame.x(now)},0V{_HEIGHT}"/>']
    if ran:
        ground = [(ran[-1][0], 0.0), (ran[0][0], 0.0)]
        inner += [
            f'<polygon class="ground" points="{frame.line([*ran, *ground])}"/>',
            f'<polyline class="ran" points="{frame.line(ran)}"/>',
        ]
    inner.append(f'<polyline class="plan" points="{frame.line(shown)}"/>')
    return frame.drawn(inner, label)


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
        areas.append(f'<polygon class="version-{number}" points="{frame.line(corners)}"/>')
        below = above
    return frame.drawn(areas, "versions over time: " + ", ".join(names))


def bar(parts: Iterable[tuple[str, float]], label: str, *, offered: float) -> str:
    """Return a bar with ``parts`` (what they are, their share), and a mark at what is offered."""
    drawn, left = [], 0.0
    for name, share in parts:
        width = min(share, 1 - left) * _WIDTH
        drawn.append(
            f'<rect class="{name}" x="{left * _WIDTH:.1f}" width="{width:.1f}" height="10"/>'
        )
        left = min(1.0, left + share)
    mark = min(offered, 1) * _WIDTH
    return (
        f'<svg class="bar" viewBox="0 0 {_WIDTH} 10" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(label)}">{"".join(drawn)}<path class="plan" d="M{mark:.1f},0V10"/>'
        "</svg>"
    )


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
        return round(part * _WIDTH, 1)

    def y(self, share: float) -> float:
        return round((1 - min(max(share, 0), 1)) * _HEIGHT, 1)

    def line(self, points: Iterable[Point]) -> str:
        return " ".join(f"{self.x(time)},{self.y(share)}" for time, share in points)

    def drawn(self, inner: Iterable[str], label: str) -> str:
        """Return the whole picture, which is called ``label`` for who can't see it."""
        shares = (1, 0.75, 0.5, 0.25, 0)
        grid = "".join(f"M0,{self.y(share)}H{_WIDTH}" for share in shares)
        long = self._end - self._begin
        times = [self._begin + long * number / (_TICKS - 1) for number in range(_TICKS)]
        beside = "".join(f"<span>{share:.0%}</span>" for share in shares)
        below = "".join(f"<span>{self._said(time)}</span>" for time in times)
        return (
            f'<div class="chart" role="img" aria-label="{escape(label)}">'
            f'<div class="shares">{beside}</div>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none">'
            f'<path class="grid" d="{grid}"/>{"".join(inner)}</svg>'
            f'<div class="times">{below}</div></div>'
        )

    def _said(self, time: float) -> str:
        long = self._end - self._begin > 2 * 86400
        return f"{datetime.fromtimestamp(time, UTC):{'%d %b' if long else '%a %H:%M'}}"
