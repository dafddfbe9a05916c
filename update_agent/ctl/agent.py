"""The daemon, as the command line meets it on the bus: what it shows, what it is asked, its end.

Only the daemon's own signals count; on the system bus anybody can send one that looks like them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from dbus_next.constants import MessageType
from dbus_next.message import Message

from update_agent.errors import HostError
from update_agent.host import bus
from update_agent.host.bus import Connection, NotThereError

_PATIENCE = 25 * 3600.0
"""Seconds for a method: draining a host may take a day. A daemon that ends meanwhile is noticed."""

HINT = "systemctl status update-agentd"

T = TypeVar("T")

Properties = dict[str, Any]


class NotRunningError(HostError):
    """The daemon does not run, or ended."""


class Agent:
    """A connection to the daemon, for ``async with``. Raises NotRunningError, BusError."""

    def __init__(self) -> None:
        self._bus = Connection()
        self._owner = ""
        self._news: asyncio.Queue[Properties | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        try:
            await self._follow()
        except BaseException:
            await self._bus.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self._bus.__aexit__(kind, value, trace)

    async def properties(self) -> Properties:
        """Return all that the daemon shows. Raises NotRunningError, BusError."""
        try:
            return await self._bus.properties(bus.NAME, bus.PATH, bus.INTERFACE)
        except NotThereError as error:
            raise _not_running() from error

    async def call(self, method: str, *texts: str) -> None:
        """Ask for something. Raises NotNowError, DeniedError, NotRunningError, BusError."""
        try:
            await self._bus.call(
                bus.NAME, bus.PATH, bus.INTERFACE, method, "s" * len(texts), texts,
                patience=_PATIENCE,
            )  # fmt: skip
        except NotThereError as error:
            raise _not_running() from error

    async def changes(self) -> AsyncIterator[Properties]:
        """Yield all properties now and after each change. Raises NotRunningError at its end."""
        found = await self.properties()
        yield found
        while True:
            news = await self._next()
            if news is None:
                raise NotRunningError("update-agentd ended", hint=HINT)
            found |= news
            yield found

    async def _next(self) -> Properties | None:
        news = asyncio.ensure_future(self._news.get())
        lost = asyncio.ensure_future(self._bus.lost())
        try:
            await asyncio.wait({news, lost}, return_when=asyncio.FIRST_COMPLETED)
            return news.result() if news.done() else None
        finally:
            news.cancel()
            lost.cancel()

    async def _follow(self) -> None:
        self._bus.listen(self._hear)
        for rule in (
            f"type='signal',sender='{bus.NAME}',path='{bus.PATH}',interface='{bus.PROPERTIES}'",
            f"type='signal',sender='{bus.BUS}',member='NameOwnerChanged',arg0='{bus.NAME}'",
        ):
            await self._bus.ask_bus("AddMatch", "s", rule)
        try:
            (self._owner,) = await self._bus.ask_bus("GetNameOwner", "s", bus.NAME)
        except NotThereError as error:
            raise _not_running() from error

    def _hear(self, message: Message) -> bool:
        if message.message_type is not MessageType.SIGNAL:
            return False
        if message.sender == bus.BUS and message.member == "NameOwnerChanged":
            name, old, _ = message.body
            if name == bus.NAME and old == self._owner:
                self._news.put_nowait(None)
        elif message.sender == self._owner and message.member == "PropertiesChanged":
            interface, changed, _ = message.body
            if interface == bus.INTERFACE:
                self._news.put_nowait(bus.plain(changed))
        return False


def asked(work: Callable[[Agent], Coroutine[Any, Any, T]]) -> T:
    """Return what ``work`` returns with a connection to the daemon. Raises as it does."""

    async def connected() -> T:
        async with Agent() as agent:
            return await work(agent)

    return asyncio.run(connected())


def _not_running() -> NotRunningError:
    return NotRunningError("update-agentd does not run", hint=HINT)
