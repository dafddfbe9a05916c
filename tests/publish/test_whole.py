"""An image that was damaged on its way is neither signed nor put on a disk."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from tests.images import BLOCK, Releases, Tree, flip_bit, noise, write_tree
from tests.publish.published import publish
from update_agent.core import slot_image
from update_agent.core.slot_image import ImageError, Kernel, Layout
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.publish import releases as publishing
from update_agent.publish import uki, whole
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository
from update_agent.publish.seal import seal

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
SMALL: Tree = {"bin/tool": noise(30_000, "tool")}
OPEN = f"quiet ua.roothash={'0' * 64}".encode() + b"\0"


@pytest.fixture
def image(releases: Releases, tmp_path: Path) -> Path:
    """A copy of v2, to be damaged."""
    path = tmp_path / "v2.img"
    path.write_bytes(releases.v2.content)
    return path


def layout_of(image: Path) -> Layout:
    with open_device(image) as device:
        return slot.layout(device)


def check(image: Path) -> int:
    """Check ``image``; return the bytes that were told as held."""
    held: list[int] = []
    with open_device(image) as device:
        whole.check(device, held.append)
    return sum(held)


def add(folder: Path, image: Path, version: str = "1.0.0") -> int:
    words = ["--product", "os", "--version", version, "--json"]
    return publish(folder, "release", "add", str(image), *words)


# What is whole -----------------------------------------------------------------------------------


def test_a_whole_image_passes_and_every_byte_is_told(releases: Releases) -> None:
    assert check(releases.v2.image) == len(releases.v2.content)


@pytest.mark.parametrize("size", [20_000, 128 * BLOCK, 4 * 2**20 - BLOCK, 9 * 2**20])
def test_images_of_any_size_pass_and_their_last_block_counts(size: int, tmp_path: Path) -> None:
    image, kernel = tmp_path / "slot.img", tmp_path / "kernel"
    kernel.write_bytes(noise(10_001, "kernel"))
    seal(write_tree({"file": noise(size, "file")}, tmp_path / "root"), kernel, image)
    last = layout_of(image).fs_size - BLOCK

    check(image)
    flip_bit(image, last)
    with pytest.raises(ImageError, match=rf"block {last // BLOCK} of {last // BLOCK + 1} in its"):
        check(image)


# What is not -------------------------------------------------------------------------------------


def places() -> dict[str, Callable[[Layout], int]]:
    return {
        "first-block": lambda _: 0,
        "slot-header": lambda _: 600,
        "file-system": lambda it: it.fs_size // 2,
        "last-of-it": lambda it: it.fs_size - 1,
        "superblock": lambda it: it.verity_offset,
        "top-of-the-tree": lambda it: it.verity_offset + BLOCK,
        "bottom-of-the-tree": lambda it: it.verity_offset + 3 * BLOCK,
        "kernel-region": lambda it: it.kernel_offset,
        "kernel": lambda it: it.kernel_offset + 2 * BLOCK,
    }


@pytest.mark.parametrize("place", places())
def test_one_wrong_bit_is_enough_for_an_image_not_to_be_signed(
    place: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_bit(image, places()[place](layout_of(image)))
    assert publish(tmp_path, "init", "--json") == 0

    assert add(tmp_path, image) == 3

    assert str(image) in capsys.readouterr().err
    assert list((tmp_path / "www").rglob("release.json")) == []
    assert list((tmp_path / "www").rglob("*.blob")) == []


def test_a_wrong_bit_anywhere_is_found(image: Path) -> None:
    """The top of the tree is left out: unused bytes there make another image, as whole as this."""
    chance, parts = Random("bits"), layout_of(image)  # noqa: S311  must repeat
    described = parts.kernel_offset + BLOCK
    with open_device(image) as device:
        block = device.read(parts.kernel_offset, BLOCK)
    kernel = slot_image.parse_kernel(block, region_size=parts.kernel_region_size)
    for _ in range(40):
        at = chance.choice([
            chance.randrange(parts.fs_size),
            parts.verity_offset + 2 * BLOCK + chance.randrange(parts.verity_size - 2 * BLOCK),
            described + chance.randrange(kernel.size),
        ])  # fmt: skip
        flip_bit(image, at)
        with pytest.raises(ImageError):
            check(image)
        flip_bit(image, at)
    check(image)


def test_the_damage_is_told_with_its_block_and_the_way_out(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with image.open("r+b") as file:
        file.seek(500 * BLOCK)
        file.write(noise(2 * 2**20, "junk"))
    assert publish(tmp_path, "init", "--json") == 0
    blocks = layout_of(image).fs_size // BLOCK

    assert add(tmp_path, image) == 3

    said = capsys.readouterr().err
    assert f"{image} is damaged: block 500 of {blocks} in its file system does not" in said
    assert "(copy it again" in said


def test_an_image_that_rotted_after_it_was_published_is_not_taken_again(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(tmp_path, "init", "--json") == 0
    assert add(tmp_path, image) == 0
    flip_bit(image, 300 * BLOCK)

    assert add(tmp_path, image) == 3
    assert "is damaged: block 300 of" in capsys.readouterr().err


def test_a_truncated_image_is_named(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(3 * 2**20)

    with pytest.raises(ImageError, match=r"v2.img has 3145728 bytes, its slot header says"):
        check(image)


# The kernel and its root -------------------------------------------------------------------------


def sealed(folder: Path, line: bytes) -> Path:
    folder.mkdir()
    kernel, image = folder / "linux.efi", folder / "slot.img"
    kernel.write_bytes(uki.make(STUB.read_bytes(), {".cmdline": line, ".linux": b"L" * 5000}))
    seal(write_tree(SMALL, folder / "root"), kernel, image)
    return image


def put_kernel(image: Path, kernel: bytes) -> None:
    """Put another kernel into an image, rightly described."""
    parts = layout_of(image)
    described = Kernel(size=len(kernel), digest=sha256(kernel).digest())
    with image.open("r+b") as file:
        file.seek(parts.kernel_offset)
        file.write((described.encode() + kernel).ljust(parts.kernel_region_size, b"\0"))


def test_a_kernel_that_names_its_root_passes(tmp_path: Path) -> None:
    check(sealed(tmp_path / "good", OPEN))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param(OPEN, "0{64}", id="left-open"),
        pytest.param(OPEN.replace(b"0" * 64, b"12" * 32), "(12){32}", id="another-root"),
        pytest.param(b"quiet\0", "nowhere", id="none"),
    ],
)
def test_a_kernel_that_looks_for_another_root_is_refused(
    line: bytes, named: str, tmp_path: Path
) -> None:
    image = sealed(tmp_path / "good", OPEN)
    put_kernel(image, uki.make(STUB.read_bytes(), {".cmdline": line, ".linux": b"L" * 5000}))

    with pytest.raises(ImageError, match=f"the kernel in .*slot.img names the root {named}, the"):
        check(image)


# A file that changes -----------------------------------------------------------------------------


class Swapping:
    """Somebody who puts another image in the place of one, when a certain step begins."""

    def __init__(self, step: str, image: Path, other: bytes) -> None:
        self.steps: list[str] = []
        self._step, self._image, self._other = step, image, other

    def begin(self, what: str, size: int) -> None:
        del size
        self.steps.append(what)
        if what == self._step:
            self._image.write_bytes(self._other)

    def advance(self, size: int) -> None:
        pass


@pytest.mark.parametrize("step", ["check v2.img", "1.0.0"])
def test_an_image_that_is_replaced_meanwhile_is_not_signed(
    step: str, image: Path, releases: Releases, tmp_path: Path
) -> None:
    """Else hosts would be told one root hash, and get the bytes of another image."""
    assert publish(tmp_path, "init", "--json") == 0
    repository = Repository(tmp_path / "www", Keyring([tmp_path / "keys"]))
    progress = Swapping(step, image, releases.v1.content)

    with pytest.raises(HostError, match=r"v2\.img was changed meanwhile: its root hash was"):
        publishing.add(
            repository, image, product="os", version=Version("1.0.0"), architecture="x86_64",
            progress=progress,
        )  # fmt: skip

    assert progress.steps[-1] == step
    assert list((tmp_path / "www").rglob("release.json")) == []
    assert list((tmp_path / "www").rglob("*.blob")) == []
