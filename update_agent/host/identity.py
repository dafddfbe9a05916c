"""Who this host is, and what time it has: os-release, the machine id, the kernel."""

import os
import shlex
from datetime import UTC, datetime
from pathlib import Path

from update_agent.errors import HostError

OS_RELEASE = Path("/usr/lib/os-release")
"""Of the image. What lies in /etc may be the host's own, and outlive it."""
MACHINE_ID = Path("/etc/machine-id")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def os_release(path: Path = OS_RELEASE) -> dict[str, str]:
    """Return the assignments in os-release(5). Raises HostError."""
    return assignments(_read(path), path)


def image() -> tuple[str, str]:
    """Return the product and version that this host runs. Raises HostError when there is none."""
    known = os_release()
    product, version = known.get("IMAGE_ID"), known.get("IMAGE_VERSION")
    if not product or not version:
        raise HostError(
            "os-release says no IMAGE_ID and IMAGE_VERSION: this host has no image of ours",
            hint="install it from an image that 'update-agent-image build' made",
        )
    return product, version


def assignments(text: str, where: object) -> dict[str, str]:
    """Return the assignments in ``text``, as os-release(5) has them. Raises HostError."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            try:
                found[key] = "".join(shlex.split(value))
            except ValueError as error:
                raise HostError(f"{where}: {line!r} cannot be read: {error}") from error
    return found


def machine_id(path: Path = MACHINE_ID) -> str:
    """Return the machine id, machine-id(5). Raises HostError."""
    text = _read(path).strip()
    if len(text) != 32 or not set(text) <= set("0123456789abcdef"):  # noqa: PLR2004
        raise HostError(
            f"{path} holds no machine id",
            hint="systemd-machine-id-setup makes one; see machine-id(5)",
        )
    return text


def boot_id(path: Path = BOOT_ID) -> str:
    """Return what the kernel calls this boot. Raises HostError."""
    return _read(path).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HostError(f"cannot read {path}: it is no text") from error


def clock(built: Path = Path(__file__)) -> datetime:
    """Return the time, which is never before this program was built: a clock in 1970 is wrong."""
    return max(datetime.now(UTC), datetime.fromtimestamp(built.stat().st_mtime, UTC))


def architecture() -> str:
    """Return the architecture as uname -m says it."""
    return os.uname().machine
