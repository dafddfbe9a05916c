"""Files that are kept: whole or not at all, and there after a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes ``path`` when all went well; durable on return.

    It is written beside ``path``, flushed, and renamed; on any error ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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


def flush_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
