"""The daemon's D-Bus interface: ``org.updateagent.Agent1`` at ``/org/updateagent/Agent1``.

Everybody may read; root and one group may change; only root may say that a release is confirmed.
The bus's policy file says the same, but nothing depends on it: the uid and groups of each caller
are asked of the bus before anything is done for him. Reading is answered from memory, at once,
whatever the disk, the network or a method under way are doing. Without a bus the daemon goes on,
and comes back when there is one.
"""

import asyncio
import grp
import logging
import os
import pwd
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from xml.sax.saxutils import quoteattr

from dbus_next.constants import ErrorType, MessageFlag, MessageType
from dbus_next.errors import DBusError
from dbus_next.message import Message
from dbus_next.signature import Variant

from update_agent.agent import view
from update_agent.agent.daemon import Daemon
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host import bus
from update_agent.host.bus import Connection, DeniedError

logger = logging.getLogger(__name__)

GROUP = "update-agent"
"""Whose members may change what root may."""

DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds after which a lost bus is looked for again; the last one for ever."""

_RATE = 0.25
"""Seconds between two announcements of progress; every other change is announced at once."""
_CALLS = 64
"""Calls at work at once; who asks for more is refused."""

_PRIMARY_OWNER = (1, 4)
"""What the bus answers who has a name now, or had it already."""
_DO_NOT_QUEUE = 4


class TakenError(HostError):
    """Another daemon has the name on the bus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Something that callers can ask the daemon for."""

    call: Callable[..., Awaitable[None]]
    argument: str | None = None
    """The name of the one text that it takes."""
    root_only: bool = False


def _force(daemon: Daemon, *, without_lock: bool = False) -> Awaitable[None]:
    return daemon.install(force=True, without_lock=without_lock)


METHODS: Mapping[str, Method] = {
    "Check": Method(call=Daemon.check),
    "Install": Method(call=Daemon.install),
    "Force": Method(call=_force),
    "ForceWithoutLock": Method(call=partial(_force, without_lock=True)),
    "Reboot": Method(call=Daemon.reboot),
    "RebootWithoutLock": Method(call=partial(Daemon.reboot, without_lock=True)),
    "Rollback": Method(call=Daemon.rollback),
    "RollbackWithoutLock": Method(call=partial(Daemon.rollback, without_lock=True)),
    "Cancel": Method(call=Daemon.cancel),
    "Pause": Method(call=Daemon.pause, argument="reason"),
    "Resume": Method(call=Daemon.resume),
    "Confirmed": Method(call=Daemon.confirmed, root_only=True),
}
"""All methods; each answers when it is decided or begun, and properties tell the rest."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the bus knows him."""

    uid: int
    groups: frozenset[int]

    def may(self, method: Method, group: int | None) -> bool:
        """Return whether he may call ``method`` where ``group`` may change things."""
        return self.uid == 0 or (not method.root_only and group in self.groups)


