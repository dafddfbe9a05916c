"""The journal: what was trusted is remembered, whatever the power and the disk do."""

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest

from tests.lies import NOW
from update_agent.core.trust import BEGINNING, HighWater, Mark
from update_agent.errors import HostError
from update_agent.host.journal import Journal


def high(version: int) -> HighWater:
    mark = Mark(version=version, content="ab" * 32, keys="cd" * 32)
    return HighWater(time=NOW + timedelta(seconds=version), marks={"timestamp": mark})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def written(path: Path) -> Path:
    """A journal of three steps."""
    journal = Journal(path)
    for version in (1, 2, 3):
        journal.append(high(version))
    return path


def test_a_journal_that_never_was_remembers_nothing(path: Path) -> None:
    assert Journal(path).high == HighWater(time=BEGINNING, marks={})


def test_the_last_line_counts(written: Path) -> None:
    assert Journal(written).high == high(3)
    assert written.read_bytes().count(b"\n") == 3


def test_nothing_new_writes_nothing(written: Path) -> None:
    before = written.stat()

    Journal(written).append(high(3))

    assert written.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.case(12)
def test_a_torn_last_line_costs_one_step_and_no_more(written: Path) -> None:
    data = written.read_bytes()
    begin = data.rfind(b"\n", 0, -1) + 1
    for end in range(begin, len(data) - 1):
        written.write_bytes(data[:end])
        assert Journal(written).high == high(2)
    Journal(written).append(high(4))

    assert Journal(written).high == high(4)


@pytest.mark.case(12)
def test_zeros_instead_of_the_last_line_cost_one_step(written: Path) -> None:
    data = written.read_bytes()
    begin = data.rfind(b"\n", 0, -1) + 1
    written.write_bytes(data[:begin] + bytes(len(data) - begin))
    journal = Journal(written)
    assert journal.high == high(2)
    journal.append(high(4))

    assert Journal(written).high == high(4)


@pytest.mark.case(12)
def test_a_damaged_middle_costs_nothing(written: Path) -> None:
    first, _, last, _ = written.read_bytes().split(b"\n")
    for middle in (b"", bytes(100), b"\xff" * 50, b"garbage", first[:-1]):
        written.write_bytes(b"\n".join([first, middle, last, b""]))

        assert Journal(written).high == high(3)


@pytest.mark.case(12)
@pytest.mark.parametrize("data", [b"", b"\n", bytes(4096), b"garbage\n", b"\xff" * 30])
def test_a_journal_without_a_whole_line_is_damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    with pytest.raises(HostError, match=r"journal, what this host remembers .*, is damaged") as it:
        Journal(path)

    assert "look after the disk" in str(it.value.hint)
    assert path.read_bytes() == data


def test_any_flipped_bit_costs_its_line(written: Path) -> None:
    data = written.read_bytes()
    begin = data.rfind(b"\n", 0, -1) + 1
    for at in range(begin, len(data) - 1):
        written.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

        assert Journal(written).high == high(2)


def test_a_line_that_says_something_else_well_is_not_ours(path: Path) -> None:
    path.write_bytes(b"a3830348 null\n")

    with pytest.raises(HostError, match="is damaged"):
        Journal(path)


def test_a_journal_begins_anew_before_it_grows_large(path: Path) -> None:
    sizes = []
    for version in range(1, 500):
        journal = Journal(path)
        journal.append(high(version))
        assert Journal(path).high == high(version)
        sizes.append(path.stat().st_size)

    assert max(sizes) < 250 * sizes[0]
    assert sizes[-1] < sizes[180]


@pytest.mark.case(38, 39)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_did_not_reach_the_disk_was_not_made(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, first: bool
) -> None:
    journal = Journal(path)
    if not first:
        journal.append(high(1))
    before = path.read_bytes() if path.exists() else None

    def refuse(_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(HostError, match=f"cannot write .*journal: {os.strerror(code)}") as it:
            journal.append(high(2))
    assert it.value.hint

    assert (path.read_bytes() if path.exists() else None) == before
    assert journal.high == (HighWater() if first else high(1))
    journal.append(high(2))
    assert Journal(path).high == high(2)


def test_a_journal_that_cannot_be_read_stops_everything(path: Path) -> None:
    path.mkdir()

    with pytest.raises(HostError, match=r"cannot read .*journal: Is a directory"):
        Journal(path)
