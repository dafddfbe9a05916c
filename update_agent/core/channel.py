"""Channels: the signed document that says which release its hosts get, who of them, and when.

Every edit returns the next document, with who did it and why; an edit that changes nothing returns
the same one. Signing and storing are left to others, so the command line and the update server edit
alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Self

from msgspec import Meta

from update_agent.core import document
from update_agent.core.document import Format, Name, Text, Time
from update_agent.core.rollout import EVERYONE_NOW, Pause, Rollout, Wave
from update_agent.core.version import Version
from update_agent.errors import HostError

MAX_SIZE = 64 * 1024
"""Bytes."""

BY_WAVES = "update-server: waves"
"""Author of a pause that ends by itself, once enough hosts run the release; people's do not."""

RESUMED = "resumed"
"""What the change of ``go_on`` is called; failures of a rollout are counted from the newest on."""

_REMEMBERED = 20
"""Changes that a document tells of."""

_Versions = Annotated[tuple[Version, ...], Meta(max_length=100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Who changed a channel, when, what and why."""

    time: Time
    author: Text
    what: Text
    reason: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What ``channels/NAME.json`` says."""

    format: Format = 1
    channel: Name
    product: Name
    version: Version | None = None
    """What is offered; nothing before the first promotion."""
    rollout: Rollout | None = None
    floors: _Versions = ()
    """Versions that no host passes by on its way up."""
    quarantined: _Versions = ()
    """Versions that no host installs, forced or not."""
    downgrade_from: _Versions = ()
    """Versions whose hosts go down to ``version``."""
    changes: Annotated[tuple[Change, ...], Meta(min_length=1, max_length=_REMEMBERED)]
    """The newest last."""

    def __post_init__(self) -> None:
        if (self.version is None) != (self.rollout is None):
            raise ValueError("a version is offered by a rollout, and a rollout offers a version")

    @classmethod
    def created(cls, name: str, product: str, change: Change) -> Self:
        """Return a channel that offers nothing yet."""
        return cls(channel=name, product=product, changes=(change,))

    @property
    def paused(self) -> Pause | None:
        """The pause of its rollout."""
        return self.rollout.paused if self.rollout else None

    def promote(
        self,
        version: Version,
        change: Change,
        *,
        waves: tuple[Wave, ...] = EVERYONE_NOW,
        deadline: datetime | None = None,
        downgrade_from: Iterable[Version] = (),
    ) -> "Channel":
        """Offer ``version``, from the time of ``change`` on; the clock of its rollout starts anew.

        Raises HostError for a version that is quarantined, and for one below that which is offered
        unless hosts of that one are told to go down.
        """
        down = tuple(sorted(set(downgrade_from)))
        if version in self.quarantined:
            raise HostError(
                f"{version} is quarantined in channel {self.channel}",
                hint="promote another version, or release this one from quarantine",
            )
        if self.version and version < self.version and self.version not in down:
            raise HostError(
                f"channel {self.channel} offers {self.version}, which is newer than {version}",
                hint=f"add --downgrade-from {self.version} if its hosts are to go down",
            )
        rollout = Rollout(started=change.time, waves=waves, deadline=deadline)
        if version == self.version and self.rollout and self._plans_the_same(rollout, down):
            return self
        return self._changed(change, version=version, rollout=rollout, downgrade_from=down)

    def reschedule(
        self, change: Change, *, waves: tuple[Wave, ...], deadline: datetime | None
    ) -> "Channel":
        """Give the rollout other waves; what has run of its clock stays."""
        rollout = replace(self._running(), waves=waves, deadline=deadline)
        return self if rollout == self.rollout else self._changed(change, rollout=rollout)

    def pause(self, change: Change) -> "Channel":
        """Offer the release to no further host; a pause stays, but for one that ends by itself."""
        rollout = self._running()
        before = rollout.paused
        if before and (before.author != BY_WAVES or change.author == BY_WAVES):
            return self
        return self._changed(change, rollout=_paused(rollout, change))

    def resume(self, change: Change) -> "Channel":
        """Go on where the pause began."""
        rollout = self._running()
        if not rollout.paused:
            return self
        return self._changed(change, rollout=rollout.resume(change.time))

    def halt(self, change: Change) -> "Channel":
        """Offer the release to no further host, and let nobody boot it who has not yet.

        In a pause, that one goes on as the halt's: whoever looks is to see what is worse.
        """
        rollout, version = self._running(), self.version
        if rollout.paused and version in self.quarantined:
            return self
        versions = tuple(sorted({*self.quarantined, *([version] if version else [])}))
        return self._changed(change, rollout=_paused(rollout, change), quarantined=versions)

    def go_on(self, change: Change) -> "Channel":
        """Undo ``halt``, or ``pause``."""
        rollout = self._running()
        versions = tuple(it for it in self.quarantined if it != self.version)
        if not rollout.paused and versions == self.quarantined:
            return self
        return self._changed(change, rollout=rollout.resume(change.time), quarantined=versions)

    def quarantine(self, version: Version, change: Change) -> "Channel":
        """Let no further host install ``version``."""
        versions = tuple(sorted({*self.quarantined, version}))
        return self if versions == self.quarantined else self._changed(change, quarantined=versions)

    def release_from_quarantine(self, version: Version, change: Change) -> "Channel":
        """Undo ``quarantine``."""
        versions = tuple(it for it in self.quarantined if it != version)
        return self if versions == self.quarantined else self._changed(change, quarantined=versions)

    def set_floors(self, floors: Iterable[Version], change: Change) -> "Channel":
        """Say which versions no host passes by on its way up."""
        versions = tuple(sorted(set(floors)))
        return self if versions == self.floors else self._changed(change, floors=versions)

    def next_stop(self, version: Version) -> Version | None:
        """Return what a host with ``version`` installs next: the lowest floor above, or the end."""
        if self.version is None:
            return None
        above = (floor for floor in self.floors if version < floor < self.version)
        return min(above, default=self.version)

    def _running(self) -> Rollout:
        if self.rollout is None:
            raise HostError(
                f"channel {self.channel} offers nothing yet", hint="promote a version first"
            )
        return self.rollout

    def _plans_the_same(self, rollout: Rollout, downgrade_from: tuple[Version, ...]) -> bool:
        mine = self._running()
        return (mine.waves, mine.deadline, self.downgrade_from) == (
            rollout.waves, rollout.deadline, downgrade_from,
        )  # fmt: skip

    def _changed(self, change: Change, **fields: object) -> "Channel":
        changes = (*self.changes, change)[-_REMEMBERED:]
        return replace(self, changes=changes, **fields)  # type: ignore[arg-type]  # checked below


def _paused(rollout: Rollout, change: Change) -> Rollout:
    """Return the rollout, paused by ``change``; its clock stopped when the first pause began."""
    since = rollout.paused.since if rollout.paused else change.time
    return replace(rollout, paused=Pause(since=since, reason=change.reason, author=change.author))


def path(name: str) -> str:
    """Return the path of a channel's document in the repository."""
    return f"channels/{name}.json"


def decode(data: bytes, name: str) -> Channel:
    """Return the channel ``name`` that ``data`` describes. Raises DocumentError."""
    what = f"channel {name}"
    found = document.decode(data, Channel, what, max_size=MAX_SIZE)
    if found.channel != name:
        raise document.DocumentError(f"{what}: the document is that of channel {found.channel}")
    return found
