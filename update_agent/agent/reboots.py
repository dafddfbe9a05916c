"""When this host may reboot, and how: window, inhibitors, drain, a word to who is logged in.

The daemon has no rights of its own for what drains a host, such as stopping containers. The
programs in pre-reboot.d run as root, in a unit that systemd starts for each connection to a socket
which only the daemon can open (``update-agent-drain.socket``); it sends the time limit and reads
what became of it.
"""

import socket
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from update_agent.core import window
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt
from update_agent.core.settings import Settings
from update_agent.errors import HostError
from update_agent.host import drain, login, programs
from update_agent.host.login import Inhibitor


class LocalReboots:
    """Reboots that nobody but this host permits, ``ports.Reboots``. ``address`` is the bus's."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: str | None = None,
        drained: Callable[[float], None] | None = None,
    ) -> None:
        self._settings = settings.reboot
        self._address = address
        self._drained = drained or drain_if_wanted

    def ask(self, now: datetime, attempt: Attempt | None, *, hurry: bool) -> Wait | None:
        """Return why the host may not reboot now, or None. Raises HostError."""
        del attempt
        closed = None if hurry else _closed(self._settings.windows, now)
        return closed or _inhibited(login.blockers(self._address))

    def give_back(self) -> None:
        """Nobody was asked."""

    def reboot(self) -> None:
        """Drain the host and reboot it. Raises HostError when somebody or something forbids it."""
        if held := _inhibited(login.blockers(self._address)):
            raise HostError(held.sentence, hint=held.ends)
        self._drained(self._settings.drain.total_seconds())
        login.reboot("An update of the operating system reboots this host now.", self._address)


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


def _inhibited(found: Sequence[Inhibitor]) -> Wait | None:
    if not found:
        return None
    told = "; ".join(f"{it.who}: {it.why or 'no reason given'} (pid {it.pid})" for it in found)
    return Wait(
        reason=Reason.INHIBITED,
        sentence=f"a reboot is blocked by {told}",
        ends="whoever blocks it; see systemd-inhibit --list",
    )


def drain_if_wanted(
    limit: float, folder: Path = programs.PRE_REBOOT, address: Path = drain.SOCKET
) -> None:
    """Have the programs in ``folder`` run, if there are any. Raises HostError."""
    if not programs.listed(folder):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(limit + drain.GRACE)
            connection.connect(str(address))
            drain.ask(connection, limit)
    except TimeoutError as error:
        raise HostError(f"draining this host took longer than {limit:.0f} s") from error
    except OSError as error:
        raise HostError(
            f"cannot drain this host: {address}: {error.strerror}",
            hint="systemctl status update-agent-drain.socket",
        ) from error
