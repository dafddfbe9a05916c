"""The fuzzer of ``tests/fuzz/gpt.py`` on a small budget, and proof that its judge would notice.

The long run is not part of the checks: ``python -m tests.fuzz.gpt --count 1000000``.
"""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disks import HEADER_FIELDS, MemoryDisk, flags, healthy
from tests.fuzz import gpt as fuzz
from update_agent.core import gpt
from update_agent.core.gpt import Copy, Geometry, Table, TableError
from update_agent.core.slot import BootFlags
from update_agent.host.disk import read_tables

OK, ARMED = BootFlags(priority=1, successful=True), BootFlags(priority=2, tries=3)


@settings(max_examples=1000)
@given(random=st.randoms(use_true_random=True))
def test_no_random_table_makes_us_write_outside_the_table_areas(random: Random) -> None:
    fuzz.one(random)


@pytest.mark.case(61)
@given(
    copy=st.sampled_from(Copy),
    values=st.dictionaries(
        st.sampled_from([it for it in HEADER_FIELDS if it.endswith("LBA")]),
        st.sampled_from(fuzz.EDGES) | st.integers(0, 2**64 - 1),
        max_size=3,
    ),
)
def test_a_header_with_any_addresses_is_good_or_refused(copy: Copy, values: dict[str, int]) -> None:
    disk = healthy()
    disk.patch(copy, **values)

    assert fuzz.judge(disk, (OK, ARMED)) in {"flipped", "TableError, malformed", "HostError"}


@given(sector=st.binary(max_size=600), array=st.binary(max_size=600), copy=st.sampled_from(Copy))
def test_any_bytes_are_a_table_or_a_table_error(sector: bytes, array: bytes, copy: Copy) -> None:
    geometry = Geometry(sector_size=512, sectors=2048)
    with pytest.raises(TableError):
        gpt.parse_header(copy, sector, lba=1, geometry=geometry)
    header = _primary(healthy()).header
    with pytest.raises(TableError):
        gpt.parse_table(header, array)


def _primary(disk: MemoryDisk) -> Table:
    primary = read_tables(disk).primary
    assert isinstance(primary, Table)
    return primary


# The judge ---------------------------------------------------------------------------------------


def _into_the_mbr(disk: MemoryDisk) -> None:
    disk.write(0, bytes(512))


def _into_a_partition(disk: MemoryDisk) -> None:
    disk.write(1535, bytes(512))


def _between_the_partitions(disk: MemoryDisk) -> None:
    disk.write(1900, bytes(512))


def _behind_the_second_array(disk: MemoryDisk) -> None:
    disk.write(130, bytes(512))


def _another_label(disk: MemoryDisk) -> None:
    for copy in Copy:
        disk.patch_entry(copy, 4, PartitionName=b"x\0")
    _write_what_stands_there(disk)


def _one_copy_only(disk: MemoryDisk) -> None:
    disk.patch_entry(Copy.PRIMARY, 2, Attributes=flags(1, 1))
    _write_what_stands_there(disk)


def _write_what_stands_there(disk: MemoryDisk) -> None:
    for lba in (1, 2, 2015, 2047):
        disk.write(lba, disk.read(lba, 1))


@pytest.mark.parametrize(
    ("misdeed", "promise"),
    [
        (_into_the_mbr, "LBA 0 outside of the table areas was written"),
        (_into_a_partition, "LBA 1535 of a partition was written"),
        (_between_the_partitions, "LBA 1900 outside of the table areas was written"),
        (_behind_the_second_array, "LBA 130 outside of the table areas was written"),
        (_another_label, "a flip changed more than flags"),
        (_one_copy_only, "after a flip the tables are not sound"),
    ],
)
def test_the_judge_notices(
    misdeed: Callable[[MemoryDisk], None], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misbehaving(disk: MemoryDisk, _edit: object) -> None:
        disk.write(1, disk.read(1, 1))
        misdeed(disk)

    monkeypatch.setattr(fuzz, "change_slots", misbehaving)

    with pytest.raises(fuzz.BrokenPromiseError, match=f"^{promise}$"):
        fuzz.judge(healthy(), (OK, ARMED))


def test_the_judge_lets_nobody_write_where_firmware_sees_no_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fuzz, "change_slots", lambda disk, _edit: disk.write(1, disk.read(1, 1)))
    disk = healthy()
    for copy in Copy:
        disk.corrupt(copy, HeaderCRC32=0)

    with pytest.raises(fuzz.BrokenPromiseError, match=r"^written to a disk without a table"):
        fuzz.judge(disk, (OK, ARMED))
