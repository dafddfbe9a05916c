"""The one door to other programs, and the only user of ``subprocess``.

A list of words, never a shell; the C locale and a fixed PATH; no input but what is given; a time
limit; and when the program fails, an error that says what it said.
"""

import subprocess
from collections.abc import Mapping, Sequence
from os import PathLike
from shlex import join

from update_agent.errors import HostError

_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}

_PACKAGES = {
    "e2fsck": "e2fsprogs",
    "gcc": "gcc",
    "make": "make",
    "mcopy": "mtools",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
    "systemctl": "systemd",
    "systemd-sysusers": "systemd",
    "veritysetup": "cryptsetup-bin",
}
"""Which Debian package brings a program, where their names differ or surprise."""


def run(
    command: Sequence[str | PathLike[str]],
    *,
    timeout: float = 600,
    environment: Mapping[str, str] | None = None,
    text: str = "",
) -> str:
    """Run ``command`` and return what it printed. ``timeout`` is in seconds. Raises HostError.

    ``environment`` is added to the one that every program gets; ``text`` is what it reads.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(  # noqa: S603  a list of words; callers make them from checked values
            words,
            env=_ENVIRONMENT | dict(environment or {}),
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=True,
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(words[0])
        install = f"; it is in Debian's package {package}" if package else ""
        raise HostError(
            f"{words[0]} is not installed", hint=f"it is needed for: {join(words)}{install}"
        ) from error
    except OSError as error:
        raise HostError(f"cannot run {words[0]}: {error.strerror}", hint=join(words)) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{words[0]} took longer than {timeout:.0f} s: {join(words)}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip() or "nothing said"
        raise HostError(
            f"{words[0]} failed ({error.returncode}): {said[-_SAID:]}", hint=join(words)
        ) from error
    return done.stdout


_SAID = 4000
"""Characters of a program's last words that are worth repeating."""
