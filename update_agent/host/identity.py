"""Who this host is: what os-release, the kernel and the machine id say of it."""

import platform
import shlex
from pathlib import Path

from update_agent.errors import HostError

OS_RELEASE = Path("/etc/os-release")
MACHINE_ID = Path("/etc/machine-id")


def os_release(path: Path = OS_RELEASE) -> dict[str, str]:
    """Return the assignments in os-release(5). Raises HostError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    found = {}
    for line in lines:
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            try:
                found[key] = "".join(shlex.split(value))
            except ValueError as error:
                raise HostError(f"{path}: {line!r} cannot be read: {error}") from error
    return found


def machine_id(path: Path = MACHINE_ID) -> str:
    """Return the machine id, machine-id(5). Raises HostError."""
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if len(text) != 32 or not set(text) <= set("0123456789abcdef"):  # noqa: PLR2004
        raise HostError(
            f"{path} holds no machine id",
            hint="systemd-machine-id-setup makes one; see machine-id(5)",
        )
    return text


def architecture() -> str:
    """Return the architecture as uname -m says it."""
    return platform.machine()
