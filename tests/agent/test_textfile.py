"""What Prometheus reads of a host."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agent.fakes import OFFER, Case, Fakes, check, nothing, play, waiting
from update_agent.agent.textfile import Textfile, described
from update_agent.core.reason import Reason


def samples(text: str) -> dict[str, float]:
    return {
        f"{it.name}{sorted(it.labels.values()) if it.labels else ''}": it.value
        for family in text_string_to_metric_families(text)
        for it in family.samples
    }


def test_a_host_that_waits_says_why_and_what_it_is() -> None:
    case = play(check, Fakes(answers=[waiting(Reason.WAVE)]))

    found = samples(described(case.daemon))

    assert found["update_agent_waits['wave']"] == 1
    assert found["update_agent_state['waiting']"] == 1
    assert found["update_agent_state['idle']"] == 0
    assert found["update_agent_checked_seconds"] > 0
    assert any(name.startswith("update_agent_info") and "'1.0.0'" in name for name in found)


def write(path: Path, *cases: Case) -> None:
    async def run() -> None:
        textfile = Textfile(path)
        task = asyncio.create_task(textfile.run())
        for case in cases:
            textfile.tell(case.daemon)
            await asyncio.sleep(0)
        textfile.stop()
        await task

    asyncio.run(run())


def test_the_file_holds_the_newest(tmp_path: Path) -> None:
    idle = play(nothing, Fakes(answers=[waiting(Reason.UP_TO_DATE)]))
    updating = play(check, Fakes(answers=[OFFER]))

    write(tmp_path / "update-agent.prom", idle, updating)

    assert (tmp_path / "update-agent.prom").read_text() == described(updating.daemon)


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idle = play(nothing, Fakes(answers=[waiting(Reason.UP_TO_DATE)]))
    waits = play(check, Fakes(answers=[waiting(Reason.WAVE)]))

    write(tmp_path / "nowhere/update-agent.prom", idle, waits)

    assert caplog.text.count("cannot write") == 1
