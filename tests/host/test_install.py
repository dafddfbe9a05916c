"""Installing: from any payload, over any disk, with whatever goes wrong between them."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.images import (
    BLOCK,
    MARKER,
    Faults,
    MemoryBlob,
    Release,
    Releases,
    blob_of,
    flip_bit,
    install,
    medium,
    noise,
    source_of,
)
from update_agent.core import payload
from update_agent.core.payload import Action, Batch, Index, Operation, SourceError
from update_agent.core.slot_image import ImageError
from update_agent.errors import HostError, ReleaseError
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.host.install import ROUNDS, Source
from update_agent.publish.payload import make


def eio(*_: int) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def nth(number: int) -> Callable[..., None]:
    """Return a hook that fails at the access with that number."""

    def hook(now: int, *_: int) -> None:
        if now == number:
            eio()

    return hook


def within(at: int) -> Callable[[int, int, int], None]:
    """Return a hook that fails whenever the byte ``at`` is touched."""

    def hook(_number: int, offset: int, length: int) -> None:
        if offset <= at < offset + length:
            eio()

    return hook


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot"


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# What an update costs ----------------------------------------------------------------------------


def test_an_empty_slot_takes_the_full_payload(releases: Releases, path: Path) -> None:
    content, source = releases.v2.content, source_of(releases.v2.full)
    with medium(path, size=len(content)) as device:
        report = install(device, source)

    assert path.read_bytes() == content
    assert report.written == report.totals.write == len(content)
    assert report.totals.keep == report.totals.copy == 0
    assert 2**20 <= report.totals.zero <= 2_500_000  # a file of zeros; its ends share chunks
    assert blob_of(source).bytes_given == report.totals.fetch < len(content)
    assert set(report.seconds_by_step) == {"look", "write", "read back", "finish"}


@pytest.mark.parametrize("indexed", [True, False], ids=["index-known", "index-not-known"])
def test_what_the_booted_slot_holds_is_not_fetched(
    *, indexed: bool, releases: Releases, path: Path
) -> None:
    source = source_of(releases.v2.full)
    with (
        open_device(releases.v1.image) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        report = install(
            device, source, booted=booted, booted_index=releases.v1.index if indexed else None
        )

    assert path.read_bytes() == releases.v2.content
    # new are 270 kB of noise and the text; chunks around them are cut anew
    assert 270_000 < blob_of(source).bytes_given < releases.v2.index.blob_size * 0.6
    assert report.totals.copy > 1_000_000


def test_a_delta_fetches_little(releases: Releases, path: Path) -> None:
    source = source_of(releases.delta)
    with (
        open_device(releases.v1.image) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        install(device, source, booted=booted)

    assert path.read_bytes() == releases.v2.content
    assert 270_000 < blob_of(source).bytes_given < 350_000


def test_the_old_release_in_the_other_slot_is_kept_where_it_is_right(
    releases: Releases, path: Path
) -> None:
    path.write_bytes(releases.v1.content)
    source = source_of(releases.v2.full)
    with medium(path, size=len(releases.v2.content)) as device:
        report = install(device, source)

    same = [
        chunk
        for chunk in releases.v2.index
        if chunk.offset
        and releases.v1.content[chunk.offset :][: chunk.length]
        == releases.v2.content[chunk.offset :][: chunk.length]
    ]
    assert path.read_bytes()[: len(releases.v2.content)] == releases.v2.content
    assert report.totals.keep == sum(chunk.length for chunk in same) > 0


def test_a_release_that_is_there_already_costs_nothing(releases: Releases, path: Path) -> None:
    path.write_bytes(releases.v2.content)
    source = source_of(releases.v2.full)
    with medium(path) as device:
        report = install(device, source)

    assert (report.written, report.totals.fetch) == (0, 0)
    assert blob_of(source).given == []


def test_bytes_behind_the_image_in_its_slot_stay(releases: Releases, path: Path) -> None:
    size = len(releases.v2.content)
    path.write_bytes(noise(size + 3 * BLOCK, "old"))
    with medium(path) as device:
        install(device, source_of(releases.v2.full))

    assert path.read_bytes() == releases.v2.content + noise(size + 3 * BLOCK, "old")[size:]


# Stored bytes that are wrong ---------------------------------------------------------------------


def garble(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


@pytest.mark.case(34)
@pytest.mark.parametrize("times", [1, ROUNDS - 1])
def test_a_chunk_of_right_length_and_wrong_hash_is_asked_for_again(
    times: int, releases: Releases, path: Path
) -> None:
    def spoil(data: bytearray, offset: int, tries: int) -> None:
        if tries <= times and offset == 0:
            garble(data)

    source = source_of(releases.v2.full, spoil)
    with medium(path, size=len(releases.v2.content)) as device:
        install(device, source)

    blob = blob_of(source)
    assert path.read_bytes() == releases.v2.content
    assert [it.blob_offset for it in blob.distrusted] == [0] * times
    assert [it.first for it in blob.given].count(0) == times + 1
    assert len(blob.given) == len({it.first for it in blob.given}) + times


@pytest.mark.case(34)
def test_a_chunk_that_stays_wrong_is_the_releases_fault(releases: Releases, path: Path) -> None:
    def spoil(data: bytearray, offset: int, _tries: int) -> None:
        if offset == 0:
            garble(data)

    content = releases.v2.content
    source = source_of(releases.v2.full, spoil)
    with medium(path, size=len(content)) as device:
        with pytest.raises(
            ReleaseError, match=rf"^\d+ chunks have a wrong hash after {ROUNDS} tries, the first is"
        ) as refusal:
            install(device, source)
        assert slot.unfinished(device)
        report = install(device, source_of(releases.v2.full))

    assert refusal.value.exit_code == 3
    assert path.read_bytes() == content
    assert report.totals.keep > 0  # the rest was right, and stayed


@pytest.mark.case(34)
def test_no_wrong_byte_ever_reaches_the_disk(releases: Releases, path: Path) -> None:
    content = releases.v2.content
    source = source_of(releases.v2.full, lambda data, _offset, _tries: garble(data))
    with medium(path, size=len(content)) as device:
        with pytest.raises(ReleaseError):
            install(device, source)

        for offset, data in device.writes[1:]:
            assert data == content[offset : offset + len(data)]


@pytest.mark.case(14)
def test_the_blob_of_another_release_is_refused(releases: Releases, path: Path) -> None:
    mixed = replace(
        source_of(releases.v2.full), blob=MemoryBlob(releases.v1.full.blob.read_bytes())
    )
    with medium(path, size=len(releases.v2.content)) as device:
        with pytest.raises(ReleaseError, match="have a wrong hash") as refusal:
            install(device, mixed)
        assert slot.unfinished(device)

    assert refusal.value.hint is not None
    assert "don't belong together" in refusal.value.hint


@pytest.mark.case(21)
def test_a_blob_that_is_cut_off_is_refused(releases: Releases, path: Path) -> None:
    whole = releases.v2.full.blob.read_bytes()
    cut = replace(source_of(releases.v2.full), blob=MemoryBlob(whole[: len(whole) // 2]))
    with (
        medium(path, size=len(releases.v2.content)) as device,
        pytest.raises(ReleaseError, match="have a wrong hash"),
    ):
        install(device, cut)


# A booted slot that rots -------------------------------------------------------------------------


def rotten(releases: Releases, folder: Path, operation: Operation) -> tuple[Path, int]:
    """Return a copy of v1 with a wrong bit where the delta takes it from, and that place."""
    image = folder / "booted"
    image.write_bytes(releases.v1.content)
    chunk = next(it for it in releases.delta_index if it.operation == operation)
    at = chunk.source_offset + chunk.source_length // 2
    flip_bit(image, at)
    return image, at


@pytest.mark.parametrize("indexed", [True, False], ids=["index-known", "index-not-known"])
def test_a_rotten_source_costs_a_full_payload_bandwidth_only(
    *, indexed: bool, releases: Releases, path: Path, tmp_path: Path
) -> None:
    image, _ = rotten(releases, tmp_path, Operation.COPY)
    index = releases.v1.index if indexed else None
    source = source_of(releases.v2.full)
    with open_device(image) as booted, medium(path, size=len(releases.v2.content)) as device:
        report = install(device, source, booted=booted, booted_index=index)

    assert path.read_bytes() == releases.v2.content
    assert report.totals.fetch == blob_of(source).bytes_given - _twice(blob_of(source))
    assert blob_of(source).distrusted == []


def _twice(blob: MemoryBlob) -> int:
    """Bytes that were given more than once."""
    return blob.bytes_given - sum({it.blob_offset: it.blob_length for it in blob.given}.values())


@pytest.mark.parametrize("operation", [Operation.COPY, Operation.PATCH])
def test_a_rotten_source_makes_a_delta_give_way_to_the_full_payload(
    operation: Operation, releases: Releases, path: Path, tmp_path: Path
) -> None:
    image, _ = rotten(releases, tmp_path, operation)
    delta, full = source_of(releases.delta), source_of(releases.v2.full)
    with open_device(image) as booted, medium(path, size=len(releases.v2.content)) as device:
        report = install(device, delta, full, booted=booted)

    assert path.read_bytes() == releases.v2.content
    assert report.payload == "v2.index"
    assert report.totals.keep > 1_000_000  # what the delta had made already
    assert blob_of(delta).tries == 1


@pytest.mark.parametrize("wrong", ["blob", "image"])
def test_a_delta_that_is_broken_gives_way_to_the_full_payload(
    wrong: str, releases: Releases, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delta, full = source_of(releases.delta), source_of(releases.v2.full)
    if wrong == "blob":
        delta = replace(delta, blob=MemoryBlob(bytes(len(blob_of(delta).data))))
    else:
        lying = Index.of(
            delta.index, image_size=delta.index.image_size, blob_size=delta.index.blob_size,
            root_hash=b"x" * 32, source_root_hash=delta.index.source_root_hash,
        )  # fmt: skip
        delta = replace(delta, index=lying)
    with (
        open_device(releases.v1.image) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        report = install(device, delta, full, booted=booted)

    assert path.read_bytes() == releases.v2.content
    assert report.payload == full.name
    assert f"the payload {delta.name} cannot be used: " in caplog.text


def test_a_rotten_source_without_a_full_payload_is_an_error(
    releases: Releases, path: Path, tmp_path: Path
) -> None:
    image, _ = rotten(releases, tmp_path, Operation.COPY)
    with open_device(image) as booted, medium(path, size=len(releases.v2.content)) as device:
        with pytest.raises(SourceError, match=r"^the booted slot does not hold what chunk"):
            install(device, source_of(releases.delta), booted=booted)
        assert slot.unfinished(device)


@pytest.mark.case(38)
@pytest.mark.parametrize("indexed", [True, False], ids=["index-known", "index-not-known"])
def test_a_source_that_cannot_be_read_is_fetched_instead(
    *, indexed: bool, releases: Releases, path: Path, tmp_path: Path
) -> None:
    image, at = rotten(releases, tmp_path, Operation.COPY)
    index = releases.v1.index if indexed else None
    with (
        medium(image, Faults(before_read=within(at))) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        report = install(device, source_of(releases.v2.full), booted=booted, booted_index=index)

    assert path.read_bytes() == releases.v2.content
    assert report.totals.copy > 0


@pytest.mark.case(38)
def test_a_source_that_cannot_be_read_makes_a_delta_give_way(
    releases: Releases, path: Path, tmp_path: Path
) -> None:
    image, at = rotten(releases, tmp_path, Operation.PATCH)
    with (
        medium(image, Faults(before_read=within(at))) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        report = install(
            device, source_of(releases.delta), source_of(releases.v2.full), booted=booted
        )

    assert path.read_bytes() == releases.v2.content
    assert report.payload == "v2.index"


@pytest.mark.parametrize("kind", ["noise", "empty", "cut-off", "unreadable", "none"])
def test_a_source_that_is_no_image_is_not_needed_by_a_full_payload(
    kind: str, releases: Releases, path: Path, tmp_path: Path
) -> None:
    bad, faults = _no_source(kind, releases, tmp_path)
    delta, full = source_of(releases.delta), source_of(releases.v2.full)
    size = len(releases.v2.content)
    with medium(bad, faults) as other, medium(path, size=size) as device:
        booted = None if kind == "none" else other
        with pytest.raises(SourceError) as refusal:
            install(device, delta, booted=booted)
        assert device.journal == []  # refused before anything was written
        report = install(device, delta, full, booted=booted)

    assert refusal.value.hint == "take the full payload"
    assert kind == "none" or str(bad) in str(refusal.value)
    assert path.read_bytes() == releases.v2.content
    assert (report.payload, report.totals.copy) == ("v2.index", 0)


def _no_source(kind: str, releases: Releases, folder: Path) -> tuple[Path, Faults]:
    bad = folder / "booted"
    bad.write_bytes({
        "noise": noise(2**20, "no image"),
        "cut-off": releases.v1.content[: 2**20],
        "unreadable": releases.v1.content,
    }.get(kind, b""))  # fmt: skip
    return bad, Faults(before_read=eio) if kind == "unreadable" else Faults()


def test_a_delta_from_another_release_gives_way(releases: Releases, path: Path) -> None:
    with (
        open_device(releases.v2.image) as booted,  # not v1
        medium(path, size=len(releases.v2.content)) as device,
    ):
        report = install(
            device, source_of(releases.delta), source_of(releases.v2.full), booted=booted
        )

    assert report.payload == "v2.index"
    assert report.totals.fetch == 0  # everything stands in the booted slot


def test_an_index_that_is_not_the_sources_costs_bandwidth_only(
    releases: Releases, path: Path
) -> None:
    with (
        open_device(releases.v1.image) as booted,
        medium(path, size=len(releases.v2.content)) as device,
    ):
        install(device, source_of(releases.v2.full), booted=booted, booted_index=releases.v2.index)

    assert path.read_bytes() == releases.v2.content


# A disk that fails -------------------------------------------------------------------------------


def unbootable(path: Path) -> bool:
    return path.read_bytes()[: len(MARKER)] == MARKER


@pytest.mark.case(38)
def test_eio_at_any_write_leaves_an_unbootable_slot_that_the_next_run_completes(
    releases: Releases, path: Path
) -> None:
    content = releases.v2.content
    before = releases.v1.content.ljust(len(content), b"\0")
    path.write_bytes(before)
    with medium(path) as device:
        install(device, source_of(releases.v2.full))
        count = len(device.writes)
    assert count > 5

    for number in range(1, count + 1):
        path.write_bytes(before)
        with (
            medium(path, Faults(before_write=nth(number))) as device,
            pytest.raises(HostError, match=rf"^{path} failed: Input/output error$"),
        ):
            install(device, source_of(releases.v2.full))
        assert unbootable(path) or number == 1  # else the old release is still whole
        assert number > 1 or path.read_bytes().startswith(releases.v1.content)

        with medium(path) as device:
            report = install(device, source_of(releases.v2.full))
        assert path.read_bytes() == content
        assert number < count or report.totals.write == releases.v2.index[0].length


@pytest.mark.case(39)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flush_that_fails_once_does_not_end_in_success(
    number: int, releases: Releases, path: Path
) -> None:
    content = releases.v2.content
    with medium(path, Faults(before_flush=nth(number)), len(content)) as device:
        with pytest.raises(HostError, match=rf"^{path} failed: Input/output error$"):
            install(device, source_of(releases.v2.full))
        assert device.journal.count(None) == number  # never flushed again
        assert number == 3 or unbootable(path)

    with medium(path) as device:
        install(device, source_of(releases.v2.full))
    assert path.read_bytes() == content


@pytest.mark.case(39)
def test_a_whole_slot_that_cannot_be_flushed_is_no_success(releases: Releases, path: Path) -> None:
    path.write_bytes(releases.v2.content)
    with (
        medium(path, Faults(before_flush=nth(1))) as device,
        pytest.raises(HostError, match=r"Input/output error$"),
    ):
        install(device, source_of(releases.v2.full))


@pytest.mark.case(39)
def test_what_a_failed_flush_lost_is_written_again_by_the_next_run(
    releases: Releases, path: Path
) -> None:
    """The disk says EIO once, drops two writes, and says that all is well ever after."""
    content = releases.v2.content
    with medium(path, Faults(before_flush=nth(2)), len(content)) as device:
        with pytest.raises(HostError):
            install(device, source_of(releases.v2.full))
        lost = [it for it in device.writes if it[0]][:2]
    with path.open("r+b") as file:
        for offset, data in lost:
            file.seek(offset)
            file.write(noise(len(data), "lost"))

    with medium(path) as device:
        report = install(device, source_of(releases.v2.full))

    assert path.read_bytes() == content
    assert report.totals.write >= sum(len(data) for _, data in lost)


@pytest.mark.case(41)
def test_a_bit_that_flips_after_a_write_is_found_and_written_again(
    releases: Releases, path: Path
) -> None:
    content = releases.v2.content
    rots = 3

    def rot(number: int, offset: int, length: int) -> None:
        if number == rots:
            flip_bit(path, offset + length // 2)

    with medium(path, Faults(after_write=rot), len(content)) as device:
        install(device, source_of(releases.v2.full))

        once = device.writes[rots - 1]
        assert path.read_bytes() == content
        assert device.writes.count(once) == 2
        assert len(device.writes) == len({offset for offset, _ in device.writes}) + 2 + 1


@pytest.mark.case(41)
@pytest.mark.parametrize("at", [BLOCK, 2**20 + 5, -1], ids=["first-batch", "second", "kernel"])
def test_a_place_that_always_rots_is_the_disks_fault(
    at: int, releases: Releases, path: Path
) -> None:
    content = releases.v2.content
    place = at % len(content)

    def rot(_number: int, offset: int, length: int) -> None:
        if offset <= place < offset + length:
            flip_bit(path, place)

    with (
        medium(path, Faults(after_write=rot), len(content)) as device,
        pytest.raises(HostError, match=rf"^{path} does not hold what was written to it") as refusal,
    ):
        install(device, source_of(releases.v2.full))

    assert refusal.value.hint is not None
    assert "replace the disk" in refusal.value.hint
    assert unbootable(path)


@pytest.mark.case(41)
def test_a_first_block_that_rots_is_no_success(releases: Releases, path: Path) -> None:
    content = releases.v2.content

    def rot(number: int, offset: int, _length: int) -> None:
        if offset == 0 and number > 3:
            flip_bit(path, 100)

    with (
        medium(path, Faults(after_write=rot), len(content)) as device,
        pytest.raises(HostError, match=rf"^{path} does not hold"),
    ):
        install(device, source_of(releases.v2.full))


@pytest.mark.case(41)
def test_a_written_place_that_cannot_be_read_back_is_the_disks_fault(
    releases: Releases, path: Path
) -> None:
    content = releases.v2.content
    with (
        medium(path, Faults(before_read=within(2**20)), len(content)) as device,
        pytest.raises(HostError, match=rf"^{path} failed: Input/output error$"),
    ):
        install(device, source_of(releases.v2.full))
    assert unbootable(path)


def test_an_unreadable_place_in_the_old_content_is_healed_by_writing_it(
    releases: Releases, path: Path
) -> None:
    path.write_bytes(releases.v1.content.ljust(len(releases.v2.content), b"\0"))
    healed = threading.Event()

    def bad(_number: int, offset: int, length: int) -> None:
        if offset <= 2**20 < offset + length and not healed.is_set():
            eio()

    def heal(_number: int, offset: int, length: int) -> None:
        if offset <= 2**20 < offset + length:
            healed.set()

    with medium(path, Faults(before_read=bad, after_write=heal)) as device:
        install(device, source_of(releases.v2.full))

    assert path.read_bytes()[: len(releases.v2.content)] == releases.v2.content


def test_a_network_error_leaves_what_was_written(releases: Releases, path: Path) -> None:
    class Broken(MemoryBlob):
        def fetch(
            self, spans: Sequence[Batch], deliver: Callable[[Batch, bytearray], None]
        ) -> None:
            super().fetch(spans[:2], deliver)
            raise HostError("the network is gone")

    broken = replace(source_of(releases.v2.full), blob=Broken(releases.v2.full.blob.read_bytes()))
    with medium(path, size=len(releases.v2.content)) as device:
        with pytest.raises(HostError, match=r"^the network is gone$"):
            install(device, broken)
        assert unbootable(path)
        report = install(device, source_of(releases.v2.full))

    assert path.read_bytes() == releases.v2.content
    assert report.totals.keep > 0


# Images that are not what they say ---------------------------------------------------------------


def broken_image(release: Release, at: int, folder: Path) -> Release:
    """Return ``release`` with a wrong bit at ``at``, and the payload of just that image."""
    image = folder / "broken.img"
    image.write_bytes(release.content)
    flip_bit(image, at % len(release.content))
    return Release(
        image=image, root_hash=release.root_hash, full=make(image, folder / "out", level=1)
    )


@pytest.mark.case(51)
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tree", r"^verity tree: block \d+ of level 1 has a wrong hash$"),
        ("salt", "^verity tree: block 0 of level 0 has a wrong hash$"),
        ("superblock", ": verity superblock: data blocks is"),
        ("kernel", "^the kernel does not have the hash in its kernel region$"),
        ("kernel-size", "^kernel region: CRC-32 is"),
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["installed", "there-already"])
def test_an_image_with_right_chunks_and_wrong_insides_is_never_finished(
    *, there: bool, part: str, message: str, releases: Releases, path: Path, tmp_path: Path
) -> None:
    with open_device(releases.v2.image) as device:
        layout = slot.layout(device)
    at = {
        "tree": layout.kernel_offset - BLOCK,  # the last block of the lowest level
        "salt": layout.verity_offset + 88,
        "superblock": layout.verity_offset + 72,
        "kernel": layout.kernel_offset + BLOCK + 100_000,
        "kernel-size": layout.kernel_offset + 8,
    }[part]
    if part == "salt":  # a bit of the salt counts only if there is a salt
        image = tmp_path / "salted.img"
        content = bytearray(releases.v2.content)
        content[layout.verity_offset + 80 : layout.verity_offset + 82] = b"\x01\0"
        image.write_bytes(content)
        index = make(image, tmp_path / "out", level=1)
        decoded = payload.decode(index.index.read_bytes())
        honest = _with_root_hash(decoded, bytes.fromhex(releases.v2.root_hash))
        source = Source(name="salted", index=honest, blob=MemoryBlob(index.blob.read_bytes()))
    elif part == "superblock":
        image = tmp_path / "broken.img"
        image.write_bytes(releases.v2.content)
        flip_bit(image, at)
        with pytest.raises(ImageError, match=message):
            make(image, tmp_path / "out", level=1)  # refused when it is published
        return
    else:
        made = broken_image(releases.v2, at, tmp_path)
        image, source = made.image, source_of(made.full)
    if there:
        path.write_bytes(image.read_bytes())
    with medium(path, size=len(releases.v2.content)) as device:
        with pytest.raises(ImageError, match=message) as refusal:
            install(device, source)
        assert there or unbootable(path)
        assert not there or device.writes == []
        with pytest.raises(ImageError, match=message):
            install(device, source)  # and again

    assert refusal.value.exit_code == 3


def _with_root_hash(index: Index, root_hash: bytes) -> Index:
    return Index.of(
        index, image_size=index.image_size, blob_size=index.blob_size, root_hash=root_hash
    )


@pytest.mark.case(51)
def test_an_index_that_names_another_root_hash_is_never_finished(
    releases: Releases, path: Path
) -> None:
    honest = source_of(releases.v2.full)
    lying = replace(honest, index=_with_root_hash(honest.index, b"x" * 32))
    with medium(path, size=len(releases.v2.content)) as device:
        with pytest.raises(ImageError, match=r"^verity tree: block 0 of level 0"):
            install(device, lying)
        assert unbootable(path)
        report = install(device, honest)

    assert path.read_bytes() == releases.v2.content
    assert report.totals.write == releases.v2.index[0].length


@pytest.mark.case(51)
def test_a_slot_header_that_speaks_of_another_size_is_never_finished(
    releases: Releases, path: Path
) -> None:
    """An image with bytes behind what its header knows of: nobody would verify those."""
    index = releases.v2.index
    more = payload.Chunk(Operation.ZERO, BLOCK, index.image_size, b"z" * 32)
    longer = Index.of(
        [*index, more], image_size=index.image_size + BLOCK, blob_size=index.blob_size,
        root_hash=index.root_hash,
    )  # fmt: skip
    source = replace(source_of(releases.v2.full), index=longer)
    with (
        medium(path, size=longer.image_size) as device,
        pytest.raises(ImageError, match=r"^the slot header says \d+ bytes, the index \d+$"),
    ):
        install(device, source)
    assert unbootable(path)


def test_what_a_plan_says_is_what_is_fetched(releases: Releases) -> None:
    """Totals are known before the first byte."""
    made = payload.plan(releases.v2.index, booted=slot.places_of(releases.v1.index))

    fetched = sum(batch.blob_length for batch in made.batches())
    assert made.totals().fetch == fetched
    assert Action.COPY in set(made.actions)
