r"""Payloads: the index of a release's chunks, and the plan by which a slot comes to hold them.

A payload is an index and a blob. The blob holds stored chunks back to back; the index says of each
chunk of the image what to do, and the SHA-256 of what must come out:

    header  8s magic "UAPAYL\0\1"   u32 block size   u32 chunks   u64 image size   u64 blob size
            32s verity root hash   32s verity root hash of the source image, or zeros
    record  u8 operation   3x   u32 length   u64 offset   32s SHA-256 of the chunk
            u64 blob offset   u32 stored length   u32 source length   u64 source offset
            32s SHA-256 of the stored bytes

All numbers are little endian, sizes are bytes. Records stand in the order of the image and cover it
without a gap. The rule kept here: an index that was decoded is one that can be carried out, within
known memory; every field was checked, whoever made it. Whether it is *authentic* is decided before,
by the SHA-256 in a signed ``release.json``.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import IntEnum
from struct import Struct
from typing import NamedTuple, Self

from update_agent.core.chunking import BLOCK, MAX_CHUNK
from update_agent.errors import ReleaseError

MAX_SOURCE = 16 * 2**20
"""Bytes of the booted slot that one patch may refer to: bounds a host's memory."""

MAX_IMAGE = 2**40
"""Bytes in the largest image; bounds what a wrong number can make anyone allocate."""

NO_HASH = bytes(32)

_MAGIC = b"UAPAYL\0\1"
_HEADER = Struct("<8sIIQQ32s32s")
_RECORD = Struct("<B3xIQ32sQIIQ32s")


class Operation(IntEnum):
    """How a payload makes a chunk."""

    ZERO = 0
    STORE = 1
    ZSTD = 2
    COPY = 3
    PATCH = 4


_OPERATIONS = frozenset(Operation)
_STORED = {Operation.STORE, Operation.ZSTD, Operation.PATCH}
_FROM_SOURCE = {Operation.COPY, Operation.PATCH}


class PayloadError(ReleaseError):
    """An index is not whole or breaks a rule: says which chunk, which field, found and wanted."""


class SourceError(PayloadError):
    """A payload cannot be made from what the booted slot holds; the full payload can."""


class GarbledError(PayloadError):
    """Stored bytes keep coming with a wrong hash: of the payload, or of what carries it."""


class Chunk(NamedTuple):
    """A record of an index. A tuple and no dataclass: an index has 100,000 of them."""

    operation: int
    length: int
    offset: int
    digest: bytes
    blob_offset: int = 0
    stored_length: int = 0
    source_length: int = 0
    source_offset: int = 0
    stored_digest: bytes = NO_HASH


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a payload consists of. Chunks are made from ``records`` when asked for."""

    image_size: int
    blob_size: int
    root_hash: bytes
    source_root_hash: bytes = NO_HASH
    records: bytes = field(repr=False)

    @classmethod
    def of(
        cls,
        chunks: Iterable[Chunk],
        *,
        image_size: int,
        blob_size: int,
        root_hash: bytes,
        source_root_hash: bytes = NO_HASH,
    ) -> Self:
        """Return the index of ``chunks``. Raises PayloadError when they don't make the image."""
        made = cls(
            image_size=image_size,
            blob_size=blob_size,
            root_hash=root_hash,
            source_root_hash=source_root_hash,
            records=b"".join(_RECORD.pack(*chunk) for chunk in chunks),
        )
        _check(made)
        return made

    def __len__(self) -> int:
        return len(self.records) // _RECORD.size

    def __getitem__(self, number: int) -> Chunk:
        return Chunk._make(_RECORD.unpack_from(self.records, number * _RECORD.size))

    def __iter__(self) -> Iterator[Chunk]:
        return map(Chunk._make, _RECORD.iter_unpack(self.records))

    def spans(self) -> Iterator[range]:
        """Yield the numbers of all chunks, in runs that fit a buffer of ``MAX_CHUNK`` bytes."""
        first = size = 0
        for number, chunk in enumerate(self):
            if size + chunk.length > MAX_CHUNK:
                yield range(first, number)
                first, size = number, 0
            size += chunk.length
        yield range(first, len(self))

    @property
    def stored_size(self) -> int:
        """Bytes that a host fetches which can keep nothing; equal chunks count each time."""
        return sum(chunk.stored_length for chunk in self)

    @property
    def is_delta(self) -> bool:
        """Whether the payload needs one certain source image."""
        return self.source_root_hash != NO_HASH

    def encode(self) -> bytes:
        """Return the bytes of the index."""
        header = _HEADER.pack(
            _MAGIC, BLOCK, len(self), self.image_size, self.blob_size,
            self.root_hash, self.source_root_hash,
        )  # fmt: skip
        return header + self.records


