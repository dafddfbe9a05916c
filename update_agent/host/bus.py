"""The system bus: our names on it, connections, calls, and how errors of ours travel over it.

What both the daemon and its clients need, and dbus-next does not give: sockets that are closed, a
flood of messages that does not keep the event loop from all else, and errors with their way out.
An error of ours is a D-Bus error ``org.updateagent.Error.KIND`` with two texts, message and hint.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.errors import AuthError, InvalidAddressError
from dbus_next.message import Message
from dbus_next.signature import Variant

from update_agent.errors import HostError, ReleaseError, UpdateAgentError

NAME = INTERFACE = "org.updateagent.Agent1"
PATH = "/org/updateagent/Agent1"
ERRORS = "org.updateagent.Error."

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
PROPERTIES = f"{BUS}.Properties"

_PATIENCE = 25.0
"""Seconds for an answer; what takes longer is answered before it is done."""
_BATCH = 64
"""Messages read before others have their turn."""

_ABSENT = frozenset(
    f"{BUS}.Error.{name}" for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply")
)


class BusError(HostError):
    """The bus, or who was called over it, failed."""


class NotThereError(BusError):
    """Nobody on the bus has the name."""


class LostError(BusError):
    """The answer did not come: nobody knows whether what was asked for is done."""


class DeniedError(BusError):
    """The caller may not do this."""


class NotNowError(HostError):
    """Something was asked for that cannot be done in this state."""


_KINDS: Mapping[str, type[UpdateAgentError]] = {
    "NotNow": NotNowError,
    "AccessDenied": DeniedError,
    "Refused": ReleaseError,
    "Failed": HostError,
}
"""The first that fits says how an error is called on the bus."""


class Connection:
    """A connection to the bus at ``address``, None for the system's; for ``async with``.

    Raises BusError.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._bus: _Bus

    async def __aenter__(self) -> Self:
        try:
            self._bus = _Bus(bus_address=self._address, bus_type=BusType.SYSTEM)
            async with asyncio.timeout(_PATIENCE):  # wait_for of 3.11 may lose a cancellation
                await self._bus.connect()
        except (OSError, EOFError, AuthError, InvalidAddressError, TimeoutError) as error:
            raise BusError(
                f"cannot connect to the system bus: {str(error) or 'no answer'}",
                hint="systemctl status dbus",
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._bus.close()

    async def call(
        self, name: str, path: str, interface: str, member: str,
        signature: str = "", body: Sequence[Any] = (), *, patience: float = _PATIENCE,
    ) -> list[Any]:  # fmt: skip
        """Return what ``member`` answers. Raises NotThereError, BusError, and our own errors."""
        message = Message(
            destination=name, path=path, interface=interface, member=member,
            signature=signature, body=list(body),
        )  # fmt: skip
        try:
            async with asyncio.timeout(patience):
                reply = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise LostError(f"the bus closed the connection: {error}") from error
        except TimeoutError as error:
            raise LostError(f"{name} did not answer {member} for {patience:.0f} s") from error
        if reply is None:
            raise LostError("the bus closed the connection")
        if reply.message_type is MessageType.ERROR:
            raise read_error(name, reply)
        return list(reply.body)

    async def ask_bus(self, member: str, signature: str = "", *body: object) -> list[Any]:
        """Return what the bus itself answers. Raises as ``call``."""
        return await self.call(BUS, BUS_PATH, BUS, member, signature, body)

    async def properties(self, name: str, path: str, interface: str) -> dict[str, Any]:
        """Return all properties, as plain values. Raises as ``call``."""
        (found,) = await self.call(name, path, PROPERTIES, "GetAll", "s", [interface])
        plain_values: dict[str, Any] = plain(found)
        return plain_values

    def listen(self, handler: Callable[[Message], Message | bool | None]) -> None:
        """Show every message that comes to ``handler``, who answers or returns what is true."""
        self._bus.add_message_handler(handler)

    def send(self, message: Message) -> None:
        """Send ``message``, or nothing when the connection is gone."""
        if self._bus.connected:
            self._bus.send(message)

    async def lost(self) -> None:
        """Return when the connection is gone."""
        await self._bus.gone.wait()


def plain(value: Any) -> Any:  # noqa: ANN401  whatever the bus carries
    """Return ``value`` without the signatures that came with it."""
    match value:
        case Variant():
            return plain(value.value)
        case dict():
            return {key: plain(it) for key, it in value.items()}
        case list():
            return [plain(it) for it in value]
        case _:
            return value


# Errors ------------------------------------------------------------------------------------------


def write_error(call: Message, error: UpdateAgentError) -> Message:
    """Return the answer to ``call`` that says ``error``."""
    kind = next((it for it, family in _KINDS.items() if isinstance(error, family)), "Failed")
    return Message(
        message_type=MessageType.ERROR, destination=call.sender, reply_serial=call.serial,
        error_name=ERRORS + kind, signature="ss", body=[str(error), error.hint or ""],
    )  # fmt: skip


def read_error(name: str, reply: Message) -> UpdateAgentError:
    """Return the error that ``reply`` of ``name`` says."""
    message, hint, *_ = [*map(str, reply.body), "", ""]
    found = str(reply.error_name)
    if found.startswith(ERRORS):
        family = _KINDS.get(found.removeprefix(ERRORS), HostError)
        return family(message, hint=hint or None)
    if found in _ABSENT:
        return NotThereError(f"{name} is not on the system bus: {message}")
    if found == f"{BUS}.Error.AccessDenied":
        return DeniedError(f"the system bus does not let you do this: {message}")
    if found == f"{BUS}.Error.NoReply":
        return LostError(f"{name} went away before it answered: {message}")
    return BusError(f"{name}: {message or found}")


# What dbus-next does not do ----------------------------------------------------------------------


class _Bus(MessageBus):
    """dbus-next's connection, which closes its socket and takes turns with the rest of the loop."""

    def __init__(self, *, bus_address: str | None, bus_type: BusType) -> None:
        self.gone = asyncio.Event()
        super().__init__(bus_address=bus_address, bus_type=bus_type)  # type: ignore[arg-type]
        _seen(self._disconnect_future)

    async def connect(self) -> Self:
        try:
            await super().connect()
        except BaseException:
            self._method_return_handlers.clear()  # nobody waits for them any more
            self.close()
            raise
        return self

    def close(self) -> None:
        self._user_disconnect = True
        self._finalize()

    def send(self, msg: Message) -> "asyncio.Future[None]":  # type: ignore[override]
        if self._disconnected:
            raise EOFError
        sent: asyncio.Future[None] = super().send(msg)
        _seen(sent)
        return sent

    def _setup_socket(self) -> None:
        try:
            super()._setup_socket()
        except BaseException:
            self._close_socket()
            raise

    def _message_reader(self) -> None:
        for _ in range(_BATCH):
            if self._disconnected:
                return
            try:
                if not self._unmarshaller.unmarshall():
                    return
            except Exception as error:  # noqa: BLE001  as dbus-next does: the connection is over
                self._finalize(error)
                return
            message = self._unmarshaller.message
            self._unmarshaller = self._create_unmarshaller()
            self._on_message(message)
        self._loop.call_soon(self._message_reader)

    def _finalize(self, err: Exception | None = None) -> None:
        if not self._disconnected:
            super()._finalize(err or EOFError("connection closed"))
            self._close_socket()
            self.gone.set()

    def _close_socket(self) -> None:
        for it in (getattr(self, "_stream", None), getattr(self, "_sock", None)):
            with suppress(OSError):  # it may have something to say to nobody
                if it is not None:
                    it.close()


def _seen(future: "asyncio.Future[Any]") -> None:
    """Let nobody complain that a failure of ``future`` was not looked at."""
    future.add_done_callback(lambda it: it.cancelled() or it.exception())
