"""Published payloads: the same every time, made of the right bytes, and never half made.

``applied`` makes the image of a payload as the format's description says, with zstandard and no
help from the code that hosts run.
"""

import os
import struct
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import assert_never

import pytest
import zstandard

from tests.disks import tool
from tests.images import BLOCK, Releases, first_tree, noise, release
from update_agent.core import payload
from update_agent.core.payload import Index, Operation, PayloadError
from update_agent.core.slot_image import ImageError, Layout
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.publish import delta
from update_agent.publish.payload import Made, make

MIB = 2**20


def index_of(made: Made) -> Index:
    return payload.decode(made.index.read_bytes())


def applied(made: Made, source: bytes = b"") -> bytes:
    blob = made.blob.read_bytes()
    image = bytearray()
    for chunk in index_of(made):
        stored = blob[chunk.blob_offset : chunk.blob_offset + chunk.stored_length]
        old = source[chunk.source_offset : chunk.source_offset + chunk.source_length]
        if chunk.stored_length:
            assert sha256(stored).digest() == chunk.stored_digest
        match Operation(chunk.operation):
            case Operation.ZERO:
                data = bytes(chunk.length)
            case Operation.STORE:
                data = stored
            case Operation.ZSTD:
                data = zstandard.ZstdDecompressor().decompress(stored)
            case Operation.COPY:
                data = old
            case Operation.PATCH:
                known = zstandard.ZstdCompressionDict(old, zstandard.DICT_TYPE_RAWCONTENT)
                data = zstandard.ZstdDecompressor(dict_data=known).decompress(stored)
            case never:
                assert_never(never)
        assert sha256(data).digest() == chunk.digest
        assert (len(image), len(data)) == (chunk.offset, chunk.length)
        image += data
    return bytes(image)


# Content -----------------------------------------------------------------------------------------


def test_a_full_payload_makes_the_image(releases: Releases) -> None:
    for it in (releases.v1, releases.v2):
        assert applied(it.full) == it.content
        assert it.index.root_hash.hex() == it.root_hash
        assert not it.index.is_delta


def test_a_delta_payload_makes_the_new_image_of_the_old_one(releases: Releases) -> None:
    assert applied(releases.delta, releases.v1.content) == releases.v2.content
    assert releases.delta_index.source_root_hash.hex() == releases.v1.root_hash
    assert {Operation(it.operation) for it in releases.delta_index} >= {
        Operation.COPY, Operation.PATCH,
    }  # fmt: skip


def test_a_patch_needs_little_memory_on_the_host(releases: Releases) -> None:
    for chunk in releases.delta_index:
        assert chunk.source_length <= 4 * MIB
        if chunk.operation == Operation.PATCH:
            blob = releases.delta.blob.read_bytes()[chunk.blob_offset :][: chunk.stored_length]
            assert zstandard.get_frame_parameters(blob).window_size <= 8 * MIB


def test_payloads_are_the_same_every_time(releases: Releases, tmp_path: Path) -> None:
    old, new = releases.v1.image, releases.v2.image
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        full = make(new, tmp_path / "out", level=3)
        changes = make(new, tmp_path / "out", source=old, level=3)
    finally:
        os.sched_setaffinity(0, cores)

    for first, second in ((releases.v2.full, full), (releases.delta, changes)):
        assert first.index.read_bytes() == second.index.read_bytes()
        assert first.blob.read_bytes() == second.blob.read_bytes()
        assert first.chunks == second.chunks == len(index_of(first))


def test_a_higher_level_makes_less_of_it(releases: Releases, tmp_path: Path) -> None:
    small = make(releases.v2.image, tmp_path, level=19)

    assert applied(small) == releases.v2.content
    assert small.blob.stat().st_size < releases.v2.full.blob.stat().st_size


def test_equal_chunks_are_stored_once_and_the_blob_has_no_gap(releases: Releases) -> None:
    index = releases.v1.index
    stored = {(it.blob_offset, it.stored_length) for it in index if it.stored_length}

    at = 0
    for offset, length in sorted(stored):
        assert offset == at
        at += length
    assert at == index.blob_size == releases.v1.full.blob.stat().st_size
    twice = [it for it in index if it.stored_length]
    assert len(twice) > len(stored)  # lib/twin stands twice in the image
    assert len({it.digest for it in twice}) == len(stored)


def test_zeros_are_not_stored(releases: Releases) -> None:
    zeros = [it for it in releases.v1.index if it.operation == Operation.ZERO]

    assert MIB <= sum(it.length for it in zeros) <= 2_500_000  # a file; its ends share chunks
    assert all(it.digest == sha256(bytes(it.length)).digest() for it in zeros)
    assert len(zeros) <= 3  # they cost next to nothing in the index either


