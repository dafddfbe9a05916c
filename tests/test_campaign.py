"""What a campaign (vm-tests/campaign) plans, and what its witness makes of consoles."""

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import judge
import pytest
from faults import GAP, SORTS, Kind, Planned, Where, plan
from machine import MachineError
from middlebox import Manner, Middlebox
from press import issues
from reckoning import Reckoning
from witness import Away, Seen, Witness, most_at_once

from tests.etcd import until

HOUR = 3600.0

# Plans -------------------------------------------------------------------------------------------


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  repeatable


def planned(seed: int, hosts: int = 3) -> list[Planned]:
    return plan(chance(seed), HOUR, hosts)


def test_a_seed_repeats_its_faults_and_its_releases() -> None:
    assert planned(7) == planned(7) != planned(8)
    assert [*islice(issues(chance(7)), 20)] == [*islice(issues(chance(7)), 20)]


def test_a_shorter_campaign_is_the_begin_of_a_longer_one() -> None:
    short = plan(chance(7), HOUR / 6, 3)

    assert short == planned(7)[: len(short)]


@pytest.mark.parametrize("hosts", [3, 5])
@pytest.mark.parametrize("seed", range(20))
def test_an_hour_has_every_kind_of_fault(seed: int, hosts: int) -> None:
    found = planned(seed, hosts)

    assert {it.kind for it in found} == set(Kind)
    assert all(it.at < HOUR for it in found)
    assert [it.at for it in found] == sorted(it.at for it in found)
    assert len(found) > HOUR / GAP[1] * 0.9


@pytest.mark.parametrize("hosts", [3, 4, 5])
@pytest.mark.parametrize("seed", range(20))
def test_faults_that_last_leave_etcd_its_quorum_unless_that_is_the_fault(
    seed: int, hosts: int
) -> None:
    found = [it for it in planned(seed, hosts) if it.sort.where is Where.HOST]
    for fault in found:
        lost = {
            host for it in found for host in it.hosts
            if SORTS[it.kind].member is not None and it.at <= fault.at <= it.at + it.seconds
        }  # fmt: skip
        assert len(lost) <= (hosts - 1) // 2


@pytest.mark.parametrize("seed", range(20))
def test_the_quorum_is_lost_by_a_fault_of_its_own(seed: int) -> None:
    lost = [it for it in planned(seed) if it.kind is Kind.QUORUM_LOST]

    assert lost
    assert all(len(it.hosts) == 2 for it in lost)


@pytest.mark.parametrize("seed", range(20))
def test_releases_begin_with_a_good_one_and_no_two_bad_ones_follow_one_another(seed: int) -> None:
    flaws = [it.flaw for it in islice(issues(chance(seed)), 30)]

    assert flaws[0] is None
    assert flaws.count(None) == 20
    assert not any(one and other for one, other in pairwise(flaws))


# The witness -------------------------------------------------------------------------------------

BOOTS = "gptprio: slot {}: kernel verified, version {}"
TRIAL = "update-agent-init: slot /dev/vda3, on trial"
NO_TRIAL = "update-agent-init: slot /dev/vda2"
AGENT = "[  OK  ] Started update-agentd.serv…e - Keep this host up to date."
UP = "[  OK  ] Reached target multi-user.target - Multi-User System."
LEAVES = "[  OK  ] Stopped target multi-user.target - Multi-User System."
RESTARTS = "[  135.015532] reboot: Restarting system"
CONFIRMED = "[  99.2] update-agent-confirm[224]: still healthy; the booted slot is confirmed"
PANIC = "[    9.688473] Kernel panic - not syncing: sysrq triggered crash"
DEADLINE = "[  80.1] echo[99]: the booted slot was not confirmed by its deadline; rebooting"


def witness_of(*lines: str | None, host: str = "web-1") -> Witness:
    """Return a witness that heard a line each second; None: the power went."""
    found = Witness(["web-1", "web-2"])
    for at, line in enumerate(lines):
        if line is None:
            found.power_went(host, at)
        else:
            found.hears(host, at, line)
    return found


OLD_UP = (BOOTS.format("A", "1.0.0"), NO_TRIAL, AGENT, UP)
NEW_TRIED = (BOOTS.format("B", "1.1.0"), TRIAL, AGENT, UP)
NEW_UP = (BOOTS.format("B", "1.1.0"), NO_TRIAL, AGENT, UP)


