"""The journal of what was ever trusted: a file that only grows, one line for each step.

The cache beside it can always be fetched again, this file can't. A line is a CRC-32 and the whole
state as JSON; the last whole line counts, so a torn one costs a step and no more. A file without
any whole line was damaged, and nothing is trusted until somebody looked.
"""

import os
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from update_agent.core import document
from update_agent.core.trust import HighWater
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files

_LINES = 200
"""After which the file begins anew with its last line."""


class Journal:
    """The journal at ``path``, read once. Raises HostError when it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self.high = self._read()

    def append(self, high: HighWater) -> None:
        """Remember ``high``; durable on return. Raises HostError, and remembers nothing then."""
        if high == self.high:
            return
        try:
            if 0 < self._lines < _LINES:
                self._append(_line(high))
            else:
                files.replace(self._path, _line(high))
                self._lines = 0
        except OSError as error:
            raise HostError(
                f"cannot write {self._path}: {error.strerror}",
                hint="is the disk full, or read-only? nothing that was trusted before is lost",
            ) from error
        self.high = high
        self._lines += 1

    def _append(self, line: bytes) -> None:
        with self._path.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            line = line if file.read(1) == b"\n" else b"\n" + line
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # what may not be on the disk must not be read back
                    file.truncate(end)
                raise

    def _read(self) -> HighWater:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return HighWater()
        except OSError as error:
            raise HostError(f"cannot read {self._path}: {error.strerror}") from error
        self._lines = len(lines)
        for line in reversed(lines):
            if high := _high(line):
                return high
        raise HostError(
            f"{self._path}, what this host remembers of all it trusted, is damaged",
            hint="look after the disk; without the file, this host trusts again whatever the"
            " trusted root and its running version allow",
        )


def _line(high: HighWater) -> bytes:
    text = document.encode(high).replace(b"\n", b"")
    return b"%08x %s\n" % (crc32(text), text)


def _high(line: bytes) -> HighWater | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    try:
        return document.decode(text, HighWater, "journal")
    except ReleaseError:
        return None
