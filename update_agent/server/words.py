"""How times, sizes and reasons are said to people, on pages; for programs there is the API.

What one host says of itself is its own sentence. What many hosts do has a sentence here, by state
and reason; for what this server does not know yet, one host's sentence stands for all.
"""

from datetime import UTC, datetime, timedelta

from update_agent.core import units
from update_agent.core.reason import Reason
from update_agent.core.rollout import RING
from update_agent.server.figures import Waiting

NONE = "\N{EN DASH}"
"""Stands where there is nothing."""

_DAY = 86400

_WAITS = {
    Reason.UP_TO_DATE: "have what their channel offers",
    Reason.PAUSED: "wait until the rollout is resumed",
    Reason.WAVE: "wait for a wave",
    Reason.NO_WAVE: "stand outside all waves",
    Reason.QUARANTINED: "leave it alone, as it is quarantined",
    Reason.FAILED_HERE: "do not try again what failed on them",
    Reason.DOWNGRADE: "refuse to go back to an older release",
    Reason.WITHDRAWN: "were offered a release that was withdrawn",
    Reason.TOO_OLD: "are too old for it",
    Reason.UNREACHABLE: "cannot reach the repository",
    Reason.UNTRUSTED: "do not trust what the repository says",
    Reason.EXPIRED: "were told nothing fresh by the repository",
    Reason.PAUSED_HERE: "were paused by their own people",
    Reason.BY_HAND: "install only what somebody asks for",
    Reason.INSTALLATION: "go on with an installation that stopped",
    Reason.SLOTS: "do not know from which slot they run",
    Reason.PERSON: "wait for somebody who reboots them",
    Reason.WINDOW: "wait for their reboot window",
    Reason.INHIBITED: "are kept from rebooting by what runs on them",
    Reason.LOCK: "wait for a reboot slot",
    Reason.LOCK_STALE: "wait for a reboot slot, and who holds it does not come back",
    Reason.LOCK_QUEUE: "wait for their turn at a reboot slot",
    Reason.LOCK_LABEL: "wait for a host beside them that reboots",
    Reason.LOCK_GAP: "wait a while after the reboot before theirs",
    Reason.FROZEN: "wait in a group whose reboots are frozen",
    Reason.LOCK_LOST: "lost their reboot slot",
    Reason.LOCK_CLONED: "share their machine id with others",
    Reason.LOCK_MISSING: "wait in a group that has no reboot slots yet",
    Reason.LOCK_BROKEN: "cannot understand the reboot slots of their group",
    Reason.LOCK_RESTORED: "wait for somebody to look at an etcd that was restored",
    Reason.LOCK_UNREACHABLE: "cannot reach etcd",
    Reason.QUORUM: "would cost etcd its quorum",
    Reason.BAD_RELEASE: "leave it alone, as it rolled back on others of their cluster",
}
"""What hosts do that have this reason to wait."""

_DOES = {
    "idle": "have nothing to do",
    "checking": "ask for updates",
    "installing": "install it",
    "staged": "have installed it",
    "waiting-to-reboot": "wait to reboot",
    "rebooting": "reboot into it",
    "trial": "run it on trial",
    "failed": "failed",
}
"""What hosts do that have no reason to wait."""


def when(seconds: int | datetime | None) -> str:
    """Return a time for people."""
    if seconds is None:
        return NONE
    return f"{_time(seconds):%Y-%m-%d %H:%M}"


def soon(seconds: int, now: int) -> str:
    """Return a time for people who know what day it is, if it is within one."""
    return f"{_time(seconds):%H:%M}" if abs(seconds - now) < _DAY else when(seconds)


def _time(seconds: int | datetime) -> datetime:
    return seconds if isinstance(seconds, datetime) else datetime.fromtimestamp(seconds, UTC)


def size(count: int | None) -> str:
    """Return an amount of bytes for people."""
    if count is None:
        return NONE
    return f"{count / 1e6:,.1f} MB"


def share(places: int) -> str:
    """Return a share of the ring for people, to a tenth of a percent."""
    return f"{round(places * 100 / RING, 1):g} %"


def length(seconds: float) -> str:
    """Return a length of time for people, in its two largest units."""
    text = units.duration_text(timedelta(seconds=max(0, int(seconds))))
    parts = text.replace("d", "d ").replace("h", "h ").replace("m", "m ").split()
    return " ".join(parts[:2])


def number(count: int) -> str:
    """Return a count for people."""
    return f"{count:,}"


def part(count: int, whole: int) -> str:
    """Return how much ``count`` is of ``whole`` for people, to a tenth of a percent."""
    return f"{100 * count / whole if whole else 0:.1f} %"


def does(it: Waiting, now: int) -> str:
    """Return what hosts do, or why not: the rest of a sentence that begins with their number."""
    if it.wave is not None:
        if it.until is None or it.until <= now:
            return f"wait for wave {it.wave}, which is under way"
        return f"wait for wave {it.wave}, the first of them at {soon(it.until, now)}"
    if it.reason is None:
        return _DOES.get(it.state, it.state)
    text = _WAITS.get(Reason(it.reason)) if it.reason in set(Reason) else None
    if text is None:
        return f"{it.state}: {it.sentence or it.reason}"
    return f"{text}, the first of them until {soon(it.until, now)}" if it.until else text
