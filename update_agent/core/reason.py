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
    WITHDRAWN = "withdrawn"
    TOO_OLD = "too-old"
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    PAUSED_HERE = "paused-here"
    BY_HAND = "by-hand"
    INSTALLATION = "installation"
    SLOTS = "slots"
    """The writer does not tell from which slot the host runs."""
    PERSON = "person"
    WINDOW = "window"
    INHIBITED = "inhibited"
    LOCK = "lock"
    """All reboot slots are held."""
    LOCK_STALE = "lock-stale"
    """The same, and one of them did not come back for long."""
    LOCK_QUEUE = "lock-queue"
    """A reboot slot is free, and others came first."""
    LOCK_LABEL = "lock-label"
    LOCK_GAP = "lock-gap"
    FROZEN = "frozen"
    LOCK_LOST = "lock-lost"
    LOCK_CLONED = "lock-cloned"
    LOCK_MISSING = "lock-missing"
    LOCK_BROKEN = "lock-broken"
    LOCK_RESTORED = "lock-restored"
    LOCK_UNREACHABLE = "lock-unreachable"
    QUORUM = "quorum"
    BAD_RELEASE = "bad-release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A reason with its sentence; ``until`` is when it ends by itself, if that is known."""

    reason: Reason
    sentence: str
    ends: str
    """What would end it."""
    until: datetime | None = None
