"""Reports: what a server takes of what hosts, or anyone, may send."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from update_agent.core import document, report
from update_agent.core.document import DocumentError
from update_agent.core.report import Batch, Report, host_id
from update_agent.core.version import Version

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
REPORT = Report(
    host="a" * 32, queue="b" * 32, sequence=7, time=NOON, name="web-1", product="os",
    architecture="x86_64", version=Version("1.0.0"), channel="stable", state="idle", since=NOON,
)  # fmt: skip


def plain(*reports: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document.encode(Batch(reports=reports)))
    return found


def test_what_a_host_writes_is_what_a_server_reads() -> None:
    assert report.read(document.encode(Batch(reports=(REPORT,)))) == ([REPORT], ())


def test_a_bad_report_does_not_take_the_others_with_it() -> None:
    value = plain(REPORT, REPORT, REPORT)
    value["reports"][1]["host"] = "../../etc"

    taken, refused = report.read(json.dumps(value).encode())

    assert taken == [REPORT, REPORT]
    assert [it.index for it in refused] == [1]
    assert "report 1: " in refused[0].why
    assert "host" in refused[0].why


def test_words_of_a_newer_agent_are_taken() -> None:
    value = plain(REPORT)
    value["reports"][0] |= {"state": "defragmenting", "mood": "good"}

    taken, refused = report.read(json.dumps(value).encode())

    assert (taken[0].state, refused) == ("defragmenting", ())


@pytest.mark.case(19, 99)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("sequence", 0, id="below-the-first"),
        pytest.param("sequence", True, id="bool-for-a-number"),
        pytest.param("version", "1.0", id="no-version"),
        pytest.param("channel", "../stable", id="no-name"),
        pytest.param("name", "web\x1b[2J", id="steers-a-terminal"),
        pytest.param("state", "idle'; DROP TABLE hosts", id="no-word"),
        pytest.param("time", "2026-11-24T12:00:00", id="no-time-zone"),
        pytest.param("place", 1_000_000, id="beyond-the-ring"),
        pytest.param("slot", "C", id="no-slot"),
    ],
)
def test_a_report_with_a_wrong_field_is_refused_by_its_name(field: str, value: object) -> None:
    batch = plain(REPORT)
    batch["reports"][0][field] = value

    taken, refused = report.read(json.dumps(batch).encode())

    assert taken == []
    assert f"$.{field}" in refused[0].why


@pytest.mark.case(19, 99)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no plain JSON", id="empty"),
        pytest.param(b"[]", "wanted an object with reports", id="list"),
        pytest.param(b'{"reports": {}}', "wanted an object with reports", id="no-list"),
        pytest.param(b'{"reports": []}', "0 reports, wanted 1 to 100", id="nothing"),
        pytest.param(b'{"reports": [' + b"1," * 100 + b"1]}", "101 reports", id="too-many"),
        pytest.param(b'{"format": 2, "reports": [1]}', "format 2 is not known", id="format"),
        pytest.param(b" " * 262_145, "262145 bytes, wanted at most 262144", id="too-large"),
        pytest.param(b"[" * 9999, "nested deeper|no plain JSON", id="deep"),
    ],
)
def test_what_is_no_batch_is_refused_whole(data: bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        report.read(data)


def test_a_host_is_named_by_what_cannot_be_turned_back_into_its_machine_id() -> None:
    machine_id = "0123456789abcdef0123456789abcdef"

    assert host_id(machine_id) == host_id(machine_id)
    assert len(host_id(machine_id)) == 32
    assert machine_id not in host_id(machine_id)