def test_a_host_is_away_from_its_way_down_until_it_is_confirmed() -> None:
    found = witness_of(*OLD_UP, LEAVES, RESTARTS, *NEW_TRIED, CONFIRMED)

    assert found.aways == [
        Away(host="web-1", began=4, ended=10, tried={"1.1.0"}, back_with="1.1.0")
    ]
    assert found.running == {"web-1": "1.1.0"}
    assert found.fell_back_from("1.1.0") == []


def test_a_host_is_away_until_the_old_release_is_back() -> None:
    found = witness_of(
        *OLD_UP, LEAVES, RESTARTS, *NEW_TRIED, DEADLINE, LEAVES, RESTARTS, *OLD_UP
    )  # fmt: skip

    (away,) = found.aways
    assert (away.began, away.ended) == (4, 15)
    assert found.fell_back_from("1.1.0") == ["web-1"]
    assert found.counts["deadline"] == 1
    assert found.counts["reset"] == 0


def test_a_power_cut_is_no_reboot_of_the_agent() -> None:
    found = witness_of(*OLD_UP, None, *OLD_UP)

    assert found.aways == []
    assert found.counts["reset"] == 0


def test_who_loses_its_power_before_it_goes_down_is_away_when_it_is_on_trial() -> None:
    found = witness_of(*OLD_UP, None, *NEW_TRIED, CONFIRMED)

    (away,) = found.aways
    assert (away.began, away.ended) == (6, 9)


def test_who_was_confirmed_before_its_power_went_was_away_no_longer_than_that() -> None:
    found = witness_of(*OLD_UP, LEAVES, RESTARTS, *NEW_TRIED, None, *NEW_UP)

    (away,) = found.aways
    assert (away.began, away.ended, away.back_with) == (4, 10, "1.1.0")


def test_who_loses_its_power_in_its_trial_and_goes_on_trying_stays_away() -> None:
    found = witness_of(*OLD_UP, LEAVES, RESTARTS, *NEW_TRIED, None, *NEW_TRIED, CONFIRMED)

    (away,) = found.aways
    assert (away.began, away.ended) == (4, 15)


def test_a_reset_and_a_panic_are_seen_with_what_ran() -> None:
    found = witness_of(*OLD_UP, *OLD_UP, LEAVES, RESTARTS, *NEW_TRIED, PANIC, *OLD_UP)

    assert [(it.what, it.version) for it in found.seen if it.what in ("reset", "panic")] == [
        ("reset", "1.0.0"), ("panic", "1.1.0"),
    ]  # fmt: skip


def test_two_that_are_away_at_once_are_found() -> None:
    one, two = Away(host="web-1", began=1, ended=5), Away(host="web-2", began=5, ended=9)
    three = Away(host="web-3", began=8, ended=12)

    assert most_at_once([one, two]) == [one]
    assert most_at_once([one, two, three]) == [two, three]


# The judge ---------------------------------------------------------------------------------------

ONE = ("1.0.0", "1.1.0", "confirmed", "")
TWO = ("1.1.0", "1.2.0", "fell-back", "")


def test_the_server_must_tell_what_the_host_tells_and_no_more() -> None:
    assert [*judge.story_complaints({"a": ONE, "b": TWO}, {"a": ONE, "b": TWO})] == []
    assert [*judge.story_complaints({"a": ONE}, {"b": TWO, "a": TWO})] == [
        f"of attempt a the host says {ONE}, the server {TWO}",
        f"of attempt b the host says nothing, the server {TWO}",
    ]


def test_a_bad_release_must_not_be_confirmed_and_no_release_refused() -> None:
    stories = [{"a": ONE, "b": (*TWO[:2], "refused", "odd")}]

    assert [*judge.bad_complaints(stories, [], {"1.2.0"})] == []
    assert [*judge.bad_complaints(stories, [], {"1.1.0"})] == [
        "the bad 1.1.0 was confirmed in attempt a"
    ]
    assert [*judge.refused_complaints(stories)] == ["1.2.0 was refused in attempt b: odd"]


