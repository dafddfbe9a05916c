"""Indexes field by field, plans by hand, and what holds for every plan.

``Wire`` spells an index out as DESIGN.md and the module's docstring do, without any help from the
code under test.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import payload as fuzz
from update_agent.core import payload
from update_agent.core.payload import (
    NO_HASH,
    Action,
    Batch,
    Chunk,
    Index,
    Operation,
    PayloadError,
    Plan,
    SourceError,
    Totals,
)

ROOT, OLD_ROOT = b"r" * 32, b"o" * 32
KIB, MIB = 2**10, 2**20


def digest(letter: str) -> bytes:
    return letter.encode() * 32


# Bytes -------------------------------------------------------------------------------------------


@dataclass
class Wire:
    """The bytes of an index. Defaults make a good one of two chunks: 8 KiB zstd, 4 KiB patch."""

    header: dict[str, int | bytes] = field(default_factory=dict)
    records: list[dict[str, int | bytes]] = field(default_factory=lambda: [{}, {}])

    def encode(self) -> bytes:
        header: dict[str, int | bytes] = {
            "magic": b"UAPAYL\0\1", "block": 4096, "count": len(self.records),
            "image_size": 12288, "blob_size": 150, "root": ROOT, "source_root": OLD_ROOT,
        }  # fmt: skip
        zstd: dict[str, int | bytes] = {
            "operation": 2, "length": 8192, "offset": 0, "digest": digest("a"), "blob_offset": 0,
            "stored_length": 100, "source_length": 0, "source_offset": 0,
            "stored_digest": b"s" * 32,
        }  # fmt: skip
        patch = zstd | {
            "operation": 4, "length": 4096, "offset": 8192, "blob_offset": 100,
            "stored_length": 50, "source_length": 65536, "source_offset": 4096,
        }  # fmt: skip
        records = [base | change for base, change in zip((zstd, patch), self.records, strict=True)]
        header |= self.header
        return struct.pack("<8sIIQQ32s32s", *header.values()) + b"".join(
            struct.pack("<B3xIQ32sQIIQ32s", *record.values()) for record in records
        )


def test_an_index_is_read_as_the_format_says() -> None:
    index = payload.decode(Wire().encode())

    assert (index.image_size, index.blob_size) == (12288, 150)
    assert (index.root_hash, index.source_root_hash) == (ROOT, OLD_ROOT)
    assert index.is_delta
    assert list(index) == [
        Chunk(2, 8192, 0, digest("a"), 0, 100, 0, 0, b"s" * 32),
        Chunk(4, 4096, 8192, digest("a"), 100, 50, 65536, 4096, b"s" * 32),
    ]


def test_an_index_is_written_as_the_format_says() -> None:
    data = Wire().encode()

    assert payload.decode(data).encode() == data
    assert len(data) == 96 + 2 * 104  # header and records, by the sizes of their fields


HEADER_FAULTS = [
    ("magic", b"UAPAYL\0\2", r"^index: magic is b'UAPAYL\\x00\\x02', wanted b'UAPAYL\\x00\\x01'$"),
    ("block", 512, "^index: block size is 512, wanted 4096$"),
    ("count", 3, "^index: bytes is 304, wanted 408$"),
    ("count", 2**32 - 1, "^index: bytes is 304, wanted 446676598776$"),
    ("count", 0, "^index: bytes is 304, wanted 96$"),
    ("image_size", 0, "^index: image size is 0, wanted 4096 to 1099511627776$"),
    ("image_size", 2**40 + 4096, "^index: image size is 1099511631872, wanted 4096 to"),
    ("image_size", 16384, "^index: bytes in all chunks is 12288, wanted 16384$"),
    ("blob_size", 2**40 + 1, "^index: blob size is 1099511627777, wanted 0 to 1099511627776$"),
    ("blob_size", 149, "^chunk 1: end in the blob is 150, wanted 0 to 149$"),
    ("source_root", NO_HASH, "^chunk 1 needs a source image, but the index names none$"),
]

RECORD_FAULTS = [
    (0, "operation", 5, "^chunk 0: operation is 5, wanted 0 to 4$"),
    (0, "offset", 4096, "^chunk 0: offset is 4096, wanted 0$"),
    (1, "offset", 4096, "^chunk 1: offset is 4096, wanted 8192$"),
    (1, "offset", 12288, "^chunk 1: offset is 12288, wanted 8192$"),
    (0, "length", 0, "^chunk 0: length is 0, wanted 4096 to 1048576$"),
    (0, "length", 2**20 + 4096, "^chunk 0: length is 1052672, wanted 4096 to 1048576$"),
    (0, "length", 8191, "^chunk 0: length modulo 4096 is 4095, wanted 0$"),
    (0, "stored_length", 0, "^chunk 0: stored length is 0, wanted 1 to 8192$"),
    (0, "stored_length", 8193, "^chunk 0: stored length is 8193, wanted 1 to 8192$"),
    (1, "stored_length", 0, "^chunk 1: stored length is 0, wanted 1 to 4096$"),
    (0, "blob_offset", 2**64 - 1, "^chunk 0: end in the blob is 18446744073709551715, wanted 0 to"),
    (0, "source_length", 1, "^chunk 0: source length is 1, wanted 0$"),
    (1, "source_length", 0, "^chunk 1: source length is 0, wanted 1 to 16777216$"),
    (1, "source_length", 2**24 + 4096, "^chunk 1: source length is 16781312, wanted 1 to"),
    (1, "source_length", 4097, "^chunk 1: source length modulo 4096 is 1, wanted 0$"),
    (1, "source_offset", 100, "^chunk 1: source offset modulo 4096 is 100, wanted 0$"),
    (1, "source_offset", 2**40, "^chunk 1: end in the source is 1099511693312, wanted 0 to"),
]


@pytest.mark.parametrize(("name", "value", "message"), HEADER_FAULTS)
def test_each_field_of_the_header_is_checked(name: str, value: int | bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        payload.decode(Wire(header={name: value}).encode())


@pytest.mark.parametrize(("number", "name", "value", "message"), RECORD_FAULTS)
def test_each_field_of_a_record_is_checked(
    number: int, name: str, value: int, message: str
) -> None:
    wire = Wire()
    wire.records[number][name] = value

    with pytest.raises(PayloadError, match=message):
        payload.decode(wire.encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operation": 1}, "^chunk 0: stored length is 100, wanted 8192$"),
        ({"operation": 0}, "^chunk 0: stored length is 100, wanted 0$"),
        ({"operation": 3, "stored_length": 0}, "^chunk 0: source length is 0, wanted 8192$"),
        ({"operation": 3, "source_length": 8192}, "^chunk 0: stored length is 100, wanted 0$"),
    ],
)
def test_each_operation_has_its_own_rules(change: dict[str, int | bytes], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        payload.decode(Wire(records=[change, {}]).encode())


def test_a_refusal_says_where_indexes_come_from() -> None:
    with pytest.raises(PayloadError) as refusal:
        payload.decode(b"<html>log in to the hotel</html>" * 10)

    assert refusal.value.exit_code == 3
    assert refusal.value.hint is not None
    assert "update-publish payload" in refusal.value.hint


def test_every_shorter_and_longer_index_is_refused() -> None:
    data = Wire().encode()

    for size in range(len(data)):
        with pytest.raises(PayloadError):
            payload.decode(data[:size])
    for more in (1, 8, 104, 4096):
        with pytest.raises(PayloadError, match=f"^index: bytes is {len(data) + more}, wanted 304$"):
            payload.decode(data + bytes(more))


def test_no_flipped_byte_of_an_index_is_a_crash() -> None:
    data = Wire().encode()

    for at in range(len(data)):
        garbled = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        try:
            assert payload.decode(garbled).encode() == garbled
        except PayloadError:
            continue


@given(data=st.binary(max_size=1000))
def test_no_random_bytes_are_an_index(data: bytes) -> None:
    with pytest.raises(PayloadError):
        payload.decode(data)


@settings(max_examples=300)
@given(random=st.randoms(use_true_random=True))
def test_a_garbled_index_is_refused_or_can_be_carried_out(random: Random) -> None:
    fuzz.one(random)


# Any index ---------------------------------------------------------------------------------------


def indexes(*, deltas: bool = False) -> st.SearchStrategy[Index]:
    """Return good indexes: of any operations, with shared, scattered and backward stored bytes."""
    return st.randoms(use_true_random=False).map(lambda it: fuzz.good(it, delta=deltas))


@given(index=indexes() | indexes(deltas=True))
def test_what_is_encoded_is_decoded(index: Index) -> None:
    found = payload.decode(index.encode())

    assert found == index
    assert [found[number] for number in range(len(found))] == list(index)


@given(index=indexes())
def test_spans_hold_every_chunk_once_and_fit_a_buffer(index: Index) -> None:
    spans = list(index.spans())

    assert [number for span in spans for number in span] == list(range(len(index)))
    assert all(sum(index[it].length for it in span) <= MIB for span in spans)


@given(index=indexes() | indexes(deltas=True), data=st.data())
def test_batches_hold_every_chunk_that_is_not_kept_once(index: Index, data: st.DataObject) -> None:
    held = data.draw(st.sets(st.integers(0, len(index) - 1)))
    booted = {index[it].digest: 4096 * it for it in data.draw(st.sets(st.sampled_from(range(9))))
              if it < len(index)}  # fmt: skip
    made = payload.plan(index, held=held, booted=booted, booted_root_hash=index.source_root_hash)

    batches = list(made.batches())

    work = [number for number, action in enumerate(made.actions) if action != Action.KEEP]
    assert [it for batch in batches for it in range(batch.first, batch.last + 1)] == work
    assert sum(batch.blob_length for batch in batches) == made.totals().fetch
    assert sum(batch.length for batch in batches) == made.totals().write
    for batch in batches:
        check_batch(made, batch)


def check_batch(plan: Plan, batch: Batch) -> None:
    """Its chunks are neighbours, its stored bytes one range in their order, its size bounded."""
    chunks = [plan.index[it] for it in range(batch.first, batch.last + 1)]
    assert batch.offset == chunks[0].offset
    assert batch.length == sum(chunk.length for chunk in chunks) <= MIB
    at = batch.blob_offset
    for number, chunk in enumerate(chunks, batch.first):
        if plan.actions[number] in (Action.FETCH, Action.PATCH):
            assert chunk.blob_offset == at
            at += chunk.stored_length
    assert at == batch.blob_offset + batch.blob_length
    assert batch.blob_length <= MIB


@given(index=indexes(), data=st.data())
def test_batches_of_some_chunks_hold_those_alone(index: Index, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(0, len(index) - 1)))
    made = payload.plan(index)

    batches = list(made.batches(wanted))

    numbers = [it for batch in batches for it in range(batch.first, batch.last + 1)]
    assert numbers == sorted(wanted)
    for batch in batches:
        check_batch(made, batch)


# Plans by hand -----------------------------------------------------------------------------------

FULL = Index.of(
    [
        Chunk(Operation.ZSTD, 64 * KIB, 0, digest("a"), 0, 1000),
        Chunk(Operation.STORE, 32 * KIB, 64 * KIB, digest("b"), 1000, 32 * KIB),
        Chunk(Operation.ZERO, 128 * KIB, 96 * KIB, digest("0")),
        Chunk(Operation.ZSTD, 16 * KIB, 224 * KIB, digest("c"), 33768, 500),
        Chunk(Operation.ZSTD, 64 * KIB, 240 * KIB, digest("a"), 0, 1000),  # stored once
        Chunk(Operation.ZSTD, 16 * KIB, 304 * KIB, digest("d"), 34268, 732),
    ],
    image_size=320 * KIB,
    blob_size=35000,
    root_hash=ROOT,
)

DELTA = Index.of(
    [
        Chunk(Operation.ZSTD, 16 * KIB, 0, digest("a"), 0, 700),
        Chunk(Operation.COPY, 512 * KIB, 16 * KIB, digest("b"), source_length=512 * KIB,
              source_offset=64 * KIB),
        Chunk(Operation.PATCH, 64 * KIB, 528 * KIB, digest("c"), 700, 300, 256 * KIB, 128 * KIB),
    ],
    image_size=592 * KIB,
    blob_size=1000,
    root_hash=ROOT,
    source_root_hash=OLD_ROOT,
)  # fmt: skip

K, Z, C, P, F = Action.KEEP, Action.ZERO, Action.COPY, Action.PATCH, Action.FETCH


def test_an_empty_slot_fetches_everything() -> None:
    made = payload.plan(FULL)

    assert list(made.actions) == [F, F, Z, F, F, F]
    assert made.totals() == Totals(
        keep=0, zero=128 * KIB, copy=0, fetch=1000 + 32 * KIB + 500 + 1000 + 732, write=320 * KIB
    )
    assert [(it.first, it.last, it.blob_offset, it.blob_length) for it in made.batches()] == [
        (0, 3, 0, 34268),  # the zeros between need no stored bytes and are written along
        (4, 4, 0, 1000),  # its stored bytes stand elsewhere
        (5, 5, 34268, 732),
    ]


def test_what_a_slot_holds_is_kept_and_what_the_booted_one_holds_is_copied() -> None:
    made = payload.plan(FULL, held={1, 2, 5}, booted={digest("a"): 8 * KIB, digest("d"): 0})

    assert list(made.actions) == [C, K, K, F, C, K]
    assert made.totals() == Totals(
        keep=(32 + 128 + 16) * KIB, zero=0, copy=128 * KIB, fetch=500, write=144 * KIB
    )
    assert (made.source_offset(0), made.source_offset(4)) == (8 * KIB, 8 * KIB)
    assert [(it.first, it.last, it.blob_length) for it in made.batches()] == [
        (0, 0, 0),
        (3, 4, 500),
    ]


def test_the_first_chunk_counts_as_held_only_when_all_are() -> None:
    almost = payload.plan(FULL, held={0, 1, 2, 3, 4})
    whole = payload.plan(FULL, held={0, 1, 2, 3, 4, 5})

    assert list(almost.actions) == [F, K, K, K, K, F]
    assert not almost.nothing_to_write
    assert whole.nothing_to_write
    assert whole.totals() == Totals(keep=320 * KIB, zero=0, copy=0, fetch=0, write=0)
    assert list(whole.batches()) == []


def test_a_resumed_slot_that_lacks_its_first_chunk_alone_writes_that() -> None:
    made = payload.plan(FULL, held={1, 2, 3, 4, 5})

    assert list(made.actions) == [F, K, K, K, K, K]


def test_zeros_are_never_copied() -> None:
    assert payload.plan(FULL, booted={digest("0"): 0}).actions[2] == Action.ZERO


def test_a_delta_copies_patches_and_fetches() -> None:
    made = payload.plan(DELTA, booted_root_hash=OLD_ROOT)

    assert list(made.actions) == [F, C, P]
    assert made.totals() == Totals(
        keep=0, zero=0, copy=768 * KIB, fetch=1000, write=592 * KIB
    )  # copied: 512 KiB, and 256 KiB to patch from
    assert made.source_offset(1) == 64 * KIB
    assert [(it.first, it.last, it.blob_offset, it.blob_length) for it in made.batches()] == [
        (0, 2, 0, 1000)
    ]


@pytest.mark.parametrize("booted", [NO_HASH, ROOT])
def test_a_delta_from_another_image_is_refused(booted: bytes) -> None:
    with pytest.raises(SourceError, match=f"root hash {'6f' * 32}, the booted slot has") as refusal:
        payload.plan(DELTA, booted_root_hash=booted)

    assert refusal.value.hint is not None
    assert "full payload" in refusal.value.hint


def test_a_full_payload_does_not_care_what_is_booted() -> None:
    assert not payload.plan(FULL, booted_root_hash=OLD_ROOT).nothing_to_write


def test_a_rotten_copy_of_a_full_payload_is_fetched_instead() -> None:
    made = payload.plan(FULL, booted={digest("a"): 0})

    assert list(made.actions) == [C, F, Z, F, C, F]
    assert list(made.fetching_instead({4}).actions) == [C, F, Z, F, F, F]
    assert list(made.actions) == [C, F, Z, F, C, F]


@pytest.mark.parametrize("number", [1, 2])
def test_a_rotten_source_of_a_delta_cannot_be_fetched(number: int) -> None:
    made = payload.plan(DELTA, booted_root_hash=OLD_ROOT)

    with pytest.raises(SourceError, match=f"^the booted slot does not hold what chunk {number} is"):
        made.fetching_instead({number})


@pytest.mark.parametrize(
    ("totals", "seconds"),
    [
        pytest.param(Totals(keep=0, zero=0, copy=0, fetch=50, write=10), 5.0, id="slow-network"),
        pytest.param(Totals(keep=0, zero=0, copy=0, fetch=5, write=100), 2.0, id="slow-disk"),
        pytest.param(Totals(keep=60, zero=0, copy=40, fetch=0, write=50), 2.0, id="read-and-write"),
        pytest.param(Totals(keep=0, zero=0, copy=0, fetch=0, write=0), 0.0, id="nothing"),
    ],
)
def test_the_expected_time_is_that_of_the_slower_side(totals: Totals, seconds: float) -> None:
    assert totals.seconds(fetch_rate=10, disk_rate=100) == seconds


@pytest.mark.parametrize(
    "break_it",
    [
        lambda chunks: chunks[:-1],
        lambda chunks: [*chunks, chunks[-1]],
        lambda chunks: list(reversed(chunks)),
    ],
    ids=["gap-at-the-end", "one-twice", "backwards"],
)
def test_no_index_is_made_of_chunks_that_do_not_make_the_image(
    break_it: Callable[[list[Chunk]], list[Chunk]],
) -> None:
    with pytest.raises(PayloadError):
        Index.of(break_it(list(FULL)), image_size=320 * KIB, blob_size=35000, root_hash=ROOT)
