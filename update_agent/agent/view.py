"""What the daemon shows of itself on the bus: every property, its type, and its value now.

Nothing here waits for anything: values come from what the daemon has in memory. Times are
microseconds since 1970 in UTC, as systemd's own interfaces give them, and 0 where there is none;
texts that there are none of are empty.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from dbus_next.signature import Variant

from update_agent import __version__
from update_agent.agent.daemon import Daemon
from update_agent.agent.ports import Progress, SlotView
from update_agent.core.record import Past

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

SIGNATURES: Mapping[str, str] = {
    "AgentVersion": "s",
    "State": "s",
    "Since": "t",
    "Reason": "s",
    "ReasonText": "s",
    "ReasonEnds": "s",
    "ReasonSince": "t",
    "ReasonUntil": "t",
    "Product": "s",
    "RunningVersion": "s",
    "TargetVersion": "s",
    "Channel": "s",
    "Place": "u",
    "Strategy": "s",
    "AttemptId": "s",
    "Progress": "a{sv}",
    "LastCheck": "t",
    "NextCheck": "t",
    "Failures": "u",
    "Paused": "s",
    "FailedVersions": "as",
    "History": "aa{sv}",
    "Slots": "aa{sv}",
}
"""All properties of the interface and their D-Bus types; all of them are announced in changes."""


def properties(daemon: Daemon) -> dict[str, Variant]:
    """Return every property with its value."""
    values = _values(daemon)
    return {name: Variant(signature, values[name]) for name, signature in SIGNATURES.items()}


def _values(daemon: Daemon) -> dict[str, Any]:
    record, offer = daemon.record, daemon.offer
    wait, attempt = daemon.wait, record.attempt
    target = attempt.version if attempt else offer.version if offer else None
    return {
        "AgentVersion": __version__,
        "State": str(record.state),
        "Since": microseconds(record.since),
        "Reason": str(wait.reason) if wait else "",
        "ReasonText": wait.sentence if wait else "",
        "ReasonEnds": wait.ends if wait else "",
        "ReasonSince": microseconds(daemon.wait_since),
        "ReasonUntil": microseconds(wait.until if wait else None),
        "Product": daemon.host.product,
        "RunningVersion": str(daemon.host.version),
        "TargetVersion": str(target or ""),
        "Channel": daemon.settings.update.channel,
        "Place": offer.place + 1 if offer and offer.place is not None else 0,
        "Strategy": str(daemon.settings.reboot.strategy),
        "AttemptId": attempt.id if attempt else "",
        "Progress": _progress(daemon.progress) if daemon.progress else {},
        "LastCheck": microseconds(record.checked),
        "NextCheck": microseconds(daemon.next_check),
        "Failures": record.failures,
        "Paused": record.paused or "",
        "FailedVersions": [str(version) for version in record.failed],
        "History": [_past(past) for past in record.history],
        "Slots": [_slot(slot) for slot in daemon.slots or ()],
    }


def microseconds(time: datetime | None) -> int:
    """Return ``time`` as the bus carries it."""
    if time is None:
        return 0
    return max(0, (time - _BEGINNING) // timedelta(microseconds=1))


def _progress(progress: Progress) -> dict[str, Variant]:
    found = {
        "Step": Variant("s", progress.step),
        "Done": Variant("t", progress.done),
        "Size": Variant("t", progress.size),
        "Rate": Variant("d", progress.rate),
    }
    if progress.seconds_left is not None:
        found["SecondsLeft"] = Variant("d", progress.seconds_left)
    if progress.throttled_by:
        found["ThrottledBy"] = Variant("s", progress.throttled_by)
    return found


def _past(past: Past) -> dict[str, Variant]:
    return {
        "AttemptId": Variant("s", past.attempt.id),
        "From": Variant("s", str(past.attempt.running)),
        "To": Variant("s", str(past.attempt.version)),
        "Began": Variant("t", microseconds(past.attempt.began)),
        "Ended": Variant("t", microseconds(past.ended)),
        "Outcome": Variant("s", str(past.outcome)),
        "Why": Variant("s", past.why),
        "Fetched": Variant("t", past.attempt.fetched),
        "Saved": Variant("t", past.attempt.saved),
    }


def _slot(slot: SlotView) -> dict[str, Variant]:
    return {
        "Slot": Variant("s", slot.name),
        "State": Variant("s", slot.state),
        "Priority": Variant("u", slot.priority),
        "Tries": Variant("u", slot.tries),
        "Successful": Variant("b", slot.successful),
        "Booted": Variant("b", slot.booted),
        "Next": Variant("b", slot.next),
    }
