"""Garbled payload indexes against the promise that what was decoded can be carried out.

Takes a good index, garbles it (fields at the edge of what they may be, bytes, bits, records lost,
doubled or exchanged, the end cut off or something behind it) and decodes it. Held, with a judge
that reads the bytes itself:

* nothing comes out but PayloadError;
* what is decoded covers the image once and in order, asks for no more of the blob, of a source and
  of memory than the format allows, and is the same bytes when encoded again;
* a plan for it names every chunk once, in batches that fit a buffer.

    python -m tests.fuzz.payload --count 200000 --seed 1
"""

import struct
import sys
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz import search
from update_agent.core import payload
from update_agent.core.payload import NO_HASH, Chunk, Index, Operation, PayloadError

PART = 500
"""Indexes that a worker tries before it tells."""

BLOCK, MIB = 4096, 2**20

HEADER = struct.Struct("<8sIIQQ32s32s")
RECORD = struct.Struct("<B3xIQ32sQIIQ32s")
FIELDS = (0, 1, 2, 4, 5, 6, 7)
"""The numbers of a record, by their place."""

EDGES = (
    0, 1, 2, 3, 4, 5, 255, 4095, 4096, 4097, 2**20 - 4096, 2**20, 2**20 + 1, 2**20 + 4096,
    2**24 - 4096, 2**24, 2**24 + 4096, 2**31 - 1, 2**31, 2**32 - 4096, 2**32 - 1, 2**32, 2**40,
    2**40 + 4096, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1,
)  # fmt: skip


class BrokenPromiseError(AssertionError):
    """What must never happen."""


def good(random: Random, *, delta: bool) -> Index:
    """Return an index of any operations, whose stored bytes are shared, apart, and out of order."""
    chunks: list[Chunk] = []
    end = blob = 0
    for _ in range(random.randrange(1, 25)):
        operation = Operation(random.choice((0, 1, 2, 2, 2, 3, 4) if delta else (0, 1, 2, 2, 2)))
        length = BLOCK * random.choice((1, 2, 4, 16, 100, 255, 256))
        chunk = Chunk(operation, length, end, random.randbytes(1) * 32)
        if operation in (Operation.STORE, Operation.ZSTD, Operation.PATCH):
            size = length if operation == Operation.STORE else random.randrange(1, length + 1)
            at = random.choice((blob, blob, blob, blob + 17, 0))
            chunk = chunk._replace(
                blob_offset=at, stored_length=size, stored_digest=random.randbytes(32)
            )
            blob = max(blob, at + size)
        if operation in (Operation.COPY, Operation.PATCH):
            size = BLOCK * random.choice((1, 7, 4096))
            chunk = chunk._replace(
                source_length=length if operation == Operation.COPY else size,
                source_offset=BLOCK * random.randrange(1000),
            )
        chunks.append(chunk)
        end += length
    return Index.of(
        chunks,
        image_size=end,
        blob_size=blob,
        root_hash=random.randbytes(32),
        source_root_hash=b"\1" * 32 if delta else NO_HASH,
    )


# Mutations ---------------------------------------------------------------------------------------


def _header_edge(data: bytearray, random: Random) -> None:
    fields = list(HEADER.unpack_from(data))
    at = random.choice((1, 2, 3, 4))
    fields[at] = random.choice(EDGES) & (2**32 - 1 if at in (1, 2) else 2**64 - 1)
    HEADER.pack_into(data, 0, *fields)


