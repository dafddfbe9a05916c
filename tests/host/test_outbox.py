"""Reports that wait: numbered once, bounded, there after a crash at any step."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.process import report
from update_agent.core.report import Report
from update_agent.errors import HostError
from update_agent.host import files
from update_agent.host.outbox import Outbox

ANY = report()


def box(folder: Path, name: str = "1" * 32, limit: int = 3) -> Outbox:
    return Outbox(folder / "reports", limit, lambda: name)


def numbers(reports: list[Report]) -> list[int]:
    return [it.sequence for it in reports]


def test_reports_wait_in_their_order_until_they_are_dropped(tmp_path: Path) -> None:
    outbox = box(tmp_path)

    kept = [outbox.put(replace(ANY, state=state)) for state in ("checking", "installing", "idle")]

    assert numbers(kept) == [1, 2, 3]
    assert outbox.waiting(2) == kept[:2]
    outbox.drop(2)
    assert outbox.waiting(10) == kept[2:]
    outbox.drop(3)
    assert outbox.waiting(10) == []


def test_a_restart_goes_on_where_the_queue_was_even_when_it_is_empty(tmp_path: Path) -> None:
    first = box(tmp_path)
    first.put(ANY)
    first.drop(1)

    again = box(tmp_path, name="2" * 32).put(ANY)

    assert (again.queue, again.sequence) == ("1" * 32, 2)


def test_when_too_many_wait_the_oldest_go(tmp_path: Path) -> None:
    outbox = box(tmp_path)

    for _ in range(5):
        outbox.put(ANY)

    assert numbers(outbox.waiting(10)) == [3, 4, 5]


def test_a_damaged_report_is_left_out_and_a_damaged_head_begins_another_queue(
    tmp_path: Path,
) -> None:
    outbox = box(tmp_path)
    outbox.put(ANY)
    outbox.put(ANY)
    (tmp_path / "reports/0000000000000001.json").write_bytes(b"")
    (tmp_path / "reports/head.json").write_bytes(b"\0\0\0")

    again = box(tmp_path, name="2" * 32)

    assert numbers(again.waiting(10)) == [2]
    assert again.put(ANY).queue == "2" * 32


def test_another_queue_comes_behind_what_is_left_of_the_first(tmp_path: Path) -> None:
    outbox = box(tmp_path)
    for _ in range(3):
        outbox.put(ANY)
    (tmp_path / "reports/head.json").unlink()

    again = box(tmp_path, name="2" * 32)
    new = again.put(ANY)

    assert again.waiting(10)[-1] == new, "the newest was taken for the oldest"


@pytest.mark.case(38)
@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_number_is_never_given_twice_wherever_it_dies(
    tmp_path: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    box(tmp_path).put(ANY)
    replaced, calls = files.replace, iter(range(1, 9))

    def die(path: Path, data: bytes) -> None:
        if next(calls) == dies_at:
            raise OSError(28, "No space left on device")
        replaced(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", die)
        with pytest.raises(HostError, match="cannot keep a report: No space left on device"):
            box(tmp_path).put(ANY)

    again = box(tmp_path)
    kept = again.put(ANY)
    assert kept.sequence > 1
    assert numbers(again.waiting(10)) == [1, kept.sequence]