def test_who_resets_or_panics_with_a_good_release_is_found() -> None:
    seen = [
        Seen(at=1, host="web-1", what="panic", version="1.2.0"),
        Seen(at=2, host="web-2", what="reset", version="1.1.0"),
        Seen(at=3, host="web-3", what="boots", version="1.1.0"),
    ]

    assert [*judge.reset_complaints(seen, {"1.2.0"})] == [
        "web-2: a reset that nobody asked for, running 1.1.0"
    ]


# The reckoning -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """A machine that tells its journal, or that cannot be asked."""

    name: str
    serial_log: Path
    journal: str | None

    def run(self, _: str, *, timeout: float) -> str:
        if self.journal is None:
            raise MachineError(f"{self.name}: took over {timeout:.0f} s")
        return self.journal


def bugs(folder: Path, *journals: str | None, server: str = "") -> list[str]:
    """Return what is found in what machines tell, one after the other, and in the server's log."""
    serial = folder / "serial.log"
    serial.touch()
    (folder / "server.log").write_text(server)
    machines = [Told(f"web-{it}", serial, said) for it, said in enumerate(journals, 1)]
    hosts: Any = [SimpleNamespace(machine=it) for it in machines]
    scene: Any = SimpleNamespace(fleet=SimpleNamespace(hosts=hosts))
    press: Any = SimpleNamespace(depot=SimpleNamespace(folder=folder))
    return Reckoning(scene=scene, press=press, slots=1, folder=folder, logs=folder / "logs").bugs()


CALM = "update-agentd[1]: nothing new\n"
TRACEBACK = "update-agentd[1]: Traceback (most recent call last):"


def test_a_bug_is_found_in_a_journal_and_in_the_log_of_the_update_server(tmp_path: Path) -> None:
    log = "INFO watch: looks\nERROR update_agent.server.watch: a defect: cannot watch rollouts\n"

    assert bugs(tmp_path, CALM, f"{CALM}{TRACEBACK}\n", server=log) == [
        f"web-2: {TRACEBACK}",
        "update server: ERROR update_agent.server.watch: a defect: cannot watch rollouts",
    ]
    assert (tmp_path / "logs/server.log").read_text() == log
    assert (tmp_path / "logs/web-1.journal").read_text() == CALM


def test_a_host_that_cannot_be_asked_for_bugs_is_no_evidence_that_there_are_none(
    tmp_path: Path,
) -> None:
    assert bugs(tmp_path, CALM) == []
    assert bugs(tmp_path, None, CALM) == ["web-1: took over 300 s"]


# The middlebox -----------------------------------------------------------------------------------

BODY = bytes(range(256)) * 4096


@contextmanager
def behind() -> Iterator[Middlebox]:
    """Yield a middlebox before a server that says the same to everyone."""

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                connection.sendall(BODY)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        box = Middlebox(server=listener.getsockname()[1], chance=chance(1))
        with box.listening():
            yield box
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def asked(box: Middlebox) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", box.port), 10)) as connection:
        connection.sendall(b"?")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_good_middlebox_changes_nothing() -> None:
    with behind() as box:
        assert asked(box) == BODY
        assert not box.spoilt


def test_a_bad_one_flips_bits_or_cuts_or_speaks_for_itself_and_is_good_again() -> None:
    with behind() as box:
        with box.behaving(Manner.FLIPS):
            flipped = asked(box)
        with box.behaving(Manner.CUTS):
            cut = asked(box)
        with box.behaving(Manner.PORTAL):
            page = asked(box)
        assert asked(box) == BODY

    assert len(flipped) == len(BODY)
    different = [(one ^ two).bit_count() for one, two in zip(flipped, BODY, strict=True)]
    assert sum(different) == box.spoilt[Manner.FLIPS] > 0
    assert BODY.startswith(cut)
    assert len(cut) < len(BODY)
    assert b"log in" in page


def test_a_silent_one_goes_on_when_it_is_good_again() -> None:
    with behind() as box:
        heard: list[bytes] = []
        with box.behaving(Manner.SILENT):
            thread = threading.Thread(target=lambda: heard.append(asked(box)))
            thread.start()
            until(lambda: box.spoilt[Manner.SILENT])
            assert heard == []
        thread.join()

    assert heard == [BODY]
