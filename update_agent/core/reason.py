"""Why nothing happens: a code for machines, a sentence for people, and what would end it.

Codes are part of what other programs read (``--json``, D-Bus, reports) and are never renamed.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Reason(StrEnum):
    """What a host waits for, or why there is nothing for it."""

    UP_TO_DATE = "up-to-date"
    PAUSED = "paused"
    WAVE = "wave"
    NO_WAVE = "no-wave"
    QUARANTINED = "quarantined"
    FAILED_HERE = "failed-here"
    DOWNGRADE = "downgrade"
    FLOOR = "floor"
    WITHDRAWN = "withdrawn"
    TOO_OLD = "too-old"
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    PAUSED_HERE = "paused-here"
    BY_HAND = "by-hand"
    INSTALLATION = "installation"
    PERSON = "person"
    WINDOW = "window"
    INHIBITED = "inhibited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A reason with its sentence; ``until`` is when it ends by itself, if that is known."""

    reason: Reason
    sentence: str
    ends: str
    """What would end it."""
    until: datetime | None = None
