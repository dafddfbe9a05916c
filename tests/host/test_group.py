"""A group in etcd: one way to change it, whatever answers are lost, and who is called when."""

import json
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from tests.etcd import Cluster
from tests.gateway import Fault, gateway
from tests.locks import KEY, Clock, held, rule
from update_agent.core import semaphore
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import Ask, Holder, Semaphore
from update_agent.host.etcd import Answer, Delete, Etcd, Get, Put, UnclearError
from update_agent.host.group import (
    LEASE,
    Edit,
    Group,
    LostRacesError,
    View,
    bad_hosts,
    bad_releases,
    force,
    forgive,
    tell_bad,
)


def host(number: int) -> str:
    return f"{number:032x}"


def wish(number: int) -> Holder:
    return Holder(
        nonce=host(number + 1000), boot_id="boot", name=f"web-{number}",
        since=datetime(2026, 11, 27, tzinfo=UTC),
    )  # fmt: skip


def taken_by(number: int, **fields: object) -> Callable[[View], Edit | Wait]:
    """Return the edit that gives a reboot slot to a host."""

    def edit(view: View) -> Edit | Wait:
        assert view.semaphore
        after = semaphore.acquire(view.semaphore, host(number), wish(number))
        if isinstance(after, Wait):
            return after
        return Edit(semaphore=after, **fields)  # type: ignore[arg-type]

    return edit


def same_again(view: View) -> Edit:
    """Return the edit that writes what there is."""
    assert view.semaphore
    return Edit(semaphore=view.semaphore, always=True)


def holders(etcd: Etcd) -> set[str]:
    return set(held(etcd).holders)


# Changes -----------------------------------------------------------------------------------------


@pytest.mark.case(79)
def test_a_group_that_nobody_made_has_no_semaphore(etcd: Etcd) -> None:
    view = Group(etcd, "web").look()

    assert (view.semaphore, view.broken, view.changed) == (None, None, 0)


@pytest.mark.case(87)
@pytest.mark.parametrize("text", [b"", b"{", b'{"slots":-1}', b"\xff"])
def test_a_group_that_makes_no_sense_says_why_and_stays_as_it_is(text: bytes, etcd: Etcd) -> None:
    etcd.txn((), (Put(KEY, text),))

    view = Group(etcd, "web").look()

    assert view.semaphore is None
    assert view.broken
    assert "the reboot slots of group web" in view.broken


@pytest.mark.case(76)
@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST])
@pytest.mark.parametrize("number", range(4))
def test_a_change_comes_through_once_whichever_request_or_answer_is_lost(
    fault: Fault, number: int, etcd: Etcd, etcd1: Cluster
) -> None:
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        fake.faults[number] = fault
        both = replace(etcd1.access(), endpoints=(fake.url, fake.url))
        with closing(Etcd(both)) as other:
            assert Group(other, "web").change(taken_by(1)) is None
            assert Group(other, "web").change(taken_by(1)) is None
            assert Group(other, "web").change(taken_by(2)) is not None
    assert holders(etcd) == {host(1)}


@pytest.mark.case(76)
def test_after_an_unclear_outcome_a_group_is_unsure_until_it_wrote(
    etcd: Etcd, etcd1: Cluster
) -> None:
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        group = Group(other, "web")
        fake.faults |= {1: Fault.REQUEST_LOST, 2: Fault.REQUEST_LOST}
        with pytest.raises(Exception, match="broke off"):
            group.change(taken_by(1))
        assert group.unsure

        assert group.change(taken_by(1)) is None
        assert not group.unsure


@pytest.mark.case(76)
def test_a_request_that_comes_late_after_all_changes_nothing(etcd: Etcd, etcd1: Cluster) -> None:
    """Who is unsure writes; what was under way then compares a revision that never comes again."""
    rule(etcd, 1)
    late = Group(etcd, "web")
    view = late.look()
    with etcd1.client() as other:
        Group(other, "web").change(same_again)

    edit = taken_by(1)(view)
    assert isinstance(edit, Edit)
    swapped = late._swap(view, edit)

    assert not isinstance(swapped, View)
    assert holders(etcd) == set()


