"""Where the record is kept: one file, replaced whole; of a damaged one a copy is kept aside.

One daemon at a time: whoever holds the lock on the folder. What cannot be written is an error for
whoever changes the record, and leaves both the file and the daemon's memory as they were.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from update_agent.core import document, record
from update_agent.core.record import Record
from update_agent.errors import HostError
from update_agent.host import files, paths

logger = logging.getLogger(__name__)

_ASIDE = "record.damaged.json"


class FileStore:
    """The record in ``folder``, ``ports.Store``."""

    def __init__(self, folder: Path = paths.FOLDER) -> None:
        self._folder = folder
        self._file = folder / paths.RECORD

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other daemons out. Raises HostError when one is there first."""
        try:
            lock = files.locked(self._folder / "lock")
        except BlockingIOError as error:
            raise HostError(
                f"another update-agentd uses {self._folder}",
                hint="systemctl status update-agentd",
            ) from error
        except OSError as error:
            raise HostError(f"cannot use {self._folder}: {error.strerror}") from error
        with lock:
            yield

    def load(self, now: datetime) -> Record:
        """Return what was kept. Raises HostError when the disk cannot be read."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return record.fresh(now)
        except OSError as error:
            raise HostError(f"cannot read {self._file}: {error.strerror}") from error
        found, damage = record.decode(data, now)
        if damage:
            logger.error("%s; going on with what is left of it", damage)
            self._keep_aside(data, found)
        return found

    def save(self, found: Record) -> None:
        """Keep ``found``; durable on return. Raises HostError."""
        try:
            files.replace(self._file, document.encode(found))
        except OSError as error:
            raise HostError(f"cannot write {self._file}: {error.strerror}") from error

    def _keep_aside(self, data: bytes, left: Record) -> None:
        """Keep what was found as it is, and then what is ``left`` of it for the next start."""
        aside = self._folder / _ASIDE
        try:
            files.replace(aside, data)
            self.save(left)
        except OSError as error:
            logger.warning("cannot keep a copy in %s: %s", aside, error.strerror)
        except HostError as error:
            logger.warning("%s; see %s", error, aside)
        else:
            logger.info("what was found is in %s", aside)
