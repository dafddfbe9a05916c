"""The writer, as those see it who may ask it: the daemon, and root.

Gives the writer what it asks for and tells what it says; knows nothing of disks. What the writer
refuses is raised here as the error that it was there.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from update_agent.core import document, trust, wire
from update_agent.core.payload import GarbledError, PayloadError, SourceError
from update_agent.core.release import IdentityError, PayloadReference, Release
from update_agent.core.slot import SlotStateError
from update_agent.core.slot_image import ImageError
from update_agent.core.trust import CHANNELS, RELEASES, Evidence
from update_agent.core.wire import (
    ANSWERS,
    Arm,
    AskState,
    BusyError,
    Confirm,
    Disarm,
    Distrust,
    Failed,
    GiveIndex,
    Install,
    Installed,
    Message,
    Missing,
    MissingError,
    Piece,
    Planned,
    Progress,
    Range,
    RefusedError,
    Rollback,
    State,
    Stored,
    UnverifiedError,
    Want,
    WantIndex,
    WireError,
)
from update_agent.errors import HostError, ReleaseError, UpdateAgentError
from update_agent.host.wire import Connection, GoneError, connect

PATH = Path("/run/update-agent-writer.socket")

ANSWER_SECONDS = 120.0
"""For an answer to a short request: flags are written, and read back, on a disk that is busy."""

WORK_SECONDS = 3600.0
"""Between two signs of an installation; each step but the last shows its progress."""

A = TypeVar("A")


_ERRORS: dict[str, type[UpdateAgentError]] = {
    it.__name__: it
    for it in (
        BusyError, UnverifiedError, RefusedError, SlotStateError, WireError, GoneError,
        document.DocumentError, trust.UntrustedError, trust.ExpiredError, trust.RollbackError,
        IdentityError, PayloadError, SourceError, GarbledError, ImageError,
    )
}  # fmt: skip
"""What the daemon may want to tell apart."""


class Ranges(Protocol):
    """A payload's blob, out of reach of the writer. ``host/download.py`` is one."""

    def fetch(self, spans: Sequence[Range], deliver: Callable[[Range, bytearray], None], /) -> None:
        """Call ``deliver`` once for each range, in any order and from any thread.

        Raises MissingError, to let another payload be tried; after that, no more is delivered.
        """
        ...

    def distrust(self, spans: Sequence[Range], /) -> None:
        """Take these ranges from elsewhere the next time: their bytes were wrong."""
        ...


class Payloads(Protocol):
    """Where the payloads of a release come from."""

    def index(self, payload: PayloadReference) -> bytes:
        """Return the index. Raises MissingError, to let another payload be tried."""
        ...

    def blob(self, payload: PayloadReference) -> Ranges:
        """Return the blob."""
        ...


class Watcher(Protocol):
    """Who wants to know how far an installation is."""

    def planned(self, plan: Planned) -> None:
        """Take note of what is going to be done."""
        ...

    def show(self, progress: Progress) -> None:
        """Take note of how far it is. Raise, to end the installation."""
        ...


class Writer:
    """A conversation with the writer at ``path``. Raises HostError when nobody is there.

    Who waits for an answer does so for ``patience`` seconds.
    """

    def __init__(self, path: Path = PATH, *, patience: float = ANSWER_SECONDS) -> None:
        self._connection = Connection(connect(path))
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._connection.close()

    def cancel(self) -> None:
        """Cut an installation in another thread short; what was written is kept."""
        self._connection.hang_up()

    def state(self) -> State:
        """Return how the slots stand. Raises HostError."""
        return self._ask(AskState())

    def arm(self) -> State:
        """Let the other slot boot next, on trial. Raises UnverifiedError, HostError."""
        return self._ask(Arm())

    def disarm(self) -> State:
        """Let the booted slot boot next: undoes ``arm`` and ``rollback``. Raises HostError."""
        return self._ask(Disarm())

    def confirm(self) -> State:
        """Let the booted slot boot without a try from now on. Raises HostError."""
        return self._ask(Confirm())

    def rollback(self) -> State:
        """Let the other slot, which was confirmed once, boot next. Raises HostError."""
        return self._ask(Rollback())

    def install(
        self,
        release: Release,
        evidence: Evidence,
        payloads: Payloads,
        *,
        attempt: str,
        channel: str | None = None,
        watcher: Watcher,
    ) -> Installed:
        """Put ``release`` into the other slot, verified.

        ``evidence`` proves it, and what ``channel`` says when that is named. Afterwards, or after
        an error, the conversation is over. Raises what the writer and ``payloads`` raise.
        """
        request = Install(
            product=release.product,
            version=release.version,
            channel=channel,
            roots=len(evidence.roots),
            attempt=attempt,
        )
        with self:
            talk = _Talk(self._connection, release, payloads, watcher)
            talk.say(request)
            for name, data in _pieces(request, evidence):
                talk.say(Piece(name=name), data)
            return talk.until_installed()

    def _ask(self, request: Message) -> State:
        _Sender(self._connection).say(request)
        answer, _ = self._connection.receive(ANSWERS, silence=self._patience)
        _raise_failed(answer)
        return _expected(answer, State)


