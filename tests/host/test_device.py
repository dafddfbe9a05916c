"""Devices and files past the page cache: what is read, written, locked, and what may fail."""

import ctypes
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.disks import loop, tool
from tests.images import BLOCK, noise
from update_agent.errors import HostError
from update_agent.host.device import aligned, open_device

both_sector_sizes = pytest.mark.parametrize("sector_size", [512, 4096])


def buffer(content: bytes) -> memoryview:
    made = aligned(len(content))
    made[:] = content
    return made


def cached_pages(fd: int, size: int) -> int:
    """Return how many pages of a file are in the page cache (mincore(2))."""
    states = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
    mapped = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    first = ctypes.c_char.from_buffer(mapped)
    address = ctypes.c_void_p(ctypes.addressof(first))
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), states) == 0
    del first
    mapped.close()
    return sum(state & 1 for state in states)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(noise(64 * BLOCK, "file"))
    return path


# Reading and writing -----------------------------------------------------------------------------


def test_a_file_is_read_from_anywhere_and_ends_where_it_ends(file: Path) -> None:
    content = file.read_bytes()

    with open_device(file) as device:
        assert (device.size, device.is_block) == (64 * BLOCK, False)
        assert device.read(1000, 5000) == content[1000:6000]
        assert device.read(63 * BLOCK, 2 * BLOCK) == content[63 * BLOCK :]
        assert device.read(64 * BLOCK, BLOCK) == b""


@pytest.mark.case(43)
@both_sector_sizes
def test_a_block_device_is_written_and_read_in_whole_blocks(file: Path, sector_size: int) -> None:
    with loop(file, sector_size) as path, open_device(path, writable=True) as device:
        assert (device.size, device.is_block) == (64 * BLOCK, True)
        assert device.logical_sector_size() == sector_size
        device.write(buffer(noise(2 * BLOCK, "new")), 3 * BLOCK)
        device.flush()

        assert device.read(3 * BLOCK, 2 * BLOCK) == noise(2 * BLOCK, "new")
        assert device.read(63 * BLOCK, 2 * BLOCK) == file.read_bytes()[63 * BLOCK :]


@pytest.mark.case(37)
@pytest.mark.parametrize("edge", [2**31, 2**32, 3 * 2**40])
def test_bytes_around_the_edges_of_numbers_land_where_they_belong(
    edge: int, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as made:
        made.truncate(edge + 16 * BLOCK)

    with open_device(path, writable=True) as device:
        device.write(buffer(noise(4 * BLOCK, "edge")), edge - 2 * BLOCK)
        device.flush()

        assert device.size == edge + 16 * BLOCK
        assert device.read(edge - 3 * BLOCK, 6 * BLOCK) == (
            bytes(BLOCK) + noise(4 * BLOCK, "edge") + bytes(BLOCK)
        )
    assert path.stat().st_blocks * 512 <= 64 * BLOCK


def test_a_block_device_leaves_nothing_in_the_page_cache(file: Path) -> None:
    with loop(file) as path, path.open("rb", buffering=0) as reader:  # open, it keeps its cache
        with open_device(path, writable=True, exclusive=True) as device:
            device.write(buffer(noise(16 * BLOCK, "new")), 0)
            device.flush()
            device.read(0, 64 * BLOCK)
        spared = cached_pages(reader.fileno(), 64 * BLOCK)
        reader.read(64 * BLOCK)

        assert spared == 0
        assert cached_pages(reader.fileno(), 64 * BLOCK) == 64  # so the figure means something


def test_a_file_is_read_from_its_medium_and_not_from_the_cache(tmp_path: Path) -> None:
    """The page cache of a file above a loop device would keep what the device below has lost."""
    lower, mount = tmp_path / "lower", tmp_path / "mount"
    lower.write_bytes(bytes(8 * 2**20))
    mount.mkdir()
    with loop(lower) as path, ExitStack() as stack:
        tool("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", path)
        tool("mount", path, mount)
        stack.callback(tool, "umount", mount)
        (mount / "slot").write_bytes(noise(16 * BLOCK, "slot"))
        with open_device(mount / "slot", writable=True) as device:
            device.flush()
            assert device.read(0, 16 * BLOCK) == noise(16 * BLOCK, "slot")
            where = lower.read_bytes().index(noise(16 * BLOCK, "slot")[:BLOCK])
            with open_device(path, writable=True) as below:
                below.write(buffer(bytes(BLOCK)), where)
                below.flush()

            assert device.read(0, BLOCK) == bytes(BLOCK)


def test_a_device_may_be_as_large_as_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 3 * 2**40)

    with open_device(path) as device:
        assert device.size == 3 * 2**40


# Writes that the kernel cuts short ---------------------------------------------------------------


@pytest.mark.case(40)
@pytest.mark.parametrize("most", [1, 512, 4096, 5000])
def test_a_short_write_is_continued(file: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:most]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    with open_device(file, writable=True) as device:
        device.write(buffer(noise(3 * BLOCK, "new")), BLOCK)

    assert file.read_bytes()[BLOCK : 4 * BLOCK] == noise(3 * BLOCK, "new")


@pytest.mark.case(40)
def test_a_short_read_is_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with open_device(file) as device:
        assert device.read(0, 64 * BLOCK) == file.read_bytes()


