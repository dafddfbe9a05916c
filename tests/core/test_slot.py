"""The boot rule and the four operations, over every pair of flags that two slots can have.

A slot has 16 priorities x 16 tries x successful or not = 512 flags, two slots 262,144 pairs. Counts
in these tests are worked out by hand: of the 512, those that may boot have one of 15 priorities and
are successful (16 tries) or have tries left (15): 15 x 31 = 465, and 47 may not. Those that can
carry the host, successful and of a priority above 0, are 15 x 16 = 240.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disks import A_SUCCESSFUL, ESP, KERNEL_TYPE, ROOT_A, ROOT_B, STATE, Entry, healthy
from tests.disks import flags as word_of
from update_agent.core import slot
from update_agent.core.gpt import Table
from update_agent.core.slot import BootFlags, Slot, SlotName, Slots, SlotStateError
from update_agent.errors import HostError
from update_agent.host.disk import read_tables

A, B = SlotName.A, SlotName.B
Operation = Callable[[Slots, SlotName], Slots]

FLAGS = tuple(
    BootFlags(priority=priority, tries=tries, successful=successful)
    for priority, tries, successful in product(range(16), range(16), (False, True))
)
A_FIRST = ([Slot(name=A, number=2, flags=it) for it in FLAGS],
           [Slot(name=B, number=3, flags=it) for it in FLAGS])  # fmt: skip
B_FIRST = ([Slot(name=A, number=3, flags=it) for it in FLAGS],
           [Slot(name=B, number=2, flags=it) for it in FLAGS])  # fmt: skip


def pairs(order: tuple[list[Slot], list[Slot]] = A_FIRST) -> Iterable[Slots]:
    return (Slots(a=a, b=b) for a, b in product(*order))


def flags(priority: int, tries: int, *, ok: bool = False) -> BootFlags:
    return BootFlags(priority=priority, tries=tries, successful=ok)


def two(a: BootFlags, b: BootFlags, *, b_first: bool = False) -> Slots:
    """Return slots with these flags, A's partition first unless told otherwise."""
    return Slots(
        a=Slot(name=A, number=3 if b_first else 2, flags=a),
        b=Slot(name=B, number=2 if b_first else 3, flags=b),
    )


def carries(it: Slot) -> bool:
    """Whether the slot boots without conditions: what a host must have one of."""
    return it.flags.successful and it.flags.priority > 0


def allowed(operation: Operation, name: SlotName) -> Iterable[tuple[Slots, Slots]]:
    """Yield every pair on which the operation is not refused, with its result.

    Meanwhile holds what every operation promises: it never costs a host its last slot that carries
    it, done twice it is done once, and a refusal tells of a slot with the flags it has.
    """
    for before in pairs():
        try:
            after = operation(before, name)
        except SlotStateError as error:
            refusal = error
        else:
            if carries(before.a) or carries(before.b):
                assert carries(after.a) or carries(after.b)
            assert operation(after, name) == after
            yield before, after
            continue
        text = str(refusal)
        assert any(f"slot {it.name} " in text or f"slot {it.name}:" in text for it in before)
        assert str(before.a.flags) in text or str(before.b.flags) in text
        assert refusal.hint


ARMED = BootFlags(priority=2, tries=3)
"""An armed slot."""

OPERATIONS = {"retire": slot.retire, "arm": slot.arm, "confirm": slot.confirm,
              "rollback": slot.rollback}  # fmt: skip
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
each_slot = pytest.mark.parametrize("name", list(SlotName))
each_order = pytest.mark.parametrize(
    ("order", "first"), [(A_FIRST, A), (B_FIRST, B)], ids=["A-first", "B-first"]
)


# The boot rule, by hand --------------------------------------------------------------------------

OK = flags(1, 0, ok=True)
GONE = flags(0, 0)