def _pieces(request: Install, evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    roots = iter(evidence.roots)
    known = {
        "targets": evidence.targets,
        RELEASES: evidence.releases,
        "release": evidence.release,
        CHANNELS: evidence.channels,
        "channel": evidence.channel,
    }
    for name in request.pieces:
        data = next(roots) if name == "root" else known[name]
        if data is None:
            raise ValueError(f"the evidence has no {name}")
        if len(data) > wire.max_piece(name):
            raise ReleaseError(
                f"{name} has {len(data)} bytes, the writer takes at most {wire.max_piece(name)}",
                hint="withdraw releases that nobody installs any more",
            )
        yield name, data


class _Sender:
    """Says things; when the writer has hung up, what it said before that is raised."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, message: Message, data: bytes | bytearray = b"") -> None:
        try:
            self._connection.send(message, data)
        except GoneError as gone:
            self._last_words(gone)

    def _last_words(self, gone: GoneError) -> None:
        while True:
            try:
                answer, _ = self._connection.receive(ANSWERS, silence=0.0)
            except (GoneError, WireError):
                raise gone from None
            _raise_failed(answer)


class _Talk(_Sender):
    """An installation, from the side of those who give."""

    def __init__(
        self,
        connection: Connection,
        release: Release,
        payloads: Payloads,
        watcher: Watcher,
    ) -> None:
        super().__init__(connection)
        self._references = {it.index_sha256: it for it in release.payloads}
        self._payloads = payloads
        self._watcher = watcher
        self._blob: Ranges | None = None
        self._lock = threading.Lock()

    def until_installed(self) -> Installed:
        """Give what is asked for, until all is done."""
        while True:
            answer = self._hear()
            match answer:
                case Installed():
                    return answer
                case WantIndex():
                    self._give_index(answer.sha256)
                case Want():
                    self._give(self._whole(answer))
                case Distrust():
                    self._the_blob().distrust(self._whole(answer))
                case _:
                    self._note(answer)

    def _give_index(self, sha256: str) -> None:
        reference = self._references.get(sha256)
        if reference is None:
            raise WireError(f"the writer wants index {sha256}, which the release does not name")
        self._blob = self._payloads.blob(reference)
        try:
            index = self._payloads.index(reference)
        except MissingError as error:
            self._say_missing(error)
        else:
            self.say(GiveIndex(), index)

    def _say_missing(self, error: MissingError) -> None:
        """Leave it to the writer whether there is another payload to try."""
        self.say(Missing(why=wire.sentence(str(error))))

    def _hear(self) -> Message:
        answer, _ = self._connection.receive(ANSWERS, silence=WORK_SECONDS)
        _raise_failed(answer)
        return answer

    def _whole(self, first: Want | Distrust) -> list[Range]:
        """Return all ranges of what may be said in several messages."""
        ranges, more = first.each(), first.more
        while more:
            following = _expected(self._hear(), type(first))
            ranges, more = ranges + following.each(), following.more
        return ranges

    def _give(self, ranges: Sequence[Range]) -> None:
        """Give ranges as they come, hearing in between what the writer says to that."""

        def deliver(it: Range, data: bytearray) -> None:
            with self._lock:
                while self._connection.has_something():
                    self._note(self._hear())
                self.say(Stored(offset=it.blob_offset, length=it.blob_length), data)

        try:
            self._the_blob().fetch(ranges, deliver)
        except MissingError as error:
            self._say_missing(error)

    def _the_blob(self) -> Ranges:
        if self._blob is None:
            raise WireError("the writer wants ranges before it wanted an index")
        return self._blob

    def _note(self, answer: Message) -> None:
        match answer:
            case Planned():
                self._watcher.planned(answer)
            case Progress():
                self._watcher.show(answer)
            case _:
                raise WireError(f"the writer says {type(answer).__name__} out of turn")


def _expected(answer: Message, kind: type[A]) -> A:
    if not isinstance(answer, kind):
        raise WireError(f"the writer says {type(answer).__name__}, wanted {kind.__name__}")
    return answer


def _raise_failed(answer: Message) -> None:
    """Raise what the writer told of its failure, as what it was there."""
    if not isinstance(answer, Failed):
        return
    family: type[UpdateAgentError] = ReleaseError if answer.family == "release" else HostError
    raise _ERRORS.get(answer.kind, family)(answer.message, hint=answer.hint)
