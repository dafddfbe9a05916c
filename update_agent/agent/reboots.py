"""When this host may reboot, and how: window, inhibitors, drain, a word to who is logged in.

The daemon has no rights of its own for what drains a host, such as stopping containers, nor for
rebooting it. Both are done as root, in a unit that systemd starts for each connection to a socket
which only the daemon can open (``update-agent-reboot.socket``); it sends the time limit, reads what
became of it, and has the last word before the reboot.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from update_agent.core import window
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt
from update_agent.core.settings import Settings
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host import login, reboot

CarryOut = Callable[[float, Callable[[], None]], None]
"""Drains the host within so many seconds, asks for the last word, and reboots it."""


def nothing() -> None:
    """Give nothing back."""


class LocalReboots:
    """Reboots that nobody but this host permits, ``ports.Reboots``. ``address`` is the bus's.

    Nobody is asked, so there is nothing to ``give_back`` but what other settings left.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        address: str | None = None,
        carry_out: CarryOut = reboot.by_root,
        give_back: Callable[[], None] = nothing,
    ) -> None:
        self._settings = settings.reboot
        self._address = address
        self._carry_out = carry_out
        self.give_back = give_back

    @property
    def drain(self) -> float:
        """Seconds that it may take, at most, to get ready for a reboot: as many as root takes."""
        seconds: float = self._settings.drain.total_seconds()
        return reboot.limit_of(seconds)

    def ask(
        self,
        now: datetime,
        attempt: Attempt | None,
        *,
        hurry: bool,
        without_lock: bool = False,
        keep: bool = False,
    ) -> Wait | None:
        """Return why the host may not reboot now, or None. Raises HostError."""
        del attempt, without_lock, keep
        closed = None if hurry else _closed(self._settings.windows, now)
        return closed or _inhibited(login.held(login.blockers(self._address)))

    def called(self, seconds: float) -> bool:
        """Nobody calls."""
        del seconds
        return False

    def known_bad(self, version: Version) -> Wait | None:
        """Nobody is asked."""
        del version
        return None

    def rolled_back(self, version: Version) -> None:
        """Nobody is told."""

    def reboot(
        self,
        attempt: Attempt | None = None,
        *,
        without_lock: bool = False,
        ready: Callable[[], None] = reboot.go,
    ) -> None:
        """Drain the host and reboot it. Raises HostError when somebody or something forbids it."""
        del attempt, without_lock
        if held := login.held(login.blockers(self._address)):
            raise HostError(held, hint=login.HINT)
        self._carry_out(self.drain, ready)


def _closed(windows: Sequence[window.Window], now: datetime) -> Wait | None:
    if not windows or window.closes(windows, now):
        return None
    opens = window.opens(windows, now)
    when = f"{opens:%a %Y-%m-%d %H:%M} UTC" if opens else "the next window"
    return Wait(
        reason=Reason.WINDOW,
        sentence=f"no reboot window is open; the next opens on {when}",
        ends="the window opens, or 'update-agentctl reboot'",
        until=opens,
    )


def _inhibited(held: str | None) -> Wait | None:
    return Wait(reason=Reason.INHIBITED, sentence=held, ends=login.HINT) if held else None
