"""A token bucket: how long to wait so that bytes flow at no more than a rate."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """``rate`` tokens flow in each second; ``level`` of them were there at the time ``since``.

    The level may be negative: whoever took it there waits. Times are seconds of any steady clock.
    """

    rate: float
    burst: float
    level: float
    since: float

    def take(self, tokens: float, now: float) -> tuple["Bucket", float]:
        """Return the bucket without ``tokens``, and the seconds to wait before using them."""
        level = min(self.burst, self.level + (now - self.since) * self.rate) - tokens
        return replace(self, level=level, since=now), max(0.0, -level / self.rate)
