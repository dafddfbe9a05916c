"""The folder in which builds keep what takes long to make: whole or not there, and made once.

That holds over a power cut: what was made is on the disk before it gets its name.
Builds that run at once on one machine wait for one another, and take what is there by then.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from update_agent.errors import HostError
from update_agent.host import files
from update_agent.publish.progress import Tell

CACHE = Path("/var/cache/update-agent")


def kept(folder: Path, make: Callable[[Path], None], tell: Tell, doing: str) -> Path:
    """Return ``folder``; if it isn't there, ``make`` it, and say that we are ``doing`` that.

    Raises HostError.
    """
    if folder.is_dir():
        return folder
    try:
        with alone(folder.parent, tell):
            if not folder.is_dir():
                tell(doing)
                _make(folder, make)
    except OSError as error:
        raise HostError(f"cannot make {folder}: {error.strerror}") from error
    return folder


@contextmanager
def alone(cache: Path, tell: Tell) -> Iterator[None]:
    """Keep other builds out of ``cache`` meanwhile. Raises HostError."""
    try:
        lock = files.locked(
            cache / "lock", lambda: tell("waiting for another build on this machine")
        )
    except OSError as error:
        raise HostError(f"cannot write to {cache}: {error.strerror}") from error
    with lock:
        yield


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        made = scratch / "root"
        make(made)
        os.sync()  # a tree of other programs' files; one by one they would take minutes
        made.rename(folder)
        files.flush_folder(folder.parent)
    finally:
        shutil.rmtree(scratch)
