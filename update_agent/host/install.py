"""How a payload comes into a slot: look, plan, take what is needed, write, verify.

The writer and the hand tool, ``update-agent-image apply``, both work like this, and so does
``update-publish`` where it needs an old image; where stored bytes come from is a ``Blob``. No boot
flag is flipped and no signature is checked here: whoever calls has done that, or says what it was
told to trust.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from update_agent.core import payload, slot_image
from update_agent.core.payload import (
    Batch,
    GarbledError,
    Index,
    PayloadError,
    Plan,
    SourceError,
    Totals,
)
from update_agent.errors import HostError, ReleaseError
from update_agent.host import slot
from update_agent.host.device import Device
from update_agent.host.slot import SlotWriter, Workers

WORKERS = 4
"""Threads at most: more cores are not the update's to take, and each thread needs memory. There is
one more than cores, for one always waits for the disk."""

ROUNDS = 3
"""How often a batch is tried before the payload, or the disk, is given up."""


logger = logging.getLogger(__name__)


class Blob(Protocol):
    """Where stored bytes come from."""

    def fetch(self, spans: Sequence[Batch], deliver: Callable[[Batch, bytearray], None]) -> None:
        """Call ``deliver`` once for each span, in any order and from any thread."""
        ...

    def distrust(self, spans: Sequence[Batch]) -> None:
        """Take ``spans`` from elsewhere, if there is an elsewhere: their bytes were wrong."""
        ...


class FileBlob:
    """A blob in a file; ``took`` is told how many bytes were read."""

    def __init__(
        self, device: Device, index: Index, took: Callable[[int], None] = lambda _: None
    ) -> None:
        self._device = device
        self._took = took
        if device.size != index.blob_size:
            raise ReleaseError(
                f"{device.path} has {device.size} bytes, its index says {index.blob_size}",
                hint="index and blob don't belong together, or are not wholly copied",
            )

    def fetch(self, spans: Sequence[Batch], deliver: Callable[[Batch, bytearray], None]) -> None:
        """Call ``deliver`` for each span, in order."""
        for span in spans:
            try:
                data = self._device.read(span.blob_offset, span.blob_length)
            except OSError as error:
                raise HostError(f"cannot read {self._device.path}: {error.strerror}") from error
            self._took(len(data))
            deliver(span, bytearray(data))

    def distrust(self, spans: Sequence[Batch]) -> None:
        """There is no elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A payload's index, and a way to its blob."""

    name: str
    index: Index
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was done, in bytes and seconds."""

    payload: str
    totals: Totals
    saved: int
    """Stored bytes that a host without anything would have fetched, and this one did not."""
    written: int
    seconds: float
    seconds_by_step: dict[str, float]
    peak_memory: int


class Progress(Protocol):
    """Who wants to know how far the work is."""

    def planned(self, source: Source, totals: Totals) -> None:
        """Take note of what is going to be done, before the first byte of it."""
        ...

    def show(self, step: str, done: int, size: int) -> None:
        """Take note that ``done`` of ``size`` bytes of a step are done."""
        ...


@dataclass
class Steps:
    """Measures the steps of the work and tells of them."""

    progress: Progress
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def done(self, step: str) -> None:
        """Account the time since the last step to ``step``."""
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now


def install(
    target: Device,
    sources: Sequence[Source],
    *,
    booted: Device | None,
    booted_index: Index | None,
    progress: Progress,
) -> Done:
    """Put the first of ``sources`` into ``target`` that can be made from what ``booted`` holds.

    A payload gives way to the next one when the booted slot is not, or no longer, what it was made
    from, when its bytes stay wrong, and when it does not make the image it should; what is right by
    then is kept. Raises ReleaseError, HostError.
    """
    steps = Steps(progress)
    with Workers(min(WORKERS, slot.cores() + 1)) as workers:
        for number, source in enumerate(sources):
            try:
                plan = _look(target, source.index, booted, booted_index, workers)
                steps.done("look")
                progress.planned(source, plan.totals())
                plan, written = _write(target, plan, source.blob, booted, workers, steps)
            except (PayloadError, slot_image.ImageError) as error:
                if number + 1 == len(sources):
                    raise
                logger.warning("the payload %s cannot be used: %s", source.name, error)
            else:
                totals = plan.totals()
                return Done(
                    payload=source.name,
                    totals=totals,
                    saved=max(it.index.stored_size for it in sources) - totals.fetch,
                    written=written,
                    seconds=time.monotonic() - steps.began,
                    seconds_by_step=steps.seconds,
                    peak_memory=_peak_memory(),
                )
    raise ValueError("no source to install from")


def _look(
    target: Device,
    index: Index,
    booted: Device | None,
    booted_index: Index | None,
    workers: Workers,
) -> Plan:
    """Find out what both slots hold, and plan."""
    if index.is_delta:
        known = _root_hash(booted)
        held = slot.held(target, index, workers)
        return payload.plan(index, held=held, booted_root_hash=known)
    held = slot.held(target, index, workers)
    places: dict[bytes, int] = {}
    if booted and len(held) < len(index):
        places = slot.places_of(booted_index) if booted_index else _places(booted, workers)
    return payload.plan(index, held=held, booted=places)


def _root_hash(booted: Device | None) -> bytes:
    if booted is None:
        raise SourceError(
            "a delta payload needs a source, and there is none", hint="take the full payload"
        )
    try:
        return slot.root_hash(booted)
    except (slot_image.ImageError, OSError) as error:
        raise SourceError(
            f"no delta payload can be made from {booted.path}: {error}",
            hint="take the full payload",
        ) from error


def _places(booted: Device, workers: Workers) -> dict[bytes, int]:
    """Return what the booted slot offers; of what is no slot image, nothing."""
    try:
        size = slot.layout(booted).image_size
    except (slot_image.ImageError, OSError):
        return {}
    return slot.places(booted, size, workers)


def _write(
    target: Device,
    plan: Plan,
    blob: Blob,
    booted: Device | None,
    workers: Workers,
    steps: Steps,
) -> tuple[Plan, int]:
    """Carry ``plan`` out; return it as it was in the end, and the bytes written.

    The slot keeps what it holds until the first stored bytes are there: a payload that cannot be
    had costs nothing.
    """
    writer = SlotWriter(target, plan, source=booted, workers=workers)
    if plan.nothing_to_write:
        writer.check()
        return plan, 0
    size = plan.totals().write

    def deliver(batch: Batch, stored: bytearray) -> None:
        writer.begin()
        writer.put(batch, stored)
        steps.progress.show("write", min(writer.written, size), size)

    numbers: set[int] | None = None
    undone = slot.Undone()
    for _ in range(ROUNDS):
        batches = list(plan.batches(numbers))
        _deliver_all(batches, blob, deliver)
        undone = writer.settle()
        steps.done("write")
        if undone.refused:
            blob.distrust([it for it in batches if not undone.refused.isdisjoint(it.numbers)])
        if undone.rotten:
            plan = plan.fetching_instead(undone.rotten)
            writer.follow(plan)
        numbers = set(undone.numbers)
        if not numbers:
            numbers = writer.read_back()
            steps.done("read back")
        if not numbers:
            writer.finish()
            steps.done("finish")
            return plan, writer.written
    raise _gave_up(target, undone)


def _deliver_all(
    batches: Sequence[Batch], blob: Blob, deliver: Callable[[Batch, bytearray], None]
) -> None:
    """Deliver ``batches``, last those that need no stored bytes."""
    blob.fetch([batch for batch in batches if batch.blob_length], deliver)
    for batch in batches:
        if not batch.blob_length:
            deliver(batch, bytearray())


def _peak_memory() -> int:
    """Return our own peak, which getrusage(2) does not: it counts whoever started us as well."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _gave_up(target: Device, undone: slot.Undone) -> Exception:
    if undone.refused:
        return GarbledError(
            f"{len(undone.refused)} chunks have a wrong hash after {ROUNDS} tries, the first is"
            f" chunk {min(undone.refused)}",
            hint="index and blob don't belong together, or the network garbles what it carries",
        )
    return HostError(
        f"{target.path} does not hold what was written to it, after {ROUNDS} tries",
        hint="replace the disk; the slot is left marked as unfinished and cannot boot",
    )
