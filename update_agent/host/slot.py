"""What a slot holds, and how a payload comes into it.

The order of work, and what a power cut leaves at any point of it:

    1. look        which chunks stand right already (in the other slot, in the booted slot)
    2. mark        block 0 becomes a marker: the slot can neither boot nor be mounted
    3. write       chunks in any order; stored bytes are hashed before anything decodes them, bytes
                   from the booted slot after
    4. flush, read back every byte that was written, past every cache
    5. judge       verity tree against the root hash, kernel against its own hash
    6. finish      block 0 is written last, flushed and read back

Before 6 the marker says: unfinished, look again. So nothing is kept on a journal's word: whatever
stands in the slot is hashed, and what is right stays.

Several threads work on batches (hashlib, zstandard and disk calls release the GIL), each with one
buffer: memory is bounded whatever the image size. Where stored bytes come from is not known here.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Self, TypeVar

import xxhash
import zstandard

from update_agent.core import slot_image
from update_agent.core.chunking import BLOCK, MAX_CHUNK, cut
from update_agent.core.payload import Action, Batch, Chunk, Index, Operation, Plan
from update_agent.errors import HostError
from update_agent.host.device import Device, aligned

_MARKER = b"UAPART\0\1"
"""Begins block 0 of a slot that is being written; the root hash of the new image follows."""

_QUEUED = 1
"""Batches that wait for a worker. Few: they are memory, and fetched again after a kill."""

_FLUSH = 64 * 2**20
"""Bytes after which what was written is flushed: the disk works while chunks are decoded, and what
others write to it never waits behind a whole image."""

Result = TypeVar("Result")
Item = TypeVar("Item")


def cores() -> int:
    """Return how many threads can work at once."""
    return len(os.sched_getaffinity(0))


class Workers:
    """A pool of threads that takes no more work than it can soon begin."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or cores()
        self._pool = ThreadPoolExecutor(self.count)
        self._running: set[Future[object]] = set()
        self._lock = threading.Lock()

    def put(self, work: Callable[[], object]) -> None:
        """Have ``work`` done soon; wait while there is too much. Raises what earlier work did."""
        with self._lock:
            while len(self._running) >= self.count + _QUEUED:
                done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            self._running.add(self._pool.submit(work))

    def drain(self) -> None:
        """Wait until all work is done. Raises what any of it raised."""
        with self._lock:
            done, self._running = wait(self._running).done, set()
            for future in done:
                future.result()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in order, working only a little ahead of whoever takes them."""
        ahead: deque[Future[Result]] = deque()
        for item in items:
            if len(ahead) >= self.count + _QUEUED:
                yield ahead.popleft().result()
            ahead.append(self._pool.submit(function, item))
        while ahead:
            yield ahead.popleft().result()

    def close(self) -> None:
        """End the threads; work that has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Looking -----------------------------------------------------------------------------------------


def unfinished(device: Device) -> bool:
    """Whether the slot's last update was cut short."""
    return device.read(0, BLOCK).startswith(_MARKER)


def layout(device: Device) -> slot_image.Layout:
    """Return the layout of the slot image on ``device``. Raises ImageError, OSError."""
    block = device.read(0, BLOCK)
    try:
        found = _layout_in(block)
    except slot_image.ImageError as error:
        raise slot_image.ImageError(f"{device.path}: {error}", hint=error.hint) from error
    if found.image_size > device.size:
        raise slot_image.ImageError(
            f"{device.path} has {device.size} bytes, its slot header says {found.image_size}"
        )
    return found


def _layout_in(block: bytes) -> slot_image.Layout:
    end = slot_image.HEADER_OFFSET + slot_image.HEADER_SIZE
    return slot_image.parse_header(block[slot_image.HEADER_OFFSET : end])


def root_hash(device: Device) -> bytes:
    """Return the verity root hash of the slot image on ``device``. Raises ImageError, OSError."""
    parts = layout(device)
    head = device.read(parts.verity_offset, 2 * BLOCK)  # the superblock and the top of the tree
    try:
        verity = slot_image.parse_verity(head, fs_size=parts.fs_size)
    except slot_image.ImageError as error:
        raise slot_image.ImageError(f"{device.path}: {error}", hint=error.hint) from error
    return slot_image.root_hash_of(verity, head)


