"""``update-agentctl lock``, against a real etcd."""

import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bus import OUTSIDER
from tests.etcd import Cluster, cluster, etcd1, etcd3
from update_agent.core.semaphore import Holder, Semaphore
from update_agent.core.version import Version
from update_agent.ctl.main import main
from update_agent.host import group as groups
from update_agent.host.etcd import Etcd, Put
from update_agent.host.group import Edit, Group

__all__ = ["etcd1", "etcd3"]

Say = pytest.CaptureFixture[str]
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@dataclass
class Seat:
    """A host's settings, and a group that has its name to itself."""

    etcd: Etcd
    name: str
    folder: Path
    capsys: Say

    @property
    def group(self) -> Group:
        return Group(self.etcd, self.name)

    def types(self, *words: str) -> tuple[int, str]:
        """Type a verb of ``lock``; return the exit code and all that was said."""
        try:
            code = main(["lock", words[0], "--settings", str(self.folder), *words[1:]])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
        said = self.capsys.readouterr()
        return code, said.out + said.err

    def says(self, *words: str) -> str:
        code, said = self.types(*words)
        assert code == 0, said
        return said

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.says("status", "--json")))

    def holds(self, **names: str) -> None:
        """Let hosts hold reboot slots, by their names and what number they are."""
        held = {number * 32: holder(name, number) for name, number in names.items()}
        self.group.change(
            lambda it: Edit(semaphore=replace(it.semaphore or Semaphore(slots=1), holders=held))
        )


def holder(name: str, number: str) -> Holder:
    return Holder(
        nonce=number * 32, boot_id="b", name=name, since=NOON, running=Version("1.0.0"),
        target=Version("1.1.0"), labels={"rack": number},
    )  # fmt: skip


@pytest.fixture
def seat(etcd1: Cluster, tmp_path: Path, capsys: Say) -> Iterator[Seat]:
    name = f"g{uuid.uuid4().hex[:12]}"
    endpoints = json.dumps([it.client for it in etcd1.members])
    (tmp_path / "50.toml").write_text(f'[cluster]\nendpoints = {endpoints}\ngroup = "{name}"\n')
    with etcd1.client() as etcd:
        yield Seat(etcd, name, tmp_path, capsys)


def test_a_group_begins_with_slots(seat: Seat) -> None:
    code, said = seat.types("status")
    assert (code, f"no reboot slots for the group {seat.name}" in said) == (4, True)
    assert "update-agentctl lock slots 1" in said

    assert seat.says("slots", "1") == f"the group {seat.name} has 1 reboot slot\n"

    assert seat.says("status").startswith(f"group       {seat.name}: 1 reboot slot, 1 free\n")
    found = seat.status()
    assert (found["slots"], found["holders"], found["waiting"]) == (1, [], 0)
    assert found["accepted"] is not None


def test_rules_stay_until_they_are_changed(seat: Seat) -> None:
    said = seat.says("slots", "3", "--gap", "5m", "--apart", "rack", "--apart", "room")
    assert said.endswith("has 3 reboot slots; 5 min between two hosts; never two of one rack or"
                         " room\n")  # fmt: skip

    seat.says("slots", "2")
    assert (seat.status()["gap_seconds"], seat.status()["apart"]) == (300, ["rack", "room"])

    seat.says("slots", "0", "--gap", "0s", "--apart", "none")
    found = seat.status()
    assert (found["slots"], found["gap_seconds"], found["apart"]) == (0, 0, [])
    assert "reboots are frozen" in seat.says("status")


def test_fewer_slots_than_holders_say_so(seat: Seat) -> None:
    seat.says("slots", "2")
    seat.holds(one="1", two="2")

    assert "held by 2 now: nobody begins until there are fewer" in seat.says("slots", "1")
    assert len(seat.status()["holders"]) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("slots", "-1"), "'-1' is no number from 0 to 10000"),
        (("slots", "10001"), "'10001' is no number"),
        (("slots", "1", "--gap", "soon"), "'soon' is no length of time"),
        (("release", "web-1"), "--revision"),
        (("forgive", "newest"), "'newest'"),
        (("status", "--wach"), "--wach"),
    ],
)
def test_words_that_say_nothing_are_wrong_usage(
    words: tuple[str, ...], why: str, seat: Seat
) -> None:
    code, said = seat.types(*words)

    assert (code, why in said) == (2, True), said


