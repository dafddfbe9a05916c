"""Control groups, version 2: how long the host's work waits for its disks, and io.max of our slice.

The host's work is whatever runs in the top-level groups (slices, and what container engines make
beside them) other than ours. The rule kept here: nothing is written but ``io.max`` of our own
slice, and of it only the bytes a second of one disk. Without privileges everything can be read.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from update_agent.errors import HostError

ROOT = Path("/sys/fs/cgroup")
SLICE = "updateagent.slice"
"""Ours, at the top: systemd would look for one with a dash inside of another slice."""
_OURS = {SLICE, "init.scope"}
"""Groups that are nobody's work: ours, and systemd, which waits for nobody."""

_SOME = re.compile(r"^some .*\btotal=([0-9]+)$", re.MULTILINE)


class Waits:
    """How long the host's work waited for its disks since it was last asked for."""

    def __init__(self, root: Path = ROOT) -> None:
        """Begin to watch. Raises HostError where the kernel does not tell."""
        self._root = root
        self._totals = _totals(root)

    def since_last(self) -> float:
        """Return the seconds that some task waited, all groups added up. Raises HostError.

        Where groups wait at the same time that is more than the time that passed. A group that
        appeared counts from its next look on; one that vanished does not count any more.
        """
        before, self._totals = self._totals, _totals(self._root)
        grown = (total - before.get(name, total) for name, total in self._totals.items())
        return sum(max(0, it) for it in grown) / 1e6


def _totals(root: Path) -> dict[str, int]:
    """Return the microseconds that each group of the host's work ever waited."""
    try:
        found = dict(_read(root))
    except OSError as error:
        raise HostError(f"cannot read {root}: {error.strerror}", hint=_UNIFIED) from error
    if not found:
        raise HostError(
            f"no slice in {root} tells how long it waits for disks (io.pressure)",
            hint="boot with psi=1 and cgroup v2",
        )
    return found


def _read(root: Path) -> Iterator[tuple[str, int]]:
    for group in root.iterdir():
        if group.name in _OURS or not group.is_dir():
            continue
        try:
            text = (group / "io.pressure").read_text()
        except OSError:  # it vanished, or its pressure is switched off
            continue
        if said := _SOME.search(text):
            yield group.name, int(said[1])


def limit(device: str, rate: float | None, root: Path = ROOT) -> None:
    """Let our slice read and write at most ``rate`` bytes a second each on ``device``.

    ``device`` is a whole disk's ``major:minor``; None takes the limit away. Raises HostError.
    """
    path = root / SLICE / "io.max"
    most = "max" if rate is None else str(max(1, int(rate)))
    try:
        # Not created where it is missing, which only a folder that stands for the kernel's would.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{device} rbps={most} wbps={most}".encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"cannot set {path} for {device}: {error.strerror}",
            hint=_UNIFIED if error.errno == errno.ENOENT else None,
        ) from error


_UNIFIED = "wanted: cgroup v2 at /sys/fs/cgroup, with the io controller"


def number(disk: Path) -> str | None:
    """Return the ``major:minor`` of ``disk``, or None for an image file. Raises HostError."""
    try:
        status = disk.stat()
    except OSError as error:
        raise HostError(f"cannot open {disk}: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        return None
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
