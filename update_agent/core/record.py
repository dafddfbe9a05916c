"""What a host writes down about its updates: no restart, reboot or rollback forgets it.

One document, replaced whole. Another version of the daemon may have written it: fields that are not
known are left out, and of a document of a later format at least the attempt under way, what failed
here, the history and whether people paused this host are taken. So after a rollback the old daemon
does not try again what the new one knew to be bad, nor the new one itself.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from update_agent.core import document
from update_agent.core.document import DocumentError, Format, Id, Sha256, Size, Text, Time
from update_agent.core.lifecycle import Event, Goal, State
from update_agent.core.reason import Wait
from update_agent.core.version import Version

MAX_SIZE = 256 * 1024
_HISTORY = 50
_FAILED = 50


class Outcome(StrEnum):
    """How an attempt ended."""

    CONFIRMED = "confirmed"
    FELL_BACK = "fell-back"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    DROPPED = "dropped"


OUTCOMES = {
    Event.CONFIRMED: Outcome.CONFIRMED,
    Event.FELL_BACK: Outcome.FELL_BACK,
    Event.REFUSED: Outcome.REFUSED,
    Event.INTERRUPTED: Outcome.INTERRUPTED,
    Event.DROPPED: Outcome.DROPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to come from one release to another, from the offer to the confirmed boot."""

    id: Id
    running: Version
    """What the host ran when it began."""
    version: Version
    root_hash: Sha256
    began: Time
    armed_in: Annotated[str, Meta(max_length=64)] | None = None
    """The boot in which the other slot was to be armed."""
    armed: bool = False
    """It was."""
    fetched: Size = 0
    saved: Size = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An attempt that ended."""

    attempt: Attempt
    ended: Time
    outcome: Outcome
    why: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that outlives the daemon."""

    format: Format = 1
    state: State = State.IDLE
    since: Time
    wait: Wait | None = None
    """Why nothing happens now, if something else would."""
    wait_since: Time | None = None
    """When this reason began to be one."""
    attempt: Attempt | None = None
    failed: Annotated[tuple[Version, ...], Meta(max_length=_FAILED)] = ()
    """Releases that did not come up here."""
    history: Annotated[tuple[Past, ...], Meta(max_length=_HISTORY)] = ()
    """The newest last."""
    disarm: bool = False
    """The other slot is not to boot, and may be armed yet."""
    paused: Text | None = None
    """Why this host's people want no update now."""
    checked: Time | None = None
    """When the repository last answered well."""
    failures: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Checks and installations in a row that did not work out."""

    def moved(self, state: State, now: datetime, wait: Wait | None) -> "Record":
        """Return this in another state, which is as old as the state or the reason of before.

        While the repository is asked again, what was waited for is still the reason.
        """
        if state is State.CHECKING:
            wait = wait or self.wait
        since = self.since if state is self.state else now
        waits = self.wait_since if wait and self.wait and wait.reason is self.wait.reason else now
        return replace(
            self, state=state, since=since, wait=wait, wait_since=waits if wait else None
        )

    def began(self, attempt: Attempt) -> "Record":
        """Return this with an attempt under way."""
        return replace(self, attempt=attempt)

    @property
    def goal(self) -> Goal | None:
        """Where this host is on its way to. A trial proves that its slot was armed."""
        it = self.attempt
        if it is None:
            return None
        armed = it.armed or self.state is State.TRIAL
        return Goal(root_hash=it.root_hash, armed_in=it.armed_in, armed=armed)

    def arming(self, boot_id: str | None, *, armed: bool) -> "Record":
        """Return this with a slot that was ``armed`` in a boot, or may have been; None: in none."""
        if self.attempt is None:
            return self
        return self.began(replace(self.attempt, armed_in=boot_id, armed=armed))

    def disarmed(self, running: Version) -> "Record":
        """Return this with no slot armed: this host stays with what it runs, and avoids it not."""
        failed = tuple(it for it in self.failed if it != running)
        return replace(self.arming(None, armed=False), disarm=False, failed=failed)

    def ended(self, outcome: Outcome, now: datetime, why: str) -> "Record":
        """Return this with its attempt, if there is one, in the past."""
        if self.attempt is None:
            return self
        past = Past(attempt=self.attempt, ended=now, outcome=outcome, why=document.line(why))
        return replace(self, attempt=None, history=(*self.history, past)[-_HISTORY:])

    def avoiding(self, version: Version) -> "Record":
        """Return this with one more release that is not tried again."""
        others = tuple(it for it in self.failed if it != version)
        return replace(self, failed=(*others, version)[-_FAILED:])


def fresh(now: datetime) -> Record:
    """Return the record of a host that knows nothing yet."""
    return Record(since=now)


def decode(data: bytes, now: datetime) -> tuple[Record, str | None]:
    """Return the record in ``data``, and what is wrong with it if not all of it could be taken."""
    try:
        return document.decode(data, Record, "record", max_size=MAX_SIZE), None
    except DocumentError as error:
        return _salvaged(data, now), str(error)


def backoff(failures: int, interval: timedelta) -> timedelta:
    """Return how long to wait after so many failures in a row, at most ``interval``."""
    return min(interval, timedelta(minutes=2 ** min(failures, 16)))


def _salvaged(data: bytes, now: datetime) -> Record:
    """Return what is understood of a document that is not understood as a whole."""
    try:
        whole = document.parse(data, "record", max_size=MAX_SIZE)
    except DocumentError:
        return fresh(now)
    kept = fresh(now)
    if not isinstance(whole, dict):
        return kept
    for name in _SALVAGED:
        part = json.dumps({"since": now.isoformat(), name: whole.get(name)}).encode()
        with suppress(DocumentError):
            found = document.decode(part, Record, "record", max_size=MAX_SIZE)
            kept = replace(kept, **{name: getattr(found, name)})
    armed = kept.attempt is not None and kept.attempt.armed_in is not None
    return replace(kept, state=State.REBOOTING if armed else State.IDLE)


_SALVAGED = ("attempt", "failed", "history", "paused", "disarm")