def test_everything_that_people_want_to_know_is_shown(seat: Seat) -> None:
    seat.says("slots", "1")
    seat.holds(one="1")
    for name, number in (("two", "2"), ("three", "3")):
        seat.group.join(number * 32, holder(name, number))
    version = f"1.2.0-{seat.name}"
    groups.tell_bad(seat.etcd, version, "4" * 32, "four")

    text = seat.says("status")
    found = seat.status()

    revision = found["revision"]
    assert re.search(
        rf"revision    {revision}\n"
        r"holder      one \(1{32}\)\n"
        r"            1\.0\.0 -> 1\.1\.0, since 2026-11-24T12:00:00Z \(.*\),\n? *rack=1\n"
        r"waiting 1   two: 1\.0\.0 -> .*\n(.*\n)?waiting 2   three: ",
        text,
    ), text
    assert f"{version} rolled back on four" in re.sub(r"\s+", " ", text)
    (held,) = found["holders"]
    assert held == {
        "host": "1" * 32, "name": "one", "since": "2026-11-24T12:00:00Z", "from": "1.0.0",
        "to": "1.1.0", "offered": False, "confirmed": None, "labels": {"rack": "1"},
        "member": False, "seen_seconds": 0,
    }  # fmt: skip
    assert [(it["place"], it["name"]) for it in found["queue"]] == [(1, "two"), (2, "three")]
    assert found["bad_releases"][version] == ["four"]


