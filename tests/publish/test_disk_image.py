"""Disks that boot: what independent tools say of them, and what is refused."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.disks import loop, tool
from tests.images import Releases, flip_bit, noise
from update_agent.core.slot import BootFlags, SlotName
from update_agent.errors import HostError, ReleaseError
from update_agent.publish import disk_image, image
from update_agent.publish.disk_image import CONFIRMED, Disk
from update_agent.publish.progress import silent

MIB = 2**20
SIZE = 200


@pytest.fixture
def disk(releases: Releases, tmp_path: Path) -> Disk:
    selector = tmp_path / "gptprio.efi"
    selector.write_bytes(b"MZ the selector")
    return Disk(
        selector=selector,
        slots={SlotName.A: releases.v1.image},
        flags={SlotName.A: CONFIRMED, SlotName.B: BootFlags()},
        slot_mib=16,
    )


def made(disk: Disk, folder: Path) -> Path:
    path = folder / "disk.img"
    disk_image.make_file(disk, path, size_mib=SIZE, tell=silent)
    return path


def test_other_tools_find_the_layout_and_nothing_wrong(disk: Disk, tmp_path: Path) -> None:
    path = made(disk, tmp_path)

    # The gap is our second place for the primary's entries (README, decisions).
    assert "No problems found" in tool("sgdisk", "-v", path)
    said = tool("sfdisk", "-o", "start,sectors,name", "-l", path)
    assert [line.split() for line in said.splitlines()[-4:]] == [
        ["2048", "131072", "ESP"],
        ["133120", "32768", "ROOT-A"],
        ["165888", "32768", "ROOT-B"],
        ["198656", "208896", "STATE"],
    ]


def test_the_selector_the_slot_and_state_stand_in_their_places(
    disk: Disk, releases: Releases, tmp_path: Path
) -> None:
    path = made(disk, tmp_path)
    content = path.read_bytes()

    assert content[133120 * 512 :].startswith(releases.v1.content)
    assert content[165888 * 512 : 198656 * 512] == bytes(16 * MIB)
    assert tool("mtype", "-i", f"{path}@@1M", "::EFI/BOOT/BOOTX64.EFI") == "MZ the selector"
    state = tmp_path / "state"
    state.write_bytes(content[198656 * 512 : (198656 + 208896) * 512])
    tool("e2fsck", "-fn", state)
    assert "STATE" in tool("dumpe2fs", "-h", state)


def test_slot_a_boots_and_the_file_is_sparse(disk: Disk, tmp_path: Path) -> None:
    path = made(disk, tmp_path)

    assert tool("update-agentctl", "slots", "--disk", path).endswith(
        "slot A boots next: slot B is retired and may not boot\n"
    )
    assert path.stat().st_blocks * 512 < 40 * MIB
    assert sorted(it.name for it in tmp_path.iterdir()) == ["disk.img", "gptprio.efi"]


def test_an_image_that_is_too_large_is_refused(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"v1.img has \d MiB, slot A has 2$"):
        disk_image.make_file(
            Disk(selector=disk.selector, slots=disk.slots, flags=disk.flags, slot_mib=2),
            tmp_path / "disk.img", size_mib=SIZE, tell=silent,
        )  # fmt: skip
    assert not (tmp_path / "disk.img").exists()


# Images that are not what they should be ---------------------------------------------------------


def with_image(disk: Disk, path: Path, content: bytes) -> Disk:
    """Return the disk with another image in slot A."""
    path.write_bytes(content)
    return replace(disk, slots={SlotName.A: path})


def test_an_image_is_written_as_far_as_it_goes_and_no_further(
    disk: Disk, releases: Releases, tmp_path: Path
) -> None:
    """As a copy of a whole partition is: longer than its image, and here than the slot."""
    size = len(releases.v1.content)
    longer = releases.v1.content + noise(20 * MIB - size, "old")
    path = made(with_image(disk, tmp_path / "dd.img", longer), tmp_path)

    content = path.read_bytes()
    assert content[133120 * 512 :][:size] == releases.v1.content
    assert content[133120 * 512 + size : 198656 * 512] == bytes(32 * MIB - size)
    assert "slot A boots next" in tool("update-agentctl", "slots", "--disk", path)


def truncated(content: bytes) -> bytes:
    return content[: 3 * MIB]


def damaged(content: bytes) -> bytes:
    return content[: 2 * MIB] + noise(MIB, "damage") + content[3 * MIB :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(truncated, "bad.img has 3145728 bytes, its slot header says", id="truncated"),
        pytest.param(damaged, "bad.img is damaged: block 512 of", id="damaged"),
    ],
)
def test_a_bad_image_is_refused_before_anything_is_overwritten(
    spoil: Callable[[bytes], bytes], message: str, disk: Disk, releases: Releases,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bad = with_image(disk, tmp_path / "bad.img", spoil(releases.v1.content))
    old = tmp_path / "old.img"
    old.write_bytes(b"\xa5" * (SIZE * MIB))
    with loop(old) as device:
        assert install(device, bad, "--yes") == 3
    assert message in capsys.readouterr().err
    assert old.read_bytes() == b"\xa5" * (SIZE * MIB)

    with pytest.raises(ReleaseError, match=message):
        made(bad, tmp_path)
    assert not (tmp_path / "disk.img").exists()


def test_a_slot_that_was_written_from_a_changing_file_does_not_boot(
    disk: Disk, releases: Releases, tmp_path: Path
) -> None:
    image = tmp_path / "changing.img"
    changing = with_image(disk, image, releases.v1.content)
    device = tmp_path / "old.img"
    device.write_bytes(bytes(SIZE * MIB))

    def change(line: str) -> None:
        if line.startswith("partitioning"):
            flip_bit(image, len(releases.v1.content) - 5 * 4096)

    with pytest.raises(HostError, match=r"changing\.img was changed while it was written to .*old"):
        disk_image.make_device(changing, device, tell=change)
    assert "no slot may boot" in tool("update-agentctl", "slots", "--disk", device)


# Installing --------------------------------------------------------------------------------------


def install(device: Path, disk: Disk, *more: str) -> int:
    (slot_image,) = disk.slots.values()
    return image.main(
        [
            "disk", "--image", str(slot_image), "--selector", str(disk.selector),
            "--slot-size", "16", "--output", str(device), *more,
        ]
    )  # fmt: skip


def test_a_device_is_installed_over_whatever_was_on_it(
    disk: Disk, releases: Releases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.img"
    old.write_bytes(b"\xa5" * (SIZE * MIB))
    with loop(old) as device:
        assert install(device, disk, "--yes", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "disk": str(device), "slots": {"A": str(releases.v1.image)},
        }  # fmt: skip
        assert "slot A boots next" in tool("update-agentctl", "slots", "--disk", device)

    content = old.read_bytes()
    assert content[133120 * 512 :].startswith(releases.v1.content)
    assert content[165888 * 512 :].startswith(bytes(4096))


def test_a_device_is_not_overwritten_unasked(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.img"
    old.write_bytes(b"\xa5" * (SIZE * MIB))
    with loop(old) as device:
        assert install(device, disk) == 4
    assert "would be overwritten\n(say --yes if it should be)" in capsys.readouterr().err
    assert old.read_bytes() == b"\xa5" * (SIZE * MIB)


@contextmanager
def typed(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let somebody sit at a terminal, and type this."""
    master, slave = os.openpty()
    try:
        os.write(master, answer)
        with os.fdopen(slave) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            yield
    finally:
        os.close(master)


