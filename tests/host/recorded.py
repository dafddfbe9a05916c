"""The real order in which other tools write a partition table, taken from strace.

Every call on the image is either understood or an error: a write that was overlooked would make a
tool look better, or worse, than it is. What is replayed are the tool's own bytes. Tools write
through the page cache; that a page of eight sectors is then written on a block device where one
sector was meant is, in their favour, not modelled.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.layout import Image, image_of
from update_agent.host.disk import Disk

_LINE = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)(.*)")
_EXIT = re.compile(r"\d+ +\+\+\+ exited with (\d+) \+\+\+")
_FD = re.compile(r"\d+<((?:\\x[0-9a-f]{2})+)>(?:, (.*))?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)", \d+(?:, (\d+))?')
_OFFSET = re.compile(r"-?\d+, SEEK_(?:SET|CUR|END)")
_OPEN = re.compile(r'AT_FDCWD<[^>]*>, "[^"]*", ([A-Z_|]+)(?:, 0\d+)?')

_HARMLESS_FLAGS = {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_NOFOLLOW", "O_CLOEXEC"}
_HARMLESS = {"ioctl", "newfstatat", "fstat", "close", "pread64", "flock", "fadvise64"}
"""Calls on the image that neither write nor move the place of the next write."""


class RecordingError(AssertionError):
    """The recording holds something that this module does not understand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Whole sectors that the tool wrote with one call."""

    lba: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """The tool called fsync, fdatasync or sync."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a tool did to a disk."""

    steps: tuple[Write | Flush, ...]
    after: Image
    exit_code: int

    def replay(self, disk: Disk) -> None:
        """Do the same to another disk, as fits ``power.Change``."""
        for step in self.steps:
            if isinstance(step, Write):
                disk.write(step.lba, step.data)
            else:
                disk.flush()


def record(commands: tuple[list[str], ...], start: Image, folder: Path) -> Recording:
    """Run the commands, which must be installed, on a file that holds ``start``.

    The file is each command's last argument. The first one that fails is the last to run.
    """
    disk, trace = folder / "disk", folder / "trace"
    disk.write_bytes(start.to_bytes())
    steps: list[Write | Flush] = []
    exit_code = 0
    for command in commands:
        done = subprocess.run(
            ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", "trace=%desc,sync",
             "-o", trace, *command, disk],
            check=False, capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        steps += _Reader(str(disk), start.sector_size).steps(trace.read_text("ascii"))
        exit_code = done.returncode
        if exit_code:
            break
    after = image_of(disk.read_bytes(), start.sector_size)
    return Recording(steps=tuple(steps), after=after, exit_code=exit_code)


class _Reader:
    """Reads a trace, with the place in the image that its descriptor stands at."""

    def __init__(self, path: str, sector_size: int) -> None:
        self._path = path
        self._sector_size = sector_size
        self._place = 0
        self._steps: list[Write | Flush] = []

    def steps(self, trace: str) -> tuple[Write | Flush, ...]:
        lines = trace.splitlines()
        if not lines or not _EXIT.fullmatch(lines[-1]):
            raise RecordingError(f"the trace does not end with an exit: {lines[-1:]}")
        for line in lines[:-1]:
            call = _LINE.fullmatch(line)
            if call is None:  # a second process, a signal, an unfinished call
                raise RecordingError(f"not a call: {line[:200]}")
            self._call(call[1], call[2], int(call[3]), call[4])
        return tuple(self._steps)

    def _call(self, name: str, arguments: str, result: int, annotation: str) -> None:
        if name == "sync":
            self._steps.append(Flush())
        elif name == "openat":
            self._open(arguments, annotation)
        elif (rest := self._on_the_image(arguments)) is not None:
            self._on_image(name, rest, result)
        elif _hex(self._path) in arguments:
            raise RecordingError(f"{name} names the image in a place not looked at")

    def _open(self, arguments: str, annotation: str) -> None:
        if annotation != f"<{_hex(self._path)}>":
            return
        opened = _OPEN.fullmatch(arguments)
        if opened is None or not set(opened[1].split("|")) <= _HARMLESS_FLAGS:
            raise RecordingError(f"the image was opened with unknown flags: {arguments[-80:]}")
        self._place = 0

    def _on_the_image(self, arguments: str) -> str | None:
        """Return the arguments after the descriptor if it is the image's."""
        fd = _FD.fullmatch(arguments)
        return fd[2] or "" if fd is not None and fd[1] == _hex(self._path) else None

    def _on_image(self, name: str, rest: str, result: int) -> None:
        match name:
            case "lseek" if _OFFSET.fullmatch(rest) and result >= 0:
                self._place = result
            case "read" if result >= 0:
                self._place += result
            case "write":
                self._write(rest, result, self._place)
                self._place += result
            case "pwrite64":
                self._write(rest, result, None)
            case "fsync" | "fdatasync" if result == 0:
                self._steps.append(Flush())
            case _ if name not in _HARMLESS:
                raise RecordingError(f"{name} on the image, which gave {result}")

    def _write(self, rest: str, result: int, place: int | None) -> None:
        found = _STRING.fullmatch(rest)
        if found is None or (place is None) is (found[2] is None):
            raise RecordingError(f"a write that cannot be read: {rest[:80]} … {rest[-20:]}")
        data = bytes.fromhex(found[1].replace(r"\x", ""))
        offset = int(found[2]) if place is None else place
        size = self._sector_size
        if len(data) != result or offset % size or len(data) % size:
            raise RecordingError(f"{len(data)} bytes at {offset} gave {result}: not whole sectors")
        self._steps.append(Write(lba=offset // size, data=data))


def _hex(path: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in path.encode())
