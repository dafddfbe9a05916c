"""How the daemon has root drain and reboot the host: the words over one connection.

The daemon sends a line with the time limit of the programs in pre-reboot.d, in seconds. The other
side runs them, and says so in a line of JSON: what it ran, or what failed. Then the daemon has the
last word, ``reboot`` and a line's end; whatever else it says, or when it is gone, nothing is
rebooted. The answer to that is a line as the first, and only one that names an error is a refusal:
a reboot that has begun may end whoever would answer. It takes nothing else from the daemon, so a
daemon gone bad can have this host rebooted, and no more.
"""

import json
import os
import re
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from update_agent.errors import HostError

SOCKET = Path("/run/update-agent/reboot.sock")
GRACE = 60.0
"""Seconds more than the limit until the answer must be there; and for the last word."""
MAX_LIMIT = 24 * 3600.0
GO = b"reboot\n"

_LINE = re.compile(rb"([0-9]{1,6}(?:\.[0-9]{1,3})?)\n")
_MAX = 16 * 1024
_LONGEST = 64
_LOOK = "journalctl -u 'update-agent-reboot@*'"


class _SilentError(HostError):
    """There was no answer, or none that is whole."""


def go() -> None:
    """Let it be rebooted; a last word of who has nothing to add."""


def by_root(limit: float, last_word: Callable[[], None] = go, address: Path = SOCKET) -> None:
    """Have the host drained within ``limit`` seconds and rebooted. Returns when it is on its way.

    ``last_word`` is called when it is drained, and raises what forbids the reboot then. Raises
    HostError with what forbids it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(limit + GRACE)
            connection.connect(str(address))
            ask(connection, limit, last_word)
    except TimeoutError as error:
        raise HostError(f"draining this host took longer than {limit:.0f} s", hint=_LOOK) from error
    except OSError as error:
        raise HostError(
            f"cannot have this host rebooted: {address}: {error.strerror}",
            hint="systemctl status update-agent-reboot.socket",
        ) from error


def ask(connection: socket.socket, limit: float, last_word: Callable[[], None] = go) -> list[str]:
    """Return the programs that were run. Raises HostError with what failed, OSError."""
    connection.sendall(f"{limit:.3f}\n".encode())
    ran = _answered(connection)
    last_word()
    connection.sendall(GO)
    with suppress(_SilentError, OSError):
        _answered(connection)
    return ran


def _answered(connection: socket.socket) -> list[str]:
    data = b""
    while len(data) <= _MAX and not data.endswith(b"\n") and (more := connection.recv(_MAX)):
        data += more
    try:
        answer = json.loads(data)
        error, ran = answer["error"], [str(it) for it in answer["ran"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise _SilentError("the reboot ended without an answer", hint=_LOOK) from problem
    if error is not None:
        raise HostError(str(error), hint=answer.get("hint"))
    return ran


def limit_of(seconds: float) -> float:
    """Return the nearest time limit that root takes: from a second to a day."""
    return min(max(1.0, seconds), MAX_LIMIT)


# The other side ----------------------------------------------------------------------------------


def read_limit(data: bytes) -> float:
    """Return the time limit that was asked for. Raises HostError."""
    found = _LINE.fullmatch(data)
    if not found or not 0 < float(found[1]) <= MAX_LIMIT:
        raise HostError(f"{data[:40]!r} is no time limit")
    return float(found[1])


def hear_go(file: int) -> None:
    """Wait for the daemon's last word on ``file``. Raises HostError when it is another one."""
    ready, _, _ = select.select([file], [], [], GRACE)
    if not ready or read_line(file) != GO:
        raise HostError("update-agentd does not want the reboot any more")


def read_line(file: int) -> bytes:
    """Return what comes on ``file`` up to a line's end, or all there is."""
    data = b""
    while len(data) < _LONGEST and not data.endswith(b"\n") and (more := os.read(file, 1)):
        data += more
    return data


def answer(ran: Sequence[Path], error: HostError | None) -> bytes:
    """Return what ``ask`` reads."""
    said = {
        "ran": [str(path) for path in ran],
        "error": str(error) if error else None,
        "hint": error.hint if error else None,
    }
    return json.dumps(said).encode() + b"\n"