def held(device: Device, index: Index, workers: Workers) -> set[int]:
    """Return the numbers of the chunks of ``index`` that already stand right on ``device``.

    A slot that holds neither an image nor the marker of an unfinished one is not read. What cannot
    be read is not held: writing it again may heal it.
    """
    try:
        if not unfinished(device):
            layout(device)
    except (slot_image.ImageError, OSError):
        return set()
    right: set[int] = set()
    for found in workers.map(lambda span: _right_in(device, index, span), index.spans()):
        right.update(found)
    return right


def _right_in(device: Device, index: Index, span: range) -> list[int]:
    chunks = [index[number] for number in span]
    start, end = chunks[0].offset, chunks[-1].offset + chunks[-1].length
    data = _buffer(end - start)
    try:
        if device.read_into(data, start) < len(data):
            return []
    except OSError:
        return []
    return [
        number
        for number, chunk in zip(span, chunks, strict=True)
        if sha256(data[chunk.offset - start :][: chunk.length]).digest() == chunk.digest
    ]


def places(device: Device, size: int, workers: Workers) -> dict[bytes, int]:
    """Return where in the first ``size`` bytes of ``device`` which chunks stand, by SHA-256.

    What cannot be read is taken for zeros, which nobody copies.
    """

    def digest(chunk: tuple[int, bytes]) -> tuple[bytes, int]:
        return sha256(chunk[1]).digest(), chunk[0]

    return dict(workers.map(digest, chunks_of(device, size, or_zeros=True)))


def places_of(index: Index) -> dict[bytes, int]:
    """Return the same for a slot whose index is known; what is copied from it is hashed anyway."""
    return {chunk.digest: chunk.offset for chunk in index}


