"""The files in systemd/ that are the daemon's: sandbox, socket, users, policy."""

import configparser
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from tests.bus import POLICY, ROOT
from tests.disks import tool
from tests.units import exposure
from update_agent.agent.bus import GROUP
from update_agent.host import bus, files, reboot
from update_agent.host.paths import FOLDER
from update_agent.writer.main import STATE

UNITS = ROOT / "systemd/system"
DAEMON = UNITS / "update-agentd.service"


def directives(name: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return {section: dict(parser[section]) for section in parser.sections()}


def test_the_sandbox_is_tight(figure: Callable[[str], None]) -> None:
    found = exposure(DAEMON)

    figure(f"systemd-analyze security update-agentd.service: {found} (wanted at most 3.0)")
    assert found <= 3.0


def test_it_has_no_capability() -> None:
    service = directives(DAEMON.name)["Service"]

    assert service["CapabilityBoundingSet"] == ""
    assert service["AmbientCapabilities"] == ""
    assert (service["User"], service["Group"]) == (GROUP, GROUP)


def test_every_line_of_the_sandbox_has_a_reason_above_it() -> None:
    service = DAEMON.read_text().partition("[Service]")[2].partition("[Install]")[0]
    blocks = [block.strip() for block in service.strip().split("\n\n")[1:]]

    assert blocks
    assert [block for block in blocks if not block.startswith("#")] == []


def test_only_the_daemon_can_have_the_host_rebooted() -> None:
    socket = directives("update-agent-reboot.socket")["Socket"]

    assert (socket["SocketUser"], socket["SocketMode"]) == (GROUP, "0600")
    assert socket["ListenStream"] == str(reboot.SOCKET)


def test_its_state_is_where_it_looks_for_it() -> None:
    assert f"/var/lib/{directives(DAEMON.name)['Service']['StateDirectory']}" == str(FOLDER)
    assert (
        f"d {FOLDER} 0755 {GROUP} {GROUP} -"
        in (ROOT / "systemd/tmpfiles.d/update-agent.conf").read_text()
    )
    assert f"u {GROUP} - " in (ROOT / "systemd/sysusers.d/update-agent.conf").read_text()


def test_what_a_killed_program_left_beside_its_file_is_gone_after_the_next_boot(
    tmp_path: Path,
) -> None:
    folders = [FOLDER, FOLDER / "trust", FOLDER / "outbox", STATE]
    for folder in (tmp_path / it.relative_to("/") for it in folders):
        folder.mkdir(parents=True)
        with files.replaced(folder / "record.json") as file:
            Path(str(file.name)).with_suffix(".1").touch()  # process 1's, which was killed
    assert len(list(tmp_path.rglob(".record.json.1"))) == len(folders)

    rules = ROOT / "systemd/tmpfiles.d/update-agent.conf"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(f"{GROUP}:x:990:990::/:/usr/sbin/nologin\n")
    (tmp_path / "etc/group").write_text(f"{GROUP}:x:990:\n")
    tool("systemd-tmpfiles", f"--root={tmp_path}", "--boot", "--remove", rules)

    left_over = [it.name for it in (tmp_path / "var").rglob("*") if it.is_file()]
    assert left_over == ["record.json"] * len(folders)


def test_the_policy_is_about_our_name_alone() -> None:
    policy = ET.parse(POLICY).getroot()  # noqa: S314

    rules = [rule for part in policy.iter("policy") for rule in part]

    assert rules
    assert {rule.get("own") or rule.get("send_destination") for rule in rules} == {bus.NAME}


def test_what_can_be_enabled_is_enabled() -> None:
    preset = (ROOT / "systemd/system-preset/80-update-agent.preset").read_text()
    wanted = {it.name for it in UNITS.iterdir() if "WantedBy" in it.read_text()}

    assert set(re.findall(r"^enable (\S+)$", preset, re.MULTILINE)) == wanted
