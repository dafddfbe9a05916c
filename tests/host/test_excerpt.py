"""Lines of the journal that tell why an attempt failed."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from update_agent.core.record import Attempt, Outcome, Past
from update_agent.core.version import Version
from update_agent.host import excerpt

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ARMED_IN = "01234567-89ab-cdef-0123-456789abcdef"
PAST = Past(
    attempt=Attempt(
        id="a" * 32, running=Version("1.0.0"), version=Version("1.1.0"), root_hash="1" * 64,
        began=NOON, armed_in=ARMED_IN,
    ),
    ended=NOON, outcome=Outcome.FELL_BACK, why="not healthy",
)  # fmt: skip


def entry(message: object, **fields: object) -> str:
    known = {
        "MESSAGE": message, "SYSLOG_IDENTIFIER": "nginx", "_PID": "812", "_BOOT_ID": "f" * 32,
        "__REALTIME_TIMESTAMP": str(int(NOON.timestamp()) * 1_000_000),
    }  # fmt: skip
    return json.dumps(known | fields)


def test_entries_become_lines_for_people() -> None:
    lines = [
        entry("bind failed"),
        entry("two\nlines", SYSLOG_IDENTIFIER="sshd"),
        entry("\x1b[31mred"),
    ]

    assert excerpt.text(lines, besides=ARMED_IN).splitlines() == [
        "12:00:00 nginx[812]: bind failed", "12:00:00 sshd[812]: two", "12:00:00 sshd[812]: lines",
        "12:00:00 nginx[812]:  [31mred",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="nothing"),
        pytest.param('{"MESSAGE": "torn', id="torn"),
        pytest.param("[]", id="no-object"),
        pytest.param(entry([104, 105]), id="bytes"),
        pytest.param(entry(None), id="too-large-to-be-shown"),
        pytest.param(entry("x", __REALTIME_TIMESTAMP="9" * 40), id="a-strange-time"),
        pytest.param(entry("x", _BOOT_ID=ARMED_IN.replace("-", "")), id="before-the-trial"),
    ],
)
def test_what_is_no_line_of_the_trial_is_left_out(line: str) -> None:
    assert excerpt.text([line, entry("after")], besides=ARMED_IN) == "12:00:00 nginx[812]: after"


def test_the_newest_lines_count() -> None:
    found = excerpt.text([entry(f"{number:04} " + "x" * 90) for number in range(100)], besides=None)

    assert len(found) <= 4000
    assert found.splitlines()[-1].startswith("12:00:00 nginx[812]: 0099 ")


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (Outcome.FELL_BACK, ["--boot=-1", "--priority=warning"]),
        (Outcome.REFUSED, ["--boot=0", "--unit=update-agentd.service"]),
        (Outcome.CONFIRMED, []),
        (Outcome.DROPPED, []),
    ],
)
def test_the_journal_is_asked_where_the_failure_was(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome, wanted: list[str]
) -> None:
    asked: list[str] = []

    def journalctl(words: list[str], **_: object) -> str:
        asked.extend(words)
        return entry("bind failed") + "\n"

    monkeypatch.setattr(excerpt, "run", journalctl)

    found = excerpt.of(replace(PAST, outcome=outcome))

    assert found == ("12:00:00 nginx[812]: bind failed" if wanted else "")
    assert asked[1:3] == wanted
