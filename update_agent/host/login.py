"""logind, org.freedesktop.login1(5): who wants no reboot now, who is told, and the reboot itself.

Called from threads; each call is a connection of its own. Everybody may ask who blocks a shutdown.
Without polkit only root may reboot (over the bus, logind knows no capabilities of its callers), and
root is obeyed even against those who block it: it is the caller who respects them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from update_agent.host.bus import Connection, LostError

NAME = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
MANAGER = "org.freedesktop.login1.Manager"

HINT = "whoever blocks it; see systemd-inhibit --list"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inhibitor:
    """Somebody who wants no shutdown now."""

    who: str
    why: str
    uid: int
    pid: int


def blockers(address: str | None = None) -> list[Inhibitor]:
    """Return who blocks a shutdown. Raises HostError."""
    (rows,) = _ask(address, "ListInhibitors")
    return [
        Inhibitor(who=who, why=why, uid=uid, pid=pid)
        for what, who, why, mode, uid, pid in rows
        if mode == "block" and "shutdown" in what.split(":")
    ]


def held(found: Sequence[Inhibitor]) -> str | None:
    """Return a sentence about who blocks a shutdown; None when nobody does."""
    if not found:
        return None
    told = "; ".join(f"{it.who}: {it.why or 'no reason given'} (pid {it.pid})" for it in found)
    return f"a reboot is blocked by {told}"


def reboot(message: str, address: str | None = None) -> None:
    """Tell who is logged in ``message``, and reboot. Returns on the way. Raises HostError.

    A reboot that has begun may take logind and the bus along before they answer.
    """

    async def both(connection: Connection) -> None:
        await connection.call(NAME, PATH, MANAGER, "SetWallMessage", "sb", [message, True])
        with suppress(LostError):
            await connection.call(NAME, PATH, MANAGER, "Reboot", "b", [False])

    _connected(address, both)


def _ask(address: str | None, member: str) -> list[Any]:
    return _connected(address, lambda it: it.call(NAME, PATH, MANAGER, member))


def _connected(address: str | None, work: Callable[[Connection], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with Connection(address) as connection:
            return await work(connection)

    return asyncio.run(connected())
