"""``update-agentctl slots``: what is shown of a disk, to people and to programs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.disks import (
    A_SUCCESSFUL,
    ESP,
    KERNEL_TYPE,
    ROOT_A,
    ROOT_B,
    STATE,
    MemoryDisk,
    as_nobody,
    flags,
    healthy,
)
from update_agent.core.gpt import Copy
from update_agent.ctl import main
from update_agent.host import udev

Shown = tuple[int, str, str]
"""Exit code, output, messages."""


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Shown]:
    """Return what ``update-agentctl slots`` does with a disk that is saved as DISK."""

    def run(disk: MemoryDisk, *options: str) -> Shown:
        path = disk.save(tmp_path / "disk.img")
        before = path.read_bytes()
        code = main.main(["slots", "--disk", str(path), *options])
        assert path.read_bytes() == before
        shown = capsys.readouterr()
        return code, shown.out.replace(str(path), "DISK"), shown.err

    return run


GOOD: dict[str, Any] = {
    "disk": "DISK",
    "sector_size": 512,
    "sectors": 2048,
    "tables": {
        "sound": True,
        "primary": {"state": "good", "lba": 1, "entries_lba": 2},
        "backup": {"state": "good", "lba": 2047, "entries_lba": 2015},
        "backup_at_end": True,
        "mbr": "protective",
    },
    "slots": [
        {
            "slot": "A", "partition": 2, "priority": 1, "tries": 0, "successful": True,
            "state": "successful",
        },
        {
            "slot": "B", "partition": 3, "priority": 0, "tries": 0, "successful": False,
            "state": "retired",
        },
    ],
    "booted": None,
    "next": "A",
    "why": "slot A boots next: slot B is retired and may not boot",
    "error": None,
}  # fmt: skip
"""What is shown of a healthy disk as installed."""


def tables(**changed: object) -> dict[str, Any]:
    return {**GOOD, "tables": {**GOOD["tables"], **changed}}


def test_a_healthy_disk_as_text(show: Callable[..., Shown]) -> None:
    code, text, complaint = show(healthy())

    assert (code, complaint) == (0, "")
    assert text == (
        "DISK: 1.0 MiB, 512-byte sectors\n"
        "  primary table  good, header at LBA 1, entries at 2\n"
        "  backup table   good, header at LBA 2047, entries at 2015\n"
        "  MBR            protective\n"
        "\n"
        "  slot  partition  priority  tries  successful  state\n"
        "  A     2          1         0      yes         successful\n"
        "  B     3          0         0      no          retired\n"
        "\n"
        "slot A boots next: slot B is retired and may not boot\n"
    )


def _as_installed(_disk: MemoryDisk) -> None:
    pass


def _damaged_primary(disk: MemoryDisk) -> None:
    disk.patch(Copy.PRIMARY, MyLBA=9)


def _diverging(disk: MemoryDisk) -> None:
    disk.patch_entry(Copy.BACKUP, 2, Attributes=0)


def _grown(disk: MemoryDisk) -> None:
    disk.grow(4096)


def _without_mbr(disk: MemoryDisk) -> None:
    disk.put(0, bytes(512))


DAMAGED_PRIMARY = {"state": "damaged", "field": "MyLBA", "found": "9", "wanted": "1"}


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        pytest.param(_as_installed, GOOD, id="healthy"),
        pytest.param(
            _damaged_primary, tables(sound=False, primary=DAMAGED_PRIMARY),
            id="damaged-primary", marks=pytest.mark.case(53),
        ),
        pytest.param(
            _diverging, tables(sound=False), id="diverging", marks=pytest.mark.case(56)
        ),
        pytest.param(
            _grown, {**tables(sound=False, backup_at_end=False), "sectors": 4096},
            id="grown", marks=pytest.mark.case(60),
        ),
        pytest.param(
            _without_mbr, tables(mbr="missing"), id="no-mbr", marks=pytest.mark.case(58)
        ),
    ],
)  # fmt: skip
def test_a_disk_with_one_good_copy_as_json(
    show: Callable[..., Shown], harm: Callable[[MemoryDisk], None], wanted: dict[str, Any]
) -> None:
    disk = healthy()
    harm(disk)

    code, text, complaint = show(disk, "--json")

    assert (code, complaint) == (0, "")
    assert json.loads(text) == wanted


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        pytest.param(
            _damaged_primary, "  primary table  damaged: MyLBA is 9, wanted 1\n", id="damaged"
        ),
        pytest.param(
            _diverging,
            "  backup table   good, header at LBA 2047, entries at 2015; differs from the primary,"
            " which counts\n",
            id="diverging",
        ),
        pytest.param(
            _grown,
            "  backup table   good, header at LBA 2047, entries at 2015; not at the end of the"
            " disk, which has grown\n",
            id="grown",
        ),
        pytest.param(
            _without_mbr,
            "  MBR            missing: firmware may not see this table; 'gdisk' writes a new one\n",
            id="no-mbr",
        ),
    ],
)
def test_what_is_not_as_it_should_be_stands_in_its_line(
    show: Callable[..., Shown], harm: Callable[[MemoryDisk], None], line: str
) -> None:
    disk = healthy()
    harm(disk)

    code, text, complaint = show(disk)

    assert (code, complaint) == (0, "")
    assert line in text
    assert text.endswith("\nslot A boots next: slot B is retired and may not boot\n")


@pytest.mark.case(59)
def test_a_hybrid_mbr_is_told(show: Callable[..., Shown]) -> None:
    disk = healthy()
    disk.poke(446 + 16 + 4, b"\xef")

    assert "hybrid: other systems may see other partitions" in show(disk)[1]
    assert json.loads(show(disk, "--json")[1]) == tables(mbr="hybrid")


BOTH_BAD = (
    "both copies of the partition table are unusable (primary partition table is damaged: MyLBA is"
    " 9, wanted 1; backup partition table is damaged: HeaderSize is 91, wanted 92 to 512)"
)


@pytest.mark.case(57)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_two_bad_copies_end_with_4_and_show_both_faults(
    show: Callable[..., Shown], options: list[str]
) -> None:
    disk = healthy()
    _damaged_primary(disk)
    disk.patch(Copy.BACKUP, HeaderSize=91)

    code, text, complaint = show(disk, *options)

    assert code == 4
    assert complaint.splitlines()[0] == f"update-agentctl: {BOTH_BAD}"
    assert complaint.splitlines()[1].startswith("(nothing was written; ")
    if not options:
        assert text == (
            "DISK: 1.0 MiB, 512-byte sectors\n"
            "  primary table  damaged: MyLBA is 9, wanted 1\n"
            "  backup table   damaged: HeaderSize is 91, wanted 92 to 512\n"
            "  MBR            protective\n"
        )
    else:
        backup = {"state": "damaged", "field": "HeaderSize", "found": "91", "wanted": "92 to 512"}
        wanted = tables(sound=False, primary=DAMAGED_PRIMARY, backup=backup, backup_at_end=False)
        unknown = {"slots": None, "next": None, "why": None, "error": BOTH_BAD}
        assert json.loads(text) == {**wanted, **unknown}


@pytest.mark.case(62)
def test_a_disk_of_chromeos_ends_with_4(show: Callable[..., Shown]) -> None:
    disk = healthy()
    disk.patch(Copy.PRIMARY, Signature=b"CHROMEOS")

    code, text, complaint = show(disk, "--json")

    fault = "primary partition table is foreign: signature is b'CHROMEOS', wanted b'EFI PART'"
    assert code == 4
    assert complaint.startswith(f"update-agentctl: {fault}\n(nothing is written to such a disk; ")
    assert json.loads(text)["error"] == fault
    assert json.loads(text)["tables"]["primary"]["state"] == "foreign"


def test_a_disk_without_slots_ends_with_4_and_says_what_it_has(
    show: Callable[..., Shown],
) -> None:
    disk = healthy(512, (ESP, replace(ROOT_A, type=KERNEL_TYPE), ROOT_B, STATE))

    code, text, complaint = show(disk, "--json")

    fault = (
        "0 partitions are labelled ROOT-A and of type 14df45bd-ad68-4deb-ae12-8e00afdd62f4,"
        " wanted 1"
    )
    assert code == 4
    assert complaint == (
        f"update-agentctl: {fault}\n"
        "(the disk has partitions 1 'ESP', 2 'ROOT-A' (of another type), 3 'ROOT-B', 4 'STATE')\n"
    )
    assert json.loads(text) == {**GOOD, "slots": None, "next": None, "why": None, "error": fault}


def _booted_from(partition: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stand in for a host that was started from the image: a file cannot be a mounted root."""
    booted = udev.BootedPartition(disk=tmp_path / "disk.img", number=partition)
    monkeypatch.setattr(udev, "booted_partition", lambda: booted)