def test_what_does_not_compress_is_stored_as_it_is(releases: Releases) -> None:
    stored = [it for it in releases.v1.index if it.operation == Operation.STORE]

    assert sum(it.length for it in stored) > 1_500_000  # of 2.5 MB of noise
    assert all(it.stored_length == it.length for it in stored)


def test_stored_chunks_follow_the_order_of_the_image(releases: Releases) -> None:
    """So that neighbours are one range request."""
    new = 0
    for chunk in releases.v2.index:
        if chunk.stored_length and chunk.blob_offset >= new:
            assert chunk.blob_offset == new
            new += chunk.stored_length


# Deltas between odd images -----------------------------------------------------------------------


def test_between_equal_images_a_delta_is_copies_alone(releases: Releases, tmp_path: Path) -> None:
    made = make(releases.v1.image, tmp_path, source=releases.v1.image)

    index = index_of(made)
    assert {it.operation for it in index} == {Operation.COPY}
    assert [it.source_offset for it in index] == [it.offset for it in index]
    assert made.blob.read_bytes() == b""
    assert made.index.name == "v1.from.v1.index"
    assert applied(made, releases.v1.content) == releases.v1.content


@pytest.mark.parametrize("which", ["unrelated", "short", "long"])
def test_from_any_old_image_a_delta_makes_the_new_one(
    which: str, releases: Releases, tmp_path: Path
) -> None:
    tree = {
        "unrelated": {"other": noise(2_000_000, "other")},
        "short": {"bin/agent": first_tree()["bin/agent"]},
        "long": first_tree() | {"z": noise(5_000_000, "z")},
    }[which]
    old = release(tmp_path, "old", tree, noise(9_000, "old kernel"))

    made = make(releases.v2.image, tmp_path / "out", source=old.image, level=3)

    assert applied(made, old.content) == releases.v2.content
    full = releases.v2.full.blob.stat().st_size
    limit = {"unrelated": full * 1.1, "short": full - 400_000, "long": full / 4}[which]
    assert made.blob.stat().st_size < limit


def test_what_stands_behind_an_image_in_its_file_is_on_no_host(
    releases: Releases, tmp_path: Path
) -> None:
    padded = tmp_path / "padded.img"
    padded.write_bytes(releases.v1.content + releases.v2.content)

    made = make(releases.v2.image, tmp_path / "out", source=padded, level=3)

    assert applied(made, releases.v1.content) == releases.v2.content
    assert index_of(made).source_root_hash.hex() == releases.v1.root_hash
    longer = tmp_path / "longer.img"
    longer.write_bytes(releases.v2.content + noise(3 * BLOCK, "behind"))
    assert make(longer, tmp_path / "out", level=3).blob.read_bytes() == (
        releases.v2.full.blob.read_bytes()
    )


# Whole or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "source", "error", "message"),
    [
        ("garbage.img", None, ImageError, "garbage.img: slot header: magic is"),
        ("v2.img", "garbage.img", ImageError, "garbage.img: slot header: magic is"),
        ("cut.img", None, ImageError, r"cut.img has \d+ bytes, its slot header says \d+$"),
        ("v2.img", "cut.img", ImageError, r"cut.img has \d+ bytes, its slot header says \d+$"),
        ("none.img", None, HostError, "^cannot open .*none.img: No such file or directory$"),
        ("v2.img", "none.img", HostError, "^cannot open .*none.img: No such file or directory$"),
        ("v2.img", "folder", HostError, "folder is neither a block device nor a file$"),
    ],
)
def test_a_payload_that_cannot_be_made_leaves_the_old_one(
    image: str,
    source: str | None,
    error: type[Exception],
    message: str,
    releases: Releases,
    tmp_path: Path,
) -> None:
    (tmp_path / "v2.img").write_bytes(releases.v2.content)
    (tmp_path / "garbage.img").write_bytes(noise(2 * MIB, "garbage"))
    (tmp_path / "cut.img").write_bytes(releases.v2.content[:-BLOCK])
    (tmp_path / "folder").mkdir()
    output = tmp_path / "out"
    output.mkdir()
    for name in ("v2.index", "v2.blob"):
        (output / name).write_bytes(b"old")

    with pytest.raises(error, match=message):
        make(tmp_path / image, output, source=source and tmp_path / source)  # type: ignore[arg-type]

    assert {it.name: it.read_bytes() for it in output.iterdir()} == {
        "v2.index": b"old", "v2.blob": b"old",
    }  # fmt: skip