def decode(data: bytes) -> Index:
    """Return the index in ``data``, every field of it checked. Raises PayloadError."""
    if len(data) < _HEADER.size:
        raise PayloadError(f"index has {len(data)} bytes, wanted at least {_HEADER.size}")
    magic, block, count, image_size, blob_size, root_hash, source = _HEADER.unpack_from(data)
    _want(None, "magic", magic, _MAGIC)
    _want(None, "block size", block, BLOCK)
    _want(None, "bytes", len(data), _HEADER.size + count * _RECORD.size)
    index = Index(
        image_size=image_size,
        blob_size=blob_size,
        root_hash=root_hash,
        source_root_hash=source,
        records=data[_HEADER.size :],
    )
    _check(index)
    return index


def _check(index: Index) -> None:
    """Hold every field of every record against what can be carried out."""
    _within(None, "image size", index.image_size, BLOCK, MAX_IMAGE)
    _within(None, "blob size", index.blob_size, 0, MAX_IMAGE)
    end = 0
    for number, chunk in enumerate(index):
        if chunk.operation not in _OPERATIONS:
            raise PayloadError(f"chunk {number}: operation is {chunk.operation}, wanted 0 to 4")
        _want(number, "offset", chunk.offset, end)
        _within(number, "length", chunk.length, BLOCK, MAX_CHUNK)
        _want(number, f"length modulo {BLOCK}", chunk.length % BLOCK, 0)
        _check_stored(number, chunk, index)
        _check_source(number, chunk, index)
        end += chunk.length
    _want(None, "bytes in all chunks", end, index.image_size)


def _check_stored(number: int, chunk: Chunk, index: Index) -> None:
    if chunk.operation == Operation.STORE:
        _want(number, "stored length", chunk.stored_length, chunk.length)
    elif chunk.operation in _STORED:
        _within(number, "stored length", chunk.stored_length, 1, chunk.length)
    else:
        _want(number, "stored length", chunk.stored_length, 0)
    end = chunk.blob_offset + chunk.stored_length
    _within(number, "end in the blob", end, 0, index.blob_size)


def _check_source(number: int, chunk: Chunk, index: Index) -> None:
    if chunk.operation not in _FROM_SOURCE:
        _want(number, "source length", chunk.source_length, 0)
        return
    if not index.is_delta:
        raise PayloadError(f"chunk {number} needs a source image, but the index names none")
    if chunk.operation == Operation.COPY:
        _want(number, "source length", chunk.source_length, chunk.length)
    else:
        _within(number, "source length", chunk.source_length, 1, MAX_SOURCE)
    _within(number, "end in the source", chunk.source_offset + chunk.source_length, 0, MAX_IMAGE)
    _want(number, f"source offset modulo {BLOCK}", chunk.source_offset % BLOCK, 0)
    _want(number, f"source length modulo {BLOCK}", chunk.source_length % BLOCK, 0)


def _want(number: int | None, name: str, found: object, wanted: object) -> None:
    if found != wanted:
        _refuse(number, f"{name} is {found!r}, wanted {wanted!r}")


def _within(number: int | None, name: str, found: int, low: int, high: int) -> None:
    if not low <= found <= high:
        _refuse(number, f"{name} is {found}, wanted {low} to {high}")


def _refuse(number: int | None, what: str) -> None:
    where = "index" if number is None else f"chunk {number}"
    raise PayloadError(
        f"{where}: {what}",
        hint="the file is damaged or no index; indexes are made by 'update-publish payload'",
    )


# The plan ----------------------------------------------------------------------------------------


class Action(IntEnum):
    """What a host does for a chunk."""

    KEEP = 0
    """It stands right in the other slot already."""
    ZERO = 1
    COPY = 2
    """From the booted slot."""
    PATCH = 3
    """From the booted slot and stored bytes."""
    FETCH = 4
    """From stored bytes alone."""


