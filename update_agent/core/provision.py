"""What a host is told from outside at boot: settings to files, each checked at this door.

A setting comes as bytes under its name, whoever brought it: a systemd credential
``update-agent.NAME`` (on virtual machines from SMBIOS), or a file ``NAME`` in
``/media/state/config``. The result is ordinary files in ``/etc``; the same settings give the same
files.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from update_agent.core import settings
from update_agent.core.settings import Fragment
from update_agent.errors import HostError


class SettingError(HostError):
    """A setting is not what it should be: names it, says what was wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to be there with this content."""

    path: str
    content: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which files to write, and which settings were refused."""

    files: tuple[File, ...]
    refused: tuple[SettingError, ...]


def plan(given: Mapping[str, bytes]) -> Plan:
    """Return what to write for ``given``. A wrong setting is refused and keeps out no other."""
    checked: dict[str, str] = {}
    refused: list[SettingError] = []
    for name in sorted(given):
        try:
            checked[name] = _checked(name, given[name])
        except SettingError as error:
            refused.append(error)
    files = [_FILES[name](value) for name, value in checked.items() if name in _FILES]
    update = [line(checked[name]) for name, line in _UPDATE.items() if name in checked]
    if update:
        files.append(File(path=f"{_OURS}/50-provided.toml", content="[update]\n" + "".join(update)))
    return Plan(files=tuple(files), refused=tuple(refused))


def _checked(name: str, value: bytes) -> str:
    if name not in SETTINGS:
        raise SettingError(
            f"setting {name} is not known", hint=f"settings are: {', '.join(SETTINGS)}"
        )
    if len(value) > _LARGEST:
        raise SettingError(f"setting {name} has {len(value)} bytes, wanted at most {_LARGEST}")
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise SettingError(f"setting {name} is no UTF-8 text") from None
    if any(char < " " and char not in "\n\t" for char in text) or not text:
        raise SettingError(f"setting {name} is empty or has control characters")
    SETTINGS[name](name, text)
    return text


_LARGEST = 512 * 1024

_Check = Callable[[str, str], None]


def _like(pattern: str, wanted: str) -> _Check:
    expression = re.compile(pattern)

    def check(name: str, text: str) -> None:
        if not expression.fullmatch(text):
            raise SettingError(f"setting {name} is {text[:80]!r}, wanted {wanted}")

    return check


def _lines_like(pattern: str, wanted: str) -> _Check:
    check_line = _like(pattern, wanted)

    def check(name: str, text: str) -> None:
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                check_line(name, line.strip())

    return check


def _signed_root(name: str, text: str) -> None:
    try:
        root = json.loads(text)
    except ValueError as error:
        raise SettingError(f"setting {name} is no JSON: {error}") from error
    signed = root.get("signed") if isinstance(root, dict) else None
    if not isinstance(signed, dict) or signed.get("_type") != "root":
        raise SettingError(f"setting {name} is no TUF root metadata")


def _toml(name: str, text: str) -> None:
    try:
        settings.check(
            settings.merge([Fragment(origin=f"setting {name}", content=tomllib.loads(text))])
        )
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"setting {name} is no TOML: {error}") from error
    except settings.SettingError as error:
        raise SettingError(str(error), hint=error.hint) from error


SETTINGS: dict[str, _Check] = {
    "hostname": _like(
        r"(?=.{1,64}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*",
        "a host name in lower case",
    ),
    "ssh-keys": _lines_like(
        r"(\S+ )?(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-zA-Z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?",
        "lines of authorized_keys(5)",
    ),
    "server": _like(r"https?://[^\s\"\\]+", "an http:// or https:// URL"),
    "channel": _like(r"[a-z0-9][a-z0-9._-]{0,63}", "a channel's name"),
    "root": _signed_root,
    "settings": _toml,
    "etcd": _lines_like(r"ETCD_[A-Z_]+=[^\"'\\$`]*", "lines such as ETCD_NAME=one"),
}
"""Every setting, and what it must look like."""

_OURS = "/etc/update-agent"

_UPDATE: dict[str, Callable[[str], str]] = {
    "server": lambda text: f"repository = [{json.dumps(text)}]\n",
    "channel": lambda text: f"channel = {json.dumps(text)}\n",
    "root": lambda _: f'root = "{_OURS}/root.json"\n',
}
"""Settings of the section [update], each a line of it."""

_FILES: dict[str, Callable[[str], File]] = {
    "hostname": lambda text: File(path="/etc/hostname", content=f"{text}\n"),
    "ssh-keys": lambda text: File(path="/etc/ssh/authorized_keys.d/core", content=f"{text}\n"),
    "root": lambda text: File(path=f"{_OURS}/root.json", content=f"{text}\n"),
    "settings": lambda text: File(path=f"{_OURS}/60-settings.toml", content=f"{text}\n"),
    "etcd": lambda text: File(path="/etc/default/etcd", content=f"{text}\n"),
}
