"""What a host is told from outside at boot: settings to files, each checked at this door.

A setting comes as bytes under its name, whoever brought it: a systemd credential
``update-agent.NAME`` (on virtual machines from SMBIOS), or a file ``NAME`` in
``/media/state/config``. The result is ordinary files in ``/etc``; the same settings give the same
files.

A key is in a file for each who uses it, and readable by nobody else: etcd and update-agentd know
this host by the same certificate, and neither gets a look at what else the other has. So is the
token for reports, which only update-agentd uses.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from update_agent.core import document, settings
from update_agent.core.settings import Fragment, SettingError


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to be there with this content."""

    path: str
    content: str
    mode: int = 0o644
    group: str | None = None
    """Whose members may read it, by ``mode``; none: root's."""


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
    if len(_PAIR & set(checked)) == 1:
        (alone,) = _PAIR & set(checked)
        del checked[alone]
        (other,) = _PAIR - {alone}
        refused.append(SettingError(f"setting {alone} is nothing without {other}"))
    files = [file for name, value in checked.items() for file in _files(name, value)]
    if "etcd" in checked:
        files.append(File(path="/etc/default/etcd", content=_etcd_lines(checked)))
    if provided := _provided(checked):
        files.append(File(path=f"{_OURS}/50-provided.toml", content=provided))
    return Plan(files=tuple(files), refused=tuple(refused))


def _provided(checked: Mapping[str, str]) -> str:
    """Return the settings of the daemon that follow from others."""
    text = ""
    for section, lines in _SECTIONS.items():
        found = [line(checked[name]) for name, line in lines.items() if name in checked]
        text += f"[{section}]\n{''.join(found)}" if found else ""
    return text


def _etcd_lines(checked: Mapping[str, str]) -> str:
    """Return etcd's environment: what was given, and for what was not, the certificates given."""
    lines = checked["etcd"].splitlines()
    named = {line.partition("=")[0] for line in lines}
    for setting, words in _ETCD_TLS.items():
        if setting in checked:
            lines += [f"{name}={value}" for name, value in words.items() if name not in named]
    return "\n".join(lines) + "\n"


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


def _pem(label: str) -> _Check:
    """Return a check that repeats nothing of what it was given: it may be a key."""
    named = f"(?:EC |RSA )?{label}-----"
    block = re.compile(rf"-----BEGIN {named}\n[A-Za-z0-9+/=\n]+-----END {named}")

    def check(name: str, text: str) -> None:
        if not block.search(text):
            raise SettingError(f"setting {name} holds no {label.lower()} in PEM")

    return check


def _token(name: str, text: str) -> None:
    """Check, and repeat nothing of it: who has it reports as one of the fleet."""
    if not re.fullmatch(r"[!-~]{1,1024}", text):
        raise SettingError(f"setting {name} holds no token: wanted one word of ASCII")


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
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"setting {name} is no TOML: {error}") from error
    settings.check_each(settings.merge([Fragment(origin=f"setting {name}", content=content)]))


SETTINGS: dict[str, _Check] = {
    "hostname": _like(
        r"(?=.{1,64}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*",
        "a host name in lower case",
    ),
    "ssh-keys": _lines_like(
        r"(\S+ )?(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-zA-Z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?",
        "lines of authorized_keys(5)",
    ),
    "server": _like(
        rf"(?=.{{1,{settings.MAX_URL}}}$)https?://[!#-\[\]-~]+", "an http:// or https:// URL"
    ),
    "channel": _like(document.NAME, "a channel's name"),
    "root": _signed_root,
    "settings": _toml,
    "etcd": _lines_like(r"ETCD_[A-Z_]+=[^\"'\\$`]*", "lines such as ETCD_NAME=one"),
    "etcd-ca": _pem("CERTIFICATE"),
    "etcd-cert": _pem("CERTIFICATE"),
    "etcd-key": _pem("PRIVATE KEY"),
    "report-token": _token,
}
"""Every setting, and what it must look like."""

_PAIR = {"etcd-cert", "etcd-key"}

_OURS = "/etc/update-agent"
_ETCD = "/etc/etcd"

_SECTIONS: dict[str, dict[str, Callable[[str], str]]] = {
    "update": {
        "server": lambda text: f"repository = [{json.dumps(text)}]\n",
        "channel": lambda text: f"channel = {json.dumps(text)}\n",
        "root": lambda _: f'root = "{_OURS}/root.json"\n',
    },
    "cluster": {
        "etcd-ca": lambda _: f'ca = "{_ETCD}/ca.pem"\n',
        "etcd-cert": lambda _: f'cert = "{_ETCD}/cert.pem"\n',
        "etcd-key": lambda _: f'key = "{_OURS}/etcd-key.pem"\n',
    },
}
"""Settings of the daemon, each a line of its section."""

_ETCD_TLS = {
    "etcd-ca": {
        "ETCD_TRUSTED_CA_FILE": f"{_ETCD}/ca.pem",
        "ETCD_CLIENT_CERT_AUTH": "true",
        "ETCD_PEER_TRUSTED_CA_FILE": f"{_ETCD}/ca.pem",
        "ETCD_PEER_CLIENT_CERT_AUTH": "true",
    },
    "etcd-cert": {
        "ETCD_CERT_FILE": f"{_ETCD}/cert.pem",
        "ETCD_PEER_CERT_FILE": f"{_ETCD}/cert.pem",
    },
    "etcd-key": {
        "ETCD_KEY_FILE": f"{_ETCD}/key.pem",
        "ETCD_PEER_KEY_FILE": f"{_ETCD}/key.pem",
    },
}
"""What etcd is told of the certificates, where nobody told it otherwise."""


def _files(name: str, text: str) -> Iterable[File]:
    """Return the files that a setting becomes."""
    content = f"{text}\n"
    if name == "etcd-key":
        yield File(path=f"{_ETCD}/key.pem", content=content, mode=0o640, group="etcd")
        yield File(path=f"{_OURS}/etcd-key.pem", content=content, mode=0o640, group="update-agent")
    elif name == "report-token":
        yield File(
            path=settings.Reports().token_file, content=content, mode=0o640, group="update-agent"
        )
    elif name in _FILES:
        yield File(path=_FILES[name], content=content)


_FILES = {
    "hostname": "/etc/hostname",
    "ssh-keys": "/etc/ssh/authorized_keys.d/core",
    "root": f"{_OURS}/root.json",
    "settings": f"{_OURS}/60-settings.toml",
    "etcd-ca": f"{_ETCD}/ca.pem",
    "etcd-cert": f"{_ETCD}/cert.pem",
}