@pytest.mark.parametrize(
    ("a", "b", "chosen"),
    [
        pytest.param(OK, GONE, A, id="as-installed"),
        pytest.param(OK, flags(2, 3), B, id="armed"),
        pytest.param(OK, flags(2, 1), B, id="last-try"),
        pytest.param(OK, flags(2, 0), A, id="trial-used-up"),
        pytest.param(OK, flags(2, 0, ok=True), B, id="confirmed"),
        pytest.param(flags(2, 0, ok=True), flags(1, 0, ok=True), A, id="rolled-back"),
        pytest.param(GONE, GONE, None, id="empty-disk"),
        pytest.param(
            flags(0, 0, ok=True), flags(0, 3), None,
            id="priority-0-never", marks=pytest.mark.case(64),
        ),
        pytest.param(
            flags(0, 15, ok=True), flags(1, 1), B,
            id="successful-with-priority-0", marks=pytest.mark.case(64),
        ),
        pytest.param(OK, flags(2, 15), B, id="tries-15", marks=pytest.mark.case(64)),
        pytest.param(
            flags(1, 15, ok=True), flags(1, 15), A,
            id="tries-do-not-rank", marks=pytest.mark.case(64),
        ),
        pytest.param(OK, flags(1, 3), A, id="tie", marks=pytest.mark.case(63)),
        pytest.param(flags(15, 1), flags(15, 0, ok=True), A, id="tie-at-15",
                     marks=pytest.mark.case(63)),
        pytest.param(flags(15, 0), flags(15, 1), B, id="tie-with-one-used-up",
                     marks=pytest.mark.case(63)),
        pytest.param(flags(15, 0, ok=True), flags(14, 0, ok=True), A, id="priority-15-is-highest",
                     marks=pytest.mark.case(63)),
        pytest.param(flags(2, 0), flags(1, 0), None, id="both-exhausted",
                     marks=pytest.mark.case(75)),
    ],
)  # fmt: skip
def test_the_boot_rule(a: BootFlags, b: BootFlags, chosen: SlotName | None) -> None:
    found = slot.choose(two(a, b))

    assert (found and found.name) == chosen


@pytest.mark.case(63)
def test_a_tie_goes_to_the_lowest_partition_and_not_to_the_name() -> None:
    found = slot.choose(two(OK, OK, b_first=True))

    assert found
    assert found.name is B


@pytest.mark.case(75)
@pytest.mark.parametrize(
    ("a", "b", "order"),
    [
        pytest.param(GONE, GONE, "AB", id="nothing-known"),
        pytest.param(flags(2, 0), flags(1, 0), "AB", id="by-priority"),
        pytest.param(flags(1, 0), flags(2, 0), "BA", id="by-priority-the-other-way"),
        pytest.param(flags(15, 0), flags(0, 0, ok=True), "BA", id="once-confirmed-first"),
        pytest.param(flags(1, 1), flags(0, 0, ok=True), "AB", id="a-candidate-before-all"),
        pytest.param(flags(1, 1), flags(15, 0), "AB", id="a-candidate-before-a-higher-priority"),
    ],
)
def test_when_nothing_loads_every_slot_gets_its_chance(
    a: BootFlags, b: BootFlags, order: str
) -> None:
    assert "".join(it.name for it in slot.attempts(two(a, b))) == order


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        pytest.param(OK, GONE, "slot A boots next: slot B is retired and may not boot", id="alone"),
        pytest.param(
            OK, ARMED,
            "slot B boots next, on trial with 3 tries left: its priority 2 is above 1", id="trial",
        ),
        pytest.param(
            OK, flags(2, 1),
            "slot B boots next, on trial with 1 try left: its priority 2 is above 1", id="last-try",
        ),
        pytest.param(
            OK, flags(2, 0),
            "slot A boots next: slot B is given up and may not boot", id="used-up",
        ),
        pytest.param(
            OK, OK,
            "slot A boots next: both slots have priority 1 and its partition comes first",
            id="tie", marks=pytest.mark.case(63),
        ),
        pytest.param(
            flags(0, 0, ok=True), OK,
            "slot B boots next: slot A is successful, but of priority 0 and may not boot",
            id="priority-0", marks=pytest.mark.case(64),
        ),
        pytest.param(
            flags(1, 0), flags(2, 0),
            "no slot may boot by its flags; as a last resort slot B is tried first",
            id="exhausted", marks=pytest.mark.case(75),
        ),
    ],
)  # fmt: skip
def test_the_choice_is_explained_in_a_sentence(a: BootFlags, b: BootFlags, sentence: str) -> None:
    assert slot.explain(two(a, b)) == sentence


