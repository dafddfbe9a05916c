"""Settings: from fragments, in which they are written, to values that are checked.

A fragment is what one file says. Fragments are laid over one another, a later one winning setting
by setting, and each value keeps the name of the file that it came from; so an error names the file
to mend, and ``update-agentctl config`` can say where a value comes from. Unknown names are errors:
a misspelled limit is no limit.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from update_agent.core import units
from update_agent.core.document import Name, Text
from update_agent.core.window import Window
from update_agent.errors import HostError, UpdateAgentError

DEFAULT = "default"
"""Where a value comes from that no file sets."""


class SettingError(HostError):
    """A setting cannot be used: says which, from which file, found and wanted."""


class Strategy(StrEnum):
    """When a host boots what it has installed."""

    OFF = "off"
    """When somebody reboots it."""
    IMMEDIATE = "immediate"
    """As soon as a window is open."""
    LOCK = "lock"
    """As soon as a window is open and the cluster gives it a reboot slot."""


class Bytes(int):
    """An amount of bytes, or of bytes a second, written as ``20M``; not 0."""


class Duration(timedelta):
    """A length of time, written as ``30m``."""


def _minutes(number: int) -> Duration:
    return Duration(minutes=number)


_FLOOR = Bytes(4_000_000)
_SLOWEST = 10_000
"""Bytes a second; at less, a trial could not even be confirmed in time."""

MAX_URL = 500
Url = Annotated[str, Meta(pattern=r"\Ahttps?://[^\s]+\Z", max_length=MAX_URL)]
Path = Annotated[str, Meta(pattern=r"\A/", max_length=500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What to follow."""

    repository: tuple[Url, ...] = ()
    """Mirrors of one another, the first preferred. None: this host is not updated."""
    channel: Name = "stable"
    """Which of the repository's channels."""
    root: Path = "/usr/share/update-agent/root.json"
    """The trusted root, from which every signature is verified."""
    interval: Duration = field(default_factory=lambda: _minutes(45))
    """Between two checks, give or take a third of it."""
    automatic: bool = True
    """Install what is offered; else only when somebody says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How to fetch."""

    proxy: Url | None = None
    """Fetch through it. None: directly, whatever the environment says."""
    ca: Path | None = None
    """Certificates to accept for HTTPS. None: those that the system trusts."""
    rate: Bytes | None = None
    """Bytes a second at most."""
    deadline: Duration = field(default_factory=lambda: _minutes(6 * 60))
    """For a whole download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reboot:
    """When to reboot."""

    strategy: Strategy = Strategy.OFF
    """off: when a person reboots; immediate: as soon as a window is open; lock: as soon as the
    cluster gives it a reboot slot as well."""
    windows: tuple[Window, ...] = ()
    """Such as "Sat 22:00 +6h Europe/Berlin"; several, and any of them. None: always."""
    drain: Duration = field(default_factory=lambda: _minutes(5))
    """How long the programs in pre-reboot.d may take, all together; at most 1d. A reboot begins in
    its window, and may end so much later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a new release proves itself."""

    health: Duration = field(default_factory=lambda: _minutes(5))
    """How long the programs in health.d may take, all together."""
    soak: Duration = field(default_factory=lambda: _minutes(1))
    """How long it must stay healthy before it is confirmed; update-agent-trial.timer ends a trial
    10 minutes after the boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an update may take of the host."""

    floor: Bytes = _FLOOR
    """Bytes a second of the disk that it gets however busy the host is."""
    ceiling: Bytes | None = None
    """Bytes a second at most, even below the floor. None: as fast as the disk when idle."""
    pressure: Annotated[int, Meta(ge=1, le=100)] = 3
    """Percent of the time that others may wait for the disk before an update gives way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom to tell how this host stands."""

    url: Url | None = None
    """Of the update server. None: nobody is told."""
    token_file: Path = "/etc/update-agent/report-token"  # noqa: S105  its file
    """Holds the token by which that server knows its fleet."""
    certificate: Path | None = None
    """By which that server knows this host, in place of the token."""
    key: Path | None = None
    """Of that certificate; readable by the user update-agent."""
    interval: Duration = field(default_factory=lambda: _minutes(10))
    """Between two signs of life, give or take a third of it."""
    textfile: Path | None = None
    """Where Prometheus' node exporter finds how this host stands. None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Whose reboot slots this host takes its turn in; asked when ``reboot.strategy`` is lock."""

    endpoints: tuple[Url, ...] = ()
    """URLs of etcd, for clients; of several members, so that one may be away."""
    ca: Path | None = None
    """Who signed etcd's certificates. None: those that the system trusts."""
    cert: Path | None = None
    """By which etcd knows this host."""
    key: Path | None = None
    """Of that certificate; readable by the user update-agent."""
    user: Text | None = None
    """Where etcd has users, besides or instead of certificates."""
    password_file: Path | None = None
    """Of that user; readable by the user update-agent."""
    deadline: Duration = field(default_factory=lambda: Duration(seconds=5))
    """For one request to one endpoint."""
    group: Name = "default"
    """Hosts of one group share reboot slots."""
    labels: Annotated[Mapping[Name, Text], Meta(max_length=20)] = field(default_factory=dict)
    """Of this host, such as its rack; 'update-agentctl lock slots --apart' uses them."""
    member: Text | None = None
    """Name of the member of etcd that runs on this host. None: it is known by its addresses."""
    bad_limit: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Hosts on which a release rolled back before no other host takes it."""
    stale: Duration = field(default_factory=lambda: _minutes(60))
    """After which a host that holds a reboot slot is said to be late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked."""

    update: Update = field(default_factory=Update)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    reboot: Reboot = field(default_factory=Reboot)
    trial: Trial = field(default_factory=Trial)
    limits: Limits = field(default_factory=Limits)
    reports: Reports = field(default_factory=Reports)
    cluster: Cluster = field(default_factory=Cluster)


_SECTIONS: Mapping[str, Any] = {
    "update": Update,
    "network": NetworkSettings,
    "reboot": Reboot,
    "trial": Trial,
    "limits": Limits,
    "reports": Reports,
    "cluster": Cluster,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """What one file says."""

    origin: str
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All fragments laid over one another: values, and where each comes from."""

    values: Mapping[str, Mapping[str, Any]]
    origins: Mapping[tuple[str, str], str]