@pytest.mark.parametrize("answer", [b"\x04", b"\n", b"yes\n"], ids=["ctrl-d", "nothing", "yes"])
def test_only_the_name_of_the_device_is_a_yes(
    answer: bytes, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    old = tmp_path / "old.img"
    old.write_bytes(b"\xa5" * (SIZE * MIB))
    with loop(old) as device, typed(answer, monkeypatch):
        assert install(device, disk, "--json") == 4

    said = capsys.readouterr()
    assert f"everything on {device} will be lost; type its name to go on: " in said.err
    assert f"update-agent-image: {device} was left alone\n" in said.err
    assert said.out == ""
    assert old.read_bytes() == b"\xa5" * (SIZE * MIB)


def test_the_question_is_no_part_of_the_output(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.img"
    old.write_bytes(bytes(SIZE * MIB))
    with loop(old) as device, typed(f"{device}\n".encode(), monkeypatch):
        assert install(device, disk, "--json") == 0

    said = capsys.readouterr()
    assert json.loads(said.out)["disk"] == str(device)
    assert "type its name to go on" in said.err


def test_a_device_in_use_is_refused(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, mount = tmp_path / "old.img", tmp_path / "mount"
    old.write_bytes(bytes(SIZE * MIB))
    mount.mkdir()
    with loop(old) as device:
        tool("mkfs.ext4", "-q", device)
        tool("mount", device, mount)
        try:
            assert install(device, disk, "--yes") == 4
        finally:
            tool("umount", mount)
    assert "it is mounted or in use" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_no_file_to_make(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(Path("/dev/no-such-disk"), disk, "--yes") == 4
    assert "there is no device /dev/no-such-disk" in capsys.readouterr().err
