"""The reboot slots of a group as a value: tables worked out by hand, and all short histories."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core.document import DocumentError
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import (
    Accepted,
    Ask,
    Holder,
    Released,
    Semaphore,
    Waiting,
    acquire,
    change,
    confirm,
    decode,
    decode_ask,
    decode_waiting,
    encode,
    encode_ask,
    encode_waiting,
    force,
    offer,
    release,
    serve,
    served,
    withdraw,
)
from update_agent.core.version import Version
from update_agent.errors import HostError

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def host(number: int) -> str:
    return f"{number:032x}"


def wish(number: int, **fields: object) -> Holder:
    name, nonce = f"web-{number}", f"{number + 1000:032x}"
    made = Holder(nonce=nonce, boot_id=f"boot-{number}", name=name, since=NOON)
    return replace(made, **fields)  # type: ignore[arg-type]


def group(*numbers: int, slots: int = 2, **fields: object) -> Semaphore:
    """Return a semaphore that the hosts of ``numbers`` hold."""
    made = Semaphore(slots=slots, holders={host(it): wish(it) for it in numbers})
    return replace(made, **fields)  # type: ignore[arg-type]


def reason(after: Semaphore | Wait) -> Reason | None:
    return after.reason if isinstance(after, Wait) else None


def granted(after: Semaphore | Wait) -> Semaphore:
    assert isinstance(after, Semaphore), after
    return after


# Acquire -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "why"),
    [
        pytest.param(group(), None, id="free"),
        pytest.param(group(1), None, id="one-of-two"),
        pytest.param(group(1, 2), Reason.LOCK, id="full"),
        pytest.param(group(slots=0), Reason.FROZEN, id="frozen"),
        pytest.param(group(1, 2, slots=0), Reason.FROZEN, id="frozen-while-held"),
        pytest.param(group(1, 2, slots=1), Reason.LOCK, id="lowered"),
        pytest.param(group(1, 2, 3, slots=2), Reason.LOCK, id="lowered-below-holders"),
    ],
)
def test_a_reboot_slot_is_taken_when_one_is_free(found: Semaphore, why: Reason | None) -> None:
    after = acquire(found, host(9), wish(9))

    assert reason(after) is why
    assert why or set(granted(after).holders) == {*found.holders, host(9)}


def test_asking_again_changes_nothing() -> None:
    once = granted(acquire(group(1), host(9), wish(9)))

    assert acquire(once, host(9), wish(9, since=NOON + timedelta(days=1))) == once


def test_asking_again_while_full_frozen_or_in_the_gap_changes_nothing() -> None:
    for found in (group(9, slots=1), group(9, slots=0), group(9, gap=60)):
        assert acquire(found, host(9), wish(9)) == found


def test_another_boot_goes_on_with_what_is_held_and_did_not_confirm_it() -> None:
    before = group(holders={host(9): wish(9, confirmed=NOON)})

    after = granted(acquire(before, host(9), wish(9, boot_id="later")))

    assert after.holders[host(9)] == wish(9, boot_id="later", confirmed=None)


@pytest.mark.case(80)
def test_a_clone_with_a_nonce_of_its_own_gets_nothing_and_both_are_named() -> None:
    after = acquire(group(9), host(9), wish(9, nonce=f"{7:032x}", name="copy", boot_id="other"))

    assert isinstance(after, Wait)
    assert after.reason is Reason.LOCK_CLONED
    assert "web-9" in after.sentence
    assert "copy" in after.sentence
    assert "machine-id" in after.ends


def test_who_holds_is_named_and_of_many_a_few() -> None:
    full = group(*range(5), slots=5)

    after = acquire(full, host(9), wish(9))

    assert isinstance(after, Wait)
    assert after.sentence == "all 5 reboot slots are held by web-0, web-1, web-2 and 2 more"


# Racks, members, the gap -------------------------------------------------------------------------


def in_rack(number: int, rack: str | None) -> Holder:
    return wish(number, labels={"rack": rack} if rack else {})


@pytest.mark.parametrize(
    ("held", "mine", "why"),
    [
        pytest.param("7", "7", Reason.LOCK_LABEL, id="the-same"),
        pytest.param("7", "8", None, id="another"),
        pytest.param("7", None, None, id="only-one-says"),
        pytest.param(None, None, Reason.LOCK_LABEL, id="nobody-says"),
    ],
)
def test_no_two_of_a_rack(held: str | None, mine: str | None, why: Reason | None) -> None:
    found = group(slots=5, apart=("rack",), holders={host(1): in_rack(1, held)})

    assert reason(acquire(found, host(2), in_rack(2, mine))) is why


def test_labels_that_need_not_differ_may_be_the_same() -> None:
    found = group(slots=5, holders={host(1): in_rack(1, "7")})

    assert reason(acquire(found, host(2), in_rack(2, "7"))) is None


@pytest.mark.case(92)
def test_no_two_members_of_etcd() -> None:
    found = group(slots=5, holders={host(1): wish(1, member=True)})

    assert reason(acquire(found, host(2), wish(2, member=True))) is Reason.QUORUM
    assert reason(acquire(found, host(3), wish(3))) is None


@pytest.mark.parametrize(
    ("quiet", "why"),
    [
        pytest.param(None, Reason.LOCK_GAP, id="never-looked-before"),
        pytest.param(0, Reason.LOCK_GAP, id="just-came-back"),
        pytest.param(59.9, Reason.LOCK_GAP, id="not-quite"),
        pytest.param(60, None, id="over"),
    ],
)
def test_the_gap_is_measured_by_who_asks(quiet: float | None, why: Reason | None) -> None:
    back = Released(nonce=f"{1:032x}", name="web-1", at=NOON)

    assert reason(acquire(group(gap=60, released=back), host(9), wish(9), quiet=quiet)) is why
    assert reason(acquire(group(gap=60), host(9), wish(9), quiet=quiet)) is None


@pytest.mark.case(93)
def test_clocks_a_day_apart_decide_nothing() -> None:
    """Whatever hosts say the time is, the same is granted, confirmed, released."""
    for skew in (timedelta(days=-1), timedelta(0), timedelta(days=1)):
        back = Released(nonce=f"{1:032x}", name="web-1", at=NOON + skew)
        found = group(3, gap=60, released=back)
        mine = wish(9, since=NOON - skew)

        assert reason(acquire(found, host(9), mine, quiet=10)) is Reason.LOCK_GAP
        after = granted(acquire(found, host(9), mine, quiet=60))
        sure = granted(confirm(after, host(9), mine, NOON + skew))
        assert set(release(sure, host(9), mine.nonce, NOON - skew).holders) == {host(3)}


# Confirm and release -----------------------------------------------------------------------------


def test_confirming_tells_when() -> None:
    after = granted(confirm(group(9), host(9), wish(9), NOON))

    assert after.holders[host(9)].confirmed == NOON


@pytest.mark.parametrize(
    ("found", "why"),
    [
        pytest.param(group(), Reason.LOCK_LOST, id="taken-away"),
        pytest.param(group(1, 2), Reason.LOCK_LOST, id="taken-and-given-to-others"),
        pytest.param(
            group(holders={host(9): wish(9, nonce=f"{7:032x}")}), Reason.LOCK_CLONED, id="clone"
        ),
        pytest.param(
            group(holders={host(9): wish(9, boot_id="other")}), Reason.LOCK_CLONED, id="other-boot"
        ),
        pytest.param(group(9, slots=0), Reason.FROZEN, id="frozen-meanwhile"),
        pytest.param(group(9, 1, slots=1), None, id="lowered-meanwhile"),
    ],
)
def test_who_must_not_reboot_is_told_why(found: Semaphore, why: Reason | None) -> None:
    assert reason(confirm(found, host(9), wish(9), NOON)) is why


def test_releasing_what_is_not_held_changes_nothing() -> None:
    found = group(1, 9)

    assert release(found, host(2), wish(2).nonce, NOON) == found
    assert release(found, host(9), f"{7:032x}", NOON) == found


def test_only_who_was_about_to_reboot_makes_others_wait() -> None:
    left = release(group(9), host(9), wish(9).nonce, NOON)
    sure = granted(confirm(group(9), host(9), wish(9), NOON))
    back = release(sure, host(9), wish(9).nonce, NOON)

    assert left.released is None
    assert back.released == Released(nonce=wish(9).nonce, name="web-9", at=NOON)


def test_force_takes_it_from_whoever_holds_it_and_from_nobody_else() -> None:
    assert force(group(1, 9), host(9)) == group(1)
    with pytest.raises(KeyError):
        force(group(1), host(9))


# What others do for a host -----------------------------------------------------------------------

Does = Literal["confirm", "release"]


def ask(does: Does, of: Holder) -> Ask:
    return Ask(does=does, nonce=of.nonce, boot_id=of.boot_id, at=NOON)


@pytest.mark.parametrize("does", ["confirm", "release"])
def test_what_a_holder_asks_for_is_done_as_if_by_itself(does: Does) -> None:
    mine, found = ask(does, wish(9)), group(9, 1)
    by_itself = {
        "confirm": granted(confirm(found, host(9), wish(9), NOON)),
        "release": release(found, host(9), wish(9).nonce, NOON),
    }

    after = serve(found, host(9), mine)

    assert after == by_itself[does] != found
    assert serve(after, host(9), mine) == after
    assert served(after, host(9), mine)
    assert not served(found, host(9), mine)


@pytest.mark.parametrize(
    ("found", "mine"),
    [
        pytest.param(group(1), ask("confirm", wish(9)), id="holds-nothing"),
        pytest.param(group(9), ask("confirm", wish(9, nonce=f"{7:032x}")), id="of-another-nonce"),
        pytest.param(group(9), ask("release", wish(9, nonce=f"{7:032x}")), id="of-a-wish-before"),
        pytest.param(group(9), ask("confirm", wish(9, boot_id="other")), id="of-another-boot"),
        pytest.param(group(9, slots=0), ask("confirm", wish(9)), id="frozen-meanwhile"),
    ],
)
def test_what_a_host_may_not_do_nobody_does_for_it(found: Semaphore, mine: Ask) -> None:
    assert serve(found, host(9), mine) == found
    assert mine.does == "release" or not served(found, host(9), mine)


def test_what_was_confirmed_before_is_not_what_is_asked_for_now() -> None:
    found = granted(confirm(group(9), host(9), wish(9), NOON - timedelta(seconds=1)))

    assert not served(found, host(9), ask("confirm", wish(9)))


# Rules -------------------------------------------------------------------------------------------


@pytest.mark.case(87)
@pytest.mark.parametrize("slots", [-1, 10_001])
def test_a_rule_that_is_none_is_refused_before_anybody_reads_it(slots: int) -> None:
    with pytest.raises(DocumentError, match="slots"):
        change(group(1), slots=slots)


@pytest.mark.case(87)
def test_lowered_slots_keep_their_holders_and_grant_none() -> None:
    lowered = change(group(1, 2, 3, slots=3), slots=1)

    assert set(lowered.holders) == {host(1), host(2), host(3)}
    for number in (1, 2):
        lowered = release(lowered, host(number), wish(number).nonce, NOON)
        assert reason(acquire(lowered, host(9), wish(9))) is Reason.LOCK
    lowered = release(lowered, host(3), wish(3).nonce, NOON)
    assert set(granted(acquire(lowered, host(9), wish(9))).holders) == {host(9)}


def test_what_is_not_named_stays() -> None:
    found = group(1, gap=60, apart=("rack",))

    assert change(found, slots=7) == replace(found, slots=7)
    assert change(found, slots=2, gap=0, apart=()) == replace(found, gap=0, apart=())
    assert change(None, slots=3) == Semaphore(slots=3)


@pytest.mark.case(93)
def test_what_is_accepted_later_is_later_whatever_the_clock_of_who_accepts() -> None:
    first = change(None, slots=1, accepted=Accepted(at=NOON, cluster="1"))
    slow = Accepted(at=NOON - timedelta(days=1), cluster="1")

    again = change(first, slots=1, accepted=slow)

    assert again.accepted
    assert again.accepted.at > NOON
    assert change(again, slots=2).accepted == again.accepted


# The queue ---------------------------------------------------------------------------------------


def queue(*wishes: Holder) -> list[Waiting]:
    return [
        Waiting(host=host(int(it.name.removeprefix("web-"))), wish=it, created=at)
        for at, it in enumerate(wishes)
    ]


def turn(found: Semaphore, *wishes: Holder) -> list[str]:
    return [it.wish.name for it in offer(found, queue(*wishes))[1]]


def test_as_many_as_slots_are_free_in_the_order_in_which_they_came() -> None:
    assert turn(group(1, slots=3), wish(5), wish(4), wish(3)) == ["web-5", "web-4"]
    assert turn(group(1, slots=1), wish(5)) == []
    assert turn(group(slots=0), wish(5)) == []


def test_who_could_take_none_holds_up_nobody() -> None:
    found = group(slots=3, apart=("rack",), holders={host(1): in_rack(1, "7")})

    assert turn(found, in_rack(5, "7"), in_rack(4, "8"), in_rack(3, "8"), in_rack(2, "9")) == [
        "web-4", "web-2",
    ]  # fmt: skip


def test_a_member_of_etcd_that_waits_for_another_holds_up_nobody() -> None:
    found = group(slots=3, holders={host(1): wish(1, member=True)})

    assert turn(found, wish(5, member=True), wish(4)) == ["web-4"]


def test_what_is_offered_is_held_and_not_known_to_be_taken() -> None:
    found, turn = offer(group(1, slots=2), queue(wish(5), wish(4)))

    assert [it.wish.name for it in turn] == ["web-5"]
    assert found.holders == {host(1): wish(1), host(5): wish(5, offered=True)}
    assert acquire(found, host(5), wish(5)) == found


def test_only_an_offer_that_is_not_confirmed_is_withdrawn() -> None:
    found, _ = offer(group(1, slots=4), queue(wish(5), wish(4), wish(3)))
    confirmed = confirm(found, host(4), wish(4), NOON)
    assert isinstance(confirmed, Semaphore)
    again = acquire(confirmed, host(3), wish(3, boot_id="another"))
    assert isinstance(again, Semaphore)

    after = withdraw(again, [host(number) for number in range(9)])

    assert again.holders.keys() - after.holders.keys() == {host(5)}
    assert after.released is None
    assert isinstance(confirm(after, host(5), wish(5), NOON), Wait)


# From and to JSON --------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc"])
)
HEX = st.integers(0, 2**128 - 1).map(lambda it: f"{it:032x}")
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
REST = st.dictionaries(st.sampled_from(["new", "later"]), st.integers(0, 2**60) | TEXTS, max_size=2)
VERSIONS = st.none() | st.sampled_from(["1.0.0", "2.1.0-rc.1"]).map(Version)
HOLDERS = st.builds(
    Holder, nonce=HEX, boot_id=NAMES, name=TEXTS, since=TIMES, running=VERSIONS, target=VERSIONS,
    labels=st.dictionaries(NAMES, TEXTS, max_size=3), member=st.booleans(),
    drain=st.integers(0, 3600), offered=st.booleans(), confirmed=st.none() | TIMES, rest=REST,
)  # fmt: skip
SEMAPHORES = st.builds(
    Semaphore, format=st.just(1), slots=st.integers(0, 10_000), gap=st.integers(0, 600),
    apart=st.lists(NAMES, max_size=3).map(tuple), holders=st.dictionaries(HEX, HOLDERS, max_size=4),
    released=st.none() | st.builds(Released, nonce=HEX, name=TEXTS, at=TIMES),
    accepted=st.none() | st.builds(Accepted, at=TIMES, cluster=st.just("123")), rest=REST,
)  # fmt: skip


@given(SEMAPHORES)
def test_what_is_written_is_read_again_also_what_a_newer_version_added(found: Semaphore) -> None:
    assert decode(encode(found), "g") == found


@given(HEX, HOLDERS)
def test_a_wish_is_read_again(of: str, holder: Holder) -> None:
    read = decode_waiting(encode_waiting(holder), of, created=5, lease=6)

    assert read == Waiting(host=of, wish=holder, created=5, lease=6)


@given(
    st.builds(Ask, does=st.sampled_from(["confirm", "release"]), nonce=HEX, boot_id=NAMES, at=TIMES)
)
def test_what_a_host_asks_for_is_read_again(mine: Ask) -> None:
    assert decode_ask(encode_ask(mine), host(9)) == mine


def test_it_is_written_as_the_documentation_says() -> None:
    found = group(holders={host(1): wish(1, running=Version("1.0.0"), target=Version("1.1.0"))})
    plain = json.loads(encode(found))

    assert (plain["format"], plain["slots"], plain["released"]) == (1, 2, None)
    assert plain["holders"][host(1)]["from"] == "1.0.0"
    assert plain["holders"][host(1)]["to"] == "1.1.0"


@pytest.mark.case(87)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "plain JSON", id="empty"),
        pytest.param("{", "plain JSON", id="cut-short"),
        pytest.param("[]", "wanted an object", id="a-list"),
        pytest.param("null", "wanted an object", id="null"),
        pytest.param("{}", "slots", id="no-slots"),
        pytest.param('{"slots":-1}', "slots", id="minus-one"),
        pytest.param('{"slots":true}', "slots", id="a-bool"),
        pytest.param('{"slots":"2"}', "slots", id="a-string"),
        pytest.param('{"slots":2,"slots":3}', "twice", id="twice"),
        pytest.param('{"slots":1e3}', "plain JSON", id="a-float"),
        pytest.param('{"slots":NaN}', "plain JSON", id="nan"),
        pytest.param('{"slots":1,"format":2}', "format", id="of-a-newer-format"),
        pytest.param('{"slots":1,"holders":null}', "holders", id="null-holders"),
        pytest.param('{"slots":1,"holders":[]}', "holders", id="a-list-of-holders"),
        pytest.param('{"slots":1,"holders":{"web-1":{}}}', "holders", id="a-name-for-an-id"),
        pytest.param(f'{{"slots":1,"holders":{{"{host(1)}":7}}}}', host(1), id="a-number-holds"),
        pytest.param(f'{{"slots":1,"holders":{{"{host(1)}":{{}}}}}}', "nonce", id="no-nonce"),
        pytest.param('{"slots":1,"apart":["../x"]}', "apart", id="a-label-like-a-path"),
        pytest.param('{"slots":1,"gap":-1}', "gap", id="a-gap-below-zero"),
        pytest.param('{"slots":1,"x":' + "[" * 50 + "]" * 50 + "}", "deep", id="deep"),
        pytest.param('{"slots":1,"x":"' + "y" * 1_000_000 + '"}', "bytes", id="huge"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(text: str, says: str) -> None:
    with pytest.raises(DocumentError, match="the reboot slots of group web") as caught:
        decode(text.encode(), "web")

    assert says in str(caught.value)


def test_what_etcd_would_not_take_is_refused_before_it_is_sent() -> None:
    labels = {f"label-{at}": "x" * 500 for at in range(20)}
    found = group(slots=200, holders={host(it): wish(it, labels=labels) for it in range(120)})

    with pytest.raises(HostError, match="at most 1000000"):
        encode(found)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(DocumentError):
        decode(data, "web")


# Histories ---------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "confirm", "ask", "release", "slots"]),
        st.integers(0, 7),
    ),
    max_size=60,
)


@given(STEPS)
def test_in_no_history_are_there_more_holders_than_slots_but_when_lowered(
    steps: list[tuple[str, int]],
) -> None:
    found = Semaphore(slots=2, apart=("rack",))
    for what, number in steps:
        mine = in_rack(number, str(number % 3))
        before = found
        match what:
            case "acquire":
                after: Semaphore | Wait = acquire(found, host(number), mine)
            case "confirm":
                after = confirm(found, host(number), mine, NOON)
            case "release":
                after = release(found, host(number), mine.nonce, NOON)
            case "ask":
                after = serve(found, host(number), ask("confirm", mine))
            case _:
                after = change(found, slots=number % 4)
        found = before if isinstance(after, Wait) else after

        if len(found.holders) > len(before.holders):
            assert len(found.holders) <= found.slots
        racks = [it.labels["rack"] for it in found.holders.values()]
        assert len(racks) == len(set(racks))
        assert what == "release" or found.holders.keys() >= before.holders.keys()
