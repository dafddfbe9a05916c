"""Slot images: the same bytes from the same input, and what others say of them."""

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.disks import loop, tool
from tests.images import BLOCK, Releases, Tree, first_tree, flip_bit, noise, write_tree
from update_agent.core import slot_image
from update_agent.core.slot_image import Layout
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.publish.seal import seal
from update_agent.run import run

SMALL: Tree = {
    "etc/hostname": b"host\n",
    "bin/tool": noise(30_000, "tool"),
    "usr/share/zeros": bytes(50_000),
    "usr/share/text": b"text\n" * 3000,
}


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.efi"
    path.write_bytes(noise(10_001, "kernel"))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(SMALL, tmp_path / "root")


def layout_of(image: Path) -> Layout:
    with open_device(image) as device:
        return slot.layout(device)


# The same bytes ----------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(root: Path, kernel: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.img", tmp_path / "2.img"

    assert seal(root, kernel, first) == seal(root, kernel, second)
    assert first.read_bytes() == second.read_bytes()


def test_times_places_and_the_order_of_making_do_not_count(
    root: Path, kernel: Path, tmp_path: Path
) -> None:
    backwards = dict(reversed(SMALL.items()))
    other = write_tree(backwards, tmp_path / "elsewhere" / "a-root-of-another-name")
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (number * 1e6, number * 2e6))
    moved = tmp_path / "elsewhere" / "linux.efi"
    moved.write_bytes(kernel.read_bytes())

    assert seal(root, kernel, tmp_path / "1.img") == seal(other, moved, tmp_path / "2.img")
    assert (tmp_path / "1.img").read_bytes() == (tmp_path / "2.img").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "etc/hostname").write_bytes(b"hosT\n"),
        lambda root: (root / "etc/hostname").chmod(0o600),
        lambda root: (root / "etc/hostname").rename(root / "etc/hostnama"),
    ],
    ids=["content", "mode", "name"],
)
def test_whatever_counts_changes_the_root_hash(
    change: Callable[[Path], object], root: Path, kernel: Path, tmp_path: Path
) -> None:
    before = seal(root, kernel, tmp_path / "1.img")
    change(root)

    assert seal(root, kernel, tmp_path / "2.img") != before


def test_a_ready_erofs_is_taken_as_it_is(root: Path, kernel: Path, tmp_path: Path) -> None:
    erofs = tmp_path / "root.erofs"
    tool("mkfs.erofs", "--quiet", "-T", "1", erofs, root)
    before = erofs.read_bytes()

    seal(erofs, kernel, tmp_path / "1.img")

    content = (tmp_path / "1.img").read_bytes()
    assert content[:512] == before[:512]
    assert content[1024 : len(before)] == before[1024:]
    assert erofs.read_bytes() == before


# What others say of it ---------------------------------------------------------------------------


def test_veritysetup_accepts_it_and_no_changed_byte(releases: Releases, tmp_path: Path) -> None:
    parts = layout_of(releases.v1.image)
    image = tmp_path / "image"
    image.write_bytes(releases.v1.content)
    verify = (
        "veritysetup", "verify", "--hash-offset", str(parts.verity_offset), image, image,
        releases.v1.root_hash,
    )  # fmt: skip

    tool(*verify)
    for at in (0, 512, 1023, 1024, parts.fs_size - 1):
        flip_bit(image, at)
        with pytest.raises(AssertionError, match=r"failed at position|corrupted"):
            tool(*verify)
        flip_bit(image, at)
    tool(*verify)