def _record_edge(data: bytearray, random: Random) -> None:
    at = HEADER.size + RECORD.size * random.randrange((len(data) - HEADER.size) // RECORD.size)
    fields = list(RECORD.unpack_from(data, at))
    field = random.choice(FIELDS)
    limit = 2**8 if field == 0 else 2**32 if field in (1, 5, 6) else 2**64
    step = random.choice((1, 4096, -1, -4096))
    fields[field] = random.choice((random.choice(EDGES), fields[field] + step)) % limit
    RECORD.pack_into(data, at, *fields)


def _bits(data: bytearray, random: Random) -> None:
    for _ in range(random.randrange(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _bytes(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data))
    size = random.randrange(1, 33)
    data[at : at + size] = random.randbytes(size)


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _more(data: bytearray, random: Random) -> None:
    data += random.randbytes(random.choice((1, RECORD.size, 4096)))


def _lose(data: bytearray, random: Random) -> None:
    """A record fewer, and the count says so."""
    at = HEADER.size + RECORD.size * random.randrange((len(data) - HEADER.size) // RECORD.size)
    del data[at : at + RECORD.size]
    _recount(data)


def _double(data: bytearray, random: Random) -> None:
    at = HEADER.size + RECORD.size * random.randrange((len(data) - HEADER.size) // RECORD.size)
    data[at:at] = data[at : at + RECORD.size]
    _recount(data)


def _recount(data: bytearray) -> None:
    struct.pack_into("<I", data, 12, (len(data) - HEADER.size) // RECORD.size)


def _no_source(data: bytearray, _random: Random) -> None:
    data[HEADER.size - 32 : HEADER.size] = NO_HASH


MUTATIONS: tuple[Callable[[bytearray, Random], None], ...] = (
    _header_edge, _record_edge, _record_edge, _record_edge, _bits, _bits, _bytes, _cut, _more,
    _lose, _double, _no_source,
)  # fmt: skip
"""Named as often as they shall be drawn."""


# The judge ---------------------------------------------------------------------------------------


def judge(data: bytes) -> str:
    """Decode ``data`` and return how it ended. Raises BrokenPromiseError."""
    try:
        index = payload.decode(data)
    except PayloadError as error:
        return "refused: " + "".join(it for it in str(error).split(" is ")[0] if not it.isdigit())
    if index.encode() != data:
        raise BrokenPromiseError("another index came out than went in")
    _hold_format(data)
    _hold_plan(index)
    return "accepted"


def _hold_format(data: bytes) -> None:
    _, _, count, image_size, blob_size, _, source_root = HEADER.unpack_from(data)
    end = 0
    for number in range(count):
        operation, length, offset, _, blob, stored, source, source_offset, _ = RECORD.unpack_from(
            data, HEADER.size + number * RECORD.size
        )
        if offset != end or length % BLOCK or not 0 < length <= MIB:
            raise BrokenPromiseError(f"chunk {number} leaves a gap, or does not fit a buffer")
        if blob + stored > blob_size or stored > length:
            raise BrokenPromiseError(f"chunk {number} asks too much of the blob")
        if source > 16 * MIB or (source_offset + source > 2**40 and operation in (3, 4)):
            raise BrokenPromiseError(f"chunk {number} asks too much of the source")
        if operation in (3, 4) and not any(source_root):
            raise BrokenPromiseError(f"chunk {number} needs a source that is not named")
        end += length
    if end != image_size:
        raise BrokenPromiseError("the chunks don't make the image")


def _hold_plan(index: Index) -> None:
    made = payload.plan(index, booted_root_hash=index.source_root_hash)
    batches = list(made.batches())
    numbers = [it for batch in batches for it in range(batch.first, batch.last + 1)]
    if numbers != list(range(len(index))):
        raise BrokenPromiseError("the plan does not name every chunk once")
    if any(batch.length > MIB or batch.blob_length > MIB for batch in batches):
        raise BrokenPromiseError("a batch does not fit a buffer")
    if sum(batch.blob_length for batch in batches) != made.totals().fetch:
        raise BrokenPromiseError("the totals are not those of the batches")


def one(random: Random) -> str:
    """Try one garbled index; return how it ended."""
    data = bytearray(good(random, delta=random.random() < 0.5).encode())
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if len(data) >= HEADER.size + RECORD.size:
            random.choice(MUTATIONS)(data, random)
    return judge(bytes(data))


# The program -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    about = "Decode garbled payload indexes; fails on a broken promise."
    options = search.parser("tests.fuzz.payload", about, "indexes", count=100_000).parse_args(argv)
    if options.repeat:
        print(search.repeated(one, options.repeat))
        return 0
    outcomes = search.searched(one, options, part=PART)
    search.tell(outcomes, f"{outcomes.total():,} indexes, 0 promises broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