def test_an_outcome_that_stays_unclear_is_given_up_as_unclear(etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        both = replace(etcd1.access(), endpoints=(fake.url, fake.url))
        with closing(Etcd(both)) as other:
            group = Group(other, "web")
            fake.faults |= dict.fromkeys((1, 3, 5), Fault.REQUEST_LOST)
            with pytest.raises(UnclearError):
                group.change(taken_by(1))
            assert group.unsure
            assert len(fake.seen) == 6


@pytest.mark.case(86)
def test_a_key_that_was_deleted_and_made_anew_is_not_overwritten(
    etcd: Etcd, etcd1: Cluster
) -> None:
    rule(etcd, 1)
    before = Group(etcd, "web").look()
    rivals = iter([True])

    def rival(_: int) -> None:
        if next(rivals, False):
            etcd.txn((), (Delete(KEY),))
            rule(etcd, 1)
            Group(etcd, "web").change(taken_by(2))

    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        fake.before = rival
        wait = Group(other, "web").change(taken_by(1), before)

    assert wait
    assert wait.reason is Reason.LOCK
    assert holders(etcd) == {host(2)}


def test_who_always_loses_says_so(etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 5)

    def rival(number: int) -> None:
        if number:
            Group(etcd, "web").change(same_again)

    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        fake.before = rival
        with pytest.raises(LostRacesError, match="lost 200 races for the reboot slots of web"):
            Group(other, "web", chance=lambda: 0.0).change(taken_by(1))
    assert holders(etcd) == set()


@pytest.mark.case(88)
def test_many_at_once_all_come_through_and_none_too_many(etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 30)
    waits: list[Wait | None] = []

    def ask(number: int) -> None:
        with etcd1.client(deadline=60.0) as mine:
            waits.append(Group(mine, "web").change(taken_by(number)))

    threads = [threading.Thread(target=ask, args=(it,)) for it in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [it is None for it in waits].count(True) == 30
    assert len(holders(etcd)) == 30


def test_what_a_newer_version_added_is_kept(etcd: Etcd) -> None:
    rule(etcd, 1)
    plain = json.loads(etcd.get(Get(KEY)).found[0].entries[0].value)
    etcd.txn((), (Put(KEY, json.dumps(plain | {"colour": "blue"}).encode()),))

    Group(etcd, "web").change(taken_by(1))

    plain = json.loads(etcd.get(Get(KEY)).found[0].entries[0].value)
    assert plain["colour"] == "blue"
    assert host(1) in plain["holders"]


# The queue ---------------------------------------------------------------------------------------


def test_a_queue_keeps_the_order_in_which_hosts_came(etcd: Etcd) -> None:
    rule(etcd, 0)
    group = Group(etcd, "web")
    for number in (5, 3, 4, 3):
        group.join(host(number), wish(number))
    view = group.look()

    assert [it.wish.name for it in view.queue] == ["web-5", "web-3", "web-4"]
    assert view.waiting == 3
    mine = view.mine(host(3))
    assert mine
    group.stay(mine.lease)
    assert group.leave(mine, view)
    assert group.leave(mine, view)
    assert [it.wish.name for it in group.look().queue] == ["web-5", "web-4"]


def test_a_place_is_told_and_behind_the_head_only_what_is_known(etcd: Etcd) -> None:
    rule(etcd, 0)
    group = Group(etcd, "web")
    for number in range(40):
        group.host = host(number)
        view = group.join(host(number), wish(number))
        assert view.place() == (str(number + 1) if number < 16 else "above 16")
        assert view.mine(host(number))
    group.host = host(99)
    assert group.look().place() is None


def test_from_behind_the_head_nobody_overtakes_those_who_could_go(etcd: Etcd) -> None:
    rule(etcd, 40)
    for number in range(40):
        Group(etcd, "web").join(host(number), wish(number))

    for number, may in ((0, True), (15, True), (16, False), (39, False)):
        view = Group(etcd, "web", host=host(number)).look()
        assert view.in_turn(host(number), quiet=0) is may


def test_from_behind_the_head_one_goes_when_nobody_in_it_may(etcd: Etcd) -> None:
    rule(etcd, 40, apart=("rack",))
    racks = [{"rack": "1"}] * 39 + [{"rack": "2"}]
    group = Group(etcd, "web", host=host(39))
    other = replace(wish(99), labels=racks[0])
    full = replace(held(etcd), holders={host(99): other})
    group.change(lambda _: Edit(semaphore=full))
    for number, labels in enumerate(racks):
        group.join(host(number), replace(wish(number), labels=labels))

    view = group.look()
    assert view.in_turn(host(39), quiet=0)
    assert not view.in_turn(host(0), quiet=0)


def test_whoever_changes_the_slots_offers_them_to_the_next_and_calls_nobody_else(
    etcd: Etcd,
) -> None:
    rule(etcd, 0)
    group = Group(etcd, "web")
    for number in (1, 2, 3):
        group.join(host(number), wish(number))
    view = group.look()

    rule(etcd, 2)

    assert group.called(host(1), view.revision, 60)
    assert group.called(host(2), view.revision, 60)
    assert not group.called(host(3), view.revision, 0.2)
    assert dict(held(etcd).holders) == {host(it): replace(wish(it), offered=True) for it in (1, 2)}
    assert [it.host for it in group.look().queue] == [host(3)]


def test_an_offer_lapses_after_the_drain_and_the_lease_by_the_observers_clock(etcd: Etcd) -> None:
    rule(etcd, 0)
    time = Clock()
    group = Group(etcd, "web", monotonic=time)
    group.join(host(1), replace(wish(1), drain=300))
    group.join(host(2), wish(2))
    rule(etcd, 2)
    assert group.lapsed(seen_by(group)) == []

    time.now += LEASE + 1
    assert group.lapsed(seen_by(group)) == [host(2)]
    assert Group(etcd, "web", monotonic=time).lapsed(seen_by(group)) == []
    time.now += 300
    assert group.lapsed(seen_by(group)) == [host(1), host(2)]


def seen_by(group: Group) -> Semaphore:
    found = group.look().semaphore
    assert found
    return found


def test_a_queued_host_that_leaves_just_then_fails_no_change_for_ever(
    etcd: Etcd, etcd1: Cluster
) -> None:
    rule(etcd, 0)
    view = Group(etcd, "web").join(host(1), wish(1))
    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:

        def before(number: int) -> None:
            if number == 1:
                leaves(etcd, view)

        fake.before = before
        rule(other, 5)
    assert (held(etcd).slots, held(etcd).holders) == (5, {})


def leaves(etcd: Etcd, view: View) -> None:
    mine = view.mine(host(1))
    assert mine
    assert Group(etcd, "web").leave(mine, view)
    assert Group(etcd, "web").look().queue == ()


def test_a_host_that_left_the_queue_is_woken(etcd: Etcd) -> None:
    rule(etcd, 0)
    group = Group(etcd, "web")
    view = group.join(host(1), wish(1))
    leaves(etcd, view)

    assert group.called(host(1), view.revision, 60)


def test_nobody_leaves_a_queue_whose_slots_changed_since_for_one_may_be_offered(etcd: Etcd) -> None:
    rule(etcd, 0)
    view = Group(etcd, "web").join(host(1), wish(1))
    mine = view.mine(host(1))
    assert mine
    rule(etcd, 1)

    assert not Group(etcd, "web").leave(mine, view)
    assert holders(etcd) == {host(1)}


@pytest.mark.case(84)
def test_a_call_that_was_compacted_away_is_a_call(etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 0)
    view = Group(etcd, "web").join(host(1), wish(1))
    rule(etcd, 1)
    rule(etcd, 2)  # at the very revision of the call, etcd may forget it and still not say so
    etcd1.ctl("compact", str(Group(etcd, "web").look().revision))

    assert Group(etcd, "web").called(host(1), view.revision, 60)


@pytest.mark.case(78)
def test_a_host_that_is_gone_leaves_the_queue_when_its_lease_ends(etcd: Etcd) -> None:
    rule(etcd, 0)
    view = Group(etcd, "web").join(host(1), wish(1))
    mine = view.mine(host(1))
    assert mine
    assert mine.lease > 0

    etcd._call("/v3/lease/revoke", {"ID": str(mine.lease)}, again=True)

    assert Group(etcd, "web").look().queue == ()
    assert LEASE == 180


@pytest.mark.case(87)
def test_nonsense_in_the_queue_holds_up_nobody(etcd: Etcd) -> None:
    rule(etcd, 0)
    for key in (host(7), "web-1", ""):
        etcd.txn((), (Put(f"/update-agent/groups/web/waiting/{key}", b"nonsense"),))
    view = Group(etcd, "web").join(host(1), wish(1))

    assert [it.host for it in view.queue] == [host(1)]
    rule(etcd, 1)
    assert Group(etcd, "web").called(host(1), view.revision, 60)


def test_a_brief_look_reads_the_queue_for_who_stands_in_it(etcd: Etcd) -> None:
    rule(etcd, 0)
    Group(etcd, "web").join(host(1), wish(1))

    other, waits, person = (
        Group(etcd, "web", host=it).look_briefly() for it in (host(2), host(1), None)
    )

    assert (other.waiting, other.queue, other.own) == (0, (), None)
    assert other.semaphore == waits.semaphore == person.semaphore
    assert (waits.waiting, waits.place(), person.waiting) == (1, "1", 1)
    assert waits.queue == person.queue


# What others do for a host -----------------------------------------------------------------------

ASKS = "/update-agent/groups/web/asks/"


def asks(does: Literal["confirm", "release"], number: int) -> Ask:
    mine = wish(number)
    return Ask(does=does, nonce=mine.nonce, boot_id=mine.boot_id, at=mine.since)


def confirmed(number: int) -> Callable[[View], Edit | Wait]:
    """Return the edit by which a host is about to reboot."""

    def edit(view: View) -> Edit | Wait:
        assert view.semaphore
        mine = wish(number)
        after = semaphore.confirm(view.semaphore, host(number), mine, mine.since)
        if isinstance(after, Wait):
            return after
        return Edit(semaphore=after, always=True, ask=asks("confirm", number))

    return edit


def two_hold(etcd: Etcd) -> None:
    """Let hosts 1 and 2 hold two of three reboot slots."""
    rule(etcd, 3)
    for number in (1, 2):
        Group(etcd, "web").change(taken_by(number))


def confirms_against(rival: Callable[[int], None], etcd1: Cluster) -> tuple[int, int, int]:
    """Let host 1 confirm, and ``rival`` act before each of its requests.

    Returns its lost races, its changes, and its requests.
    """
    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        fake.before = rival
        group = Group(other, "web", host=host(1))
        assert group.change(confirmed(1)) is None
        return group.races, group.writes, len(fake.seen)


def test_what_a_loser_of_a_race_wanted_the_winner_of_the_next_does(
    etcd: Etcd, etcd1: Cluster
) -> None:
    two_hold(etcd)

    def rival(number: int) -> None:
        if number == 1:
            Group(etcd, "web").change(same_again)
        if number == 2:
            assert [it.key for it in Group(etcd, "web").look().asks] == [ASKS + host(1)]
            Group(etcd, "web", host=host(2)).change(confirmed(2))

    cost = confirms_against(rival, etcd1)

    assert {it.confirmed is not None for it in held(etcd).holders.values()} == {True}
    assert cost == (2, 0, 3)  # look, lose, lose: it is done
    assert Group(etcd, "web").look().asks == ()


def test_who_asked_after_another_lets_it_go_first(etcd: Etcd, etcd1: Cluster) -> None:
    two_hold(etcd)
    older = Put(ASKS + host(2), semaphore.encode_ask(asks("release", 2)))

    def rival(number: int) -> None:
        if number == 1:
            etcd.txn((), (older,))
            Group(etcd, "web")._swap(replace(view, asks=()), Edit(semaphore=held(etcd)))

    view = Group(etcd, "web").look()
    cost = confirms_against(rival, etcd1)

    assert cost == (1, 1, 4)  # look, lose, look, win
    assert set(held(etcd).holders) == {host(1)}


def test_where_others_ask_already_a_holder_asks_before_it_writes(
    etcd: Etcd, etcd1: Cluster
) -> None:
    two_hold(etcd)
    etcd.txn((), (Put(ASKS + host(2), semaphore.encode_ask(asks("release", 2))),))

    def rival(number: int) -> None:
        if number == 2:  # it has looked, and asked
            both = [it.key for it in Group(etcd, "web").look().asks]
            assert both == [ASKS + host(2), ASKS + host(1)]
            Group(etcd, "web").change(same_again)

    cost = confirms_against(rival, etcd1)

    assert cost == (0, 0, 3)  # look, ask, look
    assert [it.confirmed for it in held(etcd).holders.values()] == [asks("confirm", 1).at]


@pytest.mark.case(87)
def test_what_is_asked_for_without_sense_or_too_late_is_swept_away(etcd: Etcd) -> None:
    rule(etcd, 3)
    Group(etcd, "web").change(taken_by(1))
    of_before = replace(asks("release", 1), nonce=host(7))
    for key, data in (
        (host(1), semaphore.encode_ask(of_before)), (host(2), b"nonsense"), ("", b"{}"),
    ):  # fmt: skip
        etcd.txn((), (Put(ASKS + key, data),))

    Group(etcd, "web").change(same_again)

    assert holders(etcd) == {host(1)}
    assert Group(etcd, "web").look().asks == ()


@pytest.mark.case(87)
@pytest.mark.parametrize("key", ["\udcff", f"x/{host(1)}"], ids=["no-text", "further-below"])
def test_keys_that_are_no_host_s_stop_nobody(key: str, etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 0)
    sense = {"asks": semaphore.encode_ask(asks("release", 1)),
             "waiting": semaphore.encode_waiting(wish(1))}  # fmt: skip
    for folder, data in sense.items():
        etcd1.ctl("put", f"/update-agent/groups/web/{folder}/{key}", data.decode())

    rule(etcd, 2)
    assert holders(etcd) == set()
    assert Group(etcd, "web").change(taken_by(1)) is None
    assert Group(etcd, "web").change(same_again) is None
    assert holders(etcd) == {host(1)}


def test_where_no_more_holders_have_room_they_are_still_released(etcd: Etcd) -> None:
    long = {f"label-{at}": "x" * 500 for at in range(20)}
    rule(etcd, 200)
    full = {host(it): replace(wish(it), labels=long) for it in range(95)}
    group = Group(etcd, "web")
    group.change(lambda _: Edit(semaphore=replace(held(etcd), holders=full)))
    for number in range(100, 110):
        waits = semaphore.encode_waiting(replace(wish(number), labels=long))
        etcd.txn((), (Put(f"/update-agent/groups/web/waiting/{host(number)}", waits),))

    group.change(lambda _: Edit(semaphore=semaphore.force(held(etcd), host(1))))

    assert holders(etcd) == full.keys() - {host(1)}


def given_back(number: int) -> Callable[[View], Edit]:
    """Return the edit by which a host holds nothing any more."""

    def edit(view: View) -> Edit:
        assert view.semaphore
        return Edit(semaphore=semaphore.force(view.semaphore, host(number)))

    return edit


def test_who_queues_up_while_a_slot_is_given_back_is_offered_it(etcd: Etcd, etcd1: Cluster) -> None:
    rule(etcd, 1)
    Group(etcd, "web").change(taken_by(1))

    def late(number: int) -> None:
        if number == 1:  # it has looked, and writes
            Group(etcd, "web").join(host(2), wish(2))

    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        fake.before = late
        Group(other, "web").change(given_back(1))

    assert holders(etcd) == {host(2)}


def test_who_changed_the_slots_knows_the_queue_behind_those_it_offered_one(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_hold(etcd)
    for number in (3, 4, 5, 6):
        Group(etcd, "web").join(host(number), wish(number))
    group = Group(etcd, "web", host=host(1))
    reads: list[object] = []
    really = etcd.txn

    def noted(compares: Any, success: Any, *more: Any, **how: Any) -> Answer:  # noqa: ANN401
        reads.extend(success)
        return really(compares, success, *more, **how)

    monkeypatch.setattr(etcd, "txn", noted)

    group.change(given_back(1))  # two are free: 3 and 4 are offered them

    head = [it for it in reads if isinstance(it, Get) and it.key.endswith("/waiting/")]
    assert len(head) == 1, "the queue is read by who looks, and not again by who changed it"
    knows = group.last
    assert knows
    assert [it.host for it in knows.queue] == [host(5), host(6)]
    assert knows.waiting == 2
    assert replace(Group(etcd, "web", host=host(1)).look(), revision=knows.revision) == knows


def test_who_left_a_queue_that_was_known_is_passed_over(etcd: Etcd) -> None:
    two_hold(etcd)
    for number in (3, 4, 5, 6):
        Group(etcd, "web").join(host(number), wish(number))
    group = Group(etcd, "web", host=host(1))
    group.change(given_back(1))
    etcd.txn((), (Delete(f"/update-agent/groups/web/waiting/{host(5)}"),))

    group.change(given_back(2), group.last)

    assert holders(etcd) == {host(3), host(4), host(6)}
    assert Group(etcd, "web").look().waiting == 0


def test_who_leaves_the_queue_when_it_is_to_be_offered_a_slot_makes_room_for_the_next(
    etcd: Etcd, etcd1: Cluster
) -> None:
    rule(etcd, 1)
    Group(etcd, "web").change(taken_by(1))

    def come_and_go(number: int) -> None:
        if number == 1:
            for it in (2, 3):
                Group(etcd, "web").join(host(it), wish(it))
        if number == 2:
            etcd.txn((), (Delete(f"/update-agent/groups/web/waiting/{host(2)}"),))

    with gateway(etcd1.members[0].client) as fake, closing(fake.client()) as other:
        fake.before = come_and_go
        Group(other, "web").change(given_back(1))

    assert holders(etcd) == {host(3)}
    assert len(fake.seen) == 5  # look, free, offer in vain, look, offer


# Operators ---------------------------------------------------------------------------------------


@pytest.mark.case(78)
def test_force_wants_a_holder_and_the_revision_that_was_looked_at(etcd: Etcd) -> None:
    rule(etcd, 2)
    group = Group(etcd, "web")
    group.change(taken_by(1))
    looked = group.look().changed
    group.change(taken_by(2))

    wait = force(group, host(1), looked)
    assert wait
    assert f"revision {looked} was looked at" in wait.sentence
    nobody = force(group, host(9), group.look().changed)
    assert nobody
    assert "holds no reboot slot" in nobody.sentence
    assert holders(etcd) == {host(1), host(2)}
    assert force(group, host(1), group.look().changed) is None
    assert holders(etcd) == {host(2)}


@pytest.mark.case(78)
def test_who_asked_for_its_release_and_died_can_be_forced(etcd: Etcd) -> None:
    rule(etcd, 2)
    group = Group(etcd, "web")
    group.change(taken_by(1))
    etcd.txn((), (Put(ASKS + host(1), semaphore.encode_ask(asks("release", 1))),))

    assert force(group, host(1), group.look().changed) is None
    assert holders(etcd) == set()


def test_bad_releases_are_told_listed_and_forgiven(etcd: Etcd) -> None:
    for number in (1, 2, 1):
        tell_bad(etcd, "1.1.0", host(number), f"web-{number}")
    tell_bad(etcd, "1.1.0-rc.1", host(3), "web-3")

    assert bad_hosts(etcd, "1.1.0") == ["web-1", "web-2"]
    assert bad_releases(etcd) == {"1.1.0": ["web-1", "web-2"], "1.1.0-rc.1": ["web-3"]}
    forgive(etcd, "1.1.0")
    assert bad_releases(etcd) == {"1.1.0-rc.1": ["web-3"]}


@pytest.mark.case(76)
@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST])
def test_a_bad_release_is_told_whatever_is_lost(fault: Fault, etcd: Etcd, etcd1: Cluster) -> None:
    with gateway(etcd1.members[0].client) as fake:
        fake.faults[0] = fault
        both = replace(etcd1.access(), endpoints=(fake.url, fake.url))
        with closing(Etcd(both)) as other:
            tell_bad(other, "1.1.0", host(1), "web-1")
    assert bad_hosts(etcd, "1.1.0") == ["web-1"]


def test_strangers_below_the_prefix_of_bad_releases_are_taken_as_text(etcd: Etcd) -> None:
    etcd.txn((), (Put("/update-agent/bad/x", b"\xff" * 1000), Put("/update-agent/bad//", b"")))

    assert set(bad_releases(etcd)) == {"x", ""}


def test_a_semaphore_of_nothing_but_slots_is_enough(etcd: Etcd) -> None:
    etcd.txn((), (Put(KEY, b'{"slots":1}'),))

    assert held(etcd) == Semaphore(slots=1)
    assert Group(etcd, "web").change(taken_by(1)) is None
