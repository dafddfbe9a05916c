"""``update-agentctl doctor``: each thing that can be missing, and what it says then."""

import json
import shutil
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.agent.fakes import Fakes
from tests.agent.stage import Stage, fakes, stage
from tests.bus import bus
from tests.cgroups import Cgroups
from tests.core.test_wire import SLOT
from tests.ctl.test_offer import fleet, published, releases, web
from tests.etcd import Cluster, etcd1, etcd3
from tests.web import Web
from update_agent.core import settings
from update_agent.core.lifecycle import State as LifeState
from update_agent.core.semaphore import Semaphore
from update_agent.core.settings import Duration, Reboot, Settings, Strategy, Trial, Update
from update_agent.core.slot import SlotName
from update_agent.core.window import Window
from update_agent.core.wire import REQUESTS, State
from update_agent.ctl import doctor
from update_agent.ctl.doctor import CHECKS, Finding, Host, Level, looked
from update_agent.ctl.main import main
from update_agent.errors import HostError
from update_agent.host import cgroup, identity
from update_agent.host.group import Edit, Group
from update_agent.host.wire import Connection

__all__ = ["bus", "etcd1", "etcd3", "fakes", "fleet", "published", "releases", "stage", "web"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "state").mkdir()
    (tmp_path / "synchronized").touch()
    return Host(
        settings=Settings(),
        state=tmp_path / "state",
        writer=tmp_path / "writer",
        health=tmp_path / "health.d",
        pre_reboot=tmp_path / "pre-reboot.d",
        synchronized=tmp_path / "synchronized",
        cgroups=tmp_path / "cgroup",
    )


def found(check: str, host: Host) -> list[Finding]:
    return list(looked(check, CHECKS[check], host))


def only(check: str, host: Host) -> Finding:
    (finding,) = found(check, host)
    return finding


def test_a_host_without_our_image_is_no_host_of_ours(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "machine_id", lambda: "0" * 32)
    monkeypatch.setattr(identity, "os_release", lambda: {"ID": "debian"})
    assert only("identity", host).level is Level.PROBLEM

    monkeypatch.setattr(
        identity, "os_release", lambda: {"IMAGE_ID": "os", "IMAGE_VERSION": "1.0.0"}
    )
    assert only("identity", host).text.startswith("os 1.0.0, ")


