"""What the writer remembers: the highest versions it ever trusted, and what it verified last.

Its own, in a folder that only root may enter: no daemon can make it forget. The journal is written
before anything is done on its word. The record of what was verified is there only while it is true:
it is removed, durably, before the first byte of the next release is written.

The journal is read when something is to be trusted, and not before: a damaged one lets nothing be
installed, and takes neither a confirmation nor a way back from the host.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Root, Targets

from update_agent.core import document, trust
from update_agent.core.trust import CHANNELS, RELEASES, Evidence, Proven
from update_agent.core.version import Version
from update_agent.core.wire import Verified
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files
from update_agent.host.journal import Journal

logger = logging.getLogger(__name__)

_AHEAD = timedelta(days=30)
"""How far a release may have been made ahead of this host's clock, and be believed rather than it.
Somebody whose own clock was a year ahead would end all updates, until that year is over."""


class Memory:
    """What stands in ``folder``. Use it in ``opened``: one writer at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        self._known: Journal | None = None
        self._record = folder / "verified.json"
        self._lock = threading.Lock()

    @property
    def time(self) -> datetime:
        """The newest time that was ever certain. Raises HostError."""
        return self._journal().high.time

    def proven(
        self,
        trusted: bytes,
        evidence: Evidence,
        *,
        product: str,
        version: Version,
        channel_name: str | None,
        now: datetime,
    ) -> Proven:
        """Return what ``evidence`` proves, unless something newer was trusted before.

        It is remembered, durably, on return. Raises UntrustedError, ExpiredError, RollbackError,
        DocumentError, IdentityError, HostError.
        """
        with self._lock:
            now = max(now, self.time)
            found = trust.prove(
                trusted, evidence,
                product=product, version=version, now=now, channel_name=channel_name,
            )  # fmt: skip
            root = trust.root_at_the_end(trusted, evidence.roots)
            data = {
                Root.type: [trusted, *evidence.roots][-1],
                Targets.type: evidence.targets,
                RELEASES: evidence.releases,
            }
            if found.channel and evidence.channels:
                data[CHANNELS] = evidence.channels
            marks = {name: trust.mark(root, name, it) for name, it in data.items()}
            signed = found.release.published
            time = max(now, signed) if signed < now + _AHEAD else now
            journal = self._journal()
            journal.append(journal.high.raised(marks, time))
        return found

    def verified(self) -> Verified | None:
        """Return what was verified last and not overwritten since."""
        try:
            return document.decode(self._record.read_bytes(), Verified, str(self._record))
        except FileNotFoundError:
            return None
        except (OSError, ReleaseError) as error:
            logger.warning("what was verified last is not known: %s", error)
            return None

    def remember(self, verified: Verified) -> None:
        """Remember that the slot was verified; durable on return. Raises HostError."""
        try:
            files.replace(self._record, document.encode(verified))
        except OSError as error:
            raise HostError(f"cannot write {self._record}: {error.strerror}") from error

    def forget(self) -> None:
        """Remember of no slot that it was verified; durable on return. Raises HostError."""
        try:
            self._record.unlink(missing_ok=True)
            files.flush_folder(self._record.parent)
        except OSError as error:
            raise HostError(f"cannot remove {self._record}: {error.strerror}") from error

    def _journal(self) -> Journal:
        """Return the journal, read by whoever needs it first; who cannot is told why."""
        if self._known is None:
            self._known = Journal(self._path)
        return self._known


@contextmanager
def opened(folder: Path) -> Iterator[Memory]:
    """Yield the memory in ``folder``, which is made, for one writer at a time. Raises HostError."""
    try:
        lock = files.locked(folder / "lock")
    except BlockingIOError as error:
        raise HostError(f"another writer uses {folder}", hint="end it first") from error
    except OSError as error:
        raise HostError(
            f"cannot use {folder}: {error.strerror}", hint="run it as root, or name a folder"
        ) from error
    with lock:
        yield Memory(folder)
