"""An installation, as a conversation: evidence, index, stored bytes; all hashed before it is used.

The writer leads. It asks for an index once the evidence names one, and for ranges of the blob once
a plan needs them. The delta payload made from what the booted slot holds comes first, the full one
when that cannot be carried out: the booted slot has rotted, or the payload is missing on the
servers, or garbled there, or not what it should be. What is right by then is kept.
"""

import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import Root, Targets

from update_agent.core import payload, trust, wire
from update_agent.core.payload import Batch, PayloadError, Totals
from update_agent.core.release import PayloadReference, Release
from update_agent.core.settings import Limits
from update_agent.core.slot_image import ImageError
from update_agent.core.trust import CHANNELS, RELEASES, Evidence
from update_agent.core.wire import (
    GIFTS,
    Distrust,
    GiveIndex,
    Install,
    Installed,
    Message,
    Missing,
    MissingError,
    Piece,
    Planned,
    Progress,
    Stored,
    Verified,
    Want,
    WantIndex,
    WireError,
)
from update_agent.errors import ReleaseError
from update_agent.host import cgroup, install, slot
from update_agent.host.device import Device, Front
from update_agent.host.governor import Governor, governed
from update_agent.host.wire import Connection, GoneError
from update_agent.writer import rules
from update_agent.writer.slots import HostSlots, Pair

GIFT_SECONDS = 900.0
"""How long a caller may take for a range of the blob: networks fail, and come back."""

SHOWN_SECONDS = 0.25
"""Between two messages about progress."""

_MAX_VALUES = 16_000
_BYTES_PER_VALUE = 16
"""A piece of evidence has as many commas and brackets as this, and one for so many bytes more.
Signed metadata has fewer; what has more is made to fill our memory before anything is verified."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the writer goes by, whoever asks."""

    slots: HostSlots
    trusted: Callable[[], bytes]
    """Reads the root that came with the system. Raises HostError."""
    clock: Callable[[], datetime]
    limits: Callable[[], Limits]
    """The host's, from files that only root writes; asked for by each installation."""
    cgroups: Path = cgroup.ROOT
    gift_seconds: float = GIFT_SECONDS


class Installation:
    """What one ``Install`` leads to."""

    def __init__(self, terms: Terms, request: Install, connection: Connection) -> None:
        self._terms = terms
        self._request = request
        self._connection = connection
        self._log = _Attempt(logger, {"attempt": request.attempt})

    def carry_out(self) -> Installed:
        """Put the release into the other slot, verified. Raises ReleaseError, HostError."""
        request, slots = self._request, self._terms.slots
        self._log.info("install %s %s", request.product, request.version)
        rules.want_product(slots.host, request.product)
        slots.pair()
        proven = slots.memory.proven(
            self._terms.trusted(),
            self._evidence(),
            product=request.product,
            version=request.version,
            channel_name=request.channel,
            now=self._terms.clock(),
        )
        rules.want_admissible(slots.host, proven)
        self._log.info(
            "%s is proven by root %s and releases %s",
            request.version, proven.root_version, proven.releases_version,
        )  # fmt: skip
        with (
            slots.changing(),
            governed(slots.host.disk, self._terms.limits(), self._terms.cgroups) as governor,
            slots.opened_other(proven.release.image_size) as (pair, device),
            slots.open(pair.booted) as booted,
        ):
            given_up = _GivenUp(slots, pair, self._log)
            done, reference = self._write(
                _Task(
                    release=proven.release,
                    target=_Announced(governor.paced(device), given_up.want),
                    booted=governor.paced(booted),
                    governor=governor,
                )
            )
            given_up.want()  # though nothing had to be written: it is armed by who may arm it
            verified = self._verified(proven.release, pair)
            slots.memory.remember(verified)
        self._log.info("slot %s holds %s, verified", verified.slot, verified.version)
        return _installed(verified, reference, done, proven.release)

    def _verified(self, release: Release, pair: Pair) -> Verified:
        return Verified(
            slot=pair.other.name,
            product=release.product,
            version=release.version,
            root_hash=release.root_hash,
            image_size=release.image_size,
            attempt=self._request.attempt,
            time=max(self._terms.clock(), self._terms.slots.memory.time),
        )

    # Evidence ------------------------------------------------------------------------------------

    def _evidence(self) -> Evidence:
        """Take the pieces in their order, each within its bounds."""
        pieces: dict[str, list[bytes]] = {}
        roots_left = wire.max_piece(Root.type)
        for name in self._request.pieces:
            most = min(wire.max_piece(name), roots_left) if name == Root.type else None
            data = self._piece(name, most)
            if name == Root.type:
                roots_left -= len(data)
            pieces.setdefault(name, []).append(data)
        return Evidence(
            roots=pieces.get(Root.type, ()),
            targets=pieces[Targets.type][0],
            releases=pieces[RELEASES][0],
            release=pieces["release"][0],
            channels=pieces[CHANNELS][0] if CHANNELS in pieces else None,
            channel=pieces["channel"][0] if "channel" in pieces else None,
        )

    def _piece(self, name: str, most: int | None) -> bytes:
        def admit(message: Message) -> int:
            if message != Piece(name=name):
                raise WireError(f"{message} comes, wanted the evidence {name!r}")
            return wire.max_piece(name) if most is None else most

        _, data = self._connection.receive(GIFTS, admit, silence=self._terms.gift_seconds)
        values = sum(map(data.count, (b",", b"[", b"{")))
        if values > _MAX_VALUES + len(data) // _BYTES_PER_VALUE:
            raise ReleaseError(f"{name} has {values} values in {len(data)} bytes, which is odd")
        return bytes(data)

    # Writing -------------------------------------------------------------------------------------

    def _write(self, task: "_Task") -> tuple[install.Done, PayloadReference]:
        *deltas, full = _payloads(task.release, task.booted)
        for reference in deltas:
            try:
                done = self._write_payload(task, reference)
            except (PayloadError, ImageError, MissingError) as error:
                self._log.warning("the delta payload cannot be used: %s", error)
            else:
                return done, reference
        return self._write_payload(task, full), full

    def _write_payload(self, task: "_Task", reference: PayloadReference) -> install.Done:
        release = task.release
        index = payload.decode(self._index(reference))
        if index.root_hash.hex() != release.root_hash or index.image_size != release.image_size:
            raise ImageError(
                f"the index makes an image of {index.image_size} bytes with the root hash"
                f" {index.root_hash.hex()}, the release has {release.image_size} and"
                f" {release.root_hash}"
            )
        progress = _Progress(self._connection, task, index.image_size)
        source = install.Source(
            name=reference.index_sha256,
            index=index,
            blob=_Blob(self._connection, self._terms.gift_seconds, self._log),
        )
        return install.install(
            _Counted(task.target, progress.read_target),
            [source],
            booted=_Counted(task.booted, progress.read_booted),
            booted_index=None,
            progress=progress,
        )

    def _index(self, reference: PayloadReference) -> bytes:
        self._connection.send(WantIndex(sha256=reference.index_sha256))

        def admit(message: Message) -> int:
            if isinstance(message, Missing):
                return 0
            if not isinstance(message, GiveIndex):
                raise WireError(f"{message} comes, wanted the index")
            return reference.index_size

        message, data = self._connection.receive(GIFTS, admit, silence=self._terms.gift_seconds)
        _want_had(message)
        found = bytes(data)
        trust.index(found, reference)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A release, and the slots that it is made from and written to, both at the host's pace."""

    release: Release
    target: Device
    booted: Device
    governor: Governor