# The boot rule, all of it ------------------------------------------------------------------------


@each_order
def test_every_pair_of_flags_has_the_right_slot_chosen(
    order: tuple[list[Slot], list[Slot]], first: SlotName
) -> None:
    counts: dict[SlotName | None, int] = {A: 0, B: 0, None: 0}
    for slots in pairs(order):
        chosen = slot.choose(slots)
        counts[chosen.name if chosen else None] += 1
        for it in slots:
            may_boot = it.flags.priority != 0 and (it.flags.successful or it.flags.tries != 0)
            if chosen is None:
                assert not may_boot
            elif it is chosen:
                assert may_boot
            elif may_boot:
                assert chosen.flags.priority >= it.flags.priority
                if chosen.flags.priority == it.flags.priority:
                    assert chosen.number < it.number

    # 47 x 47 have none. 15 x 31 x 31 = 14,415 are ties. (465 x 465 - 14,415) / 2 = 100,905 go to
    # either for its priority, 465 x 47 = 21,855 to either because the other may not boot.
    assert counts == {None: 2_209, first: 137_175, first.other: 122_760}


@each_order
def test_every_pair_of_flags_has_both_slots_attempted_the_chosen_one_first(
    order: tuple[list[Slot], list[Slot]], first: SlotName
) -> None:
    for slots in pairs(order):
        one, two_ = slot.attempts(slots)
        chosen = slot.choose(slots)
        assert one is not two_
        if chosen is not None:
            assert one is chosen
        elif one.flags.successful is two_.flags.successful:
            assert one.flags.priority >= two_.flags.priority
            assert one.flags.priority > two_.flags.priority or one.name is first
        else:
            assert one.flags.successful


def test_a_boot_of_any_pair_starts_the_chosen_slot_and_counts_down_only_a_trial() -> None:
    for slots in pairs():
        chosen = slot.choose(slots)
        started, left = slot.boot(slots)
        if chosen is None or started is None:
            assert chosen is started is None
            assert left is slots
        elif chosen.flags.successful:
            assert started is chosen
            assert left is slots
        else:
            assert started == left[chosen.name]
            assert left[chosen.name.other] == slots[chosen.name.other]
            assert left[chosen.name].flags == BootFlags(
                priority=chosen.flags.priority, tries=chosen.flags.tries - 1
            )


@pytest.mark.case(65)
@pytest.mark.case(69)
@pytest.mark.parametrize(
    ("a", "b", "starts"),
    [
        pytest.param(OK, ARMED, "BBBA", id="armed-and-never-confirmed"),
        pytest.param(OK, flags(2, 15), "B" * 15 + "A", id="most-tries"),
        pytest.param(flags(1, 15), flags(2, 15), "B" * 15 + "A" * 15 + "-", id="most-boots"),
        pytest.param(flags(2, 2), flags(2, 1), "AAB-", id="tie-of-trials"),
    ],
)
def test_a_slot_that_never_comes_up_is_given_up_after_its_tries(
    a: BootFlags, b: BootFlags, starts: str
) -> None:
    slots, seen = two(a, b), ""
    for _ in starts:
        started, slots = slot.boot(slots)
        seen += started.name if started else "-"

    assert seen == starts
    assert slot.boot(slots)[1] == slots


# Operations --------------------------------------------------------------------------------------


@each_operation
def test_no_operation_knows_a_slot_by_its_name(operation: Operation) -> None:
    for on_a, on_b in zip(
        _results(operation, A, A_FIRST), _results(operation, B, B_FIRST), strict=True
    ):
        assert on_a == on_b


