"""Programs that a host's people put into a folder: run in order of their names, all or none good.

What is no program is left out: folders, hidden files, backups that editors leave, and files that
nobody may execute. All together have one time limit.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from update_agent.errors import HostError
from update_agent.run import run

PRE_REBOOT = Path("/etc/update-agent/pre-reboot.d")
HEALTH = Path("/etc/update-agent/health.d")

_BACKUPS = ("~", ".bak", ".dpkg-old", ".dpkg-dist", ".dpkg-new", ".rpmsave", ".rpmnew", ".swp")
_ROOM = 400
"""Characters of what a program said that are told on; the last ones."""


class ProgramError(HostError):
    """A program failed, or took too long: says which, and what it said last."""


def listed(folder: Path) -> list[Path]:
    """Return the programs in ``folder`` in their order; none when there is no such folder."""
    return [path for path in _files(folder) if os.access(path, os.X_OK)]


def left_out(folder: Path) -> list[Path]:
    """Return what looks like a program and is not executable."""
    return [path for path in _files(folder) if not os.access(path, os.X_OK)]


def run_all(folder: Path, limit: float, clock: Callable[[], float] = time.monotonic) -> list[Path]:
    """Run the programs in ``folder`` within ``limit`` seconds; return them. Raises ProgramError."""
    end = clock() + limit
    programs = listed(folder)
    for path in programs:
        left = end - clock()
        if left <= 0:
            raise ProgramError(f"no time left for {path}: all together may take {limit:.0f} s")
        try:
            run([path], timeout=left)
        except HostError as error:
            raise ProgramError(_short(str(error)), hint=f"look at {path}") from error
    return programs


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"cannot read {folder}: {error.strerror}") from error
    return [
        path
        for path in found
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_BACKUPS)
    ]


def _short(text: str) -> str:
    return text if len(text) <= _ROOM else f"{text[:100]} ... {text[-_ROOM + 100 :]}"
