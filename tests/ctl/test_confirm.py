"""``update-agent-confirm``: a daemon of fakes on a real bus, and a real writer with a disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.agent.fakes import Fakes
from tests.agent.stage import Stage, fakes, on_stage
from tests.bus import Bus, bus
from tests.disks import flags
from tests.hosts import World, fleet, releases, world
from update_agent.core.lifecycle import Boot, State
from update_agent.core.settings import Duration, Trial
from update_agent.ctl.agent import NotRunningError
from update_agent.ctl.confirm import UnhealthyError, confirm, main
from update_agent.errors import HostError
from update_agent.host.programs import ProgramError

__all__ = ["bus", "fakes", "fleet", "releases", "world"]

TRIAL = Trial(soak=Duration(seconds=60))
ON_TRIAL = Boot(boot_id="b2", root_hash="1" * 64, successful=False)


@dataclass
class Host:
    """A host in a trial boot of slot B."""

    world: World
    health: Path
    waited: list[float] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None

    def check(self, name: str, script: str) -> None:
        program = self.health / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def confirm(self) -> None:
        confirm(TRIAL, self.health, self.world.address, self._wait)

    def _wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.meanwhile()

    @property
    def confirmed(self) -> bool:
        return self.world.slots().b.flags.successful


@pytest.fixture
def host(world: World, bus: Bus, tmp_path: Path) -> Iterator[Host]:
    del bus
    world.put_flags(flags(1, 0, ok=True), flags(2, 2))
    world.host = replace(world.host, booted=3)
    health = tmp_path / "health.d"
    health.mkdir()
    with world.serving():
        yield Host(world, health)


@pytest.fixture
def stage(host: Host, bus: Bus, fakes: Fakes) -> Iterator[Stage]:
    del host
    fakes.booted = ON_TRIAL
    with on_stage(bus, fakes) as played:
        played.until(State.TRIAL)
        yield played


def test_what_is_healthy_before_and_after_the_soak_time_is_confirmed(
    host: Host, stage: Stage, fakes: Fakes
) -> None:
    host.check("10-web", f"echo ran >> {host.health}/log")
    fakes.booted = replace(ON_TRIAL, successful=True)  # as the writer will say

    host.confirm()

    assert host.confirmed
    assert host.waited == [60.0]
    assert (host.health / "log").read_text() == "ran\nran\n"
    stage.until(State.IDLE)  # it was told


def test_a_check_that_fails_is_named_and_nothing_is_confirmed(host: Host, stage: Stage) -> None:
    del stage
    host.check("10-web", "echo no answer from port 80 >&2; exit 1")

    with pytest.raises(ProgramError, match=r"10-web.*no answer from port 80"):
        host.confirm()

    assert not host.confirmed
    assert host.waited == []


@pytest.mark.case(67)
def test_what_dies_in_the_soak_time_is_not_confirmed(host: Host, stage: Stage) -> None:
    del stage
    host.meanwhile = lambda: host.check("10-web", "exit 1")

    with pytest.raises(ProgramError, match="10-web"):
        host.confirm()

    assert not host.confirmed


def test_a_release_whose_daemon_does_not_run_is_not_confirmed(host: Host) -> None:
    with pytest.raises(NotRunningError):
        host.confirm()

    assert not host.confirmed


def test_a_daemon_that_sees_no_trial_cannot_be_right(host: Host, bus: Bus, fakes: Fakes) -> None:
    with on_stage(bus, fakes), pytest.raises(UnhealthyError, match=r"it is idle$"):
        host.confirm()

    assert not host.confirmed


def test_a_release_whose_writer_is_broken_is_not_confirmed(host: Host, stage: Stage) -> None:
    del stage
    with pytest.raises(HostError, match="nobody"):
        confirm(TRIAL, host.health, host.health / "nobody", lambda _: None)

    assert not host.confirmed


def test_the_program_says_what_it_lacks(
    host: Host, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    del stage
    host.check("10-web", "exit 1")

    code = main(["--health", str(host.health), "--writer", str(host.world.address)])

    assert code == 4
    assert "10-web" in capsys.readouterr().err