class Service:
    """The interface of one daemon, on one bus at a time. ``group`` may change things, as root may.

    ``address`` is the bus's, None for the system's.
    """

    def __init__(
        self,
        daemon: Daemon,
        *,
        group: int | None,
        address: str | None = None,
        delays: Sequence[float] = DELAYS,
    ) -> None:
        self._daemon = daemon
        self._group = group
        self._address = address
        self._delays = delays
        self._bus: Connection | None = None
        self._shown: dict[str, Variant] = {}
        self._facts: tuple[object, ...] = ()
        """What was announced besides progress."""
        self._later: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self.on_bus = asyncio.Event()
        """Set while others can call."""
        self.tried = asyncio.Event()
        """Set when it was tried once to be on the bus."""

    async def serve(self) -> None:
        """Be on the bus until cancelled. Raises TakenError when another daemon is there first."""
        lost = 0
        try:
            while True:
                try:
                    async with Connection(self._address) as connection:
                        await self._begin(connection)
                        lost = 0
                        await connection.lost()
                    logger.warning("the system bus is gone; looking for it again")
                except (bus.BusError, DeniedError) as error:
                    logger.warning("not on the system bus: %s", error)
                finally:
                    self._bus = None
                    self.on_bus.clear()
                    self.tried.set()
                await asyncio.sleep(self._delays[min(lost, len(self._delays) - 1)])
                lost += 1
        finally:
            for call in self._calls:
                call.cancel()
            if self._later:
                self._later.cancel()

    async def _begin(self, connection: Connection) -> None:
        connection.listen(lambda message: self._take(connection, message))
        self._shown = view.properties(self._daemon)
        self._bus = connection
        (answer,) = await connection.ask_bus("RequestName", "su", bus.NAME, _DO_NOT_QUEUE)
        if answer not in _PRIMARY_OWNER:
            raise TakenError(
                f"another update-agentd has the name {bus.NAME} on the system bus",
                hint="systemctl status update-agentd",
            )
        self.on_bus.set()
        self.tried.set()

    # What has changed ----------------------------------------------------------------------------

    def tell(self, daemon: Daemon) -> None:
        """Announce what has changed since the last time; progress only now and then."""
        facts = (daemon.record, daemon.offer, daemon.slots, daemon.next_check)
        if self._later and facts == self._facts and daemon.progress:
            return  # it is announced together with what comes next
        self._facts = facts
        found = view.properties(daemon)
        changed = {name for name, value in found.items() if value != self._shown.get(name)}
        if not changed or self._bus is None:
            return
        if changed == {"Progress"} and self._shown["Progress"].value and found["Progress"].value:
            if self._later is None:
                self._later = asyncio.get_running_loop().call_later(_RATE, self._tell_all)
            return
        self._tell_all()

    def _tell_all(self) -> None:
        if self._later:
            self._later.cancel()
            self._later = None
        found = view.properties(self._daemon)
        changed = {name: it for name, it in found.items() if it != self._shown.get(name)}
        self._shown = found
        if changed and self._bus:
            self._bus.send(
                Message.new_signal(
                    path=bus.PATH, interface=bus.PROPERTIES, member="PropertiesChanged",
                    signature="sa{sv}as", body=[bus.INTERFACE, changed, []],
                )
            )  # fmt: skip

    # Calls ---------------------------------------------------------------------------------------

    def _take(self, connection: Connection, message: Message) -> Message | bool:
        """Answer a message that is for us, or begin to. What is left is dbus-next's."""
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        if message.interface == f"{bus.BUS}.Introspectable":
            return _introspected(message)
        if message.path != bus.PATH:
            return False
        if message.interface == bus.PROPERTIES:
            return _answer(message, *self._read(message))
        if message.interface in {bus.INTERFACE, None} and message.member in METHODS:
            self._begin_call(connection, message)
            return True
        return False

    def _read(self, message: Message) -> tuple[str, list[Any]]:
        """Return what is asked of the properties. Raises DBusError."""
        match message.member, message.signature, message.body:
            case "GetAll", "s", [bus.INTERFACE | ""]:
                return "a{sv}", [view.properties(self._daemon)]
            case "Get", "ss", [bus.INTERFACE | "", str(name)] if name in view.SIGNATURES:
                return "v", [view.properties(self._daemon)[name]]
            case "Get", "ss", [_, name]:
                raise DBusError(ErrorType.UNKNOWN_PROPERTY, f"there is no property {name}")
            case "Set", "ssv", _:
                raise DBusError(ErrorType.PROPERTY_READ_ONLY, "properties are changed by methods")
            case _:
                raise DBusError(ErrorType.UNKNOWN_METHOD, "ask GetAll or Get of " + bus.INTERFACE)

    def _begin_call(self, connection: Connection, message: Message) -> None:
        method = METHODS[str(message.member)]
        if message.signature != ("s" if method.argument else ""):
            raise DBusError(ErrorType.INVALID_ARGS, f"wrong arguments for {message.member}")
        if len(self._calls) >= _CALLS:
            raise DBusError(ErrorType.LIMITS_EXCEEDED, "too many calls at once")
        task = asyncio.get_running_loop().create_task(self._call(connection, message, method))
        self._calls.add(task)
        task.add_done_callback(self._called)

    async def _call(self, connection: Connection, message: Message, method: Method) -> None:
        try:
            caller = await _caller(connection, str(message.sender))
            if not caller.may(method, self._group):
                raise _denied(caller, str(message.member), method)
            logger.info("%s, asked for by %s", message.member, _name(caller.uid))
            await method.call(self._daemon, *message.body)
            answer = Message.new_method_return(message)
        except UpdateAgentError as error:
            logger.info("%s refused: %s", message.member, error)
            answer = bus.write_error(message, error)
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            connection.send(answer)

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and (error := task.exception()):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a defect of the D-Bus interface", "exception": error}
            )


