"""Independent judges of our tables: sgdisk, sfdisk and cgpt read what we write, and we read theirs.

On image files (512) and on loop devices (512 and 4096). A missing tool is a failure: without its
judges this module says nothing.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disks import KERNEL_TYPE, LAYOUT, SLOT_TYPE, Entry, flags, healthy, loop, tool
from update_agent.core import slot
from update_agent.core.gpt import Copy, Table, TableError, Tables
from update_agent.core.slot import BootFlags, Slot, SlotName, Slots
from update_agent.ctl import recovery
from update_agent.host.disk import open_disk, read_tables

A, B = SlotName.A, SlotName.B


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """Where a table stands: an image, and the device it is attached to, or the image again."""

    image: Path
    path: Path
    sector_size: int

    @property
    def last_lba(self) -> int:
        return self.image.stat().st_size // self.sector_size - 1


@pytest.fixture(params=[(512, False), (512, True), (4096, True)],
                ids=["file-512", "loop-512", "loop-4096"])  # fmt: skip
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Medium]:
    sector_size, attached = request.param
    image = healthy(sector_size).save(tmp_path / "disk.img")
    if attached:
        with loop(image, sector_size) as device:
            yield Medium(image=image, path=device, sector_size=sector_size)
    else:
        yield Medium(image=image, path=image, sector_size=sector_size)


def ours(medium: Medium) -> Tables:
    with open_disk(medium.path) as disk:
        return read_tables(disk)


Partition = tuple[int, int, int, str, str, str, int]
"""Number, first LBA, sectors, type, GUID, label, attributes: what a judge says about one."""


def by_us(tables: Tables) -> list[Partition]:
    assert tables.sound
    return [
        (
            it.number, it.first_lba, it.last_lba - it.first_lba + 1,
            str(it.type_guid), str(it.guid), it.label, it.attributes,
        )
        for it in tables.authoritative.partitions
    ]  # fmt: skip


ATTRIBUTE_NAMES = {"RequiredPartition": 0, "NoBlockIOProtocol": 1, "LegacyBIOSBootable": 2}


def by_sfdisk(medium: Medium) -> list[Partition]:
    layout = json.loads(tool("sfdisk", "--json", medium.path))["partitiontable"]
    found = []
    for it in layout["partitions"]:
        bits = re.findall(r"\w+", it.get("attrs", "").replace("GUID:", ""))
        word = sum(1 << ATTRIBUTE_NAMES.get(bit, int(bit) if bit.isdigit() else 0) for bit in bits)
        number = int(it["node"].removeprefix(str(medium.path)).lstrip("p"))
        found.append(
            (
                number, it["start"], it["size"],
                it["type"].lower(), it["uuid"].lower(), it.get("name", ""), word,
            )
        )  # fmt: skip
    return found


def by_sgdisk(medium: Medium) -> list[Partition]:
    found = []
    for number in _numbers(tool("sgdisk", "--print", medium.path)):
        shown = dict(
            line.split(": ", 1)
            for line in tool("sgdisk", f"--info={number}", medium.path).splitlines()
            if ": " in line
        )
        first = int(shown["First sector"].split()[0])
        found.append(
            (
                number, first, int(shown["Last sector"].split()[0]) - first + 1,
                shown["Partition GUID code"].split()[0].lower(),
                shown["Partition unique GUID"].lower(),
                shown["Partition name"].strip("'"),
                int(shown["Attribute flags"], 16),
            )
        )  # fmt: skip
    return found


def _numbers(printed: str) -> list[int]:
    return [int(it) for it in re.findall(r"^ +(\d+) +\d+ +\d+ ", printed, re.MULTILINE)]


def by_cgpt(medium: Medium) -> list[Partition]:
    found = []
    for line in tool("cgpt", "show", "-q", "-n", medium.path).splitlines():
        start, size, number, kind = line.split()
        guid, label, word = (cgpt(medium, int(number), option) for option in ("-u", "-l", "-A"))
        found.append(
            (
                int(number), int(start), int(size),
                kind.lower(), guid.lower(), label, int(word, 16) << 48,
            )
        )  # fmt: skip
    return found


def cgpt(medium: Medium, number: int, option: str) -> str:
    return tool("cgpt", "show", "-i", str(number), option, medium.path).strip()


def judged_sound(medium: Medium) -> list[Partition]:
    """Return the partitions about which all judges and we agree, none of them finding a fault."""
    assert "No problems found" in tool("sgdisk", "--verify", medium.path)
    assert "No errors detected" in tool("sfdisk", "--verify", medium.path)
    assert "INVALID" not in tool("cgpt", "show", medium.path)
    partitions = by_us(ours(medium))
    assert by_sgdisk(medium) == partitions
    assert by_sfdisk(medium) == partitions
    assert by_cgpt(medium) == partitions
    return partitions


def flags_by_cgpt(medium: Medium, number: int) -> tuple[int, int, int]:
    """Return priority, tries, successful."""
    priority, tries, successful = (
        int(cgpt(medium, number, option)) for option in ("-P", "-T", "-S")
    )
    return priority, tries, successful


def flip(medium: Medium, *command: str) -> None:
    assert recovery.main([*command, "--disk", str(medium.path)]) == 0


# Their tables, read by us ------------------------------------------------------------------------


def made_by_sgdisk(medium: Medium) -> None:
    options = ["--clear", "--set-alignment=1"]
    for it in LAYOUT:
        options += [
            f"--new={it.number}:{it.first}:{it.last}",
            f"--typecode={it.number}:{it.type}",
            f"--partition-guid={it.number}:{it.guid}",
            f"--change-name={it.number}:{it.label}",
            f"--attributes={it.number}:=:00310000000000{it.number:02x}",
        ]
    tool("sgdisk", *options, medium.path)


def made_by_sfdisk(medium: Medium) -> None:
    script = "label: gpt\n" + "".join(
        f"{it.number}: start={it.first}, size={it.last - it.first + 1}, type={it.type}, "
        f'uuid={it.guid}, name="{it.label}", attrs="GUID:48,52,53,63"\n'
        for it in LAYOUT
    )
    tool("sfdisk", "--wipe=always", "--no-reread", "--no-tell-kernel", medium.path, stdin=script)


def made_by_cgpt(medium: Medium) -> None:
    tool("cgpt", "create", medium.path)
    tool("cgpt", "boot", "-p", medium.path)
    for it in LAYOUT:
        tool(
            "cgpt", "add", "-i", str(it.number), "-b", str(it.first),
            "-s", str(it.last - it.first + 1), "-t", str(it.type), "-u", str(it.guid),
            "-l", it.label, "-P", "1", "-T", "3", "-S", "1", medium.path,
        )  # fmt: skip


Maker = Callable[[Medium], None]
MAKERS: list[Maker] = [made_by_sgdisk, made_by_sfdisk, made_by_cgpt]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.case(43)
def test_a_table_by_any_of_them_is_read_alike_by_all_and_us(medium: Medium, maker: Maker) -> None:
    maker(medium)

    found = ours(medium)

    assert found.sound
    assert found.geometry.sector_size == medium.sector_size
    assert [it[:6] for it in by_us(found)] == [
        (it.number, it.first, it.last - it.first + 1, str(it.type), str(it.guid), it.label)
        for it in LAYOUT
    ]
    assert by_sfdisk(medium) == by_sgdisk(medium) == by_us(found)
    without_low_bits = [(*it[:6], it[6] >> 48 << 48) for it in by_us(found)]
    assert by_cgpt(medium) == without_low_bits


@pytest.mark.parametrize("maker", MAKERS)
def test_a_table_by_any_of_them_is_flipped_and_still_theirs(medium: Medium, maker: Maker) -> None:
    maker(medium)
    for number in (2, 3):
        tool("cgpt", "add", "-i", str(number), "-A", "0", medium.path)

    flip(medium, "confirm", "A")
    flip(medium, "arm", "B")

    assert flags_by_cgpt(medium, 2) == (1, 0, 1)
    assert flags_by_cgpt(medium, 3) == (2, 3, 0)
    assert "No problems found" in tool("sgdisk", "--verify", medium.path)
    assert "No errors detected" in tool("sfdisk", "--verify", medium.path)
    assert by_sfdisk(medium) == by_sgdisk(medium) == by_us(ours(medium))


# Our tables, read by them ------------------------------------------------------------------------

LIFE = [
    (("arm", "B"), (1, 0, 1), (2, 3, 0)),
    (("confirm", "B"), (1, 0, 1), (2, 0, 1)),
    (("rollback", "A"), (2, 0, 1), (1, 0, 1)),
    (("rollback", "B"), (1, 0, 1), (2, 0, 1)),
    (("retire", "A"), (0, 0, 0), (2, 0, 1)),
    (("arm", "A"), (2, 3, 0), (1, 0, 1)),
    (("rollback", "B"), (0, 0, 0), (1, 0, 1)),
]
"""Operations, one after the other, and the flags of A and B after each, worked out by hand."""


def test_after_every_kind_of_flip_all_judges_see_a_sound_table_and_our_flags(
    medium: Medium,
) -> None:
    before = judged_sound(medium)
    places = []

    for command, a, b in LIFE:
        flip(medium, *command)

        after = judged_sound(medium)
        assert [it[:6] for it in after] == [it[:6] for it in before]
        assert (flags_by_cgpt(medium, 2), flags_by_cgpt(medium, 3)) == (a, b)
        primary = ours(medium).primary
        assert isinstance(primary, Table)
        places.append(primary.header.entries_lba)

    home, spare = (2, 34) if medium.sector_size == 512 else (2, 6)
    assert places == [spare, home, spare, home, spare, home, spare]


@pytest.mark.case(53)
@pytest.mark.case(55)
@pytest.mark.case(70)
@pytest.mark.parametrize("shadow", [False, True], ids=["array-at-home", "array-in-spare-place"])
@pytest.mark.parametrize("copy", list(Copy))
def test_a_copy_that_was_destroyed_is_repaired_to_all_judges_content(
    medium: Medium, copy: Copy, *, shadow: bool
) -> None:
    if shadow:
        flip(medium, "arm", "B")
    before = judged_sound(medium)
    lba = 1 if copy is Copy.PRIMARY else medium.last_lba
    tool(
        "dd", "if=/dev/zero", f"of={medium.path}", f"bs={medium.sector_size}", f"seek={lba}",
        "count=1", "conv=notrunc,fsync", "status=none",
    )  # fmt: skip

    flip(medium, "repair")

    assert judged_sound(medium) == before


@pytest.mark.case(60)
@pytest.mark.parametrize("shadow", [False, True], ids=["array-at-home", "array-in-spare-place"])
def test_the_backup_moves_to_the_end_of_a_grown_disk_to_all_judges_content(
    medium: Medium, *, shadow: bool
) -> None:
    if shadow:
        flip(medium, "arm", "B")
    before = judged_sound(medium)
    with medium.image.open("r+b") as image:
        image.truncate(4096 * medium.sector_size)
    if medium.path != medium.image:
        tool("losetup", "--set-capacity", medium.path)
    assert not ours(medium).backup_at_end

    flip(medium, "repair")

    assert medium.last_lba == 4095
    assert judged_sound(medium) == before


@pytest.mark.case(60)
@pytest.mark.case(70)
def test_a_flip_on_a_grown_disk_repairs_it_first(medium: Medium) -> None:
    with medium.image.open("r+b") as image:
        image.truncate(4096 * medium.sector_size)
    if medium.path != medium.image:
        tool("losetup", "--set-capacity", medium.path)

    flip(medium, "arm", "B")

    judged_sound(medium)
    assert flags_by_cgpt(medium, 3) == (2, 3, 0)


def label_by_sgdisk(medium: Medium) -> None:
    tool("sgdisk", "--change-name=4:changed", "--attributes=3:set:56", medium.path)


def label_by_sfdisk(medium: Medium) -> None:
    tool("sfdisk", "--no-reread", "--no-tell-kernel", "--part-label", medium.path, "4", "changed")
    tool(
        "sfdisk", "--no-reread", "--no-tell-kernel", "--part-attrs", medium.path, "3",
        "GUID:49,52,53,56",
    )  # fmt: skip


def label_by_cgpt(medium: Medium) -> None:
    tool("cgpt", "add", "-i", "4", "-l", "changed", medium.path)
    tool("cgpt", "add", "-i", "3", "-S", "1", medium.path)


@pytest.mark.parametrize("editor", [label_by_sgdisk, label_by_sfdisk, label_by_cgpt])
def test_they_still_edit_a_table_whose_array_lies_in_the_spare_place(
    medium: Medium, editor: Maker
) -> None:
    flip(medium, "arm", "B")

    editor(medium)

    after = judged_sound(medium)
    assert after[3][5] == "changed"
    assert flags_by_cgpt(medium, 3) == (2, 3, 1)
    flip(medium, "confirm", "B")
    assert flags_by_cgpt(medium, 3) == (2, 0, 1)
    judged_sound(medium)


@pytest.mark.case(44)
def test_a_disk_of_three_terabytes_is_flipped_to_all_judges_content(tmp_path: Path) -> None:
    far = 2**32
    entries = (
        Entry(number=2, first=far, last=far + 99, type=SLOT_TYPE, label="ROOT-A",
              attributes=flags(1, 0, ok=True)),
        Entry(number=3, first=far + 100, last=far + 199, type=SLOT_TYPE, label="ROOT-B"),
    )  # fmt: skip
    image = healthy(512, entries, sectors=6 * 2**30).save(tmp_path / "large.img")
    large = Medium(image=image, path=image, sector_size=512)

    flip(large, "arm", "B")

    assert judged_sound(large)[1][1] == 4_294_967_396
    assert flags_by_cgpt(large, 3) == (2, 3, 0)


@pytest.mark.case(57)
def test_two_destroyed_copies_are_left_as_they_are(medium: Medium) -> None:
    for lba in (1, medium.last_lba):
        tool(
            "dd", "if=/dev/zero", f"of={medium.path}", f"bs={medium.sector_size}", f"seek={lba}",
            "count=1", "conv=notrunc,fsync", "status=none",
        )  # fmt: skip
    before = medium.image.read_bytes()

    assert recovery.main(["repair", "--disk", str(medium.path)]) == 4
    assert medium.image.read_bytes() == before


@pytest.mark.case(62)
@pytest.mark.parametrize("mark", [(), ("-p",)], ids=["CHROMEOS", "IGNOREME"])
def test_the_way_out_that_we_name_brings_a_foreign_table_back(
    medium: Medium, mark: tuple[str, ...]
) -> None:
    before = judged_sound(medium)
    tool("cgpt", "legacy", *mark, medium.path)
    with pytest.raises(TableError, match="is foreign") as raised:
        _ = ours(medium).authoritative

    way_out = re.search(r"'(cgpt [^']+)'", raised.value.hint or "")
    assert way_out
    tool(*way_out[1].split(), medium.path)
    assert judged_sound(medium) == before


# Beside 'cgpt prioritize' ------------------------------------------------------------------------


@pytest.fixture
def chromeos(tmp_path: Path) -> Medium:
    """A disk whose slots are ChromeOS kernels, the only type that cgpt ranks."""
    kernels = (
        Entry(number=2, first=512, last=1023, type=KERNEL_TYPE, label="ROOT-A"),
        Entry(number=3, first=1024, last=1535, type=KERNEL_TYPE, label="ROOT-B"),
    )
    image = healthy(512, kernels).save(tmp_path / "chromeos.img")
    return Medium(image=image, path=image, sector_size=512)


def prioritized(medium: Medium, a: int, b: int, *options: str) -> tuple[int, int]:
    """Return the priorities of A and B after ``cgpt prioritize`` found ``a`` and ``b``."""
    for number, priority in ((2, a), (3, b)):
        tool("cgpt", "add", "-i", str(number), "-P", str(priority), medium.path)
    tool("cgpt", "prioritize", *options, medium.path)
    return int(cgpt(medium, 2, "-P")), int(cgpt(medium, 3, "-P"))


def successful(a: int, b: int) -> Slots:
    return Slots(
        a=Slot(name=A, number=2, flags=BootFlags(priority=a, successful=True)),
        b=Slot(name=B, number=3, flags=BootFlags(priority=b, successful=True)),
    )


def priorities(slots: Slots) -> tuple[int, int]:
    return slots.a.flags.priority, slots.b.flags.priority


@pytest.mark.parametrize("keeper", range(1, 16))
def test_arm_gives_the_priorities_of_cgpt_prioritize(chromeos: Medium, keeper: int) -> None:
    before = successful(keeper, 0).with_flags({B: BootFlags()})

    assert priorities(slot.arm(before, B)) == prioritized(chromeos, keeper, 0, "-i", "3") == (1, 2)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 1), (15, 1), (9, 3), (15, 15), (3, 2)], ids=str)
def test_rollback_to_the_slot_behind_gives_the_priorities_of_cgpt_prioritize(
    chromeos: Medium, a: int, b: int
) -> None:
    after = slot.rollback(successful(a, b), B)

    assert priorities(after) == prioritized(chromeos, a, b, "-i", "3") == (1, 2)


@pytest.mark.parametrize(
    ("before", "ours_after", "cgpt_after", "options"),
    [
        pytest.param((3, 9), (3, 9), (1, 2), ("-i", "3"), id="next-already-so-we-write-nothing"),
        pytest.param((0, 9), (0, 9), (0, 1), ("-i", "3"), id="next-already-beside-priority-0"),
        pytest.param((9, 9), (1, 2), (1, 2), ("-i", "3"), id="tie-lifts-the-named-slot-alone"),
        pytest.param((9, 9), (1, 2), (1, 1), ("-i", "3", "-f"), id="its-friends-with-f"),
    ],
)
def test_where_rollback_differs_from_cgpt_prioritize_on_purpose(
    chromeos: Medium,
    before: tuple[int, int],
    ours_after: tuple[int, int],
    cgpt_after: tuple[int, int],
    options: tuple[str, ...],
) -> None:
    assert priorities(slot.rollback(successful(*before), B)) == ours_after
    assert prioritized(chromeos, *before, *options) == cgpt_after


def test_cgpt_prioritize_leaves_tries_and_successful_alone(chromeos: Medium) -> None:
    tool("cgpt", "add", "-i", "2", "-T", "5", "-S", "1", chromeos.path)
    tool("cgpt", "add", "-i", "3", "-T", "7", "-S", "0", chromeos.path)

    assert prioritized(chromeos, 1, 0, "-i", "3") == (1, 2)
    assert flags_by_cgpt(chromeos, 2) == (1, 5, 1)
    assert flags_by_cgpt(chromeos, 3) == (2, 7, 0)


def test_cgpt_prioritize_ranks_no_other_type_than_its_own(medium: Medium) -> None:
    """Why ``prioritized`` needs ChromeOS kernels: our type is nothing to cgpt."""
    with pytest.raises(AssertionError, match="partition 2 is not a ChromeOS kernel"):
        tool("cgpt", "prioritize", "-i", "2", medium.path)

    assert flags_by_cgpt(medium, 2) == (1, 0, 1)