def chunks_of(device: Device, size: int, *, or_zeros: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each chunk in the first ``size`` bytes, cut by ``chunking``.

    With ``or_zeros``, what cannot be read is given as zeros; else it raises OSError.
    """
    window: deque[tuple[int, memoryview]] = deque()
    spare: list[memoryview] = []  # fresh ones cost more than all else that is done here

    def blocks() -> Iterator[memoryview]:
        for offset in range(0, size, MAX_CHUNK):
            room = (spare.pop() if spare else aligned(MAX_CHUNK))[: size - offset]
            data = _filled(room, device, offset, or_zeros=or_zeros)
            window.append((offset, data))
            for at in range(0, len(data), BLOCK):
                yield data[at : at + BLOCK]

    start = 0
    for length in cut(blocks()):
        end = start + length * BLOCK
        while window[0][0] + len(window[0][1]) <= start:
            _, left = window.popleft()
            if len(left) == MAX_CHUNK:
                spare.append(left)
        parts = [data[max(start - offset, 0) : end - offset] for offset, data in window]
        yield start, b"".join(parts)
        start = end


def _filled(room: memoryview, device: Device, offset: int, *, or_zeros: bool) -> memoryview:
    """Return as much of ``room`` as there is on ``device`` from ``offset``, or zeros."""
    try:
        return room[: device.read_into(room, offset)]
    except OSError:
        if not or_zeros:
            raise
        room[:] = bytes(len(room))
        return room


# Writing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """Chunks whose batch was not written, and which of them need other stored bytes or a source."""

    numbers: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    """The stored bytes do not have the promised hash."""
    rotten: frozenset[int] = frozenset()
    """What the booted slot gave does not have it."""


class SlotWriter:
    """Carries out a plan on a slot: ``put`` stored bytes, ``settle``, ``finish``.

    Nothing that was not hashed right is ever written. ``written`` counts bytes, for progress.
    """

    def __init__(
        self, device: Device, plan: Plan, *, source: Device | None, workers: Workers
    ) -> None:
        self.written = 0
        self._device = device
        self._plan = plan
        self._source = source
        self._workers = workers
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._begun = False
        self._undone = Undone()
        self._checksums: dict[int, tuple[int, int, range]] = {}  # offset: length, XXH3, chunks
        self._first_block = b""
        self._marker = (_MARKER + plan.index.root_hash).ljust(BLOCK, b"\0")
        size = plan.index.image_size
        if size > device.size:
            raise HostError(
                f"the image has {size} bytes, {device.path} only {device.size}",
                hint="the slot is too small for this release",
            )

    def begin(self) -> None:
        """Make the slot unbootable, durably, once. Must come before the first ``put``."""
        with self._beginning, _explained(self._device):
            if not self._begun:
                self._store_first_block(self._marker)
            self._begun = True

    def put(self, batch: Batch, stored: bytes | bytearray = b"") -> None:
        """Write ``batch``, of which ``stored`` are the stored bytes; wait while much is under way.

        Raises HostError when the disk failed meanwhile.
        """
        with _explained(self._device):
            self._workers.put(lambda: self._write(batch, memoryview(stored)))

    def settle(self) -> Undone:
        """Wait for all batches; return what was not written, and forget about it."""
        with _explained(self._device):
            self._workers.drain()
        undone, self._undone = self._undone, Undone()
        return undone

    def follow(self, plan: Plan) -> None:
        """Go on with another plan for the same index."""
        self._plan = plan

    def read_back(self) -> set[int]:
        """Flush, and return the chunks that the medium does not hold as they were written."""
        lost: set[int] = set()
        with _explained(self._device):
            self._device.flush()
            for chunks in self._workers.map(self._lost, list(self._checksums.items())):
                lost.update(chunks)
        return lost

    def finish(self) -> None:
        """Judge the whole image and write its first block, which makes it one.

        Raises ImageError when the image is not what its own hashes say, HostError for the disk.
        """
        with _explained(self._device):
            self._judge(self._first_block)
            self._store_first_block(self._first_block)

    def check(self) -> None:
        """Judge a slot that holds every chunk already, and make it durable.

        For the run that wrote it may have been killed before its last flush. Raises ImageError,
        HostError.
        """
        with _explained(self._device):
            self._device.flush()
            self._judge(self._device.read(0, BLOCK))

    # One batch, in a worker ----------------------------------------------------------------------

    def _write(self, batch: Batch, stored: memoryview) -> None:
        data = _buffer(batch.length)
        numbers = batch.numbers
        refused: set[int] = set()
        rotten: set[int] = set()
        at = 0
        for number in numbers:
            chunk = self._plan.index[number]
            target = data[chunk.offset - batch.offset :][: chunk.length]
            action = self._plan.actions[number]
            part = memoryview(b"")
            if action in (Action.FETCH, Action.PATCH):
                part = stored[at : at + chunk.stored_length]
                at += chunk.stored_length
                if sha256(part).digest() != chunk.stored_digest:
                    refused.add(number)
                    continue
            if not self._make(number, chunk, part, target):
                (refused if action == Action.FETCH else rotten).add(number)
        if refused or rotten:
            self._leave(numbers, refused, rotten)
            return
        if batch.offset == 0:
            self._first_block = bytes(data[:BLOCK])
            data[:BLOCK] = self._marker
        self._device.write(data, batch.offset)
        checksum = xxhash.xxh3_64_intdigest(data)
        with self._lock:
            self._checksums[batch.offset] = (batch.length, checksum, numbers)
            before, self.written = self.written, self.written + batch.length
        if before // _FLUSH < self.written // _FLUSH:
            self._device.flush()

    def _make(self, number: int, chunk: Chunk, part: memoryview, target: memoryview) -> bool:
        """Put the bytes of a chunk into ``target``; say whether they are the right ones."""
        match self._plan.actions[number], chunk.operation:
            case Action.ZERO, _:
                target[:] = bytes(chunk.length)
                return True
            case Action.COPY, _:
                return self._copy(self._plan.source_offset(number), chunk, target)
            case Action.PATCH, _:
                return self._patch(chunk, part, target)
            case _, Operation.STORE:
                target[:] = part
                return True
            case _:
                return _decode(part, target)

    def _copy(self, offset: int, chunk: Chunk, target: memoryview) -> bool:
        return self._read_source(target, offset) and sha256(target).digest() == chunk.digest

    def _patch(self, chunk: Chunk, part: memoryview, target: memoryview) -> bool:
        source = _buffer(chunk.source_length, "source")
        return (
            self._read_source(source, chunk.source_offset)
            and _decode(part, target, source)
            and sha256(target).digest() == chunk.digest
        )

    def _read_source(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from the booted slot; a disk that cannot read there is rotten there."""
        try:
            return self._source is not None and self._source.read_into(buffer, offset) == len(
                buffer
            )
        except OSError:
            return False

    def _leave(self, numbers: range, refused: set[int], rotten: set[int]) -> None:
        with self._lock:
            self._undone = Undone(
                numbers=self._undone.numbers | set(numbers),
                refused=self._undone.refused | refused,
                rotten=self._undone.rotten | rotten,
            )

    # Verifying -----------------------------------------------------------------------------------

    def _lost(self, written: tuple[int, tuple[int, int, range]]) -> range:
        offset, (length, checksum, numbers) = written
        data = _buffer(length)
        whole = self._device.read_into(data, offset) == length
        return range(0) if whole and xxhash.xxh3_64_intdigest(data) == checksum else numbers

    def _judge(self, first_block: bytes) -> None:
        index = self._plan.index
        judge(self._device, first_block, image_size=index.image_size, root_hash=index.root_hash)

    def _store_first_block(self, content: bytes) -> None:
        block = aligned(BLOCK)
        block[:] = content
        self._device.write(block, 0)
        self._device.flush()
        if self._device.read(0, BLOCK) != bytes(block):
            raise HostError(f"{self._device.path} does not hold the first block that was written")


def judge(device: Device, first_block: bytes, *, image_size: int, root_hash: bytes) -> None:
    """Hold a slot image against its own hashes: header, verity tree and kernel.

    What the tree says of the file system is left to dm-verity, which checks each block that is ever
    read. Raises ImageError, OSError.
    """
    parts = _layout_in(first_block)
    if parts.image_size != image_size:
        raise slot_image.ImageError(
            f"the slot header says {parts.image_size} bytes, the index {image_size}"
        )
    superblock = device.read(parts.verity_offset, BLOCK)
    verity = slot_image.parse_verity(superblock, fs_size=parts.fs_size)
    tree = _blocks(device, parts.verity_offset + BLOCK, parts.verity_size - BLOCK)
    slot_image.check_tree(verity, tree, root_hash)
    block = device.read(parts.kernel_offset, BLOCK)
    kernel = slot_image.parse_kernel(block, region_size=parts.kernel_region_size)
    digest = sha256()
    for piece in _pieces(device, parts.kernel_offset + BLOCK, kernel.size):
        digest.update(piece)
    if digest.digest() != kernel.digest:
        raise slot_image.ImageError("the kernel does not have the hash in its kernel region")


def _blocks(device: Device, offset: int, size: int) -> Iterator[memoryview]:
    for piece in _pieces(device, offset, size):
        for at in range(0, len(piece), BLOCK):
            yield piece[at : at + BLOCK]


def _pieces(device: Device, offset: int, size: int) -> Iterator[memoryview]:
    """Yield ``size`` bytes from ``offset``, read past every cache into one buffer."""
    data = _buffer(MAX_CHUNK)
    for at in range(0, size, MAX_CHUNK):
        wanted = min(MAX_CHUNK, size - at)
        device.read_into(data[: -(-wanted // BLOCK) * BLOCK], offset + at)
        yield data[:wanted]


# What each thread keeps for itself ---------------------------------------------------------------

_kept = threading.local()


def _buffer(size: int, name: str = "buffer") -> memoryview:
    """Return ``size`` bytes of a buffer that this thread reuses; it grows to what is asked for."""
    kept: memoryview | None = getattr(_kept, name, None)
    if kept is None or len(kept) < size:
        kept = aligned(max(size, MAX_CHUNK))
        setattr(_kept, name, kept)
    return kept[:size]


def _decode(part: memoryview, target: memoryview, source: memoryview | None = None) -> bool:
    """Decompress ``part`` into ``target``; say whether it had exactly that length.

    The length a frame claims is looked at first: zstandard would allocate it, whatever it is.
    """
    try:
        if zstandard.frame_content_size(part) != len(target):
            return False
        data = _decompressor(source).decompress(
            part, max_output_size=len(target), allow_extra_data=False
        )
    except zstandard.ZstdError:
        return False
    target[:] = data
    return True


def _decompressor(source: memoryview | None) -> zstandard.ZstdDecompressor:
    if source is not None:
        raw = zstandard.ZstdCompressionDict(source, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=raw)
    kept: zstandard.ZstdDecompressor | None = getattr(_kept, "decompressor", None)
    if kept is None:
        kept = _kept.decompressor = zstandard.ZstdDecompressor()
    return kept


@contextmanager
def _explained(device: Device) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"{device.path} failed: {error.strerror}",
            hint="the slot is not verified and must not be booted; see the kernel's log",
        ) from error
