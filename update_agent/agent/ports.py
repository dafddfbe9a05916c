"""What the daemon needs from the world, and no more; ``main.py`` gives it real ones.

Everything here may take long and is called in a thread of its own. Failures are UpdateAgentErrors.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from update_agent.core.lifecycle import Boot
from update_agent.core.reason import Wait
from update_agent.core.record import Attempt, Record
from update_agent.core.release import Host
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host.offer import Offer


class NotPermittedError(HostError):
    """The host may not reboot, for a reason that ``wait`` has."""

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait.sentence, hint=wait.ends)
        self.wait = wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an installation is. Sizes in bytes, rates in bytes a second."""

    step: str
    done: int
    size: int
    rate: float = 0.0
    throttled_by: str | None = None
    """Which limit keeps it from being faster: ``the host's work``, or the name of a setting."""

    @property
    def seconds_left(self) -> float | None:
        """How long it will take, if that can be said."""
        return (self.size - self.done) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation took. Bytes."""

    fetched: int
    saved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """A slot as it is shown."""

    name: str
    state: str
    """In the words of ``core/slot.py``."""
    priority: int
    tries: int
    successful: bool
    booted: bool
    """The host runs from it."""
    next: bool
    """It boots next."""


class Releases(Protocol):
    """The repository."""

    def ask(self, host: Host) -> Offer:
        """Return what there is for ``host``, verified."""
        ...


class Slots(Protocol):
    """The writer."""

    def boot(self) -> Boot:
        """Return from which slot the host runs."""
        ...

    def install(
        self,
        offer: Offer,
        attempt: Attempt,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> Installed:
        """Put the offered release into the other slot, verified; return early when cancelled."""
        ...

    def arm(self) -> None:
        """Let the other slot boot next, on trial."""
        ...

    def disarm(self) -> None:
        """Let the booted slot boot next."""
        ...

    def rollback(self) -> None:
        """Let the other slot boot next, which must have been confirmed once."""
        ...

    def look(self) -> Sequence[SlotView]:
        """Return both slots as they stand."""
        ...


class Reboots(Protocol):
    """Who permits reboots, and who carries them out."""

    def ask(
        self,
        now: datetime,
        attempt: Attempt | None,
        *,
        hurry: bool,
        without_lock: bool,
        keep: bool = False,
    ) -> Wait | None:
        """Return why the host may not reboot now, or None. Asking again changes nothing.

        With ``hurry`` no window is waited for: a person forced the update. ``without_lock`` asks
        nobody but this host. Whoever may not reboot holds nothing then, unless he is to ``keep`` a
        permission that he needs for something else.
        """
        ...

    def called(self, seconds: float) -> bool:
        """Wait until it is worth asking again; False: nothing was heard for ``seconds``."""
        ...

    def known_bad(self, version: Version) -> Wait | None:
        """Return why no host should take ``version``, if it rolled back on others."""
        ...

    def rolled_back(self, version: Version) -> None:
        """Let others know that ``version`` rolled back here; nothing forgets it on return."""
        ...

    def give_back(self) -> None:
        """Hold no permission any more; without one, nothing. Nothing forgets it on return."""
        ...

    def reboot(
        self, attempt: Attempt | None, *, without_lock: bool, ready: Callable[[], None]
    ) -> None:
        """Reboot the host. Returns when it is on its way; raises when it is refused.

        The permission is looked at once more right before that, but not ``without_lock``. What is
        ``ready`` is done last of all: nothing forbids the reboot any more, unless it raises.
        """
        ...


class Store(Protocol):
    """Where the record is kept."""

    def load(self, now: datetime) -> Record:
        """Return what was kept."""
        ...

    def save(self, record: Record) -> None:
        """Keep ``record``; durable on return."""
        ...