def _results(
    operation: Operation, name: SlotName, order: tuple[list[Slot], list[Slot]]
) -> Iterable[tuple[BootFlags, BootFlags] | None]:
    """Yield the flags of the named and the other slot after the operation, the named one first."""
    named, other = order if name is A else order[::-1]
    for mine, theirs in product(named[::7], other[::7]):
        slots = Slots(a=mine, b=theirs) if name is A else Slots(a=theirs, b=mine)
        try:
            after = operation(slots, name)
        except SlotStateError:
            yield None
        else:
            yield after[name].flags, after[name.other].flags


@each_slot
def test_retire_leaves_the_other_slot_alone_to_boot(name: SlotName) -> None:
    count = 0
    for before, after in allowed(slot.retire, name):
        count += 1
        assert carries(before[name.other])
        assert after[name].flags == GONE
        assert after[name.other] == before[name.other]
        assert slot.choose(after) is after[name.other]
    assert count == 240 * 512


@each_slot
def test_arm_makes_a_retired_slot_next_with_three_tries_and_the_other_its_fallback(
    name: SlotName,
) -> None:
    count = 0
    for before, after in allowed(slot.arm, name):
        count += 1
        keeper = before[name.other].flags
        assert carries(before[name.other])
        assert after[name].flags == flags(2, 3)
        assert after[name.other].flags == BootFlags(priority=1, tries=keeper.tries, successful=True)
        assert [start.name for start in _boots(after, 5)] == [name] * 3 + [name.other] * 2
    # 240 keepers beside a retired slot, and 16 keepers (priority 1, any tries) of one armed already
    assert count == 256


def _boots(slots: Slots, times: int) -> Iterable[Slot]:
    for _ in range(times):
        started, slots = slot.boot(slots)
        assert started
        yield started


CARRIERS = [
    BootFlags(priority=p, tries=t, successful=True) for p in range(1, 16) for t in range(16)
]


def two_with_one_retired(name: SlotName) -> Iterable[Slots]:
    for keeper in CARRIERS:
        yield two(keeper, GONE) if name is B else two(GONE, keeper)


@each_slot
def test_arm_and_retire_are_opposites(name: SlotName) -> None:
    for before in two_with_one_retired(name):
        armed = slot.arm(before, name)
        back = slot.retire(armed, name)

        assert back[name].flags == GONE
        assert slot.choose(back) == back[name.other]
        assert back[name.other].flags.tries == before[name.other].flags.tries
        assert slot.arm(back, name) == armed


@each_slot
def test_confirm_is_for_any_state_and_concerns_one_slot(name: SlotName) -> None:
    count = 0
    for before, after in allowed(slot.confirm, name):
        count += 1
        assert after[name.other] == before[name.other]
        confirmed = after[name].flags
        assert (confirmed.successful, confirmed.tries) == (True, 0)
        assert confirmed.priority == (before[name].flags.priority or 1)
    assert count == 512 * 512


@each_slot
def test_a_confirmed_trial_boots_for_ever(name: SlotName) -> None:
    for before in two_with_one_retired(name):
        _, trial = slot.boot(slot.arm(before, name))
        confirmed = slot.confirm(trial, name)

        assert [start.name for start in _boots(confirmed, 20)] == [name] * 20


@each_slot
def test_rollback_makes_a_successful_slot_next(name: SlotName) -> None:
    count = 0
    for before, after in allowed(slot.rollback, name):
        count += 1
        left = before[name.other].flags
        assert before[name].flags.successful
        assert slot.choose(after) == after[name]
        assert carries(after[name])
        assert after[name].flags.tries == before[name].flags.tries
        if left.successful:
            assert after[name.other].flags.successful
        else:
            assert after[name.other].flags == GONE
        if left.successful and slot.choose(before) == before[name]:
            assert after == before
    assert count == 256 * 512


def test_rollback_and_rollback_are_opposites() -> None:
    for a, b in product(CARRIERS, CARRIERS):
        to_b = slot.rollback(two(a, b), B)
        back = slot.rollback(to_b, A)

        assert slot.choose(back) == back.a
        assert slot.rollback(slot.rollback(back, B), A) == back


