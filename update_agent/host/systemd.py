"""What a service and systemd say to each other: a socket passed on, readiness, life signs, logs.

sd_notify(3), sd_listen_fds(3), sd-daemon(3). Without systemd all of it is silence, so that programs
run from a shell as well.
"""

import logging
import os
import socket
from collections.abc import Mapping

from update_agent.errors import HostError

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class Notifier:
    """Tells systemd how a service is, if it was started by systemd."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        micros = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_seconds = int(micros) / 1e6 if micros.isdecimal() and ours else None
        """Within which a life sign is wanted, if any are."""

    def ready(self, status: str) -> None:
        """Tell that the service does its work now."""
        self._say(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Tell ``systemctl status`` in a sentence what is being done."""
        self._say(f"STATUS={status}")

    def alive(self) -> None:
        """Give a life sign."""
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(text.encode(), socket.MSG_DONTWAIT, address)
            except OSError:  # who does not listen need not know
                return


def passes_socket(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether systemd passed this process a listening socket."""
    return (
        environment.get("LISTEN_PID") == str(os.getpid()) and environment.get("LISTEN_FDS") == "1"
    )


def passed_socket(environment: Mapping[str, str] = os.environ) -> socket.socket:
    """Return the listening socket that systemd passed. Raises HostError."""
    if not passes_socket(environment):
        raise HostError(
            "systemd passed no socket",
            hint="start it with 'systemctl start update-agent-writer.socket', or name one with"
            " --listen",
        )
    os.set_inheritable(_FIRST_FD, False)  # noqa: FBT003  the library's
    return socket.socket(fileno=_FIRST_FD)


class PriorityFormatter(logging.Formatter):
    """Log lines as the journal wants them from a service: the priority in front of each."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
