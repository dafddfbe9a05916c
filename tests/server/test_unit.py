"""The unit of ``update-server``: it starts what there is, and README tells what else it wants."""

import re
import shlex
from argparse import Namespace
from collections.abc import Callable
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.bus import ROOT
from tests.disks import tool
from tests.readme import PATH, README, blocks
from tests.units import exposure
from update_agent.server.main import command

UNIT = ROOT / "systemd/server/update-server.service"
FOLDER = "/opt/update-agent/bin"


@pytest.fixture
def service() -> dict[str, str]:
    found = RawConfigParser(strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(UNIT)
    return dict(found["Service"])


def started(service: dict[str, str], options: str) -> Namespace:
    """Return what the server is told, with these OPTIONS."""
    program, *words = shlex.split(service["ExecStart"].replace("$OPTIONS", options))
    assert program == f"{FOLDER}/update-server"
    return command().parse_args(words)


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    programs, _, _ = PATH.partition(":")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(FOLDER, programs))

    assert tool("systemd-analyze", "verify", "--man=no", copy) == ""


def test_little_of_its_machine_is_open_to_it(figure: Callable[[str], None]) -> None:
    found = exposure(UNIT)

    figure(f"systemd-analyze security update-server.service: {found} (wanted at most 2.0)")
    assert found <= 2.0


def test_it_serves_what_it_may_write_behind_a_proxy_or_with_tls(service: dict[str, str]) -> None:
    _, _, usual = service["Environment"].strip('"').partition("=")
    told = README.read_text()
    with_tls = re.search(r"`OPTIONS=([^`]*--cert[^`]*)`", told)
    assert with_tls

    behind, open_ = started(service, usual), started(service, with_tls[1])

    assert (behind.host, behind.behind_proxy, behind.cert) == ("127.0.0.1", "127.0.0.1", None)
    assert (open_.host, open_.port) == ("0.0.0.0", 443)  # noqa: S104  that is what it is for
    assert open_.cert
    assert open_.key
    assert service["ReadWritePaths"] == str(behind.repository)
    (typed,) = blocks("sh")
    for it in (behind.repository, *behind.keys, service["User"], UNIT.relative_to(ROOT)):
        assert str(it) in typed


def test_the_tokens_that_readme_makes_are_where_the_service_looks(service: dict[str, str]) -> None:
    (typed,) = blocks("sh")

    made = re.findall(rf"-u {service['User']} {FOLDER}/update-server (.*)", typed)
    tokens = [command().parse_args(shlex.split(it)) for it in made]

    assert [str(it.role) for it in tokens] == ["operator", "fleet"]
    assert {str(it.state) for it in tokens} == {f"/var/lib/{service['StateDirectory']}"}
