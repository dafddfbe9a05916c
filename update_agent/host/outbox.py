"""Reports that wait to be posted: files in a folder, in their order, bounded, there after a crash.

    head.json       the queue's name and the last number that was given
    NUMBER.json     a report, 16 digits

A number is durable before the report that has it, so none is ever given twice. When too many wait,
the oldest go: the newest say how the host stands. What cannot be read is left out, and a folder
without a head begins another queue.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from update_agent.core import document
from update_agent.core.document import DocumentError, Id, Size
from update_agent.core.report import Report
from update_agent.errors import HostError
from update_agent.host import files

logger = logging.getLogger(__name__)

MAX_WAITING = 200
"""Reports; a few hundred kilobytes."""
_HEAD = "head.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """Which queue this is, and how far it is."""

    queue: Id
    sequence: Size = 0


class Outbox:
    """The reports in ``folder``. Used by one thread at a time."""

    def __init__(
        self,
        folder: Path,
        limit: int = MAX_WAITING,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._new_id = new_id
        self._head: _Head | None = None

    def put(self, report: Report) -> Report:
        """Keep ``report``, with a number; durable on return. Raises HostError."""
        head = self._begun()
        head = replace(head, sequence=head.sequence + 1)
        numbered = replace(report, queue=head.queue, sequence=head.sequence)
        try:
            files.replace(self._folder / _HEAD, document.encode(head))
            self._head = head
            files.replace(self._path(head.sequence), document.encode(numbered))
        except OSError as error:
            raise HostError(f"cannot keep a report: {error.strerror}") from error
        for path in self._paths()[: -self._limit]:
            self._remove(path)
        return numbered

    def waiting(self, limit: int) -> list[Report]:
        """Return the oldest reports, at most ``limit``. Raises HostError."""
        found: list[Report] = []
        for path in self._paths():
            if len(found) == limit:
                break
            found += self._read(path)
        return found

    def drop(self, upto: int) -> None:
        """Forget the reports up to the number ``upto``. Raises HostError."""
        for path in self._paths():
            if int(path.stem) <= upto:
                self._remove(path)

    def _begun(self) -> _Head:
        """Return the head, that of a new queue if there is none that can be read."""
        if self._head:
            return self._head
        path = self._folder / _HEAD
        try:
            files.make_folders(self._folder)
            self._head = document.decode(path.read_bytes(), _Head, str(path))
        except FileNotFoundError:
            self._head = self._another()
        except DocumentError as error:
            logger.warning("%s; beginning another queue of reports", error)
            self._head = self._another()
        except OSError as error:
            raise HostError(f"cannot use {self._folder}: {error.strerror}") from error
        return self._head

    def _another(self) -> _Head:
        """Return another queue, behind what is left of the one before it."""
        left = self._paths()
        return _Head(queue=self._new_id(), sequence=int(left[-1].stem) if left else 0)

    def _read(self, path: Path) -> Iterator[Report]:
        try:
            yield document.decode(path.read_bytes(), Report, str(path))
        except FileNotFoundError:
            return
        except DocumentError as error:
            logger.warning("%s; leaving this report out", error)
            self._remove(path)
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{sequence:016}.json"

    def _paths(self) -> list[Path]:
        return sorted(it for it in self._folder.glob("*.json") if it.stem.isdecimal())

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"cannot remove {path}: {error.strerror}") from error
