"""The waves of a rollout as people write them: ``1%:1h``, ``10%:4h``, ``100%:1d@+12h``.

SHARE[:LENGTH][@+START]: up to this share of all hosts, evenly over the length (at once without
one), beginning when the wave before it ends, or START after the rollout began.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from update_agent.core import units
from update_agent.core.rollout import EVERYONE_NOW, MAX_SECONDS, MAX_WAVES, RING, Rollout, Wave
from update_agent.errors import HostError

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%(?::([0-9smhdw]+))?(?:@\+([0-9smhdw]+))?")
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class PlanError(HostError):
    """A text is no wave, or waves make no rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One wave as it was written."""

    share: int
    length: timedelta
    start: timedelta | None


def length(text: str) -> timedelta:
    """Return a length of time that a rollout can have. Raises PlanError, UnitError."""
    found = units.duration(text)
    if found.total_seconds() > MAX_SECONDS:
        raise PlanError(f"{text!a} is longer than {MAX_SECONDS // 86400} days")
    return found


def wish(text: str) -> Wish:
    """Read one wave. Raises PlanError, UnitError."""
    found = _SHARE.fullmatch(text)
    if not found:
        raise PlanError(f"{text!a} is no wave, wanted such as 10%:4h")
    share = round(float(found[1]) * RING / 100)
    if not 0 < share <= RING:
        raise PlanError(f"{found[1]} % is no share of hosts, wanted above 0, at most 100")
    return Wish(
        share=share,
        length=length(found[2]) if found[2] else timedelta(0),
        start=length(found[3]) if found[3] else None,
    )


def waves(wishes: Iterable[Wish]) -> tuple[Wave, ...]:
    """Return the waves of a rollout, each after the one before it; of none, everyone at once.

    Raises PlanError when no rollout can have them.
    """
    made: list[Wave] = []
    for it in wishes:
        after = made[-1].opens + made[-1].length if made else 0
        opens = after if it.start is None else int(it.start.total_seconds())
        made.append(Wave(share=it.share, opens=opens, length=int(it.length.total_seconds())))
    if len(made) > MAX_WAVES:
        raise PlanError(f"{len(made)} waves, wanted at most {MAX_WAVES}")
    found = tuple(made) or EVERYONE_NOW
    try:
        Rollout(started=_ANY_TIME, waves=found)
    except ValueError as error:
        raise PlanError(str(error), hint="name the waves in their order") from error
    if any(it.opens > MAX_SECONDS or it.length > MAX_SECONDS for it in found):
        raise PlanError(f"a wave is longer than {MAX_SECONDS // 86400} days")
    return found


def read(text: str) -> tuple[Wave, ...]:
    """Return the waves in ``text``, with spaces between. Raises PlanError, UnitError."""
    return waves(wish(word) for word in text.split())


def text(waves: Iterable[Wave]) -> str:
    """Return ``waves`` as ``read`` reads them."""
    words, after = [], 0
    for wave in waves:
        length = timedelta(seconds=wave.length)
        start = timedelta(seconds=wave.opens)
        words.append(
            f"{wave.share * 100 / RING:g}%"
            f"{f':{units.duration_text(length)}' if length else ''}"
            f"{f'@+{units.duration_text(start)}' if wave.opens != after else ''}"
        )
        after = wave.opens + wave.length
    return " ".join(words)