def test_a_repository_is_asked_and_its_root_read(host: Host, fleet: Path, web: Web) -> None:
    root = fleet / "www/metadata/1.root.json"
    update = Update(repository=(web.url(""),), root=str(root))
    host = replace(host, settings=Settings(update=update))

    assert only("repository", host).level is Level.OK
    assert only("root", host).text.startswith(f"{root}, version 1, until 20")

    web.files = {}
    finding = only("repository", host)
    assert (finding.level, "404" in finding.text) == (Level.PROBLEM, True)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock."""
    return lambda now: monkeypatch.setattr(Host, "now", property(lambda _: now))


def test_an_old_root_is_a_warning_beforehand(
    host: Host, fleet: Path, at: Callable[[datetime], None]
) -> None:
    update = Update(root=str(fleet / "www/metadata/1.root.json"))
    host = replace(host, settings=Settings(update=update))
    expires = datetime.fromisoformat(only("root", host).text[-10:]).replace(tzinfo=UTC)

    for days, level, said in ((-10, Level.WARNING, "soon"), (2, Level.WARNING, "expired")):
        at(expires + timedelta(days=days))
        finding = only("root", host)
        assert (finding.level, said in finding.text) == (level, True)


def test_what_is_not_set_up_is_said_with_the_way_out(host: Host, tmp_path: Path) -> None:
    host = replace(
        host,
        settings=Settings(update=Update(root=str(tmp_path / "root.json"))),
        state=tmp_path / "none",
    )

    for check, said, hint in (
        ("repository", "no repository is set", "update.repository"),
        ("root", "cannot read the trusted root", "root.json"),
        ("state", "is missing", "systemd-tmpfiles"),
        ("writer", "No such file or directory", "update-agent-writer.socket"),
    ):
        finding = only(check, host)
        assert finding.level is Level.PROBLEM, check
        assert said in finding.text
        assert finding.hint
        assert hint in finding.hint


def test_a_state_folder_has_to_have_room(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.disk_usage(host.state).free > 64_000_000:
        assert only("state", host).level is Level.OK
    monkeypatch.setattr(doctor, "_ROOM", 2**63)
    finding = only("state", host)
    assert (finding.level, finding.hint) == (Level.PROBLEM, "make room on the STATE partition")


def test_a_clock_is_right_when_it_is_synchronized_and_not_behind(
    host: Host, at: Callable[[datetime], None]
) -> None:
    assert only("clock", host).level is Level.OK
    host.synchronized.unlink()
    assert only("clock", host).level is Level.WARNING
    at(datetime(1970, 1, 2, tzinfo=UTC))
    finding = only("clock", host)
    assert (finding.level, finding.hint) == (Level.PROBLEM, "timedatectl")
    assert "the clock says 1970-01-02" in finding.text


def test_a_writer_answers_and_is_not_only_listened_for_by_systemd(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.writer))
        listener.listen()

        def answer() -> None:
            with closing(Connection(listener.accept()[0])) as caller:
                caller.receive(REQUESTS, silence=20)
                caller.send(State(a=SLOT, b=SLOT, next=SlotName.A, why="slot A boots next"))

        thread = threading.Thread(target=answer)
        thread.start()
        finding = only("writer", host)
        thread.join()
        assert (finding.level, finding.text) == (
            Level.OK, f"{host.writer} answers: slot A boots next",
        )  # fmt: skip

        monkeypatch.setattr(doctor, "_PATIENCE", 0.05)
        assert only("writer", host).level is Level.PROBLEM


def test_a_drain_that_nobody_can_keep_to_is_told(host: Host) -> None:
    host = replace(host, settings=Settings(reboot=Reboot(drain=Duration(days=2))))

    _, told = found("reboots", host)

    assert (told.level, "24 h" in told.text or "1 d" in told.text) == (Level.WARNING, True)


def test_a_trial_has_to_be_longer_than_what_it_waits_for(host: Host) -> None:
    assert only("trial", host).level is Level.OK
    host = replace(host, settings=Settings(trial=Trial(soak=Duration(minutes=30))))
    finding = only("trial", host)
    assert finding.level is Level.WARNING
    assert "35 min" in finding.text


def test_a_daemon_that_waits_for_what_nobody_decided_is_in_trouble(
    stage: Stage, host: Host, fakes: Fakes
) -> None:
    fakes.answers = [HostError("no route to host", hint="the network")]
    stage.do(stage.daemon.check)
    stage.until(LifeState.WAITING)

    state, trouble = found("daemon", host)

    assert state.level is Level.OK
    assert (trouble.level, trouble.text) == (Level.PROBLEM, "no route to host")


def test_a_host_whose_disk_can_be_shared_has_the_io_controller_and_pressure(host: Host) -> None:
    groups = Cgroups(host.cgroups)
    assert [it.level for it in found("limits", host)] == [Level.OK, Level.OK]

    (groups.root / cgroup.SLICE / "io.max").unlink()
    groups.vanish("system.slice")

    controller, pressure = found("limits", host)
    assert (controller.level, pressure.level) == (Level.WARNING, Level.WARNING)
    assert "no io controller" in controller.text
    assert "updates have one speed" in pressure.text
    assert pressure.hint == "boot with psi=1 and cgroup v2"


def test_a_host_without_control_groups_is_told_which_are_wanted(host: Host) -> None:
    controller, pressure = found("limits", host)

    assert (controller.level, pressure.level) == (Level.WARNING, Level.WARNING)
    assert "cgroup v2" in f"{pressure.hint}"


def test_a_program_that_nobody_can_run_is_a_problem(host: Host) -> None:
    host.health.mkdir()
    (host.health / "10-web").write_text("#!/bin/sh\n")
    (host.health / "10-web").chmod(0o755)
    (host.health / "20-db").write_text("#!/bin/sh\n")

    health, pre_reboot = found("programs", host)

    assert (health.level, pre_reboot.level) == (Level.PROBLEM, Level.OK)
    assert health.hint == f"chmod +x {host.health / '20-db'}, or move it away"


def test_the_next_window_is_told(host: Host) -> None:
    assert only("reboots", host).text == "strategy off, at any time"
    reboot = Reboot(windows=(Window("02:00 +1m"),))
    told = only("reboots", replace(host, settings=Settings(reboot=reboot))).text
    assert told.startswith("strategy off, the next window opens in ")


def test_a_daemon_is_asked(stage: Stage, host: Host) -> None:
    assert only("daemon", host).text == "runs, and is idle"
    stage.do(lambda: stage.daemon.pause("holidays"))
    assert [it.level for it in found("daemon", host)] == [Level.OK, Level.WARNING]


@pytest.mark.usefixtures("bus")
def test_a_daemon_that_does_not_run_is_a_problem(host: Host) -> None:
    finding = only("daemon", host)
    assert finding.level is Level.PROBLEM
    assert finding.hint == "systemctl status update-agentd"


def test_who_may_not_look_is_told_to_be_root(host: Host) -> None:
    def secret(_: Host) -> doctor.Found:
        raise PermissionError(13, "Permission denied", "/dev/sda")

    (finding,) = looked("disk", secret, host)

    assert (finding.level, finding.hint) == (Level.WARNING, "run it as root")


def test_settings_that_cannot_be_read_are_all_there_is_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the line is short, wherever tests have their folders
    Path("50.toml").write_text("nonsense")

    assert main(["doctor", "--settings", "."]) == 4

    said = capsys.readouterr().out
    assert said.startswith("problem     settings: ")
    assert said.splitlines()[-1] == "1 of 1 would keep an update from working"


@pytest.fixture
def only_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], None]:
    return lambda checks: monkeypatch.setattr(doctor, "CHECKS", checks)


def test_all_is_well_is_said_too(
    only_checks: Callable[[dict[str, object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fine(_: Host) -> doctor.Found:
        yield Level.OK, "is fine", None

    only_checks({"everything": fine})

    assert main(["doctor", "--settings", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "ok          everything: is fine",
        "an update will find all it needs",
    ]


def test_findings_as_json_carry_the_way_out(
    only_checks: Callable[[dict[str, object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(_: Host) -> doctor.Found:
        raise HostError("both tables are damaged", hint="restore them")

    only_checks({"disk": broken})

    assert main(["doctor", "--settings", str(tmp_path), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)[1] == {
        "check": "disk", "level": "problem", "text": "both tables are damaged",
        "hint": "restore them",
    }  # fmt: skip


# The cluster -------------------------------------------------------------------------------------


def in_turn(host: Host, etcds: Cluster, **more: object) -> Host:
    access = etcds.access()
    known: dict[str, object] = {
        "endpoints": access.endpoints, "ca": access.ca, "cert": access.cert, "key": access.key,
        "group": f"g{uuid.uuid4().hex[:12]}",
    }  # fmt: skip
    cluster = settings.Cluster(**(known | more))  # type: ignore[arg-type]
    return replace(host, settings=Settings(reboot=Reboot(strategy=Strategy.LOCK), cluster=cluster))


def test_a_cluster_is_looked_at_where_hosts_reboot_in_turn(
    host: Host, etcd3: Cluster, at: Callable[[datetime], None]
) -> None:
    assert only("cluster", host).text == "nobody is asked, for reboot.strategy is off"
    assert etcd3.ca
    cert, key = etcd3.ca.issue(f"long-{uuid.uuid4().hex}", days=300)
    host = in_turn(host, etcd3, cert=str(cert), key=str(key))
    cluster = host.settings.cluster

    *looked, group = found("cluster", host)
    assert (group.level, group.hint) == (Level.PROBLEM, "update-agentctl lock slots 1")
    told = {it.text: it.level for it in looked}
    assert [level for text, level in told.items() if text.endswith("answers")] == [Level.OK] * 3
    (soon,) = [it for it in looked if it.text.startswith("cluster.ca ")]
    assert (soon.level, "expires in" in soon.text) == (Level.WARNING, True)
    (long,) = [it for it in looked if it.text.startswith("cluster.cert ")]
    assert (long.level, long.hint) == (Level.OK, None)
    servers = [it for it in looked if it.text.startswith("the certificate of https://")]
    assert [it.level for it in servers] == [Level.WARNING] * 3

    with etcd3.client() as etcd:
        Group(etcd, cluster.group).change(lambda _: Edit(semaphore=Semaphore(slots=2)))
    assert found("cluster", host)[-1].text == (
        f"reboot slots of the group {cluster.group}: 2, held: 0"
    )
    at(datetime.now(UTC) + timedelta(days=301))
    late = next(it for it in found("cluster", host) if it.text.startswith("cluster.cert "))
    assert (late.level, late.text.endswith(": expired")) == (Level.PROBLEM, True)


def test_one_member_that_is_away_is_a_warning_and_all_of_them_a_problem(
    host: Host, etcd1: Cluster
) -> None:
    gone = "http://127.0.0.1:9"
    host = in_turn(host, etcd1, endpoints=(etcd1.members[0].client, gone))
    levels = [it.level for it in found("cluster", host)]
    assert levels == [Level.OK, Level.WARNING, Level.PROBLEM]

    host = in_turn(host, etcd1, endpoints=(gone,))
    finding = only("cluster", host)
    assert (finding.level, f"{gone} cannot be reached" in finding.text) == (Level.PROBLEM, True)


def test_a_certificate_that_is_none_is_named(host: Host, etcd1: Cluster, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")

    finding = only("cluster", in_turn(host, etcd1, cert=str(tmp_path / "cert.pem")))

    assert finding.text == f"{tmp_path}/cert.pem holds no certificate in PEM"