_ACTIONS: Mapping[int, Action] = {
    Operation.ZERO: Action.ZERO,
    Operation.STORE: Action.FETCH,
    Operation.ZSTD: Action.FETCH,
    Operation.COPY: Action.COPY,
    Operation.PATCH: Action.PATCH,
}
_FETCHES = {Action.FETCH, Action.PATCH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Neighbouring chunks that are written at once, and whose stored bytes are one range.

    ``first`` and ``last`` are numbers of chunks, both included.
    """

    first: int
    last: int
    offset: int
    length: int
    blob_offset: int
    blob_length: int

    @property
    def numbers(self) -> range:
        """The numbers of its chunks."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Bytes of an update, known before the first one is fetched."""

    keep: int
    zero: int
    copy: int
    """Read from the booted slot, for copies and patches alike."""
    fetch: int
    """Stored bytes from the server."""
    write: int

    def seconds(self, *, fetch_rate: float, disk_rate: float) -> float:
        """Return the expected time, fetching and writing overlapped; rates in bytes a second."""
        disk = self.keep + self.copy + 2 * self.write  # written, and read back
        return max(self.fetch / fetch_rate, disk / disk_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do for each chunk of an index."""

    index: Index
    actions: bytes = field(repr=False)
    """An ``Action`` for each chunk."""
    copies: Mapping[int, int] = field(repr=False)
    """Where in the booted slot a chunk of a full payload was found, by its number."""

    def source_offset(self, number: int) -> int:
        """Return where in the booted slot the source of a chunk begins."""
        return self.copies.get(number, self.index[number].source_offset)

    @property
    def nothing_to_write(self) -> bool:
        """Whether the other slot holds the whole image."""
        return not any(self.actions)

    def fetching_instead(self, numbers: Iterable[int]) -> "Plan":
        """Return the plan with the named chunks fetched and not copied.

        Raises SourceError for a delta payload, which does not hold them.
        """
        actions = bytearray(self.actions)
        for number in numbers:
            if self.index[number].operation in _FROM_SOURCE:
                raise SourceError(
                    f"the booted slot does not hold what chunk {number} is made from",
                    hint="take the full payload; what is right in the other slot is kept",
                )
            actions[number] = Action.FETCH
        return replace(self, actions=bytes(actions))

    def totals(self) -> Totals:
        """Return how much there is to do."""
        sums: dict[int, int] = dict.fromkeys(Action, 0)
        fetch = copy = 0
        for action, chunk in zip(self.actions, self.index, strict=True):
            sums[action] += chunk.length
            if action in _FETCHES:
                fetch += chunk.stored_length
            if action == Action.PATCH:
                copy += chunk.source_length
        return Totals(
            keep=sums[Action.KEEP],
            zero=sums[Action.ZERO],
            copy=sums[Action.COPY] + copy,
            fetch=fetch,
            write=self.index.image_size - sums[Action.KEEP],
        )

    def batches(self, numbers: Container[int] | None = None) -> Iterator[Batch]:
        """Yield the work, in the order of the image; of the chunks in ``numbers``, if given."""
        run: list[tuple[int, Chunk]] = []
        size = 0
        blob_end: int | None = None  # where the stored bytes of the run end, once it has any
        for number, chunk in enumerate(self.index):
            action = self.actions[number]
            if action == Action.KEEP or (numbers is not None and number not in numbers):
                continue
            stored = action in _FETCHES
            if run and not (
                number == run[-1][0] + 1
                and size + chunk.length <= MAX_CHUNK
                and (not stored or blob_end in (None, chunk.blob_offset))
            ):
                yield self._batch(run)
                run, size, blob_end = [], 0, None
            run.append((number, chunk))
            size += chunk.length
            if stored:
                blob_end = chunk.blob_offset + chunk.stored_length
        if run:
            yield self._batch(run)

    def _batch(self, run: Sequence[tuple[int, Chunk]]) -> Batch:
        stored = [chunk for number, chunk in run if self.actions[number] in _FETCHES]
        return Batch(
            first=run[0][0],
            last=run[-1][0],
            offset=run[0][1].offset,
            length=sum(chunk.length for _, chunk in run),
            blob_offset=stored[0].blob_offset if stored else 0,
            blob_length=sum(chunk.stored_length for chunk in stored),
        )


def plan(
    index: Index,
    *,
    held: AbstractSet[int] = frozenset(),
    booted: Mapping[bytes, int] | None = None,
    booted_root_hash: bytes = NO_HASH,
) -> Plan:
    """Return what to do for each chunk of ``index``.

    ``held`` are the chunks that stand right in the other slot; the first one counts only when all
    do, for its first block is the marker of an unfinished slot. ``booted`` says where in the booted
    slot which bytes stand, by their SHA-256. Raises SourceError for a delta payload made from
    another image than the booted one.
    """
    if index.is_delta and index.source_root_hash != booted_root_hash:
        raise SourceError(
            f"the payload is made from the image with root hash {index.source_root_hash.hex()},"
            f" the booted slot has {booted_root_hash.hex()}",
            hint="take the full payload, or the delta payload from the booted release",
        )
    actions = bytearray(len(index))
    copies: dict[int, int] = {}
    places = booted or {}
    if len(held) == len(index):
        return Plan(index=index, actions=bytes(actions), copies=copies)
    for number, chunk in enumerate(index):
        if number in held and number > 0:
            continue
        action = _ACTIONS[chunk.operation]
        if action is Action.FETCH and (place := places.get(chunk.digest)) is not None:
            action, copies[number] = Action.COPY, place
        actions[number] = action
    return Plan(index=index, actions=bytes(actions), copies=copies)
