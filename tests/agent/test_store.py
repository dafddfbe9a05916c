"""The record on the disk: kept whole, salvaged when it is damaged, one daemon at a time."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agent.fakes import START, V
from update_agent.agent.store import FileStore
from update_agent.core import record
from update_agent.core.lifecycle import State
from update_agent.errors import HostError

KEPT = replace(
    record.fresh(START), state=State.FAILED, failed=(V("1.1.0"),), paused="a move", disarm=True
)


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    FileStore(tmp_path).save(KEPT)

    assert FileStore(tmp_path).load(START) == KEPT


def test_a_host_that_knows_nothing_begins_anew(tmp_path: Path) -> None:
    assert FileStore(tmp_path).load(START) == record.fresh(START)


@pytest.mark.case(52)
def test_what_is_understood_of_a_damaged_record_is_kept_and_the_rest_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, file = FileStore(tmp_path), tmp_path / "record.json"
    store.save(KEPT)
    damaged = file.read_bytes().replace(b'"format": 1', b'"format": 7')
    file.write_bytes(damaged)

    with caplog.at_level(logging.INFO):
        found = store.load(START)

    assert (found.failed, found.paused, found.disarm) == ((V("1.1.0"),), "a move", True)
    assert (tmp_path / "record.damaged.json").read_bytes() == damaged
    assert "record.damaged.json" in caplog.text
    assert store.load(START) == found


def test_a_damaged_record_that_nobody_can_copy_stays_and_keeps_nobody_from_going_on(
    tmp_path: Path,
) -> None:
    store, file = FileStore(tmp_path), tmp_path / "record.json"
    store.save(KEPT)
    damaged = file.read_bytes().replace(b'"format": 1', b'"format": 7')
    file.write_bytes(damaged)
    (tmp_path / "record.damaged.json").mkdir()

    assert store.load(START).failed == (V("1.1.0"),)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"{", b"[]"])
def test_a_record_of_nothing_is_a_new_beginning(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(data)

    assert FileStore(tmp_path).load(START) == record.fresh(START)


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "missing")

    with pytest.raises(HostError, match=r"cannot write .*record\.json: No such"):
        store.save(KEPT)


@pytest.mark.case(49)
def test_two_daemons_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        FileStore(tmp_path).locked(),
        pytest.raises(HostError, match="another update-agentd uses"),
        FileStore(tmp_path).locked(),
    ):
        pass

    with FileStore(tmp_path).locked():
        pass