async def _caller(connection: Connection, sender: str) -> Caller:
    """Return who ``sender`` is. Raises DeniedError when the bus does not say."""
    try:
        (answer,) = await connection.ask_bus("GetConnectionCredentials", "s", sender)
    except UpdateAgentError as error:
        raise DeniedError(f"the bus does not say who calls: {error}") from error
    found = bus.plain(answer)
    uid, gids = found.get("UnixUserID"), found.get("UnixGroupIDs")
    if not isinstance(uid, int):
        raise DeniedError("the bus does not say who calls")
    if gids is None:  # an older bus
        gids = await asyncio.to_thread(_groups, uid)
    return Caller(uid, frozenset(gids))


def _groups(uid: int) -> list[int]:
    with suppress(KeyError, OSError):
        user = pwd.getpwuid(uid)
        return os.getgrouplist(user.pw_name, user.pw_gid)
    return []


def _denied(caller: Caller, what: str, method: Method) -> DeniedError:
    wanted = "root" if method.root_only else f"root or a member of the group {GROUP}"
    return DeniedError(
        f"{what} is for {wanted}, and not for {_name(caller.uid)}",
        hint="try again with sudo",
    )


def _name(uid: int) -> str:
    """Return a user as the log names him; the number, so that no directory service is asked."""
    return "root" if uid == 0 else f"uid {uid}"


def group_id() -> int | None:
    """Return the id of the group whose members may change things, if there is such a group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _answer(message: Message, signature: str, body: list[Any]) -> Message | bool:
    if message.flags & MessageFlag.NO_REPLY_EXPECTED:
        return True
    return Message.new_method_return(message, signature, body)


# Introspection -----------------------------------------------------------------------------------


def _introspected(message: Message) -> Message | bool:
    if message.path == bus.PATH:
        return _answer(message, "s", [introspection()])
    path = str(message.path).rstrip("/")
    if not bus.PATH.startswith(f"{path}/"):
        return False
    child = bus.PATH.removeprefix(f"{path}/").partition("/")[0]
    return _answer(message, "s", [f"{_DOCTYPE}<node><node name={quoteattr(child)}/></node>"])


_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_STANDARD = """\
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="xml" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="id" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get"><arg name="interface" type="s" direction="in"/>\
<arg name="name" type="s" direction="in"/><arg name="value" type="v" direction="out"/></method>
  <method name="GetAll"><arg name="interface" type="s" direction="in"/>\
<arg name="values" type="a{sv}" direction="out"/></method>
  <signal name="PropertiesChanged"><arg name="interface" type="s"/>\
<arg name="changed" type="a{sv}"/><arg name="invalidated" type="as"/></signal>
 </interface>
"""


def introspection() -> str:
    """Return the interface as XML, for busctl(1) and for who writes clients."""
    methods = "".join(
        f"  <method name={quoteattr(name)}>{_argument(method)}</method>\n"
        for name, method in METHODS.items()
    )
    properties = "".join(
        f'  <property name={quoteattr(name)} type={quoteattr(signature)} access="read"/>\n'
        for name, signature in view.SIGNATURES.items()
    )
    ours = f" <interface name={quoteattr(bus.INTERFACE)}>\n{methods}{properties} </interface>\n"
    return f"{_DOCTYPE}<node>\n{_STANDARD}{ours}</node>\n"


def _argument(method: Method) -> str:
    if method.argument is None:
        return ""
    return f'<arg name={quoteattr(method.argument)} type="s" direction="in"/>'
