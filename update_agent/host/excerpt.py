"""What the journal says about an attempt that failed: the lines that a person would look at first.

Of a release that fell back, the warnings and errors of its last trial boot; of one that was
refused, what the daemon and the writer said. Reading the journal needs the group systemd-journal.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from update_agent.core.record import Outcome, Past
from update_agent.run import run

_LINES = 30
_ROOM = 4000
"""Characters; the newest lines count."""
_PATIENCE = 20.0
"""Seconds."""
_FIELDS = "_BOOT_ID,SYSLOG_IDENTIFIER,_PID,MESSAGE,__REALTIME_TIMESTAMP"
_WHERE = {
    Outcome.FELL_BACK: ("--boot=-1", "--priority=warning"),
    Outcome.REFUSED: (
        "--boot=0", "--unit=update-agentd.service", "--unit=update-agent-writer.service"
    ),
}  # fmt: skip


def of(past: Past) -> str:
    """Return what the journal of this host says about ``past``. Raises HostError."""
    where = _WHERE.get(past.outcome)
    if where is None:
        return ""
    said = run(
        [
            "journalctl", *where, f"--lines={_LINES}", "--output=json",
            f"--output-fields={_FIELDS}", "--no-pager", "--quiet",
        ],
        timeout=_PATIENCE,
    )  # fmt: skip
    return text(said.splitlines(), besides=past.attempt.armed_in)


def text(entries: Sequence[str], *, besides: str | None) -> str:
    """Return entries of a journal, in JSON, as lines; none of the boot ``besides``.

    A trial boot that wrote nothing leaves the boot before it as the last one in the journal.
    """
    boot = (besides or "").replace("-", "")
    lines = [line for entry in entries for line in _lines(entry, boot)]
    room, kept = _ROOM, 0
    for line in reversed(lines):
        room -= len(line) + 1
        if room < 0:
            break
        kept += 1
    return "\n".join(lines[len(lines) - kept :])


def _lines(entry: str, boot: str) -> Iterator[str]:
    try:
        found: Any = json.loads(entry)
        message, time = found["MESSAGE"], int(found["__REALTIME_TIMESTAMP"]) / 1e6
        when = datetime.fromtimestamp(time, UTC)
    except (ValueError, TypeError, KeyError, OverflowError):
        return  # torn, or nothing for people
    if not isinstance(message, str) or found.get("_BOOT_ID") == boot:
        return
    who = f"{found.get('SYSLOG_IDENTIFIER', '?')}[{found.get('_PID', '?')}]"
    yield from (
        "".join(it if it.isprintable() else " " for it in f"{when:%H:%M:%S} {who}: {line}")[:500]
        for line in message.splitlines()
    )
