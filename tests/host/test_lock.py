"""A host's part in its group, when anything is lost, killed, paused, cloned, cut off, restored."""

import datetime as dt
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.etcd import Cluster, cluster, until
from tests.gateway import Fault, gateway
from tests.locks import KEY, NEW, OLD, Host, held, rule
from update_agent.core.reason import Reason
from update_agent.core.semaphore import Ask, encode_ask
from update_agent.errors import HostError
from update_agent.host.etcd import (
    Access,
    Delete,
    Etcd,
    EtcdError,
    Get,
    NoQuorumError,
    Put,
    UnreachableError,
)
from update_agent.host.group import LEASE, Group, View, force
from update_agent.host.lock import STALE, Note, Notebook


@pytest.fixture
def host(etcd1: Cluster, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Return hosts by number, of one member unless said otherwise."""
    made: list[Host] = []

    def new(number: int, access: Access | None = None, **fields: object) -> Host:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        way = access or etcd1.access(deadline=30.0)
        made.append(Host(number, way, folder, **fields))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for it in made:
        it.etcd.close()


New = Callable[..., Host]


# A reboot ----------------------------------------------------------------------------------------


def test_a_host_acquires_confirms_reboots_and_releases(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)

    assert one.acquire() is None
    assert two.acquire() is Reason.LOCK
    assert one.confirm() is None
    one.reboot()
    assert wishes(one)
    one.release()
    assert not wishes(one)
    assert two.lock.called(60)
    assert two.acquire() is None
    assert set(held(etcd).holders) == {two.id}
    released = held(etcd).released
    assert released
    assert released.name == "web-1"


def wishes(one: Host) -> bool:
    return one.lock.wishing


def test_everything_twice_is_the_same_as_once(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one = host(1)
    for _ in range(2):
        assert one.acquire() is None
    for _ in range(2):
        assert one.confirm() is None
    for _ in range(2):
        one.lock.release()

    assert held(etcd).holders == {}
    assert Group(etcd, "web").look().waiting == 0


def test_the_nonce_is_on_the_disk_before_the_first_request(
    etcd: Etcd, host: New, etcd1: Cluster
) -> None:
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        one = host(1, Access(endpoints=(fake.url,)))
        note = one.folder / "note-1"
        fake.before = lambda _: nonces.add(Notebook(note).note.nonce)
        nonces: set[str | None] = set()

        one.acquire()

    assert nonces == {held(etcd).holders[one.id].nonce}


def test_a_disk_that_takes_no_note_stops_the_host_before_etcd_hears_of_it(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one = host(1)
    (one.folder / "note-1").mkdir()

    with pytest.raises(HostError, match="cannot write"):
        one.acquire()
    assert held(etcd).holders == {}
    assert Group(etcd, "web").look().waiting == 0


@pytest.mark.parametrize("text", ["", "{", '{"format":1,"nonce":7}', '{"format":2}'])
def test_a_note_that_makes_no_sense_is_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text(text)

    assert Notebook(tmp_path / "note").note == Note()


def test_polling_writes_nothing_to_the_disk(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    two.acquire()
    note = two.folder / "note-2"
    before = note.stat()
    for _ in range(3):
        etcd.txn((), (Put("/elsewhere", b"x"),))
        two.acquire()

    assert note.stat().st_ino == before.st_ino


# Lost answers ------------------------------------------------------------------------------------


@pytest.mark.case(76)
@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST])
@pytest.mark.parametrize("number", range(8))
def test_whichever_request_or_answer_is_lost_the_host_goes_on_and_gives_back(
    number: int, fault: Fault, etcd: Etcd, host: New, etcd1: Cluster
) -> None:
    """Six requests are all that a reboot takes: look, lease, join, take; confirm; release."""
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        one = host(1, Access(endpoints=(fake.url, fake.url)))
        fake.faults[number] = fault

        assert one.acquire() is None
        assert set(held(etcd).holders) == {one.id}
        assert one.confirm() is None
        assert held(etcd).holders[one.id].confirmed
        one.lock.release()

        assert held(etcd).holders == {}
        assert Group(etcd, "web").look().waiting == 0
        assert len(fake.seen) > number or number > 5


@pytest.mark.case(76)
@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST])
@pytest.mark.parametrize("number", range(10))
def test_whichever_it_is_a_daemon_that_dies_of_it_finds_out_and_goes_on(
    number: int, fault: Fault, etcd: Etcd, host: New, etcd1: Cluster
) -> None:
    """With one endpoint an unclear outcome comes up; the daemon is begun anew from its disk."""
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        one = host(1, Access(endpoints=(fake.url,)))
        fake.faults |= dict.fromkeys((number, number + 1), fault)

        for step in ("acquire", "confirm", "release"):
            until(lambda step=step: through(one, step))

    assert held(etcd).holders == {}
    assert Group(etcd, "web").look().waiting == 0


def through(one: Host, step: str) -> bool:
    """Try a step as a daemon would that is begun anew after each error."""
    try:
        assert getattr(one, step)() is None
    except EtcdError:
        one.restart()
        return False
    return True


@pytest.mark.case(76)
def test_a_request_under_way_when_the_daemon_died_gives_nothing_to_who_gave_up(
    etcd: Etcd, host: New
) -> None:
    """The release of what is not held writes, so that an acquire that comes later is too late."""
    rule(etcd, 1)
    one = host(1)
    one.lock._wish(OLD, NEW)
    late = one.view.look()
    edit = one.lock._acquired(
        one.view.join(one.id, one.lock._wish(OLD, NEW)), one.lock._wish(OLD, NEW)
    )
    one.restart()
    one.lock.release()

    assert edit is not None
    assert not isinstance(one.view._swap(late, edit), View)  # type: ignore[arg-type]
    assert held(etcd).holders == {}


def test_a_wish_that_was_to_be_given_back_is_not_taken_up_again(etcd: Etcd, host: New) -> None:
    """What was asked for with its nonce may still be done, late."""
    rule(etcd, 2)
    one = host(1)
    one.acquire()
    before = held(etcd).holders[one.id].nonce
    one.lock.leave_later()

    assert one.acquire() is None

    now = held(etcd).holders[one.id].nonce
    assert now not in (None, before)
    late = Ask(does="release", nonce=before, boot_id="any", at=dt.datetime.now(dt.UTC))
    etcd.txn((), (Put(f"/update-agent/groups/web/asks/{one.id}", encode_ask(late)),))
    rule(etcd, 3)
    assert set(held(etcd).holders) == {one.id}


@pytest.mark.case(76)
def test_who_set_out_to_release_is_not_let_through(etcd: Etcd, host: New, etcd1: Cluster) -> None:
    """Its request may be under way, and be done by whoever comes, when it has gone down."""
    rule(etcd, 1)
    with gateway(etcd1.members[0].client) as fake:
        one = host(1, Access(endpoints=(fake.url,)))
        one.acquire()
        fake.always = Fault.REQUEST_LOST
        with pytest.raises(EtcdError):
            one.lock.release()
        fake.always = None

        assert one.confirm() is Reason.LOCK_LOST
        assert one.acquire() is None
        assert one.confirm() is None


# Holders that do not come back, and those who take from them -------------------------------------


@pytest.mark.case(78)
def test_a_holder_that_never_returns_is_shown_late_and_not_stolen_from(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    one.confirm()
    assert two.acquire() is Reason.LOCK

    two.monotonic.now += STALE + 60
    wait = two.lock.acquire(OLD, NEW)

    assert wait
    assert wait.reason is Reason.LOCK_STALE
    assert "web-1 did not come back for 61 minutes" in wait.sentence
    assert "lock release" in wait.ends
    assert set(held(etcd).holders) == {one.id}


@pytest.mark.case(78)
def test_what_is_forced_goes_on_to_the_next_and_the_holder_must_not_reboot(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    two.acquire()

    assert force(Group(etcd, "web"), one.id, Group(etcd, "web").look().changed) is None

    assert two.lock.called(60)
    assert two.acquire() is None
    assert one.confirm() is Reason.LOCK_LOST
    one.lock.release()
    assert set(held(etcd).holders) == {two.id}


@pytest.mark.case(78)
def test_who_is_gone_when_its_turn_comes_holds_up_the_others_for_a_while(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one, gone, two, three = host(1), host(2), host(3), host(4)
    for it in (one, gone, two, three):
        it.acquire()
    one.lock.release()
    assert set(held(etcd).holders) == {gone.id}
    assert two.acquire() is Reason.LOCK

    two.monotonic.now += LEASE + 1
    assert two.acquire() is None

    assert set(held(etcd).holders) == {two.id}
    assert gone.confirm() is Reason.LOCK_LOST
    assert gone.acquire() is Reason.LOCK
    assert [it.host for it in Group(etcd, "web").look().queue] == [three.id, gone.id]
    three.monotonic.now += LEASE + 1
    assert three.acquire() is Reason.LOCK
    assert two.confirm() is None
    three.monotonic.now += LEASE + 1
    assert three.acquire() is Reason.LOCK


def test_a_host_that_gives_up_while_it_is_offered_a_reboot_slot_keeps_none(
    etcd: Etcd, host: New, etcd1: Cluster
) -> None:
    rule(etcd, 0)
    with gateway(etcd1.members[0].client) as fake:
        one = host(1, Access(endpoints=(fake.url,)))
        one.acquire()
        numbers: list[int] = []

        def before(number: int) -> None:
            numbers.append(number)
            if len(numbers) == 2:  # it has looked, and writes
                rule(etcd, 1)
                assert set(held(etcd).holders) == {one.id}

        fake.before = before
        one.lock.release()

    assert held(etcd).holders == {}
    assert Group(etcd, "web").look().waiting == 0


def test_a_turn_takes_one_look_and_one_write_to_its_confirmation(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    two.acquire()
    one.lock.release()
    assert two.lock.called(60)
    sent = two.etcd.sent

    assert two.acquire() is None
    assert two.confirm() is None

    assert two.etcd.sent - sent == 2


def test_who_looked_since_it_was_let_through_is_no_reason_to_doubt_etcd(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    two.acquire()
    one.lock.release()
    assert two.acquire() is None
    rule(etcd, 2)
    assert two.lock.look(OLD, NEW) is None

    assert two.confirm() is None


PAUSED = """
import sys
from pathlib import Path
from tests.locks import Host
from update_agent.host.etcd import Access
one = Host(1, Access(endpoints=(sys.argv[1],)), Path(sys.argv[2]))
print(one.acquire(), flush=True)
sys.stdin.readline()
print(one.confirm(), flush=True)
"""


@pytest.mark.case(90)
def test_a_process_paused_between_acquire_and_reboot_is_told_that_it_lost(
    etcd: Etcd, etcd1: Cluster, tmp_path: Path
) -> None:
    rule(etcd, 1)
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED, etcd1.members[0].client, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "None\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert force(Group(etcd, "web"), f"{1:032x}", Group(etcd, "web").look().changed) is None
        process.send_signal(signal.SIGCONT)

        assert process.stdout.readline() == "lock-lost\n"


@pytest.mark.case(90)
def test_reboots_that_were_frozen_meanwhile_wait(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one = host(1)
    one.acquire()
    rule(etcd, 0)

    assert one.confirm() is Reason.FROZEN
    rule(etcd, 1)
    assert one.confirm() is None


def test_who_never_acquired_cannot_confirm(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)

    assert host(1).confirm() is Reason.LOCK_LOST
    assert held(etcd).holders == {}


# The key itself ----------------------------------------------------------------------------------


@pytest.mark.case(79)
def test_a_group_that_was_deleted_is_missing_and_made_anew_by_a_person(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one, two = host(1), host(2)
    one.acquire()
    etcd.txn((), (Delete(KEY),))

    assert two.acquire() is Reason.LOCK_MISSING
    assert one.confirm() is Reason.LOCK_MISSING
    rule(etcd, 1)
    assert one.confirm() is Reason.LOCK_LOST
    assert one.acquire() is None


@pytest.mark.case(79)
def test_what_is_missing_is_released(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one = host(1)
    one.acquire()
    etcd.txn((), (Delete(KEY),))

    one.lock.release()
    assert not one.lock.wishing


@pytest.mark.case(87)
def test_a_broken_key_stops_all_and_what_is_held_is_given_back_when_it_is_mended(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1)
    one = host(1)
    one.acquire()
    good = etcd.get(Get(KEY)).found[0].entries[0].value
    etcd.txn((), (Put(KEY, good[:-1]),))

    assert host(2).acquire() is Reason.LOCK_BROKEN
    assert one.confirm() is Reason.LOCK_BROKEN
    with pytest.raises(EtcdError, match="reboot slots of group web"):
        one.lock.release()
    assert one.lock.wishing
    etcd.txn((), (Put(KEY, good),))
    one.lock.release()
    assert held(etcd).holders == {}


@pytest.mark.case(87)
def test_slots_that_are_lowered_below_the_holders_let_them_end_and_nobody_begin(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 2)
    one, two, three = host(1), host(2), host(3)
    one.acquire()
    two.acquire()
    rule(etcd, 1)

    assert one.confirm() is None
    assert two.confirm() is None
    one.lock.release()
    assert three.acquire() is Reason.LOCK
    two.lock.release()
    assert three.acquire() is None


# Clones ------------------------------------------------------------------------------------------


@pytest.mark.case(80)
def test_of_two_with_one_machine_id_only_one_reboots(etcd: Etcd, host: New) -> None:
    rule(etcd, 5)
    one, copy = host(1), host(1)

    assert one.acquire() is None
    wait = copy.lock.acquire(OLD, NEW)
    assert wait
    assert wait.reason is Reason.LOCK_CLONED
    assert "machine id" in wait.sentence
    assert copy.confirm() is Reason.LOCK_CLONED
    assert one.confirm() is None
    copy.lock.release()
    assert set(held(etcd).holders) == {one.id}


@pytest.mark.case(80)
def test_of_two_in_the_queue_with_one_machine_id_one_is_told(etcd: Etcd, host: New) -> None:
    rule(etcd, 0)
    one, copy = host(1), host(1)
    assert one.acquire() is Reason.FROZEN

    assert copy.acquire() is Reason.LOCK_CLONED
    copy.lock.release()
    assert one.acquire() is Reason.FROZEN
    assert Group(etcd, "web").look().waiting == 1


@pytest.mark.case(80)
def test_a_clone_of_the_whole_disk_with_its_nonce_takes_over_or_is_told(
    etcd: Etcd, host: New
) -> None:
    """Whoever goes on with what another boot held, that boot is told and not let through."""
    rule(etcd, 5)
    one = host(1)
    one.acquire()
    copy = host(1)
    (copy.folder / "note-1").write_bytes((one.folder / "note-1").read_bytes())
    copy.restart()

    assert copy.acquire() is None
    assert one.confirm() is Reason.LOCK_CLONED
    assert one.acquire() is Reason.LOCK_CLONED
    assert copy.confirm() is None
    one.lock.release()
    assert held(etcd).holders[copy.id].confirmed


@pytest.mark.case(80)
def test_the_clone_of_a_host_that_waits_keeps_no_place_alive(etcd: Etcd, host: New) -> None:
    rule(etcd, 0)
    one, copy = host(1), host(1)
    one.acquire()
    copy.monotonic.now += LEASE
    sent = copy.etcd.sent

    copy.acquire()

    assert copy.etcd.sent - sent == 1


def test_a_reboot_that_was_no_clone_goes_on(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one = host(1)
    one.acquire()
    for _ in range(3):
        one.reboot()
        assert one.acquire() is None
        assert one.confirm() is None


# Time --------------------------------------------------------------------------------------------


@pytest.mark.case(93)
def test_hosts_whose_clocks_are_a_day_apart_take_turns_as_all_do(etcd: Etcd, host: New) -> None:
    rule(etcd, 1, gap=600)
    day = dt.timedelta(days=1)
    slow, fast, right = host(1, skew=-day), host(2, skew=day), host(3)
    for one, two in itertools.pairwise((slow, fast, right)):
        assert one.acquire() is None
        assert one.confirm() is None
        assert two.acquire() is Reason.LOCK
        one.lock.release()
        wait = two.lock.acquire(OLD, NEW)
        assert wait
        assert wait.reason is Reason.LOCK_GAP
        assert "600 s are left" in wait.sentence
        two.monotonic.now += 599
        assert two.acquire() is Reason.LOCK_GAP
        two.monotonic.now += 1


@pytest.mark.case(93)
def test_the_gap_begins_when_a_host_is_back_however_long_it_was_seen_away(
    etcd: Etcd, host: New
) -> None:
    rule(etcd, 1, gap=300)
    one, two = host(1), host(2)
    one.acquire()
    one.confirm()
    assert two.acquire() is Reason.LOCK
    two.monotonic.now += 600
    one.lock.release()

    assert two.acquire() is Reason.LOCK_GAP
    two.monotonic.now += 300
    assert two.acquire() is None


# etcd itself -------------------------------------------------------------------------------------


@pytest.mark.case(81)
def test_a_leader_lost_at_each_step_stops_nothing_and_loses_nothing(
    host: New,
) -> None:
    with cluster(3) as three, three.client(deadline=30.0) as etcd:
        rule(etcd, 1)
        one = host(1, three.access(deadline=2.0))
        for step in ("acquire", "confirm", "release"):
            at = three.leader()
            three.members[at].kill()
            until(lambda step=step: through(one, step))
            three.start()
        assert held(etcd).holders == {}


def test_without_a_quorum_nobody_reboots_and_it_goes_on_by_itself(host: New) -> None:
    with cluster(3) as three, three.client(deadline=30.0) as etcd:
        rule(etcd, 1)
        one = host(1, three.access(0, deadline=2.0))
        one.acquire()
        for at in (1, 2):
            three.members[at].kill()

        for ask in (one.acquire, one.confirm, one.lock.release):
            with pytest.raises(NoQuorumError):
                ask()
        three.start()
        until(lambda: through(one, "acquire"))  # who set out to release asks anew
        until(lambda: through(one, "confirm"))
        one.lock.release()
        assert held(etcd).holders == {}


@pytest.mark.case(82)
def test_a_host_that_only_reaches_a_lost_member_gets_nothing(host: New, etcd3: Cluster) -> None:
    alone = (etcd3.leader() + 1) % 3
    with etcd3.client((alone + 1) % 3, (alone + 2) % 3, deadline=30.0) as etcd:
        rule(etcd, 1, group="cut")
        inside = host(1, etcd3.access(alone, deadline=2.0), group="cut")
        outside = host(2, etcd3.access((alone + 1) % 3, (alone + 2) % 3), group="cut")
        etcd3.cut(alone)
        try:
            until(lambda: through(outside, "acquire"))
            with pytest.raises(EtcdError):
                inside.acquire()
        finally:
            etcd3.mend(alone)
        until(lambda: etcd3.answers(alone))
        assert inside.acquire() is Reason.LOCK
        outside.lock.release()
        assert inside.acquire() is None
        inside.lock.release()


def test_etcd_that_is_off_is_unreachable_and_a_host_gives_back_when_it_is_on(host: New) -> None:
    with cluster(1) as one_member, one_member.client() as etcd:
        rule(etcd, 1)
        one = host(1, one_member.access(deadline=2.0))
        one.acquire()
        one_member.members[0].kill()

        for ask in (one.acquire, one.confirm, one.lock.release):
            with pytest.raises(UnreachableError):
                ask()
        assert one.lock.wishing
        one.reboot()
        one_member.start()
        one.lock.release()
        assert held(etcd).holders == {}


@pytest.mark.case(89)
def test_a_token_that_ends_between_acquire_and_release_is_renewed(
    host: New, tmp_path: Path
) -> None:
    with cluster(1) as users:
        for words in ("user add root:secret", "user grant-role root root", "auth enable"):
            users.ctl(*words.split())
        (tmp_path / "password").write_text("secret")
        access = replace(
            users.access(deadline=30.0), user="root", password_file=str(tmp_path / "password")
        )
        with closing(Etcd(access)) as etcd:
            rule(etcd, 1)
            one = host(1, access)
            for step in ("acquire", "confirm", "release"):
                token = one.etcd._token
                assert through(one, step)
                assert step == "acquire" or one.etcd._token != token
                changed = {"name": "root", "password": "secret"}  # which ends all tokens
                etcd._call("/v3/auth/user/changepw", changed, again=True)
            assert held(etcd).holders == {}


@pytest.mark.case(85)
@pytest.mark.parametrize("token", [None, "another"], ids=["the-same-id", "another-id"])
def test_restored_from_a_backup_nobody_reboots_until_a_person_looked(
    token: str | None, host: New, tmp_path: Path
) -> None:
    snapshot = tmp_path / "backup"
    with cluster(1) as one_member:
        with one_member.client(deadline=30.0) as etcd:
            rule(etcd, 1)
            one_member.ctl("snapshot", "save", str(snapshot))
        one, two = host(1, one_member.access()), host(2, one_member.access())
        assert one.acquire() is None
        assert two.acquire() is Reason.LOCK
        assert one.confirm() is None

        one_member.restore(snapshot, token=token)

        with one_member.client(deadline=30.0) as etcd:
            assert held(etcd).holders == {}
            assert two.acquire() is Reason.LOCK_RESTORED
            one.reboot()
            assert one.confirm() is Reason.LOCK_RESTORED
            one.lock.release()
            two.restart()
            assert two.acquire() is Reason.LOCK_RESTORED
            rule(etcd, 1)
            assert two.acquire() is None
            assert one.acquire() is Reason.LOCK


@pytest.mark.case(85)
def test_a_confirmation_by_an_etcd_that_was_restored_meanwhile_is_none(
    host: New, tmp_path: Path
) -> None:
    """What is compared may stand there again: the revision of a key is that of its backup."""
    snapshot = tmp_path / "backup"
    with cluster(1) as one_member:
        one, two = host(1, one_member.access()), host(2, one_member.access())
        with one_member.client(deadline=30.0) as etcd:
            rule(etcd, 1)
            assert one.acquire() is None
            one_member.ctl("snapshot", "save", str(snapshot))
            assert force(Group(etcd, "web"), one.id, Group(etcd, "web").look().changed) is None
        assert two.acquire() is None
        assert two.confirm() is None

        one_member.restore(snapshot, token="another")  # noqa: S106

        assert one.confirm() is Reason.LOCK_RESTORED


@pytest.mark.case(85)
def test_an_acceptance_that_came_with_the_backup_of_another_cluster_counts_for_nothing(
    host: New, tmp_path: Path
) -> None:
    snapshot = tmp_path / "backup"
    with cluster(1) as one_member:
        with one_member.client(deadline=30.0) as etcd:
            rule(etcd, 1)
            one = host(1, one_member.access())
            one.acquire()
            one.lock.release()
            rule(etcd, 1)
            one_member.ctl("snapshot", "save", str(snapshot))

        one_member.restore(snapshot, token="another")  # noqa: S106

        assert one.acquire() is Reason.LOCK_RESTORED


def test_a_cluster_that_was_not_restored_is_never_doubted(etcd: Etcd, host: New) -> None:
    rule(etcd, 2)
    one = host(1)
    for _ in range(5):
        assert one.acquire() is None
        etcd.txn((), (Put("/elsewhere", b"x"),))
        one.restart()
        assert one.confirm() is None
        one.lock.release()
        one.reboot()
    assert not Notebook(one.folder / "note-1").note.doubt


# Racks, members, many ----------------------------------------------------------------------------


def test_no_two_of_a_rack_in_the_same_transaction(etcd: Etcd, host: New) -> None:
    rule(etcd, 5, apart=("rack",))
    one, beside = host(1, labels={"rack": "7"}), host(2, labels={"rack": "7"})
    elsewhere = host(3, labels={"rack": "8"})

    assert one.acquire() is None
    wait = beside.lock.acquire(OLD, NEW)
    assert wait
    assert wait.reason is Reason.LOCK_LABEL
    assert "rack=7" in wait.sentence
    assert elsewhere.acquire() is None


@pytest.mark.case(92)
def test_no_two_members_of_etcd_hold_a_reboot_slot(etcd: Etcd, host: New) -> None:
    rule(etcd, 5)

    assert host(1, member=True).acquire() is None
    assert host(2, member=True).acquire() is Reason.QUORUM
    assert host(3).acquire() is None


@pytest.mark.case(88)
def test_five_hundred_hosts_at_once_stand_in_line_and_as_many_as_may_go(
    etcd: Etcd, host: New, etcd1: Cluster
) -> None:
    rule(etcd, 20)
    hosts = [host(it, replace(etcd1.access(), deadline=60.0)) for it in range(500)]
    answers: dict[int, Reason | None] = {}

    def ask(one: Host) -> None:
        answers[one.number] = one.acquire()

    at_once(ask, hosts)

    granted = {it.id for it in hosts if answers[it.number] is None}
    assert len(answers) == 500
    assert len(granted) == 20
    assert set(held(etcd).holders) == granted
    view = Group(etcd, "web").look()
    assert view.waiting == 480
    going = [it for it in hosts if it.id in granted]
    at_once(Host.release, going)
    first = [it for it in hosts if it.id in {each.host for each in view.queue[:10]}]
    at_once(ask, first)
    assert [answers[it.number] for it in first] == [None] * 10


def at_once(work: Callable[[Host], object], hosts: Sequence[Host]) -> None:
    threads = [threading.Thread(target=work, args=(it,)) for it in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_several_threads_of_one_daemon_take_turns(etcd: Etcd, host: New) -> None:
    rule(etcd, 1)
    one = host(1)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                one.lock.acquire(OLD, NEW)
                one.lock.confirm()
                one.lock.release()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert held(etcd).holders == {}