def test_with_b_booted_the_mark_and_the_flags_of_each_stay_with_their_slot(
    show: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _booted_from(3, monkeypatch, tmp_path)
    trial = replace(ROOT_B, attributes=flags(2, 2))
    disk = healthy(512, (*A_SUCCESSFUL[:2], trial, STATE))

    _, text, _ = show(disk)
    _, as_json, _ = show(disk, "--json")

    assert text.endswith(
        "  slot  partition  priority  tries  successful  state\n"
        "  A     2          1         0      yes         successful\n"
        "  B*    3          2         2      no          on trial\n"
        "  (* booted now)\n"
        "\n"
        "slot B boots next, on trial with 2 tries left: its priority 2 is above 1\n"
    )
    shown = json.loads(as_json)
    assert (shown["booted"], shown["next"]) == ("B", "B")
    assert shown["slots"] == [
        {
            "slot": "A", "partition": 2, "priority": 1, "tries": 0, "successful": True,
            "state": "successful",
        },
        {
            "slot": "B", "partition": 3, "priority": 2, "tries": 2, "successful": False,
            "state": "on trial",
        },
    ]  # fmt: skip


def test_a_host_that_runs_from_a_partition_beside_the_slots_has_none_booted(
    show: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _booted_from(4, monkeypatch, tmp_path)

    assert json.loads(show(healthy(), "--json")[1]) == GOOD


@pytest.mark.case(43)
def test_sectors_of_4096_are_found_or_told(show: Callable[..., Shown]) -> None:
    for options in (["--json"], ["--json", "--sector-size", "4096"]):
        code, text, _ = show(healthy(4096), *options)

        assert code == 0
        assert json.loads(text)["sector_size"] == 4096
        assert json.loads(text)["tables"]["backup"]["entries_lba"] == 2043


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["slot"],
        ["slots", "--sector-size", "1024"],
        ["slots", "--dis", "x"],
        ["slots", "--json", "A"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(argv)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: update-agentctl ")


def test_an_image_is_shown_to_anyone_who_may_read_it() -> None:
    with TemporaryDirectory() as folder:  # not tmp_path, which only root may enter
        Path(folder).chmod(0o755)
        image = healthy().save(Path(folder, "disk.img"))
        image.chmod(0o444)
        done = as_nobody("slots", "--disk", image, "--json")

        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {**GOOD, "disk": str(image)}


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    image = healthy().save(tmp_path / "disk.img")
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: it for name, it in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [Path(sys.executable).parent / "update-agentctl", "slots", "--disk", image],
        env=environment, stdout=writing, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")
