"""The plug is pulled at every point of what the selector in C writes, on a model disk.

The model, the starts and the judges are those of ``tests/host/test_power_cuts.py``.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.firmware import copies
from tests.host.test_power_cuts import (
    ALL,
    ARMED,
    COARSE,
    FINE,
    MIDDLE,
    ON_TRIAL,
    SECTOR_SIZES,
    SMALL,
    SUCCESSFUL_1,
    Case,
    Survey,
    starts,
)
from tests.power import Change, Fault, ModelDisk, crashes
from tests.selector.model import LOADING, StartedError
from tests.selector.native import Refusal, Selector
from update_agent.core import slot
from update_agent.core.slot import BootFlags, SlotName
from update_agent.errors import HostError
from update_agent.host.disk import Disk, read_tables

A, B = SlotName

GIVEN_UP = 0x0002 << 48


class RefusedError(HostError):
    """C refused the change."""


def _must(refusal: Refusal) -> None:
    if refusal:
        raise RefusedError(refusal.name)


def _count_down(disk: Disk) -> None:
    _must(Selector(disk).count_down(B))


def _give_up(disk: Disk) -> None:
    _must(Selector(disk).give_up(B))


def _boot(disk: Disk) -> SlotName | None:
    """Boot slots that both run; return which one does."""
    started: list[SlotName] = []

    def attempt(starting: bool, name: SlotName) -> bool:  # noqa: FBT001  as C calls it
        if starting is not LOADING:
            started.append(name)
            raise StartedError
        return True

    try:
        Selector(disk).boot(attempt)
    except StartedError:
        return started[0]
    return None


OPERATIONS: dict[str, tuple[Change, int, int]] = {
    "count down": (_count_down, ARMED, ON_TRIAL),
    "give up": (_give_up, ON_TRIAL, GIVEN_UP),
    "boot": (_boot, ARMED, ON_TRIAL),
}
"""What is done, and slot B's attribute word before and after it."""


def cases(sector_size: int, names: tuple[str, ...] = ALL) -> Iterator[tuple[str, Case]]:
    for operation, (change, before, after) in OPERATIONS.items():
        old = starts(sector_size, (SUCCESSFUL_1, before))
        new = starts(sector_size, (SUCCESSFUL_1, after))
        for start in names:
            layout, image = old[start]
            yield (
                f"{operation}: {start}",
                Case(start=image, change=change, old=layout.array(), new=new[start][0].array()),
            )


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_power_cut_leaves_the_old_table_or_the_new_one(
    sector_size: int, figure: Callable[[str], None]
) -> None:
    survey, lost = Survey(), []
    for name, case in cases(sector_size):
        tears = (FINE if name.partition(": ")[2] in SMALL else MIDDLE)[sector_size]
        if not survey.judge_all(crashes(case.start, case.change, tears), case.outcomes):
            lost.append(name)

    figure(
        f"selector, power cuts, {sector_size}-byte sectors:"
        f" {survey.states:,} states tried, {survey.lost:,} lost"
    )
    assert not lost
    assert survey.states > 3_000


@pytest.mark.case(47)
@pytest.mark.case(69)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_after_a_power_cut_the_next_boot_runs_the_trial_and_no_try_comes_back(
    sector_size: int, figure: Callable[[str], None]
) -> None:
    boots = 0
    for name, case in cases(sector_size, SMALL):
        if not name.startswith("boot"):
            continue
        for state in crashes(case.start, case.change, MIDDLE[sector_size]):
            before = _flags(ModelDisk(state))
            disk = ModelDisk(state)

            assert _boot(disk) is B, name
            after = _flags(disk)
            assert before[B].tries in (3, 2)
            assert after[B] == BootFlags(priority=2, tries=before[B].tries - 1), name
            assert after[A] == before[A] == BootFlags(priority=1, successful=True), name
            assert copies(disk.running).valid == 2, name
            boots += 1

    figure(f"selector, boots after a power cut, {sector_size}-byte sectors: {boots:,}, 0 failed")


def _flags(disk: ModelDisk) -> dict[SlotName, BootFlags]:
    slots = slot.from_table(read_tables(disk).authoritative)
    return {it.name: it.flags for it in slots}


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_power_cut_in_the_boot_after_a_power_cut_loses_nothing(
    sector_size: int, figure: Callable[[str], None]
) -> None:
    survey = Survey()
    third = starts(sector_size, (SUCCESSFUL_1, 0x0012 << 48))  # after two tries
    for name, case in cases(sector_size, SMALL):
        if not name.startswith("boot"):
            continue
        seen: set[object] = set()
        allowed = (*case.outcomes, third[name.partition(": ")[2]][0].array())
        for state in crashes(case.start, case.change, COARSE[sector_size]):
            again = crashes(state, case.change, COARSE[sector_size], seen=seen)
            assert survey.judge_all(again, allowed), name

    figure(
        f"selector, power cuts in the boot after a power cut, {sector_size}-byte sectors:"
        f" {survey.states:,} states tried, {survey.lost:,} lost"
    )


@pytest.mark.case(38)
@pytest.mark.case(39)
@pytest.mark.case(66)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_failed_write_or_flush_ends_the_change_and_is_not_tried_again(sector_size: int) -> None:
    for name, case in cases(sector_size):
        if name.startswith("boot"):
            continue
        whole = ModelDisk(case.start)
        case.change(whole)
        for number in range(len(whole.operations)):
            disk = ModelDisk(case.start, {number: Fault.EIO})

            with pytest.raises(RefusedError, match=r"^DISK_FAILED$"):
                case.change(disk)

            assert len(disk.operations) == number + 1, f"{name}: {disk.operations}"
            states = disk.crash_states(COARSE[sector_size])
            assert Survey().judge_all(states, case.outcomes), name


@pytest.mark.case(41)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_a_write_that_the_disk_silently_dropped_starts_no_trial(sector_size: int) -> None:
    for name, case in cases(sector_size, SMALL):
        whole = ModelDisk(case.start)
        case.change(whole)
        for number, operation in enumerate(whole.operations):
            if operation == "flush" or not name.startswith("boot"):
                continue
            disk = ModelDisk(case.start, {number: Fault.DROPPED})

            started = _boot(disk)

            if started is B:  # the sectors held that already
                assert copies(disk.running) == (case.new, case.new), name
            else:
                assert started is A
            states = disk.crash_states(COARSE[sector_size])
            assert Survey().judge_all(states, case.outcomes), name


@pytest.mark.case(47)
@pytest.mark.parametrize("sector_size", SECTOR_SIZES)
def test_nothing_is_written_outside_the_two_table_areas(sector_size: int) -> None:
    for name, case in cases(sector_size):
        disk = ModelDisk(case.start)
        case.change(disk)

        assert 0 not in disk.written, name
        assert not disk.written & set(range(110, 110 + 10 * 128)), f"{name}: into a partition"