def merge(fragments: Iterable[Fragment]) -> Inputs:
    """Lay ``fragments`` over one another, the last one on top. Raises SettingError."""
    values: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], str] = {}
    for fragment in fragments:
        for section, content in fragment.content.items():
            _want_known(section, _SECTIONS, f"section [{section}]", fragment.origin)
            if not isinstance(content, Mapping):
                raise SettingError(f"{fragment.origin}: {section} is a value, wanted [{section}]")
            for name, value in content.items():
                known = [it.name for it in fields(_SECTIONS[section])]
                _want_known(name, known, f"{section}.{name}", fragment.origin)
                values.setdefault(section, {})[name] = value
                origins[section, name] = fragment.origin
    return Inputs(values=values, origins=origins)


def check(inputs: Inputs) -> Settings:
    """Return the settings that ``inputs`` say. Raises SettingError, which names the file."""
    found = check_each(inputs)
    for (section, name), wanted, good in _together(found):
        if not good:
            origin = inputs.origins.get((section, name), DEFAULT)
            said = text(getattr(getattr(found, section), name))
            raise SettingError(
                f"{origin}: {section}.{name} is {said}, and {wanted} is not set",
                hint=f"set {wanted} in /etc/update-agent/*.toml{_OR.get((section, name), '')}",
            )
    return found


_OR = {("reboot", "strategy"): ", or another reboot.strategy"}


def _together(found: Settings) -> Iterable[tuple[tuple[str, str], str, bool]]:
    """Yield which setting wants which other one, and whether that is there."""
    cluster = found.cluster
    locks = found.reboot.strategy is Strategy.LOCK
    yield ("reboot", "strategy"), "cluster.endpoints", bool(cluster.endpoints) or not locks
    yield ("cluster", "key"), "cluster.cert", cluster.key is None or cluster.cert is not None
    user, password = cluster.user, cluster.password_file
    yield ("cluster", "user"), "cluster.password_file", user is None or password is not None
    yield ("cluster", "password_file"), "cluster.user", password is None or user is not None


def check_each(inputs: Inputs) -> Settings:
    """Return what ``inputs`` say, though another file may still be missing. Raises SettingError."""
    sections: dict[str, Any] = {}
    for section, kind in _SECTIONS.items():
        content = inputs.values.get(section, {})
        for name, value in content.items():  # one by one: an error names its file
            _convert({name: value}, kind, inputs.origins[section, name], section)
        sections[section] = _convert(content, kind, DEFAULT, section)
    return Settings(**sections)


def listed(settings: Settings, inputs: Inputs) -> list[tuple[str, str, str]]:
    """Return (name, value as it is written, origin) of every setting."""
    found = []
    for section in fields(settings):
        part = getattr(settings, section.name)
        for one in fields(part):
            origin = inputs.origins.get((section.name, one.name), DEFAULT)
            found.append((f"{section.name}.{one.name}", text(getattr(part, one.name)), origin))
    return found


def text(value: object) -> str:
    """Return a setting's value as one would write it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case tuple() | Mapping():
            return _several(value)
        case timedelta():
            return units.duration_text(value)
        case Window():
            return value.text
        case _:
            return str(value)


def _several(values: tuple[object, ...] | Mapping[str, object]) -> str:
    if isinstance(values, tuple):
        return "[" + ", ".join(text(it) for it in values) + "]"
    return "{" + ", ".join(f"{name} = {text(it)}" for name, it in values.items()) + "}"


def _want_known(name: str, known: Iterable[str], what: str, origin: str) -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise SettingError(
            f"{origin}: there is no {what}",
            hint=f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}",
        )


def _convert(content: Mapping[str, Any], kind: Any, origin: str, section: str) -> Any:  # noqa: ANN401
    """Return the section's value, a ``kind``."""
    try:
        return msgspec.convert(content, kind, dec_hook=_read)
    except msgspec.ValidationError as error:
        why, _, _ = str(error).partition(" - at `")
        raise SettingError(f"{origin}: {section}.{', '.join(content)}: {why}") from error


def _read(kind: type, value: object) -> object:
    readers = {Bytes: units.size, Duration: units.duration, Window: Window}
    if kind not in readers:
        raise TypeError(f"expected {kind.__name__}")
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    try:
        found = readers[kind](value)
    except UpdateAgentError as error:
        raise ValueError(str(error)) from error
    if kind is Bytes and isinstance(found, int) and found < _SLOWEST:
        raise ValueError(f"{found} bytes a second would take for ever; is a unit missing?")
    if isinstance(found, timedelta):
        return Duration(seconds=found.total_seconds())
    return Bytes(found) if isinstance(found, int) else found
