"""What a slot is seen to hold, the order in which one is written, and the threads that do it.

How an installation goes on after a fault is in ``tests/publish/test_apply.py``, what a power cut
leaves in ``tests/publish/test_power_cuts.py``.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from tests.disks import loop
from tests.images import (
    BLOCK,
    MARKER,
    Faults,
    Medium,
    Releases,
    flip_bit,
    install,
    medium,
    noise,
    source_of,
)
from update_agent.core import payload
from update_agent.core.payload import Batch, Chunk, Index, Operation
from update_agent.core.slot_image import ImageError
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.host.slot import SlotWriter, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as made:
        yield made


def eio(*_: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# Workers -----------------------------------------------------------------------------------------


class LostError(Exception):
    """What a piece of work raises."""


def lose() -> None:
    raise LostError


def test_all_work_that_was_put_is_done() -> None:
    done: list[int] = []
    with Workers(3) as workers:
        for number in range(100):
            workers.put(lambda number=number: done.append(number))  # type: ignore[misc]
        workers.drain()

    assert sorted(done) == list(range(100))


def test_no_more_work_is_taken_than_can_soon_begin() -> None:
    go_on = threading.Event()
    taken: list[int] = []

    def put(workers: Workers) -> None:
        for number in range(20):
            workers.put(go_on.wait)
            taken.append(number)

    with Workers(2) as workers:
        giver = threading.Thread(target=put, args=(workers,))
        giver.start()
        giver.join(0.2)  # it cannot end while nothing is done
        waiting = giver.is_alive(), len(taken)
        go_on.set()
        giver.join()
        workers.drain()

    assert waiting[0]
    assert 2 <= waiting[1] <= 6  # 2 that run, and at most 2 that wait for each
    assert len(taken) == 20


def test_what_work_raises_is_raised_by_whoever_comes_next(workers: Workers) -> None:
    workers.put(lose)

    with pytest.raises(LostError):
        workers.drain()

    workers.put(lambda: None)  # told once
    workers.drain()


def test_a_failure_reaches_the_giver_of_later_work(workers: Workers) -> None:
    workers.put(lose)

    def give() -> None:
        for _ in range(20):
            workers.put(lambda: None)

    with pytest.raises(LostError):
        give()


def test_many_givers_may_put_at_once_and_each_learns_of_failures() -> None:
    done: list[int] = []
    with Workers(2) as workers:

        def give() -> None:
            for number in range(200):
                workers.put(lambda: done.append(number))  # noqa: B023

        givers = [threading.Thread(target=give) for _ in range(4)]
        for giver in givers:
            giver.start()
        for giver in givers:
            giver.join()
        workers.drain()

    assert len(done) == 800


def test_results_come_in_order_and_only_a_little_ahead(workers: Workers) -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    results = workers.map(lambda it: it * it, items())

    assert next(results) == 0
    assert len(asked) <= 2 * 3 + 1
    assert list(results) == [it * it for it in range(1, 50)]


def test_no_thread_is_left_behind_after_a_failure() -> None:
    before = threading.active_count()
    with Workers(3) as failing:
        for _ in range(3):
            failing.put(lose)
        with pytest.raises(LostError):
            failing.drain()

    assert threading.active_count() == before


# Looking -----------------------------------------------------------------------------------------


def test_the_layout_and_root_hash_of_an_image_are_found(releases: Releases) -> None:
    with open_device(releases.v1.image) as device:
        assert slot.layout(device).image_size == device.size
        assert slot.root_hash(device).hex() == releases.v1.root_hash
        assert not slot.unfinished(device)


@pytest.mark.parametrize("size", [0, 100, BLOCK, 100 * BLOCK])
def test_what_is_no_image_is_named(size: int, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    path.write_bytes(noise(size, "thing"))

    with (
        open_device(path) as device,
        pytest.raises(ImageError, match=rf"^{path}: slot header: ") as refusal,
    ):
        slot.root_hash(device)

    assert refusal.value.hint == "slot images are made by 'update-agent-image seal'"


def test_an_image_that_was_cut_off_is_no_image(releases: Releases, tmp_path: Path) -> None:
    content = releases.v1.content
    path = tmp_path / "short.img"
    for size in (BLOCK, len(content) // 2, len(content) - BLOCK, len(content) - 1):
        path.write_bytes(content[:size])
        with (
            open_device(path) as device,
            pytest.raises(ImageError, match=f"has {size} bytes, its slot header says"),
        ):
            slot.layout(device)


def test_a_whole_slot_holds_every_chunk(releases: Releases, workers: Workers) -> None:
    index = releases.v1.index
    with open_device(releases.v1.image) as device:
        assert slot.held(device, index, workers) == set(range(len(index)))


def test_each_wrong_bit_costs_its_chunk_and_no_other(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    index = releases.v1.index
    path = tmp_path / "slot"
    path.write_bytes(releases.v1.content)
    for number in (1, len(index) // 2, len(index) - 1):
        flip_bit(path, index[number].offset + index[number].length - 1)

    with open_device(path) as device:
        lost = set(range(len(index))) - slot.held(device, index, workers)

    assert lost == {1, len(index) // 2, len(index) - 1}


def test_a_slot_without_image_or_marker_is_not_read(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    with medium(tmp_path / "slot", size=8 * 2**20) as device:
        assert slot.held(device, releases.v1.index, workers) == set()
        assert all(offset == 0 for offset, _ in device.reads)


def test_an_unfinished_slot_is_read_whatever_it_holds(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    index = releases.v1.index
    path = tmp_path / "slot"
    path.write_bytes(MARKER.ljust(BLOCK, b"\0") + releases.v1.content[BLOCK:])

    with open_device(path) as device:
        assert slot.unfinished(device)
        assert slot.held(device, index, workers) == set(range(1, len(index)))


def test_what_cannot_be_read_is_not_held(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    index = releases.v1.index
    middle = index[len(index) // 2].offset

    def bad(_number: int, offset: int, length: int) -> None:
        if offset <= middle < offset + length:
            eio()

    path = tmp_path / "slot"
    path.write_bytes(releases.v1.content)
    with medium(path, Faults(before_read=bad)) as device:
        found = slot.held(device, index, workers)
    with medium(path, Faults(before_read=eio)) as device:
        assert slot.held(device, index, workers) == set()

    assert 0 < len(found) < len(index)
    assert len(index) // 2 not in found


def test_a_slot_that_ends_too_early_holds_what_stands_in_it(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    path = tmp_path / "slot"
    path.write_bytes(MARKER.ljust(BLOCK, b"\0") + releases.v1.content[BLOCK : 3 * 2**20])

    with open_device(path) as device:
        found = slot.held(device, releases.v1.index, workers)

    assert found
    assert all(releases.v1.index[it].offset < 3 * 2**20 for it in found)


def test_what_a_slot_offers_is_found_alike_with_its_index_and_without(
    releases: Releases, workers: Workers
) -> None:
    with open_device(releases.v1.image) as device:
        found = slot.places(device, device.size, workers)

    assert found == slot.places_of(releases.v1.index)


@pytest.mark.parametrize("size", [BLOCK, 2**20, 2**20 + BLOCK, 5 * 2**20 - BLOCK])
def test_chunks_are_the_whole_content_in_order(size: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(noise(size // 2, "image") + bytes(size - size // 2))

    with open_device(path) as device:
        chunks = list(slot.chunks_of(device, size))

    assert b"".join(data for _, data in chunks) == path.read_bytes()
    ends = [offset + len(data) for offset, data in chunks]
    assert [offset for offset, _ in chunks] == [0, *ends[:-1]]


def test_a_booted_slot_that_cannot_be_read_in_places_offers_the_rest(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    def bad(_number: int, offset: int, length: int) -> None:
        if offset <= 2**20 < offset + length:
            eio()

    path = tmp_path / "slot"
    path.write_bytes(releases.v1.content)
    with medium(path, Faults(before_read=bad)) as device:
        found = slot.places(device, device.size, workers)
        with pytest.raises(OSError, match="Input/output error"):
            list(slot.chunks_of(device, device.size))  # a publisher wants to know

    whole = slot.places_of(releases.v1.index)
    assert len(whole.keys() & found.keys()) > len(whole) // 4
    assert all(found[it] == whole[it] for it in whole.keys() & found.keys())


# Writing -----------------------------------------------------------------------------------------


def test_the_marker_comes_first_and_the_first_block_last(
    releases: Releases, tmp_path: Path
) -> None:
    content = releases.v2.content
    with medium(tmp_path / "slot", size=len(content)) as device:
        install(device, source_of(releases.v2.full))

        first, *between, last = device.writes
        assert first == (0, (MARKER + bytes.fromhex(releases.v2.root_hash)).ljust(BLOCK, b"\0"))
        assert last == (0, content[:BLOCK])
        assert all(data.startswith(MARKER) for offset, data in between if offset == 0)
        assert sum(len(data) for _, data in between) == len(content)
        # marker, flush; chunks, flush; first block, flush
        kinds = "".join("f" if it is None else "w" for it in device.journal)
        assert kinds == "wf" + "w" * len(between) + "f" + "wf"


def test_every_written_byte_is_read_back_after_the_flush(
    releases: Releases, tmp_path: Path
) -> None:
    content = releases.v2.content
    seen: list[tuple[int, int]] = []

    with medium(tmp_path / "slot", size=len(content)) as device:

        def clear(number: int) -> None:
            if number == 2:
                device.reads.clear()
            if number == 3:
                seen.extend(device.reads)

        device.faults.before_flush = clear
        install(device, source_of(releases.v2.full))

    read = bytearray(len(content))
    for offset, length in seen:
        read[offset : offset + length] = b"\1" * length
    assert all(read)


def test_a_whole_slot_is_judged_and_flushed_but_not_written(
    releases: Releases, tmp_path: Path
) -> None:
    """It may have been written by a run that was killed before its last flush."""
    path = tmp_path / "slot"
    path.write_bytes(releases.v2.content)
    with medium(path) as device:
        report = install(device, source_of(releases.v2.full))

        assert device.journal == [None]
    assert (report.written, report.totals.keep) == (0, len(releases.v2.content))


@pytest.mark.case(36)
@pytest.mark.parametrize("less", [1, 512, BLOCK])
def test_an_image_larger_than_the_slot_is_refused_before_a_byte_is_written(
    less: int, releases: Releases, tmp_path: Path
) -> None:
    content = releases.v2.content
    with medium(tmp_path / "slot", size=len(content) - less) as device:
        with pytest.raises(
            HostError, match=f"^the image has {len(content)} bytes, {device.path} only"
        ) as refusal:
            install(device, source_of(releases.v2.full))

        assert device.journal == []
    assert refusal.value.hint == "the slot is too small for this release"


@pytest.mark.case(36)
def test_an_image_as_large_as_the_slot_fits(releases: Releases, tmp_path: Path) -> None:
    with medium(tmp_path / "slot", size=len(releases.v2.content)) as device:
        install(device, source_of(releases.v2.full))

    assert (tmp_path / "slot").read_bytes() == releases.v2.content


@pytest.mark.case(37)
@pytest.mark.parametrize("edge", [2**31, 2**32])
def test_chunks_around_the_edges_of_numbers_are_written_kept_and_copied(
    edge: int, workers: Workers, tmp_path: Path
) -> None:
    """Only chunks around the edge are written; what lies before counts as kept."""
    content = noise(2**20, f"edge {edge}")
    before, size = edge - 2**19, 2**20
    filler = [Chunk(Operation.ZERO, 2**20, at, b"z" * 32) for at in range(0, before - size, size)]
    rest = before - len(filler) * size
    filler.append(Chunk(Operation.ZERO, rest, len(filler) * size, b"z" * 32))
    stored = Chunk(
        Operation.STORE, size, before, sha256(content).digest(),
        stored_length=size, stored_digest=sha256(content).digest(),
    )  # fmt: skip
    index = Index.of(
        [*filler, stored], image_size=before + size, blob_size=size, root_hash=b"r" * 32
    )
    last = len(index) - 1

    def write(path: Path, plan: payload.Plan, source: Medium | None, data: bytes) -> None:
        with medium(path, size=index.image_size) as device:
            writer = SlotWriter(device, plan, source=source, workers=workers)
            writer.begin()
            (batch,) = plan.batches({last})
            writer.put(batch, data)
            assert writer.settle() == slot.Undone()
            assert writer.read_back() == set()
            assert device.read(before, size) == content
            assert path.stat().st_blocks * 512 <= 2 * size

    write(tmp_path / "fetched", payload.plan(index), None, content)
    places = {stored.digest: before}
    with medium(tmp_path / "fetched") as source:
        write(tmp_path / "copied", payload.plan(index, booted=places), source, b"")


def test_stored_bytes_are_hashed_before_they_are_decoded(workers: Workers, tmp_path: Path) -> None:
    """A frame that decodes to the right bytes, but is not the promised one, is refused."""
    content = bytes(range(256)) * 64
    promised = zstandard.ZstdCompressor(level=1).compress(content)
    other = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(content)
    index = _index_of(Operation.ZSTD, content, promised)

    assert _put(index, other, workers, tmp_path).refused == {0}
    assert _put(index, promised, workers, tmp_path) == slot.Undone()


@pytest.mark.parametrize(
    "make",
    [
        lambda zstd, content: zstd.compress(content[:-1]),
        lambda zstd, content: zstd.compress(content + b"x"),
        lambda zstd, content: zstd.compress(content) + b"x",
        lambda zstd, content: zstd.compress(content)[:-1],
        lambda zstd, _: zstd.compress(bytes(2**26)),
        lambda _, content: content[:100],
        lambda *_: b"\x28\xb5\x2f\xfd",
    ],
    ids=["too-short", "too-long", "more-behind-it", "cut-off", "bomb", "no-frame", "empty-frame"],
)
def test_a_promised_frame_that_is_not_what_it_should_be_is_refused_unwritten(
    make: Callable[[zstandard.ZstdCompressor, bytes], bytes], workers: Workers, tmp_path: Path
) -> None:
    """An index that lies: the hash of the stored bytes is right, what is in them is not."""
    content = noise(BLOCK, "lie") * 4
    stored = make(zstandard.ZstdCompressor(), content)
    undone = _put(_index_of(Operation.ZSTD, content, stored), stored, workers, tmp_path)

    assert undone == slot.Undone(numbers=frozenset({0}), refused=frozenset({0}))
    assert (tmp_path / "slot").read_bytes()[BLOCK:] == bytes(3 * BLOCK)


def test_stored_bytes_that_are_too_few_are_refused(workers: Workers, tmp_path: Path) -> None:
    content = noise(4 * BLOCK, "few")
    index = _index_of(Operation.STORE, content, content)

    for stored in (b"", content[:-1], content[1:]):
        assert _put(index, stored, workers, tmp_path).refused == {0}


def _index_of(operation: Operation, content: bytes, stored: bytes) -> Index:
    chunk = Chunk(
        operation, len(content), 0, sha256(content).digest(),
        stored_length=len(stored), stored_digest=sha256(stored).digest(),
    )  # fmt: skip
    return Index.of([chunk], image_size=len(content), blob_size=len(stored), root_hash=b"r" * 32)


def _put(index: Index, stored: bytes, workers: Workers, folder: Path) -> slot.Undone:
    plan = payload.plan(index)
    with medium(folder / "slot", size=index.image_size) as device:
        writer = SlotWriter(device, plan, source=None, workers=workers)
        writer.begin()
        (batch,) = plan.batches()
        writer.put(batch, stored)
        return writer.settle()


def test_a_disk_error_of_a_worker_is_told_by_settle(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    def second(number: int, _offset: int, _length: int) -> None:
        if number == 2:
            eio()

    index = releases.v2.index
    plan = payload.plan(index)
    with medium(tmp_path / "slot", Faults(before_write=second), index.image_size) as device:
        writer = SlotWriter(device, plan, source=None, workers=workers)
        writer.begin()
        batch = next(plan.batches())
        blob = releases.v2.full.blob.read_bytes()
        writer.put(batch, blob[batch.blob_offset : batch.blob_offset + batch.blob_length])
        with pytest.raises(
            HostError, match=rf"^{device.path} failed: Input/output error$"
        ) as failure:
            writer.settle()

    assert failure.value.hint is not None
    assert "must not be booted" in failure.value.hint


def test_a_disk_that_loses_the_marker_is_not_written_to(
    releases: Releases, workers: Workers, tmp_path: Path
) -> None:
    path = tmp_path / "slot"
    path.write_bytes(releases.v1.content)
    plan = payload.plan(releases.v2.index)
    faults = Faults(after_write=lambda _n, offset, _l: flip_bit(path, offset))
    with medium(path, faults, releases.v2.index.image_size) as device:
        writer = SlotWriter(device, plan, source=None, workers=workers)
        with pytest.raises(HostError, match=r"does not hold the first block that was written$"):
            writer.begin()

        assert len(device.writes) == 1


@pytest.mark.case(43)
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_loop_device_holds_the_image_and_nothing_beyond_it_is_touched(
    sector_size: int, releases: Releases, tmp_path: Path
) -> None:
    content = releases.v2.content
    disk = tmp_path / "disk"
    disk.write_bytes(noise(len(content) + 5 * BLOCK, "old"))
    with (
        loop(disk, sector_size) as path,
        open_device(path, writable=True, exclusive=True) as device,
    ):
        install(device, source_of(releases.v2.full))
        assert slot.root_hash(device).hex() == releases.v2.root_hash

    assert disk.read_bytes() == content + noise(len(content) + 5 * BLOCK, "old")[len(content) :]


def test_a_batch_is_what_one_write_is(releases: Releases, tmp_path: Path) -> None:
    batches: list[Batch] = list(payload.plan(releases.v2.index).batches())
    with medium(tmp_path / "slot", size=len(releases.v2.content)) as device:
        install(device, source_of(releases.v2.full))

        written = sorted((offset, len(data)) for offset, data in device.writes[1:-1])
    assert written == [(it.offset, it.length) for it in batches]
