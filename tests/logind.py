"""A logind of our own on a private bus: who inhibits, who is told, and the reboot that is asked."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from dbus_next.constants import MessageType
from dbus_next.errors import DBusError
from dbus_next.message import Message

from update_agent.host import login
from update_agent.host.bus import Connection

BACKUP = ("shutdown:sleep", "backup", "nightly dump", "block", 0, 4711)
LATER = ("shutdown", "editor", "unsaved work", "delay", 1000, 4712)
LID = ("handle-lid-switch", "desktop", "its own handling", "block", 1000, 4713)


@dataclass
class Logind:
    """What it is told, and what it answers."""

    inhibitors: list[tuple[str, str, str, str, int, int]] = field(default_factory=list)
    may_reboot: bool = True
    said: list[object] = field(default_factory=list)
    rebooting: Callable[[], None] = lambda: None
    """What the shutdown does before the answer is there."""

    def answer(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL or message.path != login.PATH:
            return False
        match message.member:
            case "ListInhibitors":
                rows = [list(it) for it in self.inhibitors]
                return Message.new_method_return(message, "a(ssssuu)", [rows])
            case "Reboot" if not self.may_reboot:
                raise DBusError("org.freedesktop.DBus.Error.AccessDenied", "Permission denied")
            case "SetWallMessage" | "Reboot":
                if message.member == "Reboot":
                    self.rebooting()
                self.said.append((message.member, *message.body))
                return Message.new_method_return(message)
            case _:
                return False


@contextmanager
def on_bus(address: str) -> Iterator[Logind]:
    """Play logind on the bus at ``address``."""
    played = Logind()
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def play() -> None:
        ended = asyncio.Event()
        async with Connection(address) as connection:
            connection.listen(played.answer)
            await connection.ask_bus("RequestName", "su", login.NAME, 0)
            ready.set_result((asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(play()), name="logind")
    thread.start()
    loop, ended = ready.result(20)
    try:
        yield played
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