def test_who_watches_sees_for_how_long_a_holder_is_there(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat.says("slots", "1")
    seat.holds(one="1")
    looks = iter(range(2))

    def look_again(seconds: float) -> None:
        assert seconds > 0
        if next(looks):
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", look_again)
    code, said = seat.types("status", "--watch")
    assert (code, said.count("seen here for")) == (130, 2)

    looks = iter(range(2))
    code, said = seat.types("status", "--watch", "--json")
    assert [json.loads(line)["slots"] for line in said.splitlines()[:2]] == [1, 1]


# Taking a slot away ------------------------------------------------------------------------------


@pytest.mark.case(78)
@pytest.mark.parametrize("who", ["one", "1" * 32])
def test_a_holder_that_never_returns_is_released_by_name_and_revision(who: str, seat: Seat) -> None:
    seat.says("slots", "2")
    seat.holds(one="1", two="2")
    revision = str(seat.status()["revision"])

    said = seat.says("release", who, "--revision", revision)

    assert said == f"the reboot slot of one ({'1' * 32}) is free; it was 1.0.0 -> 1.1.0, rack=1\n"
    assert [it["name"] for it in seat.status()["holders"]] == ["two"]


def test_what_changed_since_somebody_looked_is_told_and_nothing_is_released(seat: Seat) -> None:
    seat.says("slots", "2")
    seat.holds(one="1")
    before = str(seat.status()["revision"])
    seat.holds(one="1", two="2")

    code, said = seat.types("release", "one", "--revision", before)

    now = seat.status()
    assert code == 4
    assert (
        f"changed since revision {before}: they are at revision {now['revision']}, held by one, two"
        in said
    )
    assert len(now["holders"]) == 2


def test_who_holds_nothing_is_not_released(seat: Seat) -> None:
    seat.says("slots", "2")
    seat.holds(one="1")
    revision = str(seat.status()["revision"])

    code, said = seat.types("release", "nine", "--revision", revision)
    assert (code, "nine holds no reboot slot; they are held by one" in said) == (4, True)

    seat.group.change(
        lambda it: Edit(
            semaphore=replace(
                it.semaphore or Semaphore(slots=1),
                holders={number * 32: holder("twin", number) for number in "78"},
            )
        )
    )
    revision = str(seat.status()["revision"])
    code, said = seat.types("release", "twin", "--revision", revision)
    assert (code, f"2 holders are called twin: {'7' * 32}, {'8' * 32}" in said) == (4, True)


def test_a_release_is_forgiven_on_all_hosts(seat: Seat) -> None:
    version = f"1.2.0-{seat.name}"
    for number in "12":
        groups.tell_bad(seat.etcd, version, number * 32, f"web-{number}")

    said = seat.says("forgive", version)

    assert "which rolled back on web-1, web-2, may be installed again" in said
    assert groups.bad_hosts(seat.etcd, version) == []
    assert seat.says("forgive", version) == f"no host said that {version} rolled back\n"


def test_programs_are_told_how_the_group_stands_after_what_they_did(seat: Seat) -> None:
    version = f"1.2.0-{seat.name}"
    assert json.loads(seat.says("slots", "2", "--json")) == seat.status()

    seat.holds(one="1", two="2")
    revision = str(seat.status()["revision"])
    after = json.loads(seat.says("release", "one", "--revision", revision, "--json"))
    assert [it["name"] for it in after["holders"]] == ["two"]
    assert after == seat.status()

    groups.tell_bad(seat.etcd, version, "1" * 32, "web-1")
    assert seat.status()["bad_releases"][version] == ["web-1"]
    after = json.loads(seat.says("forgive", version, "--json"))
    assert version not in after["bad_releases"]


# What is wrong -----------------------------------------------------------------------------------


@pytest.mark.case(87)
def test_slots_that_cannot_be_understood_are_left_for_a_person(seat: Seat) -> None:
    key = f"{groups.PREFIX}{seat.name}/reboot"
    seat.etcd.txn((), (Put(key, b"{nonsense"),))

    for words in (("status",), ("slots", "1"), ("release", "one", "--revision", "1")):
        code, said = seat.types(*words)
        assert (code, f"etcdctl get {key}" in said) == (4, True), said


def test_without_etcd_it_says_whom_it_asked(seat: Seat, capsys: Say) -> None:
    (seat.folder / "50.toml").write_text('[cluster]\nendpoints = ["http://127.0.0.1:9"]\n')
    code, said = seat.types("status")
    assert (code, "http://127.0.0.1:9 cannot be reached" in said) == (4, True)

    (seat.folder / "50.toml").write_text("")
    code, said = seat.types("status")
    assert (code, "cluster.endpoints names no etcd" in said) == (4, True)
    assert capsys.readouterr().err == ""


def test_certificates_are_those_of_the_host(etcd3: Cluster, tmp_path: Path, capsys: Say) -> None:
    access = etcd3.access()
    settings = {"endpoints": list(access.endpoints), "ca": access.ca, "cert": access.cert,
                "key": access.key, "group": f"g{uuid.uuid4().hex[:12]}"}  # fmt: skip
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (tmp_path / "50.toml").write_text(f"[cluster]\n{lines}\n")
    with etcd3.client() as etcd:
        seat = Seat(etcd, str(settings["group"]), tmp_path, capsys)

        assert "1 reboot slot" in seat.says("slots", "1")
        assert seat.status()["slots"] == 1


def test_who_may_not_read_the_key_is_told_which_it_is(etcd3: Cluster) -> None:
    access = etcd3.access()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)  # other users' too
        for name, mode in (("ca", 0o644), ("cert", 0o644), ("key", 0o640)):
            shutil.copy(str(getattr(access, name)), home / name)
            (home / name).chmod(mode)
        (home / "50.toml").write_text(
            f'[cluster]\nendpoints = ["{access.endpoints[0]}"]\nca = "{home}/ca"\n'
            f'cert = "{home}/cert"\nkey = "{home}/key"\n'
        )
        done = OUTSIDER.types("lock", "status", "--settings", folder)

    assert done.returncode == 4
    assert f"Permission denied: '{home}/key'" in done.stderr
    assert "see cluster.ca, cluster.cert and cluster.key" in done.stderr


def test_without_quorum_it_says_so(tmp_path: Path, capsys: Say) -> None:
    with cluster(3) as etcds:
        etcds.members[1].kill()
        etcds.members[2].kill()
        (tmp_path / "50.toml").write_text(
            f'[cluster]\nendpoints = ["{etcds.members[0].client}"]\ndeadline = "2s"\n'
        )
        with etcds.client(0) as etcd:
            code, said = Seat(etcd, "default", tmp_path, capsys).types("status")

    assert (code, etcds.members[0].client in said) == (4, True)
