"""Files that are kept: whole or not at all, there after a power cut, and one at a time at work."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes ``path`` when all went well; durable on return.

    It is written beside ``path``, flushed, and renamed; on any error ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Let ``path`` hold ``data``, or what it held before; durable on return."""
    with replaced(path) as file:
        file.write(data)


def make_folders(path: Path) -> None:
    """Make the folder ``path`` and those above it, as far as missing; durable on return."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def locked(
    path: Path, waiting: Callable[[], None] | None = None, *, mode: int = 0o600
) -> IO[bytes]:
    """Return the file ``path``, made with its folder; who has it is alone until it is closed.

    Whoever comes second calls ``waiting`` and waits; without that it raises BlockingIOError.
    """
    make_folders(path.parent)
    lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode), "r+b", buffering=0)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        lock.close()
        raise
    return lock


def shared(folder: Path) -> int:
    """Return ``folder``, open: until it is closed nobody is ``alone`` in it. Who is, is waited for.

    The folder itself is the lock: there is no file that somebody else might have made.
    """
    opened = os.open(folder, _FOLDER)
    try:
        fcntl.flock(opened, fcntl.LOCK_SH)
    except BaseException:
        os.close(opened)
        raise
    return opened


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let nobody share ``folder`` meanwhile. Raises BlockingIOError while somebody does."""
    opened = os.open(folder, _FOLDER)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def flush_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable."""
    folder = os.open(path, _FOLDER)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