@pytest.mark.case(40)
def test_a_write_of_nothing_is_an_error_and_no_endless_loop(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)

    with (
        open_device(file, writable=True) as device,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        device.write(buffer(bytes(BLOCK)), 0)


@pytest.mark.case(40)
def test_an_interrupted_call_is_made_again(file: Path, tmp_path: Path) -> None:
    """strace makes the kernel answer EINTR to every second call."""
    program = (
        "import sys; from pathlib import Path\n"
        "from update_agent.host.device import aligned, open_device\n"
        f"with open_device(Path({str(file)!r}), writable=True) as device:\n"
        "    for number in range(4):\n"
        f"        block = aligned({BLOCK}); block[:] = bytes([number + 1]) * {BLOCK}\n"
        f"        device.write(block, number * {BLOCK}); device.flush()\n"
        f"        assert device.read(number * {BLOCK}, {BLOCK}) == bytes(block)\n"
    )
    calls = "pwritev,pwritev2,preadv,preadv2,fsync"
    log = tmp_path / "log"
    tool(
        "strace", "-f", "-o", log, "-e", f"trace={calls}",
        "-e", f"inject={calls}:error=EINTR:when=1+2", sys.executable, "-c", program,
    )  # fmt: skip

    assert log.read_text().count("EINTR") >= 4
    assert file.read_bytes()[: 4 * BLOCK] == b"".join(bytes([it]) * BLOCK for it in (1, 2, 3, 4))


@pytest.mark.case(38)
def test_a_full_file_system_is_an_error_after_what_did_fit(tmp_path: Path) -> None:
    tool("mount", "-t", "tmpfs", "-o", f"size={8 * BLOCK}", "none", tmp_path)
    try:
        path = tmp_path / "slot"
        path.touch()
        os.truncate(path, 64 * BLOCK)
        with open_device(path, writable=True) as device:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                device.write(buffer(noise(64 * BLOCK, "new")), 0)
            assert device.read(0, BLOCK) == noise(BLOCK, "new")
    finally:
        tool("umount", tmp_path)


# Opening -----------------------------------------------------------------------------------------


@pytest.mark.case(42)
def test_a_mounted_device_is_not_opened_exclusively(tmp_path: Path) -> None:
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(bytes(2**20))
    mount.mkdir()
    with loop(image) as path, ExitStack() as stack:
        tool("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", path)
        tool("mount", path, mount)
        stack.callback(tool, "umount", mount)

        with (
            pytest.raises(HostError, match=rf"^cannot open {path}: Device or resource busy$") as no,
            open_device(path, writable=True, exclusive=True),
        ):
            pass
        assert no.value.hint == "it is mounted or in use; end its user first"
        with open_device(path) as device:
            assert device.size == 2**20


def test_what_is_open_exclusively_can_not_be_mounted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(2**20))
    with loop(image) as path:
        tool("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", path)
        with open_device(path, writable=True, exclusive=True):
            done = subprocess.run(
                ["mount", path, tmp_path], capture_output=True, text=True, check=False
            )

    assert done.returncode != 0
    assert "busy" in done.stderr or "already mounted" in done.stderr


@pytest.mark.case(49)
def test_two_updates_do_not_write_to_one_file(file: Path) -> None:
    with open_device(file, writable=True, exclusive=True):
        with (
            pytest.raises(HostError, match=rf"^{file} is in use by another update$"),
            open_device(file, writable=True, exclusive=True),
        ):
            pass
        with open_device(file) as reader:
            assert reader.size == 64 * BLOCK
    with open_device(file, writable=True, exclusive=True):
        pass


@pytest.mark.case(49)
def test_two_updates_do_not_write_to_one_device(file: Path) -> None:
    with (
        loop(file) as path,
        open_device(path, writable=True, exclusive=True),
        pytest.raises(HostError, match="Device or resource busy"),
        open_device(path, writable=True, exclusive=True),
    ):
        pass


def test_a_refused_file_is_not_left_open(file: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    with open_device(file, writable=True, exclusive=True):
        for _ in range(3):
            with pytest.raises(HostError), open_device(file, writable=True, exclusive=True):
                pass

    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("kind", ["folder", "fifo", "character"])
def test_only_block_devices_and_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero

    with (
        pytest.raises(HostError, match=rf"^{path} is neither a block device nor a file$"),
        open_device(path),
    ):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match=rf"^cannot open {tmp_path}/no: No such file or directory$"),
        open_device(tmp_path / "no"),
    ):
        pass


def test_one_thing_under_two_names_is_known(file: Path, tmp_path: Path) -> None:
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to(file)
    copy.write_bytes(file.read_bytes())
    with loop(file) as path:
        node = tmp_path / "node"
        os.mknod(node, 0o600 | stat.S_IFBLK, path.stat().st_rdev)
        with ExitStack() as stack:
            first, second, other, block, same_block = (
                stack.enter_context(open_device(it)) for it in (file, link, copy, path, node)
            )

            assert first.identity == second.identity != other.identity
            assert block.identity == same_block.identity != first.identity


# Buffers -----------------------------------------------------------------------------------------


def test_buffers_begin_on_a_page(file: Path) -> None:
    """Else O_DIRECT would answer EINVAL on devices that are stricter than loop devices."""
    with loop(file, 4096) as path, open_device(path) as device:
        whole = aligned(8 * BLOCK)
        assert device.read_into(whole[BLOCK : 5 * BLOCK], 0) == 4 * BLOCK
        assert mmap.PAGESIZE % BLOCK == 0


def test_what_was_opened_for_reading_is_not_written(file: Path) -> None:
    with open_device(file) as device, pytest.raises(OSError, match="Bad file descriptor"):
        device.write(buffer(bytes(BLOCK)), 0)