@pytest.mark.parametrize(
    ("operation", "a", "b", "message"),
    [
        pytest.param(
            slot.retire, flags(2, 3), OK,
            "slot A is on trial (priority 2, tries 3, not successful), wanted a successful slot:"
            " slot B is its only fallback",
            id="retire-while-the-other-is-on-trial",
        ),
        pytest.param(
            slot.retire, flags(0, 0, ok=True), OK,
            "slot A is successful, but of priority 0 (priority 0, tries 0, successful), wanted a"
            " successful slot: slot B is its only fallback",
            id="retire-while-the-other-never-boots", marks=pytest.mark.case(64),
        ),
        pytest.param(
            slot.arm, GONE, GONE,
            "slot A is retired (priority 0, tries 0, not successful), wanted a successful slot:"
            " slot B would have no slot to fall back to",
            id="arm-without-fallback",
        ),
        pytest.param(
            slot.arm, OK, flags(2, 2),
            "slot B cannot be armed: it has priority 2, tries 2, not successful, wanted a retired"
            " slot",
            id="arm-during-its-trial",
        ),
        pytest.param(
            slot.arm, OK, flags(1, 0, ok=True),
            "slot B cannot be armed: it has priority 1, tries 0, successful, wanted a retired slot",
            id="arm-what-was-never-retired",
        ),
        pytest.param(
            slot.rollback, OK, GONE,
            "cannot roll back to slot B: it is retired (priority 0, tries 0, not successful),"
            " wanted a successful slot",
            id="rollback-to-a-retired-slot",
        ),
        pytest.param(
            slot.rollback, OK, flags(2, 0),
            "cannot roll back to slot B: it is given up (priority 2, tries 0, not successful),"
            " wanted a successful slot",
            id="rollback-to-a-used-up-slot",
        ),
    ],
)  # fmt: skip
def test_a_refusal_names_the_slot_its_state_and_the_reason(
    operation: Operation, a: BootFlags, b: BootFlags, message: str
) -> None:
    with pytest.raises(SlotStateError, match=f"^{re.escape(message)}$"):
        operation(two(a, b), B)


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "word"),
    [
        pytest.param(flags(0, 0), 0, id="retired"),
        pytest.param(flags(1, 0), 0x0001_0000_0000_0000, id="priority-begins-at-bit-48"),
        pytest.param(flags(15, 0), 0x000F_0000_0000_0000, id="priority-15"),
        pytest.param(flags(0, 1), 0x0010_0000_0000_0000, id="tries-begin-at-bit-52"),
        pytest.param(flags(0, 15), 0x00F0_0000_0000_0000, id="tries-15"),
        pytest.param(flags(0, 0, ok=True), 0x0100_0000_0000_0000, id="successful-is-bit-56"),
        pytest.param(flags(2, 3, ok=True), 0x0132_0000_0000_0000, id="all-three"),
    ],
)
def test_flags_stand_in_the_bits_of_the_design(found: BootFlags, word: int) -> None:
    assert found.merged_into(0) == word
    assert BootFlags.from_word(word) == found
    assert BootFlags.from_word(word | 0xFE00_FFFF_FFFF_FFFF) == found


WORDS = st.integers(0, 2**64 - 1)