def test_the_tools_of_erofs_accept_its_first_part(releases: Releases, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_bytes(releases.v1.content[: layout_of(releases.v1.image).fs_size])

    tool("fsck.erofs", root)
    said = tool("dump.erofs", "-s", root)

    assert "5c7cbd39-6a3e-4d39-a49c-26a1b3a0c1a5" in said
    assert "Thu Jan  1 00:00:00 1970" in said


def test_the_kernel_mounts_a_slot_and_finds_every_file(releases: Releases, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(releases.v1.content)
    mount = tmp_path / "mount"
    mount.mkdir()
    with loop(image) as device, ExitStack() as stack:
        tool("mount", "-t", "erofs", "-o", "ro", device, mount)
        stack.callback(tool, "umount", mount)

        found = {
            str(path.relative_to(mount)): path.read_bytes()
            for path in mount.rglob("*") if path.is_file()
        }  # fmt: skip
    assert found == first_tree()


def test_the_kernel_stands_where_its_region_says(root: Path, kernel: Path, tmp_path: Path) -> None:
    image = tmp_path / "1.img"
    seal(root, kernel, image)
    parts, content = layout_of(image), image.read_bytes()

    region = content[parts.kernel_offset :]
    described = slot_image.parse_kernel(region[:BLOCK], region_size=len(region))
    assert region[BLOCK : BLOCK + 10_001] == kernel.read_bytes()
    assert region[BLOCK + 10_001 :] == bytes(3 * BLOCK - 10_001)
    assert described.digest == hashlib.sha256(kernel.read_bytes()).digest()
    assert len(region) == parts.kernel_region_size == 4 * BLOCK


# What is refused ---------------------------------------------------------------------------------


def erofs_with_small_blocks(folder: Path) -> Path:
    image = folder / "small.erofs"
    tool("mkfs.erofs", "--quiet", image, write_tree(SMALL, folder / "small"))
    with image.open("r+b") as file:
        file.seek(1024 + 12)
        file.write(b"\x09")  # 512 bytes
    return image


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"kernel": "none"}, "^cannot make .*out.img: .*none: No such file or directory$"),
        ({"kernel": "root"}, "^cannot make .*out.img: .*root: Is a directory$"),
        ({"kernel": "empty"}, "^.*empty is empty, wanted a unified kernel image$"),
        ({"root": "none"}, "^cannot make .*out.img: .*none: No such file or directory$"),
        ({"root": "kernel.efi"}, "kernel.efi is neither a folder nor an erofs$"),
        ({"root": "empty"}, "empty is neither a folder nor an erofs$"),
        ({"root": "small.erofs"}, "small.erofs has blocks of 512 bytes, wanted 4096$"),
        ({"output": "none/out.img"}, "^cannot make .*out.img: .*: No such file or directory$"),
    ],
    ids=lambda it: str(it) if isinstance(it, dict) else "",
)
def test_what_makes_no_image_is_named_and_leaves_the_output_alone(
    spoil: dict[str, str], message: str, root: Path, kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    erofs_with_small_blocks(tmp_path)
    output = tmp_path / "out.img"
    output.write_bytes(b"the old one")
    before = sorted(tmp_path.rglob("*"))
    paths = {"root": root, "kernel": kernel, "output": output}
    paths |= {name: tmp_path / path for name, path in spoil.items()}

    with pytest.raises(HostError, match=message):
        seal(paths["root"], paths["kernel"], paths["output"])

    assert output.read_bytes() == b"the old one"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_of_a_single_block_is_refused(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "empty-root").mkdir()

    with pytest.raises(slot_image.ImageError, match=r"fs size is 4096, wanted at least 8192"):
        seal(tmp_path / "empty-root", kernel, tmp_path / "out.img")
    assert not (tmp_path / "out.img").exists()


def test_a_full_disk_is_an_error_and_leaves_nothing(
    root: Path, kernel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=100k", "none", folder)
    try:
        with pytest.raises(HostError, match=r"No space left on device|mkfs.erofs failed"):
            seal(root, kernel, folder / "out.img")
        assert list(folder.iterdir()) == []
    finally:
        tool("umount", folder)


def test_a_missing_tool_is_named_with_what_needs_it() -> None:
    with pytest.raises(HostError, match=r"^no-veritysetup is not installed$") as refusal:
        run(["no-veritysetup", "format", "a b"])

    assert refusal.value.hint == "it is needed for: no-veritysetup format 'a b'"