def test_a_payload_that_fails_midway_leaves_nothing(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = delta.pieces

    def half(*arguments: object) -> object:
        for number, piece in enumerate(whole(*arguments)):  # type: ignore[arg-type]
            if number == 5:
                raise OSError(5, "Input/output error")
            yield piece

    monkeypatch.setattr(delta, "pieces", half)
    with pytest.raises(HostError, match=r"^cannot make .*: Input/output error$"):
        make(releases.v2.image, tmp_path, source=releases.v1.image)

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(releases: Releases, tmp_path: Path) -> None:
    tool("mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path)
    try:
        with pytest.raises(HostError, match=r"^cannot make .*: No space left on device$"):
            make(releases.v2.image, tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        tool("umount", tmp_path)


def test_an_output_that_is_no_folder_is_named(releases: Releases, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match=r"^cannot make .*file/v2.blob: File exists$"):
        make(releases.v2.image, tmp_path / "file")


def test_the_index_comes_last_so_that_it_is_never_without_its_blob(
    releases: Releases, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    program = "from update_agent.publish.main import main; raise SystemExit(main())"
    tool(
        "strace", "-f", "-o", log, "-e", "trace=rename,renameat,renameat2", sys.executable,
        "-c", program, "payload", releases.v1.image, "--output", tmp_path / "out", "--level", "1",
    )  # fmt: skip

    renames = [line for line in log.read_text().splitlines() if str(tmp_path / "out") in line]
    assert ["v1.blob" in renames[0], "v1.index" in renames[1], len(renames)] == [True, True, 2]


# Memory ------------------------------------------------------------------------------------------


def large_image(path: Path, size: int, changed: int = 0) -> Path:
    """Make an image with holes and noise by turns, whose insides nobody looks at."""
    layout = Layout(
        fs_size=size, verity_offset=size, kernel_offset=size + 2 * BLOCK,
        kernel_region_size=2 * BLOCK, image_size=size + 4 * BLOCK,
    )  # fmt: skip
    chance = Random(1)  # noqa: S311  must repeat, need not be secret
    with path.open("wb") as file:
        for number in range(size // MIB):
            if number % 4 == 0:
                file.seek(number * MIB)
                file.write(chance.randbytes(MIB))
        for number in range(changed):
            file.seek(number * 16 * MIB + 5000)
            file.write(b"changed")
        file.seek(512)
        file.write(layout.encode())
        file.seek(size)
        file.write(struct.pack(
            "<8sII16s32sIIQH6x256s", b"verity\0\0", 1, 1, bytes(16), b"sha256", BLOCK, BLOCK,
            size // BLOCK, 0, b"",
        ))  # fmt: skip
        file.write(noise(BLOCK, f"tree {changed}"))
        file.truncate(layout.image_size)
    return path


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_memory_stays_bounded_for_large_images(
    kind: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    size = 1024 * MIB if kind == "full" else 512 * MIB  # a delta takes its time
    old = large_image(tmp_path / "old.img", size)
    new = large_image(tmp_path / "new.img", size, changed=30)
    program = (
        "from pathlib import Path\n"
        "from update_agent.publish.main import main\n"
        "code = main()\n"
        "print(Path('/proc/self/status').read_text())\n"
        "raise SystemExit(code)\n"
    )
    options: list[str | Path] = ["--from", old] if kind == "delta" else []
    said = tool(
        sys.executable, "-c", program, "payload", new, *options, "--output", tmp_path / "out",
        "--level", "1",
    )  # fmt: skip

    peak = next(int(line.split()[1]) for line in said.splitlines() if line.startswith("VmHWM"))
    mib = f"{size // MIB} MiB image: {peak / 1024:.0f} MiB at its peak"
    figure(f"update-publish payload, {kind}, {mib}")
    assert peak < 200 * 1024
    index = payload.decode(next((tmp_path / "out").glob("*.index")).read_bytes())
    assert index.image_size == new.stat().st_size


def test_an_image_of_another_kind_of_root_is_published_all_the_same(tmp_path: Path) -> None:
    """What a slot image holds is not the publisher's business; that it is one, is."""
    image = large_image(tmp_path / "odd.img", 4 * MIB)

    made = make(image, tmp_path / "out")

    assert applied(made) == image.read_bytes()


def test_chunks_are_those_that_hosts_find(releases: Releases) -> None:
    """A host without the index of its booted slot cuts it as the publisher did."""
    with open_device(releases.v1.image) as device:
        chunks = [
            (offset, len(data), sha256(data).digest())
            for offset, data in slot.chunks_of(device, device.size)
        ]

    assert chunks == [(it.offset, it.length, it.digest) for it in releases.v1.index]


def test_an_index_of_nothing_is_never_made() -> None:
    with pytest.raises(PayloadError, match=r"^index: image size is 0"):
        Index.of([], image_size=0, blob_size=0, root_hash=bytes(32))