@given(word=WORDS, wanted=st.sampled_from(FLAGS))
def test_foreign_bits_are_kept(word: int, wanted: BootFlags) -> None:
    merged = wanted.merged_into(word)

    assert merged & 0xFE00_FFFF_FFFF_FFFF == word & 0xFE00_FFFF_FFFF_FFFF
    assert BootFlags.from_word(merged) == wanted
    assert 0 <= merged < 2**64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((16, 0), "priority must fit in 4 bits, got 16"),
        ((-1, 0), "priority must fit in 4 bits, got -1"),
        ((0, 16), "tries must fit in 4 bits, got 16"),
    ],
)
def test_flags_that_do_not_fit_are_a_programmers_mistake(
    values: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        flags(*values)


# On a disk ---------------------------------------------------------------------------------------


def table(*entries: Entry) -> Table:
    return read_tables(healthy(512, entries)).authoritative


def test_slots_are_found_by_type_and_label_whatever_their_numbers() -> None:
    found = slot.from_table(
        table(replace(ROOT_A, number=9, attributes=word_of(3, 2)), replace(ROOT_B, number=5))
    )

    assert found == Slots(
        a=Slot(name=A, number=9, flags=flags(3, 2)), b=Slot(name=B, number=5, flags=GONE)
    )


@given(a=WORDS, b=WORDS, wanted=st.tuples(st.sampled_from(FLAGS), st.sampled_from(FLAGS)))
def test_words_are_for_the_slots_partitions_and_keep_their_foreign_bits(
    a: int, b: int, wanted: tuple[BootFlags, BootFlags]
) -> None:
    here = table(ESP, replace(ROOT_A, attributes=a), replace(ROOT_B, attributes=b), STATE)
    slots = slot.from_table(here)

    words = slot.words(here, slots.with_flags(dict(zip(SlotName, wanted, strict=True))))

    assert slot.words(here, slots) == {2: a, 3: b}
    assert words.keys() == {2, 3}
    for number, before in ((2, a), (3, b)):
        assert words[number] & 0xFE00_FFFF_FFFF_FFFF == before & 0xFE00_FFFF_FFFF_FFFF


@pytest.mark.parametrize(
    ("entries", "message", "hint"),
    [
        pytest.param(
            [], "0 partitions are labelled ROOT-A", "the disk has no partition", id="empty-table"
        ),
        pytest.param(
            [ESP, ROOT_A, STATE], "0 partitions are labelled ROOT-B",
            "the disk has partitions 1 'ESP', 2 'ROOT-A', 4 'STATE'", id="no-B",
        ),
        pytest.param(
            [ROOT_A, ROOT_B, replace(STATE, type=ROOT_A.type, label="ROOT-A")],
            "2 partitions are labelled ROOT-A",
            "the disk has partitions 2 'ROOT-A', 3 'ROOT-B', 4 'ROOT-A'", id="two-As",
        ),
        pytest.param(
            [replace(ROOT_A, type=KERNEL_TYPE), ROOT_B], "0 partitions are labelled ROOT-A",
            "the disk has partitions 2 'ROOT-A' (of another type), 3 'ROOT-B'",
            id="A-of-another-type",
        ),
        pytest.param(
            [ROOT_A, replace(ROOT_B, label="root-b")], "0 partitions are labelled ROOT-B",
            "the disk has partitions 2 'ROOT-A', 3 'root-b'", id="other-capitals",
        ),
    ],
)  # fmt: skip
def test_a_disk_without_two_slots_is_refused_with_what_it_has(
    entries: list[Entry], message: str, hint: str
) -> None:
    wanted = f"^{message} and of type 14df45bd-ad68-4deb-ae12-8e00afdd62f4, wanted 1$"
    with pytest.raises(HostError, match=wanted) as raised:
        slot.from_table(table(*entries))

    assert raised.value.hint == hint


def test_slots_are_counted_and_asked_for_by_name() -> None:
    slots = slot.from_table(table(*A_SUCCESSFUL))

    assert [it.name for it in slots] == [A, B]
    assert (slots[A].flags, slots[B].flags) == (OK, GONE)
    assert (A.label, A.other, B.label, B.other) == ("ROOT-A", B, "ROOT-B", A)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (OK, "successful"),
        (flags(1, 3, ok=True), "successful"),
        (flags(0, 0, ok=True), "successful, but of priority 0"),
        (ARMED, "on trial"),
        (GONE, "retired"),
        (flags(2, 0), "given up"),
        (flags(0, 3), "given up"),
    ],
)
def test_a_slots_state_is_told_in_a_word_or_two(found: BootFlags, state: str) -> None:
    assert two(found, GONE).a.state == state
