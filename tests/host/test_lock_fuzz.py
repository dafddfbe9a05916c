"""The lock as a whole: what its judge finds, and that it finds nothing in a run with faults."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.fuzz.lock import figures, fuzz, violations
from update_agent.core.semaphore import Holder, Released, Semaphore

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def holder(number: int, **fields: object) -> Holder:
    nonce, name = f"{number:032x}", f"web-{number}"
    made = Holder(
        nonce=nonce, boot_id="boot", name=name, since=NOON, labels={"rack": str(number)}
    )  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


def value(*holders: Holder, slots: int = 2, back: int | None = None) -> Semaphore:
    released = Released(nonce=f"{back:032x}", name=f"web-{back}", at=NOON) if back else None
    return Semaphore(
        slots=slots, apart=("rack",), released=released,
        holders={f"{int(it.name[4:]):032x}": it for it in holders},
    )  # fmt: skip


def test_a_history_in_which_all_is_well_has_no_violation() -> None:
    one, two, three = (holder(it) for it in (1, 2, 3))
    sure = replace(one, confirmed=NOON)
    history = [
        value(), value(one), value(one, two), value(sure, two), value(sure, two, slots=1),
        value(two, slots=1, back=1), value(slots=1, back=1), value(three, slots=1, back=1),
        value(slots=1, back=1), value(holder(4, offered=True), slots=1, back=1),
        value(slots=1, back=1),
    ]  # fmt: skip

    assert violations(history, released=[one.nonce, two.nonce], forced=[three.nonce]) == []


@pytest.mark.parametrize(
    ("history", "says"),
    [
        pytest.param([value(holder(1)), value(holder(1), holder(2), slots=1)],
                     "2 holders of 1 slots", id="one-too-many"),
        pytest.param([value(slots=0), value(holder(1), slots=0)],
                     "1 holders of 0 slots", id="while-frozen"),
        pytest.param([value(holder(1)), value(holder(1), holder(2, labels={"rack": "1"}))],
                     "web-2 is not the only one with its rack", id="two-of-a-rack"),
        pytest.param([value(holder(1, member=True)),
                      value(holder(1, member=True), holder(2, member=True))],
                     "web-2 is not the only member", id="two-members-of-etcd"),
        pytest.param([value(holder(1)), value()],
                     "web-1 was removed by somebody else", id="stolen"),
        pytest.param([value(holder(1, confirmed=NOON)), value(holder(2))],
                     "web-1 was removed by somebody else", id="stolen-by-another"),
        pytest.param([value(holder(1, offered=True, confirmed=NOON)), value()],
                     "web-1 was removed by somebody else", id="stolen-after-an-offer"),
        pytest.param([value(holder(9, confirmed=NOON)), value()],
                     "web-9 had confirmed, and left no trace", id="no-trace"),
        pytest.param([value(holder(1)), value(holder(1, nonce=f"{7:032x}"))],
                     "web-1 was exchanged for another", id="exchanged"),
        pytest.param([value(), value(holder(1, confirmed=NOON))],
                     "web-1 was confirmed before", id="confirmed-from-nothing"),
    ],
)  # fmt: skip
def test_the_judge_finds(history: list[Semaphore], says: str) -> None:
    found = violations(history, released=[holder(9).nonce], forced=[])

    assert [it for it in found if says in it], found
    assert found[0].startswith("value 1: ")


@pytest.mark.case(76, 78, 81, 88)
@pytest.mark.filterwarnings(
    # Python's SSLSocket is left to the collector when its peer resets between connect and handshake
    "ignore:Exception ignored in.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_sixty_hosts_over_members_that_fail_break_no_promise(
    figure: Callable[[str], None],
) -> None:
    began = time.monotonic()

    run, wrong = fuzz(2000, 20261128)

    figure(figures(run, wrong, time.monotonic() - began))
    assert wrong == []
    assert run.counts["grants"]
    assert run.counts["confirmed"]
    assert run.counts["offers"]