class _GivenUp:
    """The other slot, once it is retired and forgotten of: before its first byte is written.

    Until then what it holds is what the host can go back to, and a payload that cannot be had, or
    is none, does not cost it.
    """

    def __init__(self, slots: HostSlots, pair: Pair, log: "_Attempt") -> None:
        self._slots = slots
        self._name = pair.other.name
        self._log = log
        self._done = False

    def want(self) -> None:
        """Return when it is so, durably. Raises HostError."""
        if self._done:
            return
        self._slots.give_up_other()
        self._log.info("slot %s is retired", self._name)
        self._done = True


class _Announced(Front):
    """A device that calls ``before`` each write: the first one is SlotWriter's, of the marker."""

    def __init__(self, device: Device, before: Callable[[], None]) -> None:
        super().__init__(device)
        self._before = before

    def write(self, buffer: memoryview, offset: int) -> None:
        """See ``Device``."""
        self._before()
        super().write(buffer, offset)


def _payloads(release: Release, booted: Device) -> Iterator[PayloadReference]:
    """Yield the payloads that can be made here, the full one last."""
    try:
        root_hash = slot.root_hash(booted).hex()
    except (ImageError, OSError):
        root_hash = None
    for it in release.payloads:
        if it.source and it.source.root_hash == root_hash:
            yield it
    yield release.full


def _installed(
    verified: Verified, reference: PayloadReference, done: install.Done, release: Release
) -> Installed:
    return Installed(
        verified=verified,
        payload=reference.index_sha256,
        fetched=done.totals.fetch,
        saved=max(0, release.full.stored_size - done.totals.fetch),
        written=done.written,
        milliseconds={it: round(took * 1000) for it, took in done.seconds_by_step.items()},
        peak_memory=done.peak_memory,
    )


class _Attempt(logging.LoggerAdapter[logging.Logger]):
    """Begins each line with the attempt that it belongs to."""

    def process(self, msg: str, kwargs: dict[str, object]) -> tuple[str, dict[str, object]]:  # type: ignore[override]
        return f"[{(self.extra or {}).get('attempt')}] {msg}", kwargs


