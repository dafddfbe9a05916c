"""Reboots in turn: hosts of a group against a real etcd, alone and as whole daemons on a bus."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.agent.fakes import B_CONFIRMED, FOLLOWS, HOST, NEW, OFFER, OLD, START, A, Fakes, V
from tests.agent.stage import Stage, on_stage
from tests.bus import Bus, bus
from tests.etcd import Cluster as Etcds
from tests.etcd import cluster, etcd1, etcd3, until
from tests.logind import BACKUP, Logind
from tests.logind import on_bus as logind_on_bus
from update_agent.agent import main as daemon
from update_agent.agent.cluster import NOTE, ClusterReboots
from update_agent.agent.main import Parts
from update_agent.agent.ports import NotPermittedError
from update_agent.agent.reboots import LocalReboots
from update_agent.agent.store import FileStore
from update_agent.core.lifecycle import Boot, State
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt
from update_agent.core.semaphore import Semaphore
from update_agent.core.settings import Cluster, Duration, Reboot, Settings, Strategy
from update_agent.core.window import Window
from update_agent.ctl.main import main
from update_agent.errors import HostError
from update_agent.host import group as groups
from update_agent.host import login
from update_agent.host.etcd import Get
from update_agent.host.group import Edit, Group, View
from update_agent.host.lock import Me

__all__ = ["bus", "etcd1", "etcd3"]

MONDAY = datetime(2026, 11, 23, 8, tzinfo=UTC)
ATTEMPT = Attempt(id="1" * 32, running=V("1.0.0"), version=V("1.1.0"), root_hash=NEW, began=START)


@pytest.fixture
def logind(bus: Bus) -> Iterator[Logind]:
    with logind_on_bus(bus.address) as played:
        yield played


@dataclass
class Fleet:
    """Hosts of one group, which has its name to itself, and what a person sees of it."""

    etcds: Etcds
    folder: Path
    group: str = field(default_factory=lambda: f"g{uuid.uuid4().hex[:12]}")
    rebooted: list[str] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    """What happens while a host is drained."""

    def settings(self, **more: object) -> Settings:
        access = self.etcds.access()
        known: dict[str, object] = {
            "endpoints": access.endpoints, "ca": access.ca, "cert": access.cert,
            "key": access.key, "group": self.group, "deadline": Duration(seconds=2),
            "member": "none here",
        }  # fmt: skip
        cluster = Cluster(**(known | more))  # type: ignore[arg-type]
        return Settings(update=FOLLOWS, reboot=Reboot(strategy=Strategy.LOCK), cluster=cluster)

    def host(
        self, number: int, settings: Settings | None = None, boot: str = "b1"
    ) -> ClusterReboots:
        """Return a host's daemon's part in it, as it begins."""
        settings = settings or self.settings()
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        name = f"web-{number}"

        def carry_out(limit: float, last_word: Callable[[], None]) -> None:
            del limit
            self.meanwhile()
            last_word()
            login.reboot("now")
            self.rebooted.append(name)

        return ClusterReboots(
            LocalReboots(settings, carry_out=carry_out), settings.cluster, HOST, folder,
            me=Me(host=f"{number:032x}", name=name, boot_id=boot, labels={}),
        )  # fmt: skip

    def look(self) -> View:
        with self.etcds.client() as etcd:
            return Group(etcd, self.group).look()

    def holders(self) -> list[str]:
        found = self.look().semaphore
        assert found
        return sorted(it.name for it in found.holders.values())

    def change(self, edit: Callable[[Semaphore], Semaphore]) -> None:
        def edited(view: View) -> Edit:
            return Edit(semaphore=edit(view.semaphore or Semaphore(slots=1)), always=True)

        with self.etcds.client() as etcd:
            Group(etcd, self.group).change(edited)


@pytest.fixture
def fleet(etcd1: Etcds, tmp_path: Path, logind: Logind) -> Fleet:
    """A group with one reboot slot."""
    del logind
    made = Fleet(etcd1, tmp_path)
    made.change(lambda it: it)
    return made


def ask(it: ClusterReboots, *, hurry: bool = False, without_lock: bool = False) -> Wait | None:
    return it.ask(MONDAY, ATTEMPT, hurry=hurry, without_lock=without_lock)


def refused(it: ClusterReboots) -> Wait:
    with pytest.raises(NotPermittedError) as caught:
        ask(it)
    return caught.value.wait


def test_what_is_owed_is_told_before_a_reboot_slot_is_asked_for_again(fleet: Fleet) -> None:
    one = fleet.host(1)
    one._lock.rolled_back(V("0.9.0"))

    assert ask(one) is None

    with fleet.etcds.client() as etcd:
        assert groups.bad_hosts(etcd, "0.9.0") == ["web-1"]
        groups.forgive(etcd, "0.9.0")


# One after the other -----------------------------------------------------------------------------


def test_a_host_waits_with_its_place_until_it_is_called(fleet: Fleet) -> None:
    first, second = fleet.host(1), fleet.host(2)
    assert ask(first) is None
    assert ask(first) is None, "asking again changes nothing"

    wait = ask(second)
    assert wait
    assert wait.reason is Reason.LOCK
    assert wait.sentence == ("the reboot slot is held by web-1; this host is number 1 of 1 waiting")
    first.give_back()
    assert second.called(60)

    assert ask(second) is None
    second.reboot(ATTEMPT, without_lock=False)
    assert (fleet.rebooted, fleet.holders()) == (["web-2"], ["web-2"])


def test_who_waits_for_no_turn_listens_to_nobody(fleet: Fleet) -> None:
    first = fleet.host(1)

    assert not first.called(600)
    assert ask(first) is None
    assert not first.called(600)


def test_nobody_holds_a_slot_or_a_place_while_he_waits_for_a_window(fleet: Fleet) -> None:
    first, second = fleet.host(1), fleet.host(2)
    at_night = Reboot(strategy=Strategy.LOCK, windows=(Window("Mon..Fri 02:00 +2h"),))
    assert ask(first) is None
    assert ask(second)
    assert fleet.look().waiting == 1

    first = fleet.host(1, replace(fleet.settings(), reboot=at_night))
    second = fleet.host(2, replace(fleet.settings(), reboot=at_night))
    for it in (first, second):
        wait = ask(it)
        assert wait
        assert wait.reason is Reason.WINDOW
        assert not it.called(600)
    until(lambda: fleet.holders() == [] and fleet.look().waiting == 0)

    assert ask(first, hurry=True) is None
    assert fleet.holders() == ["web-1"]


def test_nobody_holds_a_slot_while_somebody_blocks_its_reboot(fleet: Fleet, logind: Logind) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    logind.inhibitors = [BACKUP]

    wait = ask(first)

    assert wait
    assert wait.reason is Reason.INHIBITED
    until(lambda: fleet.holders() == [])


def test_who_is_on_trial_keeps_its_slot_though_its_rollback_is_held_back(
    fleet: Fleet, logind: Logind
) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    logind.inhibitors = [BACKUP]

    wait = first.ask(MONDAY, None, hurry=True, without_lock=False, keep=True)

    assert wait
    assert wait.reason is Reason.INHIBITED
    assert not fleet.host(1)._lock.owes
    assert fleet.holders() == ["web-1"]


def test_a_trial_that_holds_no_slot_stands_in_no_queue_for_its_rollback(fleet: Fleet) -> None:
    assert ask(fleet.host(1)) is None
    second = fleet.host(2)

    wait = second.ask(MONDAY, None, hurry=True, without_lock=False, keep=True)

    assert wait
    assert wait.reason is Reason.LOCK
    until(lambda: fleet.look().waiting == 0)


def test_nobody_holds_a_slot_while_nobody_can_say_who_blocks_its_reboot(
    fleet: Fleet, bus: Bus
) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    bus.stop()
    try:
        with pytest.raises(HostError, match="bus"):
            ask(first)
    finally:
        bus.start()

    until(lambda: fleet.holders() == [])


def test_a_host_that_came_back_is_given_up_by_whoever_runs_then(fleet: Fleet) -> None:
    before = fleet.host(1)
    assert ask(before) is None
    before.reboot(ATTEMPT, without_lock=False)

    fleet.host(1, boot="b2").give_back()

    until(lambda: fleet.holders() == [])
    released = fleet.look().semaphore
    assert released
    assert released.released
    assert released.released.name == "web-1"


# The last word -----------------------------------------------------------------------------------


@pytest.mark.case(90)
def test_a_slot_that_was_taken_away_while_the_host_was_drained_reboots_nothing(
    fleet: Fleet,
) -> None:
    first, second = fleet.host(1), fleet.host(2)
    assert ask(first) is None

    def taken() -> None:
        fleet.change(lambda it: replace(it, holders={}))
        assert ask(second) is None

    fleet.meanwhile = taken
    with pytest.raises(NotPermittedError, match="was taken from it") as caught:
        first.reboot(ATTEMPT, without_lock=False)

    assert caught.value.wait.reason is Reason.LOCK_LOST
    assert (fleet.rebooted, fleet.holders()) == ([], ["web-2"])


def test_a_release_that_rolls_back_elsewhere_meanwhile_is_not_booted(fleet: Fleet) -> None:
    fleet.change(lambda it: replace(it, slots=2))
    first, second = fleet.host(1), fleet.host(2)
    attempt = replace(ATTEMPT, version=V(f"9.0.0-{fleet.group}"))
    assert ask(first) is None

    def bad() -> None:
        second.rolled_back(attempt.version)
        until(lambda: second.known_bad(attempt.version))

    fleet.meanwhile = bad
    with pytest.raises(NotPermittedError, match=r"9\.0\.0-g\w+ rolled back on web-2"):
        first.reboot(attempt, without_lock=False)

    assert fleet.rebooted == []


def test_past_the_cluster_nothing_is_asked_of_it(fleet: Fleet) -> None:
    fleet.etcds.members[0].pause()
    try:
        first = fleet.host(1)
        assert ask(first, without_lock=True) is None
        first.reboot(ATTEMPT, without_lock=True)
    finally:
        fleet.etcds.members[0].go_on()

    assert (fleet.rebooted, fleet.holders()) == (["web-1"], [])


def test_past_the_cluster_is_not_past_who_blocks_a_reboot(fleet: Fleet, logind: Logind) -> None:
    logind.inhibitors = [BACKUP]

    wait = ask(fleet.host(1), without_lock=True)

    assert wait
    assert wait.reason is Reason.INHIBITED


# Other settings ----------------------------------------------------------------------------------


def test_what_was_held_in_the_group_of_before_is_given_back_there(fleet: Fleet) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    fleet.group, before = f"{fleet.group}-new", fleet.group
    fleet.change(lambda it: it)

    moved = fleet.host(1, boot="b2")
    moved.give_back()
    fleet.group, after = before, fleet.group

    until(lambda: fleet.holders() == [])
    fleet.group = after
    assert ask(moved) is None
    assert fleet.holders() == ["web-1"]


def test_who_asks_in_another_group_holds_nothing_in_the_one_of_before(fleet: Fleet) -> None:
    assert ask(fleet.host(1)) is None
    fleet.group, before = f"{fleet.group}-new", fleet.group
    fleet.change(lambda it: it)

    assert ask(fleet.host(1)) is None

    assert fleet.holders() == ["web-1"]
    fleet.group = before
    assert fleet.holders() == []


def test_a_trial_keeps_what_it_holds_in_the_group_of_before(fleet: Fleet) -> None:
    assert ask(fleet.host(1)) is None
    moved = fleet.host(1, fleet.settings(group=f"{fleet.group}-new"), boot="b2")

    wait = moved.ask(MONDAY, None, hurry=True, without_lock=False, keep=True)

    assert wait
    assert f"still holds a reboot slot of the group {fleet.group}" in wait.sentence
    assert fleet.holders() == ["web-1"]


@pytest.mark.parametrize("strategy", [Strategy.IMMEDIATE, Strategy.OFF])
def test_who_reboots_in_turn_no_more_gives_back_what_it_holds(
    strategy: Strategy, fleet: Fleet
) -> None:
    assert ask(fleet.host(1)) is None
    settings = replace(fleet.settings(), reboot=Reboot(strategy=strategy))
    folder = fleet.folder / "1"
    parts = Parts(
        host=replace(HOST, machine_id=f"{1:032x}"), settings=settings, store=FileStore(folder),
        slots=Fakes(), group=None, folder=folder,
    )  # fmt: skip

    daemon._reboots(parts, None).give_back()

    until(lambda: fleet.holders() == [])


# Bad releases ------------------------------------------------------------------------------------


def test_at_the_limit_nobody_takes_a_release_until_a_person_forgives_it(fleet: Fleet) -> None:
    version = V(f"2.0.0-{fleet.group}")
    third = fleet.host(3, fleet.settings(bad_limit=2))

    for number, limit in ((1, None), (2, "web-1, web-2")):
        fleet.host(number).rolled_back(version)
        until(lambda number=number: str(number) in json.dumps(known(fleet, version.text)))
        wait = third.known_bad(version)
        assert (wait and wait.sentence) == (limit and f"{version} rolled back on {limit}")

    with fleet.etcds.client() as etcd:
        groups.forgive(etcd, version.text)
    assert third.known_bad(version) is None


def known(fleet: Fleet, version: str) -> list[str]:
    with fleet.etcds.client() as etcd:
        return groups.bad_hosts(etcd, version)


@contextmanager
def a_holder_without_etcd(folder: Path) -> Iterator[tuple[Fleet, ClusterReboots]]:
    """Yield hosts, and the first of them: it holds a reboot slot, and the one member died."""
    with cluster(1) as etcds:
        fleet = Fleet(etcds, folder)
        fleet.change(lambda it: it)
        first = fleet.host(1)
        assert ask(first) is None
        etcds.members[0].kill()
        yield fleet, first


def test_that_a_release_is_bad_is_known_before_the_slot_is_free_whatever_comes_between(
    tmp_path: Path, logind: Logind
) -> None:
    del logind
    with a_holder_without_etcd(tmp_path) as (fleet, first):
        first.rolled_back(V("1.1.0"))
        first.give_back()
        note = json.loads((tmp_path / "1" / NOTE).read_text())
        assert (note["bad"], note["leaving"]) == (["1.1.0"], True)
        fleet.host(1).give_back()  # the daemon began anew; both go on trying

        fleet.etcds.start()
        until(lambda: fleet.holders() == [])
        with fleet.etcds.client() as etcd:
            (bad,) = etcd.get(Get(groups.bad_key("1.1.0"), prefix=True)).found[0].entries
        assert bad.value == b"web-1"
        assert bad.created < fleet.look().changed
        until(lambda: json.loads((tmp_path / "1" / NOTE).read_text())["nonce"] is None)
        assert json.loads((tmp_path / "1" / NOTE).read_text())["bad"] == []


# When etcd does not do its part ------------------------------------------------------------------


def test_without_etcd_nobody_reboots_and_all_goes_on_when_it_is_back(
    tmp_path: Path, logind: Logind
) -> None:
    del logind
    with a_holder_without_etcd(tmp_path) as (fleet, first):
        wait = refused(first)
        assert wait.reason is Reason.LOCK_UNREACHABLE
        assert "cannot be reached" in wait.sentence
        assert "cluster.endpoints" in wait.ends
        with pytest.raises(NotPermittedError, match="cannot be asked"):
            first.reboot(ATTEMPT, without_lock=False)
        assert fleet.rebooted == []

        fleet.etcds.start()
        assert ask(first) is None
        first.reboot(ATTEMPT, without_lock=False)
        assert fleet.rebooted == ["web-1"]


def test_without_quorum_nobody_reboots(tmp_path: Path, logind: Logind) -> None:
    del logind
    with cluster(3) as etcds:
        fleet = Fleet(etcds, tmp_path)
        fleet.change(lambda it: it)
        member, other = fleet.host(1, fleet.settings(member="m0")), fleet.host(2)
        assert ask(member) is None
        etcds.members[2].kill()

        wait = ask(member)
        assert wait
        assert wait.reason is Reason.QUORUM
        until(lambda: fleet.holders() == [])
        assert ask(other) is None, "it is no member"
        held = ask(member)
        assert held
        assert held.reason is Reason.LOCK, "who holds the slot comes first"
        assert fleet.look().waiting == 0
        etcds.members[1].kill()
        assert refused(other).reason is Reason.LOCK_UNREACHABLE

        etcds.start()
        assert ask(other) is None


def test_a_certificate_that_is_too_old_is_named(
    etcd3: Etcds, tmp_path: Path, logind: Logind
) -> None:
    del logind
    fleet = Fleet(etcd3, tmp_path)
    assert etcd3.ca
    cert, key = etcd3.ca.issue(f"late-{fleet.group}", days=-1)

    wait = refused(fleet.host(1, fleet.settings(cert=str(cert), key=str(key))))

    assert wait.reason is Reason.LOCK_UNREACHABLE
    assert "certificate" in wait.ends


def test_a_group_without_slots_says_how_they_are_made(etcd1: Etcds, fleet: Fleet) -> None:
    wait = ask(Fleet(etcd1, fleet.folder).host(1))

    assert wait
    assert wait.reason is Reason.LOCK_MISSING
    assert "update-agentctl lock slots" in wait.ends


# Whole daemons -----------------------------------------------------------------------------------


@pytest.fixture
def fakes() -> Fakes:
    return Fakes(answers=[OFFER])


@pytest.fixture
def stage(bus: Bus, fleet: Fleet, fakes: Fakes) -> Iterator[Stage]:
    """A daemon of host 2, which finds a release."""
    settings = fleet.settings()
    with on_stage(bus, fakes, settings, fleet.host(2, settings)) as played:
        yield played


def reason(stage: Stage) -> Reason | None:
    wait = stage.daemon.record.wait
    return wait.reason if wait else None


def test_a_daemon_waits_for_its_turn_and_reboots_when_it_is_called(
    stage: Stage, fleet: Fleet, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    assert main(["install"]) == 0
    assert "the reboot slot is held by web-1; this host is number 1" in capsys.readouterr().out
    assert main(["why"]) == 0
    assert "(lock, for" in capsys.readouterr().out
    assert "arm" not in fakes.did

    first.give_back()

    until(lambda: fleet.rebooted == ["web-2"])
    assert stage.daemon.record.state is State.REBOOTING
    assert fleet.holders() == ["web-2"]


def test_a_person_s_reboot_is_in_turn_as_well(
    stage: Stage, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    assert main(["install"]) == 0

    assert main(["reboot"]) == 4
    assert "not rebooted: the reboot slot is held by web-1" in capsys.readouterr().err
    assert main(["force"]) == 0
    assert "the reboot slot is held by web-1" in capsys.readouterr().out
    assert fleet.rebooted == []
    assert main(["reboot", "--without-lock", "--no-wait"]) == 0

    until(lambda: fleet.rebooted == ["web-2"])
    assert fleet.holders() == ["web-1"]
    assert stage.daemon.record.state is State.REBOOTING


def test_a_rollback_is_in_turn_as_well(
    stage: Stage, fleet: Fleet, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    del stage
    fakes.seen = A, B_CONFIRMED
    first = fleet.host(1)
    assert ask(first) is None

    assert main(["rollback"]) == 4
    assert "the reboot slot is held by web-1" in capsys.readouterr().err
    assert "rollback" not in fakes.did
    until(lambda: fleet.look().waiting == 0)
    first.give_back()
    until(lambda: fleet.holders() == [])

    assert main(["rollback"]) == 0
    assert (fleet.rebooted, fleet.holders()) == (["web-2"], ["web-2"])


def test_force_past_the_cluster_takes_what_it_knows_to_be_bad(
    stage: Stage, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    del stage
    first = fleet.host(1)
    assert ask(first) is None
    first.rolled_back(V("1.1.0"))
    until(lambda: first.known_bad(V("1.1.0")))
    try:
        assert main(["force"]) == 4
        assert "1.1.0 rolled back on web-1" in capsys.readouterr().err
        assert main(["force", "--without-lock", "--no-wait"]) == 0
        until(lambda: fleet.rebooted == ["web-2"])
    finally:
        with fleet.etcds.client() as etcd:
            groups.forgive(etcd, "1.1.0")


@pytest.mark.case(91)
def test_a_reboot_that_logind_refuses_gives_the_slot_back(
    stage: Stage, fleet: Fleet, fakes: Fakes, logind: Logind
) -> None:
    logind.may_reboot = False

    assert main(["install", "--no-wait"]) == 0
    until(lambda: reason(stage) is Reason.INHIBITED)

    until(lambda: fakes.did[-2:] == ["arm", "disarm"])
    assert "Permission denied" in str(stage.daemon.record.wait)
    until(lambda: fleet.holders() == [])
    logind.may_reboot = True
    stage.do(lambda: again(stage))
    until(lambda: fleet.rebooted == ["web-2"])
    assert fleet.holders() == ["web-2"]


async def again(stage: Stage) -> None:
    """Let the time of waiting run out."""
    assert stage.fakes.timer
    stage.fakes.timer.call()


def test_a_staged_release_that_rolls_back_elsewhere_is_dropped(
    stage: Stage, fleet: Fleet, fakes: Fakes
) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    assert main(["install"]) == 0
    assert stage.daemon.record.state is State.WAITING_TO_REBOOT

    first.rolled_back(V("1.1.0"))
    first.give_back()

    try:
        until(lambda: reason(stage) is Reason.BAD_RELEASE)
        stage.until(State.WAITING)
        assert stage.daemon.record.history[-1].why == "1.1.0 rolled back on web-1"
        assert "arm" not in fakes.did
        until(lambda: fleet.holders() == [])
        wait = stage.daemon.record.wait
        assert wait
        assert wait.ends == "a newer release, or 'update-agentctl lock forgive 1.1.0'"
    finally:
        with fleet.etcds.client() as etcd:
            groups.forgive(etcd, "1.1.0")


def test_a_release_that_rolled_back_here_is_told_and_the_slot_is_free(
    bus: Bus, fleet: Fleet, fakes: Fakes
) -> None:
    settings = fleet.settings()
    with on_stage(bus, fakes, settings, fleet.host(2, settings)):
        assert main(["install", "--no-wait"]) == 0
        until(lambda: fleet.rebooted == ["web-2"])
    fakes.booted = Boot(boot_id="b2", root_hash=OLD, successful=True)

    with on_stage(bus, fakes, settings, fleet.host(2, settings, boot="b2")) as second:
        assert second.daemon.record.state is State.FAILED
        until(lambda: fleet.holders() == [])

    try:
        assert known(fleet, "1.1.0") == ["web-2"]
    finally:
        with fleet.etcds.client() as etcd:
            groups.forgive(etcd, "1.1.0")


def test_a_daemon_answers_while_etcd_does_not(
    stage: Stage, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.etcds.members[0].pause()
    try:
        assert main(["install", "--no-wait"]) == 0
        assert main(["status"]) == 0
        until(lambda: reason(stage) is Reason.LOCK_UNREACHABLE)
        assert main(["why"]) == 0
        assert "lock-unreachable" in capsys.readouterr().out
        assert fleet.rebooted == []
    finally:
        fleet.etcds.members[0].go_on()
    until(lambda: fleet.etcds.answers(0))

    stage.do(lambda: again(stage))

    until(lambda: fleet.rebooted == ["web-2"])


def test_what_cannot_be_kept_is_an_error(fleet: Fleet) -> None:
    first = fleet.host(1)
    assert ask(first) is None
    note = fleet.folder / "1" / NOTE
    note.unlink()
    note.parent.rmdir()

    with pytest.raises(HostError, match=r"cannot write .*cluster\.json"):
        first.give_back()
    with pytest.raises(HostError, match=r"cannot write .*cluster\.json"):
        first.rolled_back(V("1.1.0"))


def test_the_daemon_ends_though_etcd_does_not_answer(stage: Stage, fleet: Fleet) -> None:
    fleet.etcds.members[0].pause()
    try:
        assert main(["install", "--no-wait"]) == 0
        until(lambda: stage.daemon._questions)
        stage.do(stage.daemon.stop)
        assert stage.daemon.record.state in {State.CHECKING, State.STAGED}
    finally:
        fleet.etcds.members[0].go_on()