def _want_had(message: Message) -> None:
    """Raise MissingError when the caller says that the payload cannot be had."""
    if isinstance(message, Missing):
        raise MissingError(
            f"the payload cannot be had: {message.why}",
            hint="the servers have the release, and its payload not, or not wholly",
        )


class _Blob:
    """Stored bytes that the caller gives, as ``install.Blob``."""

    def __init__(self, connection: Connection, seconds: float, log: _Attempt) -> None:
        self._connection = connection
        self._seconds = seconds
        self._log = log

    def fetch(self, spans: Sequence[Batch], deliver: Callable[[Batch, bytearray], None]) -> None:
        """Name all ranges, and take them in any order."""
        wanted: dict[tuple[int, int], list[Batch]] = {}
        for span in spans:
            wanted.setdefault((span.blob_offset, span.blob_length), []).append(span)
        for ranges, more in _in_parts(wanted):
            self._connection.send(Want(ranges=ranges, more=more))
        while wanted:
            which, data = self._one_of(wanted)
            for span in wanted.pop(which):
                deliver(span, data)

    def _one_of(self, wanted: Container[tuple[int, int]]) -> tuple[tuple[int, int], bytearray]:
        """Take the next range; what is not wanted is refused unread."""

        def admit(message: Message) -> int:
            if isinstance(message, Missing):
                return 0
            if not isinstance(message, Stored):
                raise WireError(f"{message} comes, wanted stored bytes")
            if (message.offset, message.length) not in wanted:
                raise WireError(f"{message} comes, which is not wanted, or not any more")
            return message.length

        message, data = self._connection.receive(GIFTS, admit, silence=self._seconds)
        _want_had(message)
        if not isinstance(message, Stored) or len(data) != message.length:
            raise WireError(f"{message} comes with {len(data)} bytes")
        return (message.offset, message.length), data

    def distrust(self, spans: Sequence[Batch]) -> None:
        """Tell the caller which ranges were wrong."""
        ranges = {(it.blob_offset, it.blob_length) for it in spans if it.blob_length}
        self._log.warning("%s ranges came with wrong bytes, and are asked for again", len(ranges))
        for part, more in _in_parts(sorted(ranges)):
            self._connection.send(Distrust(ranges=part, more=more))


def _in_parts(
    ranges: Sequence[tuple[int, int]] | dict[tuple[int, int], list[Batch]],
) -> Iterator[tuple[tuple[tuple[int, int], ...], bool]]:
    """Yield ranges in as many as a message may have, and whether more follow."""
    found = list(ranges)
    for at in range(0, len(found), wire.MAX_RANGES):
        yield tuple(found[at : at + wire.MAX_RANGES]), at + wire.MAX_RANGES < len(found)


# Progress ----------------------------------------------------------------------------------------


class _Counted(Front):
    """A device that tells how many bytes were read from it."""

    def __init__(self, device: Device, read: Callable[[int], None]) -> None:
        super().__init__(device)
        self._read = read

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """See ``Device``."""
        got = super().read_into(buffer, offset)
        self._read(got)
        return got


class _Progress:
    """Tells the caller how far the work is, now and then; and sees when he has left.

    Called by all threads that work. What it raises ends the work.
    """

    def __init__(self, connection: Connection, task: _Task, image_size: int) -> None:
        self._connection = connection
        self._governor = task.governor
        self._full = task.release.full
        self._lock = threading.Lock()
        self._now = Progress(step="look", done=0, size=image_size)
        self._shown = 0.0

    def planned(self, source: install.Source, totals: Totals) -> None:
        """See ``install.Progress``."""
        del source
        self._connection.send(
            Planned(
                fetch=totals.fetch,
                write=totals.write,
                copy=totals.copy,
                keep=totals.keep,
                saved=max(0, self._full.stored_size - totals.fetch),
            )
        )
        self._now = Progress(step="write", done=0, size=totals.write)

    def show(self, step: str, done: int, size: int) -> None:
        """See ``install.Progress``."""
        self._to(Progress(step=step, done=done, size=size))

    def read_target(self, size: int) -> None:
        """Take note of bytes read from the other slot: before the plan, and after the writing."""
        now = self._now
        if now.step == "write":
            now = Progress(step="read back", done=0, size=now.size)
        self._to(replace(now, done=now.done + size, size=max(now.size, now.done + size)))

    def read_booted(self, size: int) -> None:
        """Take note of bytes read from the booted slot; while writing these are copies."""
        now = self._now
        if now.step == "look":
            self._to(replace(now, done=now.done + size, size=max(now.size, now.done + size)))

    def _to(self, now: Progress) -> None:
        with self._lock:
            self._now = now
            clock = time.monotonic()
            if clock < self._shown + SHOWN_SECONDS:
                return
            self._shown = clock
        if self._connection.has_ended():
            raise GoneError("the caller left")
        self._connection.send(replace(now, throttled_by=self._governor.throttled_by))
